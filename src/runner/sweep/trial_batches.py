"""Batches of trials: data and models are built, and the trials of one program are grouped as far as memory allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.compute import sizes
from runner.compute.gc_pause import gc_paused
from runner.config.schema import Config
from runner.errors import ConfigError, Interrupted
from runner.runs.records import CHECKPOINTS
from runner.runs.sinks.reporter import Reporter
from runner.sweep.reporter import SweepReporter, TrialResult
from runner.sweep.shared_data import SharedData
from runner.sweep.trials import Trial, group_by
from runner.training.environment import environment
from runner.training.failures import as_run_failed
from runner.training.recorder import Opened, RunRecorder

if TYPE_CHECKING:
    from runner.compute.devices import DeviceChoice
    from runner.runs.checkpoint import Loaded
    from runner.training.build import Inputs
    from runner.training.initial import Weights


@dataclass
class PreparedTrial:
    """A trial whose data and model are built."""

    trial: Trial
    config: Config
    prepared: Inputs
    model: Any
    records: RunRecorder
    step: int
    """Updates that an earlier attempt has saved."""
    opened: Opened | None = None

    @property
    def loaded(self) -> Loaded | None:
        """The checkpoint that the open directory is resumed from."""
        return None if self.opened is None else self.opened.loaded


class TrialBatches:
    """Builds trials on one device, and groups those that can be vmapped.

    `command` is recorded in each run. `memory_bytes` returns how much memory a batch may take.
    """

    def __init__(
        self, choice: DeviceChoice, command: Sequence[str], reporter: SweepReporter, memory_bytes: Callable[[], float]
    ) -> None:
        self._choice, self._command, self._reporter, self._memory_bytes = choice, command, reporter, memory_bytes
        self._environment = cache(environment)
        self._data = SharedData()
        self._read_weights = cache(_read_weights)

    def check(self, trials: Sequence[Trial]) -> None:
        """Check that the trials fit the device. Raises `ConfigError` with every problem and its first trial."""
        from runner.training import build

        problems: dict[str, int] = {}
        for trial in trials:
            for problem in [*build.misfits(trial.config, self._choice, 1), *sizes.problems(trial.config)]:
                problems.setdefault(problem, trial.number)
        if problems:
            raise ConfigError(f"trial {number}: {problem}" for problem, number in problems.items())

    def split(self, trials: Sequence[Trial]) -> Iterator[tuple[list[PreparedTrial], str | None]]:
        """Build the trials of one program, and yield them in batches that fit in memory.

        A trial that cannot be vmapped is a batch of its own, with the reason. Trials that cannot be built are reported as
        failed and left out.
        """
        from runner.training import vmapped

        waiting = list(trials)
        self._data = SharedData(trial.config for trial in trials)
        while waiting:
            first = self._prepare(waiting[0])
            if first is None:
                waiting.pop(0)
                continue
            reason = vmapped.not_vmappable_because(first.config, first.prepared)
            if reason is not None or len(trials) == 1:
                waiting.pop(0)
                yield [first], reason
                continue
            most = max(1, int(self._memory_bytes() // vmapped.bytes_per_lane(first.config, first.prepared)))
            chosen, waiting = waiting[1:most], waiting[most:]
            batch = [first, *(prepared for trial in chosen if (prepared := self._prepare(trial)) is not None)]
            for group in group_by(batch, lambda item: (vmapped.shapes(item.prepared), item.step)):
                yield group, None
        self._data = SharedData()

    def _prepare(self, trial: Trial) -> PreparedTrial | None:
        """Build data and model of a trial. Return None, and report its failure, if that is not possible."""
        from runner.runs import saved_state
        from runner.training import build

        config = trial.resumed_config()
        records = RunRecorder(
            config, trial.overrides, self._command, Reporter(quiet=True), self._environment, trial.values, held=True
        )
        try:
            with gc_paused():
                records.config = resolved = build.resolve(config, self._choice, 1)
                prepared, _ = build.prepare(
                    resolved,
                    self._choice,
                    1,
                    report=self._reporter.warn,
                    build_data=self._data.build,
                    read_weights=self._read_weights,
                )
            best, loaded = resolved.train.reports_best, None
            if config.resume is not None:
                loaded = saved_state.load(Path(config.resume) / CHECKPOINTS, best=best)
        except Interrupted:
            raise
        except Exception as error:
            records.fail_unbuilt(error, self._choice)
            failure = as_run_failed(error, config, Path())
            self._reporter.ended({trial.number: TrialResult("failed", {}, failure)})
            return None
        return PreparedTrial(trial, resolved, prepared, prepared.model, records, 0 if loaded is None else loaded.step)


def _read_weights(run: str) -> Weights:
    from runner.training import initial

    return initial.read(run)


def free_bytes(kind: str) -> float:
    """Return half of the free memory of the device, or of the host for a CPU, in bytes."""
    import torch

    if kind in ("cuda", "rocm"):
        return torch.cuda.mem_get_info()[0] / 2
    return sizes.available_bytes() / 2
