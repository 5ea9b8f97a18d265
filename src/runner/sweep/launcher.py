"""The interface of launchers, and the launcher that keeps the manifest of a sweep around any other launcher."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from runner.config import imports
from runner.errors import ConfigError, Interrupted, RunFailed, RunnerError
from runner.runs.records import selected_metrics
from runner.sweep.manifest import DONE, Manifest
from runner.sweep.trials import Trial, numbered, plan

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn


class Launcher(Protocol):
    """The part of Hydra's launcher that is used here.

    A launcher that can check whether trials can be composed also has `check(jobs)`, which raises `ConfigError` with every
    problem. One that reports metrics while it trains also has `watch: Watch | None`.
    """

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the trials, numbered from `initial_job_idx`, and return their results in the order of the jobs."""


@dataclass(frozen=True)
class ManifestLauncher:
    """Keeps the manifest for a launcher that knows nothing of the sweep directory.

    It adds the trials to the manifest, leaves out those that are done, and notes how the others ended.
    """

    launcher: Any
    directory: Path

    def check(self, jobs: Sequence[Sequence[str]]) -> None:
        """Check that the trials can be composed. Raises `ConfigError` with every problem."""
        plan(jobs, 0, Manifest.read(self.directory))

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the trials that are not done, and return the results of all. Raises `ConfigError` before any trial starts."""
        manifest = Manifest.read(self.directory)
        trials = add_trials(manifest, job_overrides, initial_job_idx)
        returns: dict[int, JobReturn] = {t.number: job_return(manifest, t) for t in trials if manifest.done(t.number)}
        # A launcher with `ended` leaves out what is done by itself, and reports each trial as it ends.
        queue = hasattr(self.launcher, "ended")
        if queue:
            self.launcher.ended = lambda outcome: _note_outcome(manifest, outcome)
        for done, group in groupby(trials, lambda trial: trial.number in returns and not queue):
            if not done:
                waiting = list(group)
                with _sigterm_stops(), self._explained():
                    results = self.launcher.launch([list(trial.overrides) for trial in waiting], waiting[0].number)
                for trial, result in zip(waiting, results, strict=True):
                    returns[trial.number] = result
                    _note_return(manifest, trial.number, result)
        manifest.save()
        return [returns[trial.number] for trial in trials]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise an error of a launcher of others, such as one in its settings, as `RunFailed`."""
        try:
            yield
        except Exception as error:
            if isinstance(error, (RunnerError, OSError)) or type(self.launcher).__module__.startswith("runner."):
                raise
            raise RunFailed(
                f"{type(self.launcher).__name__} could not run the trials: {type(error).__name__}: {' '.join(str(error).split())}; "
                "check its settings, hydra.launcher.*, or use hydra/launcher=vmap"
            ) from error


@contextmanager
def _sigterm_stops() -> Iterator[None]:
    """Let SIGTERM end the program as Ctrl-C does: other launchers stop their processes then."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt from Interrupted(number, "stopped; what was saved is kept")

    # An ignored signal stays ignored, and only the main thread can handle signals.
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) != signal.SIG_IGN
    previous = signal.signal(signal.SIGTERM, stop) if ours else None
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, previous)


def _note_outcome(manifest: Manifest, outcome: Any) -> None:
    manifest.mark([outcome.number], outcome.state, outcome.reason)
    manifest.save()


def _note_return(manifest: Manifest, number: int, result: JobReturn) -> None:
    from hydra.core.utils import JobStatus

    if result.status == JobStatus.COMPLETED:
        manifest.mark([number], "finished")
    else:
        error = result._return_value
        manifest.mark([number], "failed", str(error) or type(error).__name__)


def add_trials(manifest: Manifest, jobs: Sequence[Sequence[str]], first: int) -> list[Trial]:
    """Plan the trials of these jobs, and add them to the manifest. Raises `ConfigError` with every problem."""
    trials = plan(jobs, first, manifest)
    _require_trust([trial for trial in trials if not manifest.done(trial.number)])
    manifest.add(trial.manifest_entry() for trial in trials)
    manifest.save()
    return trials


def _require_trust(trials: Sequence[Trial]) -> None:
    """Raise `ConfigError` for code of the user's own that cannot be imported, before a process of any launcher meets it."""
    problems_of = cache(lambda code: tuple(imports.problems(code)))
    found: dict[str, list[int]] = {}
    for trial in trials:
        for problem in problems_of(trial.config.code):
            found.setdefault(problem, []).append(trial.number)
    if found:
        raise ConfigError(numbered(found, len(trials)))


def job_return(manifest: Manifest, trial: Trial, error: BaseException | None = None) -> JobReturn:
    """Return the result of a trial as Hydra's `JobReturn`. A pruned trial has the entry `pruned` next to its metrics."""
    from hydra.core.utils import JobReturn, JobStatus

    member, overrides = manifest.members[trial.number], list(trial.overrides)
    if member["state"] not in DONE:
        failure = error or RunFailed(member["reason"] or f"it is {member['state']}")
        return JobReturn(overrides=overrides, status=JobStatus.FAILED, _return_value=failure)
    pruned = {"pruned": True} if member["state"] == "pruned" else {}
    value = {**selected_metrics(manifest.summary(trial.number)), **pruned}
    return JobReturn(overrides=overrides, status=JobStatus.COMPLETED, _return_value=value)
