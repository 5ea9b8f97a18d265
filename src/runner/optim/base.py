"""Optimizers: who asks the objective for gradients and changes the parameters.

The update is written out by hand (`manual`, over the pure rules) or done by `torch.optim` (`library`). Both keep their
state as parameter name → slot → value, with the slots named as torch names them, so that each resumes the other's runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

State = dict[str, dict[str, Any]]
"""Parameter name → slot → tensor (or, for L-BFGS, lists and numbers)."""


@dataclass(frozen=True)
class Linearisation:
    """A step's batch to first order in the parameters, of predictions f, targets y, residuals r = f − y and their Jacobian J.

    `share` [] is this process's part of the mean loss. `factor` […, n + 2, n + 2] is the triangle of [J, r, y] over all rows
    of all processes, J with the parameters' n numbers one after the other; `rows` counts them. Side by side both have
    [lanes, …] in front.
    """

    share: Tensor
    factor: Tensor
    rows: int


class Objective(Protocol):
    """Loss and gradients of one step's rows; asked again within a step, it sees the same rows and random numbers."""

    def gradient(self) -> tuple[Tensor, Sequence[Tensor] | None]:
        """This process's share [] of the mean loss, and the gradients of all rows together, also left in `.grad`.

        None for the gradients: the step is to be skipped.
        """

    def whole(self, share: Tensor) -> Tensor:
        """The mean loss [] of all processes, for who decides by it."""

    def residuals(self) -> Linearisation:
        """Residuals and Jacobian at the present parameters."""

    def squares(self) -> Tensor:
        """Sum of squared residuals [] or [lanes] of all rows together, at the present parameters."""


class Optimizer(Protocol):
    """One update of the parameters for each call of `step`."""

    settled: Sequence[int]
    """Lanes that the last step brought to where no further one finds better parameters; of most methods nobody knows."""

    def step(self, objective: Objective, lr: Any) -> Tensor:
        """Update the parameters in place with learning rate `lr`; gives this process's share of the loss [] before it.

        Side by side `lr` is a tensor [lanes, 1] and the loss [lanes].
        """

    def state_dict(self) -> State:
        """What the next step needs besides the parameters. The tensors are the live ones: copy before the next step."""

    def load_state_dict(self, state: State) -> None:
        """Go on from a state that was saved, on whatever device."""


class Differentiable(Protocol):
    """A model as solvers see it: `runner.models.base.Model`, which this room does not import."""

    def named_parameters(self) -> Any:
        """Pairs of name and parameter."""

    def jacobian(self, parameters: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Derivatives […, rows, numbers] of the predictions by the numbers of all parameters, in order."""

    def is_linear(self, features: Tensor) -> bool:
        """Whether the predictions for these rows are linear in the parameters, up to a constant."""

    def unscaling(self, scaling: Any) -> Tensor | None:
        """Matrix that takes the model's numbers to those that are reported; None where they are the same."""
