"""What the user should know of the columns of a table: constant, equal and misspelled ones, and those that may be identifiers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from runner.data.diagnostics import PLACES, listed, shown
from runner.data.kinds import Categories, Column, Numbers

COMPARED_ROWS = 1000
"""Number of rows by which columns that may be equal are found."""

IDENTIFIED_ROWS = 50
"""Number of rows from which a column of integers may be one of identifiers."""

DISTINCT_SHARE = 0.95
"""Share of different values from which it may be."""


def notes(features: Sequence[Column]) -> Iterator[str]:
    """Yield how the columns were read where that is not obvious, as phrases."""
    categories = [f"{column.name} ({len(column.values)})" for column in features if isinstance(column, Categories)]
    if categories:
        yield f"categories {', '.join(categories[:PLACES])}{', …' if len(categories) > PLACES else ''}"


def warnings(features: Sequence[Column], targets: Sequence[Numbers], left_out: str) -> Iterator[str]:
    """Yield what the user should know of the columns. `left_out` is the advice to leave out a feature."""
    rows = len(targets[0].values)
    if constant := [column.name for column in features if _is_constant(column)]:
        yield f"`data.features`: every row has the same value in {listed(constant)}, which explains nothing"
    for column in features:
        if isinstance(column, Categories) and (spellings := _spellings(column)):
            yield f"`data.features`: {shown(column.name)} has categories that differ in case only, such as {listed(spellings)}; write them alike if they mean the same"
    for equal in _equal_columns(features)[:PLACES]:
        yield f"`data.features`: {listed(equal)} are equal in every row; keep one of them"
    for target in targets:
        if _is_constant(target):
            yield f"`data.target`: {shown(target.name)} is {float(target.values[0])!r} in every row, so r2 is undefined"
    if rows < len(features) + 1:
        yield f"`data.path`: there are {rows} rows for {len(features)} features, so many models fit exactly"
    for column in features:
        if len(features) > 1 and isinstance(column, Numbers) and _may_identify(column):
            yield (
                f"`data.features`: {shown(column.name)} has another integer in nearly every row, as identifiers have; {left_out} "
                "if it is one"
            )


def _is_constant(column: Column) -> bool:
    values = cells(column)
    return bool(np.all(values == values[0]))


def _spellings(column: Categories) -> list[str]:
    """Return the spellings of the first category that has several, which differ in case only."""
    by_text: dict[str, list[str]] = {}
    for value in column.values:
        by_text.setdefault(value.casefold(), []).append(value)
    return next((values for values in by_text.values() if len(values) > 1), [])


def cells(column: Column) -> np.ndarray:
    """Return the numbers [rows] of a column, or the codes of its categories."""
    return column.values if isinstance(column, Numbers) else column.codes


def _equal_columns(features: Sequence[Column]) -> list[list[str]]:
    """Return the names of the columns that are equal in every row, group by group."""
    alike: dict[bytes, list[list[Column]]] = {}
    for column in features:
        if not _is_constant(column):
            groups = alike.setdefault(cells(column)[:COMPARED_ROWS].tobytes(), [])
            own = next((group for group in groups if _are_equal(group[0], column)), None)
            if own is None:
                groups.append([column])
            else:
                own.append(column)
    groups = [group for found in alike.values() for group in found]
    return [[column.name for column in group] for group in groups if len(group) > 1]


def _are_equal(one: Column, other: Column) -> bool:
    if isinstance(one, Categories) and isinstance(other, Categories):
        return one.values == other.values and np.array_equal(one.codes, other.codes)
    return type(one) is type(other) and np.array_equal(cells(one), cells(other), equal_nan=True)


def _may_identify(column: Numbers) -> bool:
    """Return whether nearly all values are different integers."""
    count = len(column.values)
    return count >= IDENTIFIED_ROWS and column.integers and len(np.unique(column.values)) >= DISTINCT_SHARE * count
