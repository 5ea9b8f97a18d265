"""Several targets on several processes: every strategy gives the answer of one process."""

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

RUN = ["device=cpu", "record.plots=false", "dtype=float64", "data=csv", "data.path=t.csv", "data.target=[u,v]"]
RUN += ["data.standardize=true", "data.split.test=7", "optimizer=adam", "optimizer.lr=0.01", "train.steps=12"]
RUN += ["data.weight=w", "train.batch_size=9"]
NETWORK = ["model=mlp", "model.widths=[6,4]"]
RUNS = {
    "ddp": NETWORK,
    "fsdp": NETWORK,
    "tensor": NETWORK,
    "pipeline": [*NETWORK, "train.batch_size=8"],
    "tensor of a linear model": ["model=linear"],
    "exact": [*NETWORK, "strategy.reduction=exact"],
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [f"{i / 10},{i % 7},{math.sin(i / 5)},{math.cos(i / 3) * 100 + i},{i % 3 + 1}" for i in range(37)]
    (tmp_path / "t.csv").write_text("\n".join(["x,z,u,v,w", *lines]) + "\n")


def trained(size: int) -> dict[str, dict[str, Any]]:
    """Return the summaries of all runs, done in sequence."""

    strategies = [[f"strategy={name.split()[0]}"] * (size > 1 and name != "exact") for name in RUNS]
    runs = [[*RUN, *options, *strategy] for options, strategy in zip(RUNS.values(), strategies, strict=True)]

    def work(rank: int) -> list[str]:
        torch.set_num_threads(1)
        return [str(runner.run(None, run).directory) for run in runs]

    processes.merge(runs)
    paths = map(Path, processes.values(size, work)[0])
    return {name: json.loads((path / "summary.json").read_text()) for name, path in zip(RUNS, paths, strict=True)}


def test_every_strategy_gives_the_answer_of_one_process() -> None:
    alone, together = trained(1), trained(2)
    for name, one in alone.items():
        other = together[name]
        for parameter, value in one["parameters"].items():
            # Sums in another order over 12 steps; Adam divides by square roots of small numbers.
            difference = np.abs(np.asarray(other["parameters"][parameter]) - value).max()
            assert difference <= 1e-10 * np.abs(value).max(), (name, parameter)
        assert set(other["metrics"]) == set(one["metrics"])
        for metric, value in one["metrics"].items():
            assert other["metrics"][metric] == pytest.approx(value, rel=1e-9, abs=1e-12), (name, metric)
    assert together["exact"]["parameters_sha256"] == alone["exact"]["parameters_sha256"]
    assert "test/rmse/v" in alone["ddp"]["metrics"]
