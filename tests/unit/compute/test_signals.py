"""The first signal requests a stop, the second stops at once, and the previous handlers are restored."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from runner.compute.signals import StopRequest
from runner.errors import Interrupted

BOTH = (signal.SIGINT, signal.SIGTERM)


def _send(number: int) -> None:
    """Send a signal to this process; Python handles it in the main thread before the next line."""
    os.kill(os.getpid(), number)


def _run(*signals: int, error: Exception | None = None) -> StopRequest:
    """Imitate a run that receives signals and then ends, with or without an error."""
    with StopRequest() as stop:
        for number in signals:
            _send(number)
        if error is not None:
            raise error
    return stop


def _handlers() -> list[object]:
    return [signal.getsignal(number) for number in BOTH]


@pytest.mark.parametrize("number", BOTH)
def test_the_first_signal_is_noted_and_raises_nothing(number: int) -> None:
    with StopRequest() as stop:
        assert stop.signal_number is None
        _send(number)
        assert stop.signal_number == number


@pytest.mark.parametrize("first", BOTH)
@pytest.mark.parametrize(("second", "code", "name"), [(signal.SIGINT, 130, "SIGINT"), (signal.SIGTERM, 143, "SIGTERM")])
def test_the_second_signal_stops_at_once(first: int, second: int, code: int, name: str) -> None:
    before = _handlers()
    with pytest.raises(Interrupted) as caught:
        _run(first, second)
    assert caught.value.exit_code == code
    assert str(caught.value) == f"stopped at once by a second signal; the last checkpoint is intact ({name})"
    assert _handlers() == before


def test_the_previous_handlers_are_restored_after_an_error() -> None:
    seen: list[int] = []
    before = [signal.signal(number, lambda caught, frame: seen.append(caught)) for number in BOTH]
    try:
        with pytest.raises(ValueError, match="in the run"):
            _run(signal.SIGTERM, error=ValueError("in the run"))
        assert seen == []
        for number in BOTH:
            _send(number)
        assert seen == list(BOTH)
    finally:
        for number, handler in zip(BOTH, before, strict=True):
            signal.signal(number, handler)


def test_a_second_run_in_the_process_starts_without_a_request() -> None:
    assert _run(signal.SIGINT).signal_number == signal.SIGINT
    assert _run().signal_number is None
    assert _run(signal.SIGTERM).signal_number == signal.SIGTERM


def test_in_another_thread_nothing_is_caught() -> None:
    before = _handlers()
    seen: list[object] = []

    def run() -> None:
        with StopRequest() as stop:
            seen.extend([stop.signal_number, _handlers()])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [None, before]
    assert _handlers() == before
