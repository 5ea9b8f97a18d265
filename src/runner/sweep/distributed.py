"""A sweep on the processes that a launcher such as torchrun started: rank 0 leads every trial, the others follow.

Where the strategy is left to the runner, each process trains a share of the trials, side by side. Where one is asked for,
each trial is trained by all processes, one trial after another.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from runner.compute import processes as worlds
from runner.compute.signals import StopRequest
from runner.config.compose import Composed, check
from runner.config.schema import plain, program
from runner.errors import ProcessLost, RunnerError
from runner.sweep.trials import Trial

if TYPE_CHECKING:
    from runner.compute.processes import World
    from runner.sweep.vmapped_trials import Report, Result, Watch

FOREVER_SECONDS = 30 * 86_400.0
"""Longest wait for the share of another process, whose end is noticed at once and whose work may be long."""


def train(trials: Sequence[Trial], command: Sequence[str], report: Report, watch: Watch | None) -> None:
    """Run trials here, and on the processes that follow. Raises `ConfigError` before anything is started, and `Interrupted`."""
    if not worlds.launched(os.environ):
        _side_by_side(worlds.SingleProcess(), trials, command, report, watch)
        return
    plan = {
        "command": list(command),
        "trials": [
            {"number": t.number, "words": list(t.words), "config": plain(t.config), "values": dict(t.values)}
            for t in trials
        ],
    }
    with worlds.find(os.environ) as world:
        world.send_config(plan)
        _share(world, trials, command, report)
    _one_by_one(trials, command, report)


def follow() -> None:
    """What every process but the leading one does in a sweep, until rank 0 says that it has ended."""
    while True:
        with worlds.find(os.environ) as world:
            plan = world.receive_config()
            if plan["trials"] is None:
                return
            trials = [Trial(t["number"], tuple(t["words"]), check(t["config"]), t["values"]) for t in plan["trials"]]
            _share(world, trials, plan["command"], _Silent())
        _one_by_one(trials, plan["command"], _Silent())


def release_followers() -> None:
    """Tell the processes that follow that the sweep has ended."""
    if worlds.launched(os.environ):
        with worlds.find(os.environ) as world:
            world.send_config({"trials": None})


def _share(world: World, trials: Sequence[Trial], command: Sequence[str], report: Report) -> None:
    """This process's trials: of every program as many as any other process has, or one more."""
    dealt = [trial for trial in trials if trial.config.strategy.name == "auto"]
    if not dealt:
        return
    world.connect("cpu", FOREVER_SECONDS)
    own = [trial for group in _by_program(dealt) for trial in group[world.rank :: world.size]]
    _side_by_side(world, own, command, report, None)
    world.any(False)  # all of them have come here


def _by_program(trials: Sequence[Trial]) -> list[list[Trial]]:
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(program(trial.config), []).append(trial)
    return list(groups.values())


def _side_by_side(
    world: World,
    trials: Sequence[Trial],
    command: Sequence[str],
    report: Report,
    watch: Watch | None,
) -> None:
    from runner.compute.devices import set_up_device
    from runner.sweep.vmapped_trials import Together, free_bytes

    groups = _by_device(trials)
    for own in groups:  # one that is not there is refused before anything is trained on another
        set_up_device(own[0].config, report.warn if world.rank == 0 else None, world)
    for own in groups:
        choice = set_up_device(own[0].config, None, world)
        budget = own[0].config.sweep.memory_gib

        def memory(kind: str = choice.kind, budget: float | None = budget) -> float:
            return free_bytes(kind) if budget is None else budget * 2**30

        with StopRequest() as stop:
            Together(choice, stop, command, report, memory, watch).run(own)


def _by_device(trials: Sequence[Trial]) -> list[list[Trial]]:
    groups: dict[tuple[Any, bool], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.config.device, trial.config.deterministic), []).append(trial)
    return list(groups.values())


def _one_by_one(trials: Sequence[Trial], command: Sequence[str], report: Report) -> None:
    """Trials whose strategy spreads each of them over all processes."""
    for trial in trials:
        if trial.config.strategy.name != "auto":
            report.began([trial.number])
            result = _on_all(trial, command)
            report.ended({trial.number: result})
            if result.state == "interrupted" and result.error is not None:
                raise result.error


def _on_all(trial: Trial, command: Sequence[str]) -> Result:
    from runner.sweep.vmapped_trials import Result
    from runner.training.run import execute

    try:
        run = execute(lambda earlier: Composed(trial.going_on(), trial.words), command, quiet=True)
    except RunnerError as error:
        # After a process was lost the others cannot go on; what all of them know of, such as a divergence, ends one trial.
        ends = error.exit_code >= 128 or isinstance(error, ProcessLost)
        return Result("interrupted" if ends else "failed", {}, error)
    return Result("finished", run.summary.get("metrics", {}))


class _Silent:
    """The leading process reads how the trials of the others ended from their records."""

    def say(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass

    def began(self, numbers: Sequence[int]) -> None:
        pass

    def ended(self, results: Any) -> None:
        pass
