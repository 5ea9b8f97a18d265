"""Models that are linear in their parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from runner.config import schema as c
from runner.models.base import Model, Standardization
from runner.models.init import init_layers


class LinearModel(nn.Linear, Model):
    """y = weight·x + bias, weight [1, columns], bias [1]."""

    def fitted(self, scaling: Standardization) -> Mapping[str, Tensor]:
        """Weight and bias in the units of the file: of y = (W/s_x·s_y)·x + …, undone in float64."""
        weight = self.weight.detach().cpu().double() * scaling.target_scale / scaling.feature_scale
        bias = torch.zeros(1, dtype=torch.float64) if self.bias is None else self.bias.detach().cpu().double()
        bias = bias * scaling.target_scale + scaling.target_mean - weight @ scaling.feature_mean
        # Without a bias and without standardisation there is no constant to report.
        return {"weight": weight} if self.bias is None and not bias.any() else {"weight": weight, "bias": bias}

    def unscaling(self, scaling: Standardization) -> Tensor | None:
        """Rows for the weights and the bias, in float64 on the CPU."""
        slopes = torch.diag(scaling.target_scale / scaling.feature_scale)
        intercept = -(scaling.feature_mean @ slopes).unsqueeze(0)
        if self.bias is not None:
            slopes = torch.nn.functional.pad(slopes, (0, 1))
            intercept = torch.cat((intercept, scaling.target_scale.reshape(1, 1)), 1)
        told = self.bias is not None or bool(scaling.target_mean) or bool(intercept.any())
        return torch.cat((slopes, intercept)) if told else slopes

    def jacobian(self, parameters: Mapping[str, Tensor], features: Tensor) -> Tensor:
        return features if self.bias is None else _with_ones(features)

    def is_linear(self, features: Tensor) -> bool:
        return True

    def tensor_plan(self) -> Mapping[str, str]:
        return {"": "row"}


class PolynomialModel(Model):
    """Linear in x, x², …, x^degree of every feature; weight [1, columns·degree], the powers of one feature together."""

    def __init__(self, columns: int, degree: int) -> None:
        super().__init__()
        self.linear = nn.Linear(columns * degree, 1, dtype=torch.float64)
        self.register_buffer("powers", torch.arange(1, degree + 1), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Features [rows, columns] → predictions [rows, 1]."""
        prediction: Tensor = self.linear(self._expanded(features))
        return prediction

    def _expanded(self, features: Tensor) -> Tensor:
        powers: Tensor = self.get_buffer("powers")
        return features.unsqueeze(-1).pow(powers).flatten(-2)

    def jacobian(self, parameters: Mapping[str, Tensor], features: Tensor) -> Tensor:
        return _with_ones(self._expanded(features))

    def is_linear(self, features: Tensor) -> bool:
        return True

    def tensor_plan(self) -> Mapping[str, str]:
        return {"linear": "row"}


def _with_ones(design: Tensor) -> Tensor:
    return torch.cat((design, torch.ones_like(design[..., :1])), -1)


def linear(config: c.Linear, feature_names: Sequence[str], generator: torch.Generator) -> LinearModel:
    """A linear model with its start values."""
    model = LinearModel(len(feature_names), 1, bias=config.bias, dtype=torch.float64)
    init_layers(model, config.init, generator)
    return model


def polynomial(config: c.Polynomial, feature_names: Sequence[str], generator: torch.Generator) -> PolynomialModel:
    """A polynomial with its start values."""
    model = PolynomialModel(len(feature_names), config.degree)
    init_layers(model, config.init, generator)
    return model
