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
from runner.runs.sinks.reporter import shown
from runner.training.bands import Bands
from runner.training.intervals import Intervals
from runner.training.predicting import Prediction, Predictor
from runner.training.scores import Scores, counted


def predict(options: Any) -> Iterator[str]:
    """Write the predictions that the options ask for, and yield the lines that say what was done. Raises `InputError` and `RunFailed`."""
    problems = output.refuse(options.output, options.input, force=options.force)
    if problems:
        raise ConfigError(problems)
    predictor = open_predictor(options)
    config = reading(predictor.config, options.overrides)
    intervals = None if options.interval is None else predictor.intervals(options.interval, "--interval")
    yield from introduction(predictor)
    with opened(options.input, config, predictor, _names(options.keep), "--keep") as rows:
        _refuse_names(rows, predictor, intervals)
        if rows.notes:
            yield f"read     {'; '.join(rows.notes)}"
        # Without targets no code of the user's loss and metrics is run.
        job = _Job(predictor, rows, new_scores(predictor) if rows.has_targets else None, intervals)
        began = time.perf_counter()
        output.write(options.output, job.columns())
        seconds = time.perf_counter() - began
        place = "standard output" if options.output == STANDARD else options.output
        yield f"written  {rows.rows:,} rows to {place} in {seconds:.1f} s"
        for warning in (*rows.warnings(), *job.warnings()):
            yield f"note: {warning}"
    yield from scored(job.scores, predictor)
    if intervals is not None:
        yield f"interval {_covered(job, predictor.target_names)}{intervals.level:g}, by {intervals.basis}"


def _names(text: str) -> list[str]:
    return [validation.normalized(name) for name in text.split(",") if name]


def _covered(job: _Job, targets: Sequence[str]) -> str:
    """Return which share of the targets is in the intervals, of each target, as the start of a line; empty without targets."""
    if job.scores is None or not job.scores.rows:
        return ""
    shares = (job.covered.double() / job.scores.rows).tolist()
    texts = [
        f"{share:.3f}{'' if len(targets) == 1 else f' ({name})'}" for share, name in zip(shares, targets, strict=True)
    ]
    return f"coverage {', '.join(texts)} of "


def _refuse_names(rows: NewRows, predictor: Predictor, intervals: Intervals | Bands | None) -> None:
    nothing = torch.zeros(0, len(predictor.target_names))
    several, wanted = len(predictor.members) > 1, intervals is not None
    parts = [nothing if there else None for there in (several, wanted, wanted)]
    made = _made(Prediction(nothing, *parts), predictor.target_names)
    clashes = [name for name in rows.keep if name in made]
    if clashes:
        raise ConfigError(
            f"`--keep` must not name a column that the output has of its own, got {', '.join(clashes)}; rename it with data.rename"
        )


def _made(prediction: Prediction, targets: Sequence[str], digits: type = np.float64) -> dict[str, np.ndarray]:
    """Return the columns of predictions by name, "prediction", "low", "high" and "spread", and with several targets "prediction/y"."""
    parts = {
        "prediction": prediction.values,
        "low": prediction.low,
        "high": prediction.high,
        "spread": prediction.spread,
    }
    return {
        name if len(targets) == 1 else f"{name}/{target}": values[:, place].numpy().astype(digits)
        for place, target in enumerate(targets)
        for name, values in parts.items()
        if values is not None
    }


class _Job:
    """Predictions of all rows, block by block, and what is found out on the way."""

    def __init__(
        self, predictor: Predictor, rows: NewRows, scores: Scores | None, intervals: Intervals | Bands | None
    ) -> None:
        self._predictor, self._rows, self.scores, self._intervals = predictor, rows, scores, intervals
        self.covered = torch.zeros(len(predictor.target_names), dtype=torch.int64)
        """Number of rows with all targets [targets] in whose interval the target is."""
        self._not_finite = 0
        self._digits = np.float64 if predictor.config.dtype == "float64" else np.float32

    def columns(self) -> Iterator[Mapping[str, Any]]:
        """Yield the columns of the output."""
        targets = self._predictor.target_names
        for block in self._rows.blocks():
            prediction = self._predictor.of_columns(block.columns, self._intervals)
            self._not_finite += int((~prediction.values.isfinite()).any(1).sum())
            if self.scores is not None:
                target = target_of(block, targets)
                weight = weight_of(block, self._predictor)
                self.scores.add(target, prediction.values, weight)
                self._count_covered(target, prediction, weight)
            yield {**block.kept, **_made(prediction, targets, self._digits)}

    def _count_covered(self, target: Tensor, prediction: Prediction, weight: Tensor | None) -> None:
        """Count the targets in their intervals, of the rows that have scores."""
        if prediction.low is not None and prediction.high is not None:
            known = counted(target, weight).unsqueeze(1)
            self.covered += (known & (prediction.low <= target) & (target <= prediction.high)).sum(0)

    def warnings(self) -> Iterator[str]:
        """Yield what the user should know of the predictions."""
        if self._not_finite:
            yield f"{self._not_finite:,} predictions are not finite: the values of these rows are far from those of the training rows"


def scored(scores: Scores | None, predictor: Predictor) -> Iterator[str]:
    """Yield the line of metrics, if there were targets."""
    if scores is not None and (found := scores.metrics()):
        loss, *others = shown(predictor.config.metrics)
        texts = [f"{name} {found[name]:.6g}" for name in (*others, loss)]
        targets = "the target" if len(predictor.target_names) == 1 else "all targets"
        yield f"metrics  {'  '.join(texts)} of {scores.rows:,} rows with {targets}"
