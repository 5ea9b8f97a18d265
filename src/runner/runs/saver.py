"""Saving the state of a run from all its processes, at once or beside the training."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from runner.compute.dtensor import is_sharded
from runner.compute.processes import World
from runner.errors import ProcessLost, RunFailed
from runner.runs import checkpoint
from runner.runs.atomic import explain_os_error

T = TypeVar("T")


class Saver:
    """Writes checkpoints below `folder`; every process of the run has one and calls it at the same steps.

    A state that every process holds whole is written by rank 0. Of a sharded one each process writes its own parts, and
    rank 0 the rest. A failure on any process is raised on all of them: RunFailed, whose text names the rank.

    With `asynchronous`, `save` copies the values and returns; what the writing meets is raised by the next call, once.
    """

    def __init__(
        self,
        folder: Path,
        fixed: Mapping[str, Any],
        keep: int | None,
        world: World,
        *,
        sharded: bool,
        asynchronous: bool,
        timeout_seconds: float,
    ) -> None:
        self._folder, self._fixed, self._keep, self._world = folder, fixed, keep, world
        self._write = self._write_sharded if sharded else self._write_whole
        self._takes_part = sharded or world.rank == 0
        self._pending: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1) if asynchronous else None
        # What is said beside the training must not be taken for a part of it.
        apart = asynchronous and world.size > 1
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds)) if apart else None

    def save(self, step: int, state: dict[str, Any], best: bool) -> None:
        """Save a captured state; waits for the one before. Raises RunFailed when either cannot be written."""
        self._settle()
        whole = {"format": 1, "step": step, **state, **self._fixed} if self._takes_part else {}
        if self._thread is None:
            self._write(step, whole, best)
        else:
            self._pending = self._thread.submit(self._write, step, _snapshot(whole), best)

    def check(self) -> None:
        """Raise what the writing met, if it has ended: on all processes at the same step. Waits for nothing."""
        if self._pending is not None and not self._world.any(not self._pending.done()):
            self._settle()

    def close(self) -> None:
        """Wait for what is being written, and raise what it met."""
        try:
            self._settle()
        finally:
            if self._thread is not None:
                self._thread.shutdown()

    def _settle(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write_whole(self, step: int, state: dict[str, Any], best: bool) -> None:
        self._lead(lambda: checkpoint.save(self._folder, step, state, best=best, keep=self._keep).name)

    def _write_sharded(self, step: int, state: dict[str, Any], best: bool) -> None:
        from runner.runs import checkpoint_shards

        tensors, plain = checkpoint_shards.split(state)
        fresh = self._folder / self._lead(lambda: checkpoint.draft(self._folder, step).name)
        failure = checkpoint_shards.write(fresh, tensors, self._group)
        if failure is not None:
            if self._world.rank == 0:
                shutil.rmtree(fresh, ignore_errors=True)
            raise _failed(step, self._folder / f"step_{step}", *failure)
        rest = checkpoint_shards.joined({**state, "model": {}, "optimizer": {}}, self._gathered(plain))
        self._lead(lambda: checkpoint.publish(fresh, rest, best=best, keep=self._keep).name)

    def _lead(self, work: Callable[[], T]) -> T:
        """What rank 0 makes of `work`, on every process; what that raises there is raised on all."""
        if self._world.size == 1:
            return work()
        result, failure = None, None
        if self._world.rank == 0:
            try:
                result = work()
            except Exception as error:
                failure = error
        told: list[Any] = [result, failure and (str(failure) or type(failure).__name__)]
        dist.broadcast_object_list(told, src=0, group=self._group)
        if failure is not None and not isinstance(failure, RunFailed):
            raise failure  # a mistake of ours, or no memory: told by its kind where it happened
        if told[1]:
            raise ProcessLost(f"rank 0: {told[1]}") from failure
        outcome: T = told[0]
        return outcome

    def _gathered(self, plain: dict[str, Any]) -> dict[str, Any]:
        """The values of all processes: one stage of a pipeline knows nothing of another's."""
        everyone = [plain] * self._world.size
        if self._world.size > 1:
            dist.all_gather_object(everyone, plain, group=self._group)
        return {name: value for part in everyone for name, value in part.items()}


def _failed(step: int, path: Path, rank: int, cause: BaseException) -> ProcessLost:
    text = explain_os_error(cause, path) if isinstance(cause, OSError) else str(cause) or type(cause).__name__
    return ProcessLost(f"rank {rank}: saving step {step} failed: {text}")


def _snapshot(value: Any) -> Any:
    """A copy that the training cannot reach; ordinary tensors are copied to the CPU, shards stay in their memory."""
    if is_sharded(value):
        return value.detach().clone()
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {name: _snapshot(item) for name, item in value.items()}
    return type(value)(map(_snapshot, value)) if isinstance(value, (list, tuple)) else value
