"""Fully connected networks."""

from __future__ import annotations

import torch
from torch import nn

from runner import config as c
from runner.models import Model
from runner.models.initial import layers

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU, "sigmoid": nn.Sigmoid}


class Mlp(nn.Sequential, Model):
    """Linear, activation, dropout, … , linear: features [rows, columns] → predictions [rows, 1]."""


def build(config: c.Mlp, columns: int, generator: torch.Generator) -> Mlp:
    """A network with its start values."""
    parts: list[nn.Module] = []
    width = columns
    for units in config.widths:
        parts += [nn.Linear(width, units, dtype=torch.float64), ACTIVATIONS[config.activation]()]
        parts += [nn.Dropout(config.dropout)] if config.dropout else []
        width = units
    model = Mlp(*parts, nn.Linear(width, 1, dtype=torch.float64))
    model.draws = config.dropout > 0
    layers(model, "kaiming", generator)
    return model
