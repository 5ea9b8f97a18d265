"""Build a dataset: read or generate a table, split it, scale it, and move it to the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

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
from runner.data.preprocessing import Preprocessing
from runner.data.progress import Report, unreported
from runner.data.scaling import Scaling, moments
from runner.data.split import split
from runner.data.weights import counted_rows, weigh
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
    untransformed: Mapping[str, Tensor]
    """Standardized numbers [rows, numbers] of each part on the CPU where `data.numbers` makes others of them, if they are kept."""

    @property
    def width(self) -> int:
        """Number of columns of numbers where all categories are one-hot."""
        return len(self.feature_names) + sum(count - 1 for count in self.encoding.cardinalities)

    def one_hot(self) -> Dataset:
        """Return the same rows with codes as columns of numbers, one-hot, behind the others."""
        if not self.encoding.coded:
            return self
        return replace(
            self, parts={name: replace(rows, all=self._one_hot(rows.all)) for name, rows in self.parts.items()}
        )

    def _one_hot(self, batch: Batch) -> Batch:
        assert batch.categories is not None
        known = [
            column.unsqueeze(1) == torch.arange(1, count, device=column.device)
            for column, count in zip(batch.categories.unbind(1), self.encoding.cardinalities, strict=True)
        ]
        numbers = torch.cat([batch.numbers, *(columns.to(batch.numbers.dtype) for columns in known)], 1)
        return batch._replace(numbers=numbers, categories=None)

    def standardized(self) -> Dataset:
        """Return the same rows with standardized numbers, whatever `data.numbers` is. Where it transforms them they must be kept."""
        places = list(self.encoding.number_places)
        train = self.parts["train"].all.numbers
        scaling = [moments(train[:, place].cpu().double()) for place in places]
        parts = {}
        for name, rows in self.parts.items():
            numbers, kept = rows.all.numbers.clone(), self.untransformed.get(name)
            for column, (place, (mean, scale)) in enumerate(zip(places, scaling, strict=True)):
                numbers[:, place] = (
                    (numbers[:, place].cpu().double() - mean) / scale if kept is None else kept[:, column]
                )
            parts[name] = replace(rows, all=rows.all._replace(numbers=numbers))
        return replace(self, parts=parts)

    @property
    def evaluated(self) -> dict[str, ResidentRows]:
        """Parts with metrics: all but "calibrate", whose rows must not choose a model."""
        return {name: rows for name, rows in self.parts.items() if name != "calibrate"}

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the encoded columns of numbers, which the model gets."""
        return self.encoding.names

    @property
    def category_names(self) -> tuple[str, ...]:
        """Names of the columns of codes, which the model gets."""
        return tuple(column.name for column in self.encoding.coded)

    @property
    def preprocessing(self) -> Preprocessing:
        """All that a prediction needs to know of the training rows."""
        return Preprocessing(self.encoding, self.scaling, self.target_names)


def build(
    config: c.DataConfig,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
    advised: rounding.Advised = lambda key, value: None,
    *,
    categories: c.CategoryCoding = "one-hot",
    untransformed: bool = False,
    report: Report = unreported,
    read: Callable[[int, Report], tables.Table] | None = None,
) -> Dataset:
    """Return the dataset of a configuration in `dtype` on `device`.

    `seed` is the run's seed; `data.seed` takes precedence. `advised` returns the advice to use another value of a key, and
    `categories` says what is made of a column of categories. With `untransformed`, numbers that `data.numbers` transforms are also kept as they were. `report` receives lines of progress where reading takes long.
    `read` is used instead of `config.build`; the features are taken out of the table that it returns.
    Raises `DataError` if the data cannot be read, split or represented in `dtype`.
    """
    seed = seed if config.seed is None else config.seed
    table: tables.Table = (read or config.build)(seed, report)
    target = torch.stack([torch.from_numpy(column.values) for column in table.targets], 1)
    if config.log_target:
        _require_positive(table)
    parts = split(config.split, table.targets[0].values, stream(seed, "split"), table.given, table.groups)
    train = parts["train"]
    encoding = Encoding.fit(table.features, train.numpy(), config.number_transform, seed, categories)
    encoding.require_memory(len(target), dtype.itemsize)
    encoding.require_distinct_names()
    standardized, counted = config.number_transform == "standardize", counted_rows(table, train)
    blocks = map(torch.from_numpy, encoding.blocks(table.features, counted.numpy())) if standardized else ()
    scaled = [numeric and standardized for numeric in encoding.scaled]
    scaling = Scaling.fit_blocks(
        blocks,
        scaled,
        target[counted],
        scales_target=config.scales_target,
        log_target=config.log_target,
        weight=None if table.weight is None else torch.from_numpy(table.weight)[counted],
    )
    weights = weigh(table, parts, scaling)
    check = rounding.Check(str(dtype).removeprefix("torch."), advised, table.place)
    cast = _Cast(scaling, config, dtype, check)
    parts = {name: rows for name, rows in parts.items() if len(rows)}
    kept = _untransformed(table.features, encoding, parts, dtype) if untransformed else {}
    features, scaled_target = cast.features(table.features, encoding, parts), cast.targets(table.targets, target)
    weight = None if weights is None else cast.weight(weights.values)
    rounded = check.warnings()
    source, resident = torch.from_numpy(table.rows), {}
    for name, rows in parts.items():
        numbers, codes = features.pop(name)
        batch = Batch(numbers, scaled_target[rows], None if weight is None else weight[rows], codes)
        resident[name] = ResidentRows(batch.map(lambda values: values.to(device)), source[rows])
    return Dataset(
        resident,
        encoding,
        scaling,
        None if weights is None else weights.unit_deviation,
        table.target_names,
        (*table.unread, *table.target_names),
        table.sha256,
        (*table.notes, *_reference_note(encoding)),
        (*table.warnings, *rounded),
        kept,
    )


def _untransformed(
    columns: Sequence[Column], encoding: Encoding, parts: Mapping[str, Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return standardized numbers [rows, numbers] of each part, without any transform; nothing where there is none."""
    pairs = [
        (encoded, column)
        for encoded, column in zip(encoding.columns, columns, strict=True)
        if isinstance(encoded, NumberEncoding) and isinstance(column, Numbers)
    ]
    if not any(encoded.transform for encoded, _ in pairs):
        return {}
    kept = {name: torch.empty(len(rows), len(pairs), dtype=dtype) for name, rows in parts.items()}
    for place, (encoded, column) in enumerate(pairs):
        values = torch.from_numpy(encoded.filled(column))
        mean, scale = moments(values[parts["train"]])
        for name, rows in parts.items():
            kept[name][:, place] = (values[rows] - mean) / scale
    return kept


def _reference_note(encoding: Encoding) -> Iterator[str]:
    if encoding.references:
        yield f"reference {', '.join(encoding.references)}"


_SCALED_BY = {
    True: "`data.standardize` must be false",
    False: "`data.numbers` and `data.target_scale` must be none",
}


@dataclass(frozen=True)
class _Cast:
    """Scales columns in float64, checks what a dtype loses of them, and casts them."""

    scaling: Scaling
    config: c.DataConfig
    dtype: torch.dtype
    check: rounding.Check

    def features(
        self, columns: list[Column], encoding: Encoding, parts: Mapping[str, Tensor]
    ) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Return the numbers [rows, columns] of each part, and the codes of its categories [rows, columns] if there are any.

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
                cast.append((self._feature(encoded, column, place, scaled), missing))
            else:
                assert isinstance(column, Categories)
                cast.append((torch.from_numpy((encoded.codes if encoded.coded else encoded.places)(column)), None))
        del column, scaled  # the last column may hold the memory of all
        width, coded = len(encoding.scaled), {encoded.name: place for place, encoded in enumerate(encoding.coded)}
        numbers = {name: torch.zeros(len(rows), width, dtype=self.dtype) for name, rows in parts.items()}
        codes = {name: torch.zeros(len(rows), len(coded), dtype=torch.int64) for name, rows in parts.items()}
        for place, encoded in encoding.placed():
            values, missing = cast.popleft()
            for name, rows in parts.items():
                own = values[rows]
                if isinstance(encoded, NumberEncoding):
                    numbers[name][:, place] = own
                elif encoded.coded:
                    codes[name][:, coded[encoded.name]] = own
                else:
                    known = (own >= 0).nonzero().flatten()
                    numbers[name][known, place + own[known]] = 1
                if missing is not None:
                    numbers[name][:, place + 1] = missing[rows]
        return {name: (numbers[name], codes[name] if coded else None) for name in parts}

    def targets(self, columns: Sequence[Numbers], values: Tensor) -> Tensor:
        """Return the targets [rows, targets], whose values in the file are float64 of that shape."""
        scaled = self.scaling.target(values)
        self._require_finite(scaled)
        log, standardized = self.scaling.log_target, self.config.scales_target
        scales = zip(self.scaling.target_mean.tolist(), self.scaling.target_scale.tolist(), strict=True)
        for column, (mean, scale) in zip(columns, scales, strict=True):
            exact = column.integers and not (standardized or log)
            self.check.add(rounding.Column(column.name, column.values, exact, standardized, mean, scale, log))
        return scaled.to(self.dtype)

    def weight(self, weights: Tensor) -> Tensor:
        """Return the weights [rows, 1]."""
        self.check.add_weights(weights.numpy())
        return weights.to(self.dtype).unsqueeze(1)

    def _feature(self, encoded: NumberEncoding, column: Numbers, place: int, scaled: Tensor) -> Tensor:
        """Return a column [rows], transformed and scaled in memory [rows] of float64; its missing values are filled in."""
        values = encoded.transformed(column)
        mean, scale = float(self.scaling.feature_mean[place]), float(self.scaling.feature_scale[place])
        self._require_finite(self.scaling.feature(place, torch.from_numpy(values), scaled))
        if encoded.transform is None:  # a transform leaves no large offset, and bounds the values
            standardized = self.config.number_transform == "standardize"
            exact = column.integers and not standardized  # scaled integers are rounded anyway
            self.check.add(rounding.Column(column.name, values, exact, standardized, mean, scale))
        memory = allocate(len(values) * self.dtype.itemsize)
        return torch.frombuffer(memory, dtype=self.dtype, count=len(values)).copy_(scaled)

    def _require_finite(self, scaled: Tensor) -> None:
        if not bool(torch.stack(scaled.aminmax()).isfinite().all()):
            raise DataError(
                f"{_SCALED_BY[self.config.standardize]} for data whose mean or standard deviation float64 cannot represent; use a larger unit"
            )


def _require_positive(table: tables.Table) -> None:
    problems = [
        f"`data.log_target` needs a target above 0, got {target.values[bad[0]]:g} for {target.name!r} in "
        f"{table.place(int(bad[0]))} ({len(bad)} such rows); remove those rows or use data.log_target=false"
        for target in table.targets
        if len(bad := np.flatnonzero(target.values <= 0))
    ]
    if problems:
        raise DataError(problems)
