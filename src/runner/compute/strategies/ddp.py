"""Data parallelism with `DistributedDataParallel`: every process holds the whole model and computes a part of the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from runner.compute.processes import World
from runner.compute.strategies.base import Loss, MicroBatch, Portion, Single


class MultiProcess(Single):
    """Common base of strategies whose processes, or groups of processes, compute different rows of a batch.

    `rank` and `size` count these processes or groups.
    """

    def __init__(self, device: torch.device, world: World, rank: int, size: int) -> None:
        super().__init__(device)
        self._world, self._rank, self._size = world, rank, size

    def portions(self, rows: int) -> Sequence[Portion]:
        """Return one portion of consecutive rows.

        Portions of different processes differ by at most one row; some are empty when there are few rows.
        """
        share, larger = divmod(rows, self._size)
        first = self._rank * share + min(self._rank, larger)
        return (Portion(first, first + share + (self._rank < larger), self._rank),)

    def total(self, shares: Tensor) -> Tensor:
        """Return the sum of the shares of all processes."""
        return self._world.sum(shares)

    def reduce(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the all-reduced sum, whose order of additions depends on the number of processes."""
        return self._world.sum(super().reduce(parts))

    def share(self, whole: Tensor) -> Tensor:
        """Return an equal part of the loss for each process."""
        return whole / self._size

    def concatenate(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the gathered matrices of all processes in the order of their ranks."""
        return torch.cat(self._world.gather(super().concatenate(parts)), -2)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on some process."""
        return self._world.any(flag)


class Ddp(MultiProcess):
    """One process for each device; gradients are all-reduced while the backward pass is still running."""

    name = "ddp"

    def __init__(self, device: torch.device, world: World) -> None:
        super().__init__(device, world, world.rank, world.size)

    def place(self, model: Any, loss: Loss) -> Callable[..., Tensor]:
        """Move the whole model to the device and wrap it, which copies rank 0's parameters to all processes."""
        from torch.nn.parallel import DistributedDataParallel

        ids = None if self._device.type == "cpu" else [self._device]
        self._ddp = DistributedDataParallel(model.to(self._device), device_ids=ids, gradient_as_bucket_view=True)
        return self._ddp

    def gradient(self, parts: Sequence[MicroBatch], backward: Callable[[MicroBatch, float], Tensor]) -> Tensor:
        """Accumulate the gradients of all parts and all-reduce them once, with the last part."""
        # Torch divides the sum of the processes' gradients by their number, but the parts are weighted by rows already.
        factor, share = float(self._size), None
        for part in parts:
            with nullcontext() if part is parts[-1] else self._ddp.no_sync():
                loss = backward(part, factor)
            share = loss if share is None else share + loss
        assert share is not None
        return share
