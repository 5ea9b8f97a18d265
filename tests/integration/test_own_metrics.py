"""`metrics`: metrics of a user's own, in files and on the console, against NumPy and scikit-learn."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_percentage_error
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import runner
from runner.cli import main
from runner.errors import ConfigError
from runner.training import metrics
from runner.training.run import Run

QUICK = ["device=cpu", "device.threads=1", "dtype=float64", "record.plots=false", "record.sinks=[jsonl]"]
TABLE = [
    *QUICK,
    "data=csv",
    "data.path=t.csv",
    "data.target=y",
    "data.features=[x]",
    "data.split.test=0",
    "data.split.valid=20",
]
RELATIVE = "metrics=[rmse, my_lab.metrics:relative]"
LEARNING = ["train.steps=20", "optimizer.lr=0.05"]
ROWS = 60


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNNER_TRUST", "my_lab")


def table() -> None:
    """Write t.csv: targets y and z above 0, and weights w."""
    draw = np.random.default_rng(0)
    x = np.linspace(0, 2, ROWS)
    y = 3 + x + 0.3 * draw.normal(size=ROWS)
    columns = {"x": x, "y": y, "w": draw.integers(1, 4, ROWS).astype(float), "z": y**2}
    np.savetxt("t.csv", np.stack([*columns.values()], 1), "%.17g", ",", header=",".join(columns), comments="")


def run(*overrides: str) -> Run:
    return runner.run(None, [*TABLE, *LEARNING, *overrides])


def rows(run: Run, part: str, *targets: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return targets [rows, targets], predictions [rows, targets] and weights [rows] of a part, from residuals.csv and t.csv."""
    with (run.directory / "residuals.csv").open() as file:
        chosen = [row for row in csv.DictReader(file) if row["part"] == part]
    names = [f"/{target}" for target in targets] or [""]
    found = (
        np.array([[float(row[f"{of}{name}"]) for name in names] for row in chosen]) for of in ("target", "prediction")
    )
    weights = np.loadtxt("t.csv", delimiter=",", skiprows=1)[:, 2]
    return *found, weights[[int(row["row"]) - 1 for row in chosen]]  # type: ignore[return-value]


def test_a_metric_is_the_weighted_mean_of_its_values_in_every_file() -> None:
    table()
    made = run(
        RELATIVE,
        "data.weight=w",
        "data.standardize=true",
        "record.sinks=[jsonl, tensorboard]",
        "train.eval_every_steps=10",
    )
    summary = made.summary
    for part in ("train", "valid"):
        target, prediction, weight = rows(made, part)
        expected = mean_absolute_percentage_error(target, prediction, sample_weight=weight)
        assert summary["metrics"][f"{part}/relative"] == pytest.approx(expected, rel=1e-12)
    assert summary["baselines"]["mean"]["valid/relative"] > summary["metrics"]["valid/relative"]
    *_, last = (json.loads(line) for line in (made.directory / "metrics.jsonl").read_text().splitlines())
    assert last["valid/relative"] == summary["metrics"]["valid/relative"]
    assert {"valid/rmse", "valid/mae", "valid/r2"} < set(last)  # whatever is shown
    events = EventAccumulator(str(made.directory))
    events.Reload()
    assert events.Scalars("valid/relative")[-1].value == pytest.approx(last["valid/relative"], rel=1e-6)  # float32


def test_several_targets_have_one_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    table()
    monkeypatch.setattr(metrics, "CHUNK_ROWS", 7)  # sums add up, whatever the pieces are
    names = ("relative", "of_row", "within")
    own = ", ".join(f"my_lab.metrics:{name}" for name in names)
    made = run(
        "data.target=[y, z]", "data.weight=w", f"metrics=[{own}]", "strategy.reduction=exact", "train.batch_size=16"
    )
    target, prediction, weight = rows(made, "valid", "y", "z")
    error = np.abs(prediction - target)
    values = {"relative": (error / target).mean(1), "of_row": error.mean(1), "within": error.max(1) > 0.1}
    for name in names:
        expected = np.average(values[name], weights=weight)
        assert made.summary["metrics"][f"valid/{name}"] == pytest.approx(expected, rel=1e-12)
    assert "valid/rmse/z" in made.summary["metrics"]
    assert "valid/relative/z" not in made.summary["metrics"]


def test_members_of_a_sweep_are_single_runs_and_results_have_the_metric() -> None:
    table()
    common = [*TABLE, *LEARNING[:1], RELATIVE, "data.weight=w"]
    path, _ = runner.multirun(None, [*common, "optimizer.lr=0.01,0.05", "seeds=2", "run_dir=sweep"])
    with (path / "results.csv").open() as file:
        found = [float(row["valid/relative"]) for row in csv.DictReader(file)]
    singles = [
        runner.run(None, [*common, f"optimizer.lr={lr}", f"seed={seed}"]).summary["metrics"]["valid/relative"]
        for lr in (0.01, 0.05)
        for seed in (0, 1)
    ]
    assert found == pytest.approx(singles, rel=1e-12)
    assert len(set(found)) == 4


def test_it_may_stop_a_run_and_choose_its_state() -> None:
    table()
    stop = [
        "train.early_stopping.metric=relative",
        "train.early_stopping.patience=3",
        "train.eval_every_steps=1",
        "train.steps=3000",
    ]
    made = run(RELATIVE, *stop, "optimizer.lr=0.3", "seed=1")
    lines = [json.loads(line) for line in (made.directory / "metrics.jsonl").read_text().splitlines()]
    found = [line["valid/relative"] for line in lines]
    best = int(np.argmin(found))
    assert len(found) == best + 1 + 3 < 3000
    assert made.summary["selected"]["step"] == lines[best]["step"]
    assert made.summary["selected"]["metrics"]["valid/relative"] == found[best]


@pytest.mark.parametrize(
    ("chosen", "names"), [("[mae, my_lab.metrics:relative]", ["loss", "mae", "relative"]), ("[]", ["loss"])]
)
def test_the_list_says_what_is_shown(chosen: str, names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    table()
    made = run(f"metrics={chosen}", "train.eval_every_steps=10")
    lines = capsys.readouterr().out.splitlines()
    assert names in [line.split() for line in lines]
    row = next(line for line in lines if line.startswith("step 20/20"))
    assert [f"valid/{name} " in row for name in ("rmse", "mae", "r2", "relative")] == [
        name in names for name in ("", "mae", "", "relative")
    ]
    assert {"valid/rmse", "valid/mae", "valid/r2"} < set(made.summary["metrics"])


def test_a_row_without_a_finite_value_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    table()
    lines = Path("t.csv").read_text().splitlines()
    lines[20] = "1,0,1,1"  # a target of 0 among the training rows, and not one of those that are tried
    Path("t.csv").write_text("\n".join(lines))
    made = run("metrics=[my_lab.metrics:relative]", "data.split.order=sequential")
    assert made.summary["metrics"]["train/relative"] == np.inf
    said = "metric   train/relative is inf: my_lab.metrics:relative has no finite value for some of the train rows"
    assert said in capsys.readouterr().out.splitlines()


def test_a_search_may_be_for_it() -> None:
    table()
    search = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "optimizer.lr=interval(0.01,0.1)", "train.steps=3"]
    _, results = runner.multirun(None, [*TABLE, *search, RELATIVE, "hydra.sweeper.metric=valid/relative"])
    assert results.metric == "valid/relative"
    assert results.searched
    with pytest.raises(ConfigError, match="test/r2, got valid/relative; did you mean"):
        runner.multirun(None, [*TABLE, *search, "hydra.sweeper.metric=valid/relative"])


def test_evaluate_and_predict_report_it_once_it_is_trusted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table()
    made = run(
        RELATIVE,
        "loss=custom",
        "loss.target=my_lab.losses:Quantile",
        "data.weight=w",
        "data.split.valid=0",
        "run_dir=run",
    )
    expected = made.summary["metrics"]
    monkeypatch.delenv("RUNNER_TRUST")
    capsys.readouterr()
    for verb in (["evaluate", "run"], ["predict", "run", "--output", "out.csv"]):
        assert main([*verb, "--input", "t.csv"]) == 2
        assert "is code that a configuration may not start by itself" in capsys.readouterr().err
    assert main(["evaluate", "run", "--input", "t.csv", "--output", "e.json", "--trust", "my_lab"]) == 0
    assert ["rows", "loss", "rmse", "relative"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    values: dict[str, Any] = json.loads(Path("e.json").read_text())["metrics"]
    assert values["relative"] == pytest.approx(expected["train/relative"], rel=1e-12)
    assert values["loss"] == pytest.approx(expected["train/loss"], rel=1e-12)
    assert main(["predict", "run", "--input", "t.csv", "--output", "out.csv", "--trust", "my_lab"]) == 0
    assert f"relative {expected['train/relative']:.6g}" in capsys.readouterr().out
    Path("new.csv").write_text("x\n0.5\n")  # without targets none of it is run
    assert main(["predict", "run", "--input", "new.csv", "--output", "new_out.csv"]) == 0


MISTAKES = {
    "mean": "must return a value for each row, [rows, targets], [rows] or [rows, 1], here [4, 1], got one number, which cannot be "
    "weighted and divided into portions; leave out its mean or sum",
    "to_spread": "must return values of each row alone, but they depend on the other rows; use no mean, sum or order over the rows",
    "failing": "failing(prediction, target) failed in ",
    "exchanged": "must take the prediction first and the target second, got (y_true, y_pred); exchange them",
    "Relative": "must be a function (prediction, target), got a class; name a function (prediction, target)",
    "alias": "must not be another name of my_lab.metrics:relative; write my_lab.metrics:relative",
    "relativ": "did you mean my_lab.metrics:relative?",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_metric_that_cannot_be_used_is_refused(name: str) -> None:
    table()
    with pytest.raises(ConfigError) as error:
        run(f"metrics=[rmse, my_lab.metrics:{name}]", "run_dir=run")
    (problem,) = error.value.problems
    assert problem.startswith(f"`metrics`=my_lab.metrics:{name}")
    assert MISTAKES[name] in problem
    assert not Path("run").exists()


LISTED = "`metrics` must be a list of rmse, mae, r2 and functions of your own, such as my_lab.metrics:relative, got "


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["metrics=[rmsse]"], f"{LISTED}rmsse; did you mean rmse?"),
        (["metrics=[mae, mae]"], "`metrics` must not repeat an entry, got [mae, mae]; remove one"),
        (
            ["metrics=[my_lab.metrics.relative]"],
            "`metrics` must be package.module:Name, such as my_lab.metrics:relative, got 'my_lab.metrics.relative'; "
            "write my_lab.metrics:relative",
        ),
        (
            ["metrics=[my_lab.metrics:rmse]"],
            "`metrics` must have one metric of each name, got a second rmse, my_lab.metrics:rmse; give the function another name",
        ),
        (
            ["metrics=[my_lab.metrics:relative, my_lab:relative]"],
            "`metrics` must have one metric of each name, got a second relative, my_lab:relative; give the function another name",
        ),
        (
            ["train.early_stopping.metric=relative"],
            "`train.early_stopping.metric` must be one of loss, rmse, mae, r2, got 'relative'; add one of your own to metrics",
        ),
        (
            ["metrics=[my_lab.metrics:relative]", "data=line", "data.start=0", "data.intercept=0", "data.noise=0"],
            "`metrics`=my_lab.metrics:relative must have a finite value for each row, got nan for the target 0, whatever the "
            "prediction; correct it, or leave such rows out",
        ),
    ],
)
def test_wrong_entries_are_refused(overrides: list[str], problem: str) -> None:
    table()
    with pytest.raises(ConfigError) as error:
        runner.run(None, [*(QUICK if "data=line" in overrides else TABLE), *overrides])
    assert list(error.value.problems) == [problem]
