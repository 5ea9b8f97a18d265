"""Guards for every test: nothing may leak into the next one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _nothing_leaks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment and the signal handlers are as before, or the test fails."""
    environment = dict(os.environ)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    monkeypatch.undo()
    after = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    before = {name: value for name, value in environment.items() if name != "PYTEST_CURRENT_TEST"}
    assert after == before, "the test leaves the environment changed"
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)], "signal handlers leak"
