"""Tensor parallelism: every process has all rows and computes a part of each layer.

Layers are split in pairs as in Megatron-LM (Shoeybi et al., 2019): the first by its outputs, the second by its inputs, so
that each pair needs one all-reduce.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from runner.compute.dtensor import gathered
from runner.compute.processes import World
from runner.compute.strategies.base import Loss, Single
from runner.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class TensorParallel(Single):
    """Each layer split over all processes. They compute the same rows, so their losses and sums are equal."""

    name = "tensor"
    sharded = True

    def __init__(self, device: torch.device, world: World) -> None:
        super().__init__(device)
        self._world = world

    def place(self, model: Any, loss: Loss) -> Callable[..., Tensor]:
        """Split the layers over all processes. Raises `ConfigError` as `split_layers` does."""
        from torch.distributed.device_mesh import init_device_mesh

        model.to(self._device)
        split_layers(model, init_device_mesh(self._device.type, (self._world.size,)))
        placed: Callable[..., Tensor] = model
        return placed

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Return the norm [] of sharded gradients, gathered on every process."""
        return gathered(super().norm(gradients))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on some process."""
        return self._world.any(flag)


def split_layers(model: Any, mesh: DeviceMesh) -> None:
    """Split the layers of a model by its `tensor_plan` over a mesh of one dimension; every parameter becomes a DTensor.

    Raises `ConfigError` for a model without linear layers, with dropout, or with widths that the processes do not divide.
    """
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

    plan = model.tensor_plan()
    _refuse(model, plan, mesh.size())
    styles, sharded = dict[str, ParallelStyle](), False
    for name, split in plan.items():
        rowwise = RowwiseParallel(input_layouts=Shard(-1) if sharded else Replicate())
        sharded = split == "column"
        styles[name] = ColwiseParallel() if sharded else rowwise
    parallelize_module(model, mesh, styles)


def _refuse(model: Any, plan: Mapping[str, str], processes: int) -> None:
    """Raise `ConfigError` for a model that so many processes cannot split."""
    model_name = model.config_name
    if not plan:
        raise ConfigError(
            f"`model` must have linear layers to split between processes, but {model_name} has none; use strategy=ddp"
        )
    if model.draws:
        raise ConfigError(
            "`model.dropout` must be 0 when processes split each layer: each process would draw for its own units, and the "
            "answer would depend on their number; use model.dropout=0 or strategy=ddp"
        )
    layers = {name: model.get_submodule(name) for name in plan}
    inputs, *widths = [layer.in_features for layer in layers.values()]
    split = [layers[name].out_features if by == "column" else layers[name].in_features for name, by in plan.items()]
    uneven = [number for number in split if number % processes]
    if uneven and widths:
        raise ConfigError(
            f"`model.widths` must be divisible by the {processes} processes that split each layer, got {widths}, where "
            f"{uneven[0]} is not; use other widths, another number of processes or strategy=ddp"
        )
    if uneven:
        raise ConfigError(
            f"the inputs of `model`={model_name} must be divisible by the {processes} processes that split them, got {inputs}; "
            "use another number of processes or strategy=ddp"
        )
