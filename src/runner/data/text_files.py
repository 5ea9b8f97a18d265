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
from runner.data.kinds import Block, Column, ColumnReader, KindReader, Rules, add_block, unusable, usable
from runner.data.text import examine
from runner.data.texts import Texts
from runner.errors import DataError


class TextSource:
    """Text files that together are one table; all have the same columns."""

    def __init__(self, path: str, files: Sequence[File], form: Form, least_columns: int = 2) -> None:
        self.path = path
        self.warnings: list[str] = []
        digest = hashlib.sha256()
        opened = [_opened(file, form, digest, least_columns) for file in files]
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

    def blocks(
        self, places: Mapping[str, int], kinds: Mapping[str, str], kept: Sequence[str], markers: frozenset[str]
    ) -> Iterator[Block]:
        """Yield all rows in blocks: columns of known kinds, and columns as they stand in the files, at these places by name.

        Nothing is yielded after a cell or row that cannot be used, and all of those are in the `DataError` at the end.
        """
        readers = [KindReader(name, kind) for name, kind in kinds.items()]
        self._rows = []
        for cells in self._files:
            self._rows.append(0)
            for texts in self._file_blocks(cells, places, readers, kept, markers):
                columns = {reader.name: reader.read(texts[reader.name], cells.dialect.decimal) for reader in readers}
                block = Block(columns, {name: texts[name].cells for name in kept})
                self._rows[-1] += len(block)
                cells.text.file.progress.at(f"{sum(self._rows):,} rows")
                if not any(reader.bad for reader in readers) and not any(file.faulty for file in self._files):
                    yield block
        for cells in self._files:
            cells.text.file.require_unchanged()
        self._refuse((), readers)

    def _file_blocks(
        self,
        cells: Cells,
        places: Mapping[str, int],
        readers: Sequence[KindReader],
        kept: Sequence[str],
        markers: frozenset[str],
    ) -> Iterator[dict[str, Texts]]:
        """Yield the cells of some columns of one file, block after block."""
        names = list(dict.fromkeys((*(reader.name for reader in readers), *kept)))
        wanted = [places[name] for name in names]
        guessed = {places[reader.name] for reader in readers if reader.kind == "number" and reader.name not in kept}
        done = 0
        try:
            for block in cells.blocks(len(self.names), wanted, markers, guessed):
                yield dict(zip(names, block, strict=True))
                done += len(block[0])
        except OtherCells:  # the rows so far are the same without a guess
            for block in cells.blocks(len(self.names), wanted, markers):
                if len(block[0]) > done:
                    yield dict(zip(names, (texts.below(done) for texts in block), strict=True))
                done = max(done - len(block[0]), 0)

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
                add_block(readers, block, cells.dialect.decimal)
                rows += len(block[0])
                cells.text.file.progress.at(f"{sum(self._rows) + rows:,} of about {lines:,} rows")
            self._rows.append(rows)

    def _refuse(self, problems: Sequence[str], readers: Sequence[ColumnReader | KindReader]) -> None:
        """Raise `DataError` for problems, rows of the wrong length, a table without rows, and cells of columns of numbers."""
        if not sum(self._rows) + sum(cells.faulty for cells in self._files):
            raise DataError(f"`data.path` must have rows, got a header and 0 rows in {named(self.path)}; add rows")
        first = 0
        for cells, count in zip(self._files, self._rows, strict=True):
            own = [
                (row - first, reader, text, values)
                for reader in readers
                for row, text, values in reader.faults()
                if first <= row < first + count
            ]
            rows = sorted({row for row, _, _, _ in own})
            lines = dict(zip(rows, cells.lines(rows, len(self.names)), strict=True))
            faults = cells.faults + [
                Fault(lines[row], reader.name, text, values, reader.kind) for row, reader, text, values in own
            ]
            more = cells.faulty - len(cells.faults)
            more += sum(reader.bad - len(reader.first_bad) for reader in readers if len(reader.faults()) > 1)
            if not count and cells.faulty > 1:
                raise_problems(cells.path, [*problems, no_row_fits(cells.path, len(self.names))], (), "line")
            raise_problems(cells.path, problems, faults, "line", more if faults else 0)
            first += count


def _opened(file: File, form: Form, digest: Any, least_columns: int) -> tuple[Cells, list[str]]:
    """Return the cells of a text and the names of its columns. The bytes of the file are added to the digest."""
    refuse_other_formats(file.path, next(file.chunks(), b"")[:16])
    text = examine(file, form.encoding, digest)
    cells = Cells(text, detect(text, form))
    header = next((record for _, record in cells.records()), None)
    if header is None and text.size and form.skip_rows:
        raise DataError(
            f"`data.skip_rows` must leave a header and rows of {named(file.path)}, got {form.skip_rows}; skip fewer lines"
        )
    if header is None:
        raise DataError(f"`data.path` must have a header and rows, but {named(file.path)} is empty; use another file")
    refuse_odd_header(file.path, header, cells.dialect.delimiter, least_columns)
    if not cells.dialect.header:
        return cells, [f"column_{i + 1}" for i in range(len(header))]
    return cells, [name.strip() for name in [header[0].removeprefix(cells.dialect.header_sign), *header[1:]]]
