"""Number types of a run: the dtype of parameters and data, mixed precision, and the scaling of gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def widest(device: torch.device) -> torch.dtype:
    """The type in which sums are kept: float64, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def scalar_type(parameter: Tensor) -> torch.dtype:
    """The type of hyperparameters beside a parameter: its own, or float32 where that has too few digits for them."""
    return parameter.dtype if parameter.dtype in (torch.float32, torch.float64) else torch.float32


def autocast(amp: str, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """What the forward pass is computed in: a context to enter at every call."""
    if amp == "off":
        return nullcontext
    return partial(torch.autocast, device.type, dtype=DTYPES[amp])


class Scaler(Protocol):
    """Keeps float16 gradients away from zero: scale the loss, unscale the gradients, skip a step that overflowed."""

    skipped_steps: int

    def scale(self, loss: Tensor) -> Tensor: ...
    def unscale(self, parameters: Sequence[Tensor]) -> None: ...
    def accept(self, parameters: Sequence[Tensor]) -> bool: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Unscaled:
    """Every number type but float16: nothing is scaled and every step is taken."""

    skipped_steps = 0

    def scale(self, loss: Tensor) -> Tensor:
        return loss

    def unscale(self, parameters: Sequence[Tensor]) -> None:
        pass

    def accept(self, parameters: Sequence[Tensor]) -> bool:
        return True

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class _Gate:
    """What `torch.amp.GradScaler` takes for an optimizer: its `step` is called only when all gradients are finite."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.param_groups = [{"params": list(parameters)}]
        self.passed = False

    def step(self) -> None:
        self.passed = True


class GradientScaler:
    """`torch.amp.GradScaler` for any update, by hand or by optimizer."""

    def __init__(self, device: torch.device) -> None:
        self.skipped_steps = 0
        self._scaler = torch.amp.GradScaler(device.type)
        self._gate: Any = None

    def scale(self, loss: Tensor) -> Tensor:
        return self._scaler.scale(loss)

    def unscale(self, parameters: Sequence[Tensor]) -> None:
        self._gate = _Gate(parameters)
        self._scaler.unscale_(self._gate)

    def accept(self, parameters: Sequence[Tensor]) -> bool:
        """Whether the gradients are finite; the scale is adapted either way."""
        self._gate.passed = False
        self._scaler.step(self._gate)
        self._scaler.update()
        self.skipped_steps += not self._gate.passed
        return bool(self._gate.passed)

    def state_dict(self) -> dict[str, Any]:
        return {**self._scaler.state_dict(), "skipped_steps": self.skipped_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        scaler = dict(state)
        self.skipped_steps = scaler.pop("skipped_steps")
        self._scaler.load_state_dict(scaler)


def scaler(amp: str, device: torch.device) -> Scaler:
    """The gradient scaler for float16, and none for everything else."""
    return GradientScaler(device) if amp == "float16" else Unscaled()
