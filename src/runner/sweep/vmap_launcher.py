"""`hydra/launcher=vmap`: the trials of one program are vmapped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.sweep.distributed import train
from runner.sweep.launcher import Launcher, ManifestLauncher, add_trials, job_return
from runner.sweep.manifest import Manifest
from runner.sweep.reporter import ManifestReporter, Watch
from runner.sweep.trials import plan

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn


@dataclass
class VmapLauncher:
    """Trains trials in this process, vmapped where possible. `watch` receives rows of metrics and may end trials early."""

    directory: Path
    watch: Watch | None = None

    def check(self, jobs: Sequence[Sequence[str]]) -> None:
        """Check that the trials can be composed. Raises `ConfigError` with every problem."""
        plan(jobs, 0, Manifest.read(self.directory))

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the trials that are not done, and return the results of all in the order of the jobs."""
        manifest = Manifest.read(self.directory)
        trials = add_trials(manifest, job_overrides, initial_job_idx)
        waiting = [trial for trial in trials if not manifest.done(trial.number)]
        reporter = ManifestReporter(manifest)
        if waiting:
            manifest.mark((trial.number for trial in waiting), "waiting")  # not as an earlier attempt at it ended
            train(waiting, manifest.values["command"], reporter, self.watch)
            manifest.update_from_records()  # trials that other processes trained
            manifest.save()
        return [job_return(manifest, trial, reporter.errors.get(trial.number)) for trial in trials]


def with_manifest(launcher: Any, directory: Path) -> Launcher:
    """Return a launcher that keeps the manifest of the sweep: the given one if it does so itself, or a wrapper around it."""
    inner = getattr(launcher, "vmap_launcher", None)
    return inner if isinstance(inner, VmapLauncher) else ManifestLauncher(launcher, directory)
