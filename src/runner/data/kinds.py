"""The kind of a column, decided by all of its cells: numbers, dates, categories, or text that cannot be used.

Every column of text is read as numbers first. Columns with other cells are read as text, a second time where that shows late.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from runner.data.dates import moment, parts_of, seconds_of
from runner.data.diagnostics import EXACT_INTEGER, misspelled, named, shown
from runner.data.distinct_texts import DistinctTexts
from runner.data.memory import Growing
from runner.data.number_cells import NumberCells, number_cells
from runner.data.texts import Texts

MISSING = ("", "NA", "N/A", "n/a", "na", "<NA>", "#N/A", "NaN", "nan", "NAN", "null", "NULL", "Null", "None", "none", "nil", "-", "?", ".")  # fmt: skip
"""Cells that stand for a missing value."""

TRUTH_VALUES = {
    spelling: value for value in ("false", "true") for spelling in (value, value.capitalize(), value.upper())
}
"""The category of every spelling of a truth value, in a column that has no other texts."""

MOST_PLACES = 10
"""Number of cells of a column whose place is kept."""

FREE_TEXT_VALUES = 100
"""Number of distinct values up to which a column is one of categories, also where most rows have a value of their own."""

MOST_LOOKED_AT = 1000
"""Number of distinct values of free text that show whether they are meant as numbers."""


def are_integers(values: np.ndarray) -> np.ndarray:
    """Return whether all values […, rows] are integers that float64 represents exactly, […]."""
    # Beyond 2**53 every float64 is an integer, so such a value is a large measurement, not a count or an identifier.
    integers: np.ndarray = ((values == np.trunc(values)) & (np.abs(values) <= EXACT_INTEGER)).all(-1)
    return integers


@dataclass(frozen=True, eq=False)
class Numbers:
    """A column of numbers."""

    name: str
    values: np.ndarray
    """Float64 [rows]; nan where missing."""
    kind: str = "number"
    """Kind of a cell: number; date, whose values are seconds since 1970-01-01 00:00 UTC; or the part of a date that it is, such as year."""
    further_part: bool = False
    """Whether it is a part of the same date as the column before it, and so missing in the same rows."""

    @property
    def missing(self) -> np.ndarray:
        """Mask [rows] of the missing values."""
        mask: np.ndarray = np.isnan(self.values)
        return mask

    @property
    def integers(self) -> bool:
        """Whether every value is an integer that float64 represents exactly, and none is missing."""
        return bool(are_integers(self.values))

    def take(self, rows: np.ndarray) -> Numbers:
        """Return the column with these rows only."""
        return replace(self, values=self.values[rows])

    def followed_by(self, other: Column) -> Numbers | None:
        """Return the column with the rows of another one added at its end; None if that is of another kind."""
        if not isinstance(other, Numbers) or (other.kind != self.kind and not other.missing.all()):
            return None
        return replace(self, values=np.concatenate([self.values, other.values]))

    def part(self, kind: str) -> Numbers:
        """Return a part of a column of dates, such as year, in UTC."""
        present = ~self.missing
        values = np.full(len(present), np.nan)
        values[present] = parts_of(self.values[present])[kind]
        return Numbers(f"{self.name}.{kind}", values, kind)

    def in_parts(self) -> list[Numbers]:
        """Return year, month, day, weekday and hour of a column of dates, in UTC; those that are equal in every row are left out.

        The year stays where all are.
        """
        present = ~self.missing
        parts = parts_of(self.values[present])
        varying = [kind for kind, values in parts.items() if (values != values[:1]).any()]
        first, *others = varying or ["year"]
        return [self.part(first), *(replace(self.part(kind), further_part=True) for kind in others)]


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

    def followed_by(self, other: Column) -> Categories | None:
        """Return the column with the rows of another one added at its end; None if that is of another kind."""
        if not isinstance(other, Categories):
            return None
        values = tuple(sorted({*self.values, *other.values}))
        places = {value: place for place, value in enumerate(values)}
        codes = [
            np.array([*(places[value] for value in column.values), -1], np.int32)[column.codes]
            for column in (self, other)
        ]
        return Categories(self.name, np.concatenate(codes), values)


Column = Numbers | Categories


@dataclass(frozen=True, eq=False)
class Block:
    """Some rows of a table whose columns are of known kinds."""

    columns: dict[str, Column]
    kept: dict[str, Any]
    """Cells as they stand in the source, by column: a list of texts, or an array of pyarrow."""

    def __len__(self) -> int:
        cells: Any = next(iter((*self.kept.values(), *(column.missing for column in self.columns.values()))))
        return len(cells)


@dataclass(frozen=True)
class Rules:
    """What the configuration says of the kinds of columns."""

    categorical: tuple[str, ...] | None = None
    """Columns of categories; None takes those whose cells are text. All others must then be numbers or dates."""
    missing_values: tuple[str, ...] = ()
    """Texts that stand for a missing value, besides the usual ones."""
    numbers: tuple[str, ...] = ()
    """Columns that must be numbers."""
    texts: tuple[str, ...] = ()
    """Columns whose cells are texts whatever they are."""

    def is_categorical(self, name: str) -> bool | None:
        """Return whether a column is one of categories; None if its cells decide."""
        if name in self.texts or name in (self.categorical or ()):
            return True
        return False if name in self.numbers else None

    def allowed(self, column: Column | str) -> Column | str:
        """Return a column, or why it cannot be used, as the end of a sentence: for what it says itself, or as categories that are not asked for."""
        if self.categorical is None or not isinstance(column, Categories) or self.is_categorical(column.name):
            return column
        return f"has text, such as {shown(column.values[0])}; add it to `data.categorical` if it has categories, or to `data.drop`"

    @property
    def markers(self) -> frozenset[str]:
        """All texts that stand for a missing value."""
        return frozenset((*MISSING, *self.missing_values))


@dataclass
class ColumnReader:
    """Reads one column of cells of text, block after block.

    Every cell is read as a number first. A column whose first block looks like text is read as text at once; where only
    later blocks do, `again` says that all blocks are to be added a second time.
    """

    name: str
    categorical: bool | None
    """Whether the cells are categories whatever they are; None decides by the cells."""
    expected: int
    """Number of rows that there may be. Where there are more, the column is in memory twice for a moment."""
    numbers: int = 0
    """Number of cells that spell a number, also one that float64 does not represent."""
    missing: int = 0
    bad: int = 0
    """Number of cells that are neither usable numbers nor missing."""
    first_bad: list[tuple[int, str]] = field(default_factory=list)
    """Row, from 0, and text of the first of these cells."""
    kind: ClassVar[str] = "number"
    """Kind that these cells must have."""
    zeros_first: str | None = None
    """The first cell of digits that begins with a zero, as identifiers do."""
    _fractions: bool = False
    """Whether a number is no integer, so that the column has no identifiers."""
    _rows: int = 0
    _values: Growing | None = None
    """The cells as numbers, float64; None if the column is not read as numbers."""
    _texts: DistinctTexts | None = None
    """The cells as text; None while the column is not read as text."""
    _passed: bool = False
    _decimal: str = "."
    """Decimal sign of the last block."""

    def __post_init__(self) -> None:
        if self.categorical:
            self._texts = DistinctTexts(self.expected)
        else:
            self._values = Growing(self.expected, np.float64)

    @property
    def takes_numbers(self) -> bool:
        """Whether the cells of the next block are needed as numbers."""
        return not self.categorical and not self._passed

    def add(self, texts: Texts, numbers: NumberCells | None, decimal: str) -> None:
        """Read the cells of a block; `numbers` are None unless it takes them."""
        self._decimal = decimal
        if numbers is not None:
            first = not self._rows
            self._add_numbers(texts, numbers)
            if first and not self.numeric:
                self._texts = DistinctTexts(self.expected)
        if self._texts is not None:
            self._texts.add(texts)

    def again(self) -> bool:
        """Return whether all blocks are needed a second time."""
        needed = not self.numeric and self._texts is None
        self._passed = True
        if not self.numeric:
            self._values = None
        if needed:
            self._texts = DistinctTexts(self._rows)
        return needed

    @property
    def numeric(self) -> bool:
        """Whether the column is one of numbers: at least half of its cells that are not missing are, or it has to be."""
        return self.categorical is False or (self.categorical is None and 2 * self.numbers >= self._rows - self.missing)

    def column(self) -> Column | str:
        """Return the column: numbers, dates or categories; or why it is none of them, as the end of a sentence.

        The cells of a column of text are given up.
        """
        if self.numeric:
            assert self._values is not None  # `again`
            return Numbers(self.name, self._values.array)
        assert self._texts is not None  # `again`
        (codes, texts), self._texts = self._texts.encoded(), None
        return _texts(self.name, codes, texts, self.categorical is True, self._decimal)

    def faults(self) -> list[tuple[int, str, int]]:
        """Return row, from 0, and text of the first cells of a column of numbers that are none, and how many cells each is.

        A column without any number is one fault.
        """
        if self.bad == self._rows - self.missing > 1:
            return [(*self.first_bad[0], self.bad)]
        return [(row, text, 1) for row, text in self.first_bad]

    def warnings(self) -> Iterator[str]:
        """Yield what the user should know of the column."""
        if self.numeric and self.zeros_first and not self._fractions:
            yield (
                f"`data.features`: {shown(self.name)} has values such as {shown(self.zeros_first)}, whose zero in front is lost; "
                "add it to `data.categorical` or `data.drop` if they are identifiers"
            )

    def _add_numbers(self, texts: Texts, cells: NumberCells) -> None:
        for row in cells.bad[: MOST_PLACES - len(self.first_bad)].tolist():
            self.first_bad.append((self._rows + row, texts.text(row)))
        self._fractions = self._fractions or cells.fractions
        if self.zeros_first is None and not self._fractions and cells.numbers:
            self.zeros_first = texts.zeros_first()
        self.numbers += cells.numbers
        self.missing += cells.missing
        self.bad += len(cells.bad)
        self._rows += len(cells.values)
        if self._values is not None:
            self._values.extend(cells.values)


def add_block(readers: Sequence[ColumnReader], block: Sequence[Texts], decimal: str) -> None:
    """Give each reader the cells of its column."""
    numbers = number_cells(
        [texts for reader, texts in zip(readers, block, strict=True) if reader.takes_numbers], decimal
    )
    for reader, texts in zip(readers, block, strict=True):
        reader.add(texts, next(numbers) if reader.takes_numbers else None, decimal)


@dataclass
class KindReader:
    """Reads one column whose kind is known, block after block, without a look at other blocks."""

    name: str
    kind: str
    """number, date or category."""
    bad: int = 0
    """Number of cells that are neither of the kind nor missing."""
    first_bad: list[tuple[int, str]] = field(default_factory=list)
    """Row, from 0, and text of the first of these cells."""
    _rows: int = 0

    def read(self, texts: Texts, decimal: str) -> Column:
        """Return the cells of a block. Those that are not of the kind are noted, and missing in the column."""
        column = self._column(texts, decimal)
        self._rows += len(texts)
        return column

    def _column(self, texts: Texts, decimal: str) -> Column:
        if self.kind == "number":
            cells = next(number_cells([texts], decimal))
            self._note(cells.bad, texts)
            return Numbers(self.name, cells.values)
        places: dict[str, int] = {}
        codes = texts.encode(places)
        if self.kind == "category":
            return Categories(self.name, codes, tuple(_without_zeros(text, decimal) for text in places))
        seconds = np.array([*(moment(text) for text in places), np.nan], np.float64)[codes]
        self._note(np.flatnonzero(np.isnan(seconds) & (codes >= 0)), texts)
        return Numbers(self.name, seconds, "date")

    def faults(self) -> list[tuple[int, str, int]]:
        """Return row, from 0, and text of the first of these cells, each standing for itself."""
        return [(row, text, 1) for row, text in self.first_bad]

    def _note(self, places: np.ndarray, texts: Texts) -> None:
        self.bad += len(places)
        for row in places[: MOST_PLACES - len(self.first_bad)].tolist():
            self.first_bad.append((self._rows + row, texts.text(row)))


def unusable(path: str, columns: Mapping[str, Column | str]) -> list[str]:
    """Return the messages for the columns that cannot be used."""
    return [
        f"`data.features`: column {shown(name)} of {named(path)} {column}"
        for name, column in columns.items()
        if isinstance(column, str)
    ]


def usable(columns: Mapping[str, Column | str]) -> dict[str, Column]:
    """Return the columns that can be used."""
    return {name: column for name, column in columns.items() if not isinstance(column, str)}


def _texts(name: str, codes: np.ndarray, texts: Sequence[str], chosen: bool, decimal: str) -> Column | str:
    """Return a column of texts: dates, or categories; or why it is neither, as the end of a sentence.

    `codes` are the places of the cells among the distinct texts. `chosen` says that the texts are categories in any case.
    """
    present = int((codes >= 0).sum())
    if not chosen:
        seconds = seconds_of(texts)
        if isinstance(seconds, str):
            return seconds
        if seconds is not None:
            return Numbers(name, np.array([*seconds, np.nan])[codes], "date")
        free = len(texts) > max(FREE_TEXT_VALUES, present / 2)
        looked_at = texts[:MOST_LOOKED_AT] if free else texts  # it is refused in any case
        wrong = [text for text in looked_at if misspelled(text, decimal)]
        if wrong and 2 * len(wrong) >= len(looked_at):
            return f"has {shown(wrong[0])}, {misspelled(wrong[0], decimal)}, or add the column to `data.drop`"
        if free:
            return (
                f"has {len(texts):,} distinct values in {present:,} rows, as free text has; add it to `data.drop`, or to "
                "`data.categorical` if they are categories"
            )
    truth = TRUTH_VALUES.keys() >= {*texts}
    spelled = [TRUTH_VALUES[text] if truth else _without_zeros(text, decimal) for text in texts]
    values = sorted({*spelled})
    ranks = {value: rank for rank, value in enumerate(values)}
    return Categories(name, np.array([*map(ranks.__getitem__, spelled), -1], np.int32)[codes], tuple(values))


def _without_zeros(text: str, decimal: str) -> str:
    """Return a text, without the decimal sign and the zeros after it if it is a whole number: 3.0 is the category 3."""
    whole, _, fraction = text.partition(decimal)
    return whole if fraction and not fraction.strip("0") and whole.removeprefix("-").isdigit() else text
