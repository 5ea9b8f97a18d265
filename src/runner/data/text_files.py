"""Tables of text: the form is detected, and every column becomes what its cells are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from runner.data.cells import Cells, OtherCells
from runner.data.diagnostics import (
    Fault,
    listed,
    named,
    no_row_fits,
    raise_problems,
    refuse_odd_header,
    refuse_other_formats,
)
from runner.data.dialect import Form, detect
from runner.data.files import File
from runner.data.kinds import Column, ColumnReader, Rules, unusable, usable
from runner.data.text import examine
from runner.errors import DataError


class TextSource:
    """Text files that together are one table; all have the same columns."""

    def __init__(self, path: str, files: Sequence[File], form: Form) -> None:
        self.path = path
        self.warnings: list[str] = []
        digest = hashlib.sha256()
        opened = [_opened(file, form, digest) for file in files]
        self.sha256 = digest.hexdigest()
        self._files = [cells for cells, _ in opened]
        self.names, self.notes = opened[0][1], list(self._files[0].dialect.notes)
        for cells, names in opened[1:]:
            if names != self.names:
                raise DataError(
                    f"`data.path` must match files with the same columns, but {named(cells.path)} has {listed(names)} and "
                    f"{named(self._files[0].path)} has {listed(self.names)}; give one of them"
                )
        if len(opened) > 1:
            self.notes.insert(0, f"{len(opened)} files")
        self._rows: list[int] = []
        """Number of rows of each file."""

    def read(self, places: Mapping[str, int], rules: Rules) -> dict[str, Column]:
        """Return the columns at these places by name. Raises `DataError` for cells and rows that cannot be used."""
        try:
            readers = self._first_pass(places, rules, guess=True)
        except OtherCells:
            readers = self._first_pass(places, rules, guess=False)
        again = [reader for reader in readers if reader.again()]
        if again:
            self._pass(again, places, rules)
        for cells in self._files:
            cells.text.file.require_unchanged()
        columns = {reader.name: rules.allowed(reader.column()) for reader in readers}
        self._refuse(unusable(self.path, columns), [reader for reader in readers if reader.numeric])
        self.warnings += [warning for reader in readers for warning in reader.warnings()]
        return usable(columns)

    def places(self, rows: Sequence[int]) -> list[str]:
        """Return the lines where some rows, from 0 and in ascending order, end, and their files where there are several."""
        several = len(self._files) > 1
        return [
            f"line {line} of {named(cells.path)}" if several else f"line {line}"
            for cells, own in self._by_file(rows)
            for line in cells.lines(own, len(self.names))
        ]

    def _by_file(self, rows: Sequence[int]) -> Iterator[tuple[Cells, list[int]]]:
        """Yield each file with those of some rows that are its own, counted from its first one."""
        first = 0
        for cells, count in zip(self._files, self._rows, strict=True):
            yield cells, [row - first for row in rows if first <= row < first + count]
            first += count

    def _first_pass(self, places: Mapping[str, int], rules: Rules, guess: bool) -> list[ColumnReader]:
        # A row has a line of its own, and a sign after each of its cells.
        rows = sum(min(cells.text.lines, cells.text.size // len(self.names) + 1) for cells in self._files)
        readers = [ColumnReader(name, rules.is_categorical(name), rows) for name in places]
        self._pass(readers, places, rules, guess)
        return readers

    def _pass(
        self, readers: Sequence[ColumnReader], places: Mapping[str, int], rules: Rules, guess: bool = False
    ) -> None:
        """Give all cells of all files to the readers of some columns."""
        wanted = [places[reader.name] for reader in readers]
        guessed = {places[reader.name] for reader in readers if guess and not reader.categorical}
        self._rows = []
        lines = sum(cells.text.lines for cells in self._files)
        for cells in self._files:
            rows = 0
            for block in cells.blocks(len(self.names), wanted, rules.markers, guessed):
                for reader, texts in zip(readers, block, strict=True):
                    reader.add(texts, cells.dialect.decimal)
                rows += len(block[0])
                cells.text.file.progress.at(f"{sum(self._rows) + rows:,} of about {lines:,} rows")
            self._rows.append(rows)

    def _refuse(self, problems: Sequence[str], readers: Sequence[ColumnReader]) -> None:
        """Raise `DataError` for problems, rows of the wrong length, a table without rows, and cells of columns of numbers."""
        if not sum(self._rows) + sum(cells.faulty for cells in self._files):
            raise DataError(f"`data.path` must have rows, got a header and 0 rows in {named(self.path)}; add rows")
        first = 0
        for cells, count in zip(self._files, self._rows, strict=True):
            own = [
                (row - first, reader.name, text, values)
                for reader in readers
                for row, text, values in reader.faults()
                if first <= row < first + count
            ]
            rows = sorted({row for row, _, _, _ in own})
            lines = dict(zip(rows, cells.lines(rows, len(self.names)), strict=True))
            faults = cells.faults + [Fault(lines[row], name, text, values) for row, name, text, values in own]
            more = cells.faulty - len(cells.faults)
            more += sum(reader.bad - len(reader.first_bad) for reader in readers if len(reader.faults()) > 1)
            if not count and cells.faulty > 1:
                raise_problems(cells.path, [*problems, no_row_fits(cells.path, len(self.names))], (), "line")
            raise_problems(cells.path, problems, faults, "line", more if faults else 0)
            first += count


def _opened(file: File, form: Form, digest: Any) -> tuple[Cells, list[str]]:
    """Return the cells of a text and the names of its columns. The bytes of the file are added to the digest."""
    refuse_other_formats(file.path, next(file.chunks(), b"")[:16])
    text = examine(file, form.encoding, digest)
    cells = Cells(text, detect(text, form))
    header = next((record for _, record in cells.records()), None)
    if header is None:
        raise DataError(f"`data.path` must have a header and rows, but {named(file.path)} is empty; use another file")
    refuse_odd_header(file.path, header, cells.dialect.delimiter)
    if not cells.dialect.header:
        return cells, [f"column_{i + 1}" for i in range(len(header))]
    return cells, [name.strip() for name in [header[0].removeprefix(cells.dialect.header_sign), *header[1:]]]
