"""Trials side by side: those of one program are trained together, the others one after another, each with its own records."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from runner.compute.gc_pause import gc_paused
from runner.config.schema import Config, plain, program
from runner.errors import ConfigError, Interrupted, Pruned, RunnerError
from runner.runs.atomic import synced_together
from runner.runs.sinks.reporter import Reporter
from runner.training.environment import environment
from runner.training.failures import as_failure
from runner.training.recorder import CHECKPOINTS, Opened, RunRecorder
from runner.training.run import checkpoint_metadata, first_new_row

if TYPE_CHECKING:
    from runner.compute.devices import DeviceChoice
    from runner.compute.processes import Stop
    from runner.data.dataset import Dataset
    from runner.sweep.trials import Trial
    from runner.training.build import Inputs
    from runner.training.experiment import RunInfo
    from runner.training.run_state import RunState

Watch = Callable[[int, int, Mapping[str, float]], bool]
"""Told a trial's number, its step and a row of its metrics; answers whether the trial ends now."""


PROGRESS_SECONDS = 10.0
"""Shortest time between two lines on how far trials are."""


@dataclass(frozen=True)
class Result:
    """How a trial ended: its state, what it came to, and why it did not finish."""

    state: str
    metrics: Mapping[str, float]
    error: BaseException | None = None


class Report(Protocol):
    """Who hears how the sweep goes on."""

    def say(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def began(self, numbers: Sequence[int]) -> None: ...
    def ended(self, results: Mapping[int, Result]) -> None: ...


@dataclass
class _Ready:
    """A trial whose data and model are made."""

    trial: Trial
    config: Config
    prepared: Inputs
    model: Any
    records: RunRecorder
    step: int
    """Updates that an earlier attempt has saved."""
    opened: Opened | None = None


@dataclass
class Together:
    """Runs trials on one device. `command` is what the user typed; `watch` may end a trial early."""

    choice: DeviceChoice
    stop: Stop
    command: Sequence[str]
    report: Report
    memory_bytes: Callable[[], float]
    watch: Watch | None = None

    def __post_init__(self) -> None:
        self._around = cache(environment)
        self._reasons: set[str] = set()
        self._made: dict[str, Dataset] = {}

    def _data(self, config: Any, seed: int, dtype: Any, device: Any) -> Dataset:
        """The data of a trial; made once for those that have the same."""
        from runner.data import dataset

        key = json.dumps([plain(config), seed if config.seed is None else config.seed])
        if key not in self._made:
            self._made[key] = dataset.build(config, seed, dtype, device)
        return self._made[key]

    def run(self, trials: Sequence[Trial]) -> None:
        """Every trial, to its end. Raises `ConfigError` before anything is started, and `Interrupted` with all states saved."""
        self._refuse_misfits(trials)
        for group in _by_program(trials):
            for batch, alone in self._batches(group):
                self.report.began([ready.trial.number for ready in batch])
                self._train(batch, alone)
            self._made.clear()

    def _refuse_misfits(self, trials: Sequence[Trial]) -> None:
        from runner.training import build

        problems: dict[str, int] = {}
        for trial in trials:
            for problem in build.misfits(trial.config, self.choice, 1):
                problems.setdefault(problem, trial.number)
        if problems:
            raise ConfigError(f"trial {number}: {problem}" for problem, number in problems.items())

    # -------------------------------------------------------------------------------------------------------- grouping

    def _batches(self, trials: Sequence[Trial]) -> Iterator[tuple[list[_Ready], str | None]]:
        """Trials that are trained at once, as many as fit in memory; or one that must be alone, with the reason."""
        from runner.training import vmapped

        waiting = list(trials)
        while waiting:
            first = self._ready(waiting[0])
            if first is None:
                waiting.pop(0)
                continue
            reason = vmapped.not_vmappable_because(first.config, first.prepared)
            if reason is not None or len(trials) == 1:
                waiting.pop(0)
                yield [first], reason
                continue
            most = max(1, int(self.memory_bytes() // vmapped.bytes_per_lane(first.config, first.prepared)))
            chosen, waiting = waiting[1:most], waiting[most:]
            ready = [first, *(r for trial in chosen if (r := self._ready(trial)) is not None)]
            for group in _by(ready, lambda r: (vmapped.shapes(r.prepared), r.step)):
                yield group, None

    def _ready(self, trial: Trial) -> _Ready | None:
        """Data and model of a trial; None, with its failure told, where they cannot be made."""
        from runner.runs import checkpoint
        from runner.training import build

        config = trial.going_on()
        records = RunRecorder(
            config, trial.words, self.command, Reporter(quiet=True), self._around, trial.values, held=True
        )
        try:
            with gc_paused():
                resolved = build.resolve(config, self.choice, 1)
                prepared, _ = build.prepare(resolved, self.choice, 1, self._data)
            loaded = None if config.resume is None else checkpoint.load(Path(config.resume) / CHECKPOINTS)
        except RunnerError as error:
            self.report.ended({trial.number: Result("failed", {}, error)})
            return None
        records.config = resolved
        return _Ready(trial, resolved, prepared, prepared.model, records, 0 if loaded is None else loaded.step)

    # -------------------------------------------------------------------------------------------------------- training

    def _train(self, batch: Sequence[_Ready], alone: str | None) -> None:
        """One program of a batch; its trials one after another where they must be alone, or vmap refuses the model."""
        from runner.compute.processes import SingleProcess
        from runner.training import build, vmapped

        side_by_side: Any = None
        facts = [vmapped.run_info_of_lane(ready.config, ready.prepared, len(batch)) for ready in batch]
        if alone is None and len(batch) > 1:
            side_by_side = vmapped.build(facts, [ready.model for ready in batch])
            alone = vmapped.vmap_error(side_by_side)
        if alone is not None or len(batch) == 1:
            for ready in batch:
                if alone is not None and alone not in self._reasons:
                    self._reasons.add(alone)
                    self.report.say(f"trial {ready.trial.number} and others like it are trained alone: {alone}")
                parts = build.build(ready.config, ready.prepared, SingleProcess())
                self._trained([ready], [parts.info], parts, parts.model.draws)
            return
        count = len(batch)
        self.report.say(f"trials {_numbers(batch)}: {count} side by side, as one program")
        self._trained(batch, facts, side_by_side, False)

    def _warn(self, batch: Sequence[_Ready], warnings: Sequence[Sequence[str]]) -> None:
        """In the log of each run what concerns it; here of how many, and the first one."""
        for ready, texts in zip(batch, warnings, strict=True):
            for text in texts:
                ready.records.warn(text)
        told = [(ready.trial.number, texts[0]) for ready, texts in zip(batch, warnings, strict=True) if texts]
        if told:
            number, text = told[0]
            self.report.warn(
                f"{len(told)} of {len(batch)} trials have a warning in their run.log, such as trial {number}: {text}"
            )

    def _trained(self, batch: Sequence[_Ready], facts: Sequence[RunInfo], parts: Any, draws: bool) -> None:
        """Train a program in open directories, and write how each of its runs ended."""
        import torch

        from runner.compute.rng import preserve_rng_state

        began = time.perf_counter()
        open_ = _Open(batch, facts)
        members: Sequence[RunState] = ()
        try:
            with synced_together():
                members = open_.members(self)
                loop = parts.loop(members, self.stop)
                loop.saving = synced_together
                loop.step, loop.seconds = open_.restore(parts)
                for ready, member in zip(batch, members, strict=True):
                    first = 0 if ready.opened is None or ready.config.resume is None else 1
                    if loop.step:
                        first = first_new_row(loop.calendar, loop.step, member)
                    ready.records.begin(loop.step, first)
                self._warn(batch, parts.warnings)
            startup, steps, seconds = time.perf_counter() - began, loop.step, loop.seconds
            with preserve_rng_state(draws, torch.device(self.choice.torch_device)):
                loop.run()
        except BaseException as error:
            failure = as_failure(error, batch[0].config, Path()) or error
            self.report.ended(open_.failed(members, failure))
            if isinstance(error, (Interrupted, KeyboardInterrupt)) or not isinstance(failure, RunnerError):
                raise
            return
        took = loop.seconds - seconds
        with synced_together():
            results = open_.ended(members, took, startup, steps)
        self.report.ended(results)


class _Open:
    """The open records of trials that are trained together."""

    def __init__(self, batch: Sequence[_Ready], facts: Sequence[RunInfo]) -> None:
        self.batch, self.facts = batch, facts

    def members(self, together: Together) -> list[RunState]:
        """Open or make every directory; the runs as the loop knows them."""
        from runner.compute.processes import SingleProcess
        from runner.runs.saver import Saver

        found, progress = [], _Progress(together.report, self.facts[0].steps)
        for ready, facts in zip(self.batch, self.facts, strict=True):
            opened = ready.opened = ready.records.open(facts, together.choice)
            assert opened is not None
            saver = Saver(
                opened.path / CHECKPOINTS,
                checkpoint_metadata(facts),
                facts.config.checkpoint.keep,
                SingleProcess(),
                sharded=False,
                asynchronous=facts.config.checkpoint.async_save,
                timeout_seconds=facts.config.launch.timeout_seconds,
            )
            member = facts.run_state([*ready.records.sinks, progress], saver, ready.records.hashes)
            if together.watch is not None:
                member.should_prune = _cut(together.watch, ready.trial.number, facts.watched)
            if opened.loaded is not None:
                member.load_decisions(opened.loaded.state)
                member.saved_step = opened.loaded.step
            found.append(member)
        return found

    def restore(self, parts: Any) -> tuple[int, float]:
        """Put the program where the checkpoints are, all of one step; gives it, and the seconds that were trained."""
        states = [r.opened.loaded.state for r in self.batch if r.opened is not None and r.opened.loaded is not None]
        if not states:
            return 0, 0.0
        parts.join(states)
        return self.batch[0].step, max(float(state["seconds"]) for state in states)

    def ended(self, members: Sequence[RunState], seconds: float, startup: float, first: int) -> dict[int, Result]:
        """Write how each run ended."""
        results = {}
        for ready, member in zip(self.batch, members, strict=True):
            if member.failure is not None:
                results[ready.trial.number] = Result("failed", {}, ready.records.fail(member.failure))
            elif member.pruned:
                stopped = Pruned(f"pruned at step {member.step}: it was not worth its time")
                ready.records.fail(stopped)
                results[ready.trial.number] = Result("pruned", member.outcome.metrics, stopped)
            else:
                pace = (member.step - first) / max(seconds, 1e-9)
                timing = {"seconds": seconds, "steps_per_second": pace, "startup_seconds": startup}
                summary = ready.records.finish(member, timing)
                results[ready.trial.number] = Result("finished", summary["metrics"])
            ready.records.close()
        return results

    def failed(self, members: Sequence[RunState], error: BaseException) -> dict[int, Result]:
        """Write that training them together has ended; what a run had come to before stays."""
        results = {}
        state = "interrupted" if isinstance(error, (Interrupted, KeyboardInterrupt)) else "failed"
        for i, ready in enumerate(self.batch):
            own = members[i].failure if i < len(members) else None
            told = ready.records.fail(own or error)
            results[ready.trial.number] = Result(state if own is None else "failed", {}, told)
            ready.records.close()
        return results


class _Progress:
    """A sink of all members that tells now and then how far they are."""

    def __init__(self, report: Report, steps: int) -> None:
        self._report, self._steps = report, steps
        self._step, self._told = 0, time.monotonic()

    def write(self, row: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if row["step"] > self._step and now - self._told > PROGRESS_SECONDS:
            self._told = now
            self._report.say(f"         step {row['step']:,} of {self._steps:,}")
        self._step = max(self._step, row["step"])

    def flush(self) -> None:
        pass


def _cut(watch: Watch, number: int, watched: str) -> Callable[[Mapping[str, Any]], bool]:
    def cut(row: Mapping[str, Any]) -> bool:
        return any(name.startswith(f"{watched}/") and name != "train/loss" for name in row) and watch(
            number, row["step"], {name: value for name, value in row.items() if "/" in name}
        )

    return cut


def _by_program(trials: Sequence[Trial]) -> list[list[Trial]]:
    return _by(trials, lambda trial: program(trial.config))


def _by(items: Iterable[Any], name: Callable[[Any], Any]) -> list[list[Any]]:
    groups: dict[Any, list[Any]] = {}
    for item in items:
        groups.setdefault(name(item), []).append(item)
    return list(groups.values())


def _numbers(batch: Sequence[_Ready]) -> str:
    """The trials' numbers: the first and the last where they follow each other, else a few of them."""
    numbers = sorted(ready.trial.number for ready in batch)
    if numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]}-{numbers[-1]}"
    return ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")


def free_bytes(kind: str) -> float:
    """Half of the memory that is free on the device, or on the host for a CPU."""
    import torch

    if kind in ("cuda", "rocm"):
        return torch.cuda.mem_get_info()[0] / 2
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
