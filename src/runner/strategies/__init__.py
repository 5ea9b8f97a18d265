"""Strategies: how the work of one run is placed. `Single` implements the whole contract with identities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from runner import config as c


class Strategy(Protocol):
    """What the loop and the evaluation ask for, and no more."""

    name: str
    world_size: int

    def place(self, model: torch.nn.Module) -> torch.nn.Module:
        """The module to call for the forward pass, on this process's device."""

    def share(self, rows: Tensor | slice) -> Tensor | slice:
        """This process's rows of a global batch."""

    def reduce(self, sums: Tensor) -> Tensor:
        """Sums [n] over all processes."""

    def full_state(self, model: torch.nn.Module) -> dict[str, Tensor]:
        """Name → whole tensor of the model's parameters and buffers."""

    def load_full_state(self, model: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
        """The way back."""


class Single:
    """One process on one device."""

    name = "single"
    world_size = 1

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def place(self, model: torch.nn.Module) -> torch.nn.Module:
        return model.to(self._device)

    def share(self, rows: Tensor | slice) -> Tensor | slice:
        return rows

    def reduce(self, sums: Tensor) -> Tensor:
        return sums

    def full_state(self, model: torch.nn.Module) -> dict[str, Tensor]:
        return dict(model.state_dict())

    def load_full_state(self, model: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
        model.load_state_dict(dict(state))


def build(config: c.Strategy, device: torch.device) -> Strategy:
    """The strategy that was chosen; auto is single on one process."""
    return Single(device)
