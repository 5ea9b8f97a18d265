"""Contracts of the data: rows on the device, and the batch of rows that each step uses."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from runner.compute.batch import Batch


class Rows(Protocol):
    """One part of the data on the device; every tensor may have [lanes, …] in front."""

    @property
    def all(self) -> Batch:
        """All rows, as stored."""

    @property
    def source(self) -> Tensor:
        """Number of each row in its source, from 0: [rows] or [lanes, rows]."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def take(self, rows: Tensor | slice) -> Batch:
        """Return the given rows, copied unless they are all rows."""


class Batches(Protocol):
    """Row numbers of every step's batch. Steps and epochs count from 1."""

    per_epoch: int
    """Number of batches in one epoch."""

    def at(self, step: int) -> Tensor | slice:
        """Return the row numbers [n] or [lanes, n] of a step, or a slice if the batch is all rows."""

    def size(self, step: int) -> int:
        """Return the number of rows in a step's batch."""

    def epoch(self, step: int) -> int:
        """Return the epoch that a step belongs to."""

    def rows_between(self, first: int, last: int) -> int:
        """Return the total number of rows of the steps `first` to `last`, both included."""
