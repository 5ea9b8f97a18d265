"""Runs of a parity table: those of one process in this process, those of several processes in one group of processes.

The result of a run is read from its run directory. The outcome, with the reason of a failure, is in a file next to it.
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
from runner.runs.records import CHECKPOINTS

if TYPE_CHECKING:
    from torch import Tensor

State = Literal["finished", "failed", "refused"]
GROUP = "runner.commands.parity"
"""Module that each process of a group runs."""


@dataclass(frozen=True)
class ParityRun:
    """One run of the table: its folder, which is empty at first, and its configuration."""

    folder: Path
    config: Config

    @property
    def directory(self) -> Path:
        """Run directory, inside `folder`."""
        return self.folder / "run"

    @property
    def ended(self) -> bool:
        """Whether the outcome of the run is known."""
        return (self.folder / "outcome.json").exists()

    def end(self, error: Exception | None) -> None:
        """Write the outcome: finished (`error` is None), refused or failed."""
        state = "finished" if error is None else "refused" if isinstance(error, InputError) else "failed"
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(
            self.folder / "outcome.json", {"state": state, "reasons": [] if error is None else error_reasons(error)}
        )

    @property
    def outcome(self) -> tuple[State, tuple[str, ...]]:
        """State of the ended run, and the reasons for it."""
        outcome = json.loads((self.folder / "outcome.json").read_text(encoding="utf-8"))
        return outcome["state"], tuple(outcome["reasons"])


def run_here(runs: Sequence[ParityRun]) -> None:
    """Do runs of one process, one after the other. Raises `Interrupted`."""
    with StopRequest() as stop:
        for run in runs:
            run.end(attempt(run))
            if stop.signal_number is not None:
                raise Interrupted(stop.signal_number, "stopped")


def attempt(run: ParityRun) -> Exception | None:
    """Do one run, or the part of this process in it, and return its error, if any. Raises `Interrupted`."""
    from runner.training.run import execute

    config = validation.replaced(run.config, "run_dir", str(run.directory))[0]
    try:
        execute(lambda earlier: Composed(config, ()), ["python", "-m", "runner", "parity"], quiet=True)
    except Interrupted:
        raise
    except Exception as error:  # for example an operation that the device or dtype lacks; other cells can still run
        return error
    return None


def error_reasons(error: Exception) -> tuple[str, ...]:
    """Return the problems as a run would report them."""
    if isinstance(error, InputError):
        return error.problems
    return (" ".join(str(error).split()) if isinstance(error, RunnerError) else f"{type(error).__name__}: {error}",)


def run_in_group(runs: Sequence[ParityRun], folder: Path, say: Callable[[str], None]) -> None:
    """Do runs of several processes in one group of processes. Raises `Interrupted`.

    A run that ends its processes has failed; a new group does the remaining runs.
    """
    while waiting := [run for run in runs if not run.ended]:
        plan = {"runs": [{"folder": str(run.folder.resolve()), "config": plain(run.config)} for run in waiting]}
        write_json(folder / "plan.json", plan)
        with StopRequest():  # the launcher leaves its own signal handlers installed
            code = launch(waiting[0].config, [str(folder / "plan.json")], GROUP)
        if code >= 128:
            raise Interrupted(code - 128, "stopped")
        if not waiting[0].ended:
            waiting[0].end(RunFailed(f"its processes ended with exit code {code}"))
        if any(not run.ended for run in waiting):
            say("the processes ended early; starting new ones for the remaining cells")


def run_plan(plan: Path, rank: int) -> None:
    """Do all runs of a plan as one process of a group; rank 0 writes the outcomes.

    Raises an error after which the group cannot continue.
    """
    import torch.distributed as dist

    for entry in json.loads(plan.read_text(encoding="utf-8"))["runs"]:
        run = ParityRun(Path(entry["folder"]), check(entry["config"]))
        error = attempt(run)
        if rank == 0:
            run.end(error)
        if error is not None and not _can_continue(error):
            raise error
        if dist.is_initialized():  # still there if the run ended with an error on another rank
            dist.destroy_process_group()


def _can_continue(error: Exception) -> bool:
    """Whether all processes know of the error and can form a group again: not after a signal or a lost process."""
    return isinstance(error, RunnerError) and not isinstance(error, ProcessLost) and error.exit_code < 128


# --------------------------------------------------------------------------------------------------------------- results


@dataclass(frozen=True)
class TrainingResult:
    """Result of a run after its first steps: parameters by name, losses [steps] and time per step."""

    parameters: dict[str, Tensor]
    losses: Tensor
    seconds_per_step: float


def read_result(run: ParityRun, steps: int, rows_of: Callable[[int], int]) -> TrainingResult:
    """Read the result of a finished run after `steps` steps, or after all of them if it took fewer.

    `rows_of` gives the number of data rows of a step. `seconds_per_step` is the median, including writing the row of the step.
    Raises `RunFailed` if the checkpoint cannot be read.
    """
    import torch

    from runner.runs.saved_state import intact
    from runner.runs.sinks.jsonl import read_rows

    rows: list[dict[str, Any]] = read_rows(run.directory / "metrics.jsonl")
    state = intact(run.directory / CHECKPOINTS / f"step_{min(steps, rows[-1]['step'])}")
    if isinstance(state, str):
        raise RunFailed(f"the last checkpoint of {run.directory} cannot be read: {state}")
    seconds = [rows_of(row["step"]) / row["samples_per_second"] for row in rows]
    losses = torch.tensor([float(row["train/loss"]) for row in rows[:steps]], dtype=torch.float64)
    return TrainingResult(state["model"], losses, median(seconds))
