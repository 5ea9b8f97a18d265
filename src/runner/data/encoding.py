"""Columns of a table as numbers for a model: fitted on the training rows, applied to any rows, saved with the run.

A number stays one column. A category becomes one column for each value of the training rows, 1 where a row has it (one-hot);
a value that is missing or new is 0 in all of them. A solver that has a constant gets one column less, for the columns would
add up to the constant: the first value is the reference that the coefficients of the others are compared with. A model
with embeddings gets codes instead: 1, 2, … for the values, and 0 for one that is missing or new. Where `data.missing` is mean, a missing number becomes the mean of the
training rows, and another column says where one was missing. `data.numbers` may transform the numbers after that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from runner.compute import sizes
from runner.compute.rng import stream
from runner.config import schema as c
from runner.data.diagnostics import listed, shown
from runner.data.kinds import TRUTH_VALUES, Categories, Column, Numbers
from runner.data.transforms import Quantile, Robust, Transform
from runner.errors import DataError

BLOCK_BYTES = 2**27
"""Bytes of the columns of numbers that are looked at together."""

CODE_BYTES = 8
"""Memory of the code of a category, an int64."""


@dataclass(frozen=True)
class NumberEncoding:
    """A column of numbers, and of the places where they are missing."""

    name: str
    kind: str
    """number, date, or a part of a date, as `kinds.Numbers` has it."""
    mean: float
    """Mean of the training rows, for missing values."""
    indicated: bool
    """Whether a column says where a value is missing: if one is missing in the training rows. The parts of a date share one."""
    transform: Transform | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The column, and where it is missing."""
        name = self.name if self.transform is None else f"{self.transform.kind}({self.name})"
        return (name, f"{self.column} missing") if self.indicated else (name,)

    @property
    def column(self) -> str:
        """Name of the column in the table: a part of a date has the name of the part behind it."""
        return self.name if self.kind in ("number", "date") else self.name.removesuffix(f".{self.kind}")

    @property
    def source_kind(self) -> str:
        """Kind of the cells of that column: number or date."""
        return self.kind if self.kind == "number" else "date"

    @property
    def scaled(self) -> tuple[bool, ...]:
        """Whether each column may be standardized: only the numbers themselves."""
        return (self.transform is None, False)[: len(self.names)]

    def filled(self, column: Numbers) -> np.ndarray:
        """Return the values [rows], and the mean where one is missing."""
        missing = column.missing
        return np.where(missing, self.mean, column.values) if missing.any() else column.values

    def transformed(self, column: Numbers) -> np.ndarray:
        """Return the values [rows] without missing ones, transformed, before they are scaled."""
        values = self.filled(column)
        return values if self.transform is None else self.transform.apply(values)

    def state(self) -> dict[str, Any]:
        """Return the encoding as JSON."""
        transform = None if self.transform is None else self.transform.state()
        return {
            "name": self.name,
            "kind": self.kind,
            "mean": self.mean,
            "indicated": self.indicated,
            "transform": transform,
        }


@dataclass(frozen=True)
class CategoryEncoding:
    """A column of categories: columns of numbers, one-hot, or codes."""

    name: str
    values: tuple[str, ...]
    """Values of the training rows, sorted by their text, without the reference."""
    reference: str | None = None
    """Value that is 0 in all columns, as a missing or new one is; None if every value has its column."""
    coded: bool = False
    """Whether the column is one of codes, which are no columns of numbers."""
    kind: ClassVar[str] = "category"
    source_kind: ClassVar[str] = "category"

    @property
    def column(self) -> str:
        """Name of the column in the table."""
        return self.name

    @property
    def names(self) -> tuple[str, ...]:
        """One column of numbers for each value, or none."""
        return () if self.coded else tuple(f"{self.name}={value}" for value in self.values)

    @property
    def scaled(self) -> tuple[bool, ...]:
        """Whether each column of numbers may be standardized: none."""
        return (False,) * len(self.names)

    @property
    def cardinality(self) -> int:
        """Number of codes: one for each value, and 0."""
        return len(self.values) + 1

    def codes(self, column: Categories) -> np.ndarray:
        """Return the code of each row, int32 [rows]: 1, 2, … for the values, 0 for one that is missing or new."""
        return self.places(column) + 1

    def places(self, column: Categories) -> np.ndarray:
        """Return the column in which each row has its 1, int32 [rows]; -1 for a value that is missing or new."""
        known = self.spellings
        places: np.ndarray = np.array([*(known.get(value, -1) for value in column.values), -1], np.int32)[column.codes]
        return places

    @property
    def spellings(self) -> dict[str, int]:
        """The column of every text that is a value of the training rows; -1 for the reference.

        Truth values may be written in several ways.
        """
        places = {value: place for place, value in enumerate(self.values)}
        if self.reference is not None:
            places[self.reference] = -1
        if places.keys() <= TRUTH_VALUES.keys():
            by_value = {TRUTH_VALUES[text]: place for text, place in places.items()}
            written = {text: by_value[value] for text, value in TRUTH_VALUES.items() if value in by_value}
            places = {**written, **places}
        return places

    def state(self) -> dict[str, Any]:
        """Return the encoding as JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "values": list(self.values),
            "reference": self.reference,
            "codes": self.coded,
        }


@dataclass(frozen=True)
class Encoding:
    """The encoding of all features."""

    columns: tuple[NumberEncoding | CategoryEncoding, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the encoded columns of numbers."""
        return tuple(name for column in self.columns for name in column.names)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of all that a model has parameters for: the columns of numbers, and the values of the columns of codes."""
        return (*self.names, *(f"{column.name}={value}" for column in self.coded for value in column.values))

    @property
    def coded(self) -> tuple[CategoryEncoding, ...]:
        """The columns of codes."""
        return tuple(column for column in self.columns if isinstance(column, CategoryEncoding) and column.coded)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Number of codes of each column of codes."""
        return tuple(column.cardinality for column in self.coded)

    @property
    def scaled(self) -> tuple[bool, ...]:
        """Whether each encoded column of numbers may be standardized."""
        return tuple(scaled for column in self.columns for scaled in column.scaled)

    @property
    def number_places(self) -> tuple[int, ...]:
        """Places of the numbers among the encoded columns of numbers: neither categories nor indicators."""
        return tuple(place for place, column in self.placed() if isinstance(column, NumberEncoding))

    @staticmethod
    def fit(
        columns: Sequence[Column], train: np.ndarray, numbers: str, seed: int, categories: c.CategoryCoding
    ) -> Encoding:
        """Return the encoding fitted to the training rows, whose numbers are `train`.

        `numbers` is the value of `data.numbers`, and `seed` that of the data. With "reference", the first value of a column of
        categories has no column, unless values are missing. Raises `DataError` for a column without a value in the training rows.
        """

        def transform(name: str, values: np.ndarray) -> Transform | None:
            if numbers == Quantile.kind:
                return Quantile.fit(values, stream(seed, f"quantile/{name}"))
            return Robust.fit(values) if numbers == Robust.kind else None

        def fitted(column: Column) -> NumberEncoding | CategoryEncoding:
            if isinstance(column, Categories):
                return _fitted_categories(column, categories)
            return _fitted_numbers(column, transform)

        return Encoding(tuple(fitted(column.take(train)) for column in columns))

    @property
    def references(self) -> tuple[str, ...]:
        """Categories without a column, such as "color=blue"."""
        return tuple(
            f"{column.name}={column.reference}"
            for column in self.columns
            if isinstance(column, CategoryEncoding) and column.reference is not None
        )

    def blocks(self, columns: Sequence[Column], rows: np.ndarray) -> Iterator[np.ndarray]:
        """Yield some rows of all columns of numbers, without missing ones, before any transform: float64 [rows, some columns]."""
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
        """Yield the encoding of each column, and the place of its first one among all encoded columns of numbers."""
        place = 0
        for encoding in self.columns:
            yield place, encoding
            place += len(encoding.scaled)

    def require_memory(self, rows: int, number_bytes: int) -> None:
        """Raise `DataError` if so many encoded rows do not fit in memory."""
        width = len(self.scaled)
        problem = sizes.unfit(
            rows * (width * number_bytes + len(self.coded) * CODE_BYTES),
            "`data.categorical`",
            f"got {rows:,} rows of {width:,} columns, one for each category",
            "add columns of many values to `data.drop`",
        )
        if problem is not None:
            raise DataError(problem)

    def require_distinct_names(self) -> None:
        """Raise `DataError` if a column has the name of another one that is made of a category or of missing values."""
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if twice:
            raise DataError(
                f"`data.path` must have columns of other names than those that categories, dates and missing values are given, got "
                f"{listed(twice)}; use another name with `data.rename`"
            )

    def state(self) -> list[Mapping[str, Any]]:
        """Return the encoding as JSON, to be saved with the run."""
        return [column.state() for column in self.columns]


def _fitted_categories(column: Categories, categories: c.CategoryCoding) -> CategoryEncoding:
    """Return the encoding of a column of training rows."""
    present = np.unique(column.codes[column.codes >= 0])
    values = tuple(column.values[code] for code in present.tolist())
    if not values:
        raise DataError(_empty(column.name))
    # Where values are missing, the columns do not add up to a constant: the missing ones are the reference.
    if categories == "reference" and not column.missing.any():
        return CategoryEncoding(column.name, values[1:], values[0])
    return CategoryEncoding(column.name, values, coded=categories == "codes")


def _fitted_numbers(column: Numbers, transform: Callable[[str, np.ndarray], Transform | None]) -> NumberEncoding:
    """Return the encoding of a column of training rows."""
    missing = column.missing
    if missing.all():
        raise DataError(_empty(column.name))
    return NumberEncoding(
        column.name,
        column.kind,
        _mean(column.values[~missing]),
        bool(missing.any()) and not column.further_part,
        transform(column.name, column.values[~missing]),
    )


def _mean(values: np.ndarray) -> float:
    with np.errstate(over="ignore"):
        mean = float(values.mean())
    return mean if np.isfinite(mean) else float((values / len(values)).sum())  # their sum is beyond float64


def _empty(name: str) -> str:
    return f"`data.features` must have values in the training rows, but {shown(name)} has none there; add it to `data.drop`"
