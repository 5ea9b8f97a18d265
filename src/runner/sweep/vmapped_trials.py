"""Training of trials on one device: each batch of one program is vmapped, the other trials train one after another.

Every trial has its own run directory and records.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import Interrupted, Pruned
from runner.runs.atomic import synced_together
from runner.runs.records import CHECKPOINTS, selected_metrics
from runner.sweep.reporter import SweepReporter, TrialResult, Watch
from runner.sweep.trial_batches import PreparedTrial, TrialBatches
from runner.sweep.trials import Trial, by_program
from runner.training.failures import as_run_failed, error_of, python_warnings_to
from runner.training.run import checkpoint_metadata, first_new_row

if TYPE_CHECKING:
    from runner.compute.devices import DeviceChoice
    from runner.compute.processes import Stop
    from runner.training.experiment import RunInfo
    from runner.training.loop import Loop
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
        parts: Any = None
        if reason is None and len(batch) > 1:
            parts, reason = _one_program(batch)
        if parts is not None:
            self.reporter.say(f"trials {_numbers(batch)}: {len(batch)} vmapped, as one program")
            self._train_program(batch, parts.infos, parts, False)
            return
        for item in batch:
            if reason is not None and reason not in self._reasons:
                self._reasons.add(reason)
                self.reporter.say(f"trial {item.trial.number} and others like it are trained one by one: {reason}")
            self._train_alone(item)

    def _train_alone(self, item: PreparedTrial) -> None:
        """Train one trial as a program of its own. If it cannot be built, report that it failed."""
        from runner.compute.processes import SingleProcess
        from runner.training import build

        try:
            parts = build.build(item.config, item.prepared, SingleProcess())
        except Interrupted:
            raise
        except Exception as error:
            item.records.fail_unbuilt(error, self.choice)
            failure = as_run_failed(error, item.config, Path())
            self.reporter.ended({item.trial.number: TrialResult("failed", {}, failure)})
            return
        self._train_program([item], [parts.info], parts, parts.model.draws)

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
                records.begin(members, loop)
                self._warn(batch, parts.warnings)
            startup, steps, seconds = time.perf_counter() - began, loop.step, loop.seconds
            with (
                preserve_rng_state(draws, torch.device(self.choice.torch_device)),
                python_warnings_to(lambda text: self._warn(batch, [[text]] * len(batch))),
            ):
                loop.run()
        except BaseException as error:
            self.reporter.ended(records.fail(members, error))
            if isinstance(error, Interrupted) or not isinstance(error, Exception):
                raise
            return
        elapsed = loop.seconds - seconds
        with synced_together():
            results = records.finish(members, elapsed, startup, steps)
        self.reporter.ended(results)


class _BatchRecords:
    """The run records of the trials of one batch. An error in the records of one trial ends that trial alone."""

    def __init__(self, batch: Sequence[PreparedTrial], infos: Sequence[RunInfo]) -> None:
        self.batch, self.infos = batch, infos

    def open(self, trials: VmappedTrials) -> list[RunState]:
        """Open or create every run directory, and return the states of the runs for the loop."""
        progress = _Progress(trials.reporter, self.infos[0].steps)
        return [self._open(item, info, trials, progress) for item, info in zip(self.batch, self.infos, strict=True)]

    def _open(self, item: PreparedTrial, info: RunInfo, trials: VmappedTrials, progress: _Progress) -> RunState:
        from runner.compute.processes import SingleProcess
        from runner.runs.saver import Saver

        def open_directory() -> None:
            item.opened = item.records.open(info, trials.choice)

        failure = error_of(open_directory)
        saver = Saver(
            Path() if item.opened is None else item.opened.path / CHECKPOINTS,
            checkpoint_metadata(info),
            info.config.checkpoint.keep,
            SingleProcess(),
            sharded=False,
            asynchronous=info.config.checkpoint.async_save,
            timeout_seconds=info.config.launch.timeout_seconds,
        )
        state = info.run_state([*item.records.sinks, progress], saver, item.records.hashes)
        state.failure = failure
        if trials.watch is not None:
            state.should_prune = _should_prune(trials.watch, item.trial.number, info.watched)
        if (loaded := item.loaded) is not None:
            state.resume(loaded)
        return state

    def restore(self, parts: Any) -> tuple[int, float]:
        """Load the checkpoints, all of one step, into the program. Return the step and the seconds trained so far."""
        loaded = [item.loaded for item in self.batch]
        states = [one.state for one in loaded if one is not None]
        if not states:
            return 0, 0.0
        # The lane of a trial whose directory could not be opened is not used.
        parts.join([states[0] if one is None else one.state for one in loaded])
        return self.batch[0].step, max(float(state["seconds"]) for state in states)

    def begin(self, members: Sequence[RunState], loop: Loop) -> None:
        """Start the records of every run that could be opened."""
        for item, member in zip(self.batch, members, strict=True):
            first = first_new_row(loop.calendar, loop.step, member) if loop.step else 0
            if member.failure is None:
                member.failure = error_of(partial(item.records.begin, loop.step, first))

    def finish(self, members: Sequence[RunState], seconds: float, startup: float, first: int) -> dict[int, TrialResult]:
        """Record how each run ended, and return the results by number. `first` is the step at which training started."""
        results = {}
        for item, member in zip(self.batch, members, strict=True):
            pace = (member.step - first) / max(seconds, 1e-9)
            timing = {"seconds": seconds, "steps_per_second": pace, "startup_seconds": startup}
            results[item.trial.number] = self._finish(item, member, timing)
            item.records.close()
        return results

    def _finish(self, item: PreparedTrial, member: RunState, timing: Mapping[str, float]) -> TrialResult:
        if member.failure is not None:
            return self._failed(item, member.failure)
        if member.pruned:
            pruned = Pruned(f"pruned at step {member.step}: it was not worth its time")
            item.records.fail(pruned)
            return TrialResult("pruned", member.selected.metrics if member.selected else {}, pruned)
        try:
            return TrialResult("finished", selected_metrics(item.records.finish(member, timing)))
        except Interrupted:
            raise
        except Exception as error:
            return self._failed(item, error)

    def fail(self, members: Sequence[RunState], error: BaseException) -> dict[int, TrialResult]:
        """Record that an error ended the batch, and return the results by number. A run that failed before keeps its error."""
        results = {}
        state = "interrupted" if isinstance(error, (Interrupted, KeyboardInterrupt)) else "failed"
        for i, item in enumerate(self.batch):
            earlier = members[i].failure if i < len(members) else None
            results[item.trial.number] = self._failed(item, earlier or error, state if earlier is None else "failed")
            item.records.close()
        return results

    def _failed(self, item: PreparedTrial, error: BaseException, state: str = "failed") -> TrialResult:
        recorded = item.records.fail(error)
        return TrialResult(state, {}, as_run_failed(recorded, item.config, Path()))


def _one_program(batch: Sequence[PreparedTrial]) -> tuple[Any, str | None]:
    """Return the program of several trials; or None, and why they are not one program, as the end of a sentence."""
    from runner.training import vmapped

    try:
        infos = [vmapped.run_info_of_lane(item.config, item.prepared, len(batch)) for item in batch]
        program = vmapped.build(infos, [item.model for item in batch])
        reason = vmapped.vmap_error(program)
    except Interrupted:
        raise
    except Exception as error:  # one by one, it ends the trial that it is of
        return None, f"they cannot be built together ({as_run_failed(error, batch[0].config, Path())})"
    return (program, None) if reason is None else (None, reason)


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
