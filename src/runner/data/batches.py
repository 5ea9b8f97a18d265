"""Addressed batches: the rows of a step depend only on (seed, step), so a resumed run needs no history."""

from __future__ import annotations

import torch
from torch import Tensor

from runner.compute.rng import stream
from runner.compute.transfer import upload


class EpochBatches:
    """Row numbers of every step's batch. Each row occurs once per epoch; the last batch of an epoch may be smaller.

    A full batch is all rows in their original order, returned as a slice. Smaller batches come from a new permutation for
    each epoch, which is drawn on the CPU and kept on `device` during that epoch.
    """

    def __init__(self, rows: int, batch_size: int | None, seed: int, device: torch.device) -> None:
        self._rows, self._seed, self._device = rows, seed, device
        self.largest = min(batch_size or rows, rows)
        """Number of rows in every batch except the last of an epoch."""
        self.per_epoch = -(-rows // self.largest)
        self._epoch = 0
        self._order: tuple[Tensor, ...] = ()

    def epoch(self, step: int) -> int:
        """Return the epoch, from 1, that a step, from 1, belongs to."""
        return (step - 1) // self.per_epoch + 1

    def at(self, step: int) -> Tensor | slice:
        """Return the row numbers [n] of a step, from 1, or a slice if the batch is all rows."""
        if self.per_epoch == 1:
            return slice(None)
        epoch = self.epoch(step)
        if epoch != self._epoch:
            self._order = torch.split(upload(self.order(epoch), self._device), self.largest)
            self._epoch = epoch
        return self._order[(step - 1) % self.per_epoch]

    def order(self, epoch: int) -> Tensor:
        """Return the permutation of all row numbers [rows] for an epoch, from 1, on the CPU."""
        return torch.randperm(self._rows, generator=stream(self._seed, "order", epoch))

    def size(self, step: int) -> int:
        """Return the number of rows in the batch of a step, from 1."""
        last = (step - 1) % self.per_epoch == self.per_epoch - 1
        return self._rows - (self.per_epoch - 1) * self.largest if last else self.largest

    def rows_between(self, first: int, last: int) -> int:
        """Return the total number of rows of the steps `first` to `last`, both included."""
        return self._rows_until(last) - self._rows_until(first - 1)

    def _rows_until(self, step: int) -> int:
        epochs, steps = divmod(step, self.per_epoch)
        return epochs * self._rows + steps * self.largest
