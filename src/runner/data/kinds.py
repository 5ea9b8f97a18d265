"""The kind of a column, decided by all of its cells: numbers, dates, categories, or text that cannot be used.

The first pass over a table reads every column as numbers. Columns with other cells are read again, as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone

import numpy as np

from runner.data.diagnostics import EXACT_INTEGER, shown
from runner.data.texts import Texts

MISSING = ("", "NA", "N/A", "n/a", "na", "<NA>", "#N/A", "NaN", "nan", "NAN", "null", "NULL", "Null", "None", "none", "nil", "-", "?", ".")  # fmt: skip
"""Cells that stand for a missing value."""

MOST_PLACES = 10
"""Number of cells of a column whose place is kept."""

FREE_TEXT_VALUES = 100
"""Number of distinct values up to which a column is one of categories, also where most rows have a value of their own."""

_DAY_FIRST = re.compile(r"([0-9]{1,2})\.([0-9]{1,2})\.([0-9]{4})(?:[ T]([0-9:.]+))?")
_YEAR_FIRST = re.compile(r"([0-9]{4})[-/]([0-9]{1,2})[-/]([0-9]{1,2})((?:[ T].*)?)")


@dataclass(frozen=True, eq=False)
class Numbers:
    """A column of numbers."""

    name: str
    values: np.ndarray
    """Float64 [rows]; nan where missing."""
    kind: str = "number"
    """What a cell is: number, or date, whose values are seconds since 1970-01-01 00:00 UTC."""

    @property
    def missing(self) -> np.ndarray:
        """Mask [rows] of the missing values."""
        mask: np.ndarray = np.isnan(self.values)
        return mask

    @property
    def integers(self) -> bool:
        """Whether every value is an integer that float64 represents exactly, and none is missing."""
        # Beyond 2**53 every float64 is an integer, so such a value is a large measurement, not a count or an identifier.
        return bool(np.all((self.values == np.trunc(self.values)) & (np.abs(self.values) <= EXACT_INTEGER)))

    def take(self, rows: np.ndarray) -> Numbers:
        """Return the column with these rows only."""
        return Numbers(self.name, self.values[rows], self.kind)


@dataclass(frozen=True, eq=False)
class Categories:
    """A column of categories."""

    name: str
    codes: np.ndarray
    """Place of each value among `values`, int32 [rows]; -1 where missing."""
    values: tuple[str, ...]
    """Distinct values, sorted by their text."""

    @property
    def missing(self) -> np.ndarray:
        """Mask [rows] of the missing values."""
        mask: np.ndarray = self.codes < 0
        return mask

    def take(self, rows: np.ndarray) -> Categories:
        """Return the column with these rows only."""
        return Categories(self.name, self.codes[rows], self.values)


Column = Numbers | Categories


@dataclass(frozen=True)
class Rules:
    """What the configuration says of the kinds of columns."""

    categorical: tuple[str, ...] | None = None
    """Columns of categories; None takes those whose cells are text."""
    missing_values: tuple[str, ...] = ()
    """Texts that stand for a missing value, besides the usual ones."""

    @property
    def markers(self) -> frozenset[str]:
        """All texts that stand for a missing value."""
        return frozenset((*MISSING, *self.missing_values))


@dataclass
class NumberPass:
    """Reads one column as numbers, block after block."""

    name: str
    decimal: str
    numbers: int = 0
    missing: int = 0
    bad: int = 0
    """Number of cells that are neither numbers nor missing."""
    first_missing: int | None = None
    """Row, from 0, of the first missing value."""
    first_bad: list[tuple[int, str]] = field(default_factory=list)
    """Row, from 0, and text of the first cells that are neither."""
    zeros_first: str | None = None
    """The first cell of digits that begins with a zero, as identifiers do."""
    _rows: int = 0
    _blocks: list[np.ndarray] = field(default_factory=list)

    def add(self, texts: Texts) -> None:
        """Read the cells of a block."""
        values, missing = texts.numbers(self.decimal), texts.missing
        bad = np.isnan(values) & ~missing
        large = np.flatnonzero(np.abs(values) > EXACT_INTEGER)
        bad[large] = [_rounded(texts.text(row)) for row in large.tolist()]
        if missing.any():
            self.first_missing = (
                self._rows + int(missing.argmax()) if self.first_missing is None else self.first_missing
            )
        places = np.flatnonzero(bad)
        for row in places[: MOST_PLACES - len(self.first_bad)].tolist():
            self.first_bad.append((self._rows + row, texts.text(row)))
        self.missing += int(missing.sum())
        self.bad += len(places)
        self.numbers += len(values) - len(places) - int(missing.sum())
        self.zeros_first = self.zeros_first or texts.zeros_first()
        self._rows += len(values)
        self._blocks.append(values)

    @property
    def numeric(self) -> bool:
        """Whether the column is one of numbers: at least half of its cells that are not missing are."""
        return self.numbers >= self.bad

    def column(self) -> Numbers:
        """Return the column."""
        return Numbers(self.name, np.concatenate([np.empty(0), *self._blocks]))


@dataclass
class TextPass:
    """Reads one column as text, block after block."""

    name: str
    _blocks: list[np.ndarray] = field(default_factory=list)
    _places: dict[str, int] = field(default_factory=dict)

    def add(self, texts: Texts) -> None:
        """Read the cells of a block."""
        self._blocks.append(texts.encode(self._places))

    def column(self, categorical: bool) -> Column | str:
        """Return the column: dates, or categories; or why it is neither, as the end of a sentence.

        `categorical` says that it is one of categories, whatever its cells are.
        """
        codes = np.concatenate([np.empty(0, np.int32), *self._blocks])
        texts, present = list(self._places), int((codes >= 0).sum())
        seconds = None if categorical or not texts else _seconds(texts)
        if isinstance(seconds, str):
            return seconds
        if seconds is not None:
            return Numbers(self.name, np.array([*seconds, np.nan])[codes], "date")
        if not categorical and len(texts) > max(FREE_TEXT_VALUES, present / 2):
            return (
                f"has {len(texts):,} distinct values in {present:,} rows, as free text has; add it to `data.drop`, or to "
                "`data.categorical` if they are categories"
            )
        order = sorted(range(len(texts)), key=texts.__getitem__)
        places = np.full(len(texts) + 1, -1, np.int32)
        places[order] = np.arange(len(texts), dtype=np.int32)
        return Categories(self.name, places[codes], tuple(texts[place] for place in order))


def _rounded(text: str) -> bool:
    """Return whether float64 rounds an integer that is written out."""
    digits = text.lstrip("+-0")
    return digits.isdigit() and int(digits) > EXACT_INTEGER


def _seconds(texts: Iterable[str]) -> list[float] | str | None:
    """Return the seconds since 1970 of texts that are all dates, as UTC where they name no time zone.

    None if one of them is no date, and the end of a sentence if one is a date that does not exist. Year-first and dotted
    day-first dates are known; with slashes, day and month could be told apart only by chance.
    """
    seconds: list[float] = []
    for text in texts:
        if match := _DAY_FIRST.fullmatch(text):
            day, month, year, time = match.groups()
            rest = f"T{time}" if time else ""
        elif match := _YEAR_FIRST.fullmatch(text):
            year, month, day, rest = match.groups()
        else:
            return None
        try:
            date = datetime.fromisoformat(f"{year}-{month:0>2}-{day:0>2}{rest}")
        except ValueError:
            return f"has dates, but {shown(text)} is none; correct it, or add the column to `data.drop`"
        seconds.append((date if date.tzinfo else date.replace(tzinfo=timezone.utc)).timestamp())
    return seconds
