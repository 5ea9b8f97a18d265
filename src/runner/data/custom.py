"""Tables that a class of the user's own reads: its method `read` returns the table, and everything after that is as for a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from runner.config import imports
from runner.config import schema as c
from runner.config.imports import Target
from runner.data import tables
from runner.data.arrow_files import ArrowSource, table_of
from runner.data.new_rows import is_table
from runner.data.progress import Report
from runner.data.tables import Table
from runner.errors import ConfigError, DataError


def build(config: c.CustomData, seed: int, report: Report) -> Table:
    """Return the table of `data=custom`; seed and report are not used.

    Raises `ConfigError` for a class that cannot be used, and `DataError` for what it reads.
    """
    target, what = config.code, "a class with a method read"
    kind = imports.load(target, object, what)
    if not callable(getattr(kind, "read", None)):
        raise ConfigError(f"{target.shown} must be {what}, got one without it; add it to the class")
    reader = imports.called(target, kind, c.plain(config)["kwargs"], {}, "data.kwargs")
    with imports.explained(target, "read"):
        found = reader.read()
    return tables.of_source(config, ArrowSource.of_table(_table(found, target), target.text), target.key)


def _table(found: Any, target: Target) -> Any:
    """Return what `read` has returned as a table of pyarrow, without the index of pandas, which is no column."""
    if isinstance(found, Mapping):
        found = _Columns(found, target)
    elif not is_table(found):
        raise DataError(
            f"{target.shown} must return a table of pandas, polars or pyarrow, or a mapping from names to arrays, from read, "
            f"got a {type(found).__name__}; convert it"
        )
    elif hasattr(found, "reset_index"):
        found = found.reset_index(drop=True)
    return table_of(found, f"the table of {target.text}")


class _Columns:
    """Columns [rows] by name, as a table that pyarrow can take."""

    def __init__(self, columns: Mapping[Any, Any], target: Target) -> None:
        self._columns = {str(name): np.asarray(values) for name, values in columns.items()}
        for name, values in self._columns.items():
            if values.ndim != 1:
                raise DataError(
                    f"{target.shown} must return columns [rows] from read, got {name!r} of the shape {list(values.shape)}; "
                    "give each a name of its own"
                )
        if len({*map(len, self._columns.values())}) > 1:
            counts = ", ".join(f"{len(values):,} of {name}" for name, values in self._columns.items())
            raise DataError(f"{target.shown} must return columns of one length from read, got {counts}; correct it")

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """Return the columns in the form of Arrow's interface for streams."""
        import pyarrow as pa

        return pa.table(self._columns).__arrow_c_stream__(requested_schema)
