"""Bounds of parameters: which values they allow, and which of them are reached."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Bounds:
    """Lower and upper bounds [n] of the entries of all parameters in order; −∞ or ∞ where there is none.

    They are numbers of the parameters' dtype, so that a parameter can be equal to its bound. Values are [n] or [lanes, n].
    """

    low: Tensor
    high: Tensor

    @staticmethod
    def of(limits: Mapping[str, tuple[float, float]], parameters: Mapping[str, Tensor]) -> Bounds:
        """Return the bounds of parameters by name, whose limits have the same names or none, in their dtype and on their device."""
        pairs = [
            limits.get(name, (-math.inf, math.inf)) for name, value in parameters.items() for _ in range(value.numel())
        ]
        like = next(iter(parameters.values())).detach()
        low, high = torch.tensor(pairs, dtype=torch.float64).T.to(like)
        return Bounds(low, high)

    def to(self, like: Tensor) -> Bounds:
        """Return the bounds in the dtype and on the device of a tensor."""
        return Bounds(self.low.to(like), self.high.to(like))

    def project(self, values: Tensor) -> Tensor:
        """Return the nearest values within the bounds. nan stays nan."""
        return torch.clamp(values, self.low, self.high)

    def reached(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return masks of the values at their lower and at their upper bound."""
        return values <= self.low, values >= self.high

    def active(self, values: Tensor, gradient: Tensor) -> Tensor:
        """Return a mask of the values at a bound that descent along a gradient of their shape would leave."""
        low, high = self.reached(values)
        return (low & (gradient > 0)) | (high & (gradient < 0))
