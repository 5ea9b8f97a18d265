"""Models that are linear in their parameters."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from runner.config import schema as c
from runner.models.base import Model, Standardization
from runner.models.init import init_layers


class LinearModel(nn.Linear, Model):
    """Linear model y = weight·x + bias with weight [targets, columns] and bias [targets]."""

    def fitted(self, scaling: Standardization) -> Mapping[str, Tensor]:
        """Return weight [targets, columns] and bias [targets] in the units of the file, computed in float64.

        The bias is left out if the model has none and the scaling adds none.
        """
        weight = self.weight.detach().cpu().double() * scaling.target_scale.reshape(-1, 1) / scaling.feature_scale
        none = torch.zeros(self.out_features, dtype=torch.float64)
        bias = none if self.bias is None else self.bias.detach().cpu().double()
        bias = bias * scaling.target_scale + scaling.target_mean - weight @ scaling.feature_mean
        return {"weight": weight} if self.bias is None and not bias.any() else {"weight": weight, "bias": bias}

    @property
    def of_columns(self) -> Collection[str]:
        """The weights."""
        return ("weight",)

    def unscaled(self, scaling: Standardization) -> Mapping[str, Tensor]:
        """Return what `fitted` does."""
        return self.fitted(scaling)

    def terms(self, columns: Sequence[str], targets: Sequence[str]) -> Sequence[str]:
        """Return the columns, and the constant."""
        return _terms(columns, 1, targets)

    def unscaling(self, scaling: Standardization) -> Tensor | None:
        """Return the matrix for weights and bias, in float64 on the CPU."""
        slopes = scaling.target_scale.reshape(-1, 1) / scaling.feature_scale
        constants = -(scaling.feature_mean * slopes)
        reported = self.bias is not None or bool(scaling.target_mean.any()) or bool(constants.any())
        matrix = _unscaling([torch.diag(row) for row in slopes], constants, scaling.target_scale)
        numbers = sum(parameter.numel() for parameter in self.parameters())
        return matrix[:, :numbers] if reported else matrix[: -self.out_features, :numbers]

    def jacobian(self, parameters: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Return the features, with a column of ones for the bias."""
        return _jacobian(features, self.out_features, self.bias is not None)

    def is_linear(self, features: Tensor) -> bool:
        """Return True."""
        return True

    def tensor_plan(self) -> Mapping[str, str]:
        """Return the whole module as one layer that is split by its inputs."""
        return {"": "row"}


class PolynomialModel(Model):
    """Linear model of x, x², …, x^degree of every feature.

    The weight is [targets, columns·degree], with the powers of one feature next to each other.
    """

    def __init__(self, columns: int, degree: int, targets: int = 1) -> None:
        super().__init__()
        self.linear = nn.Linear(columns * degree, targets, dtype=torch.float64)
        self.register_buffer("powers", torch.arange(1, degree + 1), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return predictions [rows, targets] for features [rows, columns]."""
        prediction: Tensor = self.linear(self._expanded(features))
        return prediction

    def _expanded(self, features: Tensor) -> Tensor:
        powers: Tensor = self.get_buffer("powers")
        return features.unsqueeze(-1).pow(powers).flatten(-2)

    def fitted(self, scaling: Standardization) -> Mapping[str, Tensor]:
        """Return `linear.weight` [targets, columns·degree] and `linear.bias` [targets] in the units of the file, in float64."""
        own = torch.cat((self.linear.weight.detach().flatten(), self.linear.bias.detach())).cpu().double()
        fitted = self.unscaling(scaling) @ own
        targets = self.linear.out_features
        return {
            "linear.weight": fitted[:-targets].reshape(targets, -1),
            "linear.bias": fitted[-targets:] + scaling.target_mean,
        }

    @property
    def of_columns(self) -> Collection[str]:
        """The weights."""
        return ("linear.weight",)

    def unscaled(self, scaling: Standardization) -> Mapping[str, Tensor]:
        """Return what `fitted` does."""
        return self.fitted(scaling)

    def terms(self, columns: Sequence[str], targets: Sequence[str]) -> Sequence[str]:
        """Return the powers of each column, and the constant."""
        return _terms(columns, len(self.get_buffer("powers")), targets)

    def unscaling(self, scaling: Standardization) -> Tensor:
        """Return the matrix for weights and bias, in float64 on the CPU.

        Each power of (x − mean)/scale is expanded by the binomial theorem.
        """
        power, degree = self.get_buffer("powers").cpu().double(), len(self.get_buffer("powers"))
        lower = torch.arange(degree + 1, dtype=torch.float64).unsqueeze(1)
        choose = torch.tensor([[math.comb(j, i) for j in range(1, degree + 1)] for i in range(degree + 1)]).double()
        terms = len(scaling.feature_mean) * degree
        slopes, constants = torch.zeros(terms, terms).double(), torch.zeros(terms).double()
        for column, (mean, scale) in enumerate(zip(scaling.feature_mean, scaling.feature_scale, strict=True)):
            expanded = choose * (-mean / scale) ** (power - lower) / scale**lower
            expanded = torch.where(lower <= power, expanded, 0.0)
            place = slice(column * degree, (column + 1) * degree)
            constants[place], slopes[place, place] = expanded[0], expanded[1:]
        scales = scaling.target_scale.reshape(-1, 1)
        return _unscaling([slopes * scale for scale in scales], constants * scales, scaling.target_scale)

    def jacobian(self, parameters: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Return the powers of the features and a column of ones."""
        return _jacobian(self._expanded(features), self.linear.out_features, bias=True)

    def is_linear(self, features: Tensor) -> bool:
        """Return True."""
        return True

    def tensor_plan(self) -> Mapping[str, str]:
        """Return the linear layer, split by its inputs."""
        return {"linear": "row"}


def _terms(columns: Sequence[str], degree: int, targets: Sequence[str]) -> list[str]:
    """Return "x", "x^2", … for each column, and "constant"; with the names in backticks if two terms had one name.

    With several targets there are those of each, as "x → y", and the constants come last.
    """
    for quote in ("", "`"):
        powers = [
            f"{quote}{name}{quote}" + ("" if power == 1 else f"^{power}")
            for name in columns
            for power in range(1, degree + 1)
        ]
        ends = [""] if len(targets) == 1 else [f" → {quote}{target}{quote}" for target in targets]
        terms = [f"{term}{end}" for kind in (powers, ["constant"]) for end in ends for term in kind]
        if len({*terms}) == len(terms):
            break
    return terms


def _unscaling(slopes: Sequence[Tensor], constants: Tensor, scale: Tensor) -> Tensor:
    """Return the matrix for the weights of all targets and then their biases.

    Weights [m] of a target become slopes @ weights, and add constants @ weights to the bias, which becomes scale·bias:
    `slopes` has a matrix [m, m] for each target, `constants` are [targets, m], `scale` is [targets].
    """
    of_weights, onto_biases = (torch.block_diag(*blocks) for blocks in (slopes, constants))  # type: ignore[no-untyped-call]
    top = torch.nn.functional.pad(of_weights, (0, len(scale.reshape(-1))))
    return torch.cat((top, torch.cat((onto_biases, torch.diag(scale.reshape(-1))), 1)))


def _jacobian(design: Tensor, targets: int, bias: bool) -> Tensor:
    """Return the derivatives […, rows·targets, n] of design·weightᵀ + bias for a design […, rows, m].

    They are by the entries of weight [targets, m] and bias [targets]: each target has its own.
    """
    parts = [design, torch.ones_like(design[..., :1])] if bias else [design]
    blocks = [_blocks(part, targets) for part in parts]
    return torch.cat(blocks, -1) if bias else blocks[0]


def _blocks(design: Tensor, targets: int) -> Tensor:
    """Return […, rows·targets, targets·m] for a design […, rows, m]: of each row a block-diagonal matrix of copies."""
    if targets == 1:
        return design
    blocks = design.new_zeros(*design.shape[:-1], targets, targets, design.shape[-1])
    blocks.diagonal(dim1=-3, dim2=-2).copy_(design.unsqueeze(-1).expand(*design.shape, targets))
    return blocks.flatten(-2).flatten(-3, -2)


def linear(
    config: c.Linear, feature_names: Sequence[str], target_names: Sequence[str], generator: torch.Generator
) -> LinearModel:
    """Return a linear model with drawn start values, in float64 on the CPU."""
    model = LinearModel(len(feature_names), len(target_names), bias=config.bias, dtype=torch.float64)
    init_layers(model, config.init, generator)
    return model


def polynomial(
    config: c.Polynomial, feature_names: Sequence[str], target_names: Sequence[str], generator: torch.Generator
) -> PolynomialModel:
    """Return a polynomial with drawn start values, in float64 on the CPU."""
    model = PolynomialModel(len(feature_names), config.degree, len(target_names))
    init_layers(model, config.init, generator)
    return model
