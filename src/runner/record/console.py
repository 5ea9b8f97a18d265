"""What is said: on a terminal with a live line, otherwise as plain lines; all of it goes into run.log too."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LINES = 50
"""About how many plain lines the rows of one run take."""

SILENCE_SECONDS = 10.0
"""Longest time without a line, while there are rows to tell."""


class Console:
    """The user's eyes. Lines said before the run has a directory reach its run.log as soon as it has one."""

    def __init__(self) -> None:
        from rich.console import Console as Rich

        self._screen = Rich(highlight=False, soft_wrap=True)
        self._said: list[Any] = []
        self._log: Any = None
        self._progress: Any = None
        self._columns: tuple[str, ...] = ()

    def say(self, text: Any) -> None:
        """A line (or a rich table) on the screen and in the log."""
        if isinstance(text, str) and not self._screen.is_terminal:
            self._screen.file.write(f"{text}\n")  # a plain line needs no layout, which costs as much as two steps
            self._screen.file.flush()
        else:
            self._screen.print(text, markup=False)
        self._note(text)

    def attach(self, path: Path) -> None:
        """From here on everything said is in this file as well, and so is all that was said before."""
        from rich.console import Console as Rich

        self._file = path.open("a", encoding="utf-8")
        self._log = Rich(file=self._file, width=120, soft_wrap=True, highlight=False)
        for text in self._said:
            self._note(text)
        self._said.clear()

    def _note(self, text: Any) -> None:
        if self._log is None:
            self._said.append(text)
        elif isinstance(text, str):
            self._file.write(f"{text}\n")
        else:
            self._log.print(text)

    def begin(self, first: int, last: int, rows: int) -> None:
        """Training goes from step `first` to `last` and will write about `rows` rows."""
        self._last, self._every, self._count = last, max(1, math.ceil(rows / LINES)), 0
        self._step, self._time = first, time.perf_counter()
        self._told = -math.inf  # the first row is told at once
        if self._screen.is_terminal:
            self._start_progress(first)

    def _start_progress(self, first: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        self._progress = Progress(*columns, console=self._screen, auto_refresh=False, transient=True)
        self._progress.start()
        self._task = self._progress.add_task("", total=self._last, completed=first)

    def open(self, first_step: int) -> None:
        """The log only grows."""

    def start(self, config: Mapping[str, Any], hyperparameters: Mapping[str, Any], metric_names: Sequence[str]) -> None:
        """Nothing more is said than what the run says itself."""

    def write(self, row: Mapping[str, Any]) -> None:
        """One row: the live line, or a plain one at a sensible pace."""
        now = time.perf_counter()
        pace = (row["step"] - self._step) / max(now - self._time, 1e-9)
        self._step, self._time = row["step"], now
        self._count += 1
        text = _line(row, self._last, pace)
        if self._progress is not None:
            self._progress.update(self._task, completed=row["step"], description=text, refresh=True)
            self._note(text)
        elif self._count % self._every == 0 or row["step"] == self._last or now - self._told > SILENCE_SECONDS:
            self.say(text)
            self._told = now

    def flush(self) -> None:
        """Hand the log to the file system."""
        if self._log is not None:
            self._file.flush()

    def finish(self, summary: Mapping[str, Any], figures: Mapping[str, bytes]) -> None:
        """The table at the end: metrics by part, and what was fitted."""
        self.rest()
        if summary["status"] == "finished":
            self.say(_metrics_table(summary["metrics"]))
            if summary.get("parameters"):
                self.say(_parameters(summary["parameters"]))

    def rest(self) -> None:
        """Take the live line away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def close(self) -> None:
        """The log is complete."""
        self.rest()
        if self._log is not None:
            self._file.close()
            self._log = None

    def warn(self, text: str) -> None:
        """Something that the user should know and that does not stop the run."""
        self.say(f"note: {text}")

    def fail(self, text: str) -> None:
        """The reason of an end, for the log; the caller prints it on the error stream."""
        self.rest()
        self._note(f"error: {text}")


def complain(problems: Sequence[str]) -> None:
    """One line a problem on the error stream."""
    for problem in problems:
        sys.stderr.write(f"error: {problem}\n")


def _line(row: Mapping[str, Any], last: int, pace: float) -> str:
    width = len(str(last))
    shown = [f"step {row['step']:>{width}}/{last}"]
    shown += [
        f"{name} {_number(value)}"
        for name, value in row.items()
        if name.endswith("loss") or name.startswith(("param/", "skipped")) or name.endswith("/rmse")
    ]
    return "  ".join([*shown, f"lr {row['lr']:g}", f"{pace:,.0f} steps/s" if pace >= 10 else f"{pace:.2g} steps/s"])


def _number(value: float) -> str:
    return f"{value:.6g}"


def _metrics_table(metrics: Mapping[str, float]) -> Any:
    from rich.table import Table

    names = list(dict.fromkeys(name.split("/")[1] for name in metrics))
    table = Table(*["", *names], box=None, pad_edge=False)
    for part in dict.fromkeys(name.split("/")[0] for name in metrics):
        table.add_row(part, *[_number(metrics[f"{part}/{name}"]) for name in names])
    return table


def _parameters(parameters: Mapping[str, Any]) -> str:
    lines = []
    for name, value in parameters.items():
        numbers = _flat(value)
        shown = ", ".join(_number(number) for number in numbers[:10])
        lines.append(f"{name} = {shown}" + (f", … ({len(numbers)} numbers)" if len(numbers) > 10 else ""))
    return "\n".join(lines[:20] + ([f"… {len(lines) - 20} more, see summary.json"] if len(lines) > 20 else []))


def _flat(value: Any) -> list[float]:
    return [number for item in value for number in _flat(item)] if isinstance(value, list) else [value]
