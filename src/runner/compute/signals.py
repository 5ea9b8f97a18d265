"""SIGINT and SIGTERM: the first asks the loop to save and stop, the second leaves at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn

from runner.errors import ForcedStop, Interrupted


class StopRequest:
    """While entered, catches the two signals; `signal_number` is the one that came, or None.

    Only a main thread can catch signals; in any other the request never comes.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # A signal that is ignored stays ignored: that is how nohup and `&` in scripts keep a run alive.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._caught)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self, step: int) -> int | None:
        """The signal that came, or None; of one process, at whatever step."""
        return self.signal_number

    def _caught(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None:
            raise ForcedStop(number, "stopped at once by a second signal; the last checkpoint is intact")
        self.signal_number = number


@contextmanager
def interruptible(said: str) -> Iterator[None]:
    """While entered, both signals raise `Interrupted` at once, but for whoever enters a `StopRequest`; `said` is what is told."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise Interrupted(number, said)

    # One that is ignored stays ignored, as above.
    caught = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in caught}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
