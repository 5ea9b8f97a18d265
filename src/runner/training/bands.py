"""Prediction bands of a least-squares fit, by the covariance of its parameters.

A new row's target is in prediction ± t·s·√(1 + ‖j·R⁻¹‖²) with the probability of Student's t, if the noise is normal with the same
deviation s everywhere and the model is right: Seber and Wild, "Nonlinear Regression" (1989), section 5.1. It is exact for models
that are linear in their parameters.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runner.config.documents import FORMAT, checked
from runner.config.parts import key
from runner.config.validation import shown
from runner.errors import CheckpointError
from runner.optim.covariance import MOST_PARAMETERS, Covariance
from runner.optim.student_t import t_quantile
from runner.runs.hashes import parameters_sha256
from runner.training.experiment import Outcome, RunInfo
from runner.training.trained import Trained

COVARIANCE = "covariance.json"
"""Name of the file in a run directory."""

PIECE_ROWS = 4096
"""Rows whose derivatives are in memory together."""


class Bands:
    """Bands of one level around the predictions of one fit."""

    def __init__(self, trained: Trained, covariance: Covariance, degrees_of_freedom: int, level: float) -> None:
        self.level = level
        self.basis = f"Student's t with {degrees_of_freedom:,} degrees of freedom"
        self.covariance = covariance
        self.reach = t_quantile((1 + level) / 2, degrees_of_freedom) * covariance.deviation
        """Half width, as the model scales the target, where the variance is that of the noise alone."""
        self._scaling, self._model = trained.preprocessing.scaling, trained.model().double()

    def around(self, predictions: Tensor, inputs: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
        """Return the ends (low, high), each [rows, 1], for predictions [1, rows, 1] in the file's units and the model's inputs."""
        ((numbers, *_),) = inputs
        parameters = {name: value.detach() for name, value in self._model.named_parameters()}
        variance = torch.cat(
            [
                self.covariance.variance(self._model.jacobian(parameters, piece))
                for piece in torch.split(numbers.double(), PIECE_ROWS)
            ]
        )
        center, half = self._scaling.target(predictions[0]), self.reach * (1 + variance).sqrt().unsqueeze(1)
        return self._scaling.undo(center - half), self._scaling.undo(center + half)


@dataclass(frozen=True, kw_only=True)
class _Covariance:
    format: int = key("version of the file's form", at_least=1)
    step: int = key("step of the state that it is of", at_least=0)
    parameters_sha256: str = key("SHA-256 of its parameters")
    deviation: float = key("standard deviation of a row, in the units trained in", at_least=0)
    degrees_of_freedom: int = key("number of rows minus number of parameters", at_least=1)


def state(info: RunInfo, outcome: Outcome, step: int) -> dict[str, Any] | None:
    """Return the content of `covariance.json` for the state of a step; None where a new row has no band.

    It has none of a fit without a covariance, of several targets, and with weights, which a new row may have any of.
    """
    inference, several = outcome.inference, len(info.dataset.target_names) > 1
    if inference is None or inference.covariance is None or inference.degrees_of_freedom < 1:
        return None
    if several or info.config.data.weighted_by is not None:
        return None
    return {
        "format": FORMAT,
        "step": step,
        "parameters_sha256": parameters_sha256(outcome.parameters),
        "deviation": inference.covariance.deviation,
        "degrees_of_freedom": inference.degrees_of_freedom,
        "inverse": inference.covariance.inverted.tolist(),
    }


def document(trained: Trained) -> dict[str, Any] | None:
    """Return the content of `covariance.json` of a trained model, None without one. Raises `CheckpointError`."""
    return trained.document(COVARIANCE, "the covariance of a fit")


def of_model(trained: Trained, level: float) -> Bands | None:
    """Return the bands of a trained model by what its run wrote, None without that. Raises `CheckpointError`."""
    path, values = Path(trained.source) / COVARIANCE, document(trained)
    if values is None:
        return None
    checked(_Covariance, values, path)
    parameters, inverse = dict(trained.model().named_parameters()), values.get("inverse")
    size = sum(parameter.numel() for parameter in parameters.values())
    if size > MOST_PARAMETERS or not _is_square(inverse, size):
        raise CheckpointError(
            f"{path}: `inverse` must have {size} rows of {size} finite numbers, got {shown(inverse)}; restore the file"
        )
    if parameters_sha256(parameters) != values["parameters_sha256"]:
        raise CheckpointError(
            f"{path} must be of the state that predicts, got that of step {values['step']}; use that state for intervals, which is "
            "the one that the run reports"
        )
    inverted = torch.tensor(inverse, dtype=torch.float64)
    covariance = Covariance(inverted, inverted[:0], float(values["deviation"]))
    return Bands(trained, covariance, values["degrees_of_freedom"], level)


def _is_square(value: Any, size: int) -> bool:
    rows = value if isinstance(value, list) else []
    return len(rows) == size and all(
        isinstance(row, list) and len(row) == size and all(map(_is_finite, row)) for row in rows
    )


def _is_finite(value: Any) -> bool:
    # Integers of JSON may be larger than any float.
    return type(value) in (int, float) and abs(value) <= sys.float_info.max
