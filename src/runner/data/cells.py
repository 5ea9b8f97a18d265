"""The cells of a text table, in blocks of columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

from runner.data.diagnostics import MOST_SHOWN, NUMBERS, Fault, field_count_fault, named
from runner.data.dialect import Dialect
from runner.data.text import LONGEST_LINE, Text, divided_alike
from runner.data.texts import ArrowFloats, ArrowTexts, PlainTexts, Texts
from runner.errors import DataError

BLOCK_CELLS = 2**20
"""Cells of one block, at least one row. A block takes a fixed time for each column, so that the few rows of a wide table are one."""

BLOCK_ROWS = 1000
"""Rows that are a block of pyarrow in any case."""

LARGE = 2**24
"""Bytes of a text from which pyarrow divides it into cells, several times as fast as Python's own reader."""

WIDE = LONGEST_LINE // 16
"""Bytes of a mean line from which Python's own reader is the faster one: pyarrow takes a fixed time for each column of its few lines."""

SAMPLE_ROWS = 100
"""Rows that show which columns look like floats."""


def _gathered(batches: Iterable[Any], columns: int) -> Iterator[Any]:
    """Yield batches of rows of pyarrow, small ones put together."""
    import pyarrow as pa

    small: list[Any] = []

    def together() -> Any:
        return small[0] if len(small) == 1 else pa.Table.from_batches(small).combine_chunks().to_batches()[0]

    for batch in batches:
        if len(batch):
            small.append(batch)
        rows = sum(map(len, small))
        if rows >= BLOCK_ROWS or rows * columns >= BLOCK_CELLS:
            yield together()
            small.clear()
    if small:
        yield together()


class OtherCells(Exception):
    """A column that looked like floats has another cell, which has to be read as text."""


@dataclass
class Cells:
    """A text table: its records, without those that have the wrong number of fields, which are noted as faults."""

    text: Text
    dialect: Dialect
    faults: list[Fault] = field(default_factory=list)
    """The first rows that have the wrong number of fields."""
    faulty: int = 0
    """Number of rows that have the wrong number of fields."""

    @property
    def path(self) -> str:
        """The path of the file."""
        return self.text.path

    def records(self) -> Iterator[tuple[int, list[str]]]:
        """Yield every record with the number of its last line, from 1; comments and blank lines at the end are skipped."""
        skipped, comment = self.dialect.skipped, self.dialect.comment
        with io.TextIOWrapper(self.text.open(), "utf-8", newline="") as source:
            for _ in range(skipped):
                source.readline()
            # A comment becomes an empty line, so that the reader counts it.
            lines = source if comment is None else ("\n" if line.startswith(comment) else line for line in source)
            reader = csv.reader(lines, delimiter=self.dialect.delimiter, strict=True)
            blank: list[tuple[int, list[str]]] = []
            try:
                for record in reader:
                    if len(record) < 2 and not "".join(record).strip():
                        if record or comment is None:
                            blank.append((reader.line_num + skipped, record))
                        continue
                    yield from blank
                    blank.clear()
                    yield reader.line_num + skipped, record
            except csv.Error as error:
                raise DataError(
                    f"`data.path` must be a table of text, but {named(self.path)} cannot be parsed at line "
                    f"{reader.line_num + skipped} ({error}); close every quote, and double quotes inside a field"
                ) from None

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the records below header and units."""
        return islice(self.records(), self.dialect.header + self.dialect.units, None)

    def blocks(
        self, columns: int, wanted: Sequence[int], markers: frozenset[str], guessed: Collection[int] = ()
    ) -> Iterator[list[Texts]]:
        """Yield the cells of some rows after the other, by column, for the columns of these numbers.

        `columns` is the number of all columns; `markers` are cells that stand for a missing value. Of the columns `guessed`,
        those that look like floats in the first rows may be read as such. Raises `OtherCells` if one has another cell.
        """
        self.faults.clear()
        self.faulty = 0
        if self._divided_by_pyarrow:
            return self._arrow_blocks(columns, wanted, markers, self._floats(columns, markers) & {*guessed})
        return ([PlainTexts(cells, markers) for cells in block] for block in self._strict_blocks(columns, wanted))

    def lines(self, rows: Sequence[int], columns: int) -> list[int]:
        """Return the numbers of the lines where some rows, from 0, end; the rows are in ascending order."""
        complete = (line for line, record in self.rows() if len(record) == columns)
        found, next_row = [], 0
        for row in rows:
            found.append(next(islice(complete, row - next_row, None)))
            next_row = row + 1
        return found

    def _strict_blocks(self, columns: int, wanted: Sequence[int]) -> Iterator[list[Sequence[str]]]:
        cells: list[str] = []  # row after row: one flat list is faster than one per row
        full = max(BLOCK_CELLS // columns, 1) * columns
        for line, record in self.rows():
            if len(record) != columns:
                self._note_fault(line, record, columns)
                continue
            cells += record
            if len(cells) == full:
                yield [cells[i::columns] for i in wanted]
                cells = []
        if cells:
            yield [cells[i::columns] for i in wanted]

    def _note_fault(self, line: int, record: list[str], columns: int) -> None:
        self.faulty += 1
        if len(self.faults) < MOST_SHOWN:
            self.faults.append(field_count_fault(line, record, columns))

    @cached_property
    def _divided_by_pyarrow(self) -> bool:
        small, wide = self.text.size < LARGE, self.text.size > WIDE * self.text.lines
        if small or wide or self.dialect.comment is not None or len(self.dialect.delimiter.encode()) > 1:
            return False
        try:
            import pyarrow.csv  # noqa: F401
        except ImportError:
            return False
        return divided_alike(self.text, self.dialect.delimiter)

    def _floats(self, columns: int, markers: frozenset[str]) -> set[int]:
        """Return the columns whose first cells are numbers or missing, and at least one a fraction."""
        sample = [record for _, record in islice(self.rows(), SAMPLE_ROWS) if len(record) == columns]
        number = NUMBERS[self.dialect.decimal].fullmatch
        floats = set()
        for place, column in enumerate(zip(*sample, strict=True)):
            present = [cell for cell in column if cell not in markers]
            if all(map(number, present)) and any(self.dialect.decimal in cell for cell in present):
                floats.add(place)
        return floats

    def _arrow_blocks(
        self, columns: int, wanted: Sequence[int], markers: frozenset[str], floats: set[int]
    ) -> Iterator[list[Texts]]:
        import pyarrow as pa
        import pyarrow.csv as pv

        names = [str(i) for i in range(columns)]
        ragged = False

        def note(row: Any) -> str:
            nonlocal ragged
            ragged = True
            return "skip"

        above = self.dialect.header + self.dialect.units
        line = next(islice(self.records(), above - 1, None))[0] if above else self.dialect.skipped
        try:
            with (
                self.text.open() as source,
                pv.open_csv(
                    source,
                    read_options=pv.ReadOptions(
                        use_threads=False, block_size=LONGEST_LINE, column_names=names, skip_rows=line
                    ),
                    parse_options=pv.ParseOptions(
                        delimiter=self.dialect.delimiter, newlines_in_values=True, invalid_row_handler=note
                    ),
                    convert_options=pv.ConvertOptions(
                        column_types={names[i]: pa.float64() if i in floats else pa.string() for i in wanted},
                        include_columns=[names[i] for i in wanted],
                        null_values=sorted(markers),
                        strings_can_be_null=False,
                        decimal_point=self.dialect.decimal,
                    ),
                ) as reader,
            ):
                for batch in _gathered(reader, columns):
                    columns_read = zip(wanted, batch.columns, strict=True)
                    yield [self._texts(cells, markers, place in floats) for place, cells in columns_read]
        except pa.ArrowInvalid as error:
            if floats:
                raise OtherCells from None
            self._parse_strictly()
            reason = str(error).partition("\n")[0].rstrip(".")
            raise DataError(
                f"`data.path` must be a table of text, but {named(self.path)} cannot be divided into cells ({reason}); "
                "shorten its longest line"
            ) from None
        if ragged:  # found again with their lines
            for line, record in self.rows():
                if len(record) != columns:
                    self._note_fault(line, record, columns)

    def _texts(self, cells: Any, markers: frozenset[str], are_floats: bool) -> Texts:
        """Return cells as pyarrow has read them. Raises `OtherCells`, or `DataError` if one is too long."""
        import pyarrow.compute as pc

        if are_floats:
            numbers = ArrowFloats(cells)
            if not numbers.plain:
                raise OtherCells
            return numbers
        if (pc.max(pc.binary_length(cells)).as_py() or 0) > csv.field_size_limit():
            self._parse_strictly()
        return ArrowTexts(cells, markers)

    def _parse_strictly(self) -> None:
        """Raise `DataError` with the line that cannot be parsed, if there is one."""
        for _ in self.records():
            pass
