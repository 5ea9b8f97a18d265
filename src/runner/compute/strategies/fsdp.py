"""Fully sharded data parallelism with `fully_shard` (FSDP2).

Every process holds a part of each parameter, of its gradient and of its optimizer state.
"""

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
    """Sharding over a mesh of processes; with `tensor_parallel` above 1, groups of that size also split each layer."""

    name = "fsdp"
    sharded = True

    def __init__(self, device: torch.device, world: World, tensor_parallel: int) -> None:
        self._tensor_parallel = tensor_parallel
        super().__init__(device, world, world.rank // tensor_parallel, world.size // tensor_parallel)

    def place(self, model: Any, loss: Loss) -> Callable[..., Tensor]:
        """Shard all parameters over the data axis of the mesh, after splitting the layers over its layer axis."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        model.to(self._device)
        mesh = init_device_mesh(
            self._device.type, (self._size, self._tensor_parallel), mesh_dim_names=("data", "layer")
        )
        if self._tensor_parallel > 1:
            split_layers(model, mesh["layer"])
            # `fully_shard` warns of a model that returns a view of another tensor, as a split layer does.
            model.register_forward_hook(lambda module, features, prediction: prediction.clone())
        fully_shard(model, mesh=mesh["data"])
        placed: Callable[..., Tensor] = model
        return placed

    def gradient(self, parts: Sequence[MicroBatch], backward: Callable[[MicroBatch, float], Tensor]) -> Tensor:
        """Accumulate the gradients of all parts; torch reduce-scatters each of them."""
        # As with ddp, torch divides by the number of processes that share the rows.
        share = backward(parts[0], float(self._size))
        for part in parts[1:]:
            share = share + backward(part, float(self._size))
        return share

    def total(self, shares: Tensor) -> Tensor:
        """Return the sum of the shares, counting each group of tensor-parallel processes once."""
        # The processes of a group compute the same rows and have the same share.
        return super().total(shares) / self._tensor_parallel

    def reduce(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the all-reduced sum, counting each group of tensor-parallel processes once."""
        return super().reduce(parts) / self._tensor_parallel

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Return the norm [] of sharded gradients, gathered on every process."""
        return gathered(super().norm(gradients))
