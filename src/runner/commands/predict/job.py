"""The work of `predict`: models, rows in, predictions out, and the lines that say what was done."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runner.commands.new_rows import introduction, new_scores, open_predictor, opened, reading, target_of, weight_of
from runner.commands.predict import output
from runner.commands.result_file import STANDARD
from runner.config import validation
from runner.data.new_rows import NewRows
from runner.errors import ConfigError
from runner.training.predicting import Prediction, Predictor
from runner.training.scores import Scores


def predict(options: Any) -> Iterator[str]:
    """Write the predictions that the options ask for, and yield the lines that say what was done. Raises `InputError` and `RunFailed`."""
    problems = output.refuse(options.output, options.input, force=options.force)
    if problems:
        raise ConfigError(problems)
    predictor = open_predictor(options)
    config = reading(predictor.config, options.overrides)
    yield from introduction(predictor)
    with opened(options.input, config, predictor, _names(options.keep), "--keep") as rows:
        _refuse_names(rows, predictor)
        if rows.notes:
            yield f"read     {'; '.join(rows.notes)}"
        job = _Job(predictor, rows, new_scores(predictor))
        began = time.perf_counter()
        output.write(options.output, job.columns())
        seconds = time.perf_counter() - began
        place = "standard output" if options.output == STANDARD else options.output
        yield f"written  {rows.rows:,} rows to {place} in {seconds:.1f} s"
        for warning in (*rows.warnings(), *job.warnings()):
            yield f"note: {warning}"
    yield from scored(job.scores, predictor.target_names)


def _names(text: str) -> list[str]:
    return [validation.normalized(name) for name in text.split(",") if name]


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
                self.scores.add(target_of(block, targets), prediction.values, weight_of(block, self._predictor))
            yield {**block.kept, **_made(prediction, targets, self._digits)}

    def warnings(self) -> Iterator[str]:
        """Yield what the user should know of the predictions."""
        if self._not_finite:
            yield f"{self._not_finite:,} predictions are not finite: the values of these rows are far from those of the training rows"


def scored(scores: Scores, targets: Sequence[str]) -> Iterator[str]:
    """Yield the line of metrics, if there were targets."""
    found = scores.metrics()
    if found:
        texts = [f"{name} {found[name]:.6g}" for name in ("rmse", "mae", "r2", "loss")]
        yield f"metrics  {'  '.join(texts)} of {scores.rows:,} rows with {'the target' if len(targets) == 1 else 'all targets'}"
