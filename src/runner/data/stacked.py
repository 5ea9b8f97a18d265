"""The data of runs side by side: rows and batches with a lane in front, or without where all lanes have the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runner.data.batches import EpochBatches
from runner.data.dataset import Dataset, ResidentRows
from runner.data.scaling import Scaling


@dataclass(frozen=True)
class StackedRows:
    """A part of the data: features [rows, columns], target [rows, 1], source [rows], each of them with [lanes, …] in front or not."""

    features: Tensor
    target: Tensor
    source: Tensor

    def take(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Features and target of some rows: a slice, or numbers [n] or [lanes, n]."""
        return _taken(self.features, rows), _taken(self.target, rows)


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


def stacked(datasets: Sequence[Dataset]) -> tuple[dict[str, StackedRows], Scaling]:
    """The parts of all datasets, by name, and a scaling that undoes that of every lane's own target.

    The datasets must have the same parts, of the same size.
    """
    parts = {}
    for name in datasets[0].parts:
        rows: list[ResidentRows] = [dataset.parts[name] for dataset in datasets]
        features, target, source = ([getattr(r, what) for r in rows] for what in ("features", "target", "source"))
        parts[name] = StackedRows(_stacked(features), _stacked(target), _stacked(source))
    scalings = [dataset.scaling for dataset in datasets]
    mean, scale = _stacked([s.target_mean for s in scalings]), _stacked([s.target_scale for s in scalings])
    if mean.dim() != scale.dim():
        mean, scale = (torch.stack([getattr(s, what) for s in scalings]) for what in ("target_mean", "target_scale"))
    lanes = (mean.shape[0], 1, 1) if mean.dim() else ()
    first = scalings[0]
    return parts, Scaling(
        first.feature_mean, first.feature_scale, mean.reshape(lanes), scale.reshape(lanes), first.log_target
    )


def _stacked(values: Sequence[Tensor]) -> Tensor:
    """One tensor where all are equal, else [lanes, …]."""
    first = values[0]
    if all(value is first for value in values) or all(torch.equal(first, value) for value in values[1:]):
        return first
    return torch.stack(list(values))


class StackedBatches:
    """Row numbers of every step's batch: [n] where all lanes shuffle by the same seed, else [lanes, n]."""

    def __init__(self, rows: int, batch_size: int | None, seeds: Sequence[int], device: torch.device) -> None:
        distinct = list(dict.fromkeys(seeds))
        self._drawn = [EpochBatches(rows, batch_size, seed, device) for seed in distinct]
        self.one = self._drawn[0]
        """Those of one lane: all of them have the same steps and epochs."""
        self.per_epoch = self.one.per_epoch
        self._lanes = torch.tensor([distinct.index(seed) for seed in seeds])
        self._device = device
        self._epoch = 0
        self._orders: tuple[Tensor, ...] = ()

    def at(self, step: int) -> Tensor | slice:
        """Row numbers of a step, from 1."""
        if len(self._drawn) == 1 or self.one.per_epoch == 1:
            return self.one.at(step)
        epoch = self.one.epoch(step)
        if epoch != self._epoch:
            orders = torch.stack([batches.order(epoch) for batches in self._drawn])[self._lanes]
            self._orders = torch.split(orders.to(self._device), self.one.largest, dim=1)
            self._epoch = epoch
        return self._orders[(step - 1) % self.one.per_epoch]

    def size(self, step: int) -> int:
        """How many rows a step has."""
        return self.one.size(step)

    def epoch(self, step: int) -> int:
        """The epoch, from 1, that a step, from 1, belongs to."""
        return self.one.epoch(step)

    def rows_between(self, first: int, last: int) -> int:
        """Rows of the steps first … last together."""
        return self.one.rows_between(first, last)
