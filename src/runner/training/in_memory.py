"""A run in memory: the same configuration, loop and answer as a run with a directory, from a table that is in memory already."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from runner.compute import devices, sizes
from runner.compute.processes import SingleProcess
from runner.compute.processes.exclusive import only_run
from runner.compute.rng import preserve_rng_state
from runner.compute.signals import StopRequest
from runner.config import schema as c
from runner.data.tables import Source
from runner.errors import ConfigError
from runner.training import build, intervals, report
from runner.training.failures import as_failure, explain_out_of_memory
from runner.training.given import Given
from runner.training.run_state import NullSaver
from runner.training.trained import Trained

_TURN = threading.Lock()
"""Held by the run that trains: the settings of torch belong to the process, and a search may fit in several threads."""


@dataclass(frozen=True, eq=False)
class Fit:
    """The result of a run in memory."""

    trained: Trained
    """The model in the selected state."""
    summary: Mapping[str, Any]
    """What summary.json of a run with a directory has, besides `timing` and `baselines`."""
    device: torch.device
    """Device that it was trained on."""


def fit(config: c.Config, source: Source) -> Fit:
    """Train on the rows of a source as a run with this configuration does. No file is written, and torch's settings are kept.

    `config.data` is `data=memory`. Raises `InputError` for what cannot be run, and `RunFailed`.
    """
    if problems := [*_problems(config), *sizes.problems(config)]:
        raise ConfigError(problems)
    choice = devices.choose(config.device, os.environ, devices.probe())
    resolved, device = build.resolve(config, choice, 1), torch.device(choice.torch_device)
    with (
        _TURN,
        only_run(),
        devices.configured(resolved.device, resolved.deterministic, choice),
        preserve_rng_state(True, device),
    ):
        return _train(resolved, source, choice)


def _problems(config: c.Config) -> Iterator[str]:
    """Yield what a configuration asks for that a fit in memory has not."""
    if config.launch.processes > 1 or config.launch.nodes > 1:
        yield "`launch.processes` and `launch.nodes` must be 1 in a fit in memory; remove them"
    if config.seeds is not None:
        yield f"`seeds` must be null in a fit in memory, which trains one model, got {config.seeds}; fit once for each `seed`"


def _train(config: c.Config, source: Source, choice: devices.DeviceChoice) -> Fit:
    with explain_out_of_memory(config):
        prepared, _ = build.prepare(config, choice, 1, given=Given(rows={"train": source}))
        parts = build.build(config, prepared, SingleProcess())
    info = parts.info
    loop = parts.loop([info.run_state((), NullSaver(), None)], StopRequest())
    try:
        loop.run()
    except Exception as error:
        raise as_failure(error, config, Path()) or error from None
    (run,) = loop.runs
    if run.failure is not None:
        raise run.failure
    assert run.selected is not None
    summary = report.summary(info, run, report.answers(info, run, ()), {})
    tensors = {name: value.detach().cpu().clone() for name, value in parts.model.state_dict().items()}
    trained = Trained(
        "the fitted model",
        config,
        info.dataset.preprocessing,
        tensors,
        run.selected.step,
        documents=intervals.documents(info, run.outcome, run.selected.step),
    )
    return Fit(
        trained, {name: value for name, value in summary.items() if name != "timing"}, torch.device(choice.torch_device)
    )
