"""Intervals around predictions, by the errors of rows that neither trained the model nor chose it: split conformal prediction.

A score is how far a prediction is from the target, as the model scales the target, so that with `data.log_target` an interval
is from prediction / f to prediction · f. Of n scores the ⌈(n + 1)·level⌉-th smallest is the half width. If a new row is drawn
as those of `data.split.calibrate` were, its target is in the interval with at least this probability, whatever the model and
the noise: Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World" (2005); Lei, G'Sell, Rinaldo, Tibshirani and
Wasserman, "Distribution-Free Predictive Inference for Regression", Journal of the American Statistical Association 113 (2018)
1094-1111, section 2.2.

Scores of several models are over √(s² + e²), for the standard deviation s between the models and the root mean square e of their
errors in the training rows, as in section 5.2 of the same article: where the models disagree, intervals are wider.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runner.config.documents import FORMAT, checked, faults
from runner.config.parts import key
from runner.config.validation import shown
from runner.data.scaling import Scaling
from runner.errors import CheckpointError, ConfigError, RunFailed
from runner.runs.hashes import parameters_sha256
from runner.training import bands
from runner.training.bands import COVARIANCE, Bands
from runner.training.experiment import Outcome, RunInfo
from runner.training.trained import Trained

CALIBRATION = "calibration.json"
"""Name of the file in a run directory."""

MOST_NUMBERS = 100_000
"""Most targets of `calibration.json`. Of more rows some are taken at equal distances, which keeps the probability as it is."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a model predicts for the rows of `data.split.calibrate`, in the units of the file, float64."""

    target: Tensor
    """[rows, targets]"""
    prediction: Tensor
    """[rows, targets]"""
    deviation: Tensor
    """Root mean square [targets] of the errors in the training rows, as the model scales the targets."""


class Intervals:
    """Intervals of one level around the predictions of one model, or around the mean of several."""

    def __init__(self, calibrations: Sequence[Calibration], scaling: Scaling, level: float, name: str) -> None:
        """Take the calibration of each model. Raises `ConfigError`, which calls the level `name`, if it cannot be had."""
        first = calibrations[0]
        self.level, self.rows = level, len(first.target)
        self._scaling, self._several = scaling, len(calibrations) > 1
        self.noise = torch.stack([one.deviation for one in calibrations]).square().mean(0)
        """Mean square [targets] of the errors in the training rows, as the models scale the targets."""
        rank = place(level, self.rows, name)
        predictions = torch.stack([one.prediction for one in calibrations])
        distance = (scaling.target(first.target) - scaling.target(predictions.mean(0))).abs()
        self.reach = (distance / self._difficulty(predictions)).sort(0).values[rank - 1]
        """Half width [targets], as the models scale the targets, over the difficulty of a row, which is 1 for a single model."""

    @property
    def basis(self) -> str:
        """What the intervals are known by, to end a line."""
        return f"{self.rows:,} rows of data.split.calibrate"

    def around(self, predictions: Tensor, inputs: Sequence[tuple[Tensor, ...]] = ()) -> tuple[Tensor, Tensor]:
        """Return the ends (low, high), each [rows, targets], for predictions [models, rows, targets], in the file's units.

        The inputs of the models do not matter.
        """
        center = self._scaling.target(predictions.mean(0))
        half = self.reach * self._difficulty(predictions)
        return self._scaling.undo(center - half), self._scaling.undo(center + half)

    def _difficulty(self, predictions: Tensor) -> Tensor:
        """Return what scores are divided by [rows, targets], or [1, 1] for a single model."""
        if not self._several:
            return torch.ones(1, 1, dtype=torch.float64)
        expected = (self._scaling.target(predictions).var(0) + self.noise).sqrt()
        # Models that agree to the bit, on rows that they fit to the bit.
        return torch.where(expected > 0, expected, 1.0)


def check(level: float, name: str) -> None:
    """Raise `ConfigError`, which calls the level `name`, for one that is not a probability between 0 and 1."""
    if not 0 < level < 1:
        raise ConfigError(f"`{name}` must be above 0 and below 1, got {level:g}; use 0.9 for 90 %")


def place(level: float, rows: int, name: str) -> int:
    """Return ⌈(rows + 1)·level⌉, the place from 1 of the score that is the half width. Raises `ConfigError` if it is above `rows`."""
    check(level, name)
    # Exact for the decimal number that was written: 0.07·100 is above 7 in floating point.
    exact = Fraction(repr(float(level)))
    found, needed = math.ceil((rows + 1) * exact), math.ceil(exact / (1 - exact))
    if found > rows:
        raise ConfigError(
            f"`{name}`={level:g} must have {needed:,} rows of data.split.calibrate at least, got {rows:,}; use a lower level, or set "
            "more rows aside in a new run"
        )
    return found


def of_models(members: Sequence[Trained], level: float, name: str) -> Intervals | Bands:
    """Return intervals for trained models, by what their runs wrote. Raises `ConfigError` and `CheckpointError`.

    They are by the rows of `data.split.calibrate`; without such rows by the covariance of a single fit, if it is known.
    """
    check(level, name)
    read_ones = [(member, read(member)) for member in members]
    without = [member for member, calibration in read_ones if calibration is None]
    if len(members) == len(without) == 1:
        found_bands = bands.of_model(members[0], level)
        if found_bands is not None:
            return found_bands
    if without:
        raise CheckpointError(_absent(without[0]))
    found = [calibration for _, calibration in read_ones if calibration is not None]
    if any(not torch.equal(found[0].target, other.target) for other in found):
        raise CheckpointError(
            f"{Path(members[0].source).parent} must have trials with the same rows of data.split.calibrate for intervals around a "
            "mean over seeds; give the directory of one trial"
        )
    return Intervals(found, members[0].preprocessing.scaling, level, name)


def _absent(trained: Trained) -> str:
    """Return why a trained model has no intervals."""
    if trained.config.data.split.calibrate:
        return (
            f"{trained.source} must have a {CALIBRATION} for intervals, which a run with data.split.calibrate writes when it ends, for the "
            "state that it reports; finish the run, or use that state"
        )
    return (
        f"{trained.source} must have rows of data.split.calibrate for intervals, which did not train the model, got none; train it "
        "again with data.split.calibrate=0.2"
    )


# ------------------------------------------------------------------------------------------------------------- the file


@dataclass(frozen=True, kw_only=True)
class _Format:
    format: int = key("version of the file's form", at_least=1)
    step: int = key("step of the state that the predictions are of", at_least=0)
    parameters_sha256: str = key("SHA-256 of its parameters")


@dataclass(frozen=True, kw_only=True)
class _Target:
    name: str = key("name of the target")
    train_deviation: float = key("root mean square of the scaled errors in the training rows", at_least=0)
    target: tuple[float, ...] = key("targets")
    prediction: tuple[float, ...] = key("predictions")


def documents(info: RunInfo, outcome: Outcome, step: int) -> dict[str, dict[str, Any]]:
    """Return what intervals need for the state of a step: the contents of `calibration.json` and `covariance.json` by name.

    Each is left out where a run has none. Raises `RunFailed` if a prediction is not finite.
    """
    calibration = _state(info, outcome, step) if "calibrate" in info.dataset.parts else None
    found = {CALIBRATION: calibration, COVARIANCE: bands.state(info, outcome, step)}
    return {name: content for name, content in found.items() if content is not None}


def documents_of(trained: Trained) -> dict[str, dict[str, Any]]:
    """Return what was written with a trained model for its intervals, checked, by name of the file.

    A file that is of another state is left out. Raises `CheckpointError` for one that is damaged.
    """
    contents = {CALIBRATION: _document(trained), COVARIANCE: bands.document(trained)}
    sha256 = trained.parameters_sha256()
    own = {name: one for name, one in contents.items() if one is not None and one.get("parameters_sha256") == sha256}
    if CALIBRATION in own:
        read(trained)
    if COVARIANCE in own:
        bands.of_model(trained, 0.5)
    return own


def _state(info: RunInfo, outcome: Outcome, step: int) -> dict[str, Any]:
    """Return the content of `calibration.json` for a run with rows of `data.split.calibrate`."""
    evaluation, scaling, parts = outcome.evaluation(), info.dataset.scaling, info.dataset.parts
    target = {part: parts[part].all.target.cpu().double() for part in ("train", "calibrate")}
    prediction = {part: evaluation.predictions(part) for part in target}
    deviation = (target["train"] - scaling.target(prediction["train"])).square().mean(0).sqrt()
    values = torch.stack((scaling.undo(target["calibrate"]), prediction["calibrate"]), -1)
    if not (values.isfinite().all() and deviation.isfinite().all()):
        raise RunFailed("predictions that are not finite give no intervals")
    rows, names = len(values), info.dataset.target_names
    count = min(rows, max(1, MOST_NUMBERS // len(names)))
    kept = values[torch.arange(count) * rows // count]
    return {
        "format": FORMAT,
        "step": step,
        "parameters_sha256": parameters_sha256(outcome.parameters),
        "targets": [
            {"name": name, "train_deviation": error, "target": both[:, 0].tolist(), "prediction": both[:, 1].tolist()}
            for name, error, both in zip(names, deviation.tolist(), kept.unbind(1), strict=True)
        ],
    }


def _document(trained: Trained) -> dict[str, Any] | None:
    return trained.document(CALIBRATION, "the calibration of a run")


def read(trained: Trained) -> Calibration | None:
    """Return the calibration of a trained model, None if its run wrote none. Raises `CheckpointError` for that of another state."""
    path, values = Path(trained.source) / CALIBRATION, _document(trained)
    if values is None:
        return None
    checked(_Format, values, path)
    targets = values.get("targets")
    if not isinstance(targets, list) or not all(isinstance(target, dict) for target in targets):
        raise CheckpointError(
            f"{path}: `targets` must be a list of groups of keys, got {shown(targets)}; restore the file"
        )
    problems = [text for number, target in enumerate(targets) for text in faults(_Target, target, f"targets.{number}")]
    if not problems and tuple(target["name"] for target in targets) != trained.preprocessing.target_names:
        problems.append("`targets` must be those of the run; restore the file")
    if not problems and len({len(target[name]) for target in targets for name in ("target", "prediction")}) > 1:
        problems.append("`targets` must have as many targets as predictions; restore the file")
    log = trained.preprocessing.scaling.log_target
    if (
        not problems
        and log
        and any(min(target[name], default=1) <= 0 for target in targets for name in ("target", "prediction"))
    ):
        problems.append("`targets` must be above 0, because the model predicts logarithms; restore the file")
    if problems:
        raise CheckpointError(f"{path}: {problem}" for problem in problems)
    if parameters_sha256(dict(trained.model().named_parameters())) != values["parameters_sha256"]:
        raise CheckpointError(
            f"{path} must be of the state that predicts, got that of step {values['step']}; use that state for intervals, which is "
            "the one that the run reports"
        )
    columns = {
        name: torch.tensor([target[name] for target in targets], dtype=torch.float64).T
        for name in ("target", "prediction")
    }
    deviation = torch.tensor([target["train_deviation"] for target in targets], dtype=torch.float64)
    return Calibration(columns["target"], columns["prediction"], deviation)
