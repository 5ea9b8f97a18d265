"""How a text table is written: encoding, lines before the header, delimiter, decimal sign, header and units.

What is not set is detected from the first lines, and reported.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

from runner.config import schema as c
from runner.data.diagnostics import NUMBER, named, shown
from runner.errors import DataError

SAMPLE_LINES = 100
"""Number of lines from which a dialect is detected."""

SAMPLE_BYTES = 2**20
"""Number of bytes that these lines may have."""

_NOT_IN_WINDOWS = (b"\x81", b"\x8d", b"\x8f", b"\x90", b"\x9d")
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_COMMENTS = ("#", "%")
_COMMA_NUMBER = re.compile(r"[+-]?([0-9]+(,[0-9]*)?|,[0-9]+)([eE][+-]?[0-9]+)?")
_MISSING = re.compile(r"|[+-]?nan|n/?a|<na>|#n/a|null|none|nil|-|\?|\.", re.IGNORECASE)


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
        return Form(config.delimiter, config.decimal, config.encoding, config.comment, config.skip_rows, config.header)


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
    units: bool
    """Whether the record below the header has their units."""
    notes: tuple[str, ...]
    """What was detected and is not the default, as phrases."""

    def noting(self, notes: tuple[str, ...]) -> Dialect:
        """Return the dialect with more notes in front."""
        return replace(self, notes=(*notes, *self.notes))


def as_utf8(path: str, data: bytes, encoding: str | None) -> tuple[bytes, tuple[str, ...]]:
    """Return the text of a file as UTF-8 without a byte order mark, and what was detected as a phrase.

    Without an encoding it is UTF-16 after its byte order mark, else UTF-8, else Windows' superset of Latin-1. Raises
    `DataError` for bytes that are no text.
    """
    marked = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    chosen = encoding or ("utf-16" if marked else "utf-8")
    if b"\0" in data and not chosen.lower().startswith("utf-16"):
        raise DataError(f"`data.path` must be text, but {named(path)} is UTF-16 or binary; save it as UTF-8")
    try:
        if chosen.lower() in ("utf-8", "utf8"):
            data = data.removeprefix(b"\xef\xbb\xbf")
            data.decode()
            return data, ()
        return data.decode(chosen).encode(), (f"encoding {chosen}",) if encoding is None else ()
    except LookupError:
        raise DataError(
            f"`data.encoding` must be the name of an encoding, got {shown(chosen)}; use utf-8 or cp1252"
        ) from None
    except UnicodeDecodeError as error:
        if encoding is None and not marked:
            return _windows(data)
        line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start]
        raise DataError(
            f"`data.encoding` must fit {named(path)}, but line {line} has the byte 0x{byte:02x}, which is not in {chosen}; "
            "use another encoding"
        ) from None


def _windows(data: bytes) -> tuple[bytes, tuple[str, ...]]:
    # Five bytes are no character in Windows' encoding, and every byte is one in Latin-1.
    encoding = "latin-1" if any(byte in data for byte in _NOT_IN_WINDOWS) else "cp1252"
    return data.decode(encoding).encode(), (f"encoding {encoding}",)


def detect(data: bytes, form: Form) -> Dialect:
    """Return how a text is written: what the configuration says, and the rest from its first lines."""
    lines = _first_lines(data)
    skipped, comment = form.skip_rows, form.comment
    notes: list[str] = []
    if comment is None and skipped == 0:
        comments = next((sign for sign in _COMMENTS if lines and lines[0].startswith(sign)), None)
        while comments and skipped < len(lines) and lines[skipped].startswith(comments):
            skipped += 1
        # A header may begin with the sign itself, as gnuplot's and numpy's do: then the lines below have as many fields.
        if comments and skipped:
            notes.append(f"{skipped} comment line{'s' if skipped > 1 else ''}")
    body = [line for line in lines[skipped:] if not (comment and line.startswith(comment))]
    delimiter = form.delimiter or _delimiter(body)
    if form.delimiter is None and delimiter != ",":
        notes.append(f"delimiter {_DELIMITERS[delimiter]}")
    records = list(csv.reader(body, delimiter=delimiter))
    decimal = form.decimal or _decimal(records, delimiter)
    if form.decimal is None and decimal != ".":
        notes.append("decimal comma")
    numbers = [[_is_number(cell, decimal) for cell in record] for record in records]
    header = form.header if form.header is not None else not (numbers and numbers[0] and all(numbers[0]))
    if not header and form.header is None:
        notes.append("no header")
    units = header and _has_units(records, numbers)
    if units:
        notes.append("a row of units")
    return Dialect(skipped, comment, delimiter, decimal, header, units, tuple(notes))


def _first_lines(data: bytes) -> list[str]:
    source = io.TextIOWrapper(io.BytesIO(data[:SAMPLE_BYTES]), "utf-8", errors="ignore", newline="")
    return [line.rstrip("\r\n") for line in islice(source, SAMPLE_LINES)]


def _delimiter(lines: Sequence[str]) -> str:
    """Return the delimiter that gives most records as many fields as the first one, and of those the one with most fields."""

    def score(sign: str) -> tuple[float, int]:
        counts = [len(record) for record in csv.reader(lines, delimiter=sign)]
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
    commas = sum("," in cell and _COMMA_NUMBER.fullmatch(cell) is not None for cell in cells)
    points = sum("." in cell and NUMBER.fullmatch(cell) is not None for cell in cells)
    return "," if commas > points else "."


def _is_number(cell: str, decimal: str) -> bool:
    return (NUMBER if decimal == "." else _COMMA_NUMBER).fullmatch(cell.strip()) is not None


def _has_units(records: Sequence[Sequence[str]], numbers: Sequence[Sequence[bool]]) -> bool:
    """Return whether the second record has no number, although its columns have numbers below it."""
    if len(records) < 4 or not "".join(records[1]).strip() or len(records[1]) != len(records[0]):
        return False
    rest = [row for row in numbers[2:] if len(row) == len(records[0])]
    numeric = [column for column in range(len(records[0])) if rest and all(row[column] for row in rest)]
    texts = [records[1][column].strip() for column in numeric]
    # A missing value in the first row is no unit.
    return (
        bool(numeric) and not any(numbers[1][column] for column in numeric) and not all(map(_MISSING.fullmatch, texts))
    )
