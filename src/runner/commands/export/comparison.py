"""Comparison of the predictions of an export with those of the run: for the rows of the run's table, and for made ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from runner.config import schema as c
from runner.data.encoding import CategoryEncoding, NumberEncoding
from runner.data.kinds import Categories, Column, Numbers
from runner.data.new_rows import NewRows, Policy, open_files
from runner.data.preprocessing import Preprocessing
from runner.training.bands import Bands
from runner.training.intervals import Intervals
from runner.training.predicting import Predictor

MADE_ROWS = 256
CHUNK_ROWS = 4096
"""Rows that are predicted together."""

Columns = Mapping[str, Column]
Computed = Callable[[Columns], np.ndarray]
"""Predictions for columns of a table by name, [rows, targets], or with intervals [rows, 3·targets]: these and all lower and upper ends.

A row with a missing value that the run refuses has nan.
"""


class Comparison:
    """The largest difference between what a run and its export predict, so far."""

    def __init__(self, run: Predictor, computed: Computed, intervals: Intervals | Bands | None = None) -> None:
        self.rows = 0
        self._expected, self._computed = predictions(run, intervals), computed
        self._difference = self._largest = np.zeros(len(run.target_names))

    def add(self, columns: Columns) -> None:
        """Compare rows of a table, a few thousand at a time."""
        for rows in _chunks(len(next(iter(columns.values())).missing)):
            self._add({name: column.take(rows) for name, column in columns.items()})

    @property
    def difference(self) -> float:
        """Largest difference, of any target relative to its largest prediction; inf where only one of both is finite."""
        scale = np.where(self._largest > 0, self._largest, 1)
        return float((self._difference / scale).max())

    def _add(self, columns: Columns) -> None:
        expected, computed = self._expected(columns), self._computed(columns)
        with np.errstate(invalid="ignore"):
            same = (expected == computed) | (np.isnan(expected) & np.isnan(computed))
            difference = np.where(same, 0, np.nan_to_num(np.abs(expected - computed), nan=np.inf, posinf=np.inf))
        finite = np.where(np.isfinite(expected), np.abs(expected), 0)
        self._difference = np.maximum(self._difference, self._of_targets(difference))
        self._largest = np.maximum(self._largest, self._of_targets(finite))
        self.rows += len(expected)

    def _of_targets(self, values: np.ndarray) -> np.ndarray:
        """Return the largest values [targets], of predictions and ends together: an end may be near 0 in all rows."""
        largest: np.ndarray = values.max(0).reshape(-1, len(self._largest)).max(0)
        return largest


def predictions(predictor: Predictor, intervals: Intervals | Bands | None = None) -> Computed:
    """Return what predicts the rows of a table with trained models."""
    refuses = Policy.of(predictor.config).missing != "mean"

    def computed(columns: Columns) -> np.ndarray:
        made = predictor.of_columns(columns, intervals)
        parts = [part.numpy() for part in (made.values, made.low, made.high) if part is not None]
        found: np.ndarray = np.concatenate(parts, 1)
        if refuses:
            found[np.any([column.missing for column in columns.values()], 0)] = np.nan
        return found

    return computed


def first_rows(columns: Columns, count: int) -> Columns:
    """Return the first rows of a table."""
    return {name: column.take(np.arange(min(count, len(column.missing)))) for name, column in columns.items()}


def _chunks(rows: int) -> Iterator[np.ndarray]:
    for first in range(0, rows, CHUNK_ROWS):
        yield np.arange(first, min(first + CHUNK_ROWS, rows))


def table_rows(config: c.Config, fitted: Preprocessing) -> Iterator[Columns]:
    """Yield the rows of the run's table, block by block, with missing values; none of a run without a table.

    Raises `DataError` if it cannot be read.
    """
    data = config.data
    if isinstance(data, c.Csv | c.Parquet) and data.path:  # an export has no path
        rows = NewRows(open_files(data.path, data), fitted, replace(Policy.of(config), missing="mean", unseen="other"))
        for block in rows.blocks():
            yield {name: block.columns[name] for name in fitted.kinds}


def made_rows(fitted: Preprocessing) -> Columns:
    """Return rows like those that the preprocessing was fitted to, with values that are missing and categories that are new."""
    draw = np.random.default_rng(0)
    columns = dict[str, Column]()
    for place, encoding in fitted.encoding.placed():
        if isinstance(encoding, CategoryEncoding):
            columns[encoding.column] = _made_categories(encoding, draw)
        elif encoding.column not in columns:
            values = _made_numbers(encoding, float(fitted.scaling.feature_scale[place]), draw)
            columns[encoding.column] = Numbers(encoding.column, values, encoding.source_kind)
    return columns


def _made_categories(encoding: CategoryEncoding, draw: np.random.Generator) -> Categories:
    known = [*encoding.values, *([] if encoding.reference is None else [encoding.reference])]
    values = (*known, "another one, " + max(known, key=len))
    return Categories(encoding.column, draw.integers(-1, len(values), MADE_ROWS).astype(np.int32), values)


def _made_numbers(encoding: NumberEncoding, scale: float, draw: np.random.Generator) -> np.ndarray:
    fitted: Any = encoding.transform
    if encoding.kind not in ("number", "date"):  # a part of a date
        values = draw.uniform(-(2.0**31), 2.0**32, MADE_ROWS)
    elif fitted is not None and fitted.kind == "quantile":
        low, high = fitted.quantiles[0], fitted.quantiles[-1]
        values = draw.uniform(low - (high - low) / 10, high + (high - low) / 10, MADE_ROWS)
        values[: len(fitted.quantiles)] = fitted.quantiles[:MADE_ROWS]
    else:
        values = encoding.mean + (scale if fitted is None else fitted.scale) * draw.normal(size=MADE_ROWS)
    values[draw.random(MADE_ROWS) < 0.1] = np.nan
    return values
