"""SIGINT and SIGTERM: the first asks the training loop to save and stop, the second ends the process at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn

from runner.errors import ForcedStop, Interrupted


class StopRequest:
    """Handler of both signals while entered. `signal_number` is the signal that was received, or None.

    Python delivers signals to the main thread only; entered in another thread, it catches none.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # An ignored signal stays ignored: nohup, and `&` in scripts, keep a run alive this way.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def requested(self, step: int) -> int | None:
        """Return the signal that this process received, or None; the step does not matter."""
        return self.signal_number

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None:
            raise ForcedStop(number, "stopped at once by a second signal; the last checkpoint is intact")
        self.signal_number = number


@contextmanager
def interruptible(message: str) -> Iterator[None]:
    """Raise `Interrupted` with a message at the first of both signals while entered; a `StopRequest` inside overrides it."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise Interrupted(number, message)

    # An ignored signal stays ignored, as in `StopRequest`.
    caught = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, stop) for number in caught}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
