"""Rows that Python code gives: a table of pandas, polars or pyarrow, or a pair (X, y) of features and targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from runner.data.array_source import ArraySource
from runner.data.arrow_files import ArrowSource, table_of
from runner.data.diagnostics import EXACT_INTEGER, listed
from runner.data.new_rows import is_table
from runner.data.tables import Source
from runner.errors import DataError


def open_rows(rows: Any, targets: Sequence[str], name: str) -> Source:
    """Return the source of rows that messages call by a name. `targets` are the names of the columns of y.

    Raises `DataError` for what is neither a table nor a pair of arrays that fit.
    """
    if isinstance(rows, (ArraySource, ArrowSource)):
        return rows
    if not is_pair(rows):
        return ArrowSource.of_table(_table(rows), name)
    features, target = rows
    y = _numbers(target, "y")
    if y.ndim not in (1, 2):
        raise DataError(
            f"`data.path` must have y of the shape [rows] or [rows, targets], got {list(y.shape)}; reshape it"
        )
    columns = y.reshape(len(y), -1)
    if columns.shape[1] != len(targets):
        raise DataError(
            f"`data.target` must have as many names as y has columns, got {listed(targets)} for {columns.shape[1]:,}; name each"
        )
    if is_table(features) and not isinstance(features, np.ndarray):
        return _beside(_table(features), columns, targets, name)
    x = _numbers(features, "X")
    if x.ndim != 2:
        remedy = "use X.reshape(-1, 1)" if x.ndim == 1 else "reshape it"
        raise DataError(f"`data.path` must have X of the shape [rows, features], got {list(x.shape)}; {remedy}")
    _require_equal(len(x), len(columns))
    names = [f"x{place}" for place in range(x.shape[1])]
    _require_new(targets, names)
    return ArraySource(np.column_stack([x, columns]), [*names, *targets], name)


def is_pair(rows: Any) -> bool:
    """Return whether rows are a pair (X, y)."""
    return isinstance(rows, (tuple, list)) and len(rows) == 2


def _table(frame: Any) -> Any:
    """Return a table as one of pyarrow, without the index of pandas, which is no column. Raises `DataError`."""
    if not is_table(frame):
        raise DataError(
            f"`data.path` must be a table of pandas, polars or pyarrow, or a pair (X, y), got {type(frame).__name__}; give one of them"
        )
    return table_of(frame.reset_index(drop=True) if hasattr(frame, "reset_index") else frame)


def _beside(table: Any, columns: np.ndarray, targets: Sequence[str], name: str) -> ArrowSource:
    """Return a table of pyarrow with columns [rows, targets] after its own."""
    import pyarrow as pa

    _require_equal(table.num_rows, len(columns))
    _require_new(targets, table.column_names)
    for place, target in enumerate(targets):
        table = table.append_column(target, pa.array(columns[:, place]))
    return ArrowSource.of_table(table, name)


def _require_equal(rows: int, targets: int) -> None:
    if rows != targets:
        raise DataError(
            f"`data.path` must have X and y of one length, got {rows:,} rows of X and {targets:,} of y; correct one"
        )


def _require_new(targets: Sequence[str], names: Sequence[str]) -> None:
    if taken := [target for target in targets if target in names]:
        raise DataError(f"`data.target` must name y as no column of X is, got {listed(taken)}; use another name")


def _numbers(values: Any, name: str) -> np.ndarray:
    """Return an array, a list, a series or a tensor as float64. Raises `DataError` unless all are real numbers that it represents."""
    if hasattr(values, "detach"):  # a tensor may be on another device
        values = values.detach().cpu()
    try:
        array = np.asarray(values)
    except ValueError:
        raise DataError(
            f"`data.path` must have an array as {name}, got rows of several lengths; correct them"
        ) from None
    if array.dtype.kind not in "fiub":
        raise DataError(
            f"`data.path` must have real numbers in {name}, got the type {array.dtype}; cast them, or give a table with names"
        )
    if array.dtype.kind in "iu" and array.size and max(abs(int(array.max())), abs(int(array.min()))) > EXACT_INTEGER:
        raise DataError(
            f"`data.path` must have integers up to 2**53 in {name}, since others are rounded; cast or divide them"
        )
    array = array.astype(np.float64)
    if infinite := np.argwhere(np.isinf(array)).tolist():
        raise DataError(
            f"`data.path` must have finite numbers in {name}, or nan for a missing one, got {array[tuple(infinite[0])]} in row "
            f"{infinite[0][0]}; correct it"
        )
    return array
