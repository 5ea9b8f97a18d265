"""Build a dataset: read or generate a table, split it, scale it, and move it to the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from runner.compute.batch import Batch
from runner.compute.rng import stream
from runner.config import schema as c
from runner.data import rounding, tables
from runner.data.scaling import Scaling
from runner.data.split import split
from runner.data.weights import weigh
from runner.errors import DataError


@dataclass(frozen=True)
class ResidentRows:
    """One part of the data, held in device memory."""

    all: Batch
    """All rows, without a lane axis."""
    source: Tensor
    """Number of each row in its source, from 0: [rows]."""

    def __len__(self) -> int:
        return len(self.source)

    def take(self, rows: Tensor | slice) -> Batch:
        """Return the given rows, gathered on the device.

        All rows are returned as stored. Fewer rows are always a copy.
        """
        # Never a view: the bits of a matrix product may depend on the memory address at which its rows begin.
        if isinstance(rows, slice):
            first, last, _ = rows.indices(len(self))
            if last - first == len(self):
                return self.all
            return self.all.map(lambda values: values[first:last].clone())
        return self.all.map(lambda values: values.index_select(0, rows))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Scaled rows for training and evaluation, and the scaling to undo."""

    parts: dict[str, ResidentRows]
    """Rows by part: "train", "valid" and "test"; empty parts are left out."""
    scaling: Scaling
    unit_deviation: float | None
    """Standard deviation of the target of a row with weight 1, in the units trained in; None where none is given."""
    feature_names: tuple[str, ...]
    target_names: tuple[str, ...]
    other_columns: tuple[str, ...]
    """Columns of the source that are no features, the target among them."""
    sha256: str
    """SHA-256 of the source file; empty for synthetic data."""
    warnings: tuple[str, ...]


def build(
    config: c.DataConfig,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
    accepts: rounding.Accepts = lambda key, value: True,
) -> Dataset:
    """Return the dataset of a configuration in `dtype` on `device`.

    `seed` is the run's seed; `data.seed` takes precedence. `accepts` says which other values of a key may be advised.
    Raises `DataError` if the data cannot be read, split or represented in `dtype`.
    """
    seed = seed if config.seed is None else config.seed
    table: tables.Table = config.build(seed)
    features, target = torch.from_numpy(table.features), torch.from_numpy(table.target)
    if config.log_target:
        _require_positive(target, table.target_name)
    parts = split(config.split, len(target), stream(seed, "split"))
    train = parts["train"]
    scaling = Scaling.fit(features[train], target[train], config.standardize, config.log_target)
    weights = weigh(table, parts, scaling)
    features, target = scaling.features(features), scaling.target(target)
    if not _finite(features, target):
        raise DataError(
            "`data.standardize` must be false for data whose mean or standard deviation float64 cannot represent; use a larger unit"
        )
    rounded = rounding.check(_columns(table, scaling, config.standardize), str(dtype).removeprefix("torch."), accepts)
    features, target = features.to(dtype), target.to(dtype).unsqueeze(1)
    batch = Batch(features, target, None if weights is None else _lossless(weights.values, dtype).unsqueeze(1))
    rows = {
        name: ResidentRows(_placed(batch, numbers, device), numbers) for name, numbers in parts.items() if len(numbers)
    }
    return Dataset(
        rows,
        scaling,
        None if weights is None else weights.unit_deviation,
        table.feature_names,
        (table.target_name,),
        (*table.unread, table.target_name),
        table.sha256,
        (*table.warnings, *rounded),
    )


def _placed(batch: Batch, rows: Tensor, device: torch.device) -> Batch:
    return batch.map(lambda values: values[rows].to(device))


def _lossless(weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Return weights in a dtype. Raises `DataError` where it would turn a weight into 0."""
    cast = weights.to(dtype)
    lost = ((cast == 0) & (weights > 0)).nonzero().flatten()
    if len(lost):
        row = int(lost[0])
        raise DataError(
            f"`dtype` must hold the weight of every row, but {str(dtype).removeprefix('torch.')} turns {float(weights[row]):g} "
            f"of row {row + 1}, relative to the mean weight, into 0; use a larger dtype, or set that weight to 0"
        )
    return cast


def _columns(table: tables.Table, scaling: Scaling, standardized: bool) -> list[rounding.Column]:
    """Return all columns of a table, the target last, with their scaling."""
    # Scaled integers, and the logarithm of the target, are rounded anyway.
    exact = frozenset() if standardized else table.integer_columns
    scales = zip(scaling.feature_mean.tolist(), scaling.feature_scale.tolist(), strict=True)
    columns = [
        rounding.Column(name, values, name in exact, standardized, mean, scale)
        for name, values, (mean, scale) in zip(table.feature_names, table.features.T, scales, strict=True)
    ]
    name, log = table.target_name, scaling.log_target
    mean, scale = float(scaling.target_mean), float(scaling.target_scale)
    return [*columns, rounding.Column(name, table.target, name in exact and not log, standardized, mean, scale, log)]


def _require_positive(target: Tensor, name: str) -> None:
    bad = (target <= 0).nonzero().flatten()
    if len(bad):
        row = int(bad[0])
        raise DataError(
            f"`data.log_target` needs a target above 0, got {float(target[row]):g} for {name!r} in row {row + 1} "
            f"({len(bad)} such rows); remove those rows or use data.log_target=false"
        )


def _finite(features: Tensor, target: Tensor) -> bool:
    return bool(features.isfinite().all()) and bool(target.isfinite().all())
