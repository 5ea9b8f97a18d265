"""Configuration-driven regression experiments in PyTorch: one experiment, one answer."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def run(
    experiment: str | None = None,
    overrides: Sequence[str] = (),
    config_dir: str | None = None,
    *,
    model: Any = None,
    data: Any = None,
    target: str | Sequence[str] | None = None,
    trust: Sequence[str] = (),
) -> Run:
    """Run one experiment in this process: `runner.run("linreg", ["optimizer.lr=1e-3"])`. It may be called repeatedly.

    `model` is a `torch.nn.Module`, its class, or a function that returns one. A class or function is called as with `model=custom`, with
    `in_features`, `out_features` and `cardinalities` where it has them, and `model.kwargs`. A module is trained from its present values, as
    a copy: when the run has finished, the module itself has the values that the run reports, and after an error those it had.

    `data` is a table of pandas, polars or pyarrow, whose columns to predict `target` names; or a pair (X, y) of arrays [rows, features]
    and [rows] or [rows, targets], whose columns are called x0, x1, … and y (y0, y1, … if there are several). A dict
    `{"train": …, "valid": …, "test": …}` of such rows says which rows are which, as `data.valid_path` does. Without `data` or `model`
    the configuration has them.

    A run with these has the records and the answer of any other. The command line can resume it only if it could have started it: otherwise
    it is resumed by `runner.run(model=…, data=…, overrides=["resume=RUN_DIR"])` with the same ones. Under torchrun each process
    must pass the same. `trust` are packages whose code the configuration may name, as with `--trust`.

    Return the directory, summary and rows of the run. Raises the errors above instead of exiting, and `RunnerError` while
    another run is active in this process.
    """
    from runner.compute.launch import needs_launch
    from runner.compute.processes import launched
    from runner.compute.processes.exclusive import only_run
    from runner.config.compose import compose
    from runner.config.overrides import key_of
    from runner.config.trust import granted
    from runner.training.given import Given
    from runner.training.run import execute

    overrides = _overrides(overrides)
    if any(key_of(argument) == "seeds" for argument in overrides):
        raise ConfigError("`seeds` must be left out in a call of runner.run, which is one run; use runner.multirun")
    given = Given.of(model, data, target)
    arguments = _arguments(experiment, [*given.arguments(overrides), *overrides])

    def compose_run(earlier: str | None) -> Composed:
        """Compose the run, or the resumption of an earlier attempt."""
        composed = compose(arguments if earlier is None else [f"resume={earlier}"], config_dir)
        if needs_launch(composed.config) and not launched(os.environ):
            raise ConfigError(_STARTS_NONE)
        return composed

    with only_run(), granted([*_packages(trust), *given.packages]):
        return execute(compose_run, [sys.argv[0] or "python", *arguments], given=given)


def multirun(
    experiment: str | None = None,
    overrides: Sequence[str] = (),
    config_dir: str | None = None,
    *,
    model: Any = None,
    data: Any = None,
    trust: Sequence[str] = (),
) -> tuple[Path, Results]:
    """Run a sweep, as `python -m runner -m` does: `runner.multirun("linreg", ["optimizer.lr=1e-5,1e-4", "seeds=8"])`.

    Return the directory of the sweep and its results, which include failed trials, on all processes that a launcher started.
    `model` may be a class that can be imported, and `data` is refused, since trials may run in other processes. `trust` are packages
    whose code the configuration may name. Raises the errors above, as `run` does.
    """
    from runner.compute.processes import launched, leads
    from runner.compute.processes.exclusive import only_run
    from runner.config.trust import granted
    from runner.sweep.distributed import follow
    from runner.sweep.results import collect
    from runner.sweep.run import launch_config, run_and_report
    from runner.training.given import Given

    overrides = _overrides(overrides)
    given = Given.of(model, data, None)
    given.require_importable()
    arguments = _arguments(experiment, [*given.arguments(overrides), *overrides])
    with only_run(), granted([*_packages(trust), *given.packages]):
        if not launched(os.environ) and launch_config(arguments, config_dir) is not None:
            raise ConfigError(_STARTS_NONE)
        if not leads(os.environ):
            directory = follow()
            if directory is None:
                raise RemoteRankError("rank 0 ended the sweep without results", 1)
            return directory, collect(directory)
        manifest, results = run_and_report(arguments, config_dir, [sys.argv[0] or "python", *arguments])
    return manifest.directory, results


def load(
    run: str | os.PathLike[str],
    state: str = "selected",
    device: str = "auto",
    *,
    model: Any = None,
    trust: Sequence[str] = (),
) -> Predictor:
    """Return the trained model of a run directory: `runner.load("runs/…").predict(frame)`.

    An export is taken like a run, and a sweep directory gives the mean over the seeds of its best setting. `state` is the one that the run reports, or "last",
    "best" or the number of a step; `device` is auto, cpu, cuda, rocm, mps or xpu. `model` is the module, class or function that
    `runner.run` was given, if the command line cannot import it, and `trust` are packages whose code the run may name. Raises
    `CheckpointError`, `ConfigError` and `DeviceError`.
    """
    import torch

    from runner.config.trust import granted
    from runner.sweep.trained import open_models
    from runner.training.given import Given
    from runner.training.predicting import Predictor, choose_device

    choice, given = choose_device(device), Given.of(model, None, None)
    with granted([*_packages(trust), *given.packages]):
        return Predictor(open_models(os.fspath(run), state, given), torch.device(choice.torch_device))


def _arguments(experiment: str | None, overrides: Sequence[str]) -> list[str]:
    """Return the command-line arguments of a call. Raises `ConfigError` if `overrides` is not a list of strings."""
    return ([f"+experiment={experiment}"] if experiment is not None else []) + _overrides(overrides)


def _overrides(overrides: Sequence[str]) -> list[str]:
    if isinstance(overrides, str) or not all(isinstance(override, str) for override in overrides):
        raise ConfigError(
            f'`overrides` must be a list of strings such as ["seed=3"], got {overrides!r}; put it in a list'
        )
    return list(overrides)


def _packages(trust: Sequence[str]) -> list[str]:
    return [trust] if isinstance(trust, str) else list(trust)
