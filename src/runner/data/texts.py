"""Cells of one column as text: a list of Python's strings, or an array of pyarrow, with the same answers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Protocol

import numpy as np

from runner.data.diagnostics import EXACT_INTEGER, NUMBERS

FIRST = 16
"""Number of cells that show whether a column is one of numbers."""

_ZEROS_FIRST = re.compile(r"0[0-9]+")


class Texts(Protocol):
    """Some cells of a column, without blanks around them."""

    @property
    def cells(self) -> Any:
        """The cells as they stand in the source: a list of texts, or an array of pyarrow."""

    def __len__(self) -> int:
        """Return the number of cells."""

    @property
    def missing(self) -> np.ndarray:
        """Mask [rows] of the cells that stand for a missing value."""

    def text(self, row: int) -> str:
        """Return a cell."""

    def numbers(self, decimal: str) -> np.ndarray:
        """Return the cells as float64 [rows]; nan for missing values and for cells that are no finite numbers."""

    def zeros_first(self) -> str | None:
        """Return the first cell of digits that begins with a zero, as identifiers do."""

    def encode(self, places: dict[str, int]) -> np.ndarray:
        """Return the place of each cell, int32 [rows], or -1 for a missing value; new texts are given the next place."""

    def below(self, row: int) -> Texts:
        """Return the cells from a row on."""


@dataclass
class PlainTexts:
    """Cells as Python's strings."""

    cells: Sequence[str]
    markers: frozenset[str]

    def __post_init__(self) -> None:
        self.texts = [cell.strip(" \t") for cell in self.cells]

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def missing(self) -> np.ndarray:
        """Mask [rows] of the cells that are one of the markers."""
        return np.fromiter((text in self.markers for text in self.texts), bool, len(self.texts))

    def text(self, row: int) -> str:
        """Return a cell."""
        return self.texts[row]

    def numbers(self, decimal: str) -> np.ndarray:
        """Return the numbers, as `NUMBERS` spells them."""
        return _parsed(self.texts, len(self), decimal, self.markers)

    def zeros_first(self) -> str | None:
        """Return the first cell of digits that begins with a zero."""
        return next((text for text in self.texts if text[:1] == "0" and _ZEROS_FIRST.fullmatch(text)), None)

    def encode(self, places: dict[str, int]) -> np.ndarray:
        """Return the place of each cell."""
        cells = (-1 if text in self.markers else places.setdefault(text, len(places)) for text in self.texts)
        return np.fromiter(cells, np.int32, len(self.texts))

    def below(self, row: int) -> PlainTexts:
        """Return the cells from a row on."""
        return PlainTexts(self.cells[row:], self.markers)


@dataclass
class ArrowTexts:
    """Cells as an array of pyarrow, where a null is a missing value; ten times as fast."""

    cells: Any
    markers: frozenset[str]

    def __len__(self) -> int:
        return len(self.cells)

    @cached_property
    def _distinct(self) -> tuple[np.ndarray, Any]:
        """Number of each cell [rows] among the distinct ones, and these without blanks around them; a null is the last."""
        import pyarrow as pa
        import pyarrow.compute as pc

        encoded = self.cells.dictionary_encode()
        texts = pc.utf8_trim(encoded.dictionary, " \t")
        places = encoded.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False)
        return places, pa.concat_arrays([texts, pa.nulls(1, texts.type)])

    @cached_property
    def _present(self) -> Any:
        """The distinct cells; null for those that stand for a missing value, and at the end."""
        import pyarrow as pa
        import pyarrow.compute as pc

        texts = self._distinct[1]
        return pc.if_else(pc.is_in(texts, value_set=pa.array(sorted(self.markers), texts.type)), None, texts)

    @cached_property
    def _plain(self) -> np.ndarray | None:
        """The cells as float64 [rows], if all are finite numbers with a decimal point, and no marker is a number."""
        import pyarrow as pa
        import pyarrow.compute as pc

        number = NUMBERS["."].fullmatch
        # Every cell that cannot be cast takes long, so that text has to be found out before.
        if any(map(number, self.markers)) or not all(number(cell or "") for cell in self.cells[:FIRST].to_pylist()):
            return None
        try:  # of other spellings than `NUMBERS` it accepts only those of infinity and nan
            values: np.ndarray = pc.cast(self.cells, pa.float64()).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid:
            return None
        return values if np.isfinite(values).all() else None

    @cached_property
    def missing(self) -> np.ndarray:
        """Mask [rows] of the cells that are one of the markers."""
        if self._plain is not None:  # no usual marker is one of its spellings
            return np.zeros(len(self), bool)
        mask: np.ndarray = self._present.is_null().to_numpy(zero_copy_only=False)[self._distinct[0]]
        return mask

    def text(self, row: int) -> str:
        """Return a cell."""
        return str(self.cells[row].as_py() or "").strip(" \t")

    def numbers(self, decimal: str) -> np.ndarray:
        """Return the numbers, as `NUMBERS` spells them."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if decimal == "." and self._plain is not None:
            return self._plain
        matching = pc.match_substring_regex(self._present, f"^(?:{NUMBERS[decimal].pattern})$")
        texts = pc.replace_substring(pc.if_else(matching, self._present, None), decimal, ".")
        values = pc.cast(texts, pa.float64()).to_numpy(zero_copy_only=False)[self._distinct[0]]
        return np.where(np.isinf(values), np.nan, values)

    def zeros_first(self) -> str | None:
        """Return the first cell of digits that begins with a zero."""
        import pyarrow.compute as pc

        row = pc.index(pc.match_substring_regex(self.cells, "^[ \t]*0[0-9]+[ \t]*$"), True).as_py()
        return None if row < 0 else self.text(row)

    @property
    def distinct(self) -> tuple[np.ndarray, Any]:
        """Place of each cell, int32 [rows], in an array of the distinct cells, which may be equal without their blanks, and null."""
        return self._distinct[0], self._present

    def encode(self, places: dict[str, int]) -> np.ndarray:
        """Return the place of each cell."""
        texts = self._present.to_pylist()
        table = [-1 if text is None else places.setdefault(text, len(places)) for text in texts]
        codes: np.ndarray = np.array(table, np.int32)[self._distinct[0]]
        return codes

    def below(self, row: int) -> ArrowTexts:
        """Return the cells from a row on."""
        return ArrowTexts(self.cells[row:], self.markers)


@dataclass
class ArrowFloats:
    """Cells that pyarrow has read as numbers, all finite and within the exact integers, where a null is a missing value.

    Their texts are not known, which saves half of the time.
    """

    cells: Any

    def __len__(self) -> int:
        return len(self.cells)

    @cached_property
    def missing(self) -> np.ndarray:
        """Mask [rows] of the nulls."""
        if not self.cells.null_count:
            return np.zeros(len(self), bool)
        mask: np.ndarray = self.cells.is_null().to_numpy(zero_copy_only=False)
        return mask

    def text(self, row: int) -> str:
        """Refuse: a number is used as it is."""
        raise NotImplementedError

    def numbers(self, decimal: str) -> np.ndarray:
        """Return the numbers."""
        values: np.ndarray = self.cells.to_numpy(zero_copy_only=False)
        return values

    def zeros_first(self) -> str | None:
        """Return nothing: a column with fractions has no identifiers."""
        return None

    def encode(self, places: dict[str, int]) -> np.ndarray:
        """Refuse: numbers are no categories."""
        raise NotImplementedError

    def below(self, row: int) -> ArrowFloats:
        """Return the cells from a row on."""
        return ArrowFloats(self.cells[row:])

    @property
    def plain(self) -> bool:
        """Whether the numbers are what this class promises."""
        values = self.numbers(".")
        return bool(np.all((np.abs(values) < EXACT_INTEGER) | self.missing))


def numbers_of(columns: Sequence[Texts], decimal: str) -> np.ndarray:
    """Return the numbers of columns with the same rows, [columns, rows]."""
    if len(columns) == 1:
        return columns[0].numbers(decimal)[np.newaxis]
    plain = [column for column in columns if isinstance(column, PlainTexts)]
    if len(plain) < len(columns):
        return np.stack([column.numbers(decimal) for column in columns])
    count, markers = len(plain) * len(plain[0]), plain[0].markers
    cells = chain.from_iterable(column.texts for column in plain)
    return _parsed(cells, count, decimal, markers).reshape(len(plain), -1)


def _parsed(texts: Iterable[str], count: int, decimal: str, markers: frozenset[str]) -> np.ndarray:
    """Return cells as numbers; nan for all others."""
    number = NUMBERS[decimal].fullmatch
    cells = (
        float(text if decimal == "." else text.replace(decimal, "."))
        if number(text) and text not in markers
        else np.nan
        for text in texts
    )
    values = np.fromiter(cells, np.float64, count)
    return np.where(np.isinf(values), np.nan, values)
