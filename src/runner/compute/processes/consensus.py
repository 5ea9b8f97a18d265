"""One answer on all processes: of work that each of them does, and to a signal that reached some of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from runner.compute.processes.environment import named
from runner.compute.signals import StopRequest
from runner.errors import InputError, RemoteRankError

T = TypeVar("T")

ASK_SECONDS = 0.25
"""Time between two questions to all processes whether to stop."""


def together(work: Callable[[], tuple[T, dict[str, str]]], rank: int, size: int) -> T:
    """As of `World`."""
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
    said = differences(outcomes)
    if not said:
        return result  # type: ignore[no-any-return]
    if rank:
        raise RemoteRankError("\n".join(said), 2)
    raise kind(said)


def differences(outcomes: Sequence[tuple[Sequence[str], str, Mapping[str, str]]]) -> list[str]:
    """What went wrong on some processes, and what differs between those where nothing did; a sentence each."""
    where: dict[str, list[int]] = {}
    for rank, (problems, _, _) in enumerate(outcomes):
        for problem in problems:
            where.setdefault(problem, []).append(rank)
    said = [p if len(ranks) == len(outcomes) else f"{named(ranks)}: {p}" for p, ranks in where.items()]
    if said:
        return said
    first = outcomes[0][2]
    for name, value in first.items():
        other = [rank for rank, (_, _, equal) in enumerate(outcomes) if equal.get(name) != value]
        if other:
            said.append(
                f"{name} must be the same on every process, but is {value[:16]} on rank 0 and "
                f"{outcomes[other[0]][2].get(name, 'missing')[:16]} on {named(other)}; make them equal"
            )
    return said


class Agreement:
    """Asks all processes about four times a second whether a signal came: each alone would stop at a step of its own.

    `most` gives the largest of each number on any process.
    """

    def __init__(self, rank: int, most: Callable[[Sequence[int]], list[int]], request: StopRequest) -> None:
        self._rank, self._most, self._request = rank, most, request
        self._signal: int | None = None
        self._next = -1
        self._every, self._step, self._time = 1, 0, time.perf_counter()

    def requested(self, step: int) -> int | None:
        """As of `Stop`; every process asks at every step."""
        if self._signal is None and not self._step <= step < self._next:
            number, self._every = self._most([self._request.signal_number or 0, self._pace(step)])
            self._signal, self._next = number or None, step + self._every
        return self._signal

    def _pace(self, step: int) -> int:
        """Steps until the next question: what rank 0 took for the last ones decides, the others have no say."""
        now = time.perf_counter()
        seconds, self._time = (now - self._time) / max(step - self._step, 1), now
        self._step = step
        return 0 if self._rank else max(1, min(int(ASK_SECONDS / max(seconds, 1e-9)), 2 * self._every))
