"""Error messages for tables: each problem once, with its place, the requirement, the value found and the remedy."""

from __future__ import annotations

import difflib
import heapq
import re
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from runner.config import validation
from runner.errors import DataError

EXACT_INTEGER = 2**53
"""Largest integer up to which float64 represents every integer."""

NUMBERS = {
    sign: re.compile(rf"[+-]?([0-9]+({re.escape(sign)}[0-9]*)?|{re.escape(sign)}[0-9]+)([eE][+-]?[0-9]+)?")
    for sign in ".,"
}
"""Accepted spelling of a number by decimal sign. Others that Python accepts (1_000, nan, digits of other scripts) are refused."""

MOST_SHOWN = 10
"""Number of problems, or of names, that are shown; further ones are only counted."""

PLACES = 5
"""Number of rows, or of examples, that a message lists."""

_MOST_COMPARED = 1000  # names that are compared with a misspelled one
_MONTH = (
    r"(jan(uary?)?|feb(ruary?)?|mar(ch)?|märz?|apr(il)?|may|mai|jun[ei]?|jul[yi]?|aug(ust)?|sept?(ember)?|o[ck]t(ober)?|nov(ember)?|"
    r"de[cz](ember)?)\.?"
)
_MISSPELLED = tuple(
    (re.compile(pattern, re.IGNORECASE), problem)
    for pattern, problem in (
        (r"[+-]?inf(inity)?", "not finite; correct it, or list it in `data.missing_values`"),
        (r"[+-]?0x[0-9a-f]+", "hexadecimal; use decimal"),
        (r"[+-]?[0-9.,]+ *%", "a percentage; use a fraction without the sign"),
        (
            r"[+-]?([$€£¥]|(USD|EUR|GBP|CHF|JPY)\b) *[+-]?[0-9][0-9., ']*|[+-]?[0-9][0-9., ']*([$€£¥]|USD|EUR|GBP|CHF|JPY)",
            "an amount with its currency; write the number alone",
        ),
        (
            r"([0-9]{4}([-/.])[0-9]{1,2}\2[0-9]{1,2}|[0-9]{1,2}([-/.])[0-9]{1,2}\3[0-9]{2,4})([ T].*)?",
            "a date; write all cells as 2024-01-31, or all as numbers",
        ),
        (
            rf"[0-9]{{1,2}}\.?[ -]{_MONTH}[ -][0-9]{{2,4}}|{_MONTH} [0-9]{{1,2}},? [0-9]{{4}}|{_MONTH}[ -][0-9]{{4}}",
            "a date; write all cells as 2024-01-31, or all as numbers",
        ),
        (r"[0-9]{4}[-/](0?[1-9]|1[0-2])", "a month; write all cells as 2024-01-31, or all as numbers"),
        (
            r"[0-9]{1,2}:[0-9]{2}(:[0-9]{2}([.,][0-9]+)?)?( *[ap]m)?",
            "a time of day; write hours or seconds as a number",
        ),
        (r"[+-]?[0-9.,]*,[0-9.,e+-]*", "a number with a comma; write 1000 for a thousand and 0.5 for a half"),
        (r"[−–][0-9.,]+", "a number with a typographic minus; write -"),
        (r"\([0-9]+[.,][0-9]+\)", "a number in brackets; write - for a negative one"),
        (
            r"[+-]?[0-9]+[.,][0-9]+( +[a-zµμΩ°²³/%^*-]+[0-9]*| *(±|\+/-) *[0-9.,]+)",
            "a number with a unit or an error; write the number alone",
        ),
        (r"[+-]?[0-9]+(_[0-9]+)+(\.[0-9_]*)?", "a number with underscores; remove them"),
        (
            r"[+-]?[1-9][0-9]{0,2}(([ '’\xa0\u202f])[0-9]{3}(\2[0-9]{3})*|(\.[0-9]{3}){2,})([.,][0-9]*)?",
            "a number with signs between thousands; remove them",
        ),
    )
)
_LIKE_NUMBERS = re.compile(rf"[+0-9.,$€£¥(−–-]|inf|USD|EUR|GBP|CHF|JPY|{_MONTH}", re.IGNORECASE)
"""How every one of `_MISSPELLED` begins; most texts do not, and are found out at once."""
_OTHER_DECIMAL = "a number with a decimal point; write a comma as in other rows, or set `data.decimal`"
_OTHER_TEXTS = (
    (re.compile(r"[+-]?nan", re.IGNORECASE), "a missing value; list it in `data.missing_values`"),
    (re.compile(r"true|false|yes|no", re.IGNORECASE), "a truth value; use 1 and 0"),
)
_OTHER_FORMATS = (  # file name suffixes, first bytes, description with remedy
    ((".xlsx", ".xlsm", ".xls", ".ods"), (b"\xd0\xcf\x11\xe0",), "is a spreadsheet; save its sheet as CSV"),
    ((".parquet",), (b"PAR1\x15",), "is a Parquet file; read it with data=parquet"),
    ((".feather", ".arrow", ".ipc"), (b"ARROW1",), "is an Arrow file; read it with data=parquet"),
    (
        (".zip", ".7z", ".rar"),
        (b"PK\x03\x04", b"7z\xbc\xaf", b"Rar!"),
        "is an archive; unpack it first (a spreadsheet: save its sheet as CSV)",
    ),
)


class Fault(NamedTuple):
    """One unusable cell, or one unusable row where `column` is None."""

    row: int
    """Line or row number as the user counts it."""
    column: str | None
    text: str
    """Content of the cell; for a row, the requirement, the finding and the remedy."""
    values: int = 1
    """Number of cells that it stands for; more than 1 means the whole column."""
    kind: str = "number"
    """Kind that the cell must have: number or date."""


class UnknownColumn(NamedTuple):
    """A name of `data.features` or `data.target` that is not among the columns. Its text is the message."""

    path: str
    key: str
    name: str
    columns: Sequence[str]

    def __str__(self) -> str:
        return f"`{self.key}` must name a column of {named(self.path)}, got {shown(self.name)}; {self.nearest()}"

    def nearest(self) -> str:
        """Return the names of the columns as a sentence, those first that are most like the one that is not there."""
        wanted = _folded(self.name)
        same = [column for column in self.columns if _folded(column) == wanted]
        matcher = difflib.SequenceMatcher(b=wanted)

        def distance(column: str) -> float:
            matcher.set_seq1(_folded(column))
            return -matcher.ratio()

        nearest = sorted(self.columns[:_MOST_COMPARED], key=distance)
        hint = " (case and spaces matter)" if same else ""
        columns = list(dict.fromkeys((*same, *nearest, *self.columns)))
        return f"the columns are {listed(columns)}{hint}"


Problem: TypeAlias = "str | UnknownColumn"
"""A problem of a table. Its text is made when it is shown, which takes long and is needed for the first ones only."""


def _folded(name: str) -> str:
    return name[:100].strip().casefold()


def number_problem(cell: str) -> str:
    """Return what the cell of a column of numbers is, if it is no finite number that float64 represents, and the remedy."""
    text = cell.strip(" \t")
    for decimal, number in NUMBERS.items():
        if number.fullmatch(text) and (problem := _unrepresentable(text.replace(decimal, "."))):
            return problem
    if NUMBERS["."].fullmatch(text):
        return _OTHER_DECIMAL
    # A long cell is text in any case, and some of these patterns take quadratic time.
    matching = (problem for pattern, problem in _OTHER_TEXTS if len(text) <= 100 and pattern.fullmatch(text))
    return misspelled(text) or next(matching, "text; use a number, or list it in `data.missing_values`")


def misspelled(text: str, decimal: str = ".") -> str | None:
    """Return what is wrong with a text that was meant as a number or a date, and the remedy; None for other texts."""
    if decimal != "." and NUMBERS["."].fullmatch(text):
        return _OTHER_DECIMAL
    if len(text) > 100 or not _LIKE_NUMBERS.match(text):
        return None
    return next((problem for pattern, problem in _MISSPELLED if pattern.fullmatch(text)), None)


def _unrepresentable(text: str) -> str | None:
    """Return why float64 does not represent a number, and the remedy."""
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
            raise DataError(f"`data.path` must be text, but {named(path)} {description}")


def refuse_odd_header(path: str, header: list[str], delimiter: str, least: int = 2) -> None:
    """Raise `DataError` if the first record does not consist of so many column names at least."""
    text = "".join(header)
    if not text.strip():
        raise DataError(f"`data.path` must start with a header, but {named(path)} starts with a blank line; remove it")
    if len(header) < least:
        raise DataError(
            f"`data.path` must have at least two columns, but with the delimiter {shown(delimiter)} {named(path)} has one, "
            f"{shown(text)}; set `data.delimiter`, or leave out a title above the header with `data.skip_rows`"
        )


def no_row_fits(path: str, expected: int) -> str:
    """Return the message for a text of which no row has as many fields as the header."""
    return (
        f"`data.path` must have rows like its header, but no row of {named(path)} has its {expected} fields; name every column in "
        "the header, set `data.delimiter`, or leave out a title above the header with `data.skip_rows`"
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


def raise_problems(
    path: str, problems: Sequence[Problem], faults: Sequence[Fault], row_name: str, others: int = 0
) -> None:
    """Raise `DataError` if there is a problem or fault, with the first ten in row order and the number of others.

    `row_name` is "line" or "row", as the user counts them. `others` faults come on top of those given.
    """
    if not problems and not faults:
        return
    first = heapq.nsmallest(max(0, MOST_SHOWN - len(problems)), faults, key=lambda fault: fault.row)
    messages = [*map(str, problems[:MOST_SHOWN]), *(_message(path, fault, row_name) for fault in first)]
    more = len(problems) + len(faults) + others - len(messages)
    raise DataError([*messages, f"and {more:,} more problems in {named(path)}"] if more else messages)


def _message(path: str, fault: Fault, row_name: str) -> str:
    place = f"`data.path`: {row_name} {fault.row} of {named(path)}"
    if fault.column is None:
        return f"{place} {fault.text}"
    if fault.kind == "date":
        return f"{place}, column {shown(fault.column)}, must be a date such as 2024-01-31, got {shown(fault.text)}; correct it"
    problem, scope = number_problem(fault.text), ""
    if fault.values > 1:  # the cells of a whole column are not corrected one by one
        problem = f"{problem.partition(';')[0]}; use numbers, or another column"
        scope = f" (none of its {fault.values:,} values is usable)"
    return f"{place}, column {shown(fault.column)}{scope}, must be a finite number, got {shown(fault.text)}, {problem}"


def shown(text: str) -> str:
    """Return a text in quotes, cut after 40 characters."""
    return repr(text if len(text) <= 40 else text[:40] + "…")


def named(path: str) -> str:
    """Return a path in quotes, cut after 120 characters."""
    return validation.shown(path)


def listed(names: Sequence[str]) -> str:
    """Return the first ten names in quotes and the number of others."""
    more = f" and {len(names) - MOST_SHOWN:,} more" if len(names) > MOST_SHOWN else ""
    return ", ".join(map(shown, names[:MOST_SHOWN])) + more
