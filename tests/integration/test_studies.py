"""Experiments that are sweeps: claims of their READMEs, with fewer trials, against answers that need no training."""

from __future__ import annotations

import json
import math
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

import runner
from runner.config.compose import compose
from runner.data import dataset
from runner.sweep.results import Results

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
QUICK = ["device=cpu", "device.threads=1"]
SPACE = [
    "hydra/sweeper=optuna",
    "hydra.sweeper.n_trials=8",
    "hydra.sweeper.n_jobs=4",
    "model.dropout=0",
    "train.epochs=5",
    "optimizer.lr=tag(log, interval(1e-4, 1e-2))",
    "optimizer.weight_decay=tag(log, interval(1e-3, 1))",
    "model.widths=choice([16],[32])",
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# ------------------------------------------------------------------------------------------------------- learning_rate


def study() -> dict[str, Any]:
    return runpy.run_path(str(EXPERIMENTS / "learning_rate/study.py"))


def two_over_the_largest_curvature() -> float:
    """Return 2/λmax of mean((w·x + b - y)²), whose Hessian is 2·[[mean x², mean x], [mean x, 1]]."""
    config = compose(["+experiment=linreg"]).config
    rows = dataset.build(config.data, config.seed, torch.float64, torch.device("cpu")).parts["train"]
    square, mean = float(rows.all.numbers.square().mean()), float(rows.all.numbers.mean())
    trace, determinant = 2 * (square + 1), 4 * (square - mean**2)
    return 4 / (trace + math.sqrt(trace**2 - 4 * determinant))


def test_the_predicted_limit_is_two_over_the_largest_curvature() -> None:
    # Two ways to compute an eigenvalue in float64; the condition number is 11,000.
    assert study()["limit"]() == pytest.approx(two_over_the_largest_curvature(), rel=1e-11)


def test_training_diverges_above_the_predicted_limit() -> None:
    """16 rates 0.2 % apart, 3 seeds: no run diverges below the limit, every run does from the next rate on.

    Below the limit no part of the loss grows. At a rate (1 + e) times the limit the steepest part grows by (1 + 2·e)² per
    step: by exp(13) in 1,800 steps at 0.09 % above, the first such rate here. Seed 0 starts only 0.002 from the best slope,
    so it needs a factor of exp(2) before the loss rises at all.
    """
    step, first = 7e-7, 3.59e-4
    overrides = [*QUICK, f"optimizer.lr=range({first},{first + 15.5 * step},{step})", "seeds=3", "dtype=float64"]
    directory, results = runner.multirun("linreg", overrides)
    limit, found = two_over_the_largest_curvature(), study()["find"](directory, results)
    rates = [first + k * step for k in range(16)]
    assert found.stable == pytest.approx(max(rate for rate in rates if rate < limit), rel=1e-9)  # rates are decimals
    assert found.unstable == pytest.approx(min(rate for rate in rates if rate > limit), rel=1e-9)


def test_a_failed_run_counts_as_diverged_and_one_at_a_low_rate_does_not() -> None:
    directory, results = runner.multirun("linreg", [*QUICK, "optimizer.lr=1e-5,1e-4,1e-3", "seeds=2"])
    assert [member.state for member in results.members] == ["finished"] * 4 + ["failed"] * 2
    found = study()["find"](directory, results)
    assert (found.stable, found.unstable) == (1e-4, 1e-3)


def test_the_plot_shows_the_loss_and_the_predicted_limit() -> None:
    from runner.sweep.plots import draw

    _, results = runner.multirun("linreg", [*QUICK, "optimizer.lr=3e-4,4e-4", "seeds=2", "train.steps=20"])
    png = study()["plot"](results)
    assert png.startswith(b"\x89PNG")
    assert png != draw(Results(**{**vars(results), "metric": "train/loss"}))["optimizer.lr"]


# ---------------------------------------------------------------------------------------------------------- optuna_mlp


def trials(directory: Path) -> list[tuple[dict[str, Any], dict[str, float]]]:
    """Return values and metrics of every trial, in the order of their numbers."""
    members = json.loads((directory / "sweep.json").read_text())["members"]
    summaries = [json.loads((directory / str(m["number"]) / "summary.json").read_text()) for m in members]
    return [(m["values"], summary["selected"]["metrics"]) for m, summary in zip(members, summaries, strict=True)]


def test_a_repeated_search_has_the_same_trials_and_reports_the_best_one() -> None:
    first, results = runner.multirun("diabetes", [*QUICK, *SPACE])
    again, _ = runner.multirun("diabetes", [*QUICK, *SPACE])
    found = trials(first)
    assert found == trials(again)
    assert len({json.dumps(values) for values, _ in found}) == len(found) == 8
    assert results.metric == "valid/rmse"
    best, _ = min(found, key=lambda trial: trial[1]["valid/rmse"])
    overrides = runpy.run_path(str(EXPERIMENTS / "optuna_mlp/compare.py"))["best"](first)
    assert f"optimizer.lr={best['optimizer.lr']}" in overrides
    assert "model.dropout=0" in overrides


def test_the_comparison_uses_the_same_rows_for_network_and_line() -> None:
    """A linear model trained to convergence is the closed-form line, so its test rmse is the same on every seed."""
    compare = runpy.run_path(str(EXPERIMENTS / "optuna_mlp/compare.py"))
    linear = ["+experiment=diabetes", *QUICK, "model=linear", "optimizer=lbfgs", "optimizer.lr=1", "dtype=float64"]
    whole = ["train.batch_size=null", "train.epochs=20", "train.early_stopping.patience=null"]
    # L-BFGS ends when the loss changes by less than 1e-9, so the parameters are off by about the root of that.
    members = compare["trained"]([*linear, *whole], 2)
    assert compare["measured"](members) == pytest.approx(compare["line"](members), rel=1e-4)
