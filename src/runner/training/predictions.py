"""Predictions of a finished run with what is known of their errors: `residuals.csv`, and the bands of a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from runner.compute.batch import Batch
from runner.compute.precision import widest
from runner.data.base import Rows
from runner.models.base import Model
from runner.optim.covariance import Covariance
from runner.optim.qr import pieces
from runner.optim.standard_errors import Inference
from runner.optim.student_t import CONFIDENCE, t_quantile
from runner.training.experiment import Outcome, RunInfo

MOST_ROWS = 100_000
"""Largest number of rows, of all parts, for which `residuals.csv` is written: about 10 MB."""

COLUMNS = ("target", "prediction", "residual")
"""Columns of `residuals.csv` for each target."""


def residuals_csv(info: RunInfo, outcome: Outcome) -> bytes:
    """Return the content of `residuals.csv`: a line for each row of the data, in the order of the file.

    Target, prediction and residual (target − prediction) are in the units of the file, with the digits of the run's dtype.
    The standardized residual is over its standard error, s·√(1/w − h) for a training row of weight w and s·√(1/w + h) for
    another one, with h·w the leverage: Cook and Weisberg, "Residuals and Influence in Regression" (1982), section 2.2. The
    logarithm's is meant with `data.log_target`. It is empty where no covariance is known, or no error is left.

    Several targets have columns like "target/y", and no standardized residuals.
    """
    evaluation, dataset = outcome.evaluation(), info.dataset
    digits = np.float64 if info.config.dtype == "float64" else np.float32
    several, lines = len(dataset.target_names) > 1, dict[int, str]()
    for part, rows in dataset.parts.items():
        target, prediction = dataset.scaling.undo(rows.all.target.cpu().double()), evaluation.predictions(part)
        values = torch.stack((target, prediction, target - prediction), -1).flatten(1)
        columns = [_texts(column, digits) for column in values.T]
        if not several:
            columns.append(_standardized_texts(evaluation.model, outcome.inference, part, rows, digits))
        for number, *cells in zip((rows.source + 1).tolist(), *columns, strict=True):
            lines[number] = ",".join((str(number), part, *cells))
    header = io.StringIO()
    names = [f"{name}/{of}" for of in dataset.target_names for name in COLUMNS]
    csv.writer(header).writerow(["row", "part", *(names if several else (*COLUMNS, "standardized_residual"))])
    return "\n".join([header.getvalue().strip(), *(lines[number] for number in sorted(lines)), ""]).encode()


def _standardized_texts(
    model: torch.nn.Module, inference: Inference | None, part: str, rows: Rows, digits: type
) -> list[str]:
    """Return the standardized residuals of a part as texts, empty where there are none."""
    if inference is None or inference.covariance is None:
        return [""] * len(rows)
    texts = _texts(_standardized(model, inference.covariance, rows.all, -1 if part == "train" else 1), digits)
    return ["" if text in ("nan", "inf", "-inf") else text for text in texts]


def _texts(values: Tensor, digits: type) -> list[str]:
    """Return the shortest texts that read back as the same numbers."""
    texts: list[str] = values.numpy().astype(digits).astype(str).tolist()
    return texts


def _standardized(model: torch.nn.Module, covariance: Covariance, rows: Batch, sign: int) -> Tensor:
    residuals, variances = [], []
    for batch, prediction, variance in _predicted(model, covariance, rows):
        weight = torch.ones_like(prediction) if batch.weight is None else batch.weight.flatten().cpu().double()
        residuals.append((batch.target.flatten().cpu().double() - prediction) * weight.sqrt())
        variances.append(torch.where(weight > 0, weight * variance, torch.nan))
    # A row that alone determines a parameter has leverage 1, up to rounding, and no residual.
    left = 1 + sign * torch.cat(variances)
    return torch.cat(residuals) / covariance.deviation / torch.where(left > 1e-9, left, torch.nan).sqrt()


def bands(
    info: RunInfo, outcome: Outcome, model: torch.nn.Module, features: Tensor
) -> Mapping[str, tuple[Tensor, Tensor]]:
    """Return the 95 % bands of a fit at scaled features [rows, columns]: name → (low, high) [rows], in the file's units.

    The confidence band is about the curve, the prediction band about a new row; there is none of a weighted fit, since a new
    row may have any weight. Both hold at each place by itself. Empty where no covariance is known, and for several targets.
    """
    inference: Inference | None = outcome.inference
    if inference is None or inference.covariance is None or len(info.dataset.target_names) > 1:
        return {}
    covariance, scaling = inference.covariance, info.dataset.scaling
    ((_, center, variance),) = _predicted(model, covariance, Batch(features, features[:, :1]))
    reach = t_quantile((1 + CONFIDENCE) / 2, inference.degrees_of_freedom) * covariance.deviation
    halves = {"confidence band": reach * variance.sqrt()}
    if info.config.data.weighted_by is None:
        halves["prediction band"] = reach * (1 + variance).sqrt()
    return {
        f"{100 * CONFIDENCE:.0f} % {name}": (scaling.undo(center - half), scaling.undo(center + half))
        for name, half in halves.items()
    }


def _predicted(model: torch.nn.Module, covariance: Covariance, rows: Batch) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    """Yield pieces of the rows, with predictions [rows] as the model scales them and their variances over s² [rows].

    Predictions and variances are in float64 on the CPU.
    """
    assert isinstance(model, Model)
    wide = widest(rows.target.device)
    parameters = {name: value.detach().to(wide) for name, value in model.named_parameters()}
    for piece in pieces(rows):
        x = piece.numbers.to(wide)
        with torch.no_grad():
            prediction = functional_call(model, parameters, (x,))
        variance = covariance.variance(model.jacobian(parameters, x).cpu()).double()
        yield piece, prediction.flatten().cpu().double(), variance
