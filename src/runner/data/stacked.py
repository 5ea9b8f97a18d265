"""Data of vmapped runs: rows and batches with a leading lane axis, or without it if all lanes share the same values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runner.compute.batch import Batch
from runner.compute.transfer import upload
from runner.data.batches import EpochBatches
from runner.data.dataset import Dataset, ResidentRows
from runner.data.scaling import Scaling


@dataclass(frozen=True)
class StackedRows:
    """One part of the data of all lanes. Each tensor has a leading lane axis only if the lanes differ in it."""

    all: Batch
    """All rows."""
    source: Tensor
    """Number of each row in its source, from 0: [rows] or [lanes, rows]."""

    def __len__(self) -> int:
        return self.source.shape[-1]

    def take(self, rows: Tensor | slice) -> Batch:
        """Return the given rows: a slice, or row numbers [n] or [lanes, n]."""
        return self.all.map(lambda values: _taken(values, rows))


def _taken(values: Tensor, rows: Tensor | slice) -> Tensor:
    if isinstance(rows, slice):
        return values[..., rows, :].contiguous()
    if values.dim() == 2:
        return values[rows]
    if rows.dim() == 1:
        return values.index_select(1, rows)
    lanes, count, columns = values.shape
    first = torch.arange(lanes, device=rows.device).unsqueeze(1) * count
    return values.reshape(-1, columns).index_select(0, (rows + first).reshape(-1)).view(lanes, -1, columns)


def stack_datasets(datasets: Sequence[Dataset]) -> tuple[dict[str, StackedRows], Scaling]:
    """Return the stacked parts by name, and a scaling whose `undo` applies each lane's own target scaling.

    The datasets must have the same parts of the same sizes, all or none of them with weights, and with codes of categories. If target scalings differ, their mean and scale are
    [lanes, 1, targets].
    """
    parts = {}
    for name in datasets[0].parts:
        rows: list[ResidentRows] = [dataset.parts[name] for dataset in datasets]
        columns = zip(*(part.all for part in rows), strict=True)
        batch = Batch(*(None if values[0] is None else _stacked(values) for values in columns))  # type: ignore[arg-type]
        parts[name] = StackedRows(batch, _stacked([part.source for part in rows]))
    scalings = [dataset.scaling for dataset in datasets]
    mean, scale = _stacked([s.target_mean for s in scalings]), _stacked([s.target_scale for s in scalings])
    if mean.dim() != scale.dim():
        mean, scale = (torch.stack([getattr(s, what) for s in scalings]) for what in ("target_mean", "target_scale"))
    lanes = (mean.shape[0], 1, -1) if mean.dim() > 1 else (-1,)
    first = scalings[0]
    return parts, Scaling(
        first.feature_mean, first.feature_scale, mean.reshape(lanes), scale.reshape(lanes), first.log_target
    )


def _stacked(values: Sequence[Tensor]) -> Tensor:
    """Return the first tensor if all are equal, else their stack [lanes, …]."""
    first = values[0]
    if all(value is first for value in values) or all(torch.equal(first, value) for value in values[1:]):
        return first
    return torch.stack(list(values))


class StackedBatches:
    """Row numbers of every step's batch: [n] if all lanes shuffle with the same seed, else [lanes, n]."""

    def __init__(self, rows: int, batch_size: int | None, seeds: Sequence[int], device: torch.device) -> None:
        distinct = list(dict.fromkeys(seeds))
        self._drawn = [EpochBatches(rows, batch_size, seed, device) for seed in distinct]
        self._first = self._drawn[0]  # all lanes have the same sizes and epochs
        self.per_epoch = self._first.per_epoch
        self._lanes = torch.tensor([distinct.index(seed) for seed in seeds])
        self._device = device
        self._epoch = 0
        self._orders: tuple[Tensor, ...] = ()

    def at(self, step: int) -> Tensor | slice:
        """Return the row numbers [n] or [lanes, n] of a step, from 1, or a slice if the batch is all rows."""
        if len(self._drawn) == 1 or self._first.per_epoch == 1:
            return self._first.at(step)
        epoch = self._first.epoch(step)
        if epoch != self._epoch:
            orders = torch.stack([batches.order(epoch) for batches in self._drawn])[self._lanes]
            self._orders = torch.split(upload(orders, self._device), self._first.largest, dim=1)
            self._epoch = epoch
        return self._orders[(step - 1) % self._first.per_epoch]

    def size(self, step: int) -> int:
        """Return the number of rows in the batch of a step, from 1."""
        return self._first.size(step)

    def epoch(self, step: int) -> int:
        """Return the epoch, from 1, that a step, from 1, belongs to."""
        return self._first.epoch(step)

    def rows_between(self, first: int, last: int) -> int:
        """Return the total number of rows of the steps `first` to `last`, both included."""
        return self._first.rows_between(first, last)
