"""Configuration-driven regression experiments in PyTorch: one experiment, one answer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
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
    from runner.job import Run

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
    "run",
]


def run(experiment: str | None = None, overrides: Sequence[str] = (), config_dir: str | None = None) -> Run:
    """Do one run in this process: `runner.run("linreg", ["optimizer.lr=1e-3"])`, as often as you like.

    Gives the run's directory, summary and rows. Raises the errors above instead of exiting.
    """
    from runner.compose import compose
    from runner.job import execute

    if isinstance(overrides, str) or not all(isinstance(word, str) for word in overrides):
        raise ConfigError(
            f'`overrides` must be a list of texts such as ["seed=3"], but is {overrides!r}; put it in a list'
        )
    words = ([f"+experiment={experiment}"] if experiment is not None else []) + list(overrides)
    return execute(compose(words, config_dir), [sys.argv[0] or "python", *words])
