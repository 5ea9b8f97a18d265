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


class Network(nn.Sequential, Model):
    """Layers (linear, activation, dropout) … linear: features [rows, columns] → predictions [rows, targets]."""

    @property
    def of_columns(self) -> Collection[str]:
        """The weights of the first layer."""
        return ("0.weight",)

    @property
    def of_targets(self) -> Collection[str]:
        """The last layer."""
        last = len(self) - 1
        return (f"{last}.weight", f"{last}.bias")

    def unscaled(self, scaling: Standardization) -> Mapping[str, Tensor]:
        """Return parameters whose first and last layer take in the scaling."""
        found = dict(super().unscaled(scaling))
        weight, bias = self.of_targets
        found["0.weight"] = found["0.weight"] / scaling.feature_scale
        found["0.bias"] = found["0.bias"] - found["0.weight"] @ scaling.feature_mean
        found[weight] = found[weight] * scaling.target_scale.reshape(-1, 1)
        found[bias] = found[bias] * scaling.target_scale + scaling.target_mean
        return found

    def is_linear(self, features: Tensor) -> bool:
        """Return whether the network has no hidden layer."""
        return len(self) == 1

    def tensor_plan(self) -> Mapping[str, str]:
        """Return pairs of a column-wise and a row-wise split layer; a last unpaired layer is split row-wise."""
        layers = [name for name, child in self.named_children() if isinstance(child, nn.Linear)]
        paired = len(layers) - len(layers) % 2
        return {name: "column" if i < paired and i % 2 == 0 else "row" for i, name in enumerate(layers)}

    def stages(self, count: int) -> Sequence[Sequence[str]]:
        """Return stages of whole layers, each with its activation and dropout; sizes differ by at most one layer."""
        layers: list[list[str]] = []
        for name, child in self.named_children():
            if isinstance(child, nn.Linear):
                layers.append([])
            layers[-1].append(name)
        count = min(count, len(layers))
        cuts = [len(layers) * stage // count for stage in range(count + 1)]
        return [[name for layer in layers[first:last] for name in layer] for first, last in pairwise(cuts)]


def build(
    config: c.Mlp, feature_names: Sequence[str], target_names: Sequence[str], generator: torch.Generator
) -> Network:
    """Return a network with drawn start values, in float64 on the CPU."""
    parts: list[nn.Module] = []
    width = len(feature_names)
    for units in config.widths:
        parts += [nn.Linear(width, units, dtype=torch.float64), ACTIVATIONS[config.activation]()]
        parts += [nn.Dropout(config.dropout)] if config.dropout else []
        width = units
    model = Network(*parts, nn.Linear(width, len(target_names), dtype=torch.float64))
    init_layers(model, "kaiming", generator)
    return model
