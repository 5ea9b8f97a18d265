"""Build a dataset: read or generate a table, split it, scale it, and move it to the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runner.compute.batch import Batch
from runner.compute.rng import stream
from runner.config import schema as c
from runner.data import rounding, tables
from runner.data.encoding import Encoding, NumberEncoding
from runner.data.kinds import Categories, Column, Numbers
from runner.data.memory import allocate
from runner.data.progress import Report, unreported
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


@dataclass(frozen=True)
class Dataset:
    """Scaled rows for training and evaluation, and what made them from the columns of the source."""

    parts: dict[str, ResidentRows]
    """Rows by part: "train", "valid" and "test"; empty parts are left out."""
    encoding: Encoding
    scaling: Scaling
    unit_deviation: float | None
    """Standard deviation of the target of a row with weight 1, in the units trained in; None where none is given."""
    target_name: str
    other_columns: tuple[str, ...]
    """Columns of the source that are no features, the target among them."""
    sha256: str
    """SHA-256 of the source's files; empty for synthetic data."""
    notes: tuple[str, ...]
    """How the source was read where that is not obvious, as phrases."""
    warnings: tuple[str, ...]

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
            "target": {
                "name": self.target_name,
                "log": scaling.log_target,
                "mean": float(scaling.target_mean),
                "scale": float(scaling.target_scale),
            },
        }


def build(
    config: c.DataConfig,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    accepts: rounding.Accepts = lambda key, value: True,
    report: Report = unreported,
) -> Dataset:
    """Return the dataset of a configuration in `dtype` on `device`.

    `seed` is the run's seed; `data.seed` takes precedence. `accepts` says which other values of a key may be advised.
    `report` receives lines of progress where reading takes long.
    Raises `DataError` if the data cannot be read, split or represented in `dtype`.
    """
    seed = seed if config.seed is None else config.seed
    table: tables.Table = config.build(seed, report)
    target = torch.from_numpy(table.target.values)
    if config.log_target:
        _require_positive(table)
    parts = split(config.split, len(target), stream(seed, "split"))
    train = parts["train"]
    encoding = Encoding.fit(table.features, train.numpy())
    encoding.require_memory(len(target), dtype.itemsize)
    blocks = map(torch.from_numpy, encoding.blocks(table.features, train.numpy()))
    scaling = Scaling.fit_blocks(blocks, encoding.scaled, target[train], config.standardize, config.log_target)
    weights = weigh(table, parts, scaling)
    check = rounding.Check(str(dtype).removeprefix("torch."), accepts, table.row_number)
    cast = _Cast(scaling, config.standardize, dtype, check)
    parts = {name: rows for name, rows in parts.items() if len(rows)}
    numbers, scaled_target = cast.features(table.features, encoding, parts), cast.target(table.target)
    weight = None if weights is None else cast.weight(weights.values)
    rounded = check.warnings()
    source, resident = torch.from_numpy(table.rows), {}
    for name, rows in parts.items():
        batch = Batch(numbers.pop(name), scaled_target[rows], None if weight is None else weight[rows])
        resident[name] = ResidentRows(batch.map(lambda values: values.to(device)), source[rows])
    return Dataset(
        resident,
        encoding,
        scaling,
        None if weights is None else weights.unit_deviation,
        table.target.name,
        (*table.unread, table.target.name),
        table.sha256,
        table.notes,
        (*table.warnings, *rounded),
    )


@dataclass(frozen=True)
class _Cast:
    """Scales columns in float64, checks what a dtype loses of them, and casts them."""

    scaling: Scaling
    standardized: bool
    dtype: torch.dtype
    check: rounding.Check

    def features(self, columns: list[Column], encoding: Encoding, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the encoded features [rows, columns] of each part.

        The columns are taken out of the list one by one and cast, and put together only then: what is in memory is the
        table and one column of the dtype, and later twice the features in the dtype.
        """
        columns.reverse()
        scaled = torch.empty(sum(map(len, parts.values())), dtype=torch.float64)
        cast: deque[tuple[Tensor, Tensor | None]] = deque()
        for place, encoded in encoding.placed():
            column = columns.pop()
            if isinstance(encoded, NumberEncoding):
                assert isinstance(column, Numbers)
                missing = torch.from_numpy(column.missing) if encoded.indicated else None
                cast.append((self._feature(encoded.filled(column), column, place, scaled), missing))
            else:
                assert isinstance(column, Categories)
                cast.append((torch.from_numpy(encoded.places(column)), None))
        del column, scaled  # the last column may hold the memory of all
        width = len(encoding.scaled)
        numbers = {name: torch.zeros(len(rows), width, dtype=self.dtype) for name, rows in parts.items()}
        for place, encoded in encoding.placed():
            values, missing = cast.popleft()
            for name, rows in parts.items():
                own = values[rows]
                if isinstance(encoded, NumberEncoding):
                    numbers[name][:, place] = own
                else:
                    known = (own >= 0).nonzero().flatten()
                    numbers[name][known, place + own[known]] = 1
                if missing is not None:
                    numbers[name][:, place + 1] = missing[rows]
        return numbers

    def target(self, column: Numbers) -> Tensor:
        """Return the target [rows, 1]."""
        mean, scale, log = float(self.scaling.target_mean), float(self.scaling.target_scale), self.scaling.log_target
        exact = column.integers and not (self.standardized or log)
        scaled = self.scaling.target(torch.from_numpy(column.values))
        _require_finite(scaled)
        self.check.add(rounding.Column(column.name, column.values, exact, self.standardized, mean, scale, log))
        return scaled.to(self.dtype).unsqueeze(1)

    def weight(self, weights: Tensor) -> Tensor:
        """Return the weights [rows, 1]."""
        self.check.add_weights(weights.numpy())
        return weights.to(self.dtype).unsqueeze(1)

    def _feature(self, values: np.ndarray, column: Numbers, place: int, scaled: Tensor) -> Tensor:
        """Return a column [rows], scaled in memory [rows] of float64; its missing values are filled in."""
        mean, scale = float(self.scaling.feature_mean[place]), float(self.scaling.feature_scale[place])
        exact = column.integers and not self.standardized  # scaled integers are rounded anyway
        _require_finite(self.scaling.feature(place, torch.from_numpy(values), scaled))
        self.check.add(rounding.Column(column.name, values, exact, self.standardized, mean, scale))
        memory = allocate(len(values) * self.dtype.itemsize)
        return torch.frombuffer(memory, dtype=self.dtype, count=len(values)).copy_(scaled)


def _require_finite(scaled: Tensor) -> None:
    if not bool(torch.stack(scaled.aminmax()).isfinite().all()):
        raise DataError(
            "`data.standardize` must be false for data whose mean or standard deviation float64 cannot represent; use a larger unit"
        )


def _require_positive(table: tables.Table) -> None:
    target = table.target
    bad = np.flatnonzero(target.values <= 0)
    if len(bad):
        row = int(bad[0])
        raise DataError(
            f"`data.log_target` needs a target above 0, got {float(target.values[row]):g} for {target.name!r} in row {table.row_number(row)} "
            f"({len(bad)} such rows); remove those rows or use data.log_target=false"
        )
