"""Least-squares solvers on several processes: the triangular factor and the answer are those of one process."""

from __future__ import annotations

import json
import math
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
    "weighted": ["data=csv", "data.path=t.csv", "data.target=y", "data.features=[x]", "data.sigma=s", "model=formula", "model.expression=a*exp(-b*x) + d", "optimizer=lm"],
    "saddle": ["data=curve", "data.expression=2*exp(-0.5*x) + 5*exp(-3*x)", "data.stop=3", "data.rows=37", "data.noise=0.01", "model=formula", "model.expression=a*exp(-b*x) + c*exp(-d*x)", "model.start={a: 1, b: 1, c: 1, d: 1}", "optimizer=lm"],
    "bounded lm": ["data=curve", "data.expression=3*exp(-0.7*x) + 1", "data.stop=5", "data.rows=37", "model=formula", "model.expression=a*exp(-b*x) + d", "model.bounds={b: [0.8, 3], a: [0, null]}", "model.start.b=1", "optimizer=lm"],
    "weighted bounded lm": ["data=csv", "data.path=t.csv", "data.target=y", "data.features=[x]", "data.sigma=s", "model=formula", "model.expression=a*exp(-b*x) + d + g*x", "model.start.b=1", "model.bounds={b: [0.8, 3], a: [0, null]}", "model.fixed.g=0.01", "optimizer=lm"],
    "weighted bounded momentum": ["data=csv", "data.path=t.csv", "data.target=y", "data.features=[x]", "data.sigma=s", "model=formula", "model.expression=a*exp(-b*x) + d", "model.start.b=1", "model.bounds={b: [0.8, 3]}", "model.fixed.d=0.05", "optimizer=momentum", "optimizer.lr=0.05", "update=optimizer"],
    "bounded adam": ["data=curve", "data.expression=3*exp(-0.7*x) + 1", "data.stop=5", "data.rows=37", "model=formula", "model.expression=a*exp(-b*x) + d", "model.bounds={b: [0.8, 3]}", "model.start.b=1", "model.fixed.d=1.1", "optimizer=adam", "optimizer.lr=0.1", "update=manual"],
    "several targets": ["data=csv", "data.path=t.csv", "data.target=[y,v]", "data.features=[x]", "data.weight=s", "optimizer=lstsq"],
    "shared parameters": ["data=csv", "data.path=t.csv", "data.target=[y,v]", "data.features=[x]", "model=formula", 'model.expression={y: "a*exp(-b*x) + d", v: "a*x + c"}', "optimizer=lm"],
    "wide": ["data=line", "data.rows=5", "data.features=7", "optimizer=lstsq"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [
        f"{i / 10},{i % 7 / 10 + 0.1},{3 * math.exp(-0.07 * i) + (i * i) % 13 / 100},{0.3 * i + (i * i) % 11 / 10}"
        for i in range(37)
    ]
    (tmp_path / "t.csv").write_text("\n".join(["x,s,y,v", *lines]) + "\n")


def trained(size: int, *overrides: str) -> list[dict[str, Any]]:
    """Return the summaries of all runs, done in sequence, with the loss before the last update and the residuals."""

    runs = [[*QUICK, *own, *overrides] for own in RUNS.values()]

    def work(rank: int) -> list[str]:
        torch.set_num_threads(1)
        return [str(runner.run(None, run).directory) for run in runs]

    processes.merge(runs)
    summaries = []
    for path in map(Path, processes.values(size, work)[0]):
        summary = json.loads((path / "summary.json").read_text())
        summary["metrics"]["loss before the last update"] = read_rows(path / "metrics.jsonl")[-1]["train/loss"]
        summary["residuals"] = (path / "residuals.csv").read_text()
        summaries.append(summary)
    return summaries


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.long)])
def test_fast_agrees_with_one_process(size: int) -> None:
    """37 rows divide unevenly on both; with 5 rows a process has fewer rows than there are parameters."""
    for name, one, other in zip(RUNS, trained(1), trained(size, "strategy=ddp"), strict=True):
        solved = name not in ("bounded adam", "weighted bounded momentum")
        ends = (one["steps"], solved, solved)
        assert (other["steps"], other["stopped_early"], other["converged"]) == ends, name
        assert other.get("at_bounds") == one.get("at_bounds") == ({"b": "lower"} if "bounded" in name else None), name
        assert ("undetermined" in other, other.get("undetermined")) == (name == "wide", one.get("undetermined"))
        for kind in ("parameters", "standard_errors", "coefficients", "covariance"):
            for parameter, value in one.get(kind, {}).items():
                # Relative to the largest: the factors of the parts are rounded differently. A covariance is a square.
                largest = np.abs(value).max()
                assert (
                    np.abs(np.asarray(other[kind][parameter]) - value).max()
                    <= (2e-12 if kind == "covariance" else 1e-12) * largest
                ), (name, kind)
        for metric, value in one["metrics"].items():
            # As above; an exact solution leaves only rounding.
            assert other["metrics"][metric] == pytest.approx(value, rel=1e-11, abs=1e-11), (name, metric)


def test_exact_gives_the_same_bits_on_1_2_and_4_processes() -> None:
    kinds = ("parameters_sha256", "covariance", "chi_square", "residuals", "at_bounds")
    found = [
        [[summary.get(kind) for kind in kinds] for summary in trained(size, "strategy.reduction=exact")]
        for size in (1, 2, 4)
    ]
    assert found[0] == found[1] == found[2]
    assert len({hashed for hashed, *_ in found[0]}) == len(RUNS)
