"""Batches by address: the rows of a step are a function of (seed, step) alone, so that resuming needs a number."""

from __future__ import annotations

import torch
from torch import Tensor

from runner.compute.rng import stream


class EpochBatches:
    """Row numbers of every step's batch; each row once an epoch, the last batch of an epoch as small as it comes out.

    A full batch is all rows in their own order, as a slice; smaller ones are drawn anew for each epoch on the CPU and
    kept on `device` while the epoch lasts.
    """

    def __init__(self, rows: int, batch_size: int | None, seed: int, device: torch.device) -> None:
        self._rows, self._seed, self._device = rows, seed, device
        self.largest = min(batch_size or rows, rows)
        """Rows of every batch but the last of an epoch."""
        self.per_epoch = -(-rows // self.largest)
        self._epoch = 0
        self._order: tuple[Tensor, ...] = ()

    def epoch(self, step: int) -> int:
        """The epoch, from 1, that a step, from 1, belongs to."""
        return (step - 1) // self.per_epoch + 1

    def at(self, step: int) -> Tensor | slice:
        """Row numbers [n] of a step, from 1."""
        if self.per_epoch == 1:
            return slice(None)
        epoch = self.epoch(step)
        if epoch != self._epoch:
            self._order = torch.split(self.order(epoch).to(self._device), self.largest)
            self._epoch = epoch
        return self._order[(step - 1) % self.per_epoch]

    def order(self, epoch: int) -> Tensor:
        """All row numbers [rows] in the order of an epoch, from 1, on the CPU."""
        return torch.randperm(self._rows, generator=stream(self._seed, "order", epoch))

    def size(self, step: int) -> int:
        """How many rows a step has."""
        last = (step - 1) % self.per_epoch == self.per_epoch - 1
        return self._rows - (self.per_epoch - 1) * self.largest if last else self.largest

    def rows_between(self, first: int, last: int) -> int:
        """Rows of the steps first … last together."""
        return self._rows_until(last) - self._rows_until(first - 1)

    def _rows_until(self, step: int) -> int:
        epochs, steps = divmod(step, self.per_epoch)
        return epochs * self._rows + steps * self.largest
