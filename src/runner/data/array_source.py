"""Columns of numbers in memory, as a source of rows for training and for predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from runner.data.diagnostics import listed
from runner.data.kinds import Block, Column, Numbers, Rules
from runner.data.number_cells import without_markers
from runner.errors import DataError


@dataclass(frozen=True, eq=False)
class ArraySource:
    """An array of numbers [rows, columns] whose columns have names."""

    values: np.ndarray
    """Float64; nan where missing."""
    names: Sequence[str]
    path: str = "the array"
    sha256: str = ""
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()

    def read(self, places: Mapping[str, int], rules: Rules) -> dict[str, Column]:
        """Return the columns at these places by name. Raises `DataError` for columns that must be texts or categories."""
        refuse_categories([name for name in places if rules.is_categorical(name)])
        return {name: self._column(name, place, rules.markers) for name, place in places.items()}

    def blocks(
        self, places: Mapping[str, int], kinds: Mapping[str, str], kept: Sequence[str], markers: frozenset[str]
    ) -> Iterator[Block]:
        """Yield all rows at once. Raises `DataError` as `read` does."""
        refuse_categories([name for name, kind in kinds.items() if kind == "category"])
        if not len(self.values):
            raise DataError("`data.path` must have rows, got 0 rows in the array; add rows")
        values = without_markers(self.values, markers)
        yield Block({name: Numbers(name, values[:, places[name]], kind) for name, kind in kinds.items()}, {})

    def places(self, rows: Sequence[int]) -> list[str]:
        """Return the numbers of some rows, from 0 as in the array."""
        return [f"row {row}" for row in rows]

    def _column(self, name: str, place: int, markers: frozenset[str]) -> Numbers:
        # A column of its own memory: torch.from_numpy needs no copy of it, and warns of memory that cannot be written.
        return Numbers(name, without_markers(self.values[:, place].copy(), markers))


def refuse_categories(names: Sequence[str]) -> None:
    """Raise `DataError` if there are columns of categories or groups, which an array of numbers has not."""
    if names:
        raise DataError(
            f"the rows must be a table with named columns, because {listed(names)} are categories or groups, got an array; "
            "use a table"
        )
