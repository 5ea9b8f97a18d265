"""Sweeps from Python: the results of their trials, compared with single runs, and what is reported."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

import runner
from runner import cli

SMALL = ["data=line", "data.rows=30", "data.standardize=true", "device=cpu", "train.steps=20", "optimizer.lr=0.1"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def manifest(directory: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(directory) / "sweep.json").read_text())
    return found


def states(directory: str) -> list[str]:
    return [member["state"] for member in manifest(directory)["members"]]


def test_trial_317_of_512_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    rates = [f"{1 + i}e-3" for i in range(512)]
    rates[317] = "-3"
    assert cli.main(["-m", *SMALL[:-1], f"optimizer.lr={','.join(rates)}"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert line.startswith("error: trial 317: `optimizer.lr` must be a finite number from 0 to 1e+38, got -3")


def test_results_seeds_and_audit() -> None:
    directory, results = runner.multirun(
        None, [*SMALL[:-1], "optimizer.lr=0.1,1e30", "seeds=3", "sweep.audit=2", "run_dir=s"]
    )
    assert [member.values for member in results.members] == [
        {"optimizer.lr": lr, "seed": seed} for lr in (0.1, 1e30) for seed in range(3)
    ]
    assert states("s") == ["finished"] * 3 + ["failed"] * 3
    assert "training diverged at step" in manifest("s")["members"][3]["reason"]
    with (directory / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    for number in range(3):
        summary = json.loads((directory / str(number) / "summary.json").read_text())
        assert float(rows[number]["train/rmse"]) == summary["metrics"]["train/rmse"]
        single = runner.run(None, [*SMALL[:-1], "optimizer.lr=0.1", f"seed={number}", "record.plots=false"])
        # Under vmap float32 sums may be added in another order: the promise is 1e-4.
        assert single.summary["parameters"]["weight"][0] == pytest.approx(summary["parameters"]["weight"][0], rel=1e-4)
    assert 0 <= manifest("s")["audit"]["largest_difference"] <= 1e-4
    assert len(manifest("s")["audit"]["members"]) == 2
    assert (directory / "plots" / "optimizer.lr.png").is_file()


def test_programs_are_split_if_memory_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    directory, results = runner.multirun(None, [*SMALL, "seeds=6", "sweep.memory_gib=1e-5", "run_dir=s"])
    lanes = [json.loads((directory / str(n) / "run.json").read_text())["lanes"] for n in range(6)]
    assert 1 < max(lanes) < 6
    assert all(member.state == "finished" for member in results.members)


def test_trials_that_cannot_be_vmapped_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    runner.multirun(None, [*SMALL, "model=mlp", "model.dropout=0.5", "seeds=2", "run_dir=s"])
    out = capsys.readouterr().out
    assert "trial 0 and others like it are trained one by one: dropout draws from one stream" in out
    assert states("s") == ["finished", "finished"]
