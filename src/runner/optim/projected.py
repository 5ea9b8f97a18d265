"""Gradient methods for bounded parameters: after each update, the nearest point within the bounds is taken.

Projected gradient descent: Bertsekas, "On the Goldstein–Levitin–Polyak gradient projection method", IEEE Trans. Autom. Control 21
(1976).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from runner.compute.bounds import Bounds
from runner.optim.base import Capturable, Objective, State


class Projected:
    """An optimizer whose updates end within bounds. Its state is that of the optimizer."""

    settled: Sequence[int] = ()

    def __init__(
        self, optimizer: Capturable, parameters: Mapping[str, Tensor], bounds: Bounds, lanes: int | None
    ) -> None:
        self._optimizer = optimizer
        self._parameters = list(parameters.values())
        sizes = [parameter.numel() // (lanes or 1) for parameter in self._parameters]
        # Of vmapped runs there is one tensor [lanes, n], and the bounds [n] are those of every lane.
        self._low, self._high = (
            [
                part.expand_as(parameter) if lanes else part.reshape(parameter.shape)
                for part, parameter in zip(torch.split(limits, sizes), self._parameters, strict=True)
            ]
            for limits in (bounds.low, bounds.high)
        )
        self.rate_type: torch.dtype | None = optimizer.rate_type

    def step(self, objective: Objective, lr: Any) -> Tensor:
        """Update the parameters in place and project them; return this process's share of the loss before the update."""
        share = self._optimizer.step(objective, lr)
        with torch.no_grad():
            torch._foreach_clamp_min_(self._parameters, self._low)
            torch._foreach_clamp_max_(self._parameters, self._high)
        return share

    def capturing(self) -> AbstractContextManager[None]:
        """Return the context in which the optimizer's step is captured."""
        return self._optimizer.capturing()

    def state_dict(self) -> State:
        """Return the optimizer's state."""
        return self._optimizer.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Restore the optimizer's state."""
        self._optimizer.load_state_dict(state)
