"""Build a dataset: read or generate a table, split it, scale it, and move it to the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runner.compute.batch import Batch
from runner.compute.rng import stream
from runner.config import schema as c
from runner.data import rounding, tables
from runner.data.encoding import Encoding
from runner.data.kinds import Numbers
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
    """Scaled rows for training and evaluation, and what made them from the columns of the source."""

    parts: dict[str, ResidentRows]
    """Rows by part: "train", "valid", "calibrate" and "test"; empty parts are left out."""
    encoding: Encoding
    scaling: Scaling
    unit_deviation: float | None
    """Standard deviation of the target of a row with weight 1, in the units trained in; None where none is given."""
    target_names: tuple[str, ...]
    other_columns: tuple[str, ...]
    """Columns of the source that are no features, the targets among them."""
    sha256: str
    """SHA-256 of the source's files; empty for synthetic data."""
    notes: tuple[str, ...]
    """How the source was read where that is not obvious, as phrases."""
    warnings: tuple[str, ...]

    @property
    def evaluated(self) -> dict[str, ResidentRows]:
        """Parts with metrics: all but "calibrate", whose rows must not choose a model."""
        return {name: rows for name, rows in self.parts.items() if name != "calibrate"}

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the encoded columns, which the model gets."""
        return self.encoding.names

    def preprocessing(self) -> dict[str, Any]:
        """Return all that a prediction needs to know of the training rows, as JSON for preprocessing.json."""
        scaling = self.scaling
        return {
            "format": 1,
            "features": self.encoding.state(),
            "inputs": [
                {"name": name, "mean": mean, "scale": scale}
                for name, mean, scale in zip(
                    self.feature_names, scaling.feature_mean.tolist(), scaling.feature_scale.tolist(), strict=True
                )
            ],
            "targets": [
                {"name": name, "log": scaling.log_target, "mean": mean, "scale": scale}
                for name, mean, scale in zip(
                    self.target_names, scaling.target_mean.tolist(), scaling.target_scale.tolist(), strict=True
                )
            ],
        }


def build(
    config: c.DataConfig,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
    advised: rounding.Advised = lambda key, value: None,
    *,
    reference: bool = False,
) -> Dataset:
    """Return the dataset of a configuration in `dtype` on `device`.

    `seed` is the run's seed; `data.seed` takes precedence. `advised` returns the advice to use another value of a key, and
    `reference` says whether the first value of each column of categories has no column of its own.
    Raises `DataError` if the data cannot be read, split or represented in `dtype`.
    """
    seed = seed if config.seed is None else config.seed
    table: tables.Table = config.build(seed)
    target = torch.stack([torch.from_numpy(column.values) for column in table.targets], 1)
    if config.log_target:
        _require_positive(table.targets)
    parts = split(config.split, table.targets[0].values, stream(seed, "split"), table.given, table.groups)
    train = parts["train"]
    encoding = Encoding.fit(table.features, train.numpy(), config.number_transform, seed, reference)
    features = torch.from_numpy(encoding.encode(table.features))
    scaled = torch.tensor(encoding.scaled) & (config.number_transform == "standardize")
    scaling = Scaling.fit(
        features[train], target[train], scaled=scaled, scales_target=config.scales_target, log_target=config.log_target
    )
    weights = weigh(table, parts, scaling)
    numbers, scaled_target = scaling.features(features), scaling.target(target)
    if not _finite(numbers, scaled_target):
        raise DataError(
            f"{_SCALED_BY[config.standardize]} for data whose mean or standard deviation float64 cannot represent; use a larger unit"
        )
    columns = _columns(table, features, encoding, scaling, config)
    rounded = rounding.check(columns, str(dtype).removeprefix("torch."), advised)
    batch = Batch(
        numbers.to(dtype),
        scaled_target.to(dtype),
        None if weights is None else _lossless(weights.values, dtype).unsqueeze(1),
    )
    source = torch.from_numpy(table.rows)
    return Dataset(
        {name: ResidentRows(_placed(batch, rows, device), source[rows]) for name, rows in parts.items() if len(rows)},
        encoding,
        scaling,
        None if weights is None else weights.unit_deviation,
        table.target_names,
        (*table.unread, *table.target_names),
        table.sha256,
        (*table.notes, *_reference_note(encoding)),
        (*table.warnings, *rounded),
    )


def _reference_note(encoding: Encoding) -> Iterator[str]:
    if encoding.references:
        yield f"reference {', '.join(encoding.references)}"


_SCALED_BY = {
    True: "`data.standardize` must be false",
    False: "`data.numbers` and `data.target_scale` must be none",
}


def _columns(
    table: tables.Table, features: Tensor, encoding: Encoding, scaling: Scaling, config: c.DataConfig
) -> list[rounding.Column]:
    """Return all columns of numbers of a table, the targets last, with their scaling."""
    # Scaled integers, and the logarithm of a target, are rounded anyway.
    integers = {column.name for column in table.features if isinstance(column, Numbers) and column.integers}
    standardized = config.number_transform == "standardize"
    exact = frozenset() if standardized else integers
    scales = zip(scaling.feature_mean.tolist(), scaling.feature_scale.tolist(), strict=True)
    columns = [
        rounding.Column(name, values, name in exact, standardized, mean, scale)
        for name, values, numeric, (mean, scale) in zip(
            encoding.names, features.T.numpy(), encoding.scaled, scales, strict=True
        )
        if numeric
    ]
    log, scales = scaling.log_target, zip(scaling.target_mean.tolist(), scaling.target_scale.tolist(), strict=True)
    for target, (mean, scale) in zip(table.targets, scales, strict=True):
        exact_target = target.integers and not (config.scales_target or log)
        columns.append(
            rounding.Column(target.name, target.values, exact_target, config.scales_target, mean, scale, log)
        )
    return columns


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


def _require_positive(targets: Sequence[Numbers]) -> None:
    problems = [
        f"`data.log_target` needs a target above 0, got {target.values[bad[0]]:g} for {target.name!r} in row {bad[0] + 1} "
        f"({len(bad)} such rows); remove those rows or use data.log_target=false"
        for target in targets
        if len(bad := np.flatnonzero(target.values <= 0))
    ]
    if problems:
        raise DataError(problems)


def _finite(features: Tensor, target: Tensor) -> bool:
    return bool(features.isfinite().all()) and bool(target.isfinite().all())
