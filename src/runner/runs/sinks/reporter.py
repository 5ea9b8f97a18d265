"""Report a run to its reader: on standard output and in run.log, or in run.log only."""

from __future__ import annotations

import io
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config.schema import METRICS
from runner.errors import printable, shortened
from runner.runs.records import flat, number_names, selected_metrics

if TYPE_CHECKING:
    from runner.runs.atomic import Appended

WIDTH = 120
"""Columns of a table that goes to a file or a pipe."""

MAX_PRINTED = 20
"""Largest number of fitted values that are printed; summary.json has all of them."""

LINES = 50
"""Approximate number of plain lines for the rows of one run."""

REFRESH_SECONDS = 0.1
"""Shortest time between two updates of the progress line."""

SILENCE_SECONDS = 10.0
"""Longest time without a line while rows arrive."""

PRINTED = ("loss", "/gap", "param/", "skipped")
"""Names of a row's printed values besides metrics: they start or end with one of these."""


class Reporter:
    """A sink of lines of text, for standard output and run.log. With `quiet`, for run.log only.

    Lines that come before the run has a directory reach run.log when `attach` names it. A live progress line shows
    every row on a terminal. Elsewhere about 50 rows of a run are printed. A quiet reporter logs every row.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._terminal = None if quiet else _Terminal()
        self._log: Appended | None = None
        self._unlogged: list[Any] = []
        self._metrics: Sequence[str] = METRICS

    def say(self, text: Any) -> None:
        """Print and log a line, or a rich table."""
        if self._terminal is not None:
            self._terminal.print(text)
        self._note(text)

    def warn(self, text: str) -> None:
        """Print and log a warning that does not stop the run."""
        self.say(f"note: {printable(shortened(text))}")

    def fail(self, text: str) -> None:
        """Log why the run ended. The caller prints it on the error stream."""
        self._stop_progress()
        self._note(f"error: {text}")

    def attach(self, path: Path) -> None:
        """Append all lines so far, and all later ones, to the file `path`. Raises OSError."""
        from runner.runs.atomic import Appended

        # Thousands of trials report at the same time: a quiet log is open only while `flush` writes to it.
        self._log = Appended(path, held=self._terminal is None)
        for text in self._unlogged:
            self._note(text)
        self._unlogged.clear()

    def begin(self, first: int, last: int, rows: int) -> None:
        """Prepare for about `rows` rows of the steps from `first` to `last`."""
        self._last, self._every, self._count = last, max(1, math.ceil(rows / LINES)), 0
        self._step, self._time = first, time.perf_counter()
        self._printed = -math.inf  # the first row is printed at once
        if self._terminal is not None:
            self._terminal.start_progress(first, last)

    def open(self, first_step: int) -> None:
        """Keep run.log as it is: lines are only added."""

    def start(self, config: Mapping[str, Any], hyperparameters: Mapping[str, Any], metric_names: Sequence[str]) -> None:
        """Note which metrics are shown. The caller introduces the run."""
        self._metrics = config.get("metrics", METRICS)

    def write(self, row: Mapping[str, Any]) -> None:
        """Update the progress line, and print and log a row that is due."""
        printed = (*PRINTED, *_of_rows(self._metrics))
        if self._terminal is None:
            self._note(line(row, self._last, None, printed))
            return
        now = time.perf_counter()
        pace = (row["step"] - self._step) / max(now - self._time, 1e-9)
        self._step, self._time = row["step"], now
        self._count += 1
        if self._terminal.live:
            self._terminal.update_progress(row["step"], line(row, self._last, pace, ("loss",)))
        if self._count % self._every == 0 or row["step"] == self._last or now - self._printed > SILENCE_SECONDS:
            self.say(line(row, self._last, pace, printed))
            self._printed = now
        elif self._terminal.live:
            self._note(line(row, self._last, pace, printed))

    def flush(self) -> None:
        """Write the lines that a quiet reporter holds; those of the other are in the file. Raises OSError."""
        if self._log is not None and self._terminal is None:
            self._log.sync()

    def finish(self, summary: Mapping[str, Any], figures: Mapping[str, bytes]) -> None:
        """Report the metrics and the fitted parameters of a finished run."""
        self._stop_progress()
        if summary["status"] != "finished":
            return
        if self._terminal is not None:
            self.say(_metrics_table(summary, self._metrics))
        for text in lines_of(summary, self._metrics) if self._terminal is None else _fitted(summary):
            self.say(text)

    def close(self) -> None:
        """Close run.log. Raises OSError."""
        self._stop_progress()
        log, self._log = self._log, None
        if log is not None:
            log.close()

    def _stop_progress(self) -> None:
        if self._terminal is not None:
            self._terminal.stop_progress()

    def _note(self, text: Any) -> None:
        """Add a line, or a rich table, to run.log."""
        if self._log is None:
            self._unlogged.append(text)
        else:
            self._log.write((f"{text}\n" if isinstance(text, str) else _rendered(text)).encode())


class _Terminal:
    """Standard output: with a progress line where it is a terminal, plain lines otherwise."""

    def __init__(self) -> None:
        from rich.console import Console

        class Screen(Console):
            def on_broken_pipe(self) -> None:
                raise BrokenPipeError  # rich would end the process

        # In a notebook, rich would show its tables beside standard output, where the other lines go.
        self._screen = Screen(highlight=False, soft_wrap=True, force_jupyter=False)
        if not self._screen.is_terminal and "COLUMNS" not in os.environ:
            self._screen.width = WIDTH
        self.live = self._screen.is_terminal and not self._screen.is_dumb_terminal and sys.stdout.isatty()
        self._progress: Any = None
        self._broken = False

    def print(self, text: Any) -> None:
        """Print a line or a rich table. Nothing happens once the reader of a pipe is gone: the run continues."""
        try:
            if self.live or not isinstance(text, str):
                self._screen.print(text, markup=False)
            elif not self._broken:
                self._print_plain(text)
        except BrokenPipeError:
            self._broken = True

    def _print_plain(self, text: str) -> None:
        stream = self._screen.file  # directly: rich's layout would cost as much as two steps
        try:
            stream.write(f"{text}\n")
        except UnicodeEncodeError:
            stream.write(text.encode("ascii", "replace").decode() + "\n")
        stream.flush()

    def start_progress(self, first: int, last: int) -> None:
        """Show the progress line on a terminal, from step `first` to `last`."""
        if not self.live:
            return
        from rich.progress import Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        columns = (TextColumn("{task.description}", table_column=Column(no_wrap=True)), TimeRemainingColumn())
        self._progress = Progress(*columns, console=self._screen, auto_refresh=False, transient=True)
        self._progress.start()
        self._task = self._progress.add_task("", total=last, completed=first)
        self._last, self._drawn = last, -math.inf

    def update_progress(self, step: int, text: str) -> None:
        """Show the row of a step in the progress line, at most every `REFRESH_SECONDS`."""
        if self._progress is not None:
            now = time.perf_counter()
            refresh = now - self._drawn > REFRESH_SECONDS or step == self._last
            self._drawn = now if refresh else self._drawn
            self._progress.update(self._task, completed=step, description=text, refresh=refresh)

    def stop_progress(self) -> None:
        """Remove the progress line."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def print_errors(problems: Sequence[str], rank: int | None = None) -> None:
    """Print each problem as a line on the error stream, with the rank of its process where there are several."""
    where = "" if rank is None else f"rank {rank}: "
    for problem in problems:
        sys.stderr.write(f"error: {where}{problem}\n")


def _of_rows(metrics: Sequence[str]) -> Iterator[str]:
    """Yield the ends of the names of metrics that are printed of each row: the first one, and those of the user's own."""
    yield from (f"/{name.rpartition(':')[2]}" for name in metrics if name == metrics[0] or ":" in name)


def line(row: Mapping[str, Any], last: int, pace: float | None, printed: tuple[str, ...]) -> str:
    """Return a row as text. `last` is the last step of the run, `pace` its steps per second.

    The values are those whose names start or end with one of `printed`, but none of a single target, such as "valid/rmse/y".
    """
    cells = [f"step {row['step']:>{len(str(last))}}/{last}"]
    shown = [name for name in row if (name.endswith(printed) or name.startswith(printed)) and name != "optimum/loss"]
    names = [name for name in shown if name.count("/") < 2]
    cells += [f"{name} {_number(row[name])}" for name in names]
    if "lr" in row:
        cells.append(f"lr {row['lr']:g}")
    if pace is not None:
        cells.append(f"{pace:,.0f} steps/s" if pace >= 10 else f"{pace:.2g} steps/s")
    return "  ".join(cells)


def shown(metrics: Sequence[str]) -> list[str]:
    """Return the names of the metrics that are shown, for the entries of `metrics`: the loss and these."""
    return ["loss", *(entry.rpartition(":")[2] for entry in metrics)]


def lines_of(summary: Mapping[str, Any], metrics: Sequence[str] = METRICS) -> list[str]:
    """Return the result of a run as plain lines: its metrics and those of the baselines by part, and the fitted parameters."""
    lines = [
        f"{label:<6} " + "  ".join(f"{name} {_number(values[name])}" for name in shown(metrics) if name in values)
        for label, values in _results(summary)
    ]
    return lines + _fitted(summary)


def _results(summary: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the label of a line and its metrics by name.

    There is a line for each part, and below it, indented, one for each of several targets and for each baseline.
    """
    metrics = selected_metrics(summary)
    for part in dict.fromkeys(name.split("/")[0] for name in metrics):
        by_target = _by_target(metrics, part)
        yield part, by_target.pop("", {})
        yield from ((f"  → {target}", values) for target, values in by_target.items())
        for baseline, values in summary.get("baselines", {}).items():
            yield f"  {baseline}", _by_target(values, part).get("", {})


def _by_target(metrics: Mapping[str, float], part: str) -> dict[str, dict[str, float]]:
    """Return the metrics of a part by target and name. "" stands for the means, or for the only target."""
    found: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        of, metric, *target = name.split("/", 2)
        if of == part:
            found.setdefault("".join(target), {})[metric] = value
    return found


def _number(value: float) -> str:
    return f"{value:.6g}"


def aligned(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a table of texts as lines with aligned columns."""
    return [text.rstrip() for text in _rendered(_table(header, rows)).splitlines()]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Any:
    """Return a rich table of texts."""
    from rich.table import Table

    table = Table(*header, box=None, pad_edge=False)
    for cells in rows:
        table.add_row(*cells)
    return table


def _rendered(table: Any) -> str:
    """Return a rich table as plain text."""
    from rich.console import Console

    file = io.StringIO()
    # In a notebook, rich would ignore the file.
    Console(file=file, width=WIDTH, soft_wrap=True, highlight=False, force_jupyter=False).print(table, markup=False)
    return file.getvalue()


def _metrics_table(summary: Mapping[str, Any], metrics: Sequence[str]) -> Any:
    """Return a rich table of the metrics, one row a part, and of the baselines below each."""
    present = {name.split("/")[1] for name in selected_metrics(summary)}
    names = [name for name in shown(metrics) if name in present]
    selected = summary.get("selected")
    state = "" if selected is None or selected["step"] == summary["steps"] else f"step {selected['step']:,}"
    return _table([state, *names], ([label, *cells(values, names)] for label, values in _results(summary)))


def cells(metrics: Mapping[str, float], names: Iterable[str]) -> list[str]:
    """Return some metrics as texts, empty where there is none."""
    return [_number(metrics[name]) if name in metrics else "" for name in names]


def _fitted(summary: Mapping[str, Any]) -> list[str]:
    """Return the fitted parameters as lines; none where they are too many to read."""
    parameters = summary.get("parameters", {})
    values = flat([*parameters.values()])
    if not 0 < len(values) <= MAX_PRINTED:
        return []
    if "standard_errors" in summary:
        lines = _with_errors(summary, values)
    elif "coefficients" in summary:
        lines = [f"{name} = {_number(value)}" for name, value in summary["coefficients"].items()]
    else:
        notes = _notes(summary)
        lines = [
            f"{name} = {', '.join(map(_number, flat(value)))}{notes.get(name, '')}"
            for name, value in parameters.items()
        ]
    target = summary.get("fitted_to")
    return lines if target is None else [f"fitted to {target}, the natural logarithm:", *lines]


def _notes(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return what is said of parameters that were not fitted, or that ended at a bound."""
    notes = dict.fromkeys(summary.get("fixed", ()), " (fixed)")
    return notes | {name: f" (at its {side} bound)" for name, side in summary.get("at_bounds", {}).items()}


def _with_errors(summary: Mapping[str, Any], values: Sequence[float]) -> list[str]:
    """Return a line for each value: value ± standard error, and its confidence interval where it has them."""
    notes, names = _notes(summary), number_names(summary)
    intervals = summary["confidence_intervals"].values()
    columns = (
        [value for name, value in zip(names, values, strict=True) if name not in notes],
        flat([*summary["standard_errors"].values()]),
        *(flat([interval[end] for interval in intervals]) for end in ("low", "high")),
    )
    known = iter(zip(*columns, strict=True))
    return [
        f"{name} = {_number(value)}{notes[name]}"
        if name in notes
        else "{} = {} ± {} (95 %: {} … {})".format(name, *_aligned(next(known)))
        for name, value in zip(names, values, strict=True)
    ]


def _aligned(values: Sequence[float]) -> list[str]:
    """Return numbers as text, to the decimal place of the third digit of the second one, the standard error."""
    error = values[1]
    places = 2 - math.floor(math.log10(error)) if 0 < error < math.inf else -1
    return [f"{value:.{places}f}" if 0 <= places <= 9 and abs(value) < 1e9 else _number(value) for value in values]
