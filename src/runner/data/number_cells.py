"""Cells of text as numbers, of short columns many at a time: an operation on an array takes longer than on a few cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from runner.data.diagnostics import EXACT_INTEGER, NUMBERS
from runner.data.texts import Texts, numbers_of

TOGETHER_CELLS = 2**16
"""Cells of columns that are looked at together, at least one column."""


@dataclass(frozen=True, eq=False)
class NumberCells:
    """Some cells of a column, as numbers."""

    values: np.ndarray
    """Float64 [rows]; nan for cells that are no finite numbers."""
    numbers: int
    """Number of cells that spell a number, also one that float64 does not represent."""
    missing: int
    bad: np.ndarray
    """Rows of the cells that are neither usable numbers nor missing."""
    fractions: bool
    """Whether a number is no integer."""


def number_cells(columns: Sequence[Texts], decimal: str) -> Iterator[NumberCells]:
    """Yield the cells of columns with the same rows, as numbers."""
    together = max(TOGETHER_CELLS // len(columns[0]), 1) if columns else 1
    for first in range(0, len(columns), together):
        yield from _together(columns[first : first + together], decimal)


def _together(columns: Sequence[Texts], decimal: str) -> Iterator[NumberCells]:
    values = numbers_of(columns, decimal)
    rows = values.shape[1]
    absent = np.isnan(values)
    fractions = ~((values == np.trunc(values)) | absent).all(1)
    odd = absent.any(1) | (np.abs(values) >= EXACT_INTEGER).any(1)  # all others are numbers throughout
    for texts, own, fraction, is_odd in zip(columns, values, fractions.tolist(), odd.tolist(), strict=True):
        if is_odd:
            yield _odd(texts, own, fraction)
        else:
            yield NumberCells(own, rows, 0, _NONE, fraction)


def without_markers(values: np.ndarray, markers: frozenset[str]) -> np.ndarray:
    """Return numbers with nan for those that a marker of missing values spells, such as -999 or inf."""
    spelled = [float(marker) for marker in markers if NUMBERS["."].fullmatch(marker) or marker in ("inf", "-inf")]
    return np.where(np.isin(values, spelled), np.nan, values) if spelled else values


_NONE = np.empty(0, np.int64)


def _odd(texts: Texts, values: np.ndarray, fractions: bool) -> NumberCells:
    """Return the cells of a column some of which are missing, no numbers, or large integers."""
    bad = np.isnan(values) & ~texts.missing
    missing, wrong = int(texts.missing.sum()), int(bad.sum())
    large = np.flatnonzero(np.abs(values) >= EXACT_INTEGER)  # one beyond may be rounded to it
    bad[large] = [_rounded(texts.text(row)) for row in large.tolist()]
    return NumberCells(values, len(values) - wrong - missing, missing, np.flatnonzero(bad), fractions)


def _rounded(text: str) -> bool:
    """Return whether float64 rounds an integer that is written out."""
    digits = text.lstrip("+-0")
    return digits.isdigit() and int(digits) > EXACT_INTEGER
