"""One answer on all processes: for work that each of them does, and for a signal that reached only some of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from runner.compute.processes.environment import format_ranks
from runner.compute.signals import StopRequest
from runner.errors import InputError, RemoteRankError

T = TypeVar("T")

POLL_SECONDS = 0.25
"""Approximate time between two collective checks for a signal."""


def run_on_all_ranks(work: Callable[[], tuple[T, dict[str, str]]], rank: int, size: int) -> T:
    """Run `work` on every process and return its result; see `World.run_on_all_ranks`."""
    import torch.distributed as dist

    problems: tuple[str, ...] = ()
    kind: type[InputError] = InputError
    equal: dict[str, str] = {}
    result: Any = None
    try:
        result, equal = work()
    except InputError as error:
        problems, kind = error.problems, type(error)
    outcomes: list[Any] = [None] * size
    dist.all_gather_object(outcomes, (problems, kind.__name__, equal))
    messages = differences(outcomes)
    if not messages:
        return result  # type: ignore[no-any-return]
    if rank:
        raise RemoteRankError("\n".join(messages), 2)
    raise kind(messages)


def differences(outcomes: Sequence[tuple[Sequence[str], str, Mapping[str, str]]]) -> list[str]:
    """Return one sentence for each problem of some process or, when there is none, for each value that differs.

    An outcome is one process's (problems, name of the error class, values that must be equal), in the order of the ranks.
    """
    ranks_of: dict[str, list[int]] = {}
    for rank, (problems, _, _) in enumerate(outcomes):
        for problem in problems:
            ranks_of.setdefault(problem, []).append(rank)
    messages = [p if len(ranks) == len(outcomes) else f"{format_ranks(ranks)}: {p}" for p, ranks in ranks_of.items()]
    if messages:
        return messages
    first = outcomes[0][2]
    for name, value in first.items():
        other = [rank for rank, (_, _, equal) in enumerate(outcomes) if equal.get(name) != value]
        if other:
            messages.append(
                f"{name} must be the same on every process, got {value[:16]} on rank 0 and "
                f"{outcomes[other[0]][2].get(name, 'missing')[:16]} on {format_ranks(other)}; make them equal"
            )
    return messages


class StopConsensus:
    """Stop decision that all processes make at the same step: they exchange their signals about four times a second.

    `maximum` returns the largest of each number over all processes; it is a collective.
    """

    def __init__(self, rank: int, maximum: Callable[[Sequence[int]], list[int]], request: StopRequest) -> None:
        self._rank, self._maximum, self._request = rank, maximum, request
        self._signal: int | None = None
        self._next = -1
        self._every, self._step, self._time = 1, 0, time.perf_counter()

    def requested(self, step: int) -> int | None:
        """Return the signal that some process received, or None; every process must call it at every step."""
        if self._signal is None and not self._step <= step < self._next:
            number, self._every = self._maximum([self._request.signal_number or 0, self._pace(step)])
            self._signal, self._next = number or None, step + self._every
        return self._signal

    def _pace(self, step: int) -> int:
        """Return the steps until the next exchange, from rank 0's recent time per step; 0 on the other ranks."""
        now = time.perf_counter()
        seconds, self._time = (now - self._time) / max(step - self._step, 1), now
        self._step = step
        return 0 if self._rank else max(1, min(int(POLL_SECONDS / max(seconds, 1e-9)), 2 * self._every))
