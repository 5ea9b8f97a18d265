"""Tables in the formats of Arrow: Parquet, and Feather or Arrow's own; one column is in memory at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from runner.data.diagnostics import EXACT_INTEGER, Fault, listed, named, raise_problems
from runner.data.files import File
from runner.data.kinds import Column, ColumnReader, Growing, Numbers, Rules, unusable, usable
from runner.data.texts import ArrowTexts
from runner.errors import DataError

FIRST_SECOND, LAST_SECOND = -62_135_596_800, 253_402_300_799
"""Seconds since 1970 of the years 1 to 9999, which text files can have."""


class ArrowSource:
    """Parquet, Feather or Arrow files that together are one table; all have the same columns of the same types."""

    def __init__(self, path: str, files: Sequence[File]) -> None:
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise DataError(
                '`data=parquet` needs pyarrow, which is not installed; pip install "runner[tables]"'
            ) from None
        self.path, self._files = path, files
        self.warnings: list[str] = []
        self.notes: Sequence[str] = (f"{len(files)} files",) if len(files) > 1 else ()
        self.sha256 = _sha256(files)
        opened = [_opened(file) for file in files]
        self._readers = [reader for _, _, reader in opened]
        self._rows = [rows for _, rows, _ in opened]
        self.names: Sequence[str] = opened[0][0].names
        for file, (schema, _, _) in zip(files, opened, strict=True):
            if schema.names != self.names:
                raise DataError(
                    f"`data.path` must match files with the same columns, but {named(file.path)} has {listed(schema.names)} "
                    f"and {named(files[0].path)} has {listed(self.names)}; give one of them"
                )

    def read(self, places: Mapping[str, int], rules: Rules) -> dict[str, Column]:
        """Return the columns at these places by name. Raises `DataError` for columns of types that are no numbers, texts or dates."""
        if not sum(self._rows):
            raise DataError(f"`data.path` must have rows, got 0 rows in {named(self.path)}; add rows")
        read: dict[str, Column | str] = {}
        faults: list[Fault] = []
        for name, place in places.items():
            column, bad = self._column(name, place, rules)
            read[name] = rules.allowed(column)
            faults += bad
            self._files[0].progress.at(f"{len(read):,} of {len(places):,} columns")
        for file in self._files:
            file.require_unchanged()
        raise_problems(self.path, unusable(self.path, read), faults, "row")
        return usable(read)

    def places(self, rows: Sequence[int]) -> list[str]:
        """Return the numbers of some rows, from 1 through all files."""
        return [f"row {row + 1}" for row in rows]

    def _column(self, name: str, place: int, rules: Rules) -> tuple[Column | str, list[Fault]]:
        """Return a column, or why it cannot be used as the end of a sentence, and its unusable cells."""
        import pyarrow as pa
        import pyarrow.compute as pc

        chunks = [chunk for read in self._readers for chunk in _plain(read(self.names[place])).chunks]
        kinds = list(dict.fromkeys(chunk.type for chunk in chunks if len(chunk)))
        if any(_is_text(kind) for kind in kinds) and not all(_is_text(kind) for kind in kinds):
            return f"has types {', '.join(map(str, kinds))} in different files; cast it to one", []
        kind, types = (kinds or [pa.null()])[0], pa.types
        if unknown := next((kind for kind in kinds if not _is_known(kind)), None):
            return (
                f"has type {unknown}, which is neither numbers, text nor dates; cast it, or add it to `data.drop`",
                [],
            )
        if _is_text(kind) or rules.is_categorical(name):
            # A truth value has two values and is never a number.
            asked = rules.is_categorical(name)
            chosen = True if types.is_boolean(kind) and asked is None else asked
            return self._texts(
                ColumnReader(name, chosen, sum(self._rows)), [pc.cast(chunk, pa.string()) for chunk in chunks], rules
            )
        if types.is_temporal(kind):
            return _dates(name, chunks), []
        return _numeric(name, chunks)

    def _texts(self, reader: ColumnReader, chunks: Sequence[Any], rules: Rules) -> tuple[Column | str, list[Fault]]:
        """Return a column of texts as text files have it."""
        for chunk in chunks:
            reader.add(ArrowTexts(chunk, rules.markers), ".")
        if reader.again():
            for chunk in chunks:
                reader.add(ArrowTexts(chunk, rules.markers), ".")
        self.warnings += reader.warnings()
        faults = [Fault(row + 1, reader.name, text, values) for row, text, values in reader.faults()]
        return reader.column(), faults if reader.numeric else []


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_boolean(kind))


def _is_known(kind: Any) -> bool:
    from pyarrow import types

    number = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_null(kind)
    return bool(number or _is_text(kind) or types.is_date(kind) or types.is_timestamp(kind))


def _plain(column: Any) -> Any:
    """Return a column without a dictionary."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.cast(column, column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _dates(name: str, chunks: Sequence[Any]) -> Column | str:
    """Return a column of dates in seconds since 1970, or why it cannot be used as the end of a sentence."""
    seconds = np.concatenate([_seconds(chunk) for chunk in chunks])
    outside = np.flatnonzero((seconds < FIRST_SECOND) | (seconds > LAST_SECOND))
    if len(outside):
        return f"has a date outside of the years 1 to 9999 in row {outside[0] + 1}; correct it, or add the column to `data.drop`"
    return Numbers(name, seconds, "date")


def _seconds(chunk: Any) -> np.ndarray:
    """Return the seconds of dates, float64 [rows], to the microsecond; nan for null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_date32(chunk.type):
        return _values(pc.cast(chunk, pa.int32())) * 86400.0
    unit = "ms" if pa.types.is_date64(chunk.type) else chunk.type.unit
    if unit in ("s", "ms"):  # as microseconds they might be beyond 64 bits
        return _values(pc.cast(chunk, pa.int64())) / (1.0 if unit == "s" else 1e3)
    return _values(pc.cast(pc.cast(chunk, pa.timestamp("us"), safe=False), pa.int64())) / 1e6


def _numeric(name: str, chunks: Sequence[Any]) -> tuple[Numbers, list[Fault]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    faults: list[Fault] = []
    column = Growing(sum(map(len, chunks)), np.float64)
    first = 1
    for chunk in chunks:
        values = _values(pc.cast(chunk, pa.float64(), safe=False) if pa.types.is_decimal(chunk.type) else chunk)
        bad = np.isinf(values)
        if pa.types.is_integer(chunk.type):
            exact = chunk.fill_null(0).to_numpy(zero_copy_only=False)
            bad = (exact > EXACT_INTEGER) | (exact < -EXACT_INTEGER)
        faults += [Fault(first + row, name, str(chunk[row].as_py())) for row in np.flatnonzero(bad).tolist()]
        column.extend(values)
        first += len(chunk)
    return Numbers(name, column.array), faults


def _values(chunk: Any) -> np.ndarray:
    """Return numbers as float64; nan for null."""
    return np.asarray(chunk.to_numpy(zero_copy_only=False), np.float64)


def _opened(file: File) -> tuple[Any, int, Callable[[str], Any]]:
    """Return the schema of a file, its number of rows, and what reads one of its columns."""
    import pyarrow as pa
    import pyarrow.feather
    import pyarrow.parquet

    with _complete(file):
        if next(file.chunks(), b"").startswith(b"ARROW1"):
            with pa.memory_map(file.path) as source:
                table = pyarrow.feather.read_table(source)  # nothing is copied before a column is asked for
            return table.schema, table.num_rows, table.column
        parquet = pyarrow.parquet.ParquetFile(file.path)

    def read(name: str) -> Any:
        with _complete(file):  # of nested columns more than one may begin with the name
            return parquet.read([name], use_threads=False).column(name)

    return parquet.schema_arrow, parquet.metadata.num_rows, read


@contextmanager
def _complete(file: File) -> Iterator[None]:
    """Raise `DataError` if a file cannot be read."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise DataError(
            f"`data.path` must be a complete Parquet, Feather or Arrow file, but {named(file.path)} cannot be read ({reason}); "
            "use data=csv for text"
        ) from None


def _sha256(files: Sequence[File]) -> str:
    digest = hashlib.sha256()
    for chunk in (chunk for file in files for chunk in file.chunks()):
        digest.update(chunk)
    return digest.hexdigest()
