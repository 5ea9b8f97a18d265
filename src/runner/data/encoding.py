"""Columns of a table as numbers for a model: fitted on the training rows, applied to any rows, saved with the run.

A number stays one column. A category becomes one column for each value of the training rows, 1 where a row has it (one-hot);
a value that is missing or new is 0 in all of them. Where `data.missing` is mean, a missing number becomes the mean of the
training rows, and another column says where one was missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runner.compute import sizes
from runner.data.diagnostics import shown
from runner.data.kinds import Categories, Column, Numbers
from runner.errors import DataError

BLOCK_BYTES = 2**27
"""Bytes of the columns of numbers that are looked at together."""


@dataclass(frozen=True)
class NumberEncoding:
    """A column of numbers, and of the places where they are missing."""

    name: str
    kind: str
    """number or date."""
    mean: float
    """Mean of the training rows, for missing values."""
    indicated: bool
    """Whether a column says where a value is missing: if one is missing in the training rows."""

    @property
    def names(self) -> tuple[str, ...]:
        """The column, and where it is missing."""
        return (self.name, f"{self.name} missing") if self.indicated else (self.name,)

    @property
    def scaled(self) -> tuple[bool, ...]:
        """Whether each column may be standardized: only the numbers themselves."""
        return (True, False)[: len(self.names)]

    def filled(self, column: Numbers) -> np.ndarray:
        """Return the values [rows], and the mean where one is missing."""
        missing = column.missing
        return np.where(missing, self.mean, column.values) if missing.any() else column.values

    def state(self) -> dict[str, Any]:
        """Return the encoding as JSON."""
        return {"name": self.name, "kind": self.kind, "mean": self.mean, "indicated": self.indicated}


@dataclass(frozen=True)
class CategoryEncoding:
    """A column of categories, one-hot."""

    name: str
    values: tuple[str, ...]
    """Values of the training rows, sorted by their text."""

    @property
    def names(self) -> tuple[str, ...]:
        """One column for each value."""
        return tuple(f"{self.name}={value}" for value in self.values)

    @property
    def scaled(self) -> tuple[bool, ...]:
        """Whether each column may be standardized: none."""
        return (False,) * len(self.values)

    def places(self, column: Categories) -> np.ndarray:
        """Return the column in which each row has its 1, int32 [rows]; -1 for a value that is missing or new."""
        place = {value: i for i, value in enumerate(self.values)}
        places: np.ndarray = np.array([*(place.get(value, -1) for value in column.values), -1], np.int32)[column.codes]
        return places

    def state(self) -> dict[str, Any]:
        """Return the encoding as JSON."""
        return {"name": self.name, "kind": "category", "values": list(self.values)}


@dataclass(frozen=True)
class Encoding:
    """The encoding of all features."""

    columns: tuple[NumberEncoding | CategoryEncoding, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the encoded columns."""
        return tuple(name for column in self.columns for name in column.names)

    @property
    def scaled(self) -> tuple[bool, ...]:
        """Whether each encoded column may be standardized."""
        return tuple(scaled for column in self.columns for scaled in column.scaled)

    @staticmethod
    def fit(columns: Sequence[Column], train: np.ndarray) -> Encoding:
        """Return the encoding fitted to the training rows, whose numbers are `train`.

        Raises `DataError` for a column without a value in the training rows.
        """
        return Encoding(tuple(_fitted(column.take(train)) for column in columns))

    def blocks(self, columns: Sequence[Column], rows: np.ndarray) -> Iterator[np.ndarray]:
        """Yield some rows of all columns of numbers, without missing ones: float64 [rows, some columns]."""
        # A smaller table is one block: how torch adds a column depends on the number of columns, and older runs had all.
        width = max(BLOCK_BYTES // (8 * len(rows)), 1)
        pairs = [
            (encoding, column)
            for encoding, column in zip(self.columns, columns, strict=True)
            if isinstance(encoding, NumberEncoding) and isinstance(column, Numbers)
        ]
        for first in range(0, len(pairs), width):
            some = pairs[first : first + width]
            block = np.empty((len(rows), len(some)))
            for place, (encoding, column) in enumerate(some):
                block[:, place] = encoding.filled(column)[rows]
            yield block
            del block  # before the next one is made

    def placed(self) -> Iterator[tuple[int, NumberEncoding | CategoryEncoding]]:
        """Yield the encoding of each column, and the place of its first one among all encoded columns."""
        place = 0
        for encoding in self.columns:
            yield place, encoding
            place += len(encoding.scaled)

    def require_memory(self, rows: int, number_bytes: int) -> None:
        """Raise `DataError` if so many encoded rows do not fit in memory."""
        width = len(self.scaled)
        problem = sizes.unfit(
            rows * width * number_bytes,
            "`data.categorical`",
            f"got {rows:,} rows of {width:,} columns, one for each category",
            "add columns of many values to `data.drop`",
        )
        if problem is not None:
            raise DataError(problem)

    def state(self) -> list[Mapping[str, Any]]:
        """Return the encoding as JSON, to be saved with the run."""
        return [column.state() for column in self.columns]


def _fitted(column: Column) -> NumberEncoding | CategoryEncoding:
    """Return the encoding of a column of training rows."""
    if isinstance(column, Categories):
        present = np.unique(column.codes[column.codes >= 0])
        values = tuple(column.values[code] for code in present.tolist())
        if not values:
            raise DataError(_empty(column.name))
        return CategoryEncoding(column.name, values)
    missing = column.missing
    if missing.all():
        raise DataError(_empty(column.name))
    return NumberEncoding(column.name, column.kind, _mean(column.values[~missing]), bool(missing.any()))


def _mean(values: np.ndarray) -> float:
    with np.errstate(over="ignore"):
        mean = float(values.mean())
    return mean if np.isfinite(mean) else float((values / len(values)).sum())  # their sum is beyond float64


def _empty(name: str) -> str:
    return f"`data.features` must have values in the training rows, but {shown(name)} has none there; add it to `data.drop`"
