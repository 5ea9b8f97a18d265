"""`loss=custom`: losses of a user's own against built-in ones, closed forms and scikit-learn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import QuantileRegressor

import runner
from runner.cli import main
from runner.errors import ConfigError, RunFailed
from runner.training.run import Run

QUICK = ["device=cpu", "device.threads=1", "dtype=float64", "record.plots=false", "record.sinks=[jsonl]"]
TABLE = [*QUICK, "data=csv", "data.path=t.csv", "data.target=y", "data.features=[x]", "data.split.test=0"]
QUANTILE = ["loss=custom", "loss.target=my_lab.losses:Quantile"]
SMALLER_STEPS = [
    "optimizer=adam", "optimizer.lr=0.05", "optimizer.betas=[0.9, 0.95]", "schedule=cosine", "schedule.final_factor=1e-6",
    "train.steps=1000",
]  # fmt: skip
ROWS = 99


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNNER_TRUST", "my_lab,torch")


def table() -> dict[str, np.ndarray]:
    """Write t.csv and return its columns: noise that grows with x, weights w, and a second target z."""
    draw = np.random.default_rng(0)
    x = np.linspace(0, 2, ROWS)
    y = 1 + x + (0.5 + x) * draw.normal(size=ROWS)
    columns = {"x": x, "y": y, "w": draw.integers(1, 4, ROWS).astype(float), "z": y**2}
    np.savetxt("t.csv", np.stack([*columns.values()], 1), "%.17g", ",", header=",".join(columns), comments="")
    return columns


def run(*overrides: str) -> Run:
    return runner.run(None, [*TABLE, *overrides])


def numbers(summary: Any) -> np.ndarray:
    return np.concatenate([np.ravel(value) for value in summary["parameters"].values()])


def summary(path: Path) -> Any:
    return json.loads((path / "summary.json").read_text())


@pytest.mark.parametrize(("q", "weight"), [(0.9, "null"), (0.5, "w")])
def test_the_best_constant_is_the_quantile_of_the_targets(q: float, weight: str) -> None:
    columns = table()
    model = ["model=formula", "model.expression=a + 0*x", "model.start={a: 0}", f"data.weight={weight}"]
    found = run(*QUANTILE, f"loss.kwargs.q={q}", *model, *SMALLER_STEPS).summary["parameters"]["a"]
    weights = None if weight == "null" else columns["w"]
    nearest = columns["y"][np.abs(columns["y"] - found).argmin()]
    assert nearest == np.quantile(columns["y"], q, weights=weights, method="inverted_cdf")
    assert found == pytest.approx(nearest, abs=1e-3)  # the targets are further apart


def test_a_line_is_that_of_scikit_learns_quantile_regression() -> None:
    columns = table()
    made = run(*QUANTILE, "loss.kwargs={q: 0.8}", *SMALLER_STEPS)
    known = QuantileRegressor(quantile=0.8, alpha=0).fit(columns["x"][:, None], columns["y"])
    least = np.mean(np.maximum(*(s * (columns["y"] - known.predict(columns["x"][:, None])) for s in (0.8, -0.2))))
    # The least loss is unique and flat around it: a distance of 1e-4 costs less than this.
    assert made.summary["metrics"]["train/loss"] == pytest.approx(least, rel=1e-5)
    assert made.summary["metrics"]["train/loss"] >= least * (1 - 1e-12)


WAYS = {
    "accumulated": ["train.batch_size=32", "train.accumulate=3", "data.weight=w"],
    "exact": ["strategy.reduction=exact", "update=manual"],
    "line search": ["optimizer=lbfgs", "train.steps=2"],
    "mixed precision": ["dtype=float32", "amp=bfloat16"],
}


@pytest.mark.parametrize("way", WAYS)
def test_torchs_huber_loss_is_the_built_in_one(way: str) -> None:
    table()
    common = ["train.steps=8", "optimizer.lr=0.05", "data.split.valid=20", "train.eval_every_steps=4", *WAYS[way]]
    own = ["loss=custom", "loss.target=torch.nn.modules.loss:HuberLoss", "loss.kwargs={delta: 0.7}"]
    made, known = run(*own, *common), run("loss=huber", "loss.delta=0.7", *common)
    # The built-in mean over rows is one kernel, which may add in another order.
    tolerance = 1e-6 if way == "mixed precision" else 1e-13
    np.testing.assert_allclose(numbers(made.summary), numbers(known.summary), rtol=tolerance)
    metrics = known.summary["metrics"]
    assert made.summary["metrics"] == pytest.approx(metrics, rel=tolerance)
    assert "valid/loss" in metrics


def test_a_loss_of_rows_is_that_of_their_numbers() -> None:
    table()
    both = ["data.target=[y, z]", "train.steps=20", "data.weight=w", "data.split.valid=20"]
    first, second = (run("loss=custom", f"loss.target=my_lab.losses:{name}", *both) for name in ("Quantile", "OfRow"))
    np.testing.assert_allclose(numbers(first.summary), numbers(second.summary), rtol=1e-13)
    assert first.summary["metrics"] == pytest.approx(second.summary["metrics"], rel=1e-13)


def test_a_number_keeps_its_digits_in_float64() -> None:
    y = table()["y"]
    made = run(*QUANTILE, "loss.kwargs={q: 0.9}", "model.init=zeros", "train.steps=1", "optimizer.lr=0").summary
    assert made["metrics"]["train/loss"] == pytest.approx(np.mean(np.maximum(0.9 * y, -0.1 * y)), rel=1e-14)


@pytest.mark.parametrize("name", ["OfRow", "Branching"])
def test_members_of_a_sweep_are_single_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    table()
    common = [*TABLE, "loss=custom", f"loss.target=my_lab.losses:{name}", "data.weight=w", "train.steps=20"]
    path, results = runner.multirun(None, [*common, "optimizer.lr=0.01,0.5", "run_dir=sweep"])
    assert results.counts == "2 trials"
    for member, lr in enumerate((0.01, 0.5)):
        single = runner.run(None, [*common, f"optimizer.lr={lr}"])
        np.testing.assert_allclose(numbers(summary(path / str(member))), numbers(single.summary), rtol=1e-12)
    alone = "vmap refuses its model or loss" in capsys.readouterr().out
    assert alone == (name == "Branching")


def test_two_processes_and_a_resumed_run_have_the_bits_of_one() -> None:
    table()
    common = [
        *TABLE, *QUANTILE, "loss.kwargs={q: 0.3}", "metrics=[rmse, my_lab.metrics:of_row]", "data.weight=w", "data.split.valid=20",
        "optimizer=adam", "train.batch_size=32", "strategy.reduction=exact",
    ]  # fmt: skip
    whole = runner.run(None, [*common, "train.steps=30"]).summary
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-m", "runner", *common, "launch.processes=2", "train.steps=20", "run_dir=two"]
    subprocess.run(command, check=True, env=environ, capture_output=True)
    resumed = runner.run(None, ["resume=two", "train.steps=30", "launch.processes=1", "strategy=single"]).summary
    assert resumed["parameters_sha256"] == whole["parameters_sha256"]
    # Torch's sums depend on where in memory the numbers are.
    assert resumed["metrics"] == pytest.approx(whole["metrics"], rel=1e-13)
    assert "valid/of_row" in whole["metrics"]


def test_a_resumed_run_asks_for_trust_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table()
    made = run(*QUANTILE, "metrics=[my_lab.metrics:of_row]", "train.steps=3", "run_dir=run")
    record = json.loads((made.directory / "run.json").read_text())["code"]
    assert set(record) == {"my_lab.losses:Quantile", "my_lab.metrics:of_row"}
    monkeypatch.delenv("RUNNER_TRUST")
    assert main(["resume=run", "train.steps=6"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "`loss.target`=my_lab.losses:Quantile is code" in first
    assert "`metrics`=my_lab.metrics:of_row is code" in second
    assert main(["resume=run", "train.steps=6", "--trust", "my_lab"]) == 0


def test_a_wrong_shape_in_training_ends_the_run() -> None:
    table()
    with pytest.raises(RunFailed) as error:
        run("loss=custom", "loss.target=my_lab.losses:Shrinking", "run_dir=run")
    assert str(error.value) == (
        "`loss.target`=my_lab.losses:Shrinking must return a value for each row, [rows, targets], [rows] or [rows, 1], here "
        "[99, 1], got [10, 1]; take no mean, and add nothing up but the targets of a row"
    )
    assert json.loads(Path("run/run.json").read_text())["reason"] == str(error.value)


MISTAKES = {
    "Mean": "must return a value for each row, [rows, targets], [rows] or [rows, 1], here [4, 1], got one number, which cannot be "
    "weighted and divided into portions; leave out its mean or sum",
    "Squeezed": "must return a value for each row, [rows, targets], [rows] or [rows, 1], here [1, 1], got one number",
    "Scaled": "must return values of each row alone, but they depend on the other rows; use no mean, sum or order over the rows",
    "Detached": "must depend on the prediction, but has no gradient by it; compute without no_grad, detach and rounding",
    "Noisy": "must return the same values for the same rows, but a second call has others; use no random numbers, keep nothing",
    "InPlace": "must leave its arguments as they are, but it changes them in place; use operations without a trailing _",
    "Root": "must have finite gradients, got nan for the prediction",
    "Infinite": "must return finite numbers, got inf for the prediction",
    "Trained": "must have no parameters, which nothing would train, got scale; register numbers with register_buffer",
    "Exchanged": "must take the prediction first and the target second, got (target, prediction); exchange them",
    "Failing": "its forward pass failed in ",
    "Whole": "must return a value for each row, [rows, targets], [rows] or [rows, 1], here [4, 1], got int64 numbers; convert them",
    "relu": "must be a subclass of torch.nn.Module, got a function; name a subclass of torch.nn.Module",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_loss_that_cannot_be_used_is_refused(name: str) -> None:
    table()
    with pytest.raises(ConfigError) as error:
        run("loss=custom", f"loss.target=my_lab.losses:{name}", "run_dir=run")
    (problem,) = error.value.problems
    assert problem.startswith(f"`loss.target`=my_lab.losses:{name}")
    assert MISTAKES[name] in problem
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["loss.kwargs={p: 1}"], "`loss.kwargs.p` must be an argument of my_lab.losses:Quantile; it has q"),
        (
            ["loss.target=torch.nn.modules.loss:L1Loss", "loss.kwargs={reduction: mean}"],
            "`loss.kwargs.reduction` must be none, because weights and portions need the loss of each row, got mean; remove it",
        ),
        (
            ["loss.target=my_lab.losses.Quantile"],
            "`loss.target` must be package.module:Name, such as my_lab.losses:Quantile, got 'my_lab.losses.Quantile'; "
            "write my_lab.losses:Quantile",
        ),
        (
            ["optimizer=lm", "model.init=zeros"],
            "`loss` must be mse with `optimizer`=lm, which minimizes the sum of squares; use loss=mse or optimizer=adam",
        ),
    ],
)
def test_wrong_values_are_refused(overrides: list[str], problem: str) -> None:
    table()
    with pytest.raises(ConfigError) as error:
        runner.run(None, [*TABLE, *QUANTILE[: 2 - any("target" in text for text in overrides)], *overrides])
    assert list(error.value.problems) == [problem]
