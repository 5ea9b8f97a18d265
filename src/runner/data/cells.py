"""The cells of a text table, in blocks of columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from runner.data.diagnostics import Fault, field_count_fault, named
from runner.data.dialect import Dialect
from runner.data.texts import ArrowTexts, PlainTexts, Texts
from runner.errors import DataError

BLOCK_ROWS = 65_536
"""Rows of one block of the strict reader."""

LARGE = 2**24
"""Bytes of a text from which pyarrow divides it into cells, seven times as fast as Python's own reader."""

_BLOCK_BYTES = 2**23


@dataclass
class Cells:
    """A text table: its records, without those that have the wrong number of fields, which are noted as faults."""

    path: str
    data: bytes
    """The text in UTF-8."""
    dialect: Dialect
    faults: list[Fault] = field(default_factory=list)

    def records(self) -> Iterator[tuple[int, list[str]]]:
        """Yield every record with the number of its last line, from 1; comments and blank lines at the end are skipped."""
        skipped, comment = self.dialect.skipped, self.dialect.comment
        source = io.TextIOWrapper(io.BytesIO(self.data.rstrip()), "utf-8", newline="")
        for _ in range(skipped):
            source.readline()
        # A comment becomes an empty line, so that the reader counts it.
        lines = source if comment is None else ("\n" if line.startswith(comment) else line for line in source)
        reader = csv.reader(lines, delimiter=self.dialect.delimiter, strict=True)
        try:
            for record in reader:
                if record or comment is None:
                    yield reader.line_num + skipped, record
        except csv.Error as error:
            raise DataError(
                f"`data.path` must be a table of text, but {named(self.path)} cannot be parsed at line "
                f"{reader.line_num + skipped} ({error}); close every quote, and double quotes inside a field"
            ) from None

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the records below header and units."""
        records = self.records()
        for _ in range(self.dialect.header + self.dialect.units):
            next(records, None)
        return records

    def blocks(self, columns: int, markers: frozenset[str]) -> Iterator[list[Texts]]:
        """Yield the cells of some rows after the other, by column. `markers` are cells that stand for a missing value."""
        self.faults.clear()
        if self._divided_by_pyarrow():
            return ([ArrowTexts(cells, markers) for cells in block] for block in self._arrow_blocks(columns))
        return ([PlainTexts(cells, markers) for cells in block] for block in self._strict_blocks(columns))

    def line(self, row: int, columns: int) -> int:
        """Return the number of the line where a row, from 0, ends."""
        complete = (line for line, record in self.rows() if len(record) == columns)
        for _ in range(row):
            next(complete)
        return next(complete)

    def _strict_blocks(self, columns: int) -> Iterator[list[Sequence[str]]]:
        cells: list[str] = []  # row after row: one flat list is faster than one per row
        for line, record in self.rows():
            if len(record) != columns:
                self.faults.append(field_count_fault(line, record, columns))
                continue
            cells += record
            if len(cells) == BLOCK_ROWS * columns:
                yield [cells[i::columns] for i in range(columns)]
                cells = []
        if cells:
            yield [cells[i::columns] for i in range(columns)]

    def _divided_by_pyarrow(self) -> bool:
        # An odd number of quotes is a fault, or a quote inside a field, which pyarrow reads in its own way.
        plain = self.dialect.comment is None and len(self.data) >= LARGE and self.data.count(b'"') % 2 == 0
        try:
            import pyarrow.csv  # noqa: F401
        except ImportError:
            return False
        return plain

    def _arrow_blocks(self, columns: int) -> Iterator[list[Any]]:
        import pyarrow as pa
        import pyarrow.csv as pv

        names = [str(i) for i in range(columns)]
        ragged = False

        def note(row: Any) -> str:
            nonlocal ragged
            ragged = True
            return "skip"

        skipped = self.dialect.skipped + self.dialect.header + self.dialect.units
        with pv.open_csv(
            pa.BufferReader(self.data),
            read_options=pv.ReadOptions(
                use_threads=False,
                block_size=_BLOCK_BYTES,
                column_names=names,
                skip_rows_after_names=0,
                skip_rows=skipped,
            ),
            parse_options=pv.ParseOptions(
                delimiter=self.dialect.delimiter, newlines_in_values=b'"' in self.data, invalid_row_handler=note
            ),
            convert_options=pv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        ) as reader:
            for batch in reader:
                yield list(batch.columns)
        if ragged:  # found again with their lines
            self.faults += [
                field_count_fault(line, record, columns) for line, record in self.rows() if len(record) != columns
            ]
