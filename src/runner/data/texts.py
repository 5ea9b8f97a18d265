"""Cells of one column as text: a list of Python's strings, or an array of pyarrow, with the same answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from runner.data.diagnostics import NUMBER

_ZEROS_FIRST = re.compile(r"0[0-9]+")


class Texts(Protocol):
    """Some cells of a column, without blanks around them."""

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


@dataclass
class PlainTexts:
    """Cells as Python's strings."""

    cells: Sequence[str]
    markers: frozenset[str]

    def __post_init__(self) -> None:
        self._texts = [cell.strip(" \t") for cell in self.cells]

    def __len__(self) -> int:
        return len(self._texts)

    @cached_property
    def missing(self) -> np.ndarray:
        """Mask [rows] of the cells that are one of the markers."""
        return np.fromiter((text in self.markers for text in self._texts), bool, len(self._texts))

    def text(self, row: int) -> str:
        """Return a cell."""
        return self._texts[row]

    def numbers(self, decimal: str) -> np.ndarray:
        """Return the numbers, as `NUMBER` spells them."""
        texts = self._texts if decimal == "." else [text.replace(decimal, ".") for text in self._texts]
        cells = (float(text) if NUMBER.fullmatch(text) and text not in self.markers else np.nan for text in texts)
        values = np.fromiter(cells, np.float64, len(texts))
        return np.where(np.isinf(values), np.nan, values)

    def zeros_first(self) -> str | None:
        """Return the first cell of digits that begins with a zero."""
        return next((text for text in self._texts if text[:1] == "0" and _ZEROS_FIRST.fullmatch(text)), None)

    def encode(self, places: dict[str, int]) -> np.ndarray:
        """Return the place of each cell."""
        cells = (-1 if text in self.markers else places.setdefault(text, len(places)) for text in self._texts)
        return np.fromiter(cells, np.int32, len(self._texts))


@dataclass
class ArrowTexts:
    """Cells as an array of pyarrow; ten times as fast."""

    cells: Any
    markers: frozenset[str]

    def __post_init__(self) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        texts = pc.utf8_trim(self.cells, " \t")
        self._present = pc.if_else(pc.is_in(texts, value_set=pa.array(sorted(self.markers))), None, texts)
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    @cached_property
    def missing(self) -> np.ndarray:
        """Mask [rows] of the cells that are one of the markers."""
        mask: np.ndarray = self._present.is_null().to_numpy(zero_copy_only=False)
        return mask

    def text(self, row: int) -> str:
        """Return a cell."""
        text: str = self._texts[row].as_py()
        return text

    def numbers(self, decimal: str) -> np.ndarray:
        """Return the numbers, as `NUMBER` spells them."""
        import pyarrow as pa
        import pyarrow.compute as pc

        texts = self._present if decimal == "." else pc.replace_substring(self._present, decimal, ".")
        try:  # of other spellings than `NUMBER` it accepts only those of infinity and nan
            found = pc.cast(texts, pa.float64())
        except pa.ArrowInvalid:
            found = pc.cast(
                pc.if_else(pc.match_substring_regex(texts, f"^(?:{NUMBER.pattern})$"), texts, None), pa.float64()
            )
        values: np.ndarray = found.to_numpy(zero_copy_only=False)
        return np.where(np.isinf(values), np.nan, values)

    def zeros_first(self) -> str | None:
        """Return the first cell of digits that begins with a zero."""
        import pyarrow.compute as pc

        row = pc.index(pc.match_substring_regex(self._texts, "^0[0-9]+$"), True).as_py()
        return None if row < 0 else self.text(row)

    def encode(self, places: dict[str, int]) -> np.ndarray:
        """Return the place of each cell."""
        encoded = self._present.dictionary_encode()
        table = [*(places.setdefault(text, len(places)) for text in encoded.dictionary.to_pylist()), -1]
        codes: np.ndarray = np.array(table, np.int32)[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
        return codes
