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
    RemoteRankError,
    RunFailed,
    RunnerError,
)
from runner.version import __version__

if TYPE_CHECKING:
    from runner.config.compose import Composed
    from runner.sweep.results import Results
    from runner.training.predicting import Predictor
    from runner.training.run import Run

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
    "load",
    "multirun",
    "run",
]


_STARTS_NONE = (
    "`launch.processes` and `launch.nodes` must be 1 in a call from Python, which starts no processes; "
    "remove them, or run the script itself with torchrun"
)


def run(experiment: str | None = None, overrides: Sequence[str] = (), config_dir: str | None = None) -> Run:
    """Run one experiment in this process: `runner.run("linreg", ["optimizer.lr=1e-3"])`. It may be called repeatedly.

    Return the directory, summary and rows of the run. Raises the errors above instead of exiting, and `RunnerError` while
    another run is active in this process.
    """
    from runner.compute.launch import needs_launch
    from runner.compute.processes import launched
    from runner.compute.processes.exclusive import only_run
    from runner.config.compose import compose
    from runner.config.overrides import key_of
    from runner.training.run import execute

    arguments = _arguments(experiment, overrides)
    if any(key_of(argument) == "seeds" for argument in arguments):
        raise ConfigError("`seeds` must be left out in a call of runner.run, which is one run; use runner.multirun")

    def compose_run(earlier: str | None) -> Composed:
        """Compose the run, or the resumption of an earlier attempt."""
        composed = compose(arguments if earlier is None else [f"resume={earlier}"], config_dir)
        if needs_launch(composed.config) and not launched(os.environ):
            raise ConfigError(_STARTS_NONE)
        return composed

    with only_run():
        return execute(compose_run, [sys.argv[0] or "python", *arguments])


def multirun(
    experiment: str | None = None, overrides: Sequence[str] = (), config_dir: str | None = None
) -> tuple[Path, Results]:
    """Run a sweep, as `python -m runner -m` does: `runner.multirun("linreg", ["optimizer.lr=1e-5,1e-4", "seeds=8"])`.

    Return the directory of the sweep and its results, which include failed trials, on all processes that a launcher started.
    Raises the errors above, as `run` does.
    """
    from runner.compute.processes import launched, leads
    from runner.compute.processes.exclusive import only_run
    from runner.sweep.distributed import follow
    from runner.sweep.results import collect
    from runner.sweep.run import launch_config, run_and_report

    arguments = _arguments(experiment, overrides)
    with only_run():
        if not launched(os.environ) and launch_config(arguments, config_dir) is not None:
            raise ConfigError(_STARTS_NONE)
        if not leads(os.environ):
            directory = follow()
            if directory is None:
                raise RemoteRankError("rank 0 ended the sweep without results", 1)
            return directory, collect(directory)
        manifest, results = run_and_report(arguments, config_dir, [sys.argv[0] or "python", *arguments])
    return manifest.directory, results


def load(run: str | os.PathLike[str], state: str = "selected", device: str = "auto") -> Predictor:
    """Return the trained model of a run directory: `runner.load("runs/…").predict(frame)`.

    An export is taken like a run, and a sweep directory gives the mean over the seeds of its best setting. `state` is the one that the run reports, or "last",
    "best" or the number of a step; `device` is auto, cpu, cuda, rocm, mps or xpu. Raises `CheckpointError` and `DeviceError`.
    """
    import torch

    from runner.sweep.trained import open_models
    from runner.training.predicting import Predictor, choose_device

    choice = choose_device(device)
    return Predictor(open_models(os.fspath(run), state), torch.device(choice.torch_device))


def _arguments(experiment: str | None, overrides: Sequence[str]) -> list[str]:
    """Return the command-line arguments of a call. Raises `ConfigError` if `overrides` is not a list of strings."""
    if isinstance(overrides, str) or not all(isinstance(override, str) for override in overrides):
        raise ConfigError(
            f'`overrides` must be a list of strings such as ["seed=3"], got {overrides!r}; put it in a list'
        )
    return ([f"+experiment={experiment}"] if experiment is not None else []) + list(overrides)
