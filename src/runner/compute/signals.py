"""SIGINT and SIGTERM: the first asks the training loop to save and stop, the second ends the process at once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn, TypeVar

from runner.errors import ForcedStop, Interrupted

T = TypeVar("T")

POLL_SECONDS = 0.1
"""Time between two looks at a signal while a thread works."""

FIRST_REPORT_SECONDS = 3.0
"""Time after which work in a thread is reported; later reports come after twice, four times, … this time."""

_WORK = "runner: abandoned unless it ends"


class StopRequest:
    """Handler of both signals while entered. `signal_number` is the signal that was received first, or None.

    Python delivers signals to the main thread only; entered in another thread, it catches none.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._previous: dict[int, Any] = {}
        self._handled = False

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

    def request(self, number: int) -> None:
        """Request a stop as if this process had received a signal. It does not count as the first of two."""
        self.signal_number = self.signal_number or number

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._handled:
            raise ForcedStop(number, "stopped at once by a second signal; the last checkpoint is intact")
        self._handled = True
        self.request(number)


class Abandoned(Exception):
    """Work in a thread is not waited for, because a signal was received."""

    def __init__(self, signal_number: int) -> None:
        self.signal_number = signal_number
        super().__init__()


def watched(work: Callable[[], T], stop: Callable[[], int | None], report: Callable[[float], None]) -> T:
    """Return the result of `work`, done in a thread: Python handles a signal only between two operations of the main thread.

    `report` is called now and then with the seconds so far. Raises what the work raises, and `Abandoned` as soon as `stop`
    returns a signal. The thread then goes on until it or the process ends, so what it changes must not be used any more.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name=_WORK, daemon=True)
    began, due = time.monotonic(), FIRST_REPORT_SECONDS
    thread.start()
    while True:
        thread.join(POLL_SECONDS)
        if not thread.is_alive():
            break
        signal_number = stop()
        if signal_number is not None:
            raise Abandoned(signal_number)
        seconds = time.monotonic() - began
        if seconds >= due:
            report(seconds)
            due *= 2
    if errors:
        raise errors[0]
    return results[0]


def has_abandoned_work() -> bool:
    """Return whether a thread of `watched` is still working."""
    return any(thread.name == _WORK for thread in threading.enumerate())


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
