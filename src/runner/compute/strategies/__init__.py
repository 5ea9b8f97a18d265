"""Strategies: how the computation of one run is placed on processes and devices."""

from __future__ import annotations

from collections.abc import Callable

import torch

from runner.compute.processes import World
from runner.compute.strategies.base import DataParallel, Single, Strategy
from runner.compute.strategies.ddp import Ddp
from runner.compute.strategies.exact import Exact
from runner.compute.strategies.fsdp import Fsdp
from runner.compute.strategies.pipeline import Pipeline
from runner.compute.strategies.tensor import TensorParallel
from runner.config import schema as c

__all__ = ["Strategy", "build"]


def build(config: c.Strategy, device: torch.device, world: World) -> Strategy:
    """Return the configured strategy; `auto` must have been replaced by the chosen one before."""
    if config.reduction == "exact":
        return Exact(config.name, device, world, config.chunks)
    kinds: dict[str, Callable[[], Strategy]] = {
        "single": lambda: Single(device),
        "dp": lambda: DataParallel(device),
        "ddp": lambda: Ddp(device, world),
        "fsdp": lambda: Fsdp(device, world, config.tensor_parallel),
        "tensor": lambda: TensorParallel(device, world),
        "pipeline": lambda: Pipeline(device, world),
    }
    return kinds[config.name]()
