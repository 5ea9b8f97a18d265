"""A sweep on the processes that a launcher such as torchrun started: rank 0 leads every trial, the others follow.

With `strategy=auto` each process trains a share of the trials, vmapped. With another strategy all processes train each trial
together, one trial after another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.compute import processes as worlds
from runner.compute.signals import StopRequest
from runner.config.compose import Composed, check
from runner.config.schema import plain
from runner.errors import ForcedStop, Interrupted, ProcessLost, RunFailed, RunnerError
from runner.runs.records import selected_metrics
from runner.sweep.reporter import SilentReporter, SweepReporter, TrialResult, Watch
from runner.sweep.trials import Trial, by_program
from runner.training.failures import as_run_failed

if TYPE_CHECKING:
    from runner.compute.processes import World

_world: ContextVar[World] = ContextVar("_world")
"""The processes that train the trials of the sweep; without a value it is this one."""


@dataclass
class End:
    """How a sweep ended."""

    directory: Path | None = None
    """Directory of the sweep, which has its results; None without them."""


@contextmanager
def leading() -> Iterator[End]:
    """Lead the other processes of the launcher: `train` shares trials with them, and at the end they return from `follow`.

    The block says in what this returns how the sweep ended.
    """
    error, end = None, End()
    with worlds.find(os.environ) as world:
        led = _world.set(world)
        try:
            yield end
        except ForcedStop:
            raise
        except Exception as caught:  # how a sweep ends is no failure of the processes
            error = caught
        finally:
            _world.reset(led)
        # A signal before the processes have met ends each of them by itself.
        if world.met or not isinstance(error, Interrupted):
            with suppress(RunFailed):  # nobody is left to follow
                world.send_config({"trials": None, "directory": end.directory and str(end.directory)})
    if error is not None:
        raise error


def follow() -> Path | None:
    """Train shares of trials as rank 0 requests, until it ends the sweep. For all processes but rank 0.

    Return the directory of the sweep, or None if it ended without results.
    """
    with worlds.find(os.environ) as world:
        plan = world.receive_config()
        with StopRequest() as stop:
            while plan["trials"] is not None:
                trials = [
                    Trial(t["number"], tuple(t["overrides"]), check(t["config"]), t["values"]) for t in plan["trials"]
                ]
                try:
                    _train_together_or_apart(world, trials, plan["command"], SilentReporter(), None)
                except RunnerError as error:
                    if isinstance(error, ForcedStop) or error.exit_code < 128:
                        raise
                    stop.request(error.exit_code - 128)  # rank 0 ends the sweep
                plan = world.receive_config(stop)
    return None if plan["directory"] is None else Path(plan["directory"])


def train(trials: Sequence[Trial], command: Sequence[str], reporter: SweepReporter, watch: Watch | None) -> None:
    """Run trials here, and on the processes that follow.

    Raises `ConfigError` before any trial starts, and `Interrupted` after a signal.
    """
    world = _world.get(worlds.SingleProcess())
    if world.size > 1:
        plans = [
            {"number": t.number, "overrides": list(t.overrides), "config": plain(t.config), "values": dict(t.values)}
            for t in trials
        ]
        world.send_config({"command": list(command), "trials": plans})
    _train_together_or_apart(world, trials, command, reporter, watch)


def _train_together_or_apart(
    world: World, trials: Sequence[Trial], command: Sequence[str], reporter: SweepReporter, watch: Watch | None
) -> None:
    """Train this process's share of every program, then the trials whose strategy spreads each of them over all processes.

    Shares of one program differ by at most one trial.
    """
    apart = [trial for trial in trials if world.size == 1 or trial.config.strategy.name == "auto"]
    together = [trial for trial in trials if world.size > 1 and trial.config.strategy.name != "auto"]
    if apart:
        share = [trial for group in by_program(apart) for trial in group[world.rank :: world.size]]
        world.work_apart(
            lambda stop: _train_vmapped(world, share, command, reporter, watch=watch, stop=stop),
            max(trial.config.launch.timeout_seconds for trial in apart),
        )
    _train_on_all_processes(together, command, reporter)


def _train_vmapped(
    world: World,
    trials: Sequence[Trial],
    command: Sequence[str],
    reporter: SweepReporter,
    *,
    watch: Watch | None,
    stop: StopRequest,
) -> None:
    from runner.compute.devices import set_up_device
    from runner.sweep.trial_batches import free_bytes
    from runner.sweep.vmapped_trials import VmappedTrials

    groups = _by_device(trials)
    for group in groups:  # a missing device is refused before any trial trains on another one
        set_up_device(group[0].config, reporter.warn if world.rank == 0 else None, world)
    for group in groups:
        choice = set_up_device(group[0].config, None, world)
        budget = group[0].config.sweep.memory_gib

        def memory(kind: str = choice.kind, budget: float | None = budget) -> float:
            return free_bytes(kind) if budget is None else budget * 2**30

        VmappedTrials(choice, stop, command, reporter, memory, watch).run(group)


def _by_device(trials: Sequence[Trial]) -> list[list[Trial]]:
    groups: dict[tuple[Any, bool], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.config.device, trial.config.deterministic), []).append(trial)
    return list(groups.values())


def _train_on_all_processes(trials: Sequence[Trial], command: Sequence[str], reporter: SweepReporter) -> None:
    """Train the trials whose strategy spreads each of them over all processes."""
    for trial in trials:
        reporter.began([trial.number])
        result = _train_together(trial, command)
        reporter.ended({trial.number: result})
        if result.state == "interrupted" and result.error is not None:
            raise result.error


def _train_together(trial: Trial, command: Sequence[str]) -> TrialResult:
    from runner.training.run import execute

    try:
        run = execute(lambda earlier: Composed(trial.resumed_config(), trial.overrides), command, quiet=True)
    except Exception as error:
        # A lost process ends the sweep: the others cannot continue. An error on all ranks, such as a divergence, ends the trial.
        failure = as_run_failed(error, trial.config, Path())
        ends_sweep = failure.exit_code >= 128 or isinstance(failure, ProcessLost)
        _leave_group()
        return TrialResult("interrupted" if ends_sweep else "failed", {}, failure)
    return TrialResult("finished", selected_metrics(run.summary))


def _leave_group() -> None:
    """Leave the group of processes that a trial with an error on one of them has not left."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
