"""Strategies: how the work of one run is placed on processes and devices.

A step's batch is cut into portions. Each process computes the loss and the gradients of its own ones, weighted by their
share of all rows of the batch, and the strategy adds them up. `Single` implements the whole contract with identities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.func import functional_call

from runner.compute.dtensor import gathered, scattered

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Mean loss [] of predictions and targets [rows, 1]."""


@dataclass(frozen=True)
class Portion:
    """Rows `first` to `last` (left out) of a batch, and the address of the random numbers that they are trained with."""

    first: int
    last: int
    stream: int = 0


@dataclass(frozen=True)
class MicroBatch:
    """What is computed at once: features and target of some rows, and their share of all rows of the batch."""

    features: Tensor
    target: Tensor
    weight: float
    stream: int


class Strategy(Protocol):
    """What the objective, the evaluation and the loop ask for, and no more."""

    name: str
    sharded: bool
    """Whether a process holds a part of the state only."""

    def place(self, model: Any, loss: Loss) -> Callable[[Tensor], Tensor]:
        """Put the model on this process's device, cut to what it holds; gives the forward pass, features → predictions.

        Raises `ConfigError` for a model that cannot be placed so.
        """

    def parameters(self, model: Any) -> dict[str, Tensor]:
        """The parameters that the optimizer updates, by name."""

    def named(self, model: Any) -> dict[str, Tensor]:
        """The values of the model's parameters by name; vmapped with [lanes, …] in front."""

    def predict(self, model: Any, parameters: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Predictions of the model with other parameters, which are as `named` gives them."""

    def portions(self, rows: int) -> Sequence[Portion]:
        """What this process computes of a batch of so many rows: at least one, which may be empty."""

    def gradient(self, parts: Sequence[MicroBatch], backward: Callable[[MicroBatch, float], Tensor]) -> Tensor:
        """Leave the gradients of the whole batch in `.grad` and give this process's share [] of its mean loss.

        `backward(part, factor)` adds factor · weight · gradient of the part to `.grad` and gives weight · loss [].
        `total` makes whole losses of the shares.
        """

    def total(self, shares: Tensor) -> Tensor:
        """Shares of losses [n] of this process → losses [n] of whole batches, the same on every process."""

    def reduce(self, parts: Sequence[Tensor]) -> Tensor:
        """The sum of one tensor a portion, over the portions of all processes, the same on every process."""

    def share(self, whole: Tensor) -> Tensor:
        """This process's share of a loss [] that is known whole: the way back from `total`."""

    def stacked(self, parts: Sequence[Tensor]) -> Tensor:
        """One matrix […, rows, columns] a portion, below each other in the order of the portions of all processes."""

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Norm [] of the whole gradients."""

    def any(self, flag: bool) -> bool:
        """Whether the flag is raised on some process."""

    def load(self, model: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
        """Take parameters and buffers from whole tensors, or from those that `state_dict` gave here."""

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters of all processes, each of them whole, by name; every process must ask."""


class Single:
    """One process on one device."""

    name = "single"
    sharded = False

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def place(self, model: Any, loss: Loss) -> Callable[[Tensor], Tensor]:
        placed: Callable[[Tensor], Tensor] = model.to(self._device)
        return placed

    def parameters(self, model: Any) -> dict[str, Tensor]:
        return dict(model.named_parameters())

    def named(self, model: Any) -> dict[str, Tensor]:
        return self.parameters(model)

    def predict(self, model: Any, parameters: Mapping[str, Tensor], features: Tensor) -> Tensor:
        prediction: Tensor = functional_call(model, dict(parameters), (features,))
        return prediction

    def portions(self, rows: int) -> Sequence[Portion]:
        return (Portion(0, rows),)

    def gradient(self, parts: Sequence[MicroBatch], backward: Callable[[MicroBatch, float], Tensor]) -> Tensor:
        share = backward(parts[0], 1.0)
        for part in parts[1:]:
            share = share + backward(part, 1.0)
        return share

    def total(self, shares: Tensor) -> Tensor:
        return shares

    def reduce(self, parts: Sequence[Tensor]) -> Tensor:
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def share(self, whole: Tensor) -> Tensor:
        return whole

    def stacked(self, parts: Sequence[Tensor]) -> Tensor:
        return parts[0] if len(parts) == 1 else torch.cat(list(parts), -2)

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        return torch.nn.utils.get_total_norm(list(gradients))

    def any(self, flag: bool) -> bool:
        return flag

    def load(self, model: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
        present = model.state_dict()
        model.load_state_dict({name: scattered(state[name], onto) for name, onto in present.items()})

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: gathered(tensor.detach()) for name, tensor in tensors.items()}


class DataParallel(Single):
    """One process on all visible GPUs: `torch.nn.DataParallel`, which torch itself advises against."""

    name = "dp"

    def place(self, model: Any, loss: Loss) -> Callable[[Tensor], Tensor]:
        return torch.nn.DataParallel(model.to(self._device))
