"""The contract of a sink: what receives the rows of metrics of a run.

The loop makes a row at the end of a logged step, and every sink receives the same row. Sinks exist on rank 0 only. A
sink is named in `record.sinks`; its class in `runner.config.schema` names its builder, `build(config, directory,
held)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

Value: TypeAlias = int | float
Row: TypeAlias = Mapping[str, Value]
"""One row of metrics: "step" (int), and numbers by name, such as "train/loss" and "lr"."""


class Writer(Protocol):
    """The part of a sink that the loop calls during training. Every method may raise OSError, which ends the run."""

    def write(self, row: Row) -> None:
        """Write a row.

        Its "step" is larger than that of the previous row. Values may be nan or infinite. Not every row has every
        metric. The call is part of the training time: it should not wait for a device, a disk or a network.
        """
        ...

    def flush(self) -> None:
        """Return once all rows so far would survive a loss of power.

        Called before a checkpoint is published: a resumed run must find the rows up to its checkpoint.
        """
        ...


class Sink(Writer, Protocol):
    """A receiver of the rows and the result of a run.

    The calls are: `open`, `start`, then `write` and `flush` as often as there are rows and checkpoints, `finish`,
    `close`. The same object is used for one attempt only: a resumed run has a new one. `finish` is also called for a
    run that failed after `start`. `close` is always the last call, also if no other method was called, and may come
    twice. Every method may raise OSError.

    A sink that is built with `held` is one of many in the same process, for the trials of a sweep that are trained
    together. It keeps rows in memory until `flush`, and no file open in between.
    """

    def open(self, first_step: int) -> None:
        """Prepare for rows from `first_step` on.

        Rows with step >= `first_step` that an earlier attempt left are dropped, and so are its start and its end: the run
        writes them again. 0 is a new run. Nothing is written yet: `open` is the only call for a sink that a resumed run does
        not use any more.
        """
        ...

    def start(
        self, config: Mapping[str, Any], hyperparameters: Mapping[str, float | str | bool], metric_names: Sequence[str]
    ) -> None:
        """Record what the run is.

        `config` is the resolved configuration as plain values. `hyperparameters` has the values that runs are compared
        by, such as "lr". `metric_names` are the names that the metrics in `finish` will have.
        """
        ...

    def finish(self, summary: Mapping[str, Any], figures: Mapping[str, bytes]) -> None:
        """Record the result.

        `summary` has at least "status" ("finished" or "failed"), "steps" (int) and "metrics" ("valid/rmse" → float).
        That of a finished run is the content of summary.json. `figures` has the plots as PNG files, by name.
        """
        ...

    def close(self) -> None:
        """Close all files. Does nothing if none are open."""
        ...
