"""The rows of a table on a device, as tensors by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Rows of data on a device; every tensor may have [lanes, …] in front.

    Models take the inputs, losses the target and the weight.
    """

    numbers: Tensor
    """Scaled features [rows, columns]."""
    target: Tensor
    """Scaled targets [rows, targets]."""
    weight: Tensor | None = None
    """Weight of each row [rows, 1], with mean 1 over the training rows; None if all rows count the same."""
    categories: Tensor | None = None
    """Codes of the categories, int64 [rows, columns]: 0 for one that is missing or new; None where the model takes none."""

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The arguments of a model: the numbers, and the categories if it takes them."""
        return (self.numbers,) if self.categories is None else (self.numbers, self.categories)

    @property
    def residuals(self) -> int:
        """Number of residuals: rows times targets."""
        return self.target.shape[-2] * self.target.shape[-1]

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with every tensor changed."""
        return Batch(*(None if values is None else change(values) for values in self))  # type: ignore[arg-type]

    def to(self, dtype: torch.dtype) -> Batch:
        """Return the batch in another dtype; the codes of the categories stay integers."""
        return self.map(lambda values: values.to(dtype) if values.is_floating_point() else values)
