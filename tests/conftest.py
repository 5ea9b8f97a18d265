"""Guards for every test: nothing may leak into the next one."""

from __future__ import annotations

import compileall
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch is imported: on small tensors and busy cores a second thread costs a hundred times what it saves.
os.environ["OMP_NUM_THREADS"] = "1"

THEIRS = ("PYTEST_CURRENT_TEST", "TORCHINDUCTOR_", "_TORCHINDUCTOR_", "_RJEM_MALLOC_CONF", "KMP_")
"""Set by pytest for every test, by torch when its first optimizer is made and when it compiles, by polars, and by scikit-learn."""


SOURCE = Path(__file__).parents[1] / "src"


def pytest_configure(config: pytest.Config) -> None:
    """Compile the runner once. Where Python may not write bytecode, each process that a test starts would do it (0.5 s)."""
    if not hasattr(config, "workerinput"):  # the workers of pytest-xdist start later
        compileall.compile_dir(SOURCE, quiet=2)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(THEIRS)}


@pytest.fixture(autouse=True)
def _nothing_leaks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment and the signal handlers are as before, or the test fails."""
    environment = _environment()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    monkeypatch.undo()
    assert _environment() == environment, "the test leaves the environment changed"
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)], "signal handlers leak"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave tests of half a minute to `make test-faults`, where a shorter one covers most of the same."""
    if "EVERY_TEST" not in os.environ:
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes long: make test-faults"))
