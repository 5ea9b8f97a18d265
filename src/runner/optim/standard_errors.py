"""Standard errors and confidence intervals of a least-squares fit.

Standard errors are the square roots of the diagonal of s²·(JᵀJ)⁻¹ for residual standard deviation s and Jacobian J: Bates and
Watts, "Nonlinear Regression Analysis and Its Applications" (1988), sections 1.2 and 2.3. With weights w, the rows of J and r
are multiplied by √w, and s is the standard deviation of a row with weight 1, which may be known. A parameter at a bound has no
standard error, and counts as known for the others.

Several targets have residuals of different variances, which in one row may be correlated. With their covariance Σ, estimated
from the residuals, the covariance of the parameters is (JᵀJ)⁻¹·Jᵀ(I ⊗ Σ)J·(JᵀJ)⁻¹: that of least squares of Zellner, "An
Efficient Method of Estimating Seemingly Unrelated Regressions", J. Amer. Statist. Assoc. 57 (1962). If the targets share no
parameters, standard errors are those of separate fits.

Every tensor has a leading lane axis; a single run is one lane.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import compress
from operator import not_
from typing import Any

import torch
from torch import Tensor

from runner.compute.batch import Batch
from runner.compute.bounds import Bounds
from runner.compute.precision import DTYPES, widest
from runner.config import schema as c
from runner.optim import factors
from runner.optim.base import Differentiable
from runner.optim.convergence import CONVERGED, NOT_FINITE, Evidence, Verdict, judge, other_values, rounding_left
from runner.optim.covariance import MOST_PARAMETERS, Covariance, rows_by_name
from runner.optim.linearised import Linearised, lengths
from runner.optim.optimum import MOST_NUMBERS, MOST_WORK, work
from runner.optim.orthogonality import angles
from runner.optim.qr import (
    inverse,
    lanes_at_once,
    penalised,
    select_lanes,
    without_columns,
)
from runner.optim.student_t import CONFIDENCE, t_quantile


@dataclass(frozen=True)
class Inference:
    """Result for one fit."""

    verdict: Verdict
    """Whether the fit has converged."""
    at_bounds: Sequence[bool]
    """Whether each of the n fitted numbers is at a bound."""
    degrees_of_freedom: int
    """Number of residuals with a weight above 0 minus number of parameters that are not at a bound."""
    residual_lengths: Sequence[float]
    """Length of each target's weighted residuals of training, in its units in the file, or in those of its logarithm."""
    given_deviation: float | None
    """Standard deviation of a row with weight 1 by `data.sigma`, in the same units; None without it."""
    standard_errors: Mapping[str, Tensor] | None
    """Standard errors by name, in the shapes and units of the reported parameters, without those that are at a bound.

    None if the fit did not converge, has too few rows, has an l2 penalty, or does not determine every parameter.
    """
    covariance: Covariance | None
    """Covariance of the parameters; None without standard errors, and for more than 50 parameters."""

    @property
    def residual_deviations(self) -> list[float]:
        """Standard deviation of each target in rows with weight 1, in the same units; nan without degrees of freedom.

        The targets have equal parts of the degrees of freedom.
        """
        free = self.degrees_of_freedom / len(self.residual_lengths)
        return [length / math.sqrt(free) if free > 0 else math.nan for length in self.residual_lengths]

    @property
    def chi_square(self) -> float:
        """Sum of squared residuals of one target, each over its standard deviation where `data.sigma` gives one."""
        (length,) = self.residual_lengths
        length /= 1.0 if self.given_deviation is None else self.given_deviation
        return length * length

    def information_criteria(self) -> dict[str, float]:
        """Return Akaike's and the Bayesian information criterion.

        aic = N·ln(χ²/N) + 2·k and bic = N·ln(χ²/N) + ln(N)·k for N rows and k parameters that are not at a bound, as lmfit
        defines them. The likelihood of normal noise adds the constant N·(1 + ln 2π) to both, as in statsmodels, which moves no
        difference.
        """
        numbers = self.at_bounds.count(False)
        rows = self.degrees_of_freedom + numbers
        fit = rows * math.log(self.chi_square / rows) if self.chi_square else -math.inf
        return {"aic": fit + 2 * numbers, "bic": fit + math.log(rows) * numbers}

    @property
    def converged(self) -> bool:
        """Whether the fit has converged."""
        return self.verdict.converged

    def intervals(self, fitted: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return Student's 95 % confidence intervals: name → (low, high), in the parameters' shapes and units.

        `fitted` has the reported parameters. The result is empty without standard errors.
        """
        errors = self.standard_errors or {}
        free = self.degrees_of_freedom // len(self.residual_lengths)
        t = t_quantile((1 + CONFIDENCE) / 2, free) if errors else math.nan
        values = {name: fitted[name].cpu().double() for name in errors}
        return {name: (values[name] - t * error, values[name] + t * error) for name, error in errors.items()}

    def summary(
        self, fitted: Mapping[str, Tensor], names: Sequence[str], targets: Sequence[str], settled: bool
    ) -> dict[str, Any]:
        """Return the entries of summary.json for these reported parameters, with `names` for all their entries.

        `settled` says that the optimizer has stopped, because it found no better parameters.
        """
        several = len(targets) > 1
        entries: dict[str, Any] = {"converged": self.converged}
        if not self.converged:
            entries["not_converged_because"] = self.verdict.reason(settled)
        if self.verdict.undetermined:
            entries["undetermined"] = list(self.verdict.undetermined)
        deviations = dict(zip(targets, self.residual_deviations, strict=True))
        entries |= {
            "degrees_of_freedom": self.degrees_of_freedom,
            "residual_standard_deviation": deviations if several else deviations[targets[0]],
        }
        if not several:  # the others are sums over residuals of one unit
            reduced = self.chi_square / self.degrees_of_freedom if self.degrees_of_freedom > 0 else math.nan
            entries |= {"chi_square": self.chi_square, "reduced_chi_square": reduced}
        if self.standard_errors is not None:
            entries |= {} if several else self.information_criteria()
            entries["standard_errors"] = {name: error.tolist() for name, error in self.standard_errors.items()}
            entries["confidence_intervals"] = {
                name: {"low": low.tolist(), "high": high.tolist()}
                for name, (low, high) in self.intervals(fitted).items()
            }
        if self.covariance is not None:
            free = names if True not in self.at_bounds else [*compress(names, map(not_, self.at_bounds))]
            entries["covariance"] = rows_by_name(self.covariance.matrix, free)
            entries["correlation"] = rows_by_name(self.covariance.correlation, free)
        return entries


@dataclass(frozen=True)
class Fit:
    """One run to analyse."""

    config: c.Config
    parameters: Mapping[str, Tensor]
    """Reported parameters by name, in the units of the file where the model undoes the scaling."""
    scaling: Any
    """Scaling of the data that the model was trained on (`runner.data.scaling.Scaling`)."""
    unit_deviation: float | None
    """Standard deviation of the target of a row with weight 1, in the units trained in; None where none is given."""
    terms: Sequence[str] = ()
    """Names of the entries of the reported parameters, if the model is a sum of terms."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the entries of the reported parameters, in order: of a term, else `bias` of one, `weight[0]` of several."""
        return self.terms or [
            name if value.numel() == 1 else f"{name}[{i}]"
            for name, value in self.parameters.items()
            for i in range(value.numel())
        ]


def infer(
    model: Differentiable, parameters: Mapping[str, Tensor], rows: Batch, fits: Sequence[Fit]
) -> list[Inference | None]:
    """Return the result of each of several vmapped fits, or None where it would not hold.

    `parameters` are the raw parameters [lanes, …] by name. `rows` are those of training, [rows, …] or [lanes, rows, …].
    There is no result if the loss is not mse or the model draws random numbers, in reduced precision, for decoupled weight
    decay, and for a network unless it was fitted by least squares. Of a model that is too large to be factored once more, only
    convergence is judged, and only after a least-squares solver.
    """
    count, numbers = rows.residuals, sum(value[0].numel() for value in parameters.values())
    small = numbers <= MOST_NUMBERS and work(count, numbers) <= MOST_WORK
    if not (_applies(fits[0].config) and (small or fits[0].config.optimizer.least_squares)):
        return [None] * len(fits)
    infer_lanes = _infer_lanes if small else _judge_lanes
    most = lanes_at_once(count, numbers)
    results: list[Inference | None] = []
    for first in range(0, len(fits), most):
        some = slice(first, first + most)
        named = {name: value[some].detach().to(widest(value.device)) for name, value in parameters.items()}
        results += infer_lanes(model, named, select_lanes(rows, some), fits[some])
    return results


def _applies(config: c.Config) -> bool:
    precise = config.amp == "off" and config.dtype in ("float64", "float32")
    squares = config.loss.squares and not config.model.draws and config.optimizer.l2_penalty is not None
    meaningful = config.optimizer.least_squares or config.model.identifiable
    return precise and squares and meaningful


def _infer_lanes(
    model: Differentiable, parameters: Mapping[str, Tensor], rows: Batch, fits: Sequence[Fit]
) -> Iterator[Inference]:
    flat = torch.cat([value.reshape(len(value), -1) for value in parameters.values()], 1)
    numbers, targets = flat.shape[1], rows.target.shape[-1]
    factor = factors.factor(model, parameters, rows).expand(len(flat), -1, -1)
    finite = factor.isfinite().all(2).all(1).tolist()
    factor = factor.nan_to_num(0.0, 0.0, 0.0)
    decay = torch.tensor([fit.config.optimizer.l2_penalty for fit in fits], dtype=flat.dtype, device=flat.device)
    objective = penalised(factor[:, :, : numbers + 1], flat, decay, rows.residuals)
    # Parameters and predictions are rounded to the run's dtype, which may leave an offset of this length.
    columns, eps = lengths(objective[:, :numbers, :numbers]), torch.finfo(DTYPES[fits[0].config.dtype]).eps
    length, target = (factor[:, :, column].norm(dim=1) for column in (numbers, numbers + 1))
    rounding = 4 * eps * (target + (columns * flat.abs()).sum(1))
    bounds = _bounds(fits[0].config, parameters).to(flat)
    gradient = (objective[:, :, :numbers].mT @ objective[:, :, numbers:]).squeeze(2)
    # The sign of rounding is no reason to hold a parameter at its bound.
    active = bounds.active(flat, torch.where(gradient.abs() > rounding.unsqueeze(1) * columns, gradient, 0.0))
    at_bounds = torch.logical_or(*bounds.reached(flat))
    factor, objective = without_columns(factor, at_bounds), without_columns(objective, active)
    freedom = targets * torch.tensor(_weighted_rows(rows, len(flat))).to(flat.device) - numbers + at_bounds.sum(1)
    deviation = factor[:, :, numbers].norm(dim=1) / freedom.clamp(min=1).to(flat).sqrt()
    jacobian = objective[:, :numbers, :numbers]
    problem = Linearised.from_triangle(jacobian, objective[:, :numbers, numbers], lengths(jacobian), rows.residuals)

    evidence = Evidence(
        problem=problem,
        length=length,
        rounding=rounding_left(rounding, eps, length, target),
        finite=finite,
        names=[fit.names for fit in fits],
        unscaling=lambda lane: model.unscaling(fits[lane].scaling),
        linear=cache(lambda: model.is_linear(rows.numbers if rows.numbers.dim() == 2 else rows.numbers[0])),
        ranks=lambda lane: _ranks_elsewhere(model, parameters, rows, lane),
    )
    verdicts = judge(evidence, [fit.config for fit in fits])
    full_rank = problem.determined.all(1).tolist()
    inverted, of_targets = inverse(factor[:, :numbers, :numbers]), evidence.length.unsqueeze(1)
    if targets > 1:
        residuals = factors.residuals(model, parameters, rows).nan_to_num(0.0, 0.0, 0.0)
        root = residuals / (freedom.clamp(min=1).to(flat) / targets).sqrt()[:, None, None]
        mixed = without_columns(factors.mixed(model, parameters, rows, root).nan_to_num(0.0, 0.0, 0.0), at_bounds)
        inverted = inverted @ (mixed @ inverted).mT
        of_targets, deviation = residuals.norm(dim=1), torch.ones_like(deviation)
    for lane, (fit, verdict) in enumerate(zip(fits, verdicts, strict=True)):
        free, held = int(freedom[lane]), at_bounds[lane].tolist()
        known = verdict.converged and full_rank[lane] and free >= targets and not fit.config.optimizer.l2_penalty
        given = fit.unit_deviation
        spread = given if fit.config.data.knows_variance and given is not None else float(deviation[lane])
        covariance = _covariance(model, fit, inverted[lane], at_bounds[lane], spread) if known else None
        units = fit.scaling.target_scale.reshape(-1)
        yield Inference(
            verdict=verdict,
            at_bounds=held,
            degrees_of_freedom=free,
            residual_lengths=(units * (of_targets[lane].cpu().double() if finite[lane] else math.nan)).tolist(),
            given_deviation=None if given is None else given * float(units),
            standard_errors=None if covariance is None else _errors(covariance, _free(fit.parameters, held)),
            covariance=covariance if numbers <= MOST_PARAMETERS else None,
        )


def _judge_lanes(
    model: Differentiable, parameters: Mapping[str, Tensor], rows: Batch, fits: Sequence[Fit]
) -> Iterator[Inference]:
    """Yield results that judge convergence by angles, and have no errors."""
    flat = torch.cat([value.reshape(len(value), -1) for value in parameters.values()], 1)
    found = angles(matrix.expand(len(flat), -1, -1) for matrix in factors.matrices(model, parameters, rows))
    decay = torch.tensor([fit.config.optimizer.l2_penalty for fit in fits], dtype=flat.dtype, device=flat.device)
    found = found.penalised(flat, (rows.residuals * decay / 2).unsqueeze(1))
    # As in `_infer_lanes`.
    eps = torch.finfo(DTYPES[fits[0].config.dtype]).eps
    rounding = 4 * eps * (found.target + (found.columns * flat.abs()).sum(1))
    bounds = _bounds(fits[0].config, parameters).to(flat)
    at_bounds = torch.logical_or(*bounds.reached(flat))
    largest = found.cosines.masked_fill(bounds.active(flat, found.cosines), 0.0).abs().amax(1)
    rounding = rounding_left(rounding, eps, found.residuals, found.target)
    near = (largest * found.residuals <= CONVERGED * found.residuals + rounding).tolist()
    of_targets = factors.residuals(model, parameters, rows).norm(dim=1)
    for lane, (fit, cosine, used) in enumerate(
        zip(fits, largest.tolist(), _weighted_rows(rows, len(fits)), strict=True)
    ):
        cause = "" if math.isfinite(cosine) else NOT_FINITE
        units, held = fit.scaling.target_scale.reshape(-1), at_bounds[lane].tolist()
        yield Inference(
            verdict=Verdict(fit.config, cause, 0.0 if cause or near[lane] else cosine, linear=False),
            at_bounds=held,
            degrees_of_freedom=len(units) * used - held.count(False),
            residual_lengths=(units * (math.nan if cause else of_targets[lane].cpu().double())).tolist(),
            given_deviation=None if fit.unit_deviation is None else fit.unit_deviation * float(units),
            standard_errors=None,
            covariance=None,
        )


def _weighted_rows(rows: Batch, lanes: int) -> list[int]:
    """Return for each lane the number of rows with a weight above 0."""
    if rows.weight is None:
        return [rows.target.shape[-2]] * lanes
    counts: list[int] = (rows.weight > 0).sum((-2, -1)).expand(lanes).tolist()
    return counts


def _ranks_elsewhere(model: Differentiable, parameters: Mapping[str, Tensor], rows: Batch, lane: int) -> Tensor:
    """Return the ranks [sets] of the Jacobian of a lane at other parameters, as far as it is finite there."""
    fitted = torch.cat([value[lane].reshape(-1) for value in parameters.values()])
    parts = torch.split(other_values(fitted), [value[0].numel() for value in parameters.values()], 1)
    named = {
        name: part.reshape(-1, *value.shape[1:]) for (name, value), part in zip(parameters.items(), parts, strict=True)
    }
    numbers, of_lane = len(fitted), rows.map(lambda values: values if values.dim() == 2 else values[lane])
    elsewhere = factors.factor(model, named, of_lane)
    elsewhere = elsewhere[elsewhere.isfinite().all(2).all(1), :numbers, :numbers]
    return Linearised.from_triangle(elsewhere, elsewhere[:, :, 0], lengths(elsewhere), rows.residuals).determined.sum(1)


def _bounds(config: c.Config, parameters: Mapping[str, Tensor]) -> Bounds:
    """Return the bounds of parameters [lanes, …] by name, rounded as in training."""
    trained = {name: value[0].to(DTYPES[config.dtype]) for name, value in parameters.items()}
    return Bounds.of(config.model.limits, trained)


def _covariance(model: Differentiable, fit: Fit, inverted: Tensor, at_bounds: Tensor, deviation: float) -> Covariance:
    """Return the covariance, given R⁻¹ [n, n] of J = QR, a mask [n] of the entries at a bound, which count as known, and s."""
    inverted, unscaling = inverted.masked_fill(at_bounds.unsqueeze(1), 0.0).cpu(), model.unscaling(fit.scaling)
    # Bounds are those of parameters in the units of the file.
    reported = inverted[~at_bounds.cpu()] if unscaling is None else unscaling.to(inverted) @ inverted
    return Covariance(inverted, reported, deviation)


def _free(parameters: Mapping[str, Tensor], at_bounds: Sequence[bool]) -> Mapping[str, Tensor]:
    """Return the parameters that are not at a bound; a parameter that has bounds is a single number."""
    return dict(compress(parameters.items(), map(not_, at_bounds))) if True in at_bounds else parameters


def _errors(covariance: Covariance, fitted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the standard errors of the reported parameters, in their shapes."""
    errors = covariance.deviation * covariance.reported.norm(dim=1)
    parts = torch.split(errors, [value.numel() for value in fitted.values()])
    return {name: part.reshape(fitted[name].shape) for name, part in zip(fitted, parts, strict=True)}
