"""Tables in the formats of Arrow: Parquet, and Feather or Arrow's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runner.data.diagnostics import EXACT_INTEGER, Fault, named, raise_problems, shown
from runner.data.kinds import Column, Numbers, Rules, TextPass
from runner.data.texts import ArrowTexts
from runner.errors import DataError


class ArrowSource:
    """Parquet, Feather or Arrow files that together are one table."""

    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()

    def __init__(self, path: str, contents: Mapping[str, bytes]) -> None:
        try:
            import pyarrow as pa
        except ImportError:
            raise DataError(
                '`data=parquet` needs pyarrow, which is not installed; pip install "runner[tables]"'
            ) from None
        self.path, self.contents = path, contents
        tables = {file: _opened(file, data) for file, data in contents.items()}
        try:
            self._table = pa.concat_tables(list(tables.values()))
        except pa.ArrowInvalid as error:
            raise DataError(
                f"`data.path` must match files with the same columns, but those of {named(path)} differ ({_reason(error)}); give one of them"
            ) from None
        self.names: Sequence[str] = self._table.schema.names

    def read(self, names: Sequence[str], rules: Rules) -> Mapping[str, Column]:
        """Return these columns. Raises `DataError` for columns of types that are no numbers, texts or dates."""
        if not self._table.num_rows:
            raise DataError(f"`data.path` must have rows, got 0 rows in {named(self.path)}; add rows")
        read: dict[str, Column | str] = {}
        faults: list[Fault] = []
        for name in names:
            read[name], bad = self._column(name, rules)
            faults += bad
        problems = [
            f"`data.features`: column {shown(name)} of {named(self.path)} {column}"
            for name, column in read.items()
            if isinstance(column, str)
        ]
        raise_problems(self.path, problems, faults, "row")
        return {name: column for name, column in read.items() if not isinstance(column, str)}

    def place(self, row: int) -> str:
        """Return the number of the row, from 1."""
        return f"row {row + 1}"

    def _column(self, name: str, rules: Rules) -> tuple[Column | str, list[Fault]]:
        """Return a column, or why it cannot be used as the end of a sentence, and its unusable cells."""
        import pyarrow as pa
        import pyarrow.compute as pc

        values, types = self._table.column(name), pa.types
        kind = values.type
        if types.is_dictionary(kind):
            values = pc.cast(values, kind.value_type)
            kind = kind.value_type
        chosen = name in (rules.categorical or ())
        texts = types.is_string(kind) or types.is_large_string(kind) or types.is_boolean(kind)
        if chosen or (texts and rules.categorical is None):
            column = TextPass(name)
            for chunk in pc.cast(values, pa.string()).chunks:
                column.add(ArrowTexts(chunk, rules.markers))
            return column.column(chosen or types.is_boolean(kind)), []
        if types.is_date(kind) or types.is_timestamp(kind):
            seconds = pc.cast(pc.cast(values, pa.timestamp("us")), pa.int64()).to_numpy().astype(np.float64) / 1e6
            return Numbers(name, seconds, "date"), []
        if not (types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)):
            return f"has type {kind}, which is neither numbers, text nor dates; cast it, or add it to `data.drop`", []
        return _numeric(name, pc.cast(values, pa.float64(), safe=False) if types.is_decimal(kind) else values)


def _numeric(name: str, column: Any) -> tuple[Numbers, list[Fault]]:
    values = column.to_numpy()  # nulls become nan
    bad = np.isinf(values)
    if not np.issubdtype(values.dtype, np.floating):
        bad = (values > EXACT_INTEGER) | (values < -EXACT_INTEGER)
    faults = [Fault(row + 1, name, str(column[row].as_py())) for row in np.flatnonzero(bad).tolist()]
    return Numbers(name, values.astype(np.float64)), faults


def _opened(path: str, data: bytes) -> Any:
    """Return the table of one file."""
    import pyarrow as pa
    import pyarrow.feather
    import pyarrow.parquet

    try:
        if data.startswith((b"ARROW1", b"FEA1")):
            return pyarrow.feather.read_table(pa.BufferReader(data))
        return pyarrow.parquet.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"`data.path` must be a complete Parquet, Feather or Arrow file, but {named(path)} cannot be read ({_reason(error)}); "
            "use data=csv for text"
        ) from None


def _reason(error: BaseException) -> str:
    return str(error).partition("\n")[0].rstrip(".")
