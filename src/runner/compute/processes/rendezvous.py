"""The store in which the processes of a run meet, and what they say to each other there: words, each under a name.

Workers that are started again after a failure find the store as their dead predecessors left it, so what belongs to one
attempt carries a token. No variable of the environment names an attempt on all hosts alike: rank 0 draws the token, and
every other process asks for it with a number of its own, which no dead one can answer for.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from runner.compute.processes.environment import Place
from runner.errors import ProcessLost, RemoteRankError, RunFailed

JOIN_SECONDS = 300.0
"""Longest time for all processes to meet: hosts may start minutes apart."""

CONNECT_SECONDS = 60.0
"""Longest time to reach the store of rank 0, which may start later: an address that is wrong is told soon."""

LAUNCHER_SECONDS = 5.0
"""Longest time to reach the store of the launcher, which is there or will never be."""

_RUNS = itertools.count()
"""Runs of this process as one of several."""


@contextlib.contextmanager
def _there() -> Iterator[None]:
    """Around whatever is asked of the store."""
    try:
        yield
    except RuntimeError:  # with the store the process or launcher is gone that kept it
        raise ProcessLost("the launcher, or rank 0, is gone") from None


class Meeting:
    """The processes of one attempt at a run. What they say is for this attempt alone, what they keep also for later ones.

    All of it raises `ProcessLost` when the store is gone.
    """

    def __init__(self, place: Place, kept: Any, store: Any) -> None:
        self.place, self.store = place, store
        self._kept = kept

    @_there()
    def say(self, name: str, text: str) -> None:
        self.store.set(name, text)

    @_there()
    def say_first(self, name: str, text: str) -> bool:
        """False when another process has said something under this name before, which stays."""
        return bool(self.store.compare_set(name, "", text) == text.encode())

    @_there()
    def said(self, *names: str) -> bool:
        """Whether there is a word under each of the names."""
        return bool(self.store.check(list(names)))

    @_there()
    def word(self, name: str) -> str:
        """What was said."""
        return str(self.store.get(name).decode())

    @_there()
    def keep(self, name: str, text: str) -> None:
        self._kept.set(name, text)

    @_there()
    def kept(self, name: str) -> str | None:
        return self._kept.get(name).decode() if self._kept.check([name]) else None

    @_there()
    def beside(self) -> Meeting:
        """The same over a connection of its own, for another thread."""
        return Meeting(self.place, self._kept, self.store.clone())

    def wait(self, done: Callable[[], bool], seconds: float, otherwise: str) -> None:
        """Until it is so. Raises `RunFailed` when that takes longer."""
        if not poll(done, seconds):
            where = f"{self.place.address}:{self.place.port}"
            raise RunFailed(f"{otherwise} within {seconds:g} seconds to {where}; look at the messages of the others")

    @_there()
    def leave(self, seconds: float) -> None:
        """The process that keeps the store goes last, so that the others can still read there why they end."""
        if self.place.rank:
            self.store.add("left", 1)
        elif self.place.keeps_store:
            poll(lambda: self.store.add("left", 0) >= self.place.size - 1, seconds)


def meet(place: Place) -> Meeting:
    """Meet the others. Raises `RemoteRankError` where an earlier attempt has ended for good, and `RunFailed` where they do not come."""
    import torch.distributed

    dist: Any = torch.distributed  # its stores come from C++ and have no types
    # A script may do several runs, one after the other: the same number on every process is the same run.
    run = dist.PrefixStore(f"runner/{next(_RUNS)}", _store(place))
    everyone = Meeting(place, run, run)
    if code := int(everyone.kept("ended") or 0):
        raise RemoteRankError("an earlier attempt has ended for good", code)
    token = _ask(everyone) if place.rank else _answer(everyone)
    return Meeting(place, run, dist.PrefixStore(token, run))


def poll(done: Callable[[], bool], seconds: float) -> bool:
    """Look until it is so; False when that takes longer."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _ask(everyone: Meeting) -> str:
    """The token of this attempt, from rank 0."""
    number, rank = secrets.token_hex(8), everyone.place.rank
    everyone.say(f"join/{rank}", number)
    everyone.wait(lambda: everyone.said(f"answer/{number}"), JOIN_SECONDS, "rank 0 did not come")
    token = everyone.word(f"answer/{number}")
    everyone.say(f"here/{token}/{rank}", "")
    return token


def _answer(everyone: Meeting) -> str:
    """The token of this attempt, when all processes that live now have heard it."""
    token, missing, answered = secrets.token_hex(8), set(range(1, everyone.place.size)), dict[int, str]()

    def all_here() -> bool:
        for rank in list(missing):
            if everyone.said(f"join/{rank}") and (number := everyone.word(f"join/{rank}")) != answered.get(rank):
                everyone.say(f"answer/{number}", token)
                answered[rank] = number
            if everyone.said(f"here/{token}/{rank}"):
                missing.discard(rank)
        return not missing

    everyone.wait(all_here, JOIN_SECONDS, "not all processes came")
    return token


@functools.cache
def _store(place: Place) -> Any:
    """The store, opened or reached. Raises `RunFailed` where it cannot be."""
    import torch.distributed

    dist: Any = torch.distributed
    if not place.keeps_store:
        _reach(place)
    try:
        timeout = timedelta(seconds=CONNECT_SECONDS)
        return dist.TCPStore(
            place.address, place.port, is_master=place.keeps_store, timeout=timeout, wait_for_workers=False
        )
    except dist.DistError as error:
        raise _no_store(place, error) from None


def _reach(place: Place) -> None:
    """Wait until the store answers: torch's own client says that it does not with a page of C++ frames."""
    seconds = LAUNCHER_SECONDS if place.launcher_keeps_store else CONNECT_SECONDS
    failure = OSError()

    def reached() -> bool:
        nonlocal failure
        try:
            socket.create_connection((place.address, place.port), seconds).close()
        except OSError as error:
            failure = error
            return False
        return True

    if not poll(reached, seconds):
        raise _no_store(place, failure)


def _no_store(place: Place, error: Exception) -> RunFailed:
    advice = (
        "the launcher is gone, or its address must be given with --local-addr"
        if place.launcher_keeps_store
        else "take another port, or mend the address"
    )
    return RunFailed(
        f"`MASTER_ADDR`:`MASTER_PORT` must be where the processes can meet, but {place.address}:{place.port} cannot be "
        f"{'opened' if place.keeps_store else 'reached'} ({' '.join(str(error).split())[:200]}); {advice}"
    )
