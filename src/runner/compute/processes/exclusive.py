"""One run at a time in a process: torch's random streams, thread settings and Hydra's state belong to the process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from runner.errors import RunnerError

_active: dict[int, object] = {}
"""Process id → token of its run. A forked process inherits the entry of its parent, which is not its own."""


@contextmanager
def only_run() -> Iterator[None]:
    """Mark this process as busy. Raises `RunnerError` if a run, a sweep or a verb is active in it, in any thread."""
    process, token = os.getpid(), object()
    if _active.setdefault(process, token) is not token:  # one step, so that of two threads only one succeeds
        raise RunnerError(
            "this process must run one thing at a time, but a run is active in it; wait until it ends, or use another process"
        )
    try:
        yield
    finally:
        del _active[process]
