"""Fully connected networks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from runner.config import schema as c
from runner.models.base import Model, Standardization
from runner.models.init import init_layers

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU, "sigmoid": nn.Sigmoid}


class Embeddings(nn.Module):
    """A vector for each value of each column of categories, behind the numbers.

    Numbers [rows, n] and codes [rows, m] become [rows, n + m·size]: Guo and Berkhahn, "Entity embeddings of categorical
    variables", arXiv:1604.06737 (2016).
    """

    def __init__(self, cardinalities: Sequence[int], size: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(codes, size, dtype=torch.float64) for codes in cardinalities)

    def forward(self, numbers: Tensor, codes: Tensor) -> Tensor:
        """Return the numbers with the vectors behind them."""
        vectors = [table(column) for table, column in zip(self.tables, codes.unbind(-1), strict=True)]
        return torch.cat([numbers, *vectors], -1)


class Network(nn.Sequential, Model):
    """Layers (linear, activation, dropout) … linear: features [rows, columns] → predictions [rows, targets].

    Embeddings may come first. They take the numbers and the codes of the categories, and give the features.
    """

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the predictions; only the first layer takes more than one input."""
        first, *others = self
        values: Tensor = first(*inputs)
        for layer in others:
            values = layer(values)
        return values

    @property
    def of_columns(self) -> Collection[str]:
        """The embeddings, and the weights of the first layer."""
        tables = [name for name, _ in self.named_parameters() if name.startswith("0.tables.")]
        return (*tables, f"{self._first}.weight")

    @property
    def _first(self) -> str:
        """Name of the first layer that is no embedding."""
        return next(name for name, child in self.named_children() if isinstance(child, nn.Linear))

    @property
    def of_targets(self) -> Collection[str]:
        """The last layer."""
        last = len(self) - 1
        return (f"{last}.weight", f"{last}.bias")

    def unscaled(self, scaling: Standardization) -> Mapping[str, Tensor]:
        """Return parameters whose first and last layer take in the scaling."""
        found = {name: value.clone() for name, value in super().unscaled(scaling).items()}
        weight, bias = self.of_targets
        numbers = found[f"{self._first}.weight"][
            :, : len(scaling.feature_mean)
        ]  # a view, before the vectors of embeddings
        numbers /= scaling.feature_scale
        found[f"{self._first}.bias"] -= numbers @ scaling.feature_mean
        found[weight] = found[weight] * scaling.target_scale.reshape(-1, 1)
        found[bias] = found[bias] * scaling.target_scale + scaling.target_mean
        return found

    def is_linear(self, features: Tensor) -> bool:
        """Return whether the network has no hidden layer."""
        return len(self) == 1

    def tensor_plan(self) -> Mapping[str, str]:
        """Return pairs of a column-wise and a row-wise split layer; a last unpaired layer is split row-wise.

        Embeddings cannot be split.
        """
        if isinstance(self[0], Embeddings):
            return {}
        layers = [name for name, child in self.named_children() if isinstance(child, nn.Linear)]
        paired = len(layers) - len(layers) % 2
        return {name: "column" if i < paired and i % 2 == 0 else "row" for i, name in enumerate(layers)}

    def stages(self, count: int) -> Sequence[Sequence[str]]:
        """Return stages of whole layers, each with its activation and dropout; sizes differ by at most one layer.

        Embeddings are part of the first layer.
        """
        layers: list[list[str]] = [[]]
        first = next(child for child in self if isinstance(child, nn.Linear))
        for name, child in self.named_children():
            if isinstance(child, nn.Linear) and child is not first:
                layers.append([])
            layers[-1].append(name)
        count = min(count, len(layers))
        cuts = [len(layers) * stage // count for stage in range(count + 1)]
        return [[name for layer in layers[first:last] for name in layer] for first, last in pairwise(cuts)]


def build(
    config: c.Mlp,
    feature_names: Sequence[str],
    target_names: Sequence[str],
    generator: torch.Generator,
    cardinalities: Sequence[int] = (),
) -> Network:
    """Return a network with drawn start values, in float64 on the CPU. `cardinalities` are the numbers of codes of embeddings."""
    size = config.embedding_size or 0
    parts: list[nn.Module] = [Embeddings(cardinalities, size)] if size else []
    width = len(feature_names) + size * len(cardinalities)
    for units in config.widths:
        parts += [nn.Linear(width, units, dtype=torch.float64), ACTIVATIONS[config.activation]()]
        parts += [nn.Dropout(config.dropout)] if config.dropout else []
        width = units
    model = Network(*parts, nn.Linear(width, len(target_names), dtype=torch.float64))
    init_layers(model, "kaiming", generator)
    return model
