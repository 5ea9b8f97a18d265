"""What is said of a run that nobody watches, one of many in a sweep: lines in its run.log, none on the screen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.runs.atomic import Appended
from runner.runs.sinks.console import line, lines_of


class Log:
    """A console without a screen. Lines reach the operating system at `flush`."""

    def __init__(self) -> None:
        self._said: list[str] = []
        self._file: Appended | None = None

    def say(self, text: str) -> None:
        """A line in the log."""
        if self._file is None:
            self._said.append(text)
        else:
            self._file.write(f"{text}\n".encode())

    def warn(self, text: str) -> None:
        """Something that the user should know and that does not stop the run."""
        self.say(f"note: {text}")

    def fail(self, text: str) -> None:
        """The reason of an end."""
        self.say(f"error: {text}")

    def attach(self, path: Path) -> None:
        """From here on everything said is in this file, and so is all that was said before."""
        self._file = Appended(path, held=True)
        for text in self._said:
            self.say(text)
        self._said.clear()

    def begin(self, first: int, last: int, rows: int) -> None:
        """Training goes from step `first` to `last` and will write about `rows` rows."""
        self._last = last

    def open(self, first_step: int) -> None:
        """Nothing: a log is never rewritten."""

    def start(
        self, config: Mapping[str, Any], hyperparameters: Mapping[str, float | str | bool], metric_names: Any
    ) -> None:
        """Nothing: the lines that introduce a run have it."""

    def write(self, row: Mapping[str, Any]) -> None:
        self.say(line(row, self._last))

    def flush(self) -> None:
        if self._file is not None:
            self._file.sync()

    def finish(self, summary: Mapping[str, Any], figures: Mapping[str, bytes]) -> None:
        """Metrics by part, and what was fitted."""
        if summary["status"] == "finished":
            for text in lines_of(summary):
                self.say(text)

    def close(self) -> None:
        """The log is complete."""
        if self._file is not None:
            self._file.close()
