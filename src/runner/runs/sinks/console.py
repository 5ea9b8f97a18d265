"""What is said: on a terminal with a live line, otherwise as plain lines; all of it goes into run.log too."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WIDTH = 120
"""Columns of what is no terminal, such as a file."""

READABLE = 20
"""Most fitted numbers that are told on the screen; summary.json has more."""

SURE = 10
"""Most of them that are told a line each, with what is known of their errors."""

LINES = 50
"""About how many plain lines the rows of one run take."""

REFRESH_SECONDS = 0.1
"""Shortest time between two drawings of the live line."""

SILENCE_SECONDS = 10.0
"""Longest time without a line, while there are rows to tell."""


class Console:
    """The user's eyes. Lines said before the run has a directory reach its run.log as soon as it has one."""

    def __init__(self) -> None:
        from rich.console import Console as Rich

        self._screen = _screen(Rich)
        self._live = self._screen.is_terminal and not self._screen.is_dumb_terminal and sys.stdout.isatty()
        self._deaf = False
        self._said: list[Any] = []
        self._log: Any = None
        self._progress: Any = None
        self._columns: tuple[str, ...] = ()

    def say(self, text: Any) -> None:
        """A line (or a rich table) on the screen and in the log."""
        try:
            if isinstance(text, str) and not self._live:
                self._plain(text)
            else:
                self._screen.print(text, markup=False)
        except BrokenPipeError:
            self._deaf = True  # whoever read along has gone: the records do not need the screen
        self._note(text)

    def _plain(self, text: str) -> None:
        """A line without layout, which would cost as much as two steps."""
        if self._deaf:
            return
        stream = self._screen.file
        try:
            stream.write(f"{text}\n")
        except UnicodeEncodeError:
            stream.write(text.encode("ascii", "replace").decode() + "\n")
        stream.flush()

    def attach(self, path: Path) -> None:
        """From here on everything said is in this file as well, and so is all that was said before."""
        from rich.console import Console as Rich

        self._file = path.open("a", encoding="utf-8")
        self._log = Rich(file=self._file, width=WIDTH, soft_wrap=True, highlight=False)
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
        if self._live:
            self._start_progress(first)

    def _start_progress(self, first: int) -> None:
        from rich.progress import Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        columns = (TextColumn("{task.description}", table_column=Column(no_wrap=True)), TimeRemainingColumn())
        self._progress = Progress(*columns, console=self._screen, auto_refresh=False, transient=True)
        self._progress.start()
        self._task = self._progress.add_task("", total=self._last, completed=first)
        self._drawn = -math.inf

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
        text = line(row, self._last, pace)
        if self._progress is not None:
            refresh = now - self._drawn > REFRESH_SECONDS or row["step"] == self._last
            self._drawn = now if refresh else self._drawn
            short = line(row, self._last, pace, ("loss",))
            self._progress.update(self._task, completed=row["step"], description=short, refresh=refresh)
        if self._count % self._every == 0 or row["step"] == self._last or now - self._told > SILENCE_SECONDS:
            self.say(text)
            self._told = now
        elif self._live:
            self._note(text)

    def flush(self) -> None:
        """Hand the log to the file system."""
        if self._log is not None:
            self._file.flush()

    def finish(self, summary: Mapping[str, Any], figures: Mapping[str, bytes]) -> None:
        """The table at the end: metrics by part, and what was fitted."""
        self.rest()
        if summary["status"] == "finished":
            self.say(_metrics_table(summary["metrics"]))
            if fitted := _fitted(summary):
                self.say(fitted)

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


def complain(problems: Sequence[str], rank: int | None = None) -> None:
    """One line a problem on the error stream, with the process it happened on where that says something."""
    where = "" if rank is None else f"rank {rank}: "
    for problem in problems:
        sys.stderr.write(f"error: {where}{problem}\n")


def _screen(rich: Any) -> Any:
    """Rich's console, but for a reader that goes away: rich would end the process."""

    class Screen(rich):  # type: ignore[misc]
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    screen = Screen(highlight=False, soft_wrap=True)
    if not screen.is_terminal and "COLUMNS" not in os.environ:
        screen.width = WIDTH
    return screen


TOLD = ("loss", "/gap", "/rmse", "param/", "skipped")
"""What of a row is told: names that end or begin so."""


def line(row: Mapping[str, Any], last: int, pace: float | None = None, told: tuple[str, ...] = TOLD) -> str:
    """A row in words, of a run to step `last` at `pace` steps a second."""
    width = len(str(last))
    shown = [f"step {row['step']:>{width}}/{last}"]
    names = [name for name in row if (name.endswith(told) or name.startswith(told)) and name != "optimum/loss"]
    shown += [f"{name} {_number(row[name])}" for name in names]
    if "lr" in row:
        shown.append(f"lr {row['lr']:g}")
    if pace is not None:
        shown.append(f"{pace:,.0f} steps/s" if pace >= 10 else f"{pace:.2g} steps/s")
    return "  ".join(shown)


def _number(value: float) -> str:
    return f"{value:.6g}"


def _metrics_table(metrics: Mapping[str, float]) -> Any:
    from rich.table import Table

    names = list(dict.fromkeys(name.split("/")[1] for name in metrics))
    table = Table(*["", *names], box=None, pad_edge=False)
    for part in dict.fromkeys(name.split("/")[0] for name in metrics):
        table.add_row(part, *[_number(metrics[f"{part}/{name}"]) for name in names])
    return table


def lines_of(summary: Mapping[str, Any]) -> list[str]:
    """The end of a run in plain lines: metrics by part, and what was fitted."""
    metrics = summary["metrics"]
    parts = dict.fromkeys(name.split("/")[0] for name in metrics)
    lines = [
        f"{part:<6} "
        + "  ".join(f"{n.split('/')[1]} {_number(v)}" for n, v in metrics.items() if n.startswith(f"{part}/"))
        for part in parts
    ]
    return lines + ([fitted] if (fitted := _fitted(summary)) else [])


def _fitted(summary: Mapping[str, Any]) -> str:
    """The parameters, where they are few enough to read."""
    parameters = summary.get("parameters", {})
    numbers = {name: _flat(value) for name, value in parameters.items()}
    count = sum(map(len, numbers.values()))
    if not 0 < count <= READABLE:
        return ""
    if count <= SURE and "standard_errors" in summary:
        return "\n".join(text for name in numbers for text in _with_errors(summary, name))
    return "\n".join(f"{name} = {', '.join(map(_number, values))}" for name, values in numbers.items())


def _with_errors(summary: Mapping[str, Any], name: str) -> list[str]:
    """The numbers of a parameter, a line each: value ± standard error, and the confidence interval."""
    interval = summary["confidence_intervals"][name]
    columns = (summary["parameters"][name], summary["standard_errors"][name], interval["low"], interval["high"])
    numbers = list(zip(*map(_flat, columns), strict=True))
    names = [name] if len(numbers) == 1 else [f"{name}[{i}]" for i in range(len(numbers))]
    return [
        "{} = {} ± {} (95 %: {} … {})".format(label, *_aligned(values))
        for label, values in zip(names, numbers, strict=True)
    ]


def _aligned(values: Sequence[float]) -> list[str]:
    """Numbers to the decimal place of the third digit of the second one, their error."""
    error = values[1]
    places = 2 - math.floor(math.log10(error)) if 0 < error < math.inf else -1
    return [f"{value:.{places}f}" if 0 <= places <= 9 and abs(value) < 1e9 else _number(value) for value in values]


def _flat(value: Any) -> list[float]:
    return [number for item in value for number in _flat(item)] if isinstance(value, list) else [value]
