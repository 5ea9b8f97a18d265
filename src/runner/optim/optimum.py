"""Optimum of a problem that is linear in its parameters under mse, and the convergence rate of gradient descent.

Every tensor has a leading lane axis; a single run is one lane.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from runner.compute.batch import Batch
from runner.compute.precision import DTYPES, widest
from runner.config import schema as c
from runner.optim.base import Differentiable
from runner.optim.linearised import Linearised, lengths
from runner.optim.qr import augmented, inverse, lanes_at_once, penalised, pieces, qr_of_pieces, select_lanes

MOST_WORK = 2**33
"""Maximum number of multiplications spent on an optimum, a few seconds."""

MOST_NUMBERS = 1_000
"""Maximum number of parameters of a model whose optimum is computed."""

PASSES = 2
"""Number of solves: the solution, and one step of iterative refinement."""


@dataclass(frozen=True)
class Optimum:
    """Minimum of the objective: the mean weighted squared error over all training rows and targets plus the l2 penalty, if there is one.

    The objective is quadratic, so value and distance at any other parameters follow from it.
    """

    solution: Tensor
    """Entries [lanes, n] of all parameters in order; the shortest solution if several are equally good."""
    loss: Tensor
    """Mean squared error [lanes] at the solution, without the penalty, in the units trained in."""
    curvature: Tensor
    """Triangular factor T [lanes, n, n] of the objective: its value at p is ‖T·(p − solution)‖² above the minimum."""
    condition: Tensor
    """Condition number [lanes] of the Jacobian: largest over smallest singular value."""
    digits: Tensor
    """Number of decimal digits [lanes] of the worst parameter that are certain in the run's dtype; see `_digits`."""

    def select(self, lanes: Tensor) -> Optimum:
        """Return the optimum of the given lanes only."""
        return Optimum(*(value[lanes] for value in vars(self).values()))

    def gap(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return how far the objective at parameters [lanes, n] is above its minimum [lanes], and their distance [lanes]."""
        offset = rows.detach().to(self.solution) - self.solution
        return (self.curvature @ offset.unsqueeze(2)).square().sum((1, 2)), offset.norm(dim=1)

    @property
    def eigenvalues(self) -> Tensor:
        """Eigenvalues [lanes, n] of the objective's second derivative, in descending order."""
        values: Tensor = torch.linalg.svdvals(self.curvature)
        return 2 * values.square()


def work(rows: int, numbers: int) -> int:
    """Return the number of multiplications of one QR factorisation of a matrix of `rows` rows for `numbers` parameters."""
    return rows * (numbers + 2) ** 2


def find_optimum(model: Differentiable, rows: Batch, config: c.Config, weight_decay: Sequence[float]) -> Optimum | None:
    """Return the optimum of vmapped runs, or None if there is no closed form or it takes too long to compute.

    The rows may have a leading lane axis. `weight_decay` has one value per lane.
    """
    features = rows.numbers
    count, numbers = rows.residuals, sum(parameter.numel() for _, parameter in model.named_parameters())
    sample = features if features.dim() == 2 else features[0]
    quadratic = config.loss.squares and config.amp == "off" and not config.model.limits
    if not (quadratic and affordable(count, numbers) and model.is_linear(sample)):
        return None
    lanes, most = len(weight_decay), lanes_at_once(count, numbers)
    decay = torch.tensor(weight_decay, dtype=widest(features.device), device=features.device)
    parts = []
    for first in range(0, lanes, most):
        some = slice(first, first + most)
        part = _of_lanes(model, select_lanes(rows, some), decay[some], config.dtype)
        parts.append([value.expand(len(decay[some]), *value.shape[1:]) for value in vars(part).values()])
    return Optimum(*(torch.cat(values) for values in zip(*parts, strict=True)))


def least_squares(model: Differentiable, rows: Batch) -> Tensor:
    """Return the parameters [n] of a linear model of one run with the least squared error."""
    no_decay = torch.zeros(1, dtype=widest(rows.target.device), device=rows.target.device)
    return _of_lanes(model, rows, no_decay, "float64").solution[0]


def affordable(rows: int, numbers: int) -> bool:
    """Return whether least squares of so many residuals and parameters takes no longer than a few seconds."""
    return numbers <= MOST_NUMBERS and work(rows, numbers) <= MOST_WORK


def _of_lanes(model: Differentiable, rows: Batch, decay: Tensor, dtype: str) -> Optimum:
    """Return the optimum of some lanes; values that all of them share have a lane axis of size 1."""
    zero = {
        name: torch.zeros(parameter.shape, dtype=decay.dtype, device=decay.device)
        for name, parameter in model.named_parameters()
    }
    count, numbers = rows.residuals, sum(value.numel() for value in zero.values())

    def matrices(solution: Tensor) -> Iterator[Tensor]:
        for piece in pieces(rows):
            x = piece.numbers.to(decay)
            design, constant = model.jacobian(zero, x), functional_call(model, zero, (x,))  # type: ignore[arg-type]
            linear = (design @ solution.unsqueeze(2)).reshape(-1, *constant.shape[-2:])
            yield augmented(design, linear + constant, piece)

    solution = torch.zeros(1, numbers, dtype=decay.dtype, device=decay.device)
    for _ in range(PASSES):
        factor = qr_of_pieces(matrices(solution), rows.target.shape[-1])
        objective = penalised(factor[:, :, : numbers + 1], solution, decay, count)
        jacobian = objective[:, :numbers, :numbers]
        problem = Linearised.from_triangle(jacobian, objective[:, :numbers, numbers], lengths(jacobian), count)
        solution = solution + problem.shortest  # the sum of shortest steps from 0 is the shortest solution
    residual, size = (factor[:, :, column].norm(dim=1) for column in (numbers, numbers + 1))
    values: Tensor = torch.linalg.svdvals(factor[:, :numbers, :numbers])
    return Optimum(
        solution,
        residual.square() / count,
        jacobian / math.sqrt(count),
        values[:, 0] / values[:, -1],
        _digits(jacobian, solution, residual, size, dtype),
    )


def _digits(jacobian: Tensor, solution: Tensor, residual: Tensor, size: Tensor, dtype: str) -> Tensor:
    """Return −log₁₀ of a first-order bound on the relative error of the worst parameter if every number is rounded once.

    For columns of length 1 and the pseudo-inverse A⁺, |δp| ≤ ε·(|A⁺|·‖y‖ + |(AᵀA)⁻¹|·‖r‖): Higham, "Accuracy and Stability of
    Numerical Algorithms" (2002), theorem 20.1. If a parameter is 0 up to rounding, its error is relative to the target.
    """
    scale = lengths(jacobian)
    back = inverse(jacobian / scale.unsqueeze(1))
    effect = back.norm(dim=2) * size.unsqueeze(1) + (back @ back.mT).norm(dim=2) * residual.unsqueeze(1)
    eps, scaled, target = torch.finfo(DTYPES[dtype]).eps, (solution * scale).abs(), size.unsqueeze(1)
    relative = eps * effect / torch.where(scaled > 4 * eps * target, scaled, target)
    digits: Tensor = -relative.amax(1).log10()
    return digits.nan_to_num(0.0).clamp(0.0, -math.log10(eps))


def progress_columns(optimum: Optimum, rows: Tensor) -> list[dict[str, float]]:
    """Return the `optimum/…` columns of metrics.jsonl for each lane's parameters [lanes, n]."""
    gaps, distances = optimum.gap(rows)
    values = zip(optimum.loss.tolist(), gaps.tolist(), distances.tolist(), strict=True)
    return [{"optimum/loss": loss, "optimum/gap": gap, "optimum/distance": distance} for loss, gap, distance in values]


def summarize(optimum: Optimum, configs: Sequence[c.Config], rows: Tensor) -> list[dict[str, float | None]]:
    """Return the `optimum` entry of summary.json for each lane's final parameters [lanes, n]."""
    eigenvalues, entries = optimum.eigenvalues, []
    condition, length = optimum.condition.tolist(), optimum.solution.norm(dim=1).tolist()
    for lane, (row, config) in enumerate(zip(progress_columns(optimum, rows), configs, strict=True)):
        rate = predicted_rate(config, eigenvalues[lane])
        entries.append(
            {
                **{name.removeprefix("optimum/"): value for name, value in row.items()},
                "condition_number": condition[lane],
                "digits": float(optimum.digits[lane]),
                "largest_stable_lr": largest_stable_lr(config, float(eigenvalues[lane, 0])),
                "predicted_rate": rate,
                "rounding_distance": _rounding(config.dtype, condition[lane], rate) * length[lane],
            }
        )
    return entries


def _rounding(dtype: str, condition: float, rate: float | None) -> float:
    """Return the distance from the optimum, relative to the parameters' length, at which rounding stops further progress.

    An estimate for rounding of gradients and of updates.
    """
    steps = 1 / (1 - rate) if rate is not None and rate < 1 else 1.0  # after so many steps a rounding error has decayed
    return 4 * torch.finfo(DTYPES[dtype]).eps * (condition**2 + steps)


def noise_floor(config: c.Config, target_scale: Tensor) -> dict[str, float] | None:
    """Return rmse, and loss if that is mse, of the true function of synthetic data; None for other data.

    The rmse is in the units of the file, the loss in the units trained in. On average no model is better on new rows. The
    mean of noise·U(0, 1) counts as part of the function.
    """
    deviation = config.data.noise_deviation
    if deviation is None or config.data.log_target:
        return None
    loss = {"loss": (deviation / float(target_scale)) ** 2} if config.loss.squares else {}
    return {**loss, "rmse": deviation}


# ------------------------------------------------------------------------------------------------- speed of convergence


def stability_warnings(configs: Sequence[c.Config], optimum: Optimum) -> list[str | None]:
    """Return a message for each lane whose learning rate makes full-batch steps diverge, and None for the others."""
    return [_stability_warning(*lane) for lane in zip(configs, optimum.eigenvalues[:, 0].tolist(), strict=True)]


def _stability_warning(config: c.Config, eigenvalue: float) -> str | None:
    lr, momentum = config.optimizer.lr, config.optimizer.descent_momentum
    if lr is None or momentum is None:
        return None
    limit = largest_stable_lr(config, eigenvalue)
    if lr <= limit:
        return None
    formula = "(1 + momentum)·2/λmax" if momentum else "2/λmax"
    return (
        f"lr is above the stability limit {formula} = {limit:.6g}: with `optimizer.lr`={lr:g} steps lead away from the optimum; "
        f"use a smaller learning rate{' or data.standardize=true' if config.may_standardize else ''}"
    )


def largest_stable_lr(config: c.Config, eigenvalue: float) -> float:
    """Return the learning rate above which gradient descent diverges: 2/λmax, times (1 + momentum) with momentum.

    `eigenvalue` is λmax, the largest eigenvalue of the second derivative.
    """
    return 2 * (1 + (config.optimizer.descent_momentum or 0.0)) / eigenvalue if eigenvalue > 0 else math.inf


def predicted_rate(config: c.Config, eigenvalues: Tensor) -> float | None:
    """Return the asymptotic factor by which each step multiplies the distance from the optimum, given eigenvalues [n].

    It is |1 − lr·λ| of the worst eigenvalue λ. With momentum β it is the largest root of z² − (1 + β − lr·λ)·z + β: Polyak,
    "Some methods of speeding up the convergence of iteration methods" (1964). None unless the run is full-batch gradient
    descent with a constant learning rate and no clipping.
    """
    train, lr, beta = config.train, config.optimizer.lr, config.optimizer.descent_momentum
    plain = train.batch_size is None and train.clip_norm is None and config.schedule.constant
    if not plain or lr is None or beta is None:
        return None
    nonzero = eigenvalues[eigenvalues > torch.finfo(eigenvalues.dtype).eps * eigenvalues[0]].tolist()
    return max((_root(1 + beta - lr * value, beta) for value in nonzero), default=None)


def _root(total: float, product: float) -> float:
    """Return the larger absolute value of the roots of z² − total·z + product."""
    discriminant = total * total - 4 * product
    return math.sqrt(product) if discriminant < 0 else (abs(total) + math.sqrt(discriminant)) / 2


def observed_rate(rows: Iterable[Mapping[str, Any]], floor: float) -> float | None:
    """Return the mean factor per step of `optimum/distance`, or None for fewer than two usable rows.

    It is measured over the second half of the metric rows whose distance is above `floor`, the level of rounding.
    """
    steps, distances = array("q"), array("d")  # rows are read one by one: there may be millions
    for row in rows:
        distance = row.get("optimum/distance")
        if isinstance(distance, float) and distance > floor:
            steps.append(row["step"])
            distances.append(distance)
    if len(steps) < 2:
        return None
    middle = (len(steps) - 1) // 2
    return float((distances[-1] / distances[middle]) ** (1 / (steps[-1] - steps[middle])))
