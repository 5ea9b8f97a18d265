"""What the rest asks of data: rows on the device, and which of them a step takes."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Rows(Protocol):
    """A part of the data on the device: features [rows, columns] and target [rows, 1], or with [lanes, …] in front."""

    @property
    def features(self) -> Tensor: ...
    @property
    def target(self) -> Tensor: ...
    @property
    def source(self) -> Tensor:
        """Number of each row in its source, from 0: [rows] or [lanes, rows]."""

    def take(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Features and target of some rows, in memory of their own unless they are all rows."""


class Batches(Protocol):
    """Row numbers of every step's batch. Steps and epochs count from 1."""

    per_epoch: int
    """Batches of one epoch."""

    def at(self, step: int) -> Tensor | slice:
        """Row numbers [n] or [lanes, n] of a step; a slice where they are all rows."""

    def size(self, step: int) -> int:
        """Number of rows of a step."""

    def epoch(self, step: int) -> int:
        """Epoch that a step belongs to."""

    def rows_between(self, first: int, last: int) -> int:
        """Number of rows of the steps first … last together."""
