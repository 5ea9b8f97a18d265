"""Tables of text: the form is detected, every column is read as numbers, and columns of other cells again as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runner.data.cells import Cells
from runner.data.diagnostics import (
    Fault,
    listed,
    named,
    raise_problems,
    refuse_odd_header,
    refuse_other_formats,
    shown,
)
from runner.data.dialect import Form, as_utf8, detect
from runner.data.kinds import Column, NumberPass, Rules, TextPass
from runner.errors import DataError


class TextSource:
    """Text files that together are one table; all have the same columns."""

    def __init__(self, path: str, contents: Mapping[str, bytes], form: Form) -> None:
        self.path, self.contents = path, contents
        self.warnings: list[str] = []
        opened = [_opened(file, data, form) for file, data in contents.items()]
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

    def read(self, names: Sequence[str], rules: Rules) -> Mapping[str, Column]:
        """Return these columns. Raises `DataError` for cells and rows that cannot be used."""
        decimal = self._files[0].dialect.decimal
        categorical = set(rules.categorical or ())
        numbers = {name: NumberPass(name, decimal) for name in names if name not in categorical}
        self._pass(numbers, rules)
        numeric = {name for name, column in numbers.items() if column.numeric or rules.categorical is not None}
        self._refuse([numbers[name] for name in names if name in numeric])
        texts = {name: TextPass(name) for name in names if name not in numeric}
        if texts:
            self._pass(texts, rules)
        self.warnings += [
            f"`data.features`: {shown(name)} has values such as {shown(zeros)}, whose zero in front is lost; add it to "
            "`data.categorical` or `data.drop` if they are identifiers"
            for name in names
            if name in numeric and (zeros := numbers[name].zeros_first)
        ]
        return self._columns(names, numbers, texts, categorical)

    def place(self, row: int) -> str:
        """Return the line where a row, from 0, ends, and its file where there are several."""
        for cells, rows in zip(self._files, self._rows, strict=True):
            if row < rows:
                line = f"line {cells.line(row, len(self.names))}"
                return line if len(self._files) == 1 else f"{line} of {named(cells.path)}"
            row -= rows
        raise IndexError(row)

    def _pass(self, columns: Mapping[str, NumberPass] | Mapping[str, TextPass], rules: Rules) -> None:
        """Give all cells of all files to the readers of some columns."""
        positions = {name: place for place, name in enumerate(self.names)}
        self._rows = []
        for cells in self._files:
            rows = 0
            for block in cells.blocks(len(self.names), rules.markers):
                for name, column in columns.items():
                    column.add(block[positions[name]])
                rows += len(block[0])
            self._rows.append(rows)

    def _refuse(self, columns: Sequence[NumberPass]) -> None:
        """Raise `DataError` for rows of the wrong length, for a table without rows, and for cells of these columns."""
        if not sum(self._rows) + sum(len(cells.faults) for cells in self._files):
            raise DataError(f"`data.path` must have rows, got a header and 0 rows in {named(self.path)}; add rows")
        first = 0
        for cells, rows in zip(self._files, self._rows, strict=True):
            faults = list(cells.faults)
            more = 0
            for column in columns:
                bad = [(row - first, text) for row, text in column.first_bad if first <= row < first + rows]
                faults += [Fault(cells.line(row, len(self.names)), column.name, text) for row, text in bad]
                more += column.bad - len(column.first_bad) if bad else 0
            raise_problems(cells.path, (), faults, "line", more)
            first += rows

    def _columns(
        self,
        names: Sequence[str],
        numbers: Mapping[str, NumberPass],
        texts: Mapping[str, TextPass],
        categorical: set[str],
    ) -> dict[str, Column]:
        read = {
            name: texts[name].column(name in categorical) if name in texts else numbers[name].column() for name in names
        }
        raise_problems(
            self.path,
            [
                f"`data.features`: column {shown(name)} of {named(self.path)} {column}"
                for name, column in read.items()
                if isinstance(column, str)
            ],
            (),
            "",
        )
        return {name: column for name, column in read.items() if not isinstance(column, str)}


def _opened(path: str, data: bytes, form: Form) -> tuple[Cells, list[str]]:
    """Return the cells of a text and the names of its columns."""
    refuse_other_formats(path, data[:16])
    text, notes = as_utf8(path, data, form.encoding)
    dialect = detect(text, form)
    cells = Cells(path, text, dialect)
    header = next((record for _, record in cells.records()), None)
    if header is None:
        raise DataError(f"`data.path` must have a header and rows, but {named(path)} is empty; use another file")
    refuse_odd_header(path, header)
    names = [name.strip() for name in header] if dialect.header else [f"column_{i + 1}" for i in range(len(header))]
    return Cells(path, text, dialect.noting(notes)), names
