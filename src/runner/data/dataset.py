"""Build a dataset: read or generate a table, split it, scale it, and move it to the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from runner.compute.batch import Batch
from runner.compute.rng import stream
from runner.config import schema as c
from runner.data import rounding, tables
from runner.data.casting import Cast
from runner.data.encoding import Encoding, NumberEncoding
from runner.data.kinds import Column, Numbers
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
    cast = Cast(scaling, config, dtype, check)
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


def _require_positive(table: tables.Table) -> None:
    problems = [
        f"`data.log_target` needs a target above 0, got {target.values[bad[0]]:g} for {target.name!r} in "
        f"{table.place(int(bad[0]))} ({len(bad)} such rows); remove those rows or use data.log_target=false"
        for target in table.targets
        if len(bad := np.flatnonzero(target.values <= 0))
    ]
    if problems:
        raise DataError(problems)
