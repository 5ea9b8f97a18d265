"""What is wrong with a table, in words: each place once, what it must be, what it is, and what to do."""

from __future__ import annotations

import difflib
import heapq
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from runner.errors import DataError

EXACT_INTEGER = 2**53
"""Up to here float64 holds every integer."""

NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
"""How a number is written; wider spellings (1_000, 0x10, nan, digits of other scripts) are not read."""

_TOLD = 10  # the others are counted
_MISREADINGS = tuple(
    (re.compile(pattern, re.IGNORECASE), words)
    for pattern, words in (
        (
            r"|[+-]?nan|n/?a|<na>|#n/a|null|none|nil|-|\?|\.",
            "a missing value; rows with missing values must be removed or filled first",
        ),
        (r"[+-]?inf(inity)?", "not finite; such rows must be removed or filled first"),
        (r"true|false|yes|no", "a truth value; write 1 and 0"),
        (r"[+-]?0x[0-9a-f]+", "hexadecimal; write it in decimal"),
        (r"[+-]?[0-9.,]+ *%", "a percentage; write it as a fraction, without the sign"),
        (
            r"([0-9]{4}([-/.])[0-9]{1,2}\2[0-9]{1,2}|[0-9]{1,2}([-/.])[0-9]{1,2}\3[0-9]{2,4})([ T].*)?",
            "a date; write a number, such as days since a start",
        ),
        (r"[+-]?[0-9.,]*,[0-9.,e+-]*", "a number with a comma; write 1000 for a thousand and 0.5 for a half"),
        (r"[+-]?[0-9_]+(\.[0-9_]*)?", "a number with underscores; leave them out"),
    )
)
_OTHER_FORMATS = (  # ends of names, first bytes, what it is and what to do
    ((".xlsx", ".xlsm", ".xls", ".ods"), (b"\xd0\xcf\x11\xe0",), "is a spreadsheet; save its sheet as CSV"),
    ((".parquet",), (b"PAR1\x15",), "is a Parquet file; read it with data=parquet"),
    (
        (".gz", ".zip", ".bz2", ".xz", ".zst", ".7z"),
        (b"\x1f\x8b", b"PK\x03\x04", b"BZh91AY", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf"),
        "is packed; unpack it first (a spreadsheet: save its sheet as CSV)",
    ),
)
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


class Fault(NamedTuple):
    """A cell that is not a usable number or, where `column` is None, a row and in `text` what it must be and is."""

    row: int
    column: str | None
    text: str
    values: int = 1  # more than 1: it stands for that many, the whole column


def misreading(cell: str) -> str | None:
    """What a cell is instead of a finite number that float64 holds, and what to do; None where it is one."""
    text = cell.strip(" \t")
    if not NUMBER.fullmatch(text):
        # A long cell is text in any case, and could take these patterns quadratic time.
        fitting = (words for pattern, words in _MISREADINGS if len(text) <= 100 and pattern.fullmatch(text))
        return next(fitting, "text; write a number, or leave the column out of `data.features`")
    size = abs(float(text))
    if size == float("inf"):
        return "beyond the largest float64, 1.8e308; use a larger unit"
    digits = text.lstrip("+-0")
    if size >= EXACT_INTEGER and digits.isdigit() and int(digits) > EXACT_INTEGER:
        return "an integer beyond 2**53, which float64 does not hold exactly; use a larger unit or subtract an offset"
    return None


def refuse_other_formats(path: str, data: bytes) -> None:
    """Raises DataError where a file is not UTF-8 text; by its name and first bytes it says what it is instead."""
    for suffixes, beginnings, fault in _OTHER_FORMATS:
        if path.lower().endswith(suffixes) or data.startswith(beginnings):
            raise DataError(f"`data.path` must be plain comma-separated text, but {path!r} {fault}")
    if b"\0" in data:
        raise DataError(f"`data.path` must be UTF-8 text, but {path!r} is UTF-16 or binary; save it as UTF-8")
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"`data.path` must be UTF-8 text, but line {line} of {path!r} has the byte "
            f"0x{error.object[error.start]:02x} of another encoding; save it as UTF-8"
        ) from None


def refuse_odd_header(path: str, header: list[str]) -> None:
    """Raises DataError where the first line is not one of column names with commas between them."""
    text = "".join(header)
    if not text.strip():
        raise DataError(f"`data.path` must have a header and rows, but {path!r} starts with a blank line; remove it")
    if len(header) < 2:
        words = next((words for sign, words in _SEPARATORS.items() if sign in text), None)
        fault = f"are separated by {words}; use commas, and points in decimals" if words else "are not; use commas"
        raise DataError(
            f"`data.path` must have at least two columns, separated by commas, but those of {path!r} {fault} "
            f"(its first line is {cut(text)})"
        )
    if all(NUMBER.fullmatch(name.strip()) for name in header):
        raise DataError(
            f"`data.path` must have column names in its first line, but that of {path!r} holds numbers "
            f"({listed(header)}); put a header line above it"
        )


def absent(path: str, key: str, name: str, names: Sequence[str]) -> str:
    """The sentence for a column that is not there: those that are, the likeliest first."""
    wish = name.strip().casefold()
    nearest = sorted(names, key=lambda n: -difflib.SequenceMatcher(None, wish, n.strip().casefold()).ratio())
    exactly = " (letter case and blanks count)" if nearest and nearest[0].strip().casefold() == wish else ""
    there = f"there is no column {cut(name)}; there are {listed(nearest)}{exactly}"
    return f"`{key}` must name what is in {path!r}, but {there}"


def wrong_count(line: int, row: list[str], expected: int) -> Fault:
    """The fault of a line that has another number of fields than the header."""
    words = f"has {len(row)} field{'s' * (len(row) != 1)}"
    cure = "remove or quote what is too much" if len(row) > expected else "add what is missing"
    if len(row) == 2 * expected:
        cure = "write decimals with a point, not a comma"
    elif not "".join(row).strip():
        words, cure = "is blank", "remove it"
    return Fault(line, None, f"must have {expected} fields, as the header has, but {words}; {cure}")


def type_problem(path: str, name: str, kind: Any, types: Any) -> str | None:
    """The sentence for a Parquet column that is not numeric, or None; `types` is `pyarrow.types`."""
    if types.is_integer(kind) or types.is_floating(kind):
        return None
    return (
        f"`data.path` must have numbers in column {cut(name)}, but its type in {path!r} is {kind}; "
        "cast it to double, or leave it out of `data.features`"
    )


def whole_column(faults: list[Fault], rows: int) -> list[Fault]:
    """One fault for all where no value of a column (of at least one row) can be used: it was hardly meant to be numeric."""
    return [faults[0]._replace(values=rows)] if len(faults) == rows else faults


def refuse(path: str, problems: Sequence[str], faults: Sequence[Fault], row_word: str) -> None:
    """Raises DataError where there is a problem: the first ten of them, by row, and how many more there are."""
    if not problems and not faults:
        return
    first = heapq.nsmallest(max(0, _TOLD - len(problems)), faults, key=lambda fault: fault.row)
    told = [*problems[:_TOLD], *(_sentence(path, fault, row_word) for fault in first)]
    more = len(problems) + len(faults) - len(told)
    raise DataError([*told, f"and {more:,} more problems in {path!r}"] if more else told)


def _sentence(path: str, fault: Fault, row_word: str) -> str:
    place = f"`data.path`: {row_word} {fault.row} of {path!r}"
    if fault.column is None:
        return f"{place} {fault.text}"
    alone = "" if fault.values == 1 else f" (no value of its {fault.values:,} is usable)"
    what = f"must be a finite number, but is {cut(fault.text)}, {misreading(fault.text)}"
    return f"{place}, column {cut(fault.column)}{alone}, {what}"


def cut(text: str) -> str:
    """A text in quotes, its end left out where it is long."""
    return repr(text if len(text) <= 40 else text[:40] + "…")


def listed(names: Sequence[str]) -> str:
    """The first ten names in quotes, and how many more there are."""
    more = f" and {len(names) - _TOLD:,} more" if len(names) > _TOLD else ""
    return ", ".join(map(cut, names[:_TOLD])) + more
