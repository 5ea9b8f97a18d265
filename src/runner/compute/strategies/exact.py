"""Data parallelism whose bits do not depend on the number of processes.

Every batch is divided into a fixed number of chunks, a power of two. The gradient of each chunk is computed separately.
The gradients are added in a fixed binary tree over the chunks, of which each process owns an aligned subtree. The sums of
the subtrees are gathered, and every process adds the rest of the tree. An all-reduce would add in an order that depends on
the number of processes. The idea of separating the training procedure from the resources it runs on is EasyScale's (Li et
al., SC '23).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from runner.compute.processes import World
from runner.compute.strategies.base import Loss, MicroBatch, Portion, Single
from runner.errors import ConfigError


class Exact(Single):
    """The same bits on 1, 2, 4, … processes, as many as divide the number of chunks. `name` is single or ddp."""

    def __init__(self, name: str, device: torch.device, world: World, chunks: int) -> None:
        super().__init__(device)
        self.name = name
        self._world, self._chunks = world, chunks
        self._chunk_numbers = range(world.rank * chunks // world.size, (world.rank + 1) * chunks // world.size)

    def place(self, model: Any, loss: Loss) -> Callable[..., Tensor]:
        """Move the whole model to the device. Raises `ConfigError` for batch normalization."""
        refuse_batch_norm(model)
        placed = super().place(model, loss)
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return placed

    def portions(self, rows: int) -> Sequence[Portion]:
        """Return one portion for each chunk of this process.

        Chunks of one batch differ by at most one row; some are empty when there are few rows.
        """
        size, larger = divmod(rows, self._chunks)
        first = [chunk * size + min(chunk, larger) for chunk in range(self._chunks + 1)]
        return [Portion(first[chunk], first[chunk + 1], chunk) for chunk in self._chunk_numbers]

    def gradient(self, parts: Sequence[MicroBatch], backward: Callable[[MicroBatch, float], Tensor]) -> Tensor:
        """Add the gradients of all chunks in the tree; return the whole loss, which is added with them."""
        sums = self.reduce([self._flat(chunk, backward) for chunk in _by_stream(parts)])
        lengths = [parameter.numel() for parameter in self._parameters]
        *gradients, loss = torch.split(sums, [*lengths, 1])
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient.view_as(parameter)
        return loss.reshape(()).clone()  # a view would keep all gradients in memory until the loss is read

    def reduce(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the sum in the order of the tree over all chunks."""
        return tree(self._world.gather(tree(parts)))

    def concatenate(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the gathered matrices of all chunks in their order."""
        return torch.cat(self._world.gather(super().concatenate(parts)), -2)

    def _flat(self, chunk: Sequence[MicroBatch], backward: Callable[[MicroBatch, float], Tensor]) -> Tensor:
        """Return the gradients of one chunk as one vector [numbers + 1] that ends with its share of the loss."""
        for parameter in self._parameters:
            parameter.grad = None
        share = super().gradient(chunk, backward)
        gradients = [_gradient(parameter).reshape(-1) for parameter in self._parameters]
        return torch.cat([*gradients, share.to(gradients[0].dtype).reshape(1)])


def tree(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum of 2ⁿ tensors: first of neighbours, then of neighbouring sums."""
    while len(parts) > 1:
        parts = [left + right for left, right in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def refuse_batch_norm(model: torch.nn.Module) -> None:
    """Raise `ConfigError` for a model with batch normalization: a chunk's gradient would depend on its other rows."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            raise ConfigError(
                f"`strategy.reduction` must be fast for a model with batch normalization, got exact; layer {name!r} "
                "normalizes over the rows of a chunk, so the answer would depend on the chunks; "
                "use another normalization, or strategy.reduction=fast"
            )


def _by_stream(parts: Sequence[MicroBatch]) -> list[list[MicroBatch]]:
    """Return the micro-batches of each chunk."""
    chunks: dict[int, list[MicroBatch]] = {}
    for part in parts:
        chunks.setdefault(part.stream, []).append(part)
    return list(chunks.values())


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
