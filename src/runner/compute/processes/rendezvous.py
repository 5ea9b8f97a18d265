"""Rendezvous of the processes of a run: a key-value store of texts that all of them share.

Workers that are restarted after a failure find the store as the failed attempt left it, so the keys of one attempt carry a
token. No variable of the environment names an attempt equally on all hosts. Rank 0 therefore draws the token, and every
other process requests it with a random number of its own, which no process of an earlier attempt can have answered.
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

from runner.compute.processes.environment import RankEnvironment
from runner.errors import ProcessLost, RemoteRankError, RunFailed

JOIN_SECONDS = 300.0
"""Longest time for all processes to join: hosts may start minutes apart."""

CONNECT_SECONDS = 60.0
"""Longest time to reach the store of rank 0, which may start later; short enough to report a wrong address soon."""

LAUNCHER_SECONDS = 5.0
"""Longest time to reach the store of the launcher, which opened it before it started this process."""

_RUNS = itertools.count()
"""Number of the next run of this process with others."""


@contextlib.contextmanager
def _store_errors() -> Iterator[None]:
    """Replace an error of the store by `ProcessLost`: its host, the launcher or rank 0, has exited."""
    try:
        yield
    except RuntimeError:
        raise ProcessLost("the launcher or rank 0 exited") from None


class Rendezvous:
    """Shared texts of the processes of one attempt at a run. Persistent texts are shared with later attempts as well.

    Every method raises `ProcessLost` when the store has closed.
    """

    def __init__(self, environment: RankEnvironment, persistent: Any, store: Any) -> None:
        self.environment, self.store = environment, store
        self._persistent = persistent

    @_store_errors()
    def publish(self, key: str, text: str) -> None:
        """Store a text for all processes of this attempt; replaces an earlier one."""
        self.store.set(key, text)

    @_store_errors()
    def publish_first(self, key: str, text: str) -> bool:
        """Store a text unless the key has one. Return whether it was stored."""
        return bool(self.store.compare_set(key, "", text) == text.encode())

    @_store_errors()
    def has(self, *keys: str) -> bool:
        """Whether every key has a text."""
        return bool(self.store.check(list(keys)))

    @_store_errors()
    def get(self, key: str) -> str:
        """Return the text of a key; blocks while it has none."""
        return str(self.store.get(key).decode())

    @_store_errors()
    def set_persistent(self, key: str, text: str) -> None:
        """Store a text for this attempt and all later ones."""
        self._persistent.set(key, text)

    @_store_errors()
    def get_persistent(self, key: str) -> str | None:
        """Return the text that this attempt or an earlier one stored, or None."""
        return self._persistent.get(key).decode() if self._persistent.check([key]) else None

    def wait_for(self, condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
        """Wait until the condition holds. Raises `RunFailed`, which starts with `otherwise`, after so many seconds."""
        if not poll(condition, seconds):
            address = f"{self.environment.address}:{self.environment.port}"
            raise RunFailed(
                f"{otherwise} within {seconds:g} seconds at {address}; look at the messages of the other processes"
            )

    @_store_errors()
    def leave(self, seconds: float) -> None:
        """Leave the rendezvous. The process that hosts the store waits for the others for at most so many seconds."""
        # The others can then still read from the store why the run ended.
        if self.environment.rank:
            self.store.add("left", 1)
        elif self.environment.hosts_store:
            poll(lambda: self.store.add("left", 0) >= self.environment.size - 1, seconds)


@_store_errors()
def join(environment: RankEnvironment) -> tuple[Rendezvous, Rendezvous]:
    """Join the other processes of this attempt. Return the rendezvous over two connections, each for one thread.

    Raises `RemoteRankError` when an earlier attempt has ended for good, `RunFailed` when not all processes join, and
    `ProcessLost` when the store has closed.
    """
    import torch.distributed

    dist: Any = torch.distributed  # its stores come from C++ and have no types
    # A script may do several runs in sequence: the same number on every process is the same run.
    run = dist.PrefixStore(f"runner/{next(_RUNS)}", _open_store(environment))
    # Once all processes are here, rank 0 may be lost with its store, and another connection would be tried for a minute.
    connections = (run, run.clone())
    everyone = Rendezvous(environment, run, run)
    if code := int(everyone.get_persistent("ended") or 0):
        raise RemoteRankError("an earlier attempt has ended for good", code)
    token = _request_token(everyone) if environment.rank else _issue_token(everyone)
    own, other = (Rendezvous(environment, store, dist.PrefixStore(token, store)) for store in connections)
    return own, other


def poll(condition: Callable[[], bool], seconds: float) -> bool:
    """Check a condition repeatedly. Return True once it holds, False after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _request_token(everyone: Rendezvous) -> str:
    """Return the token of this attempt, received from rank 0."""
    number, rank = secrets.token_hex(8), everyone.environment.rank
    everyone.publish(f"join/{rank}", number)
    everyone.wait_for(lambda: everyone.has(f"answer/{number}"), JOIN_SECONDS, "rank 0 did not join")
    token = everyone.get(f"answer/{number}")
    everyone.publish(f"here/{token}/{rank}", "")
    return token


def _issue_token(everyone: Rendezvous) -> str:
    """Draw the token of this attempt and return it when all running processes have received it."""
    token, missing, answered = secrets.token_hex(8), set(range(1, everyone.environment.size)), dict[int, str]()

    def all_here() -> bool:
        for rank in list(missing):
            if everyone.has(f"join/{rank}") and (number := everyone.get(f"join/{rank}")) != answered.get(rank):
                everyone.publish(f"answer/{number}", token)
                answered[rank] = number
            if everyone.has(f"here/{token}/{rank}"):
                missing.discard(rank)
        return not missing

    everyone.wait_for(all_here, JOIN_SECONDS, "not all processes joined")
    return token


@functools.cache
def _open_store(environment: RankEnvironment) -> Any:
    """Open the store, or connect to it. Raises `RunFailed` when neither is possible."""
    import torch.distributed

    dist: Any = torch.distributed
    if not environment.hosts_store:
        _wait_for_store(environment)
    try:
        return dist.TCPStore(
            environment.address,
            environment.port,
            is_master=environment.hosts_store,
            timeout=timedelta(seconds=CONNECT_SECONDS),
            wait_for_workers=False,
        )
    except dist.DistError as error:
        raise _store_failure(environment, error) from None


def _wait_for_store(environment: RankEnvironment) -> None:
    """Wait until the store accepts connections. Raises `RunFailed` when it does not."""
    # torch's own client would report the failure with a page of C++ frames.
    seconds = LAUNCHER_SECONDS if environment.launcher_hosts_store else CONNECT_SECONDS
    failure = OSError()

    def reached() -> bool:
        nonlocal failure
        try:
            socket.create_connection((environment.address, environment.port), seconds).close()
        except OSError as error:
            failure = error
            return False
        return True

    if not poll(reached, seconds):
        raise _store_failure(environment, failure)


def _store_failure(environment: RankEnvironment, error: Exception) -> RunFailed:
    """Return the error for a store that cannot be opened or reached."""
    advice = (
        "check that the launcher is running, or give its address with --local-addr"
        if environment.launcher_hosts_store
        else "use another port, or correct the address"
    )
    return RunFailed(
        f"`MASTER_ADDR`:`MASTER_PORT` must be an address where the processes can meet, but "
        f"{environment.address}:{environment.port} cannot be {'opened' if environment.hosts_store else 'reached'} "
        f"({' '.join(str(error).split())[:200]}); {advice}"
    )
