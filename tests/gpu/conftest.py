"""Preparation of the environment before CUDA starts, and of the folder and the warnings of each test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpu.devices import HAS_GPU, REHEARSAL

if HAS_GPU or REHEARSAL:
    # cuBLAS reads the first one once. torch sets the second one when CUDA starts, which would look like a leak of a test.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let warnings of drivers and of torch's prototypes be shown, not fail a test: time on a GPU is short.

    A step that should be captured and is not is an error.
    """
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default", "error:the run is slower than it could be"))
