"""Dates of text as seconds since 1970, and their parts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timezone

import numpy as np

from runner.data.diagnostics import shown

_DAY_FIRST = re.compile(r"([0-9]{1,2})\.([0-9]{1,2})\.([0-9]{4})(?:[ T]([0-9:.]+))?")
_YEAR_FIRST = re.compile(r"([0-9]{4})[-/]([0-9]{1,2})[-/]([0-9]{1,2})((?:[ T].*)?)")


def seconds_of(texts: Sequence[str]) -> list[float] | str | None:
    """Return the seconds since 1970 of dates, as UTC where they name no time zone.

    None if most texts are no dates, and the end of a sentence if another one is none, or a date that does not exist.
    Year-first and dotted day-first dates are known; with slashes, day and month could be told apart only by chance.
    """
    dates = [_iso_date(text) for text in texts]
    if 2 * sum(date is not None for date in dates) <= len(texts):
        return None
    seconds = [moment(text) for text in texts]
    wrong = next((text for text, value in zip(texts, seconds, strict=True) if value is None), None)
    if wrong is not None:
        return f"has dates, but {shown(wrong)} is none; correct it, or list it in `data.missing_values`"
    return [value for value in seconds if value is not None]


def moment(text: str) -> float | None:
    """Return the seconds since 1970 of a date, as UTC where it names no time zone; None for a text that is none."""
    try:
        found = datetime.fromisoformat(_iso_date(text) or "none")
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).timestamp()


def parts_of(seconds: np.ndarray) -> dict[str, np.ndarray]:
    """Return the parts of dates in seconds since 1970 [rows], each int64 [rows]."""
    hours = np.floor(seconds / 3600).astype(np.int64)
    days = hours // 24
    dates = days.astype("datetime64[D]")
    months = dates.astype("datetime64[M]")
    return {
        "year": dates.astype("datetime64[Y]").astype(np.int64) + 1970,
        "month": months.astype(np.int64) % 12 + 1,
        "day": (dates - months).astype(np.int64) + 1,
        "weekday": (days + 3) % 7,  # 1970-01-01 was a Thursday
        "hour": hours % 24,
    }


def _iso_date(text: str) -> str | None:
    """Return what has the form of a date as ISO 8601 writes it, or None."""
    if match := _DAY_FIRST.fullmatch(text):
        day, month, year, time = match.groups()
        rest = f"T{time}" if time else ""
    elif match := _YEAR_FIRST.fullmatch(text):
        year, month, day, rest = match.groups()
    else:
        return None
    return f"{year}-{month:0>2}-{day:0>2}{rest}"
