"""Training of trials on one device: each batch of one program is vmapped, the other trials train one after another.

Every trial has its own run directory and records.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import Interrupted, Pruned, RunnerError
from runner.runs.atomic import synced_together
from runner.sweep.reporter import SweepReporter, TrialResult, Watch
from runner.sweep.trial_batches import PreparedTrial, TrialBatches
from runner.sweep.trials import Trial, by_program
from runner.training.failures import as_failure
from runner.training.recorder import CHECKPOINTS
from runner.training.run import checkpoint_metadata, first_new_row

if TYPE_CHECKING:
    from runner.compute.devices import DeviceChoice
    from runner.compute.processes import Stop
    from runner.training.experiment import RunInfo
    from runner.training.run_state import RunState

PROGRESS_SECONDS = 10.0
"""Shortest time between two lines on the progress of a batch."""


@dataclass
class VmappedTrials:
    """Runs trials on one device. `command` is what the user typed; `watch` may end a trial early."""

    choice: DeviceChoice
    stop: Stop
    command: Sequence[str]
    reporter: SweepReporter
    memory_bytes: Callable[[], float]
    watch: Watch | None = None

    def __post_init__(self) -> None:
        self._reasons: set[str] = set()  # printed so far

    def run(self, trials: Sequence[Trial]) -> None:
        """Run every trial to its end.

        Raises `ConfigError` before any trial starts, and `Interrupted` after a signal, with all states saved.
        """
        batches = TrialBatches(self.choice, self.command, self.reporter, self.memory_bytes)
        batches.check(trials)
        for program in by_program(trials):
            for batch, reason in batches.split(program):
                self.reporter.began([item.trial.number for item in batch])
                self._train(batch, reason)

    def _train(self, batch: Sequence[PreparedTrial], reason: str | None) -> None:
        """Train a batch as one program, or its trials one by one if there is a reason or vmap refuses the model."""
        from runner.compute.processes import SingleProcess
        from runner.training import build, vmapped

        parts: Any = None
        infos = [vmapped.run_info_of_lane(item.config, item.prepared, len(batch)) for item in batch]
        if reason is None and len(batch) > 1:
            parts = vmapped.build(infos, [item.model for item in batch])
            reason = vmapped.vmap_error(parts)
        if reason is not None or len(batch) == 1:
            for item in batch:
                if reason is not None and reason not in self._reasons:
                    self._reasons.add(reason)
                    self.reporter.say(f"trial {item.trial.number} and others like it are trained one by one: {reason}")
                parts = build.build(item.config, item.prepared, SingleProcess())
                self._train_program([item], [parts.info], parts, parts.model.draws)
            return
        self.reporter.say(f"trials {_numbers(batch)}: {len(batch)} vmapped, as one program")
        self._train_program(batch, infos, parts, False)

    def _warn(self, batch: Sequence[PreparedTrial], warnings: Sequence[Sequence[str]]) -> None:
        """Write its warnings to the log of each run. Print how many runs have any, and the first warning."""
        for item, texts in zip(batch, warnings, strict=True):
            for text in texts:
                item.records.warn(text)
        warned = [(item.trial.number, texts[0]) for item, texts in zip(batch, warnings, strict=True) if texts]
        if warned:
            number, text = warned[0]
            self.reporter.warn(
                f"{len(warned)} of {len(batch)} trials have a warning in their run.log, such as trial {number}: {text}"
            )

    def _train_program(self, batch: Sequence[PreparedTrial], infos: Sequence[RunInfo], parts: Any, draws: bool) -> None:
        """Open the directories of a batch, train it as one program, and record how each run ended."""
        import torch

        from runner.compute.rng import preserve_rng_state

        began = time.perf_counter()
        records = _BatchRecords(batch, infos)
        members: Sequence[RunState] = ()
        try:
            with synced_together():
                members = records.open(self)
                loop = parts.loop(members, self.stop)
                loop.saving = synced_together
                loop.step, loop.seconds = records.restore(parts)
                for item, member in zip(batch, members, strict=True):
                    first = 0 if item.opened is None or item.config.resume is None else 1
                    if loop.step:
                        first = first_new_row(loop.calendar, loop.step, member)
                    item.records.begin(loop.step, first)
                self._warn(batch, parts.warnings)
            startup, steps, seconds = time.perf_counter() - began, loop.step, loop.seconds
            with preserve_rng_state(draws, torch.device(self.choice.torch_device)):
                loop.run()
        except BaseException as error:
            failure = as_failure(error, batch[0].config, Path()) or error
            self.reporter.ended(records.fail(members, failure))
            if isinstance(error, (Interrupted, KeyboardInterrupt)) or not isinstance(failure, RunnerError):
                raise
            return
        elapsed = loop.seconds - seconds
        with synced_together():
            results = records.finish(members, elapsed, startup, steps)
        self.reporter.ended(results)


class _BatchRecords:
    """The run records of the trials of one batch."""

    def __init__(self, batch: Sequence[PreparedTrial], infos: Sequence[RunInfo]) -> None:
        self.batch, self.infos = batch, infos

    def open(self, trials: VmappedTrials) -> list[RunState]:
        """Open or create every run directory, and return the states of the runs for the loop."""
        from runner.compute.processes import SingleProcess
        from runner.runs.saver import Saver

        states, progress = [], _Progress(trials.reporter, self.infos[0].steps)
        for item, info in zip(self.batch, self.infos, strict=True):
            opened = item.opened = item.records.open(info, trials.choice)
            assert opened is not None
            saver = Saver(
                opened.path / CHECKPOINTS,
                checkpoint_metadata(info),
                info.config.checkpoint.keep,
                SingleProcess(),
                sharded=False,
                asynchronous=info.config.checkpoint.async_save,
                timeout_seconds=info.config.launch.timeout_seconds,
            )
            state = info.run_state([*item.records.sinks, progress], saver, item.records.hashes)
            if trials.watch is not None:
                state.should_prune = _should_prune(trials.watch, item.trial.number, info.watched)
            if opened.loaded is not None:
                state.load_decisions(opened.loaded.state)
                state.saved_step = opened.loaded.step
            states.append(state)
        return states

    def restore(self, parts: Any) -> tuple[int, float]:
        """Load the checkpoints, all of one step, into the program. Return the step and the seconds trained so far."""
        states = [
            item.opened.loaded.state
            for item in self.batch
            if item.opened is not None and item.opened.loaded is not None
        ]
        if not states:
            return 0, 0.0
        parts.join(states)
        return self.batch[0].step, max(float(state["seconds"]) for state in states)

    def finish(self, members: Sequence[RunState], seconds: float, startup: float, first: int) -> dict[int, TrialResult]:
        """Record how each run ended, and return the results by number. `first` is the step at which training started."""
        results = {}
        for item, member in zip(self.batch, members, strict=True):
            if member.failure is not None:
                results[item.trial.number] = TrialResult("failed", {}, item.records.fail(member.failure))
            elif member.pruned:
                pruned = Pruned(f"pruned at step {member.step}: it was not worth its time")
                item.records.fail(pruned)
                results[item.trial.number] = TrialResult("pruned", member.outcome.metrics, pruned)
            else:
                pace = (member.step - first) / max(seconds, 1e-9)
                timing = {"seconds": seconds, "steps_per_second": pace, "startup_seconds": startup}
                summary = item.records.finish(member, timing)
                results[item.trial.number] = TrialResult("finished", summary["metrics"])
            item.records.close()
        return results

    def fail(self, members: Sequence[RunState], error: BaseException) -> dict[int, TrialResult]:
        """Record that an error ended the batch, and return the results by number. A run that failed before keeps its error."""
        results = {}
        state = "interrupted" if isinstance(error, (Interrupted, KeyboardInterrupt)) else "failed"
        for i, item in enumerate(self.batch):
            earlier = members[i].failure if i < len(members) else None
            recorded = item.records.fail(earlier or error)
            results[item.trial.number] = TrialResult(state if earlier is None else "failed", {}, recorded)
            item.records.close()
        return results


class _Progress:
    """A sink, shared by all runs of a batch, that prints their step from time to time."""

    def __init__(self, reporter: SweepReporter, steps: int) -> None:
        self._reporter, self._steps = reporter, steps
        self._step, self._printed = 0, time.monotonic()

    def write(self, row: Mapping[str, Any]) -> None:
        """Print the step of a row if the previous line is old enough."""
        now = time.monotonic()
        if row["step"] > self._step and now - self._printed > PROGRESS_SECONDS:
            self._printed = now
            self._reporter.say(f"         step {row['step']:,} of {self._steps:,}")
        self._step = max(self._step, row["step"])

    def flush(self) -> None:
        """Do nothing: lines are printed at once."""


def _should_prune(watch: Watch, number: int, watched: str) -> Callable[[Mapping[str, Any]], bool]:
    """Return the function that passes rows with watched metrics of trial `number` to `watch`."""

    def should_prune(row: Mapping[str, Any]) -> bool:
        return any(name.startswith(f"{watched}/") and name != "train/loss" for name in row) and watch(
            number, row["step"], {name: value for name, value in row.items() if "/" in name}
        )

    return should_prune


def _numbers(batch: Sequence[PreparedTrial]) -> str:
    """Return the numbers of the trials: first and last if they are consecutive, else the first five."""
    numbers = sorted(item.trial.number for item in batch)
    if numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]}-{numbers[-1]}"
    return ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
