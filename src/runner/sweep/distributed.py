"""A sweep on the processes that a launcher such as torchrun started: rank 0 leads every trial, the others follow.

With `strategy=auto` each process trains a share of the trials, vmapped. With another strategy all processes train each trial
together, one trial after another.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.compute import processes as worlds
from runner.compute.signals import StopRequest
from runner.config.compose import Composed, check
from runner.config.schema import plain
from runner.errors import ProcessLost
from runner.runs.records import selected_metrics
from runner.sweep.reporter import SilentReporter, SweepReporter, TrialResult, Watch
from runner.sweep.trials import Trial, by_program
from runner.training.failures import as_run_failed

if TYPE_CHECKING:
    from runner.compute.processes import World

SHARE_TIMEOUT_SECONDS = 30 * 86_400.0
"""Longest wait for the share of another process. Its work may be long; its end is noticed at once."""


def train(trials: Sequence[Trial], command: Sequence[str], reporter: SweepReporter, watch: Watch | None) -> None:
    """Run trials here, and on the processes that follow.

    Raises `ConfigError` before any trial starts, and `Interrupted` after a signal.
    """
    if not worlds.launched(os.environ):
        _train_vmapped(worlds.SingleProcess(), trials, command, reporter, watch)
        return
    plan = {
        "command": list(command),
        "trials": [
            {"number": t.number, "overrides": list(t.overrides), "config": plain(t.config), "values": dict(t.values)}
            for t in trials
        ],
    }
    with worlds.find(os.environ) as world:
        world.send_config(plan)
        _train_share(world, trials, command, reporter)
    _train_on_all_processes(trials, command, reporter)


def follow() -> None:
    """Train shares of trials as rank 0 requests, until it ends the sweep. For all processes but rank 0."""
    while True:
        with worlds.find(os.environ) as world:
            plan = world.receive_config()
            if plan["trials"] is None:
                return
            trials = [
                Trial(t["number"], tuple(t["overrides"]), check(t["config"]), t["values"]) for t in plan["trials"]
            ]
            _train_share(world, trials, plan["command"], SilentReporter())
        _train_on_all_processes(trials, plan["command"], SilentReporter())


def release_followers() -> None:
    """Let the other processes return from `follow`: the sweep has ended."""
    if worlds.launched(os.environ):
        with worlds.find(os.environ) as world:
            world.send_config({"trials": None})


def _train_share(world: World, trials: Sequence[Trial], command: Sequence[str], reporter: SweepReporter) -> None:
    """Train this process's share of every program. Shares of one program differ by at most one trial."""
    shared = [trial for trial in trials if trial.config.strategy.name == "auto"]
    if not shared:
        return
    world.connect("cpu", SHARE_TIMEOUT_SECONDS)
    share = [trial for group in by_program(shared) for trial in group[world.rank :: world.size]]
    _train_vmapped(world, share, command, reporter, None)
    world.any(False)  # a barrier


def _train_vmapped(
    world: World,
    trials: Sequence[Trial],
    command: Sequence[str],
    reporter: SweepReporter,
    watch: Watch | None,
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

        with StopRequest() as stop:
            VmappedTrials(choice, stop, command, reporter, memory, watch).run(group)


def _by_device(trials: Sequence[Trial]) -> list[list[Trial]]:
    groups: dict[tuple[Any, bool], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.config.device, trial.config.deterministic), []).append(trial)
    return list(groups.values())


def _train_on_all_processes(trials: Sequence[Trial], command: Sequence[str], reporter: SweepReporter) -> None:
    """Train the trials whose strategy spreads each of them over all processes."""
    for trial in trials:
        if trial.config.strategy.name != "auto":
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
