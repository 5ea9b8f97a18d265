"""Fully connected networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from runner.config import schema as c
from runner.models.base import Model
from runner.models.init import init_layers

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU, "sigmoid": nn.Sigmoid}


class Network(nn.Sequential, Model):
    """Linear, activation, dropout, … , linear: features [rows, columns] → predictions [rows, 1]."""

    def is_linear(self, features: Tensor) -> bool:
        return len(self) == 1  # no hidden layer

    def tensor_plan(self) -> Mapping[str, str]:
        """Layers in pairs of column and row; one that is left over is a row."""
        init_layers = [name for name, child in self.named_children() if isinstance(child, nn.Linear)]
        paired = len(init_layers) - len(init_layers) % 2
        return {name: "column" if i < paired and i % 2 == 0 else "row" for i, name in enumerate(init_layers)}

    def stages(self, count: int) -> Sequence[Sequence[str]]:
        """Layers, each with its activation and dropout; two stages differ by one layer at most."""
        init_layers: list[list[str]] = []
        for name, child in self.named_children():
            if isinstance(child, nn.Linear):
                init_layers.append([])
            init_layers[-1].append(name)
        count = min(count, len(init_layers))
        cuts = [len(init_layers) * stage // count for stage in range(count + 1)]
        return [[name for layer in init_layers[first:last] for name in layer] for first, last in pairwise(cuts)]


def build(config: c.Mlp, feature_names: Sequence[str], generator: torch.Generator) -> Network:
    """A network with its start values."""
    parts: list[nn.Module] = []
    width = len(feature_names)
    for units in config.widths:
        parts += [nn.Linear(width, units, dtype=torch.float64), ACTIVATIONS[config.activation]()]
        parts += [nn.Dropout(config.dropout)] if config.dropout else []
        width = units
    model = Network(*parts, nn.Linear(width, 1, dtype=torch.float64))
    init_layers(model, "kaiming", generator)
    return model
