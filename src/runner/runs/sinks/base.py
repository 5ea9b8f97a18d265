"""What a run tells while it goes: rows of numbers, and the sinks that keep them.

A row is made once, at the end of a logged step, and every sink gets the same one. Sinks live in the process that speaks
for the run; they own their files and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

Value: TypeAlias = int | float
Row: TypeAlias = Mapping[str, Value]


class Writer(Protocol):
    """Where rows go."""

    def write(self, row: Row) -> None:
        """Take one row: its "step", strictly above that of the row before, and numbers, nan and infinity too."""
        ...

    def flush(self) -> None:
        """Return when every row so far would survive a loss of power; called before a checkpoint is published."""
        ...


class Sink(Writer, Protocol):
    """Where rows go. `open` is called first, the others only when it returned; but `close` last, whatever happened.

    Any method may raise `OSError`, where the disk is full or the directory is not writable.
    """

    def open(self, first_step: int) -> None:
        """Make ready for rows from `first_step` on.

        Rows with step >= `first_step` that an earlier, killed attempt left are dropped. 0 means a new run.
        """
        ...

    def start(
        self, config: Mapping[str, Any], hyperparameters: Mapping[str, float | str | bool], metric_names: Sequence[str]
    ) -> None:
        """Keep what the run is: its resolved config, what a sweep may vary, and the metrics `finish` will bring."""
        ...

    def finish(self, summary: Mapping[str, Any], figures: Mapping[str, bytes]) -> None:
        """Keep the outcome.

        `summary` has "status" ("finished" or "failed"), "steps" (int) and "metrics" ("valid/rmse" → float, …);
        `figures` has PNG files by name.
        """
        ...

    def close(self) -> None:
        """Give back the files; nothing where none were opened."""
        ...
