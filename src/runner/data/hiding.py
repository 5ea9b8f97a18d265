"""Training rows in which some categories are hidden, so that a model learns what to make of one that it does not know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from runner.compute.batch import Batch
from runner.compute.rng import stream
from runner.compute.transfer import upload
from runner.data.dataset import ResidentRows
from runner.data.stacked import StackedRows

SHARE = 0.01
"""Share of the categories that are hidden."""


class HidingRows:
    """Rows of which 1 in 100 categories has code 0 in an epoch, as if it were missing or new. Implements `Rows`.

    Which ones depends on seed, epoch, column and row alone. Each seed is that of a lane; equal ones hide the same.
    """

    def __init__(self, rows: ResidentRows | StackedRows, seeds: Sequence[int]) -> None:
        known = rows.all.categories
        assert known is not None
        self._known, self._epoch = known, 0
        self._seeds = list(dict.fromkeys(seeds))
        self._lanes = torch.tensor([self._seeds.index(seed) for seed in seeds])
        # Always the same memory, which a CUDA graph reads.
        self._codes = known.clone() if len(self._seeds) == 1 else known.expand(len(seeds), *known.shape[-2:]).clone()
        self._rows = replace(rows, all=rows.all._replace(categories=self._codes))

    @property
    def all(self) -> Batch:
        """All rows, with the categories of the present epoch."""
        return self._rows.all

    @property
    def source(self) -> Tensor:
        """Number of each row in its source, from 0: [rows] or [lanes, rows]."""
        return self._rows.source

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, rows: Tensor | slice) -> Batch:
        """Return the given rows. The categories of a slice are those of the present epoch, also when that changes."""
        taken = self._rows.take(rows)
        # All rows are taken once, in portions.
        return taken._replace(categories=self._codes[..., rows, :]) if isinstance(rows, slice) else taken

    def begin(self, epoch: int) -> None:
        """Hide the categories of an epoch, from 1."""
        if epoch == self._epoch:
            return
        hidden = torch.stack([self._hidden(seed, epoch) for seed in self._seeds])
        hidden = hidden[0] if len(self._seeds) == 1 else hidden[self._lanes]
        self._codes.copy_(self._known)
        self._codes.masked_fill_(upload(hidden, self._codes.device), 0)
        self._epoch = epoch

    def _hidden(self, seed: int, epoch: int) -> Tensor:
        """Return the mask [rows, columns] of the hidden categories, on the CPU."""
        rows, columns = self._known.shape[-2:]
        drawn = (
            torch.rand(rows, generator=stream(seed, f"hidden/{column}", epoch), dtype=torch.float64)
            for column in range(columns)
        )
        return torch.stack([values < SHARE for values in drawn], 1)
