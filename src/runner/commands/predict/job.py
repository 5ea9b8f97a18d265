"""The work of `predict`: models, rows in, predictions out, and the lines that say what was done."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runner.commands.predict import output
from runner.config import overrides, validation
from runner.config.schema import Config
from runner.data.kinds import Block, Numbers
from runner.data.new_rows import NewRows, Policy, open_files
from runner.errors import ConfigError, DataError
from runner.models import losses
from runner.sweep.trained import open_models
from runner.training.predicting import Prediction, Predictor, choose_device
from runner.training.scores import Scores

READING = (
    "predict.unseen", "data.missing", "data.missing_values", "data.delimiter", "data.decimal", "data.encoding", "data.comment",
    "data.skip_rows", "data.header", "data.rename",
)  # fmt: skip
"""Keys that may be given with new rows: they say how these are written, and change nothing of the model."""


def predict(options: Any) -> Iterator[str]:
    """Write the predictions that the options ask for, and yield the lines that say what was done. Raises `InputError` and `RunFailed`."""
    problems = output.refuse(options.output, options.input, force=options.force)
    if problems:
        raise ConfigError(problems)
    predictor = Predictor(
        open_models(options.run, options.state), torch.device(choose_device(options.device).torch_device)
    )
    config = reading(predictor.config, options.overrides)
    yield from introduction(predictor)
    with opened(options.input, config, predictor, _names(options.keep)) as rows:
        _refuse_names(rows, predictor)
        if rows.notes:
            yield f"read     {'; '.join(rows.notes)}"
        job = _Job(
            predictor, rows, Scores(predictor.target_names, predictor.preprocessing.scaling, losses.build(config.loss))
        )
        began = time.perf_counter()
        with _problems_of("--input"):
            output.write(options.output, job.columns())
        seconds = time.perf_counter() - began
        place = "standard output" if options.output == output.STANDARD else options.output
        yield f"written  {rows.rows:,} rows to {place} in {seconds:.1f} s"
        for warning in (*rows.warnings(), *job.warnings()):
            yield f"note: {warning}"
    yield from scored(job.scores, predictor.target_names)


def _names(text: str) -> list[str]:
    return [validation.normalized(name) for name in text.split(",") if name]


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
def opened(path: str, config: Config, predictor: Predictor, keep: Sequence[str]) -> Iterator[NewRows]:
    """Yield the rows of a file, or of standard input, which is copied to a temporary file because it is read twice."""
    weight = getattr(config.data, "weight", None) or getattr(config.data, "sigma", None)
    others = [weight] if weight else []
    with tempfile.TemporaryDirectory(prefix="runner-") as folder:
        file = path
        if path == output.STANDARD:
            file = str(Path(folder) / "standard input")
            with open(file, "wb") as copy:
                shutil.copyfileobj(sys.stdin.buffer, copy, 2**20)
        with _problems_of("--input", folder):
            source = open_files(file, config.data)
            yield NewRows(source, predictor.preprocessing, Policy.of(config), keep, others)


@contextmanager
def _problems_of(key: str, folder: str | None = None) -> Iterator[None]:
    """Name another key than `data.path` in the problems with a file, and no temporary folder."""
    try:
        yield
    except DataError as error:
        raise error.changed(
            lambda text: text.replace("data.path", key).replace(f"{folder}/" if folder else "", "")
        ) from None


def _refuse_names(rows: NewRows, predictor: Predictor) -> None:
    made = _made(Prediction(torch.zeros(0, len(predictor.target_names)), _spread(predictor)), predictor.target_names)
    clashes = [name for name in rows.keep if name in made]
    if clashes:
        raise ConfigError(
            f"`--keep` must not name a column that the output has of its own, got {', '.join(clashes)}; rename it with data.rename"
        )


def _spread(predictor: Predictor) -> Tensor | None:
    return torch.zeros(0, len(predictor.target_names)) if len(predictor.members) > 1 else None


def _made(prediction: Prediction, targets: Sequence[str], digits: type = np.float64) -> dict[str, np.ndarray]:
    """Return the columns of predictions by name: "prediction" and "spread", and with several targets "prediction/y"."""
    parts = {"prediction": prediction.values, "spread": prediction.spread}
    return {
        name if len(targets) == 1 else f"{name}/{target}": values[:, place].numpy().astype(digits)
        for place, target in enumerate(targets)
        for name, values in parts.items()
        if values is not None
    }


class _Job:
    """Predictions of all rows, block by block, and what is found out on the way."""

    def __init__(self, predictor: Predictor, rows: NewRows, scores: Scores) -> None:
        self._predictor, self._rows, self.scores = predictor, rows, scores
        self._not_finite = 0
        self._digits = np.float64 if predictor.config.dtype == "float64" else np.float32

    def columns(self) -> Iterator[Mapping[str, Any]]:
        """Yield the columns of the output."""
        targets = self._predictor.target_names
        for block in self._rows.blocks():
            prediction = self._predictor.of_columns(block.columns)
            self._not_finite += int((~prediction.values.isfinite()).any(1).sum())
            if self._rows.has_targets:
                self.scores.add(target_of(block, targets), prediction.values, weight_of(block, self._predictor.config))
            yield {**block.kept, **_made(prediction, targets, self._digits)}

    def warnings(self) -> Iterator[str]:
        """Yield what the user should know of the predictions."""
        if self._not_finite:
            yield f"{self._not_finite:,} predictions are not finite: the values of these rows are far from those of the training rows"


def target_of(block: Block, targets: Sequence[str]) -> Tensor:
    """Return the targets [rows, targets] of a block, nan where one is missing."""
    columns = [block.columns[name] for name in targets]
    return torch.tensor(np.stack([column.values for column in columns if isinstance(column, Numbers)], 1))


def weight_of(block: Block, config: Config) -> Tensor | None:
    """Return the weights [rows] of a block, up to a factor; None where it has none."""
    sigma, weight = (block.columns.get(getattr(config.data, key, None) or "") for key in ("sigma", "weight"))
    if isinstance(sigma, Numbers):
        return 1 / torch.tensor(sigma.values).square()
    return torch.tensor(weight.values) if isinstance(weight, Numbers) else None


def scored(scores: Scores, targets: Sequence[str]) -> Iterator[str]:
    """Yield the line of metrics, if there were targets."""
    found = scores.metrics()
    if found:
        texts = [f"{name} {found[name]:.6g}" for name in ("rmse", "mae", "r2", "loss")]
        yield f"metrics  {'  '.join(texts)} of {scores.rows:,} rows with {'the target' if len(targets) == 1 else 'all targets'}"
