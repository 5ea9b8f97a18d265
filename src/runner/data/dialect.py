"""How a text table is written: encoding, lines before the header, delimiter, decimal sign, header and units.

What is not set is detected from the first lines, and reported.
"""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, takewhile

from runner.config import schema as c
from runner.data.diagnostics import NUMBERS, shown
from runner.data.text import Text

SAMPLE_LINES = 100
"""Number of lines from which a dialect is detected."""

SAMPLE_BYTES = 2**20
"""Number of bytes that these lines may have."""

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_COMMENTS = ("#", "%")
_SEPARATOR = re.compile(r'"?sep=.?"?', re.IGNORECASE)
"""The line with which a text says its delimiter to spreadsheets. That delimiter is detected as any other."""

_MISSING = re.compile(r"[+-]?nan|n/?a|<na>|#n/a|null|none|nil|-|\?|\.", re.IGNORECASE)


@dataclass(frozen=True)
class Form:
    """What the configuration says of the form of a text; None is to be detected."""

    delimiter: str | None = None
    decimal: str | None = None
    encoding: str | None = None
    comment: str | None = None
    skip_rows: int = 0
    header: bool | None = None

    @staticmethod
    def of(config: c.Csv) -> Form:
        """Return what `data=csv` says."""
        delimiter = "\t" if config.delimiter == "\\t" else config.delimiter
        return Form(delimiter, config.decimal, config.encoding, config.comment, config.skip_rows, config.header)


@dataclass(frozen=True)
class Dialect:
    """How the cells of a text stand in it."""

    skipped: int
    """Number of lines before the first record."""
    comment: str | None
    """Beginning of lines that are no records."""
    delimiter: str
    decimal: str
    header: bool
    """Whether the first record has the names of the columns."""
    header_sign: str
    """What stands in front of the first name."""
    units: bool
    """Whether the record below the header has their units."""
    notes: tuple[str, ...]
    """What was detected and is not the default, as phrases."""


def detect(text: Text, form: Form) -> Dialect:
    """Return how a text is written: what the configuration says, and the rest from its first lines."""
    lines = _first_lines(text.beginning(SAMPLE_BYTES))
    above = _comments_above(lines) if form.comment is None and form.skip_rows == 0 else 0
    skipped = form.skip_rows or above
    body = [line for line in lines[skipped:] if not (form.comment and line.startswith(form.comment))]
    delimiter = form.delimiter or _delimiter(body)
    sign = ""
    records = _records(body, delimiter)
    decimal = form.decimal or _decimal(records, delimiter)
    named = _has_header(records, decimal)
    header = named if form.header is None else form.header
    commented = above > 0 and not named and form.header is not False
    if commented and (sign := _header_sign(lines[above - 1], records, delimiter)):
        # A header may begin with the sign of a comment, as gnuplot's and numpy's do.
        above, skipped, header = above - 1, skipped - 1, True
        records = _records([lines[skipped]], delimiter) + records
    units = header and _has_units(records, decimal)
    found = {
        f"{above} comment line{'s' if above > 1 else ''}": above > 0,
        f"delimiter {_DELIMITERS.get(delimiter, shown(delimiter))}": form.delimiter is None and delimiter != ",",
        "decimal comma": form.decimal is None and decimal != ".",
        "no header": form.header is None and not header,
        "a row of units": units,
    }
    notes = tuple(note for note, noted in found.items() if noted)
    return Dialect(skipped, form.comment, delimiter, decimal, header, sign, units, (*text.notes, *notes))


def _comments_above(lines: Sequence[str]) -> int:
    """Return the number of comments above the first record; the line for spreadsheets is one."""
    if lines and _SEPARATOR.fullmatch(lines[0]):
        return 1
    sign = next((sign for sign in _COMMENTS if lines and lines[0].startswith(sign)), None)
    return 0 if sign is None else len(list(takewhile(lambda line: line.startswith(sign), lines)))


def _header_sign(comment: str, records: Sequence[Sequence[str]], delimiter: str) -> str:
    """Return the sign with which a comment begins if the rest of it are the names of the columns, else nothing."""
    names = next(iter(_records([comment[1:]], delimiter)), [])
    named = records and len(names) == len(records[0]) and all(name.strip() for name in names)
    return comment[0] if named and not any(NUMBERS["."].fullmatch(name.strip()) for name in names) else ""


def _first_lines(data: bytes) -> list[str]:
    source = io.TextIOWrapper(io.BytesIO(data), "utf-8", errors="ignore", newline="")
    lines = [line.rstrip("\r\n") for line in islice(source, SAMPLE_LINES)]
    whole = len(data) < SAMPLE_BYTES or len(lines) == SAMPLE_LINES
    return lines if whole or len(lines) < 2 else lines[:-1]


def _records(lines: Sequence[str], delimiter: str) -> list[list[str]]:
    """Return the records of some lines, up to one that cannot be parsed."""
    records: list[list[str]] = []
    with contextlib.suppress(csv.Error):  # named with its line where all records are read
        records.extend(csv.reader(lines, delimiter=delimiter))
    return records


def _delimiter(lines: Sequence[str]) -> str:
    """Return the delimiter that gives most records as many fields as the first one, and of those the one with most fields."""

    def score(sign: str) -> tuple[float, int]:
        counts = [len(record) for record in _records(lines, sign)]
        return (
            (sum(count == counts[0] for count in counts) / len(counts), counts[0])
            if counts and counts[0] > 1
            else (0.0, 0)
        )

    return max(_DELIMITERS, key=score) if lines else ","


def _decimal(records: Sequence[Sequence[str]], delimiter: str) -> str:
    if delimiter == ",":
        return "."
    cells = [cell.strip() for record in records[1:] for cell in record]
    counts = {sign: sum(sign in cell and _is_number(cell, sign) for cell in cells) for sign in NUMBERS}
    return "," if counts[","] > counts["."] else "."


def _is_number(cell: str, decimal: str) -> bool:
    return NUMBERS[decimal].fullmatch(cell.strip()) is not None


def _has_header(records: Sequence[Sequence[str]], decimal: str) -> bool:
    """Return whether the first record has names: not if it has a number wherever the others do, and no new text elsewhere."""
    first, others = records[0] if records else [], [record for record in records[1:] if len(record) == len(records[0])]
    if all(_is_number(cell, decimal) for cell in first):
        return not first
    columns = list(zip(*others, strict=True))
    numeric = [_mostly_numbers(column, decimal) for column in columns]
    if not any(numeric) or not all(_is_number(first[i], decimal) for i, number in enumerate(numeric) if number):
        return True
    return not all(first[i] in columns[i] for i, number in enumerate(numeric) if not number)


def _mostly_numbers(column: Sequence[str], decimal: str) -> bool:
    return 2 * sum(_is_number(cell, decimal) for cell in column) > len(column)


def _has_units(records: Sequence[Sequence[str]], decimal: str) -> bool:
    """Return whether the second record has no number, although its columns have numbers below it."""
    if len(records) < 4 or len(records[1]) != len(records[0]):
        return False
    columns = list(zip(*(record for record in records[2:] if len(record) == len(records[0])), strict=True))
    cells = [(cell.strip(), column) for cell, column in zip(records[1], columns, strict=False)]
    numeric = [all(_is_number(other, decimal) for other in column) for column in columns]
    units = [cell for (cell, _), number in zip(cells, numeric, strict=False) if number and cell]
    # A missing value in the first row is no unit, and a text that occurs again is a value.
    if not units or any(_is_number(unit, decimal) or _MISSING.fullmatch(unit) for unit in units):
        return False
    return not any(
        cell in column for (cell, column), number in zip(cells, numeric, strict=False) if not number and cell
    )
