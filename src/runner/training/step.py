"""Training steps: one update of all parameters, computed operation by operation or replayed as a CUDA graph."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from runner.compute.graphs import Graphs
from runner.errors import RunFailed
from runner.optim.base import Capturable, Optimizer
from runner.training.objective import BatchObjective

WARM_UP_STEPS = 3
"""Number of eager steps on batches of one size before their step is captured."""


class Step(Protocol):
    """Function that takes a training step."""

    def __call__(self, step: int) -> Tensor:
        """Take training step `step`, from 1, and return this process's share [] or [lanes] of its loss before the update.

        Where the norm of the gradients is measured, the result is [2, …] with the norm behind the loss.
        """

    def reset(self) -> None:
        """Forget what was recorded of earlier steps, because the state was replaced."""


@dataclass(frozen=True)
class EagerStep:
    """A step computed operation by operation."""

    objective: BatchObjective
    optimizer: Optimizer
    schedule: Callable[[int], Any]

    def __call__(self, step: int) -> Tensor:
        """Select the batch of a step, and let the optimizer update the parameters."""
        return updated(self.optimizer, self.objective.at(step), self.schedule(step))

    def reset(self) -> None:
        """Do nothing: an eager step records nothing."""


def updated(optimizer: Optimizer, objective: BatchObjective, lr: Any) -> Tensor:
    """Update the parameters, and return the loss, with the norm of the gradients where it is measured."""
    loss = optimizer.step(objective, lr)
    if objective.norm is None:
        return loss
    return torch.stack((loss, objective.norm.reshape(loss.shape).to(loss.dtype)))


@dataclass
class _Captured:
    """The recorded step of one batch size, with the memory that it reads."""

    replay: Callable[[], Tensor]
    chosen: Tensor | slice
    """Row numbers of the batch [n] or [lanes, n], or a slice of all rows."""
    lr: Any
    """Learning rate: a number, or a tensor [] or [lanes, 1]."""
    loaded_lr: Any
    """The learning rate that `lr` is a copy of."""

    def load(self, chosen: Tensor | slice, lr: Any) -> None:
        """Copy rows and learning rate of the next step to where the recording reads them."""
        if isinstance(self.chosen, Tensor) and isinstance(chosen, Tensor):
            self.chosen.copy_(chosen)
        if isinstance(self.lr, Tensor) and lr is not self.loaded_lr:
            self.lr.copy_(lr)
            self.loaded_lr = lr


class GraphedStep:
    """A step that is recorded once for each batch size, and then replayed with one launch.

    The first steps of a batch size are eager. A graph reads the row numbers and the learning rate from fixed memory, and
    the generator is seeded before each replay, so that a step is the same function of its number as an eager one.
    """

    def __init__(self, eager: EagerStep, graphs: Graphs, *, required: bool) -> None:
        """`required` makes a step that cannot be recorded an error; otherwise it stays eager, with a warning."""
        self._eager, self._graphs, self._required = eager, graphs, required
        self._objective, self._schedule = eager.objective, eager.schedule
        assert isinstance(eager.optimizer, Capturable)
        self._optimizer = eager.optimizer
        # Recorded kernels read the seed that the generator has at each replay.
        self._unseeded = replace(eager.objective, draw=lambda step, stream: None)
        self._recordable = True
        self.reset()

    def reset(self) -> None:
        """Forget all graphs: they update tensors that are no longer the state."""
        self._captured: dict[int, _Captured] = {}
        self._taken: Counter[int] = Counter()

    def __call__(self, step: int) -> Tensor:
        """Take the step eagerly while its batch size is new, else by its graph."""
        rows = self._objective.batches.size(step)
        if rows not in self._captured and self._taken[rows] >= WARM_UP_STEPS and self._recordable:
            self._record(step, rows)
        captured = self._captured.get(rows)
        if captured is None:
            return self._take_eagerly(step, rows)
        captured.load(self._objective.batches.at(step), self._schedule(step))
        self._objective.begin(step)
        self._objective.draw(step, 0)
        return captured.replay().clone()

    def _take_eagerly(self, step: int, rows: int) -> Tensor:
        if not self._recordable:
            return self._eager(step)
        self._taken[rows] += 1
        with self._graphs.warm_up():
            return self._eager(step)

    def _record(self, step: int, rows: int) -> None:
        selected, loaded_lr = self._objective.batches.at(step), self._schedule(step)
        chosen, lr = (value.clone() if isinstance(value, Tensor) else value for value in (selected, loaded_lr))
        if isinstance(chosen, slice):  # all rows are taken once, not at every replay
            self._unseeded.on(chosen, rows)
        self._objective.draw(step, 0)

        def compute() -> Tensor:
            with self._optimizer.capturing():
                return updated(self._optimizer, self._unseeded.on(chosen, rows), lr)

        try:
            self._captured[rows] = _Captured(self._graphs.capture(compute), chosen, lr, loaded_lr)
        except RuntimeError as error:
            self._recordable = False
            reason = f"its training step cannot be captured as a CUDA graph ({' '.join(str(error).split())[:200]})"
            if self._required:
                raise RunFailed(
                    f"`train.cuda_graph` must be auto or false for this run: {reason}; use train.cuda_graph=false"
                ) from error
            warnings.warn(f"the run is slower than it could be: {reason}", RuntimeWarning, stacklevel=2)
