"""Data parallelism with `DistributedDataParallel`: every process holds the model whole and has its share of the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from runner.compute.processes import World
from runner.compute.strategies.base import Loss, MicroBatch, Portion, Single


class MultiProcess(Single):
    """What strategies have in common whose processes compute different rows of a batch. `rank` and `size` count these."""

    def __init__(self, device: torch.device, world: World, rank: int, size: int) -> None:
        super().__init__(device)
        self._world, self._rank, self._size = world, rank, size

    def portions(self, rows: int) -> Sequence[Portion]:
        """One run of rows; those of two processes differ by a row at most, and some are empty when there are few."""
        share, larger = divmod(rows, self._size)
        first = self._rank * share + min(self._rank, larger)
        return (Portion(first, first + share + (self._rank < larger), self._rank),)

    def total(self, shares: Tensor) -> Tensor:
        return self._world.sum(shares)

    def reduce(self, parts: Sequence[Tensor]) -> Tensor:
        return self._world.sum(super().reduce(parts))

    def share(self, whole: Tensor) -> Tensor:
        return whole / self._size

    def stacked(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(self._world.gather(super().stacked(parts)), -2)

    def any(self, flag: bool) -> bool:
        return self._world.any(flag)


class Ddp(MultiProcess):
    """One process a device, gradients all-reduced while the backward pass still runs."""

    name = "ddp"

    def __init__(self, device: torch.device, world: World) -> None:
        super().__init__(device, world, world.rank, world.size)

    def place(self, model: Any, loss: Loss) -> Callable[[Tensor], Tensor]:
        from torch.nn.parallel import DistributedDataParallel

        ids = None if self._device.type == "cpu" else [self._device]
        self._ddp = DistributedDataParallel(model.to(self._device), device_ids=ids, gradient_as_bucket_view=True)
        return self._ddp

    def gradient(self, parts: Sequence[MicroBatch], backward: Callable[[MicroBatch, float], Tensor]) -> Tensor:
        # Torch divides the sum of the processes' gradients by their number; the parts are weighted by rows already.
        factor, share = float(self._size), None
        for part in parts:
            with nullcontext() if part is parts[-1] else self._ddp.no_sync():
                loss = backward(part, factor)
            share = loss if share is None else share + loss
        assert share is not None
        return share
