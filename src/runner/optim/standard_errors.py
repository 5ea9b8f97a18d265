"""Convergence, standard errors and confidence intervals of a least-squares fit.

Standard errors are the square roots of the diagonal of s²·(JᵀJ)⁻¹ for residual standard deviation s and Jacobian J: Bates and
Watts, "Nonlinear Regression Analysis and Its Applications" (1988), sections 1.2 and 2.3. A parameter at a bound has none, and
counts as known for the others. Every tensor has a leading lane axis; a single run is one lane.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from runner.compute.bounds import Bounds
from runner.compute.precision import DTYPES, widest
from runner.config import constraints
from runner.config import schema as c
from runner.optim.base import Differentiable
from runner.optim.linearised import Linearised, lengths
from runner.optim.optimum import MOST_NUMBERS, MOST_WORK, work
from runner.optim.qr import (
    augmented,
    inverse,
    lanes_at_once,
    penalised,
    pieces,
    qr_of_pieces,
    select_lanes,
    without_columns,
)
from runner.optim.student_t import CONFIDENCE, t_quantile

CONVERGED = 1e-6
"""Largest relative offset of a converged fit.

The relative offset is the length of the residuals' projection on the column space of the Jacobian, over the length of the
residuals. Parameters then differ from the optimum by about this fraction of their standard errors.
"""


@dataclass(frozen=True)
class Inference:
    """Result for one fit."""

    converged: bool
    reason: str
    """Why it did not converge, with a remedy where there is one; empty if it did."""
    degrees_of_freedom: int
    """Number of rows minus number of parameters that are not at a bound."""
    residual_deviation: float
    """Standard deviation of the residuals, in the units trained in; nan without degrees of freedom."""
    standard_errors: Mapping[str, Tensor] | None
    """Standard errors by name, in the shapes and units of the reported parameters, without those that are at a bound.

    None if the fit did not converge, has too few rows, has an l2 penalty, or does not determine every parameter.
    """

    def intervals(self, fitted: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return Student's 95 % confidence intervals: name → (low, high), in the parameters' shapes and units.

        `fitted` has the reported parameters. The result is empty without standard errors.
        """
        errors = self.standard_errors or {}
        t = t_quantile((1 + CONFIDENCE) / 2, self.degrees_of_freedom) if errors else math.nan
        values = {name: fitted[name].cpu().double() for name in errors}
        return {name: (values[name] - t * error, values[name] + t * error) for name, error in errors.items()}

    def summary(self, fitted: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the entries of summary.json for these reported parameters."""
        entries: dict[str, Any] = {"converged": self.converged}
        if not self.converged:
            entries["not_converged_because"] = self.reason
        entries |= {
            "degrees_of_freedom": self.degrees_of_freedom,
            "residual_standard_deviation": self.residual_deviation,
        }
        if self.standard_errors is not None:
            entries["standard_errors"] = {name: error.tolist() for name, error in self.standard_errors.items()}
            entries["confidence_intervals"] = {
                name: {"low": low.tolist(), "high": high.tolist()}
                for name, (low, high) in self.intervals(fitted).items()
            }
        return entries


@dataclass(frozen=True)
class Fit:
    """One run to analyse."""

    config: c.Config
    parameters: Mapping[str, Tensor]
    """Reported parameters by name, in the units of the file where the model undoes the scaling."""
    scaling: Any
    """Scaling of the data that the model was trained on (`runner.data.scaling.Scaling`)."""


def infer(
    model: Differentiable, parameters: Mapping[str, Tensor], rows: tuple[Tensor, Tensor], fits: Sequence[Fit]
) -> list[Inference | None]:
    """Return the result of each of several vmapped fits, or None where it would not hold.

    `parameters` are the raw parameters [lanes, …] by name. `rows` are features and target of training, [rows, …] or
    [lanes, rows, …]. There is no result if the loss is not mse or the model draws random numbers, in reduced precision, for
    decoupled weight decay, for a model that is too large, and for a network unless it was fitted by least squares.
    """
    features, target = rows
    count, numbers = features.shape[-2], sum(value[0].numel() for value in parameters.values())
    if not _applies(fits[0].config, numbers) or work(count, numbers) > MOST_WORK:
        return [None] * len(fits)
    most = lanes_at_once(count, numbers)
    results: list[Inference | None] = []
    for first in range(0, len(fits), most):
        some = slice(first, first + most)
        some_rows = (select_lanes(features, some), select_lanes(target, some))
        named = {name: value[some].detach().to(widest(value.device)) for name, value in parameters.items()}
        results += _infer_lanes(model, named, some_rows, fits[some])
    return results


def _applies(config: c.Config, numbers: int) -> bool:
    precise = config.amp == "off" and config.dtype in ("float64", "float32")
    squares = config.loss.squares and not config.model.draws and config.optimizer.l2_penalty is not None
    meaningful = config.optimizer.least_squares or config.model.identifiable
    return precise and squares and meaningful and numbers <= MOST_NUMBERS


def _infer_lanes(
    model: Differentiable, parameters: Mapping[str, Tensor], rows: tuple[Tensor, Tensor], fits: Sequence[Fit]
) -> Iterator[Inference]:
    flat = torch.cat([value.reshape(len(value), -1) for value in parameters.values()], 1)
    numbers, count = flat.shape[1], rows[0].shape[-2]
    factor = _factor(model, parameters, rows).expand(len(flat), -1, -1)
    finite = factor.isfinite().all(2).all(1).tolist()
    factor = factor.nan_to_num(0.0, 0.0, 0.0)
    decay = torch.tensor([fit.config.optimizer.l2_penalty for fit in fits], dtype=flat.dtype, device=flat.device)
    objective = penalised(factor[:, :, : numbers + 1], flat, decay, count)
    # Predictions are rounded, and this much of them is no part of the fit.
    rounded = factor[:, :, numbers + 1].norm(dim=1) + (lengths(objective[:, :numbers, :numbers]) * flat.abs()).sum(1)
    bounds = _bounds(fits[0].config, parameters).to(flat)
    active = bounds.active(flat, (objective[:, :, :numbers].mT @ objective[:, :, numbers:]).squeeze(2))
    at_bounds = torch.logical_or(*bounds.reached(flat))
    factor, objective = without_columns(factor, at_bounds), without_columns(objective, active)
    freedom = count - numbers + at_bounds.sum(1)
    deviation = factor[:, :, numbers].norm(dim=1) / freedom.clamp(min=1).to(flat).sqrt()
    jacobian = objective[:, :numbers, :numbers]
    problem = Linearised.from_triangle(jacobian, objective[:, :numbers, numbers], lengths(jacobian))
    full_rank = problem.determined.all(1).tolist()
    eps = torch.finfo(DTYPES[fits[0].config.dtype]).eps
    # Parameters and predictions are rounded to the run's dtype, which may leave an offset of this length.
    rounding = 4 * eps * rounded
    length = factor[:, :, numbers].norm(dim=1)
    relative_offset = problem.offset / length
    near = (problem.offset <= CONVERGED * length + rounding).tolist()
    inverted = inverse(factor[:, :numbers, :numbers])
    linear = not all(near) and model.is_linear(rows[0] if rows[0].dim() == 2 else rows[0][0])
    for lane, fit in enumerate(fits):
        free = int(freedom[lane])
        known = finite[lane] and full_rank[lane] and near[lane] and free > 0 and not fit.config.optimizer.l2_penalty
        errors = _errors(model, fit, inverted[lane], float(deviation[lane])) if known else None
        if errors is not None and bool(at_bounds[lane].any()):  # bounded parameters are single numbers
            free_ones = (~at_bounds[lane]).tolist()
            errors = {name: error for (name, error), known in zip(errors.items(), free_ones, strict=True) if known}
        unique = full_rank[lane] or not fit.config.model.identifiable
        reason = _reason(finite[lane], unique)
        if not (reason or near[lane]):
            reason = _offset_reason(fit.config, float(relative_offset[lane]), linear)
        yield Inference(
            converged=not reason,
            reason=reason,
            degrees_of_freedom=free,
            residual_deviation=float(deviation[lane]) if free > 0 else math.nan,
            standard_errors=errors,
        )


def _bounds(config: c.Config, parameters: Mapping[str, Tensor]) -> Bounds:
    """Return the bounds of parameters [lanes, …] by name, rounded as in training."""
    trained = {name: value[0].to(DTYPES[config.dtype]) for name, value in parameters.items()}
    return Bounds.of(config.model.limits, trained)


def _factor(model: Differentiable, parameters: Mapping[str, Tensor], rows: tuple[Tensor, Tensor]) -> Tensor:
    """Return the triangular factor [lanes, n + 2, n + 2] of [J, r, y]."""

    def matrices() -> Iterator[Tensor]:
        wide = widest(rows[0].device)
        for x, y in pieces(rows[0].to(wide), rows[1].to(wide)):
            shared = None if x.dim() == 2 else 0
            with torch.no_grad():
                prediction = vmap(lambda p, x: functional_call(model, p, (x,)), in_dims=(0, shared))(parameters, x)  # type: ignore[arg-type]
            yield augmented(model.jacobian(parameters, x), prediction - y, y)

    return qr_of_pieces(matrices())


def _errors(model: Differentiable, fit: Fit, inverted: Tensor, deviation: float) -> dict[str, Tensor]:
    """Return the standard errors of the reported parameters, given R⁻¹ [n, n] of J = QR and s."""
    inverted, fitted = inverted.cpu(), fit.parameters
    unscaling = model.unscaling(fit.scaling)
    errors = deviation * (inverted if unscaling is None else unscaling.to(inverted) @ inverted).norm(dim=1)
    parts = torch.split(errors, [value.numel() for value in fitted.values()])
    return {name: part.reshape(fitted[name].shape) for name, part in zip(fitted, parts, strict=True)}


def _reason(finite: bool, unique: bool) -> str:
    if not finite:
        return "the residuals or their derivatives are not finite"
    if not unique:
        return "the data do not determine every parameter: some can change together without changing any prediction"
    return ""


def _offset_reason(config: c.Config, relative_offset: float, linear: bool) -> str:
    """Return why a fit with this relative offset has not converged, with remedies that its configuration allows."""
    remedies = ["train longer"]
    if not config.optimizer.least_squares:
        if not (config.data.standardize or config.model.keeps_units):
            remedies.append("use data.standardize=true")
        solved = linear and not config.model.limits
        solver: c.OptimizerConfig = c.Lstsq(name="lstsq", weight_decay=0.0) if solved else c.Lm(name="lm", radius=1.0)
        if not constraints.problems(replace(config, optimizer=solver)):
            remedies.append(f"use optimizer={solver.name}")
    *others, last = remedies
    advice = f"{', '.join(others)} or {last}" if others else last
    return f"relative offset {relative_offset:.1g}, threshold {CONVERGED:g}; {advice}"
