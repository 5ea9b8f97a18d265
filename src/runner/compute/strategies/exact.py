"""Data parallelism whose bits do not depend on the number of processes.

Every batch is cut into a fixed number of chunks, a power of two. The gradients of each chunk are computed alone and added
in a fixed binary tree over the chunks, of which each process owns an aligned subtree; the subtrees' sums are gathered and
the rest of the tree is added on every process. An all-reduce would add in an order that depends on the number of
processes. The idea of taking the training procedure apart from the resources it runs on is EasyScale's (Li et al., SC '23).
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
    """The same bits on 1, 2, 4, … processes, as many as divide the chunks. `name` is single or ddp."""

    def __init__(self, name: str, device: torch.device, world: World, chunks: int) -> None:
        super().__init__(device)
        self.name = name
        self._world, self._chunks = world, chunks
        self._own = range(world.rank * chunks // world.size, (world.rank + 1) * chunks // world.size)

    def place(self, model: Any, loss: Loss) -> Callable[[Tensor], Tensor]:
        refuse(model)
        placed = super().place(model, loss)
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return placed

    def portions(self, rows: int) -> Sequence[Portion]:
        """This process's chunks; chunks of one batch differ by a row at most, and some are empty when it has few."""
        size, larger = divmod(rows, self._chunks)
        first = [chunk * size + min(chunk, larger) for chunk in range(self._chunks + 1)]
        return [Portion(first[chunk], first[chunk + 1], chunk) for chunk in self._own]

    def gradient(self, parts: Sequence[MicroBatch], backward: Callable[[MicroBatch, float], Tensor]) -> Tensor:
        """As of every strategy, but the loss is that of the whole batch: it travels with the gradients."""
        sums = self.reduce([self._flat(chunk, backward) for chunk in _by_stream(parts)])
        lengths = [parameter.numel() for parameter in self._parameters]
        *gradients, loss = torch.split(sums, [*lengths, 1])
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient.view_as(parameter)
        return loss.reshape(()).clone()  # a view would keep all gradients alive until the loss is looked at

    def reduce(self, parts: Sequence[Tensor]) -> Tensor:
        return tree(self._world.gather(tree(parts)))

    def stacked(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(self._world.gather(super().stacked(parts)), -2)

    def _flat(self, chunk: Sequence[MicroBatch], backward: Callable[[MicroBatch, float], Tensor]) -> Tensor:
        """Gradients of one chunk in one vector, its share of the loss at the end."""
        for parameter in self._parameters:
            parameter.grad = None
        share = super().gradient(chunk, backward)
        gradients = [_gradient(parameter).reshape(-1) for parameter in self._parameters]
        return torch.cat([*gradients, share.to(gradients[0].dtype).reshape(1)])


def tree(parts: Sequence[Tensor]) -> Tensor:
    """The sum of 2ⁿ tensors: of neighbours, then of neighbouring sums."""
    while len(parts) > 1:
        parts = [left + right for left, right in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def refuse(model: torch.nn.Module) -> None:
    """Raise `ConfigError` for a layer that looks at other rows than its own: a chunk's gradient would not be its own."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            raise ConfigError(
                f"`strategy.reduction` must be fast for a model with batch normalisation, but is exact: layer {name!r} "
                "normalises by the rows that it happens to see together, so chunks would change the answer; "
                "use another normalisation, or strategy.reduction=fast"
            )


def _by_stream(parts: Sequence[MicroBatch]) -> list[list[MicroBatch]]:
    chunks: dict[int, list[MicroBatch]] = {}
    for part in parts:
        chunks.setdefault(part.stream, []).append(part)
    return list(chunks.values())


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
