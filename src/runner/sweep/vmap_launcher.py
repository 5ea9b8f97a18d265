"""`hydra/launcher=vmap`: trials of one program are trained side by side; and what every launcher shares, the manifest.

A launcher of another make runs jobs and knows nothing of the sweep directory: `Kept` enlists the trials before, leaves out
those that are done, and notes how the others ended.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from runner.errors import Interrupted, RunFailed
from runner.sweep.distributed import train
from runner.sweep.manifest import DONE, Manifest
from runner.sweep.trials import Trial, plan

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn

    from runner.sweep.vmapped_trials import Result, Watch


class Launcher(Protocol):
    """Hydra's launcher, as far as it is used here."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]: ...


def kept(launcher: Any, directory: Path) -> Launcher:
    """The launcher as sweepers use it: with the manifest of the sweep directory kept."""
    own = getattr(launcher, "side_by_side", None)
    return own if isinstance(own, SideBySide) else Kept(launcher, directory)


@dataclass(frozen=True)
class Kept:
    """A launcher that knows nothing of the sweep directory, and what it leaves to do."""

    launcher: Any
    directory: Path

    def check(self, jobs: Sequence[Sequence[str]]) -> None:
        """Whether trials can be composed. Raises `ConfigError` with all that is wrong."""
        plan(jobs, 0, Manifest.read(self.directory))

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """What these jobs return; a trial that was done before returns what it came to then.

        Raises `ConfigError` before anything is started.
        """
        manifest = Manifest.read(self.directory)
        trials = enlisted(manifest, job_overrides, initial_job_idx)
        returns: dict[int, JobReturn] = {t.number: returned(manifest, t) for t in trials if manifest.done(t.number)}
        queue = hasattr(self.launcher, "ended")  # it leaves out what is done, and tells of each trial as it ends
        if queue:
            self.launcher.ended = lambda outcome: _told(manifest, outcome)
        for done, run in groupby(trials, lambda trial: trial.number in returns and not queue):
            if not done:
                waiting = list(run)
                with _terminable():
                    found = self.launcher.launch([list(trial.words) for trial in waiting], waiting[0].number)
                for trial, one in zip(waiting, found, strict=True):
                    returns[trial.number] = one
                    _note(manifest, trial.number, one)
        manifest.save()
        return [returns[trial.number] for trial in trials]


@contextmanager
def _terminable() -> Iterator[None]:
    """Meanwhile SIGTERM ends the program as Ctrl-C does: a launcher of another make stops its processes then."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt from Interrupted(number, "stopped; what was saved is kept")

    # One that is ignored stays ignored, and only a main thread can catch any.
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) != signal.SIG_IGN
    before = signal.signal(signal.SIGTERM, stop) if ours else None
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, before)


def _told(manifest: Manifest, outcome: Any) -> None:
    manifest.mark([outcome.number], outcome.state, outcome.reason)
    manifest.save()


def _note(manifest: Manifest, number: int, found: JobReturn) -> None:
    from hydra.core.utils import JobStatus

    if found.status == JobStatus.COMPLETED:
        manifest.mark([number], "finished")
    else:
        error = found._return_value
        manifest.mark([number], "failed", str(error) or type(error).__name__)


def enlisted(manifest: Manifest, jobs: Sequence[Sequence[str]], first: int) -> list[Trial]:
    """The trials of these jobs, in the manifest from here on. Raises `ConfigError` with what is wrong with any of them."""
    trials = plan(jobs, first, manifest)
    manifest.enlist(trial.member() for trial in trials)
    manifest.save()
    return trials


def returned(manifest: Manifest, trial: Trial, error: BaseException | None = None) -> JobReturn:
    """What a trial came to, in Hydra's words; a pruned one has `pruned` beside the metrics that it had."""
    from hydra.core.utils import JobReturn, JobStatus

    member, words = manifest.members[trial.number], list(trial.words)
    if member["state"] not in DONE:
        failure = error or RunFailed(member["reason"] or f"it is {member['state']}")
        return JobReturn(overrides=words, status=JobStatus.FAILED, _return_value=failure)
    pruned = {"pruned": True} if member["state"] == "pruned" else {}
    value = {**manifest.summary(trial.number).get("metrics", {}), **pruned}
    return JobReturn(overrides=words, status=JobStatus.COMPLETED, _return_value=value)


@dataclass
class SideBySide:
    """The launcher. `watch` is told rows of trials on the way and may end them early."""

    directory: Path
    watch: Watch | None = None

    def check(self, jobs: Sequence[Sequence[str]]) -> None:
        """Whether trials can be composed. Raises `ConfigError` with all that is wrong."""
        plan(jobs, 0, Manifest.read(self.directory))

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the trials; what they return, in their order."""
        manifest = Manifest.read(self.directory)
        trials = enlisted(manifest, job_overrides, initial_job_idx)
        waiting = [trial for trial in trials if not manifest.done(trial.number)]
        report = _Report(manifest)
        if waiting:
            train(waiting, manifest.values["command"], report, self.watch)
            manifest.settle()  # what other processes have trained
            manifest.save()
        return [returned(manifest, trial, report.errors.get(trial.number)) for trial in trials]


class _Report:
    """Keeps the manifest, and tells on the screen how the sweep goes on."""

    def __init__(self, manifest: Manifest) -> None:
        from runner.runs.sinks.reporter import Reporter

        self._manifest = manifest
        self._console = Reporter()
        self.errors: dict[int, BaseException] = {}

    def say(self, text: str) -> None:
        self._console.say(text)

    def warn(self, text: str) -> None:
        self._console.warn(text)

    def began(self, numbers: Sequence[int]) -> None:
        self._manifest.mark(numbers, "running")
        self._manifest.save()

    def ended(self, results: Mapping[int, Result]) -> None:
        for number, result in results.items():
            if result.error is not None:
                self.errors[number] = result.error
            self._manifest.mark([number], result.state, None if result.error is None else str(result.error))
        self._manifest.save()
        states = self._manifest.states()
        left = sum(n for state, n in states.items() if state in ("waiting", "running", "interrupted"))
        told = ", ".join(f"{n:,} {state}" for state in ("finished", "pruned", "failed") if (n := states.get(state)))
        self.say(f"         {told or 'none finished'}, {left:,} left")
