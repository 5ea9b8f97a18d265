"""The known answer of a problem that is linear in its parameters under mse: the optimum, and how fast steps can get there.

Everything has a lane for each run in front; one run alone is one lane.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from runner.compute.precision import DTYPES, widest
from runner.config import schema as c
from runner.optim.base import Differentiable
from runner.optim.linearised import Linearised, lengths
from runner.optim.qr import augmented, inverse, lanes_at_once, penalised, pieces, qr_of_pieces, select_lanes

MOST_WORK = 2**33
"""Most multiplications that are spent on an optimum: a few seconds."""

MOST_NUMBERS = 1_000
"""Most parameters of a model whose optimum is looked for."""

PASSES = 2
"""A solution, and its refinement by its own residuals."""


@dataclass(frozen=True)
class Optimum:
    """Of the mean squared error, with its l2 penalty where there is one, over all training rows; the way there is a parabola."""

    solution: Tensor
    """Parameters [lanes, n], one after the other; the shortest where several are equally good."""
    loss: Tensor
    """The mean squared error there, [lanes]; without the penalty."""
    curvature: Tensor
    """T [lanes, n, n]: what is minimised lies ‖T·(p − solution)‖² above its optimum."""
    condition: Tensor
    """Condition number [lanes] of the rows as the model sees them: largest over smallest singular value."""
    digits: Tensor
    """Correct digits [lanes] that conditioning and residuals leave of the worst parameter, from those of the run's type."""

    def select(self, lanes: Tensor) -> Optimum:
        """That of some of the lanes."""
        return Optimum(*(value[lanes] for value in vars(self).values()))

    def gap(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of parameters [lanes, n]: how far [lanes] what is minimised lies above the optimum, and their distance from it."""
        away = rows.detach().to(self.solution) - self.solution
        return (self.curvature @ away.unsqueeze(2)).square().sum((1, 2)), away.norm(dim=1)

    @property
    def eigenvalues(self) -> Tensor:
        """Those of the second derivative, [lanes, n], falling."""
        values: Tensor = torch.linalg.svdvals(self.curvature)
        return 2 * values.square()


def work(rows: int, numbers: int) -> int:
    """Multiplications of one factorisation."""
    return rows * (numbers + 2) ** 2


def find_optimum(
    model: Differentiable, features: Tensor, target: Tensor, config: c.Config, weight_decay: Sequence[float]
) -> Optimum | None:
    """The optimum of runs of one program; None where it is not known, or takes too long to find.

    Features [rows, columns] and target [rows, 1] may have lanes in front; `weight_decay` has as many as there are.
    """
    rows, numbers = features.shape[-2], sum(parameter.numel() for _, parameter in model.named_parameters())
    affordable = numbers <= MOST_NUMBERS and work(rows, numbers) <= MOST_WORK
    sample = features if features.dim() == 2 else features[0]
    if not (config.loss.squares and config.amp == "off" and affordable and model.is_linear(sample)):
        return None
    lanes, most = len(weight_decay), lanes_at_once(rows, numbers)
    decay = torch.tensor(weight_decay, dtype=widest(features.device), device=features.device)
    found = []
    for first in range(0, lanes, most):
        some = slice(first, first + most)
        part = _of_lanes(model, (select_lanes(features, some), select_lanes(target, some)), decay[some], config.dtype)
        found.append([value.expand(len(decay[some]), *value.shape[1:]) for value in vars(part).values()])
    return Optimum(*(torch.cat(values) for values in zip(*found, strict=True)))


def _of_lanes(model: Differentiable, rows: tuple[Tensor, Tensor], decay: Tensor, dtype: str) -> Optimum:
    """The optimum of some lanes, of which those that share everything are computed once."""
    zero = {
        name: torch.zeros(parameter.shape, dtype=decay.dtype, device=decay.device)
        for name, parameter in model.named_parameters()
    }
    count, numbers = rows[0].shape[-2], sum(value.numel() for value in zero.values())

    def matrices(solution: Tensor) -> Iterator[Tensor]:
        for features, y in pieces(*rows):
            x = features.to(decay)
            design, constant = model.jacobian(zero, x), functional_call(model, zero, (x,))  # type: ignore[arg-type]
            yield augmented(design, design @ solution.unsqueeze(2) + constant - y, y)

    solution = torch.zeros(1, numbers, dtype=decay.dtype, device=decay.device)
    for _ in range(PASSES):
        factor = qr_of_pieces(matrices(solution))
        whole = penalised(factor[:, :, : numbers + 1], solution, decay, count)
        jacobian = whole[:, :numbers, :numbers]
        problem = Linearised.of(jacobian, whole[:, :numbers, numbers], lengths(jacobian))
        solution = problem.shortest(solution + problem.unscaled(problem.full))
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
    """−log₁₀ of the first-order bound on the relative error of the worst parameter, entries rounded once.

    With A⁺ the pseudo-inverse, |δp| ≤ ε·(|A⁺|·‖y‖ + |(AᵀA)⁻¹|·‖r‖) for columns of length 1: Higham, "Accuracy and Stability of
    Numerical Algorithms" (2002), theorem 20.1. The error of a parameter that is 0 up to rounding counts relative to the target.
    """
    scale = lengths(jacobian)
    back = inverse(jacobian / scale.unsqueeze(1))
    effect = back.norm(dim=2) * size.unsqueeze(1) + (back @ back.mT).norm(dim=2) * residual.unsqueeze(1)
    eps, own, whole = torch.finfo(DTYPES[dtype]).eps, (solution * scale).abs(), size.unsqueeze(1)
    relative = eps * effect / torch.where(own > 4 * eps * whole, own, whole)
    digits: Tensor = -relative.amax(1).log10()
    return digits.nan_to_num(0.0).clamp(0.0, -math.log10(eps))


def progress_columns(optimum: Optimum, rows: Tensor) -> list[dict[str, float]]:
    """What a row of metrics.jsonl says of each lane's parameters [lanes, n]."""
    gaps, distances = optimum.gap(rows)
    values = zip(optimum.loss.tolist(), gaps.tolist(), distances.tolist(), strict=True)
    return [{"optimum/loss": loss, "optimum/gap": gap, "optimum/distance": distance} for loss, gap, distance in values]


def summarize(optimum: Optimum, configs: Sequence[c.Config], rows: Tensor) -> list[dict[str, float | None]]:
    """What a summary says of each lane's final parameters [lanes, n]; `rounding_distance` is what rounding alone leaves."""
    largest, found = optimum.eigenvalues, []
    condition, length = optimum.condition.tolist(), optimum.solution.norm(dim=1).tolist()
    for lane, (row, config) in enumerate(zip(progress_columns(optimum, rows), configs, strict=True)):
        rate = predicted_rate(config, largest[lane])
        found.append(
            {
                **{name.removeprefix("optimum/"): value for name, value in row.items()},
                "condition_number": condition[lane],
                "digits": float(optimum.digits[lane]),
                "largest_stable_lr": largest_stable_lr(config, float(largest[lane, 0])),
                "predicted_rate": rate,
                "rounding_distance": _rounding(config.dtype, condition[lane], rate) * length[lane],
            }
        )
    return found


def _rounding(dtype: str, condition: float, rate: float | None) -> float:
    """Distance from the optimum, as a share of the parameters' length, at which rounding of gradients and steps holds a run up."""
    steps = 1 / (1 - rate) if rate is not None and rate < 1 else 1.0  # as many as it takes for one to be forgotten
    return 4 * torch.finfo(DTYPES[dtype]).eps * (condition**2 + steps)


def noise_floor(config: c.Config, target_scale: float) -> dict[str, float] | None:
    """Rmse, and the loss if that is mse, of the function that synthetic data was made of; None for other data.

    No model is better on new rows. The mean of noise·U(0, 1) counts as a part of the function.
    """
    deviation = config.data.noise_deviation
    if deviation is None or config.data.log_target:
        return None
    loss = {"loss": (deviation / target_scale) ** 2} if config.loss.squares else {}
    return {**loss, "rmse": deviation}


# ------------------------------------------------------------------------------------------------- speed of convergence


def stability_warnings(configs: Sequence[c.Config], optimum: Optimum) -> list[str | None]:
    """For each lane the sentence for a learning rate with which steps over all rows leave the optimum; None for one that is fine."""
    return [_unstable(*lane) for lane in zip(configs, optimum.eigenvalues[:, 0].tolist(), strict=True)]


def _unstable(config: c.Config, eigenvalue: float) -> str | None:
    lr, momentum = config.optimizer.lr, config.optimizer.descent_momentum
    if lr is None or momentum is None:
        return None
    limit = largest_stable_lr(config, eigenvalue)
    if lr <= limit:
        return None
    formula = "(1 + momentum)·2/λmax" if momentum else "2/λmax"
    return (
        f"lr is above the stability limit {formula} = {limit:.6g}: `optimizer.lr`={lr:g} takes steps that lead away from the "
        "optimum; make it smaller, or standardize the data with data.standardize=true"
    )


def largest_stable_lr(config: c.Config, eigenvalue: float) -> float:
    """The learning rate above which gradient descent leaves the optimum: 2/λmax, and (1 + momentum) times that with momentum."""
    return 2 * (1 + (config.optimizer.descent_momentum or 0.0)) / eigenvalue if eigenvalue > 0 else math.inf


def predicted_rate(config: c.Config, eigenvalues: Tensor) -> float | None:
    """What each step multiplies the distance from the optimum by in the end, for all rows and one learning rate.

    |1 − lr·λ| of the worst eigenvalue; with momentum β the largest root of z² − (1 + β − lr·λ)·z + β (Polyak, 1964). None where
    that is not how the run goes on.
    """
    train, lr, beta = config.train, config.optimizer.lr, config.optimizer.descent_momentum
    alike = train.batch_size is None and train.clip_norm is None and config.schedule.constant
    if not alike or lr is None or beta is None:
        return None
    steep = eigenvalues[eigenvalues > torch.finfo(eigenvalues.dtype).eps * eigenvalues[0]].tolist()
    return max((_root(1 + beta - lr * value, beta) for value in steep), default=None)


def _root(half: float, product: float) -> float:
    """The larger absolute value of the roots of z² − half·z + product."""
    inside = half * half - 4 * product
    return math.sqrt(product) if inside < 0 else (abs(half) + math.sqrt(inside)) / 2


def observed_rate(rows: Sequence[Mapping[str, Any]], floor: float) -> float | None:
    """What each step multiplied the distance by in the second half of the rows that lie above what rounding leaves, `floor`."""
    seen = [(row["step"], row["optimum/distance"]) for row in rows if isinstance(row.get("optimum/distance"), float)]
    above = [(step, distance) for step, distance in seen if distance > floor]
    if len(above) < 2:
        return None
    (first, far), (last, near) = above[(len(above) - 1) // 2], above[-1]
    return float((near / far) ** (1 / (last - first)))
