"""New rows that a verb is given for trained models: the models, the rows, their targets and weights."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runner.commands.result_file import STANDARD
from runner.config import overrides, validation
from runner.config.schema import Config
from runner.data.kinds import Block, Numbers
from runner.data.new_rows import NewRows, Policy, open_files
from runner.errors import ConfigError, DataError
from runner.models import losses
from runner.sweep.trained import open_models
from runner.training import own_metrics
from runner.training.predicting import Predictor, choose_device
from runner.training.scores import Scores

READING = (
    "predict.unseen", "data.missing", "data.missing_values", "data.delimiter", "data.decimal", "data.encoding", "data.comment",
    "data.skip_rows", "data.header", "data.rename",
)  # fmt: skip
"""Keys that may be given with new rows: they say how these are written, and change nothing of the model."""


def open_predictor(options: Any) -> Predictor:
    """Return the models that the options `run`, `state` and `device` name. Raises `InputError`."""
    device = torch.device(choose_device(options.device).torch_device)
    return Predictor(open_models(options.run, options.state), device)


def reading(config: Config, arguments: Sequence[str]) -> Config:
    """Return a run's configuration with the keys that say how new rows are written. Raises `ConfigError` with every problem."""
    plan = overrides.read(arguments, {})
    problems = list(plan.problems)
    for name, value in plan.values.items():
        if not name.startswith(READING):
            problems.append(
                f"`{name}` must not be given with new rows, because it would change the model (only {', '.join(READING)} may); remove it"
            )
        elif name.startswith("data.") and not hasattr(config.data, name.split(".")[1]):
            problems.append(
                f"`{name}` must be left out, because the run was trained with data={config.data.name}; remove it"
            )
        else:
            config, found = validation.replaced(config, name, value)
            problems += found
    if problems:
        raise ConfigError(problems)
    return config


def introduction(predictor: Predictor) -> Iterator[str]:
    """Yield the lines that say which models are used."""
    first, *others = predictor.members
    if others:
        yield f"models   {len(predictor.members)} seeds of {Path(first.source).parent}: {', '.join(Path(member.source).name for member in predictor.members)}"
    else:
        yield f"model    {first.source}, state of step {first.step}"
    for notice in dict.fromkeys(notice for member in predictor.members for notice in member.notices):
        yield f"note: {notice}"


@contextmanager
def opened(path: str, config: Config, predictor: Predictor, keep: Sequence[str], option: str) -> Iterator[NewRows]:
    """Yield the rows of a file, or of standard input, which is copied to a temporary file because it is read twice.

    `option` is the one that names the columns to keep. A `DataError` in the context calls the file `--input`.
    """
    weight = getattr(config.data, "weight", None) or getattr(config.data, "sigma", None)
    others = [weight] if weight else []
    with tempfile.TemporaryDirectory(prefix="runner-") as folder:
        file = path
        if path == STANDARD:
            file = str(Path(folder) / "standard input")
            with open(file, "wb") as copy:
                shutil.copyfileobj(sys.stdin.buffer, copy, 2**20)
        with _problems_of("--input", folder):
            source = open_files(file, config.data)
            yield NewRows(source, predictor.preprocessing, Policy.of(config), keep, others, option)


@contextmanager
def _problems_of(key: str, folder: str | None = None) -> Iterator[None]:
    """Name another key than `data.path` in the problems with a file, and no temporary folder."""
    try:
        yield
    except DataError as error:
        raise error.changed(
            lambda text: text.replace("data.path", key).replace(f"{folder}/" if folder else "", "")
        ) from None


def target_of(block: Block, targets: Sequence[str]) -> Tensor:
    """Return the targets [rows, targets] of a block, nan where one is missing."""
    columns = [block.columns[name] for name in targets]
    return torch.tensor(np.stack([column.values for column in columns if isinstance(column, Numbers)], 1))


def new_scores(predictor: Predictor) -> Scores:
    """Return scores without rows, for the targets, the loss and the metrics of a model. Raises `ConfigError` for untrusted code."""
    config = predictor.config
    own = own_metrics.build(config)
    return Scores(predictor.target_names, predictor.preprocessing.scaling, losses.build(config.loss), own)


def weight_of(block: Block, predictor: Predictor) -> Tensor | None:
    """Return the weights [rows] of a block with targets, up to a factor; None where it has none.

    A row without a weight has nan, as one whose standard deviation is not above 0.
    """
    data = predictor.config.data
    sigma, weight = (block.columns.get(getattr(data, key, None) or "") for key in ("sigma", "weight"))
    if isinstance(sigma, Numbers):
        # The standard deviation of a logarithm is relative, as in training.
        unit = target_of(block, predictor.target_names)[:, 0] if data.log_target else 1.0
        deviation = torch.tensor(sigma.values)
        return (unit / torch.where(deviation > 0, deviation, torch.nan)).square()
    return torch.tensor(weight.values) if isinstance(weight, Numbers) else None
