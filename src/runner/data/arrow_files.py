"""Tables in the formats of Arrow: Parquet, and Feather or Arrow's own; one column is in memory at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from runner.data.diagnostics import EXACT_INTEGER, Fault, listed, named, raise_problems, shown
from runner.data.files import File
from runner.data.kinds import (
    Block,
    Column,
    ColumnReader,
    KindReader,
    Numbers,
    Rules,
    add_block,
    unusable,
    usable,
)
from runner.data.memory import Growing
from runner.data.number_cells import without_markers
from runner.data.progress import Report, unreported
from runner.data.texts import ArrowTexts
from runner.errors import DataError

BATCH_ROWS = 2**16
"""Rows that are read together where a table is not read whole."""

FIRST_SECOND, LAST_SECOND = -62_135_596_800, 253_402_300_799
"""Seconds since 1970 of the years 1 to 9999, which text files can have."""


class ArrowSource:
    """Tables of Arrow that together are one; all have the same columns of the same types."""

    def __init__(self, path: str, opened: Sequence[Opened], sha256: str = "") -> None:
        self.path, self._opened, self.sha256 = path, opened, sha256
        self.warnings: list[str] = []
        self.notes: Sequence[str] = (f"{len(opened)} files",) if len(opened) > 1 else ()
        self._rows = [one.rows for one in opened]
        self.names: Sequence[str] = opened[0].names
        for one in opened:
            if one.names != self.names:
                raise DataError(
                    f"`data.path` must match files with the same columns, but {named(one.path)} has {listed(one.names)} "
                    f"and {named(opened[0].path)} has {listed(self.names)}; give one of them"
                )

    @staticmethod
    def of_files(path: str, files: Sequence[File]) -> ArrowSource:
        """Return the table of Parquet, Feather or Arrow files."""
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise DataError(
                '`data=parquet` needs pyarrow, which is not installed; pip install "runner[tables]"'
            ) from None
        sha256 = _sha256(files)
        return ArrowSource(path, list(map(_opened, files)), sha256)

    @staticmethod
    def of_table(table: Any, name: str = "the table") -> ArrowSource:
        """Return a table of pyarrow, which messages call by a name."""
        return ArrowSource(name, [_in_memory(name, table)])

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
            self._opened[0].report(f"{len(read):,} of {len(places):,} columns")
        for opened in self._opened:
            opened.require_unchanged()
        raise_problems(self.path, unusable(self.path, read), faults, "row")
        return usable(read)

    def places(self, rows: Sequence[int]) -> list[str]:
        """Return the numbers of some rows, from 1 through all files."""
        return [f"row {row + 1}" for row in rows]

    def blocks(
        self, places: Mapping[str, int], kinds: Mapping[str, str], kept: Sequence[str], markers: frozenset[str]
    ) -> Iterator[Block]:
        """Yield all rows in blocks: columns of known kinds, and columns as they stand in the files, at these places by name.

        Nothing is yielded after a cell that cannot be used, and all of those are in the `DataError` at the end.
        """
        if not sum(self._rows):
            raise DataError(f"`data.path` must have rows, got 0 rows in {named(self.path)}; add rows")
        readers = [KindReader(name, kind) for name, kind in kinds.items()]
        names = {name: self.names[places[name]] for name in dict.fromkeys((*kinds, *kept))}
        faults: list[Fault] = []
        problems = dict[str, None]()
        done = 0
        for opened in self._opened:
            for batch in opened.batches(list(names.values())):
                columns = {}
                for reader in readers:
                    cells = _plain(batch.column(names[reader.name]))
                    column = _of_kind(reader, cells, markers, done, faults)
                    if isinstance(column, str):
                        problems[f"`data.path`: column {shown(reader.name)} of {named(opened.path)} {column}"] = None
                    else:
                        columns[reader.name] = column
                done += len(batch)
                opened.report(f"{done:,} rows")
                if not (problems or faults or any(reader.bad for reader in readers)):
                    yield Block(columns, {name: batch.column(names[name]) for name in kept})
        for opened in self._opened:
            opened.require_unchanged()
        faults += [
            Fault(row + 1, reader.name, text, values, reader.kind)
            for reader in readers
            for row, text, values in reader.faults()
        ]
        more = sum(reader.bad - len(reader.first_bad) for reader in readers)
        raise_problems(self.path, list(problems), faults, "row", more)

    def _column(self, name: str, place: int, rules: Rules) -> tuple[Column | str, list[Fault]]:
        """Return a column, or why it cannot be used as the end of a sentence, and its unusable cells."""
        import pyarrow as pa

        chunks = [chunk for opened in self._opened for chunk in _plain(opened.column(self.names[place])).chunks]
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
            return self._texts(ColumnReader(name, chosen, sum(self._rows)), list(map(_text, chunks)), rules)
        if types.is_temporal(kind):
            return _dates(name, chunks), []
        return _numeric(name, chunks, rules.markers)

    def _texts(self, reader: ColumnReader, chunks: Sequence[Any], rules: Rules) -> tuple[Column | str, list[Fault]]:
        """Return a column of texts as text files have it."""
        for chunk in chunks:
            add_block([reader], [ArrowTexts(chunk, rules.markers)], ".")
        if reader.again():
            for chunk in chunks:
                add_block([reader], [ArrowTexts(chunk, rules.markers)], ".")
        self.warnings += reader.warnings()
        faults = [Fault(row + 1, reader.name, text, values) for row, text, values in reader.faults()]
        return reader.column(), faults if reader.numeric else []


def table_of(frame: Any, name: str = "the table") -> Any:
    """Return a table of pandas, polars or pyarrow, or of another library that exports to Arrow, as one of pyarrow.

    Messages call it by a name. Raises `DataError`.
    """
    try:
        import pyarrow as pa
    except ImportError:
        raise DataError(
            'a table needs pyarrow, which is not installed; pip install "runner[tables]", or give an array'
        ) from None
    if not hasattr(frame, "__arrow_c_stream__") and not hasattr(frame, "to_parquet"):
        raise DataError(
            f"{name} must be one of pandas, polars or pyarrow, or an array of numpy, got {type(frame).__name__}; convert it"
        )
    try:
        return pa.table(frame)
    except (pa.ArrowException, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise DataError(
            f"{name} must have columns of numbers, texts or dates, but Arrow cannot take it ({reason}); cast them"
        ) from None


def texts_of(cells: Any, markers: frozenset[str]) -> ArrowTexts | None:
    """Return cells of any type as texts; None for lists and other values that are neither numbers, texts nor dates."""
    plain = _plain(cells)
    return ArrowTexts(_text(plain), markers) if _is_known(plain.type) else None


def _of_kind(reader: KindReader, cells: Any, markers: frozenset[str], first: int, faults: list[Fault]) -> Column | str:
    """Return the cells of a batch as a column of the reader's kind, or why they are none as the end of a sentence.

    `first` is the number of rows before the batch. Cells that are typed and cannot be used are added to the faults.
    """
    from pyarrow import types

    kind = cells.type
    if not _is_known(kind):
        return f"must be of type {reader.kind}, got {kind}; cast it"
    if _is_text(kind) or reader.kind == "category" or types.is_null(kind):
        return reader.read(ArrowTexts(_text(cells), markers), ".")
    if types.is_temporal(kind) != (reader.kind == "date"):
        return f"must be of type {reader.kind}, got {kind}; cast it"
    if reader.kind == "date":
        return _dates(reader.name, [cells], first)
    column, bad = _numeric(reader.name, [cells], markers)
    faults += [fault._replace(row=fault.row + first) for fault in bad]
    return column


def _text(chunk: Any) -> Any:
    """Return cells as texts."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.cast(chunk, pa.string())


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return bool(
        types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_boolean(kind)
    )


def _is_known(kind: Any) -> bool:
    from pyarrow import types

    number = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_null(kind)
    return bool(number or _is_text(kind) or types.is_date(kind) or types.is_timestamp(kind))


def _plain(column: Any) -> Any:
    """Return a column without a dictionary."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_dictionary(column.type):
        return column
    if pa.types.is_string_view(column.type.value_type):  # as polars writes it, and Arrow cannot cast it in one step
        column = pc.cast(column, pa.dictionary(column.type.index_type, pa.string()))
    return pc.cast(column, column.type.value_type)


def _dates(name: str, chunks: Sequence[Any], first: int = 0) -> Column | str:
    """Return a column of dates in seconds since 1970, or why it cannot be used as the end of a sentence.

    `first` is the number of rows before the chunks.
    """
    seconds = np.concatenate([_seconds(chunk) for chunk in chunks])
    outside = np.flatnonzero((seconds < FIRST_SECOND) | (seconds > LAST_SECOND))
    if len(outside):
        return f"has a date outside of the years 1 to 9999 in row {first + outside[0] + 1}; correct it, or add the column to `data.drop`"
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


def _numeric(name: str, chunks: Sequence[Any], markers: frozenset[str]) -> tuple[Numbers, list[Fault]]:
    """Return a column of numbers, and those that cannot be used; numbers that a marker spells are missing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    faults: list[Fault] = []
    column = Growing(sum(map(len, chunks)), np.float64)
    first = 1
    for chunk in chunks:
        values = _values(pc.cast(chunk, pa.float64(), safe=False) if pa.types.is_decimal(chunk.type) else chunk)
        values = without_markers(values, markers)
        bad = np.isinf(values)
        if pa.types.is_integer(chunk.type):
            exact = chunk.fill_null(0).to_numpy(zero_copy_only=False)
            bad = ((exact > EXACT_INTEGER) | (exact < -EXACT_INTEGER)) & ~np.isnan(values)
        faults += [Fault(first + row, name, str(chunk[row].as_py())) for row in np.flatnonzero(bad).tolist()]
        column.extend(values)
        first += len(chunk)
    return Numbers(name, column.array), faults


def _values(chunk: Any) -> np.ndarray:
    """Return numbers as float64; nan for null."""
    return np.asarray(chunk.to_numpy(zero_copy_only=False), np.float64)


@dataclass(frozen=True)
class Opened:
    """A table of Arrow that may be larger than the memory."""

    path: str
    names: Sequence[str]
    rows: int
    column: Callable[[str], Any]
    """Returns a whole column, as a chunked array of pyarrow."""
    batches: Callable[[Sequence[str]], Iterator[Any]]
    """Yields all rows in batches of the named columns."""
    report: Report = unreported
    """Receives what is done, such as "1,000 rows"."""
    require_unchanged: Callable[[], None] = lambda: None
    """Raises `DataError` if the table is another one than it was when it was opened."""


def _opened(file: File) -> Opened:
    """Return the table of a file."""
    import pyarrow as pa
    import pyarrow.feather
    import pyarrow.parquet

    watched: dict[str, Any] = {"report": file.progress.at, "require_unchanged": file.require_unchanged}
    with _complete(file):
        if next(file.chunks(), b"").startswith(b"ARROW1"):
            with pa.memory_map(file.path) as source:
                table = pyarrow.feather.read_table(source)  # nothing is copied before a column is asked for
            return replace(_in_memory(file.path, table), **watched)
        parquet = pyarrow.parquet.ParquetFile(file.path, pre_buffer=False)  # else what was read stays in memory

    def column(name: str) -> Any:
        with _complete(file):  # of nested columns more than one may begin with the name
            return parquet.read([name], use_threads=False).column(name)

    def batches(names: Sequence[str]) -> Iterator[Any]:
        with _complete(file):
            yield from parquet.iter_batches(BATCH_ROWS, columns=list(names), use_threads=False)

    return Opened(file.path, parquet.schema_arrow.names, parquet.metadata.num_rows, column, batches, **watched)


def _in_memory(path: str, table: Any) -> Opened:
    """Return a table of pyarrow."""

    def batches(names: Sequence[str]) -> Iterator[Any]:
        yield from table.select(list(names)).to_batches(max_chunksize=BATCH_ROWS)

    return Opened(path, table.schema.names, table.num_rows, table.column, batches)


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
