"""Number types of a run: the dtype of parameters and data, mixed precision, and the scaling of gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def widest(device: torch.device) -> torch.dtype:
    """Return the dtype in which sums are kept on a device: float64, or float32 on mps, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def scalar_type(parameter: Tensor) -> torch.dtype:
    """Return the dtype of the hyperparameters for a parameter: its own when it is float32 or float64, else float32."""
    # Narrower types have too few digits for a learning rate.
    return parameter.dtype if parameter.dtype in (torch.float32, torch.float64) else torch.float32


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make a dtype that of new tensors."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def autocast(amp: str, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """Return a function that makes the autocast context of one forward pass; an empty context for "off"."""
    if amp == "off":
        return nullcontext
    return partial(torch.autocast, device.type, dtype=DTYPES[amp])


class Scaler(Protocol):
    """Gradient scaling, which keeps small float16 gradients from becoming zero (Micikevicius et al., 2018)."""

    skipped_steps: int
    """Number of steps whose gradients overflowed."""

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss [] or [lanes] as the tensor [] to differentiate."""

    def unscale(self, parameters: Sequence[Tensor]) -> None:
        """Divide the gradients of the parameters by the scale, in place."""

    def accept(self, parameters: Sequence[Tensor]) -> bool:
        """Whether the step may be taken: all gradients are finite. Call it once a step, after `unscale`."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""


class Unscaled:
    """No scaling, for every number type but float16: every step is taken."""

    skipped_steps = 0

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss unchanged."""
        return loss

    def unscale(self, parameters: Sequence[Tensor]) -> None:
        """Leave the gradients unchanged."""

    def accept(self, parameters: Sequence[Tensor]) -> bool:
        """Return True without a look at the gradients."""
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Ignore the state."""


class _StepGate:
    """Stand-in for an optimizer in `torch.amp.GradScaler`, which calls `step` only when all gradients are finite."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.param_groups = [{"params": list(parameters)}]
        self.passed = False

    def step(self) -> None:
        """Note that the gradients are finite."""
        self.passed = True


class GradientScaler:
    """`torch.amp.GradScaler` for any update, manual or by an optimizer."""

    def __init__(self, device: torch.device) -> None:
        self.skipped_steps = 0
        self._scaler = torch.amp.GradScaler(device.type)
        self._gate: Any = None

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss [] times the current scale."""
        return self._scaler.scale(loss)

    def unscale(self, parameters: Sequence[Tensor]) -> None:
        """Divide the gradients by the current scale and note whether all are finite."""
        self._gate = _StepGate(parameters)
        self._scaler.unscale_(self._gate)

    def accept(self, parameters: Sequence[Tensor]) -> bool:
        """Whether the gradients are finite. Adapts the scale and counts a step that is skipped."""
        self._gate.passed = False
        self._scaler.step(self._gate)
        self._scaler.update()
        self.skipped_steps += not self._gate.passed
        return bool(self._gate.passed)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of torch's scaler and the number of skipped steps."""
        return {**self._scaler.state_dict(), "skipped_steps": self.skipped_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore torch's scaler and the number of skipped steps."""
        scaler = dict(state)
        self.skipped_steps = scaler.pop("skipped_steps")
        self._scaler.load_state_dict(scaler)


def scaler(amp: str, device: torch.device) -> Scaler:
    """Return a gradient scaler for float16 and `Unscaled` for everything else."""
    return GradientScaler(device) if amp == "float16" else Unscaled()
