"""Formulas as models: columns of the data are variables, and every other name is a parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runner.config import schema as c
from runner.config.expression import Expression, parse, written
from runner.errors import DataError
from runner.models.base import Model
from runner.models.derivatives import Derivatives, Formula
from runner.models.init import init_tensor

DRAWS = 8
"""Number of random parameter sets at which the derivatives of a linear formula must agree."""


class FormulaModel(Model):
    """Evaluate an expression on columns [rows, 1] and parameters [], one scalar each."""

    expression: Expression
    derivatives: Derivatives

    def __init__(self, expression: Expression, feature_names: Sequence[str], start: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.expression = expression
        self.columns = {name: i for i, name in enumerate(feature_names) if name in expression.names}
        for name, value in start.items():
            # Not register_parameter: it refuses the names of module attributes, and `type` is a fine parameter name.
            self._parameters[name] = torch.nn.Parameter(value)
        # An attribute of a module could not share the name of a parameter.
        object.__setattr__(self, "derivatives", Derivatives(expression, list(start)))

    def train(self, mode: bool = True) -> FormulaModel:
        """Set training or evaluation mode and return the module."""
        # A plain assignment would replace a parameter with the name `training`.
        object.__setattr__(self, "training", mode)
        return self

    def forward(self, features: Tensor) -> Tensor:
        """Return predictions [rows, 1] for features [rows, columns]."""
        values = self._values(self._parameters, features)
        prediction: Tensor
        if torch.is_grad_enabled():
            derivatives = self.derivatives
            if features.requires_grad:
                derivatives = Derivatives(self.expression, self.expression.names)
            prediction, *_ = Formula.apply(derivatives, *values)  # type: ignore[no-untyped-call]
        else:
            prediction = self.expression(dict(zip(self.expression.names, values, strict=True)))
        return prediction

    def _values(self, parameters: Mapping[str, Any], features: Tensor) -> list[Tensor]:
        """Return the values of all names of the expression: columns [rows, 1] and parameters."""
        columns = self.columns
        return [
            features[..., columns[name] : columns[name] + 1] if name in columns else parameters[name]
            for name in self.expression.names
        ]

    def jacobian(self, parameters: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Return the Jacobian of `Model.jacobian`."""
        names = list(self._parameters)
        lanes = np.broadcast_shapes(parameters[names[0]].shape, features.shape[:-2])
        broadcast = {name: parameters[name].detach()[..., None, None] for name in names}
        values = self._values(broadcast, features)
        with torch.no_grad():
            _, slopes = self.derivatives.evaluate(values)
            shape = (*lanes, features.shape[-2], 1)
            columns = [s.expand(shape) if isinstance(s, Tensor) else features.new_full(shape, s) for s in slopes]
            return torch.cat(columns, -1)

    def is_linear(self, features: Tensor) -> bool:
        """Return whether the derivatives are bitwise equal for random parameters of both signs and many magnitudes."""
        generator = torch.Generator().manual_seed(0)
        names = list(self._parameters)
        sizes = 10 ** torch.linspace(-3, 3, DRAWS).unsqueeze(1)
        drawn = (torch.randn(DRAWS, len(names), generator=generator) * sizes).to(features)
        first, *others = (self.jacobian(dict(zip(names, row, strict=True)), features) for row in drawn)
        return bool(first.isfinite().all()) and all(torch.equal(first, other) for other in others)


def build(config: c.Formula, feature_names: Sequence[str], generator: torch.Generator) -> FormulaModel:
    """Return a formula with given or drawn start values. Raises `DataError` if its names do not fit the columns."""
    whole, expression = parse(config.expression), parse(config.expression, config.fixed)
    parameters = [name for name in whole.names if name not in feature_names]
    free = [name for name in parameters if name not in config.fixed]
    problems = [
        f"`model.{key}.{name}` must name a parameter, but {name!r} is a column of the data; remove it"
        for key, values in (("start", config.start), ("bounds", config.bounds), ("fixed", config.fixed))
        for name in values
        if name in feature_names
    ]
    ambiguous = sorted(whole.constants & set(feature_names) - set(whole.names))
    problems += [
        f"`model.expression` must not use `{name}`, which is both a constant and a column of the data; "
        f"write the column as `` `{name}` `` in backticks, or rename it with data.rename"
        for name in ambiguous
    ]
    strange = [name for name in parameters if written(name) != name]
    problems += [
        f"`model.expression` must name a column of the data in backticks, got {name!r}; the columns are {', '.join(map(repr, feature_names))}"
        for name in strange
    ]
    if len(parameters) == len(whole.names) and not strange + ambiguous:
        rename = ", or rename them with data.rename" if any(written(name) != name for name in feature_names) else ""
        problems.append(
            f"`model.expression` must use a column of the data ({', '.join(feature_names)}), got {config.expression!r}; "
            f"correct the names, and write those with blanks or signs in backticks{rename}"
        )
    if parameters and not free:
        problems.append(
            f"`model.fixed` must leave a parameter to fit, but has all of {', '.join(parameters)}; remove one"
        )
    if not parameters:
        problems.append(
            f"`model.expression` must have a parameter to fit, but every name in {config.expression!r} is a column; add one"
        )
    if problems:
        raise DataError(problems)
    # Draw for every parameter, so that setting one start value does not change the others.
    drawn = {name: torch.empty((), dtype=torch.float64) for name in parameters}
    for name, value in drawn.items():
        init_tensor(value, config.init, 1, generator)
        if name in config.start:
            value.fill_(config.start[name])
        elif name in config.limits:
            value.fill_(_moved_inside(float(value), *config.limits[name]))
    return FormulaModel(expression, feature_names, {name: drawn[name] for name in free})


def _moved_inside(drawn: float, low: float, high: float) -> float:
    """Return a drawn start value, or if it is outside of its bounds, the point that far from one, or between both."""
    if low <= drawn <= high:
        return drawn
    if math.isfinite(low) and math.isfinite(high):
        share = abs(drawn) % 1
        return low * (1 - share) + high * share
    return low + abs(drawn) if math.isfinite(low) else high - abs(drawn)
