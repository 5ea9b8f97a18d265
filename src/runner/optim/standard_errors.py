"""What a fit by least squares tells of its parameters: whether it converged, and how sure they are.

Everything is computed with a lane for each run; one run alone is one lane.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from runner.compute.precision import DTYPES, widest
from runner.config import schema as c
from runner.optim.base import Differentiable
from runner.optim.linearised import Linearised, lengths
from runner.optim.optimum import MOST_NUMBERS, MOST_WORK, work
from runner.optim.qr import augmented, inverse, lanes_at_once, penalised, pieces, qr_of_pieces, select_lanes
from runner.optim.student_t import CONFIDENCE, t_quantile

CONVERGED = 1e-6
"""Share of the residuals that a step may still take away: the parameters are then right to this share of their standard errors."""


@dataclass(frozen=True)
class Inference:
    """Of one fit. Standard errors are None where the rows do not determine them: too few rows, or parameters that trade off."""

    converged: bool
    reason: str
    """Why not; empty where it did."""
    degrees_of_freedom: int
    residual_deviation: float
    """Standard deviation of the residuals, in the units trained in."""
    standard_errors: Mapping[str, Tensor] | None
    """By the names of the fitted parameters, in their shapes."""

    def intervals(self, fitted: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Student's 95 % confidence intervals: name → low and high, in the parameters' shapes; empty where errors are unknown."""
        errors = self.standard_errors or {}
        t = t_quantile((1 + CONFIDENCE) / 2, self.degrees_of_freedom) if errors else math.nan
        values = {name: fitted[name].cpu().double() for name in errors}
        return {name: (values[name] - t * error, values[name] + t * error) for name, error in errors.items()}

    def summary(self, fitted: Mapping[str, Tensor]) -> dict[str, Any]:
        """As in summary.json."""
        found: dict[str, Any] = {"converged": self.converged}
        if not self.converged:
            found["not_converged_because"] = self.reason
        found |= {
            "degrees_of_freedom": self.degrees_of_freedom,
            "residual_standard_deviation": self.residual_deviation,
        }
        if self.standard_errors is not None:
            found["standard_errors"] = {name: error.tolist() for name, error in self.standard_errors.items()}
            found["confidence_intervals"] = {
                name: {"low": low.tolist(), "high": high.tolist()}
                for name, (low, high) in self.intervals(fitted).items()
            }
        return found


@dataclass(frozen=True)
class Fit:
    """One run: its configuration, the parameters that it reports, and the scaling that these are free of."""

    config: c.Config
    parameters: Mapping[str, Tensor]
    scaling: Any


def infer(
    model: Differentiable, parameters: Mapping[str, Tensor], rows: tuple[Tensor, Tensor], fits: Sequence[Fit]
) -> list[Inference | None]:
    """Of fits of one program, from raw parameters [lanes, …] by name and the training rows: features and target.

    These are [rows, …], or [lanes, rows, …] where lanes have their own. None for a run whose loss is not mse or not a function
    of the parameters alone, for a model that is too large, and for a network, unless it was fitted by least squares.
    """
    features, target = rows
    count, numbers = features.shape[-2], sum(value[0].numel() for value in parameters.values())
    if not _asked(fits[0].config, numbers) or work(count, numbers) > MOST_WORK:
        return [None] * len(fits)
    most = lanes_at_once(count, numbers)
    found: list[Inference | None] = []
    for first in range(0, len(fits), most):
        some = slice(first, first + most)
        own = (select_lanes(features, some), select_lanes(target, some))
        named = {name: value[some].detach().to(widest(value.device)) for name, value in parameters.items()}
        found += _of_lanes(model, named, own, fits[some])
    return found


def _asked(config: c.Config, numbers: int) -> bool:
    smooth = config.loss.squares and config.amp == "off" and config.dtype in ("float64", "float32")
    plain = not config.model.draws and config.optimizer.l2_penalty is not None
    return (
        smooth and plain and numbers <= MOST_NUMBERS and (config.optimizer.least_squares or config.model.identifiable)
    )


def _of_lanes(
    model: Differentiable, parameters: Mapping[str, Tensor], rows: tuple[Tensor, Tensor], fits: Sequence[Fit]
) -> Iterator[Inference]:
    flat = torch.cat([value.reshape(len(value), -1) for value in parameters.values()], 1)
    numbers, count = flat.shape[1], rows[0].shape[-2]
    factor = _factor(model, parameters, rows).expand(len(flat), -1, -1)
    finite = factor.isfinite().all(2).all(1).tolist()
    factor = factor.nan_to_num(0.0, 0.0, 0.0)
    deviation = factor[:, :, numbers].norm(dim=1) / math.sqrt(max(1, count - numbers))
    decay = torch.tensor([fit.config.optimizer.l2_penalty for fit in fits], dtype=flat.dtype, device=flat.device)
    whole = penalised(factor[:, :, : numbers + 1], flat, decay, count)
    jacobian = whole[:, :numbers, :numbers]
    problem = Linearised.of(jacobian, whole[:, :numbers, numbers], lengths(jacobian))
    full_rank = problem.determined.all(1).tolist()
    eps = torch.finfo(DTYPES[fits[0].config.dtype]).eps
    # Parameters and predictions are rounded to the run's type: what that alone may leave along the Jacobian.
    rounding = 4 * eps * (factor[:, :, numbers + 1].norm(dim=1) + (lengths(jacobian) * flat.abs()).sum(1))
    still = problem.offset / factor[:, :, numbers].norm(dim=1)
    near = (problem.offset <= CONVERGED * factor[:, :, numbers].norm(dim=1) + rounding).tolist()
    back = inverse(factor[:, :numbers, :numbers])
    free = count - numbers
    for lane, fit in enumerate(fits):
        told = finite[lane] and full_rank[lane] and near[lane] and free > 0 and not fit.config.optimizer.l2_penalty
        errors = _errors(model, fit, back[lane], float(deviation[lane])) if told else None
        unique = full_rank[lane] or not fit.config.model.identifiable
        yield Inference(
            converged=finite[lane] and near[lane] and unique,
            reason=_reason(finite[lane], near[lane], unique, float(still[lane])),
            degrees_of_freedom=free,
            residual_deviation=float(deviation[lane]) if free > 0 else math.nan,
            standard_errors=errors,
        )


def _factor(model: Differentiable, parameters: Mapping[str, Tensor], rows: tuple[Tensor, Tensor]) -> Tensor:
    """The triangle [lanes, n + 2, n + 2] of [J, r, y]."""

    def matrices() -> Iterator[Tensor]:
        wide = widest(rows[0].device)
        for x, y in pieces(rows[0].to(wide), rows[1].to(wide)):
            shared = None if x.dim() == 2 else 0
            with torch.no_grad():
                prediction = vmap(lambda p, x: functional_call(model, p, (x,)), in_dims=(0, shared))(parameters, x)  # type: ignore[arg-type]
            yield augmented(model.jacobian(parameters, x), prediction - y, y)

    return qr_of_pieces(matrices())


def _errors(model: Differentiable, fit: Fit, back: Tensor, deviation: float) -> dict[str, Tensor]:
    """Roots of the diagonal of s²·(JᵀJ)⁻¹, from R⁻¹ of J and s, for the parameters as they are reported."""
    back, fitted = back.cpu(), fit.parameters
    unscaling = model.unscaling(fit.scaling)
    errors = deviation * (back if unscaling is None else unscaling.to(back) @ back).norm(dim=1)
    parts = torch.split(errors, [value.numel() for value in fitted.values()])
    return {name: part.reshape(fitted[name].shape) for name, part in zip(fitted, parts, strict=True)}


def _reason(finite: bool, near: bool, unique: bool, still: float) -> str:
    if not finite:
        return "its residuals or their derivatives are not finite"
    if not unique:
        return (
            "some parameters can be changed together without changing the predictions: the data do not tell them apart"
        )
    if not near:
        return (
            f"a further step would still remove a part of the residuals that has {still:.1g} of their length, "
            f"and {CONVERGED:g} or less counts as converged"
        )
    return ""
