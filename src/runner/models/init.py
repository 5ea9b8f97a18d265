"""Start values: drawn in float64 from the generator that is given, never from torch's global one."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from runner.config.schema import Init


def init_tensor(tensor: Tensor, init: Init, fan_in: int, generator: torch.Generator) -> None:
    """Start values for one tensor: "kaiming" is U(−1/√fan_in, 1/√fan_in), torch's own for `nn.Linear` (He et al., 2015)."""
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
    """Start values for every linear layer, in the order of the forward pass."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            init_tensor(layer.weight, init, layer.in_features, generator)
            if layer.bias is not None:
                init_tensor(layer.bias, init, layer.in_features, generator)
