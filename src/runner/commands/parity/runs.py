"""The runs behind a table: those of one process here, one after another; those of several in one group of processes.

What a run comes to is read from its run directory; a run that leaves none has its reason beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from runner.compute.launch import launch
from runner.compute.signals import StopRequest
from runner.config import validation
from runner.config.compose import Composed, check
from runner.config.schema import Config, plain
from runner.errors import InputError, Interrupted, ProcessLost, RunFailed, RunnerError
from runner.runs.atomic import write_json
from runner.training.recorder import CHECKPOINTS

if TYPE_CHECKING:
    from torch import Tensor

State = Literal["finished", "failed", "refused"]
GROUP = "runner.commands.parity"
"""The module that each process of a group runs."""


@dataclass(frozen=True)
class Run:
    """One run of the table: its folder, which nothing is in yet, and its configuration."""

    folder: Path
    config: Config

    @property
    def directory(self) -> Path:
        """Its run directory."""
        return self.folder / "run"

    @property
    def ended(self) -> bool:
        return (self.folder / "outcome.json").exists()

    def end(self, error: Exception | None) -> None:
        """Write down how it ended: with an error, or finished."""
        state = "finished" if error is None else "refused" if isinstance(error, InputError) else "failed"
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "outcome.json", {"state": state, "reasons": [] if error is None else told(error)})

    @property
    def outcome(self) -> tuple[State, tuple[str, ...]]:
        """How it ended, and for what reasons."""
        found = json.loads((self.folder / "outcome.json").read_text(encoding="utf-8"))
        return found["state"], tuple(found["reasons"])


def here(runs: Sequence[Run]) -> None:
    """Do runs of one process, one after another. Raises `Interrupted`."""
    with StopRequest() as stop:
        for run in runs:
            run.end(attempt(run))
            if stop.signal_number is not None:
                raise Interrupted(stop.signal_number, "stopped")


def attempt(run: Run) -> Exception | None:
    """Do one run, alone or as one of its processes; gives what went wrong. Raises `Interrupted`."""
    from runner.training.run import execute

    config = validation.replaced(run.config, "run_dir", str(run.directory))[0]
    try:
        execute(lambda earlier: Composed(config, ()), ["python", "-m", "runner", "parity"], quiet=True)
    except Interrupted:
        raise
    except Exception as error:  # an operation that a device or type does not have is a fault of that cell alone
        return error
    return None


def told(error: Exception) -> tuple[str, ...]:
    """What went wrong, as a run would tell it."""
    if isinstance(error, InputError):
        return error.problems
    return (" ".join(str(error).split()) if isinstance(error, RunnerError) else f"{type(error).__name__}: {error}",)


def together(runs: Sequence[Run], folder: Path, say: Callable[[str], None]) -> None:
    """Do runs of several processes, in one group of them. Raises `Interrupted`.

    A run that takes its processes down with it has failed; another group does those after it.
    """
    while waiting := [run for run in runs if not run.ended]:
        plan = {"runs": [{"folder": str(run.folder.resolve()), "config": plain(run.config)} for run in waiting]}
        write_json(folder / "plan.json", plan)
        with StopRequest():  # the launcher leaves handlers of its own behind
            code = launch(waiting[0].config, [str(folder / "plan.json")], GROUP)
        if code >= 128:
            raise Interrupted(code - 128, "stopped")
        if not waiting[0].ended:
            waiting[0].end(RunFailed(f"its processes ended with exit code {code}"))
        if any(not run.ended for run in waiting):
            say("the processes ended early; they are started again for the cells that are left")


def follow(plan: Path, rank: int) -> None:
    """What each process of a group does: all runs of the plan, led by rank 0. Raises what the group cannot go on after."""
    import torch.distributed as dist

    for entry in json.loads(plan.read_text(encoding="utf-8"))["runs"]:
        run = Run(Path(entry["folder"]), check(entry["config"]))
        error = attempt(run)
        if rank == 0:
            run.end(error)
        if error is not None and not _known_to_all(error):
            raise error
        if dist.is_initialized():  # one that heard of an end elsewhere has not taken its connections down
            dist.destroy_process_group()


def _known_to_all(error: Exception) -> bool:
    """Whether all processes have heard of it and can meet again: not after a signal, or where one of them is lost."""
    return isinstance(error, RunnerError) and not isinstance(error, ProcessLost) and error.exit_code < 128


# --------------------------------------------------------------------------------------------------------------- results


@dataclass(frozen=True)
class Trained:
    """What a run came to over its first `steps` steps, or all that it took: parameters by name, and losses [steps]."""

    parameters: dict[str, Tensor]
    losses: Tensor
    seconds_per_step: float


def read(run: Run, steps: int, rows_of: Callable[[int], int]) -> Trained:
    """What is in a finished run's directory; `rows_of` is how many rows a step has.

    Seconds are the median of all steps, each with the row that it writes.
    """
    import torch

    from runner.runs.checkpoint import intact
    from runner.runs.sinks.jsonl import read_rows

    rows: list[dict[str, Any]] = read_rows(run.directory / "metrics.jsonl")
    state = intact(run.directory / CHECKPOINTS / f"step_{min(steps, rows[-1]['step'])}")
    if isinstance(state, str):
        raise RunFailed(f"the last state of {run.directory} cannot be read: {state}")
    seconds = [rows_of(row["step"]) / row["samples_per_second"] for row in rows]
    losses = torch.tensor([float(row["train/loss"]) for row in rows[:steps]], dtype=torch.float64)
    return Trained(state["model"], losses, median(seconds))
