"""Effect of rounding on a training, computed in float64: by linear algebra for linear problems, else by sampling.

Errors are counted in unit roundoffs u of the dtype: the largest relative error of one rounded operation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from runner.compute.devices import DeviceChoice
from runner.compute.processes import SingleProcess
from runner.compute.rng import stream
from runner.config import schema as c
from runner.errors import RunnerError
from runner.training import build
from runner.training.experiment import Experiment

UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
PRODUCTS = {"highest": 0.0, "high": 2.0**-11, "medium": 2.0**-8}
"""`device.matmul_precision` -> unit roundoff of the factors of float32 products: TF32 has 11 bits, bfloat16 has 8."""

OPERATIONS = 16
"""Upper limit of the roundings between the data and an updated parameter, without those of sums.

They are the roundings of data and start values, prediction, residual, its scale and weight, gradient, decay, direction, step.
"""

DRAWS, MARGIN = 4, 10.0
"""Number of trainings with random errors, and the factor by which a bound exceeds their largest effect."""

NEARBY = 1e-6
"""Relative change of the data used to measure the sensitivity of the design matrix; far above its rounding."""


def roundoffs(dtype: str, matmul_precision: str) -> tuple[float, float]:
    """Return the unit roundoff of results and that of sums."""
    # torch keeps sums of 16 bit dtypes in float32.
    unit = UNIT_ROUNDOFF[dtype]
    if dtype == "float32":
        return max(unit, PRODUCTS[matmul_precision]), unit
    return unit, min(unit, UNIT_ROUNDOFF["float32"])


def gamma(operations: float, unit: float) -> float:
    """Return the largest relative error of a sequence of roundings (Higham, 2002, lemma 3.1); inf if it is unbounded."""
    return operations * unit / (1 - operations * unit) if operations * unit < 1 else math.inf


# ------------------------------------------------------------------------------------------------------- linear problems


@dataclass(frozen=True)
class LinearProblem:
    """Least squares by gradient descent: predictions X·p of n rows, for m parameters p."""

    design: Tensor
    """X [n, m], each row times the root of its weight."""
    target: Tensor
    """Target without the constant part of the prediction, times the root of the weight [n]."""
    start: Tensor
    """Start values of the parameters [m]."""
    sizes: list[int]
    """Numbers of elements of the parameter tensors, which add up to m."""
    sensitivity: float
    """Factor from a relative error of the data to that of X."""
    rates: Sequence[float]
    """Learning rates from step 1 on."""
    momentum: float
    weight_decay: float

    def effect(self, dtype: str, matmul_precision: str, steps: int) -> tuple[float, float]:
        """Return bounds on the relative differences of parameters and losses after `steps` steps, to first order in u."""
        rows, count = self.design.shape
        unit, of_sums = roundoffs(dtype, matmul_precision)
        relative = gamma(OPERATIONS + self.sensitivity, unit) + gamma(rows + count, of_sums)
        size = self._magnitudes(steps)
        rate = max(self.rates[:steps])
        local = 2 * unit * size.parameters + rate * (relative * size.summed + 4 * unit * size.directions)
        values, vectors = torch.linalg.eigh(self.design.T @ self.design * (2 / rows))
        # Along each eigenvector: the error of one step, times its growth over all steps.
        along = (vectors.abs().T @ local) * error_growth(values + self.weight_decay, self.rates[:steps], self.momentum)
        pairs = zip(torch.split(vectors.abs() @ along, self.sizes), torch.split(size.last, self.sizes), strict=True)
        off = [_bound(float(error.max() / whole.abs().max())) for error, whole in pairs]
        prediction = float(((values.clamp_min(0) / 2).sqrt() * along).norm()) + relative * size.residuals
        loss = (2 * math.sqrt(size.losses) * prediction + prediction**2) / size.losses if size.losses else math.inf
        return max(off), _bound(loss + relative)

    def _magnitudes(self, steps: int) -> Magnitudes:
        absolute, rows = self.design.abs(), len(self.design)
        parameters, velocity = self.start, torch.zeros_like(self.start)
        largest = torch.zeros(3, len(self.start), dtype=torch.float64)
        residuals, losses = 0.0, 0.0
        for step in range(steps):
            residual = self.design @ parameters - self.target
            summands = absolute @ parameters.abs() + self.target.abs()
            velocity = self.momentum * velocity + self.design.T @ residual * (2 / rows) + self.weight_decay * parameters
            summed = absolute.T @ summands * (2 / rows) + self.weight_decay * parameters.abs()
            largest = torch.maximum(largest, torch.stack((parameters, summed, velocity)).abs())
            residuals = max(residuals, float(summands.square().mean().sqrt()))
            losses = max(losses, float(residual.square().mean()))
            parameters = parameters - self.rates[step] * velocity
        return Magnitudes(largest[0], largest[1], largest[2], residuals, losses, parameters)


@dataclass(frozen=True)
class Magnitudes:
    """Largest magnitudes during the exact training."""

    parameters: Tensor
    """Parameters [m]."""
    summed: Tensor
    """Sums of the magnitudes of the terms of a gradient [m]."""
    directions: Tensor
    """Update directions before the learning rate [m]."""
    residuals: float
    """Root mean square of the sums of the magnitudes of the terms of a residual."""
    losses: float
    last: Tensor
    """Parameters after the last step [m]."""


def error_growth(eigenvalues: Tensor, rates: Sequence[float], momentum: float) -> Tensor:
    """Return the sum [m] of what an error of 1 at the start and at every step grows to, for eigenvalues [m]."""
    # The error is one of (p, lr·v), which a step maps to p − rate·(momentum·v + λp) and momentum·v + λp.
    base = max(rates) or 1.0
    row = torch.stack((torch.ones_like(eigenvalues), torch.zeros_like(eigenvalues)), -1)
    total = torch.zeros_like(eigenvalues)
    for rate in reversed(rates):
        total = total + row.norm(dim=-1)
        kept, moved = row.unbind(-1)
        moved = moved - kept * (rate / base)
        row = torch.stack((kept + moved * base * eigenvalues, moved * momentum), -1)
    both = math.sqrt(2) if momentum else 1.0
    growth: Tensor = (total + row.norm(dim=-1)) * both
    return growth


def linear_problem(parts: Experiment) -> LinearProblem | None:
    """Return the problem as least squares by gradient descent, or None if it is not of that kind."""
    config, rows, model = parts.info.config, parts.info.dataset.parts["train"].all, parts.model
    descent = config.optimizer.descent_momentum is not None and config.train.clip_norm is None
    full_batch_squares = config.loss.squares and parts.batches.per_epoch == 1
    if not (descent and full_batch_squares and model.is_linear(rows.numbers)):
        return None
    named = {name: value.detach() for name, value in model.named_parameters()}
    start = torch.cat([value.flatten() for value in named.values()])
    design = model.jacobian(named, rows.numbers)
    nearby = (model.jacobian(named, rows.numbers * (1 + NEARBY)) - design).abs() / (NEARBY * design.abs())
    with torch.no_grad():
        constant = model(rows.numbers).flatten() - design @ start
    root = torch.ones_like(rows.target) if rows.weight is None else rows.weight.sqrt().expand_as(rows.target)
    optimizer: Any = config.optimizer
    schedule: Any = parts.schedule
    return LinearProblem(
        design=design * root.reshape(-1, 1),
        target=(rows.target.flatten() - constant) * root.flatten(),
        start=start,
        sizes=[value.numel() for value in named.values()],
        # 0/0 is an entry that is 0 and stays 0.
        sensitivity=float(nearby.nan_to_num(nan=0.0, posinf=math.inf).max()),
        rates=[schedule(step) for step in range(1, parts.info.steps + 1)],
        momentum=getattr(optimizer, "momentum", 0.0),
        weight_decay=optimizer.weight_decay,
    )


# --------------------------------------------------------------------------------------------------------- other problems


@dataclass(frozen=True)
class Noise:
    """Relative errors drawn anew at every call, uniformly from ±`size`."""

    generator: torch.Generator
    size: float

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return the tensor with a relative error in each element."""
        draw = torch.rand(tensor.shape, dtype=torch.float64, generator=self.generator)
        return tensor * (1 + self.size * (2 * draw - 1))


@dataclass(frozen=True)
class PerturbedObjective:
    """An objective that is evaluated at slightly perturbed parameters.

    Rounding has this effect on a network: its products and sums are exact for other weights nearby
    (Higham, 2002, section 3.5).
    """

    objective: Any
    parameters: Sequence[Tensor]
    noise: Noise

    def gradient(self) -> Any:
        """Return loss and gradient at perturbed parameters."""
        with self._perturbed():
            return self.objective.gradient()

    def residuals(self) -> Any:
        """Return residuals and Jacobian at perturbed parameters."""
        with self._perturbed():
            return self.objective.residuals()

    def squares(self) -> Any:
        """Return the sum of squared residuals at perturbed parameters."""
        with self._perturbed():
            return self.objective.squares()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objective, name)

    @contextmanager
    def _perturbed(self) -> Iterator[None]:
        exact = [parameter.detach().clone() for parameter in self.parameters]
        assign(self.parameters, [self.noise(parameter) for parameter in exact])
        yield
        assign(self.parameters, exact)


def assign(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Write values into parameters, in place."""
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


class Rounding:
    """Effect of rounding on the training of a reference, a float64 configuration on one process of the CPU."""

    def __init__(self, reference: c.Config, choice: DeviceChoice) -> None:
        self._reference, self._choice = reference, choice
        self._bounds: dict[tuple[Any, ...], tuple[float, float]] = {}

    @cached_property
    def linear(self) -> LinearProblem | None:
        """The training as a linear problem, or None if it is not linear."""
        return linear_problem(self._parts())

    def sampled(self, dtype: str, matmul_precision: str, steps: int) -> tuple[float, float]:
        """Return sampled bounds on the relative differences of parameters and losses after `steps` steps.

        They are inf if a training with errors fails.
        """
        key = (*roundoffs(dtype, matmul_precision), steps)
        if key not in self._bounds:
            self._bounds[key] = self._sample(*key)
        return self._bounds[key]

    def _sample(self, unit: float, of_sums: float, steps: int) -> tuple[float, float]:
        exact = self._trained(steps, None)
        largest = [0.0, 0.0]
        for draw in range(DRAWS):
            try:
                perturbed = self._trained(steps, (unit, of_sums, draw))
            except (RunnerError, ZeroDivisionError):
                return math.inf, math.inf
            for i, (one, other) in enumerate(zip(perturbed, exact, strict=True)):
                largest[i] = max(largest[i], _bound(relative_difference(one, other)))
        _, of_evaluation = self._sizes(self._parts(), unit, of_sums)
        return MARGIN * largest[0], MARGIN * (largest[1] + of_evaluation)

    def _parts(self) -> Experiment:
        prepared, _ = build.prepare(self._reference, self._choice, 1)
        return build.build(self._reference, prepared, SingleProcess())

    def _sizes(self, parts: Experiment, unit: float, of_sums: float) -> tuple[float, float]:
        """Return the relative errors of storing a number and of an evaluation, whose longest sums are over rows or inputs."""
        summands = parts.batches.largest + max(max(p.shape, default=1) for p in parts.objective.parameters)
        return unit, math.sqrt(OPERATIONS) * unit + math.sqrt(summands) * of_sums

    def _trained(
        self, steps: int, errors: tuple[float, float, int] | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return parameters and losses [steps] of one training.

        `errors` are the unit roundoff, that of sums, and the number of the draw; None trains without errors.
        """
        parts = self._parts()
        objective: Any = parts.objective
        parameters = parts.objective.parameters
        stored: Any = None
        if errors is not None:
            unit, of_sums, draw = errors
            generator = stream(self._reference.seed, "parity", draw)
            of_storage, of_evaluation = self._sizes(parts, unit, of_sums)
            stored = Noise(generator, of_storage)
            objective = PerturbedObjective(objective, parameters, Noise(generator, of_evaluation))
            data = [values for values in parts.info.dataset.parts["train"].all if values is not None]
            assign(data, [stored(values) for values in data])
            assign(parameters, [stored(parameter.detach()) for parameter in parameters])
        losses = []
        for step in range(1, steps + 1):
            parts.objective.at(step)
            losses.append(parts.optimizer.step(objective, parts.schedule(step)))
            if stored is not None:
                assign(parameters, [stored(parameter.detach()) for parameter in parameters])
        return dict(parts.model.state_dict()), {"loss": torch.stack([loss.reshape(()) for loss in losses])}


def relative_difference(tensors: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """Return the largest difference relative to the largest magnitude of its tensor, in float64; nan if a tensor has a nan."""
    largest = 0.0
    for name, expected in reference.items():
        actual, exact = tensors[name].double(), expected.double()
        error, size = float((actual - exact).abs().max()), float(exact.abs().max())
        relative = 0.0 if error == 0 else error / size if size else math.inf
        largest = relative if math.isnan(relative) else max(largest, relative)
        if math.isnan(largest):
            break
    return largest


def _bound(value: float) -> float:
    """Return the value, or inf for nan, which has no bound."""
    return math.inf if math.isnan(value) else value
