"""Pipeline parallelism: every process holds some of the layers and passes their output to the next process.

The schedule is torch's own of GPipe (Huang et al., 2019): all micro-batches forward, then all of them backward.
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
    """The network divided into as many stages as there are processes. Every process receives all rows of a batch."""

    name = "pipeline"
    sharded = True

    def __init__(self, device: torch.device, world: World) -> None:
        super().__init__(device)
        self._world = world
        self._schedules: dict[tuple[int, bool], Any] = {}

    def place(self, model: Any, loss: Loss) -> Callable[..., Tensor]:
        """Delete the layers of the other stages from the model and move the rest to the device.

        The forward pass returns predictions without gradients. Raises `ConfigError` for a model with too few layers.
        """
        stages = model.stages(self._world.size)
        if len(stages) < self._world.size:
            model_name = model.config_name
            raise ConfigError(
                f"`strategy`=pipeline needs at least as many layers as processes, but `model`={model_name} "
                f"{f'has {len(stages)}' if stages else 'cannot be divided'} and there are {self._world.size} processes; "
                "use strategy=ddp, fewer processes or a deeper model"
            )
        for rank, names in enumerate(stages):
            if rank != self._world.rank:
                for name in names:
                    delattr(model, name)
        self._model, self._loss, self._targets = model.to(self._device), _of_columns(loss), model.targets
        return self._predict

    def portions(self, rows: int) -> Sequence[Portion]:
        """Return one portion with all rows and the random numbers of this stage."""
        # With the same random numbers, the layers of two stages would drop the same units.
        return (Portion(0, rows, self._world.rank),)

    def gradient(self, parts: Sequence[MicroBatch], backward: Callable[[MicroBatch, float], Tensor]) -> Tensor:
        """Compute the gradients of this stage with torch's schedule; `backward` is not used.

        `parts` is one part with the whole batch. The last stage returns the whole loss, the others 0.
        """
        (part,) = parts
        losses: list[Tensor] = []
        target, weight = part.rows.target, part.rows.weight
        # Torch's schedule divides one target between the micro-batches.
        columns = target if weight is None else torch.cat((target, weight), 1)
        self._step(part.rows.inputs, True, target=columns, losses=losses, return_outputs=False)
        return torch.stack(losses).mean().detach() if losses else target.new_zeros(())

    def total(self, shares: Tensor) -> Tensor:
        """Return the sum of the shares, of which only the last stage's are not 0."""
        return self._world.sum(shares)

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Return the norm [] of the norms of all stages."""
        return super().norm(self._world.gather(super().norm(gradients)))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on some process."""
        return self._world.any(flag)

    def gather_parameters(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the parameters of all stages, in the order of the whole model's parameters."""
        import torch.distributed as dist

        stages: list[Any] = [None] * self._world.size
        dist.all_gather_object(stages, {name: tensor.detach().cpu() for name, tensor in tensors.items()})
        return {name: tensor.to(self._device) for stage in stages for name, tensor in stage.items()}

    @torch.no_grad()
    def _predict(self, *inputs: Tensor) -> Tensor:
        """Return predictions [rows, targets] on every process: the last stage's, added to zeros of the others."""
        numbers = inputs[0]
        # Torch's schedule cannot divide a batch without rows.
        prediction = self._step(inputs, False) if len(numbers) else None
        if prediction is None:
            prediction = numbers.new_zeros(len(numbers), self._targets)
        return self._world.sum(prediction)

    def _step(self, inputs: tuple[Tensor, ...], training: bool, **options: Any) -> Tensor | None:
        """Run all stages. Only the first reads the inputs, and only the last returns predictions."""
        key = (len(inputs[0]), training)
        if key not in self._schedules:
            self._schedules[key] = self._schedule(*key)
        prediction: Tensor | None = self._schedules[key].step(*(inputs if self._world.rank == 0 else ()), **options)
        return prediction

    def _schedule(self, rows: int, training: bool) -> Any:
        """Return torch's schedule for batches of so many rows; it keeps buffers of their size."""
        from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

        stage = PipelineStage(self._model, self._world.rank, self._world.size, self._device)
        # Micro-batches of equal size, so that the mean of their means is the mean.
        count = max(n for n in range(1, self._world.size + 1) if rows % n == 0)
        return ScheduleGPipe(stage, count, self._loss if training else None)


def _of_columns(loss: Loss) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss as a function of predictions [rows, targets] and columns: the targets, and the weight if there is one."""

    def of_columns(prediction: Tensor, columns: Tensor) -> Tensor:
        targets = prediction.shape[1]
        weight = columns[:, targets:]
        return loss(prediction, columns[:, :targets], weight if weight.shape[1] else None)

    return of_columns
