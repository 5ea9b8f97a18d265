"""Error messages for tables: each problem once, with its place, the requirement, the value found and the remedy."""

from __future__ import annotations

import difflib
import heapq
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from runner.config import validation
from runner.errors import DataError

EXACT_INTEGER = 2**53
"""Largest integer up to which float64 represents every integer."""

NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
"""Accepted spelling of a number. Others that Python accepts (1_000, nan, digits of other scripts) are refused."""

_MOST_SHOWN = 10  # further problems or names are only counted
_MOST_COMPARED = 1000  # names that are compared with a misspelled one
_MISREADINGS = tuple(
    (re.compile(pattern, re.IGNORECASE), problem)
    for pattern, problem in (
        (
            r"|[+-]?nan|n/?a|<na>|#n/a|null|none|nil|-|\?|\.",
            "a missing value; remove or fill such rows first",
        ),
        (r"[+-]?inf(inity)?", "not finite; remove or fill such rows first"),
        (r"true|false|yes|no", "a truth value; use 1 and 0"),
        (r"[+-]?0x[0-9a-f]+", "hexadecimal; use decimal"),
        (r"[+-]?[0-9.,]+ *%", "a percentage; use a fraction without the sign"),
        (
            r"([0-9]{4}([-/.])[0-9]{1,2}\2[0-9]{1,2}|[0-9]{1,2}([-/.])[0-9]{1,2}\3[0-9]{2,4})([ T].*)?",
            "a date; use a number, such as days since a start",
        ),
        (r"[+-]?[0-9.,]*,[0-9.,e+-]*", "a number with a comma; write 1000 for a thousand and 0.5 for a half"),
        (r"[+-]?[0-9_]+(\.[0-9_]*)?", "a number with underscores; remove them"),
    )
)
_OTHER_FORMATS = (  # file name suffixes, first bytes, description with remedy
    ((".xlsx", ".xlsm", ".xls", ".ods"), (b"\xd0\xcf\x11\xe0",), "is a spreadsheet; save its sheet as CSV"),
    ((".parquet",), (b"PAR1\x15",), "is a Parquet file; read it with data=parquet"),
    (
        (".zip", ".7z", ".rar"),
        (b"PK\x03\x04", b"7z\xbc\xaf", b"Rar!"),
        "is an archive; unpack it first (a spreadsheet: save its sheet as CSV)",
    ),
)
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


class Fault(NamedTuple):
    """One unusable cell, or one unusable row where `column` is None."""

    row: int
    """Line or row number as the user counts it."""
    column: str | None
    text: str
    """Content of the cell; for a row, the requirement, the finding and the remedy."""
    values: int = 1
    """Number of cells that it stands for; more than 1 means the whole column."""


class UnknownColumn(NamedTuple):
    """A name of `data.features` or `data.target` that is not among the columns. Its text is the message."""

    path: str
    key: str
    name: str
    columns: Sequence[str]

    def __str__(self) -> str:
        wanted = _folded(self.name)
        same = [column for column in self.columns if _folded(column) == wanted]
        matcher = difflib.SequenceMatcher(b=wanted)

        def distance(column: str) -> float:
            matcher.set_seq1(_folded(column))
            return -matcher.ratio()

        nearest = sorted(self.columns[:_MOST_COMPARED], key=distance)
        hint = " (case and spaces matter)" if same else ""
        columns = list(dict.fromkeys((*same, *nearest, *self.columns)))
        return f"`{self.key}` must name a column of {named(self.path)}, got {shown(self.name)}; the columns are {listed(columns)}{hint}"  # fmt: skip


Problem: TypeAlias = "str | UnknownColumn"
"""A problem of a table. Its text is made when it is shown, which takes long and is needed for the first ones only."""


def _folded(name: str) -> str:
    return name[:100].strip().casefold()


def number_problem(cell: str) -> str | None:
    """Return what a cell is and the remedy, or None if it is a finite number that float64 can represent."""
    text = cell.strip(" \t")
    if not NUMBER.fullmatch(text):
        # A long cell is text in any case, and some of these patterns take quadratic time.
        matching = (problem for pattern, problem in _MISREADINGS if len(text) <= 100 and pattern.fullmatch(text))
        return next(matching, "text; use a number, or exclude the column from `data.features`")
    size = abs(float(text))
    if size == float("inf"):
        return "beyond the largest float64, 1.8e308; use a larger unit"
    digits = text.lstrip("+-0")
    if size >= EXACT_INTEGER and digits.isdigit() and int(digits) > EXACT_INTEGER:
        return "an integer beyond 2**53, which is not exact in float64; use a larger unit or subtract an offset"
    return None


def refuse_other_formats(path: str, beginning: bytes) -> None:
    """Raise `DataError` if a file is not text, with its format as its name and first bytes show it."""
    for suffixes, beginnings, description in _OTHER_FORMATS:
        if path.lower().endswith(suffixes) or beginning.startswith(beginnings):
            raise DataError(f"`data.path` must be comma-separated text, but {named(path)} {description}")


def refuse_binary(path: str, data: bytes) -> None:
    """Raise `DataError` if a piece of a file cannot be UTF-8 text because it has zero bytes."""
    if b"\0" in data:
        raise DataError(f"`data.path` must be UTF-8 text, but {named(path)} is UTF-16 or binary; save it as UTF-8")


def refuse_other_encodings(path: str, data: bytes) -> None:
    """Raise `DataError` if the content of a file is not UTF-8 text."""
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"`data.path` must be UTF-8 text, but line {line} of {named(path)} has the byte "
            f"0x{error.object[error.start]:02x} of another encoding; save it as UTF-8"
        ) from None


def refuse_odd_header(path: str, header: list[str]) -> None:
    """Raise `DataError` if the first line does not consist of comma-separated column names."""
    text = "".join(header)
    if not text.strip():
        raise DataError(f"`data.path` must start with a header, but {named(path)} starts with a blank line; remove it")
    if len(header) < 2:
        separator = next((name for sign, name in _SEPARATORS.items() if sign in text), None)
        finding = f"{separator} in" if separator else "one column in"
        remedy = "use commas, and decimal points" if separator else "use commas"
        raise DataError(
            f"`data.path` must have at least two columns separated by commas, got {finding} the first line of {named(path)}, "
            f"{shown(text)}; {remedy}"
        )
    if all(NUMBER.fullmatch(name.strip()) for name in header):
        raise DataError(
            f"`data.path` must have column names in its first line, got numbers in {named(path)} ({listed(header)}); "
            "add a header line"
        )


def field_count_fault(line: int, row: list[str], expected: int) -> Fault:
    """Return the fault of a line whose number of fields differs from the header's."""
    finding = str(len(row))
    remedy = "remove or quote the extra fields" if len(row) > expected else "add the missing fields"
    if len(row) == 2 * expected:
        remedy = "write decimals with a point, not a comma"
    elif not "".join(row).strip():
        finding, remedy = "a blank line", "remove it"
    return Fault(line, None, f"must have {expected} fields like the header, got {finding}; {remedy}")


def column_type_problem(path: str, name: str, kind: Any, types: Any) -> str | None:
    """Return the message for a Parquet column that is not numeric, or None; `types` is `pyarrow.types`."""
    if types.is_integer(kind) or types.is_floating(kind):
        return None
    return (
        f"`data.path` must have numbers in column {shown(name)}, got type {kind} in {named(path)}; "
        "cast it to double, or exclude it from `data.features`"
    )


def merge_column_faults(faults: list[Fault], rows: int) -> list[Fault]:
    """Return a single fault if every one of `rows` values of a column is unusable: it is hardly meant to be numeric."""
    return [faults[0]._replace(values=rows)] if len(faults) == rows else faults


def raise_problems(
    path: str, problems: Sequence[Problem], faults: Sequence[Fault], row_name: str, others: int = 0
) -> None:
    """Raise `DataError` if there is a problem or fault, with the first ten in row order and the number of others.

    `row_name` is "line" or "row", as the user counts them. `others` faults come on top of those given.
    """
    if not problems and not faults:
        return
    first = heapq.nsmallest(max(0, _MOST_SHOWN - len(problems)), faults, key=lambda fault: fault.row)
    messages = [*map(str, problems[:_MOST_SHOWN]), *(_message(path, fault, row_name) for fault in first)]
    more = len(problems) + len(faults) + others - len(messages)
    raise DataError([*messages, f"and {more:,} more problems in {named(path)}"] if more else messages)


def _message(path: str, fault: Fault, row_name: str) -> str:
    place = f"`data.path`: {row_name} {fault.row} of {named(path)}"
    if fault.column is None:
        return f"{place} {fault.text}"
    scope = "" if fault.values == 1 else f" (none of its {fault.values:,} values is usable)"
    requirement = f"must be a finite number, got {shown(fault.text)}, {number_problem(fault.text)}"
    return f"{place}, column {shown(fault.column)}{scope}, {requirement}"


def shown(text: str) -> str:
    """Return a text in quotes, cut after 40 characters."""
    return repr(text if len(text) <= 40 else text[:40] + "…")


def named(path: str) -> str:
    """Return a path in quotes, cut after 120 characters."""
    return validation.shown(path)


def listed(names: Sequence[str]) -> str:
    """Return the first ten names in quotes and the number of others."""
    more = f" and {len(names) - _MOST_SHOWN:,} more" if len(names) > _MOST_SHOWN else ""
    return ", ".join(map(shown, names[:_MOST_SHOWN])) + more
