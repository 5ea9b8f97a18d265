"""Least squares on several processes: the triangle of all rows is that of one process, and so is the answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch

import runner
from runner.runs.sinks.jsonl import read_rows

QUICK = ["device=cpu", "record.plots=false", "dtype=float64", "train.steps=60"]
RUNS = {
    "lstsq": ["data=line", "data.rows=37", "data.features=3", "optimizer=lstsq"],
    "ridge": ["data=line", "data.rows=37", "optimizer=lstsq", "optimizer.weight_decay=0.5"],
    "lm": ["data=curve", "data.expression=3*exp(-0.7*x) + 1", "data.stop=5", "data.rows=37", "model=formula", "model.expression=a*exp(-b*x) + d", "optimizer=lm"],
    "wide": ["data=line", "data.rows=5", "data.features=7", "optimizer=lstsq"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def trained(size: int, *more: str) -> list[dict[str, Any]]:
    """Summaries of the runs, one after the other on the same processes, with the last loss before an update."""

    def work(rank: int) -> list[str]:
        torch.set_num_threads(1)
        return [str(runner.run(None, [*QUICK, *RUNS[name], *more]).directory) for name in RUNS]

    found = []
    for path in map(Path, processes.values(size, work)[0]):
        summary = json.loads((path / "summary.json").read_text())
        summary["metrics"]["loss before the last update"] = read_rows(path / "metrics.jsonl")[-1]["train/loss"]
        found.append(summary)
    return found


@pytest.mark.parametrize("size", [2, 3])
def test_fast_agrees_with_one_process(size: int) -> None:
    """37 rows are uneven on both; of 5 rows a process has fewer than there are parameters."""
    for name, one, other in zip(RUNS, trained(1), trained(size, "strategy=ddp"), strict=True):
        assert (other["steps"], other["stopped_early"], other["converged"]) == (one["steps"], True, name != "wide"), (
            name
        )
        for what in ("parameters", "standard_errors"):
            for parameter, value in one.get(what, {}).items():
                # The bar of the promise, in units of the largest: the triangles of parts are rounded otherwise.
                largest = np.abs(value).max()
                assert np.abs(np.asarray(other[what][parameter]) - value).max() <= 1e-12 * largest, (name, what)
        for metric, value in one["metrics"].items():
            # As above; what is exactly solved leaves rounding.
            assert other["metrics"][metric] == pytest.approx(value, rel=1e-11, abs=1e-11), (name, metric)


def test_exact_gives_the_same_bits_on_1_2_and_4_processes() -> None:
    hashes = [[found["parameters_sha256"] for found in trained(size, "strategy.reduction=exact")] for size in (1, 2, 4)]
    assert hashes[0] == hashes[1] == hashes[2]
    assert len(set(hashes[0])) == len(RUNS)
