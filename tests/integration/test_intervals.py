"""Intervals of predictions by rows that neither trained nor chose, and by least squares: `predict`, and what `export` makes of them."""

from __future__ import annotations

import csv
import json
import math
import os
import pickle
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import scipy.stats
import torch
from mapie.regression import SplitConformalRegressor
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import faults
import runner
from runner.cli import main
from runner.data.scaling import Scaling
from runner.errors import CheckpointError, ConfigError
from runner.sklearn import CurveRegressor, Regressor
from runner.training.intervals import Calibration, Intervals, place

FAST = ["device=cpu", "device.threads=1", "record.plots=false", "record.sinks=[jsonl]", "data=csv", "data.path=t.csv"]
LINEAR = ["model=linear", "optimizer=lstsq", "train.steps=1", "data.split.calibrate=60", "dtype=float64"]
NET = [
    "model=mlp",
    "model.widths=[5]",
    "optimizer=adam",
    "optimizer.lr=0.03",
    "train.steps=30",
    "data.split.calibrate=60",
]


def write(path: str, rows: int, seed: int = 0) -> None:
    """Write a table with an additive target u and a multiplicative one v."""
    draw = np.random.default_rng(seed)
    x = draw.uniform(0, 3, rows)
    u, v = 2 * x + 0.5 * draw.normal(size=rows), np.exp(x + 0.4 * draw.normal(size=rows))
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("x", "u", "v"), *zip(x, u, v, strict=True)])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with tables, three runs and a sweep."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write("t.csv", 260)
        write("new.csv", 4000, seed=1)
        one = [*FAST, "data.features=[x]"]
        runner.run(None, [*one, *LINEAR, "data.target=u", "run_dir=one"])
        runner.run(None, [*one, *LINEAR, "data.target=v", "data.log_target=true", "run_dir=log"])
        runner.run(None, [*one, *LINEAR, "data.target=[u,v]", "run_dir=two"])
        runner.run(None, [*one, *NET[:-1], "data.target=u", "run_dir=none"])
        runner.multirun(None, [*one, *NET, "data.target=u", "seeds=3", "data.seed=0", "run_dir=seeds"])
    return folder


@pytest.fixture(autouse=True)
def _here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


def new(*names: str) -> Any:
    """Return columns of the new rows, [rows] each."""
    with open("new.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return tuple(np.array([float(row[name]) for row in rows]) for name in names)


def calibrate(run: str) -> list[dict[str, Any]]:
    targets: list[dict[str, Any]] = json.loads((Path(run) / "calibration.json").read_text())["targets"]
    return targets


class Fitted(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """An estimator that is trained already: its prediction is its only feature."""

    def fit(self, x: Any, y: Any) -> Fitted:
        self.n_features_in_ = 1
        return self

    def predict(self, x: Any) -> Any:
        return np.asarray(x)[:, 0]


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_the_intervals_are_those_of_mapie(level: float) -> None:
    """MAPIE gets the predictions of the run for its rows of calibration and for new ones."""
    (own,) = calibrate("one")
    (x,) = new("x")
    prediction, low, high = runner.load("one", device="cpu").predict(x[:50, None], interval=level)
    oracle = SplitConformalRegressor(Fitted().fit(None, None), confidence_level=level, prefit=True)
    oracle.conformalize(np.array(own["prediction"])[:, None], np.array(own["target"]))
    _, ends = oracle.predict_interval(prediction[:, None])
    # The run scales the target, which rounds a few times.
    np.testing.assert_allclose(np.stack((low, high), 1), ends[:, :, 0], rtol=0, atol=1e-13)


def test_a_run_says_how_many_rows_are_set_aside_and_what_for() -> None:
    log = Path("one/run.log").read_text()
    assert "interval by 60 rows of data.split.calibrate, for levels up to 60/61 (predict --interval)" in log
    assert json.loads(Path("one/summary.json").read_text())["calibration_rows"] == 60
    assert "calibration_rows" not in json.loads(Path("none/summary.json").read_text())
    assert place(0.9836, 60, "interval") == 60  # 60/61 is 0.98360…
    with pytest.raises(ConfigError, match="at least, got 60"):
        place(0.9837, 60, "interval")


def test_the_intervals_are_of_the_selected_state_also_after_a_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [*FAST, *NET, "data.features=[x]", "data.target=u", "data.split.valid=40", "train.batch_size=8"]
    overrides += ["train.select=best", "train.eval_every_steps=3", "checkpoint.every_steps=10"]
    whole = runner.run(None, [*overrides, "run_dir=whole"]).summary
    with monkeypatch.context() as patch:
        faults.at_step(patch, 25, lambda: os.kill(os.getpid(), signal.SIGKILL))
        faults.in_child(lambda: runner.run(None, [*overrides, "run_dir=killed"]))
    assert not Path("killed/calibration.json").exists()
    runner.run(None, ["resume=killed"])
    assert Path("killed/calibration.json").read_bytes() == Path("whole/calibration.json").read_bytes()
    values = json.loads(Path("whole/calibration.json").read_text())
    assert values["step"] == whole["selected"]["step"] < whole["steps"]
    assert values["parameters_sha256"] == whole["selected"]["parameters_sha256"] != whole["parameters_sha256"]
    with open("t.csv", newline="") as table, open("whole/residuals.csv", newline="") as residuals:
        x = [float(row["x"]) for row in csv.DictReader(table)]
        rows = [int(row["row"]) - 1 for row in csv.DictReader(residuals) if row["part"] == "calibrate"]
    found = runner.load("whole", device="cpu").predict(np.array(x)[rows, None])
    np.testing.assert_allclose(values["targets"][0]["prediction"], found, rtol=1e-6)  # rows are added in another order


def test_the_rows_of_calibration_are_as_in_the_residuals() -> None:
    with open("one/residuals.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == "calibrate"]
    (own,) = calibrate("one")
    for name in ("target", "prediction"):
        assert own[name] == [float(row[name]) for row in rows]
    assert len(rows) == 60


def test_the_command_writes_both_ends_and_prints_the_coverage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "one", "--input", "new.csv", "--output", "one.csv", "--interval", "0.9"]) == 0
    (u,) = new("u")
    with open("one.csv", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == ["prediction", "low", "high"]
    low, high = (np.array([float(row[name]) for row in rows]) for name in ("low", "high"))
    share = np.mean((low <= u) & (u <= high))
    # Over draws of 60 rows of calibration the coverage is Beta(55, 6), whose standard deviation is 0.037.
    assert abs(share - 0.9) < 4 * 0.037
    assert f"interval coverage {share:.3f} of 0.9, by 60 rows of data.split.calibrate" in capsys.readouterr().out


def test_intervals_of_a_logarithm_are_factors() -> None:
    x, v = new("x", "v")
    prediction, low, high = runner.load("log", device="cpu").predict(x[:, None], interval=0.9)
    np.testing.assert_allclose(high / prediction, prediction / low, rtol=1e-12)
    np.testing.assert_allclose(high / prediction, high[0] / prediction[0], rtol=1e-12)
    assert abs(np.mean((low <= v) & (v <= high)) - 0.9) < 4 * 0.037


def test_each_target_has_its_own_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    x, u, v = new("x", "u", "v")
    _, low, high = runner.load("two", device="cpu").predict(x[:, None], interval=0.8)
    for place_, own in enumerate(calibrate("two")):
        errors = np.sort(np.abs(np.array(own["target"]) - np.array(own["prediction"])))
        half = errors[math.ceil(61 * 0.8) - 1]
        np.testing.assert_allclose((high - low)[:, place_] / 2, half, rtol=1e-12)
    assert main(["predict", "two", "--input", "new.csv", "--output", "two.csv", "--interval", "0.8"]) == 0
    shares = ((low <= np.stack((u, v), 1)) & (np.stack((u, v), 1) <= high)).mean(0)
    assert f"coverage {shares[0]:.3f} (u), {shares[1]:.3f} (v) of 0.8" in capsys.readouterr().out
    header = Path("two.csv").read_text().splitlines()[0]
    assert header == "prediction/u,low/u,high/u,prediction/v,low/v,high/v"


def test_intervals_of_seeds_are_wider_where_these_disagree() -> None:
    """The textbook formula, from the files and the predictions of the single runs."""
    x, u = new("x", "u")
    prediction, low, high = runner.load("seeds", device="cpu").predict(x[:, None], interval=0.9)
    paths = [f"seeds/{number}" for number in range(3)]
    own = [calibrate(path)[0] for path in paths]
    scale = json.loads(Path("seeds/0/preprocessing.json").read_text())["targets"][0]["scale"]
    noise = np.mean([np.square(one["train_deviation"] * scale) for one in own])
    known = np.array([one["prediction"] for one in own])
    scores = np.abs(own[0]["target"] - known.mean(0)) / np.sqrt(known.var(0, ddof=1) + noise)
    members = np.array([runner.load(path, device="cpu").predict(x[:, None]) for path in paths])
    half = np.sort(scores)[math.ceil(61 * 0.9) - 1] * np.sqrt(members.var(0, ddof=1) + noise)
    np.testing.assert_allclose((high - low) / 2, half, rtol=1e-6)
    np.testing.assert_allclose((high + low) / 2, prediction, rtol=1e-9)
    assert abs(np.mean((low <= u) & (u <= high)) - 0.9) < 4 * 0.037


@pytest.mark.parametrize("models", [1, 3])
def test_nine_of_ten_targets_are_covered_in_200_tables(models: int) -> None:
    """Models that are wrong and noise that depends on the row; the mean over tables, with 100 rows of calibration each."""
    draw, shares = torch.Generator().manual_seed(0), []
    ones = torch.ones(1, dtype=torch.float64)
    scaling = Scaling(ones, ones, ones, 2 * ones, False)

    def rows(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.rand(count, 1, generator=draw, dtype=torch.float64)
        noise = torch.randn(count, 1, generator=draw, dtype=torch.float64) * (0.1 + x)
        wrong = torch.arange(1, models + 1, dtype=torch.float64).reshape(-1, 1, 1) * x
        return x.square() + noise, wrong

    for _ in range(200):
        target, prediction = rows(100)
        calibrations = [Calibration(target, one, 0.1 * ones) for one in prediction]
        target, prediction = rows(1000)
        low, high = Intervals(calibrations, scaling, 0.9, "interval").around(prediction)
        shares.append(float(((low <= target) & (target <= high)).double().mean()))
    assert abs(np.mean(shares) - 0.9) < 0.015


def test_equal_scores_count_one_by_one() -> None:
    ones = torch.ones(1, dtype=torch.float64)
    target = torch.tensor([1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 3.0], dtype=torch.float64).unsqueeze(1)
    known = Calibration(target, torch.zeros_like(target), ones)
    for level, half in ((0.1, 1), (0.2, 2), (0.8, 2), (0.9, 3)):
        low, high = Intervals([known], Scaling(ones, ones, 0 * ones, ones, False), level, "interval").around(
            torch.zeros(1, 1, 1, dtype=torch.float64)
        )
        assert (float(low), float(high)) == (-half, half)


@pytest.mark.parametrize(("level", "rows", "expected"), [(0.9, 9, 9), (0.95, 19, 19), (0.07, 99, 7), (0.5, 4, 3)])
def test_the_place_is_exact_for_decimal_levels(level: float, rows: int, expected: int) -> None:
    assert place(level, rows, "interval") == expected


@pytest.mark.parametrize("level", [0.0, 1.0, 1.5, -0.1, math.nan])
def test_a_level_that_is_no_probability_is_refused(level: float) -> None:
    with pytest.raises(ConfigError, match="`interval` must be above 0 and below 1, got"):
        runner.load("one", device="cpu").predict(np.zeros((1, 1)), interval=level)


def test_too_few_rows_are_refused_with_the_number_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "one", "--input", "new.csv", "--output", "few.csv", "--interval", "0.99"]) == 2
    assert (
        "`--interval`=0.99 must have 99 rows of data.split.calibrate at least, got 60; use" in capsys.readouterr().err
    )
    assert not Path("few.csv").exists()


def test_a_run_without_such_rows_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "none", "--input", "new.csv", "--output", "no.csv", "--interval", "0.9"]) == 2
    error = capsys.readouterr().err
    assert error == (
        "error: none must have rows of data.split.calibrate for intervals, which did not train the model, got none; train it again "
        "with data.split.calibrate=0.2\n"
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"parameters_sha256": "0"}, "must be of the state that predicts, got that of step 1; use that state"),
        ({"format": 99}, "`format` must be at most 1, got 99"),
        ({"targets": 3}, "`targets` must be a list of groups of keys, got 3; restore the file"),
        ({"targets": []}, "`targets` must be those of the run; restore the file"),
        (
            {"targets": [{"name": "u", "train_deviation": 1.0, "target": [1.0], "prediction": []}]},
            "`targets` must have as many targets as predictions; restore the file",
        ),
    ],
)
def test_a_file_that_was_changed_is_refused(
    change: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree("one", tmp_path / "one", symlinks=True)
    monkeypatch.chdir(tmp_path)
    file = Path("one/calibration.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match="one/calibration") as caught:
        runner.load("one", device="cpu").predict(np.zeros((1, 1)), interval=0.9)
    assert text in str(caught.value)


# ------------------------------------------------------------------------------------------ the bands of least squares


@pytest.mark.parametrize(
    "model",
    [
        ["model=linear", "optimizer=lstsq"],
        ["model=formula", "model.expression=a*x + b", "optimizer=lm", "train.steps=20"],
    ],
)
@pytest.mark.parametrize("scaled", [False, True])
def test_a_fit_without_calibration_rows_has_the_band_of_students_t(
    model: list[str], scaled: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against the closed form of a straight line."""
    shutil.rmtree("fit", ignore_errors=True)
    log = ["data.target=v", "data.log_target=true"] if scaled else ["data.target=u"]
    standardized = ["data.standardize=true"] if scaled and "model=linear" in model else []
    runner.run(None, [*FAST, *model, *log, *standardized, "data.features=[x]", "dtype=float64", "run_dir=fit"])
    x, y = np.loadtxt("t.csv", delimiter=",", skiprows=1, usecols=(0, 2 if scaled else 1), unpack=True)
    y = np.log(y) if scaled else y
    design = np.stack((np.ones_like(x), x), 1)
    new = np.array([-1.0, 0.5, 10.0])
    rows = np.stack((np.ones_like(new), new), 1)
    fitted, *_ = np.linalg.lstsq(design, y)
    deviation = math.sqrt(float(((y - design @ fitted) ** 2).sum()) / (len(x) - 2))
    variance = 1 + np.einsum("ij,jk,ik->i", rows, np.linalg.inv(design.T @ design), rows)
    half = scipy.stats.t.ppf(0.95, len(x) - 2) * deviation * np.sqrt(variance)
    expected = [rows @ fitted, rows @ fitted - half, rows @ fitted + half]
    for found, value in zip(runner.load("fit").predict(new[:, None], interval=0.9), expected, strict=True):
        np.testing.assert_allclose(found, np.exp(value) if scaled else value, rtol=1e-9)
    capsys.readouterr()
    assert main(["predict", "fit", "--input", "new.csv", "--output", "fit.csv", "--interval", "0.9", "--force"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.endswith(" of 0.9, by Student's t with 258 degrees of freedom")
    # 4,000 rows: the standard error of the share is 0.005, and 260 rows decide where the band is.
    assert float(line.split()[2]) == pytest.approx(0.9, abs=0.03)


def test_a_band_is_refused_where_it_is_not_known() -> None:
    one = [*FAST, "data.features=[x]", "data.target=u"]
    runner.run(None, [*one, "model=linear", "optimizer=sgd", "optimizer.lr=0.01", "train.steps=2", "run_dir=sgd"])
    runner.run(
        None, [*FAST, "data.features=[x]", "data.target=[u,v]", "model=linear", "optimizer=lstsq", "run_dir=both"]
    )
    runner.run(None, [*one, "data.sigma=v", "model=linear", "optimizer=lstsq", "run_dir=weighted"])
    for run in ("sgd", "both", "weighted"):
        with pytest.raises(CheckpointError, match=f"{run} must have rows of data.split.calibrate for intervals"):
            runner.load(run).predict(np.array([[1.0]]), interval=0.9)


def test_a_damaged_covariance_is_refused() -> None:
    runner.run(
        None, [*FAST, "data.features=[x]", "data.target=u", "model=linear", "optimizer=lstsq", "run_dir=damaged"]
    )
    path = Path("damaged/covariance.json")
    values = json.loads(path.read_text())
    model = runner.load("damaged")
    for changes, message in (
        ({"deviation": -1}, "`deviation` must be a finite number of at least 0, got -1"),
        ({"inverse": [[1.0]]}, r"`inverse` must have 2 rows of 2 finite numbers, got \[\[1.0\]\]; restore the file"),
        ({"parameters_sha256": "0" * 64}, "covariance.json must be of the state that predicts, got that of step"),
        ({"degrees_of_freedom": 0}, "`degrees_of_freedom` must be an integer of at least 1, got 0"),
    ):
        path.write_text(json.dumps({**values, **changes}))
        with pytest.raises(CheckpointError, match=message):
            model.predict(np.array([[1.0]]), interval=0.9)


# ------------------------------------------------------------------------------------------------------------- exports


def export(run: str, *arguments: str, code: int = 0) -> None:
    assert main(["export", run, *arguments]) == code


def test_an_export_has_the_intervals_of_its_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder of a run with both files, and of one without rows set aside, whose intervals are Student's."""
    runner.run(None, [*FAST, "data.features=[x]", "data.target=u", *LINEAR[:3], "dtype=float64", "run_dir=band"])
    for run, files in (("log", {"calibration.json", "covariance.json"}), ("band", {"covariance.json"})):
        path = str(tmp_path / run)
        export(run, "--format", "safetensors", "--output", path)
        assert {file.name for file in Path(path).iterdir()} == {"model.json", "model.safetensors", *files}
        outputs = []
        for model in (run, path):
            arguments = ["--input", "new.csv", "--output", "-", "--interval", "0.9"]
            capsys.readouterr()
            assert main(["predict", model, *arguments]) == 0
            outputs.append(capsys.readouterr().out)
        assert outputs[0] == outputs[1]
        assert outputs[0].startswith("prediction,low,high\n")
    export(str(tmp_path / "log"), "--format", "safetensors", "--output", str(tmp_path / "log"), "--force")
    assert len(runner.load(tmp_path / "log").predict(np.array([[1.0]]), interval=0.9)) == 3


def test_files_of_another_state_are_left_out_of_an_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every = ["checkpoint.every_steps=10", "data.split.calibrate=9"]
    runner.run(None, [*FAST, *NET[:-1], *every, "data.features=[x]", "data.target=u", "run_dir=states"])
    export("states", "--format", "safetensors", "--output", str(tmp_path / "m"), "--state", "10")
    assert "note: calibration.json is left out, because it is of the state that the run reports" in (
        capsys.readouterr().out
    )
    with pytest.raises(CheckpointError, match=r"must have a calibration\.json for intervals"):
        runner.load(tmp_path / "m").predict(np.array([[1.0]]), interval=0.5)


def onnx(run: str, path: Path, frame: dict[str, Any], *, level: str = "0.9") -> dict[str, Any]:
    """Return the outputs [rows] of an exported run by name."""
    export(run, "--format", "onnx", "--output", str(path / "m.onnx"), "--interval", level, "--force")
    session = onnxruntime.InferenceSession(str(path / "m.onnx"))
    names = [output.name for output in session.get_outputs()]
    feeds = {name: np.asarray(values)[:, None] for name, values in frame.items()}
    return dict(zip(names, (found[:, 0] for found in session.run(names, feeds)), strict=True))


@pytest.mark.parametrize("run", ["one", "log", "two", "seeds"])
def test_a_file_of_onnx_has_the_ends_of_intervals(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (x,) = new("x")
    found = onnx(run, tmp_path, {"x": x[:500]}, level="0.8")
    assert capsys.readouterr().out.endswith("\ninterval 0.8, by 60 rows of data.split.calibrate\n")
    model = runner.load(run, device="cpu")
    values = [part.reshape(500, -1) for part in model.predict(x[:500, None], interval=0.8)]
    expected = {
        target + end: part[:, place]
        for end, part in zip(("", "_lower", "_upper"), values, strict=True)
        for place, target in enumerate(model.target_names)
    }
    assert [*found] == [*expected]
    for name, own in expected.items():
        np.testing.assert_allclose(found[name], own, rtol=0, atol=1e-6 * np.abs(own).max())
        # Half widths by themselves, which are smaller than the predictions.
        target = name.partition("_")[0]
        np.testing.assert_allclose(found[name] - found[target], own - expected[target], rtol=1e-4)


@pytest.mark.parametrize(
    ("model", "dtype"),
    [
        (["model=linear"], "float64"),
        (["model=linear", "model.bias=false"], "float64"),
        (["model=polynomial", "model.degree=3", "data.standardize=true"], "float64"),
        (["model=polynomial", "model.degree=2", "data.standardize=true"], "float32"),
    ],
)
def test_a_file_of_onnx_has_the_bands_of_a_linear_model(
    model: list[str], dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree("linear", ignore_errors=True)
    arguments = ["data.features=[x,v]", "data.target=u", "optimizer=lstsq", f"dtype={dtype}", "run_dir=linear"]
    runner.run(None, [*FAST, *model, *arguments])
    x, v = new("x", "v")
    found = onnx("linear", tmp_path, {"x": x, "v": v})
    assert "\ninterval 0.9, by Student's t with 2" in capsys.readouterr().out
    expected = runner.load("linear", device="cpu").predict(np.stack((x, v), 1), interval=0.9)
    for own, values in zip(found.values(), expected, strict=True):
        np.testing.assert_allclose(
            own, values, rtol=0, atol=(1e-12 if dtype == "float64" else 1e-6) * np.abs(values).max()
        )
    half = (found["u_upper"] - found["u_lower"]) / 2
    # New rows far from the training rows have wider bands, which are no constant.
    assert half.max() > 1.05 * half.min()


def test_what_has_no_intervals_in_a_file_of_onnx_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    formula = ["model=formula", "model.expression=a*x + b", "optimizer=lm", "train.steps=20"]
    runner.run(None, [*FAST, *formula, "data.features=[x]", "data.target=u", "run_dir=formula"])
    named = [*LINEAR, "data.rename={u_upper: x}", "data.features=[u_upper]", "data.target=u", "run_dir=named"]
    runner.run(None, [*FAST, *named])
    capsys.readouterr()
    for run, form, level, message in (
        ("formula", "onnx", "0.9", "`--interval` must be of a linear or polynomial model, or by rows of data.split.calibrate, in a file of ONNX, got Student's t for another model; use --format safetensors"),
        ("named", "onnx", "0.9", "`--interval` makes outputs whose names no column must have, got u_upper; train a new run with data.rename"),
        ("none", "onnx", "0.9", "none must have rows of data.split.calibrate for intervals"),
        ("one", "onnx", "1.5", "`--interval` must be above 0 and below 1, got 1.5; use 0.9 for 90 %"),
        ("one", "onnx", "0.99", "`--interval`=0.99 must have 99 rows of data.split.calibrate at least, got 60"),
        ("one", "safetensors", "0.9", "`--interval` must not be given with --format safetensors, whose folder has what intervals of every level need; remove it"),
    ):  # fmt: skip
        suffix = ".onnx" if form == "onnx" else ""
        output = tmp_path / f"no{suffix}"
        export(run, "--format", form, "--output", str(output), "--interval", level, code=2)
        assert message in capsys.readouterr().err
        assert not output.exists()


# ------------------------------------------------------------------------------------------------------------ estimators


def test_an_estimator_has_the_intervals_of_a_run() -> None:
    x, u = np.loadtxt("t.csv", delimiter=",", skiprows=1, usecols=(0, 1), unpack=True)
    (z,) = new("x")
    own = ["data.split.calibrate=60", "model.widths=[5]"]
    fitted = Regressor(epochs=5, random_state=3, overrides=own).fit(pd.DataFrame({"x": x}), u)
    rest = ["data.features=[x]", "data.target=u", "data.split.test=0", "train.epochs=5", "seed=3", "run_dir=table"]
    runner.run("table", [*FAST[:1], *FAST[2:], *own, *rest])
    expected = runner.load("table", device="cpu").predict(z[:, None], interval=0.9)
    assert_equal(fitted.predict(pd.DataFrame({"x": z}), interval=0.9), expected)
    assert_equal(pickle.loads(pickle.dumps(fitted)).predict(pd.DataFrame({"x": z}), interval=0.9), expected)
    column = Regressor(epochs=5, random_state=3, overrides=own).fit(pd.DataFrame({"x": x}), u[:, None])
    pipeline = make_pipeline(FunctionTransformer(), column)
    assert_equal(pipeline.predict(pd.DataFrame({"x": z}), interval=0.9), [values[:, None] for values in expected])


def assert_equal(found: Any, expected: Any) -> None:
    assert len(found) == len(expected) == 3
    for own, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(own, other, strict=True)


def test_a_fitted_formula_has_the_band_of_a_plane() -> None:
    """The closed form of ordinary least squares with two columns."""
    x, u, v = np.loadtxt("t.csv", delimiter=",", skiprows=1, unpack=True)
    rows = np.array([[0.0, 1.0], [9.0, 3.0]])
    found = CurveRegressor().fit(np.stack((x, v), 1), u).predict(rows, interval=0.95)
    design, new = np.stack((np.ones_like(x), x, v), 1), np.insert(rows, 0, 1, axis=1)
    fitted, (squares,), *_ = np.linalg.lstsq(design, u)
    degrees = len(x) - 3
    variance = 1 + np.einsum("ij,jk,ik->i", new, np.linalg.inv(design.T @ design), new)
    half = scipy.stats.t.ppf(0.975, degrees) * np.sqrt(squares / degrees * variance)
    for own, expected in zip(found, (new @ fitted, new @ fitted - half, new @ fitted + half), strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-10)


def test_an_estimator_without_such_rows_names_them() -> None:
    x, u = np.loadtxt("t.csv", delimiter=",", skiprows=1, usecols=(0, 1), unpack=True)
    fitted = Regressor(epochs=1).fit(x[:, None], u)
    with pytest.raises(CheckpointError) as raised:
        fitted.predict(x[:, None], interval=0.9)
    assert str(raised.value) == (
        "the fitted model must have rows of data.split.calibrate for intervals, which did not train the model, got none; train it "
        "again with data.split.calibrate=0.2"
    )
    with pytest.raises(CheckpointError, match="the fitted model must have rows of data"):
        CurveRegressor().fit(x[:, None], u, sample_weight=u**2).predict(x[:, None], interval=0.9)


def test_a_run_that_has_not_ended_has_no_intervals_yet() -> None:
    one = [*FAST, "data.features=[x]", "data.target=u"]
    runner.run(None, [*one, *NET, "run_dir=ended"])
    Path("ended/calibration.json").unlink()
    with pytest.raises(CheckpointError) as raised:
        runner.load("ended").predict(np.array([[1.0]]), interval=0.9)
    assert str(raised.value) == (
        "ended must have a calibration.json for intervals, which a run with data.split.calibrate writes when it ends, for "
        "the state that it reports; finish the run, or use that state"
    )
