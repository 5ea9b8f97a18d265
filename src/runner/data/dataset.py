"""Data: from a source to rows on the device."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from runner.compute.rng import stream
from runner.config import schema as c
from runner.data import tables
from runner.data.scaling import Scaling
from runner.data.split import split
from runner.errors import DataError


@dataclass(frozen=True)
class ResidentRows:
    """A part of the data: features [rows, columns], target [rows, 1], and the number of each row in its source, from 0."""

    features: Tensor
    target: Tensor
    source: Tensor

    def __len__(self) -> int:
        return len(self.target)

    def take(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Features and target of some rows, gathered on the device: all of them as they lie, fewer in memory of their own.

        Never a view: the bits of a matrix product may depend on where in memory its rows begin.
        """
        if isinstance(rows, slice):
            first, last, _ = rows.indices(len(self))
            if last - first == len(self):
                return self.features, self.target
            return self.features[first:last].clone(), self.target[first:last].clone()
        return self.features.index_select(0, rows), self.target.index_select(0, rows)


@dataclass(frozen=True)
class Dataset:
    """Parts ("train", "valid", "test"; an empty one is left out) as the model sees them, and how to undo that."""

    parts: dict[str, ResidentRows]
    scaling: Scaling
    feature_names: tuple[str, ...]
    target_name: str
    sha256: str
    warnings: tuple[str, ...]


def build(config: c.DataConfig, seed: int, dtype: torch.dtype, device: torch.device) -> Dataset:
    """Read or make the data, split it, scale it, and put it on the device. Raises `DataError` with what is wrong."""
    seed = seed if config.seed is None else config.seed
    table: tables.Table = config.build(seed)
    features, target = torch.from_numpy(table.features), torch.from_numpy(table.target)
    if config.log_target:
        _positive(target, table.target_name)
    if not config.standardize:
        # The logarithm of a target is rounded anyway: only the features must be held as they are.
        exact = table.integer_columns - ({table.target_name} if config.log_target else set())
        tables.refuse_lossy(replace(table, integer_columns=exact), str(dtype).removeprefix("torch."))
    parts = split(config.split, len(target), stream(seed, "split"))
    train = parts["train"]
    scaling = Scaling.fit(features[train], target[train], config.standardize, config.log_target)
    features, target = scaling.features(features).to(dtype), scaling.target(target).to(dtype).unsqueeze(1)
    _fits(features, target, dtype)
    rows = {
        name: ResidentRows(features[numbers].to(device), target[numbers].to(device), numbers)
        for name, numbers in parts.items()
        if len(numbers)
    }
    return Dataset(rows, scaling, table.feature_names, table.target_name, table.sha256, table.warnings)


def _positive(target: Tensor, name: str) -> None:
    bad = (target <= 0).nonzero().flatten()
    if len(bad):
        row = int(bad[0])
        raise DataError(
            f"`data.log_target` needs a target above 0, but {name!r} is {float(target[row]):g} in row {row + 1} of the data "
            f"({len(bad)} such rows); take those rows out, or use data.log_target=false"
        )


def _fits(features: Tensor, target: Tensor, dtype: torch.dtype) -> None:
    if not (bool(features.isfinite().all()) and bool(target.isfinite().all())):
        raise DataError(
            f"`dtype` must hold every number of the data, but some are beyond {dtype}; use dtype=float64 or data.standardize=true"
        )
