"""The rows of a table on a device, as tensors by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Rows of data on a device; every tensor may have [lanes, …] in front.

    Models take the numbers, losses the target and the weight.
    """

    numbers: Tensor
    """Scaled features [rows, columns]."""
    target: Tensor
    """Scaled targets [rows, targets]."""
    weight: Tensor | None = None
    """Weight of each row [rows, 1], with mean 1 over the training rows; None if all rows count the same."""

    @property
    def residuals(self) -> int:
        """Number of residuals: rows times targets."""
        return self.target.shape[-2] * self.target.shape[-1]

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with every tensor changed."""
        numbers, target, weight = self
        return Batch(change(numbers), change(target), None if weight is None else change(weight))
