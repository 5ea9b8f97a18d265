"""Models that are linear in their parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from runner.config import schema as c
from runner.models.base import Model, Standardization
from runner.models.init import init_layers


class LinearModel(nn.Linear, Model):
    """Linear model y = weight·x + bias with weight [1, columns] and bias [1]."""

    def fitted(self, scaling: Standardization) -> Mapping[str, Tensor]:
        """Return weight [1, columns] and bias [1] in the units of the file, computed in float64.

        The bias is left out if the model has none and the scaling adds none.
        """
        weight = self.weight.detach().cpu().double() * scaling.target_scale / scaling.feature_scale
        bias = torch.zeros(1, dtype=torch.float64) if self.bias is None else self.bias.detach().cpu().double()
        bias = bias * scaling.target_scale + scaling.target_mean - weight @ scaling.feature_mean
        return {"weight": weight} if self.bias is None and not bias.any() else {"weight": weight, "bias": bias}

    def terms(self, columns: Sequence[str]) -> Sequence[str]:
        """Return the columns, and the constant."""
        return _terms(columns, 1)

    def unscaling(self, scaling: Standardization) -> Tensor | None:
        """Return the matrix for weights and bias, in float64 on the CPU."""
        slopes = torch.diag(scaling.target_scale / scaling.feature_scale)
        intercept = -(scaling.feature_mean @ slopes).unsqueeze(0)
        if self.bias is not None:
            slopes = torch.nn.functional.pad(slopes, (0, 1))
            intercept = torch.cat((intercept, scaling.target_scale.reshape(1, 1)), 1)
        reported = self.bias is not None or bool(scaling.target_mean) or bool(intercept.any())
        return torch.cat((slopes, intercept)) if reported else slopes

    def jacobian(self, parameters: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Return the features, with a column of ones for the bias."""
        return features if self.bias is None else _with_ones(features)

    def is_linear(self, features: Tensor) -> bool:
        """Return True."""
        return True

    def tensor_plan(self) -> Mapping[str, str]:
        """Return the whole module as one layer that is split by its inputs."""
        return {"": "row"}


class PolynomialModel(Model):
    """Linear model of x, x², …, x^degree of every feature.

    The weight is [1, columns·degree], with the powers of one feature next to each other.
    """

    def __init__(self, columns: int, degree: int) -> None:
        super().__init__()
        self.linear = nn.Linear(columns * degree, 1, dtype=torch.float64)
        self.register_buffer("powers", torch.arange(1, degree + 1), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return predictions [rows, 1] for features [rows, columns]."""
        prediction: Tensor = self.linear(self._expanded(features))
        return prediction

    def _expanded(self, features: Tensor) -> Tensor:
        powers: Tensor = self.get_buffer("powers")
        return features.unsqueeze(-1).pow(powers).flatten(-2)

    def fitted(self, scaling: Standardization) -> Mapping[str, Tensor]:
        """Return `linear.weight` [1, columns·degree] and `linear.bias` [1] in the units of the file, in float64."""
        own = torch.cat((self.linear.weight.detach().flatten(), self.linear.bias.detach())).cpu().double()
        fitted = self.unscaling(scaling) @ own
        return {"linear.weight": fitted[:-1].unsqueeze(0), "linear.bias": fitted[-1:] + scaling.target_mean}

    def terms(self, columns: Sequence[str]) -> Sequence[str]:
        """Return the powers of each column, and the constant."""
        return _terms(columns, len(self.get_buffer("powers")))

    def unscaling(self, scaling: Standardization) -> Tensor:
        """Return the matrix for weights and bias, in float64 on the CPU.

        Each power of (x − mean)/scale is expanded by the binomial theorem.
        """
        power, degree = self.get_buffer("powers").cpu().double(), len(self.get_buffer("powers"))
        lower = torch.arange(degree + 1, dtype=torch.float64).unsqueeze(1)
        choose = torch.tensor([[math.comb(j, i) for j in range(1, degree + 1)] for i in range(degree + 1)]).double()
        matrix = torch.zeros(len(scaling.feature_mean) * degree + 1, len(scaling.feature_mean) * degree + 1).double()
        matrix[-1, -1] = 1.0
        for column, (mean, scale) in enumerate(zip(scaling.feature_mean, scaling.feature_scale, strict=True)):
            expanded = choose * (-mean / scale) ** (power - lower) / scale**lower
            expanded = torch.where(lower <= power, expanded, 0.0)
            place = slice(column * degree, (column + 1) * degree)
            matrix[-1, place], matrix[place, place] = expanded[0], expanded[1:]
        return matrix * scaling.target_scale

    def jacobian(self, parameters: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Return the powers of the features and a column of ones."""
        return _with_ones(self._expanded(features))

    def is_linear(self, features: Tensor) -> bool:
        """Return True."""
        return True

    def tensor_plan(self) -> Mapping[str, str]:
        """Return the linear layer, split by its inputs."""
        return {"linear": "row"}


def _terms(columns: Sequence[str], degree: int) -> list[str]:
    """Return "x", "x^2", … for each column, and "constant"; with the columns in backticks if two terms had one name."""
    for names in (columns, [f"`{column}`" for column in columns]):
        powers = [name if power == 1 else f"{name}^{power}" for name in names for power in range(1, degree + 1)]
        terms = [*powers, "constant"]
        if len({*terms}) == len(terms):
            break
    return terms


def _with_ones(design: Tensor) -> Tensor:
    return torch.cat((design, torch.ones_like(design[..., :1])), -1)


def linear(config: c.Linear, feature_names: Sequence[str], generator: torch.Generator) -> LinearModel:
    """Return a linear model with drawn start values, in float64 on the CPU."""
    model = LinearModel(len(feature_names), 1, bias=config.bias, dtype=torch.float64)
    init_layers(model, config.init, generator)
    return model


def polynomial(config: c.Polynomial, feature_names: Sequence[str], generator: torch.Generator) -> PolynomialModel:
    """Return a polynomial with drawn start values, in float64 on the CPU."""
    model = PolynomialModel(len(feature_names), config.degree)
    init_layers(model, config.init, generator)
    return model
