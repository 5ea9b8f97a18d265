"""Formulas as models: columns of the data are variables, and every other name is a parameter.

Several targets have a formula each. A parameter of the same name is the same parameter.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runner.config import schema as c
from runner.config.expression import Expression, parse, written
from runner.errors import DataError
from runner.models.base import Model, by_target
from runner.models.derivatives import Derivatives, Formula
from runner.models.init import init_tensor

DRAWS = 8
"""Number of random parameter sets at which the derivatives of a linear formula must agree."""


class FormulaModel(Model):
    """Evaluate an expression for each target on columns [rows, 1] and parameters [], one scalar each."""

    def __init__(
        self, expressions: Sequence[Expression], feature_names: Sequence[str], start: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        # Attributes come first: later ones could not share the name of a parameter.
        self.derivatives = [Derivatives(one, [name for name in start if name in one.names]) for one in expressions]
        self.columns = {name: i for i, name in enumerate(feature_names)}
        for name, value in start.items():
            # Not register_parameter: it refuses the names of module attributes, and `type` is a fine parameter name.
            self._parameters[name] = torch.nn.Parameter(value)

    def train(self, mode: bool = True) -> FormulaModel:
        """Set training or evaluation mode and return the module."""
        # A plain assignment would replace a parameter with the name `training`.
        object.__setattr__(self, "training", mode)
        return self

    def forward(self, features: Tensor) -> Tensor:
        """Return predictions [rows, targets] for features [rows, columns]."""
        predictions = [self._predicted(derivatives, features) for derivatives in self.derivatives]
        return predictions[0] if len(predictions) == 1 else torch.cat(predictions, -1)

    def _predicted(self, derivatives: Derivatives, features: Tensor) -> Tensor:
        """Return the predictions [rows, 1] of one target."""
        expression, values = derivatives.expression, self._values(derivatives.expression, self._parameters, features)
        prediction: Tensor
        if torch.is_grad_enabled():
            if features.requires_grad:
                derivatives = Derivatives(expression, expression.names)
            prediction, *_ = Formula.apply(derivatives, *values)  # type: ignore[no-untyped-call]
        else:
            prediction = expression(dict(zip(expression.names, values, strict=True)))
        return prediction

    def _values(self, expression: Expression, parameters: Mapping[str, Any], features: Tensor) -> list[Tensor]:
        """Return the values of all names of an expression: columns [rows, 1] and parameters."""
        columns = self.columns
        return [
            features[..., columns[name] : columns[name] + 1] if name in columns else parameters[name]
            for name in expression.names
        ]

    @property
    def of_columns(self) -> Collection[str]:
        """None: the formula names the columns."""
        return ()

    @property
    def of_targets(self) -> Collection[str]:
        """None: the formula says what a parameter means."""
        return ()

    def jacobian(self, parameters: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Return the Jacobian of `Model.jacobian`."""
        names = list(self._parameters)
        lanes = np.broadcast_shapes(parameters[names[0]].shape, features.shape[:-2])
        broadcast = {name: parameters[name].detach()[..., None, None] for name in names}
        shape = (*lanes, features.shape[-2], 1)

        def of_target(derivatives: Derivatives) -> Tensor:
            _, found = derivatives.evaluate(self._values(derivatives.expression, broadcast, features))
            by_name = dict(zip(derivatives.names, found, strict=True))
            slopes = [by_name.get(name, 0.0) for name in names]
            return torch.cat(
                [s.expand(shape) if isinstance(s, Tensor) else features.new_full(shape, s) for s in slopes], -1
            )

        with torch.no_grad():
            return by_target([of_target(derivatives) for derivatives in self.derivatives])

    def is_linear(self, features: Tensor) -> bool:
        """Return whether the derivatives are bitwise equal for random parameters of both signs and many magnitudes."""
        generator = torch.Generator().manual_seed(0)
        names = list(self._parameters)
        sizes = 10 ** torch.linspace(-3, 3, DRAWS).unsqueeze(1)
        drawn = (torch.randn(DRAWS, len(names), generator=generator) * sizes).to(features)
        first, *others = (self.jacobian(dict(zip(names, row, strict=True)), features) for row in drawn)
        return bool(first.isfinite().all()) and all(torch.equal(first, other) for other in others)


def build(
    config: c.Formula, feature_names: Sequence[str], target_names: Sequence[str], generator: torch.Generator
) -> FormulaModel:
    """Return a formula with given or drawn start values. Raises `DataError` if its names do not fit columns and targets."""
    formulas = _of_targets(config, target_names)
    whole = {key: parse(text) for key, text in formulas.items()}
    names = dict.fromkeys(name for one in whole.values() for name in one.names)
    parameters = [name for name in names if name not in feature_names]
    free = [name for name in parameters if name not in config.fixed]
    problems = [
        f"`model.{key}.{name}` must name a parameter, but {name!r} is a column of the data; remove it"
        for key, values in (("start", config.start), ("bounds", config.bounds), ("fixed", config.fixed))
        for name in values
        if name in feature_names
    ]
    problems += [problem for key, one in whole.items() for problem in _misfits(key, one, feature_names)]
    if parameters and not free:
        problems.append(
            f"`model.fixed` must leave a parameter to fit, but has all of {', '.join(parameters)}; remove one"
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
    expressions = [parse(text, config.fixed) for text in formulas.values()]
    return FormulaModel(expressions, feature_names, {name: drawn[name] for name in free})


def _of_targets(config: c.Formula, target_names: Sequence[str]) -> dict[str, str]:
    """Return the formulas by key, in the order of the targets. Raises `DataError` if one is missing or has no target."""
    given, targets = config.expression, ", ".join(target_names)
    if isinstance(given, str):
        if len(target_names) == 1:
            return config.formulas
        raise DataError(
            f"`model.expression` must have a formula for each of the targets {targets}, got one; "
            f"write model.expression={{{', '.join(f'{name}: …' for name in target_names)}}}"
        )
    missing = [name for name in target_names if name not in given]
    problems = [f"`model.expression` must have a formula for the target {name}, got none; add it" for name in missing]
    for name in given:
        if name not in target_names:
            near = difflib.get_close_matches(name, target_names, n=1)
            remedy = f"did you mean `{near[0]}`?" if near else "remove it"
            problems.append(f"`model.expression.{name}` must name a target of the data, which has {targets}; {remedy}")
    if problems:
        raise DataError(problems)
    return {f"model.expression.{name}": given[name] for name in target_names}


def _misfits(key: str, formula: Expression, feature_names: Sequence[str]) -> Iterator[str]:
    """Yield the problems of the names of one formula with the columns of the data."""
    ambiguous = sorted(formula.constants & set(feature_names) - set(formula.names))
    for name in ambiguous:
        yield (
            f"`{key}` must not use `{name}`, which is both a constant and a column of the data; "
            f"write the column as `` `{name}` `` in backticks, or rename it with data.rename"
        )
    parameters = [name for name in formula.names if name not in feature_names]
    strange = [name for name in parameters if written(name) != name]
    for name in strange:
        yield f"`{key}` must name a column of the data in backticks, got {name!r}; the columns are {', '.join(map(repr, feature_names))}"
    if len(parameters) == len(formula.names) and not strange + ambiguous:
        rename = ", or rename them with data.rename" if any(written(name) != name for name in feature_names) else ""
        yield (
            f"`{key}` must use a column of the data ({', '.join(feature_names)}), got {formula.text!r}; "
            f"correct the names, and write those with blanks or signs in backticks{rename}"
        )
    if not parameters:
        yield f"`{key}` must have a parameter to fit, but every name in {formula.text!r} is a column; add one"


def _moved_inside(drawn: float, low: float, high: float) -> float:
    """Return a drawn start value, or if it is outside of its bounds, the point that far from one, or between both."""
    if low <= drawn <= high:
        return drawn
    if math.isfinite(low) and math.isfinite(high):
        share = abs(drawn) % 1
        return low * (1 - share) + high * share
    return low + abs(drawn) if math.isfinite(low) else high - abs(drawn)
