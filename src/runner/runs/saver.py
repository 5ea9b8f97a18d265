"""Save the state of a run from all its processes, during the call or in the background."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
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
    """Writes the checkpoints of a run into `folder`. Every process has a saver, and calls it at the same steps.

    A state that every process holds whole is written by rank 0. Of a sharded state (`sharded`), each process writes its
    shards and rank 0 the rest. `fixed` is added to every state. `keep` is that of `checkpoint.save`. A failure on one
    process is raised on all of them, as RunFailed with its rank.

    With `asynchronous`, `save` copies the values, returns, and writes in a thread. An error of the writing is raised
    once, by the next call of any method. `timeout_seconds` limits how long processes wait for each other there.
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
        # A group of its own: the messages of the thread must not mix with those of the training.
        separate = asynchronous and world.size > 1
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds)) if separate else None

    def save(
        self, step: int, state: Mapping[str, Any], best: bool, *, first: tuple[int, Mapping[str, Any]] | None = None
    ) -> None:
        """Save the state of a step, and before it the best state, `first`, with its step, if that is another one.

        Waits for the previous save. Raises RunFailed if that or this one cannot be written.
        """
        self._settle()
        states = [] if first is None else [(*first, True)]
        whole = [(at, self._whole(at, values), is_best) for at, values, is_best in (*states, (step, state, best))]
        if self._thread is None:
            self._write_all(whole)
        else:
            self._pending = self._thread.submit(self._write_all, _snapshot(whole))

    def _whole(self, step: int, state: Mapping[str, Any]) -> dict[str, Any]:
        return {"format": 1, "step": step, **state, **self._fixed} if self._takes_part else {}

    def _write_all(self, states: Sequence[tuple[int, dict[str, Any], bool]]) -> None:
        for step, state, best in states:
            self._write(step, state, best)

    def check(self) -> None:
        """Raise the error of a background save that has ended, on all processes at the same step. Does not wait."""
        if self._pending is not None and not self._world.any(not self._pending.done()):
            self._settle()

    def close(self) -> None:
        """Wait for a background save, end the thread, and raise the error of the save."""
        try:
            self._settle()
        finally:
            if self._thread is not None:
                self._thread.shutdown()

    def _settle(self) -> None:
        """Wait for a background save, and raise its error."""
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
        """Call `work` on rank 0. Its result is returned on every process, and its error is raised on every process."""
        if self._world.size == 1:
            return work()
        result, failure = None, None
        if self._world.rank == 0:
            try:
                result = work()
            except Exception as error:
                failure = error
        message: list[Any] = [result, failure and (str(failure) or type(failure).__name__)]
        dist.broadcast_object_list(message, src=0, group=self._group)
        if failure is not None and not isinstance(failure, RunFailed):
            raise failure  # a bug, or no memory: where it happened it keeps its type
        if message[1]:
            raise ProcessLost(f"rank 0: {message[1]}") from failure
        outcome: T = message[0]
        return outcome

    def _gathered(self, plain: dict[str, Any]) -> dict[str, Any]:
        """Return the plain values of all processes. A stage of a pipeline has only its own."""
        gathered = [plain] * self._world.size
        if self._world.size > 1:
            dist.all_gather_object(gathered, plain, group=self._group)
        return {name: value for values in gathered for name, value in values.items()}


def _failed(step: int, path: Path, rank: int, cause: BaseException) -> ProcessLost:
    text = explain_os_error(cause, path) if isinstance(cause, OSError) else str(cause) or type(cause).__name__
    return ProcessLost(f"rank {rank}: saving step {step} failed: {text}")


def _snapshot(value: Any) -> Any:
    """Return a copy that the training does not change: of tensors on the CPU, of shards on their device."""
    if is_sharded(value):
        return value.detach().clone()
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {name: _snapshot(item) for name, item in value.items()}
    return type(value)(map(_snapshot, value)) if isinstance(value, (list, tuple)) else value
