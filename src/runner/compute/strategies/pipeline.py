"""Pipeline parallelism: every process holds some layers, and passes what they give for a part of the rows to the next one.

The schedule is torch's own of GPipe (Huang et al., 2019): all parts of a batch forward, then all of them backward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from runner.compute.processes import World
from runner.compute.strategies.base import Loss, MicroBatch, Portion, Single
from runner.errors import ConfigError


class Pipeline(Single):
    """The network cut into as many stages as there are processes. Every process is given all rows."""

    name = "pipeline"
    sharded = True

    def __init__(self, device: torch.device, world: World) -> None:
        super().__init__(device)
        self._world = world
        self._schedules: dict[tuple[int, bool], Any] = {}

    def place(self, model: Any, loss: Loss) -> Callable[[Tensor], Tensor]:
        stages = model.stages(self._world.size)
        if len(stages) < self._world.size:
            kind = type(model).__name__.lower()
            raise ConfigError(
                f"`strategy`=pipeline needs at least as many layers as processes, but `model`={kind} "
                f"{f'has {len(stages)}' if stages else 'cannot be cut'} and there are {self._world.size} processes; "
                "use strategy=ddp, fewer processes or a deeper model"
            )
        for rank, names in enumerate(stages):
            if rank != self._world.rank:
                for name in names:
                    delattr(model, name)
        self._model, self._loss = model.to(self._device), loss
        return self._predict

    def portions(self, rows: int) -> Sequence[Portion]:
        # Random numbers of its own for each stage: two layers must not drop the same units.
        return (Portion(0, rows, self._world.rank),)

    def gradient(self, parts: Sequence[MicroBatch], backward: Callable[[MicroBatch, float], Tensor]) -> Tensor:
        """As of every strategy, of one part that is the whole batch; torch's schedule does what `backward` would."""
        (part,) = parts
        losses: list[Tensor] = []
        self._step(part.features, True, target=part.target, losses=losses, return_outputs=False)
        return torch.stack(losses).mean().detach() if losses else part.target.new_zeros(())

    def total(self, shares: Tensor) -> Tensor:
        return self._world.sum(shares)

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        return super().norm(self._world.gather(super().norm(gradients)))

    def any(self, flag: bool) -> bool:
        return self._world.any(flag)

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        import torch.distributed as dist

        parts: list[Any] = [None] * self._world.size
        dist.all_gather_object(parts, {name: tensor.detach().cpu() for name, tensor in tensors.items()})
        # Stages are in the order of the whole model's parameters.
        return {name: tensor.to(self._device) for part in parts for name, tensor in part.items()}

    @torch.no_grad()
    def _predict(self, features: Tensor) -> Tensor:
        # Torch's schedule cannot cut a batch without rows.
        prediction = self._step(features, False) if len(features) else None
        if prediction is None:
            prediction = features.new_zeros(len(features), 1)
        return self._world.sum(prediction)

    def _step(self, features: Tensor, training: bool, **options: Any) -> Tensor | None:
        """Run all stages; only the first one looks at the features, only the last one gives predictions."""
        key = (len(features), training)
        if key not in self._schedules:
            self._schedules[key] = self._schedule(*key)
        given = (features,) if self._world.rank == 0 else ()
        prediction: Tensor | None = self._schedules[key].step(*given, **options)
        return prediction

    def _schedule(self, rows: int, training: bool) -> Any:
        """Torch's schedule for so many rows: it keeps buffers of their size."""
        from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

        stage = PipelineStage(self._model, self._world.rank, self._world.size, self._device)
        # Parts of equal size, so that the mean of their means is the mean.
        parts = max(n for n in range(1, self._world.size + 1) if rows % n == 0)
        return ScheduleGPipe(stage, parts, self._loss if training else None)
