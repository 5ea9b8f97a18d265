"""Reports of how far the reading of a table is."""

from __future__ import annotations

import time
from collections.abc import Callable

from runner.compute import signals
from runner.data.diagnostics import named

Report = Callable[[str], None]
"""Receives a line of text."""


def unreported(text: str) -> None:
    """Report nothing."""


class Progress:
    """Reports how far reading is when it takes long: after 3, 6, 12, … seconds since it began."""

    def __init__(self, path: str, report: Report) -> None:
        self._path, self._report = path, report
        self._began, self._due = time.monotonic(), signals.FIRST_REPORT_SECONDS

    def at(self, done: str) -> None:
        """Report what is done, such as "1,000 rows", if it is time to."""
        seconds = time.monotonic() - self._began
        if seconds >= self._due:
            self._report(f"reading {named(self._path)} has taken {seconds:.0f} s so far, {done}")
            self._due *= 2
