"""Metrics for each value of a column."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from runner.commands.evaluate.compared import Compared
from runner.data.diagnostics import shown
from runner.errors import ConfigError
from runner.training.scores import Scores

MOST_GROUPS = 100
"""Largest number of values of a column with metrics of their own."""


@dataclass(frozen=True)
class Group:
    """The rows that have one value of a column."""

    value: str | None
    """As it stands in the table; None where it is missing."""
    scores: Scores


class Groups:
    """Adds up the metrics of each value of a column, block by block."""

    def __init__(self, column: str, scores: Callable[[], Scores]) -> None:
        self.column, self._scores = column, scores
        self.places: dict[str, int] = {}
        """Values so far → their numbers."""
        self._found: dict[int, Scores] = {}

    def add(self, codes: np.ndarray, rows: Compared) -> None:
        """Add rows with the numbers of their values [rows], -1 for a missing one. Raises `ConfigError` if there are too many."""
        if len(self.places) > MOST_GROUPS:
            raise ConfigError(
                f"`--by` must name a column with at most {MOST_GROUPS} values, got {shown(self.column)}, which has more; use another "
                "column, or add one with ranges of the values"
            )
        for code in np.unique(codes).tolist():
            places = np.flatnonzero(codes == code)
            scores = self._found.setdefault(code, self._scores())
            weight = None if rows.weight is None else rows.weight[places]
            scores.add(rows.target[places], rows.prediction[places], weight)

    def sorted(self) -> list[Group]:
        """Return the groups in the order of their values, as numbers if all are, and the missing one last."""
        order = _by_number if all(map(_is_number, self.places)) else str
        present = [Group(value, self._found[self.places[value]]) for value in sorted(self.places, key=order)]
        return [*present, *([Group(None, self._found[-1])] if -1 in self._found else [])]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _by_number(text: str) -> tuple[float, str]:
    return float(text), text
