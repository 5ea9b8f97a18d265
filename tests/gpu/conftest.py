"""Preparation of the GPU before the first test, and of the folder and the memory for each test."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gpu.devices import HAS_GPU, REHEARSAL

if HAS_GPU or REHEARSAL:
    # cuBLAS reads the first one once. torch sets the second one when CUDA starts, which would look like a leak of a test.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run each test in an empty folder, and give its memory on the GPU back."""
    monkeypatch.chdir(tmp_path)
    yield
    if HAS_GPU:
        gc.collect()
        torch.cuda.empty_cache()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let warnings of drivers and of torch's prototypes be shown, not fail a test: time on a GPU is short.

    A step that should be captured and is not is an error.
    """
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default", "error:the run is slower than it could be"))
