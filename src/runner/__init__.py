"""Configuration-driven regression experiments in PyTorch: one experiment, one answer."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DeviceError,
    Diverged,
    ExpressionError,
    InputError,
    Interrupted,
    RunFailed,
    RunnerError,
)

if TYPE_CHECKING:
    from runner.config.compose import Composed
    from runner.sweep.results import Results
    from runner.training.run import Run

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DeviceError",
    "Diverged",
    "ExpressionError",
    "InputError",
    "Interrupted",
    "RunFailed",
    "RunnerError",
    "__version__",
    "multirun",
    "run",
]


_STARTS_NONE = (
    "`launch.processes` and `launch.nodes` start processes from the command line, but this is a call from Python; "
    "leave them out, or run the script itself with torchrun"
)


def run(experiment: str | None = None, overrides: Sequence[str] = (), config_dir: str | None = None) -> Run:
    """Do one run in this process: `runner.run("linreg", ["optimizer.lr=1e-3"])`, as often as you like.

    Gives the run's directory, summary and rows. Raises the errors above instead of exiting.
    """
    from runner.compute.launch import needs_launch
    from runner.compute.processes import launched
    from runner.config.compose import compose
    from runner.training.run import execute

    words = _words(experiment, overrides)

    def ask(earlier: str | None) -> Composed:
        composed = compose(words if earlier is None else [f"resume={earlier}"], config_dir)
        if needs_launch(composed.config) and not launched(os.environ):
            raise ConfigError(_STARTS_NONE)
        return composed

    return execute(ask, [sys.argv[0] or "python", *words])


def multirun(
    experiment: str | None = None, overrides: Sequence[str] = (), config_dir: str | None = None
) -> tuple[Path, Results]:
    """Do a sweep: `runner.multirun("linreg", ["optimizer.lr=1e-5,1e-4", "seeds=8"])`, as `python -m runner -m` does.

    Gives the sweep's directory and its results; a trial that failed is among them. Raises the errors above.
    """
    from runner.compute.processes import launched
    from runner.sweep.run import audit_trials, launch_config, report_results, sweep

    words = _words(experiment, overrides)
    if not launched(os.environ) and launch_config(words, config_dir) is not None:
        raise ConfigError(_STARTS_NONE)
    manifest = sweep(words, config_dir, [sys.argv[0] or "python", *words])
    results = report_results(manifest)
    audit_trials(manifest)
    return manifest.directory, results


def _words(experiment: str | None, overrides: Sequence[str]) -> list[str]:
    if isinstance(overrides, str) or not all(isinstance(word, str) for word in overrides):
        raise ConfigError(
            f'`overrides` must be a list of texts such as ["seed=3"], but is {overrides!r}; put it in a list'
        )
    return ([f"+experiment={experiment}"] if experiment is not None else []) + list(overrides)
