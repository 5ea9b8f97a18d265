"""Strategies on GPUs, one process for each, with NCCL or RCCL."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from answers import EXPERIMENT, difference

pytestmark = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="needs two GPUs, which this machine does not have"
)

ON_GPUS = [override for override in EXPERIMENT if not override.startswith("device")] + [
    "device=auto",
    "deterministic=true",
    "train.steps=50",
]


def run(folder: Path, *overrides: str) -> dict[str, Any]:
    """Do a run on GPUs and return its summary."""
    command = [sys.executable, "-m", "runner", *ON_GPUS, *overrides, f"run_dir={folder}"]
    subprocess.run(command, check=True, timeout=300)
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


@pytest.mark.timeout(600)
def test_exact_has_the_same_bits_on_one_gpu_and_on_two(tmp_path: Path) -> None:
    one = run(tmp_path / "one", "strategy.reduction=exact")
    two = run(tmp_path / "two", "strategy.reduction=exact", "launch.processes=2")
    assert one["parameters_sha256"] == two["parameters_sha256"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "tensor", "pipeline"])
def test_fast_agrees_with_one_gpu(strategy: str, tmp_path: Path) -> None:
    run(tmp_path / "one", "dtype=float64")
    run(tmp_path / "two", "dtype=float64", f"strategy={strategy}", "launch.processes=2")
    # Sums in another order over 50 steps of float64.
    assert difference(tmp_path / "two", tmp_path / "one") < 1e-12
    record = json.loads((tmp_path / "two/run.json").read_text())
    assert (record["world_size"], record["device"]) == (2, "rocm" if torch.version.hip else "cuda")


@pytest.mark.timeout(600)
def test_one_process_on_all_gpus_agrees_with_one_gpu(tmp_path: Path) -> None:
    run(tmp_path / "one", "dtype=float64", "device.visible=[0]")
    run(tmp_path / "all", "dtype=float64", "strategy=dp")
    assert difference(tmp_path / "all", tmp_path / "one") < 1e-12  # as above
    assert json.loads((tmp_path / "all/run.json").read_text())["strategy"] == "dp"
