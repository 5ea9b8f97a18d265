"""Fully sharded data parallelism, `fully_shard` (FSDP2): every process holds a part of each parameter and of its state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from runner.compute.dtensor import gathered
from runner.compute.processes import World
from runner.compute.strategies.base import Loss, MicroBatch
from runner.compute.strategies.ddp import MultiProcess
from runner.compute.strategies.tensor import split_layers


class Fsdp(MultiProcess):
    """Over a mesh of processes; with `tensor_parallel` above 1, groups of so many split each layer's work between them."""

    name = "fsdp"
    sharded = True

    def __init__(self, device: torch.device, world: World, tensor_parallel: int) -> None:
        self._tensor_parallel = tensor_parallel
        super().__init__(device, world, world.rank // tensor_parallel, world.size // tensor_parallel)

    def place(self, model: Any, loss: Loss) -> Callable[[Tensor], Tensor]:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        model.to(self._device)
        mesh = init_device_mesh(
            self._device.type, (self._size, self._tensor_parallel), mesh_dim_names=("data", "layer")
        )
        if self._tensor_parallel > 1:
            split_layers(model, mesh["layer"])
            # `fully_shard` warns of a model that gives a view of something else, as a split layer does.
            model.register_forward_hook(lambda module, features, prediction: prediction.clone())
        fully_shard(model, mesh=mesh["data"])
        placed: Callable[[Tensor], Tensor] = model
        return placed

    def gradient(self, parts: Sequence[MicroBatch], backward: Callable[[MicroBatch, float], Tensor]) -> Tensor:
        # As with ddp, torch divides by the number of processes that share the rows.
        share = backward(parts[0], float(self._size))
        for part in parts[1:]:
            share = share + backward(part, float(self._size))
        return share

    def total(self, shares: Tensor) -> Tensor:
        # The processes that split a layer have the same rows and so the same share: each sum has it that many times.
        return super().total(shares) / self._tensor_parallel

    def reduce(self, parts: Sequence[Tensor]) -> Tensor:
        return super().reduce(parts) / self._tensor_parallel

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        return gathered(super().norm(gradients))
