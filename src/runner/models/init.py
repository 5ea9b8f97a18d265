"""Start values, drawn in float64 from a given generator and never from torch's global one."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from runner.config.schema import Init


def init_tensor(tensor: Tensor, init: Init, fan_in: int, generator: torch.Generator) -> None:
    """Fill one tensor with start values in place.

    "kaiming" is U(−1/√fan_in, 1/√fan_in), torch's default for `nn.Linear` (He et al., "Delving Deep into Rectifiers",
    2015). "uniform" is U(0, 1), "normal" is N(0, 1), "zeros" is 0.
    """
    with torch.no_grad():
        if init == "kaiming":
            bound = 1 / math.sqrt(fan_in)
            tensor.uniform_(-bound, bound, generator=generator)
        elif init == "uniform":
            tensor.uniform_(0, 1, generator=generator)
        elif init == "normal":
            tensor.normal_(0, 1, generator=generator)
        else:
            tensor.zero_()


def init_layers(module: nn.Module, init: Init, generator: torch.Generator) -> None:
    """Fill weight and bias of every linear layer in place, and vectors of categories with N(0, 1), in the order of the forward pass."""
    for layer in module.modules():
        if isinstance(layer, nn.Embedding):
            init_tensor(layer.weight, "normal", 1, generator)
        if isinstance(layer, nn.Linear):
            init_tensor(layer.weight, init, layer.in_features, generator)
            if layer.bias is not None:
                init_tensor(layer.bias, init, layer.in_features, generator)
