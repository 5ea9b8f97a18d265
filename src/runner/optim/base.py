"""Contracts of optimizers, and of the objective that they minimise.

An update is done by our own rules (`manual` with `rules`), by `torch.optim` (`torch_optim`) or by a least-squares solver.
All keep their state as parameter name → slot → value. Slots are named as in torch, so that rules and `torch.optim` can resume
each other's runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

State = dict[str, dict[str, Any]]
"""Parameter name → slot → tensor (or lists and numbers, for L-BFGS)."""


@dataclass(frozen=True)
class Linearisation:
    """First-order expansion of a step's least-squares problem at the current parameters.

    With predictions f, targets y and parameters p: residuals r = f − y and Jacobian J = ∂f/∂p, whose n columns are the
    entries of all parameters in order. For vmapped runs `share` and `factor` have [lanes, …] in front.
    """

    share: Tensor
    """This process's share [] of the mean loss."""
    factor: Tensor
    """Triangular QR factor [n + 2, n + 2] of [J, r, y] over all rows of all processes."""
    rows: int
    """Number of residuals of all processes: rows of the data times targets."""


class Objective(Protocol):
    """Loss and gradients of one step's rows. Repeated calls within a step use the same rows and random numbers."""

    def gradient(self) -> tuple[Tensor, Sequence[Tensor] | None]:
        """Return this process's share [] of the mean loss, and the gradients over all rows, which are also in `.grad`.

        The gradients are None if the step must be skipped.
        """

    def mean_square(self) -> Tensor:
        """Return this process's share [] or [lanes] of the mean of the squared residuals, in the widest type."""

    def whole(self, share: Tensor) -> Tensor:
        """Return the mean loss [] over all processes, for decisions that must be the same on each of them."""

    def residuals(self) -> Linearisation:
        """Return residuals and Jacobian at the current parameters."""

    def squares(self) -> Tensor:
        """Return the sum of squared residuals [] or [lanes] over all rows at the current parameters."""


class Optimizer(Protocol):
    """Updates the parameters once per call of `step`."""

    settled: Sequence[int]
    """Lanes that converged in the last step; empty for methods that cannot tell."""
    rate_type: torch.dtype | None
    """Dtype of a learning rate that is a tensor on the device; None if the learning rate must be a number."""

    def step(self, objective: Objective, lr: Any) -> Tensor:
        """Update the parameters in place with learning rate `lr`; return this process's share of the loss [] before it.

        `lr` is a number, or a tensor [] on the device. For vmapped runs it is a tensor [lanes, 1] and the loss is [lanes].
        """

    def state_dict(self) -> State:
        """Return what the next step needs besides the parameters. The tensors are not copies: the next step changes them."""

    def load_state_dict(self, state: State) -> None:
        """Restore a saved state, from any device."""


@runtime_checkable
class Capturable(Optimizer, Protocol):
    """An optimizer whose step can be captured as a CUDA graph, because it decides nothing on the host."""

    def capturing(self) -> AbstractContextManager[None]:
        """Return the context in which a step is captured. Then and later, steps update the state's tensors in place."""


class Differentiable(Protocol):
    """The part of `runner.models.base.Model` that solvers use; this package does not import the models."""

    def named_parameters(self) -> Any:
        """Return pairs of name and parameter."""

    def jacobian(self, parameters: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Return derivatives […, rows·targets, n] of the predictions by the n entries of all parameters, in order."""

    def is_linear(self, features: Tensor) -> bool:
        """Return whether the predictions for features [rows, columns] are linear in the parameters, up to a constant."""

    def unscaling(self, scaling: Any) -> Tensor | None:
        """Return the matrix [reported, n] that maps parameters to those that are reported; None if they are the same."""
