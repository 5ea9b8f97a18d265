"""What rounding does to a training, found in float64: by linear algebra where the problem is linear, else by trial.

Errors are counted in unit roundoffs u of the type that is computed in: the largest relative error of one rounded operation.
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
"""What `device.matmul_precision` allows the factors of float32 products to lose: TF32 has 11 bits, bfloat16 has 8."""

OPERATIONS = 16
"""Roundings between the data and an updated parameter besides those of sums: of data and start values, prediction, residual,
its scale and weight, gradient, decay, direction, step; never more than these."""

DRAWS, MARGIN = 4, 10.0
"""Trainings with errors drawn at random, and how much larger than the largest effect of them an effect may be."""

NEARBY = 1e-6
"""Relative change of the data by which it is found how much more a design changes; its own rounding is far below."""


def roundoffs(dtype: str, matmul_precision: str) -> tuple[float, float]:
    """The unit roundoff of results, and that of sums, which torch keeps in float32 for the types of 16 bits."""
    unit = UNIT_ROUNDOFF[dtype]
    if dtype == "float32":
        return max(unit, PRODUCTS[matmul_precision]), unit
    return unit, min(unit, UNIT_ROUNDOFF["float32"])


def gamma(operations: float, unit: float) -> float:
    """Largest relative error of so many roundings in a row (Higham, 2002, lemma 3.1); inf where it has no bound."""
    return operations * unit / (1 - operations * unit) if operations * unit < 1 else math.inf


# ------------------------------------------------------------------------------------------------------- linear problems


@dataclass(frozen=True)
class LinearProblem:
    """Least squares by gradient descent: predictions X·p of rows [n], for parameters p [m] in tensors of `sizes`.

    `sensitivity` is how many times larger a relative error of the data is in X. Learning rates are those of the steps from 1.
    """

    design: Tensor
    target: Tensor
    start: Tensor
    sizes: list[int]
    sensitivity: float
    rates: Sequence[float]
    momentum: float
    weight_decay: float

    def effect(self, dtype: str, matmul_precision: str, steps: int) -> tuple[float, float]:
        """Bounds on the relative differences of parameters and losses after `steps` steps, to first order in u."""
        rows, count = self.design.shape
        unit, of_sums = roundoffs(dtype, matmul_precision)
        relative = gamma(OPERATIONS + self.sensitivity, unit) + gamma(rows + count, of_sums)
        size = self._magnitudes(steps)
        rate = max(self.rates[:steps])
        local = 2 * unit * size.parameters + rate * (relative * size.summed + 4 * unit * size.directions)
        values, vectors = torch.linalg.eigh(self.design.T @ self.design * (2 / rows))
        # Along each eigenvector: the error of one step, times what all steps together make of it.
        along = (vectors.abs().T @ local) * multiplied(values + self.weight_decay, self.rates[:steps], self.momentum)
        pairs = zip(torch.split(vectors.abs() @ along, self.sizes), torch.split(size.last, self.sizes), strict=True)
        off = [_bound(float(error.max() / whole.abs().max())) for error, whole in pairs]
        prediction = float(((values.clamp_min(0) / 2).sqrt() * along).norm()) + relative * size.residuals
        loss = (2 * math.sqrt(size.losses) * prediction + prediction**2) / size.losses if size.losses else math.inf
        return max(off), _bound(loss + relative)

    def _magnitudes(self, steps: int) -> Magnitudes:
        whole, rows = self.design.abs(), len(self.design)
        parameters, velocity = self.start, torch.zeros_like(self.start)
        largest = torch.zeros(3, len(self.start), dtype=torch.float64)
        residuals, losses = 0.0, 0.0
        for step in range(steps):
            residual = self.design @ parameters - self.target
            summands = whole @ parameters.abs() + self.target.abs()
            velocity = self.momentum * velocity + self.design.T @ residual * (2 / rows) + self.weight_decay * parameters
            summed = whole.T @ summands * (2 / rows) + self.weight_decay * parameters.abs()
            largest = torch.maximum(largest, torch.stack((parameters, summed, velocity)).abs())
            residuals = max(residuals, float(summands.square().mean().sqrt()))
            losses = max(losses, float(residual.square().mean()))
            parameters = parameters - self.rates[step] * velocity
        return Magnitudes(largest[0], largest[1], largest[2], residuals, losses, parameters)


@dataclass(frozen=True)
class Magnitudes:
    """Largest numbers on the exact way: parameters, what gradients add up, and directions, each [m]; the root mean square of
    what residuals add up, and losses. `last` are the parameters [m] at its end.
    """

    parameters: Tensor
    summed: Tensor
    directions: Tensor
    residuals: float
    losses: float
    last: Tensor


def multiplied(eigenvalues: Tensor, rates: Sequence[float], momentum: float) -> Tensor:
    """For each eigenvalue [m] what becomes of an error of 1 at the start and at every step: the sum of what later steps make of it."""
    # The error in (p, lr·v): one step makes p − rate·(momentum·v + λp) and momentum·v + λp of it.
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


def linear(parts: Experiment) -> LinearProblem | None:
    """The problem as one of least squares by gradient descent; None where it is another one."""
    config, rows, model = parts.info.config, parts.info.dataset.parts["train"], parts.model
    descent = config.optimizer.descent_momentum is not None and config.train.clip_norm is None
    whole = config.loss.squares and parts.batches.per_epoch == 1
    if not (descent and whole and model.is_linear(rows.features)):
        return None
    named = {name: value.detach() for name, value in model.named_parameters()}
    start = torch.cat([value.flatten() for value in named.values()])
    design = model.jacobian(named, rows.features)
    nearby = (model.jacobian(named, rows.features * (1 + NEARBY)) - design).abs() / (NEARBY * design.abs())
    with torch.no_grad():
        constant = model(rows.features).flatten() - design @ start
    optimizer: Any = config.optimizer
    schedule: Any = parts.schedule
    return LinearProblem(
        design=design,
        target=rows.target.flatten() - constant,
        start=start,
        sizes=[value.numel() for value in named.values()],
        # 0/0 where an entry is 0 and stays so.
        sensitivity=float(nearby.nan_to_num(nan=0.0, posinf=math.inf).max()),
        rates=[schedule(step) for step in range(1, parts.info.steps + 1)],
        momentum=getattr(optimizer, "momentum", 0.0),
        weight_decay=optimizer.weight_decay,
    )


# --------------------------------------------------------------------------------------------------------- other problems


@dataclass(frozen=True)
class Noise:
    """Relative errors that are drawn anew at every use, evenly from ±`size`."""

    generator: torch.Generator
    size: float

    def __call__(self, tensor: Tensor) -> Tensor:
        draw = torch.rand(tensor.shape, dtype=torch.float64, generator=self.generator)
        return tensor * (1 + self.size * (2 * draw - 1))


@dataclass(frozen=True)
class Inexact:
    """An objective each of whose evaluations is that of parameters a little beside those that were asked for.

    This is what rounding does to the products and sums of a network: what is computed is exact for other weights nearby
    (Higham, 2002, section 3.5).
    """

    objective: Any
    parameters: Sequence[Tensor]
    noise: Noise

    def gradient(self) -> Any:
        with self._beside():
            return self.objective.gradient()

    def residuals(self) -> Any:
        with self._beside():
            return self.objective.residuals()

    def squares(self) -> Any:
        with self._beside():
            return self.objective.squares()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objective, name)

    @contextmanager
    def _beside(self) -> Iterator[None]:
        own = [parameter.detach().clone() for parameter in self.parameters]
        put(self.parameters, [self.noise(parameter) for parameter in own])
        yield
        put(self.parameters, own)


def put(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Write values into parameters, in place."""
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


class Rounding:
    """What rounding does to the training of a reference, a float64 configuration on one process of the CPU."""

    def __init__(self, reference: c.Config, choice: DeviceChoice) -> None:
        self._reference, self._choice = reference, choice
        self._found: dict[tuple[Any, ...], tuple[float, float]] = {}

    @cached_property
    def linear(self) -> LinearProblem | None:
        """The problem, where it is linear."""
        return linear(self._parts())

    def sampled(self, dtype: str, matmul_precision: str, steps: int) -> tuple[float, float]:
        """Bounds on the relative differences of parameters and losses after `steps` steps; inf where a draw ends in none."""
        key = (*roundoffs(dtype, matmul_precision), steps)
        if key not in self._found:
            self._found[key] = self._sample(*key)
        return self._found[key]

    def _sample(self, unit: float, of_sums: float, steps: int) -> tuple[float, float]:
        exact = self._trained(steps, None)
        largest = [0.0, 0.0]
        for draw in range(DRAWS):
            try:
                found = self._trained(steps, (unit, of_sums, draw))
            except (RunnerError, ZeroDivisionError):
                return math.inf, math.inf
            for i, (one, other) in enumerate(zip(found, exact, strict=True)):
                largest[i] = max(largest[i], _bound(difference(one, other)))
        _, of_evaluation = self._sizes(self._parts(), unit, of_sums)
        return MARGIN * largest[0], MARGIN * (largest[1] + of_evaluation)

    def _parts(self) -> Experiment:
        prepared, _ = build.prepare(self._reference, self._choice, 1)
        return build.build(self._reference, prepared, SingleProcess())

    def _sizes(self, parts: Experiment, unit: float, of_sums: float) -> tuple[float, float]:
        """Relative errors of storing a number, and of an evaluation, whose longest sums are over rows or inputs."""
        summands = parts.batches.largest + max(max(p.shape, default=1) for p in parts.objective.parameters)
        return unit, math.sqrt(OPERATIONS) * unit + math.sqrt(summands) * of_sums

    def _trained(
        self, steps: int, errors: tuple[float, float, int] | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Parameters and losses [steps] of one training, with or without errors."""
        parts = self._parts()
        objective: Any = parts.objective
        parameters = parts.objective.parameters
        stored: Any = None
        if errors is not None:
            unit, of_sums, draw = errors
            generator = stream(self._reference.seed, "parity", draw)
            of_storage, of_evaluation = self._sizes(parts, unit, of_sums)
            stored = Noise(generator, of_storage)
            objective = Inexact(objective, parameters, Noise(generator, of_evaluation))
            rows = parts.info.dataset.parts["train"]
            put([rows.features, rows.target], [stored(rows.features), stored(rows.target)])
            put(parameters, [stored(parameter.detach()) for parameter in parameters])
        losses = []
        for step in range(1, steps + 1):
            parts.objective.at(step)
            losses.append(parts.optimizer.step(objective, parts.schedule(step)))
            if stored is not None:
                put(parameters, [stored(parameter.detach()) for parameter in parameters])
        return dict(parts.model.state_dict()), {"loss": torch.stack([loss.reshape(()) for loss in losses])}


def difference(found: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """Largest difference over largest magnitude of each tensor, in float64, the largest of all; nan where one is in them."""
    largest = 0.0
    for name, whole in reference.items():
        other, size = found[name].double(), whole.double()
        off, over = float((other - size).abs().max()), float(size.abs().max())
        relative = 0.0 if off == 0 else off / over if over else math.inf
        largest = relative if math.isnan(relative) else max(largest, relative)
        if math.isnan(largest):
            break
    return largest


def _bound(value: float) -> float:
    """A number that can be compared: what is nan has no bound."""
    return math.inf if math.isnan(value) else value
