"""`record.baselines`: what simple models reach on the same rows, against scikit-learn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pytest
from sklearn.dummy import DummyRegressor
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import runner
from runner.errors import ConfigError
from runner.training import baselines
from runner.training.run import Run

QUICK = ["device=cpu", "device.threads=1", "record.plots=false", "dtype=float64", "train.steps=1", "data=csv", "data.path=t.csv", "data.target=y"]  # fmt: skip
MODEL = ["model=mlp", "model.widths=[2]"]
ALL = "record.baselines=[mean,linear,boosting]"
TRAIN = 150


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def table(columns: int = 3, rows: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Write t.csv with columns x0, x1, …, w and y, and return features, weights and target."""
    draw = np.random.default_rng(columns)
    x, w = draw.normal(size=(rows, columns)), draw.integers(0, 4, rows).astype(float)
    y = np.exp(x[:, 0] + 0.3 * draw.normal(size=rows)) + 5
    header = ",".join([*(f"x{i}" for i in range(columns)), "w", "y"])
    lines = (
        ",".join(map(repr, [*row.tolist(), weight, value]))
        for row, weight, value in zip(x, w.tolist(), y.tolist(), strict=True)
    )
    Path("t.csv").write_text("\n".join([header, *lines]) + "\n")
    return x, w, y


def run(*overrides: str) -> Run:
    return runner.run(None, [*QUICK, *MODEL, *overrides])


def expected(model: Any, x: np.ndarray, w: np.ndarray, y: np.ndarray, log: bool) -> dict[str, float]:
    """Return the metrics of a scikit-learn model that is fitted to the first rows."""
    parts = {"train": slice(0, TRAIN), "test": slice(TRAIN, None)}
    some = parts["train"]
    model.fit(x[some], np.log(y[some]) if log else y[some], sample_weight=w[some])
    metrics: dict[str, float] = {}
    for part, rows in parts.items():
        prediction = np.exp(model.predict(x[rows])) if log else model.predict(x[rows])
        arguments: Any = (y[rows], prediction)
        metrics |= {
            f"{part}/rmse": root_mean_squared_error(*arguments, sample_weight=w[rows]),
            f"{part}/mae": mean_absolute_error(*arguments, sample_weight=w[rows]),
            f"{part}/r2": r2_score(*arguments, sample_weight=w[rows]),
        }
    return metrics


SPLIT = ["data.split.test=50", "data.split.order=sequential"]
VARIANTS: Mapping[str, list[str]] = {
    "plain": ["data.features=[x0,x1,x2]"],
    "weighted": ["data.weight=w"],
    "standardized": ["data.features=[x0,x1,x2]", "data.standardize=true"],
    "log": ["data.weight=w", "data.log_target=true"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_baselines_are_those_of_scikit_learn(variant: str) -> None:
    x, w, y = table()
    overrides, log = VARIANTS[variant], variant == "log"
    w = w if "data.weight=w" in overrides else np.ones_like(w)
    found = run(*SPLIT, *overrides, ALL).summary["baselines"]
    # The mean is that of the target, not of its logarithm.
    wanted = {
        "mean": expected(DummyRegressor(), x, w, y, log=False),
        "linear": expected(LinearRegression(), x, w, y, log),
        "boosting": expected(HistGradientBoostingRegressor(random_state=0), x, w, y, log),
    }
    assert list(found) == list(wanted)
    for name, metrics in wanted.items():
        # Rounding of float64; the trees add up gradients in float32, and may divide standardized columns in another place.
        tolerance = 1e-9 if name != "boosting" else 0.05 if variant == "standardized" else 1e-6
        assert found[name] == pytest.approx(metrics, rel=tolerance, abs=1e-12)


@pytest.mark.parametrize(
    ("numbers", "size"), [("none", "2"), ("standardize", "null"), ("quantile", "2"), ("robust", "null")]
)
def test_baselines_have_one_hot_categories_and_the_linear_one_standardized_numbers_whatever_the_model_gets(
    numbers: str, size: str
) -> None:
    draw = np.random.default_rng(0)
    x, kind = draw.standard_cauchy((200, 2)) + 1e4, draw.choice(["oak", "elm", "ash"], 200)
    x[:20, 1] = np.nan
    y = x[:, 0] + 2 * np.nan_to_num(x[:, 1]) + 5 * (kind == "elm") + draw.normal(size=200)
    lines = (
        f"{a!r},{'' if np.isnan(b) else repr(b)},{name},{value!r}"
        for (a, b), name, value in zip(x.tolist(), kind, y.tolist(), strict=True)
    )
    Path("t.csv").write_text("\n".join(["a,b,kind,y", *lines]) + "\n")
    args = [f"data.numbers={numbers}", "data.missing=mean", "data.features=[a,b,kind]", ALL]
    found = run(*SPLIT, *args, f"model.embedding_size={size}").summary["baselines"]
    filled = SimpleImputer(add_indicator=True).fit(x[:TRAIN])  # whose third column says where the second is missing
    encoder = OneHotEncoder(sparse_output=False).fit(kind[:TRAIN, None])
    features = np.hstack([filled.transform(x), encoder.transform(kind[:, None])])
    model = make_pipeline(StandardScaler(), LinearRegression())
    prediction = model.fit(features[:TRAIN], y[:TRAIN]).predict(features[TRAIN:])
    # Features and target lose five digits to their offset and their largest values.
    assert found["linear"]["test/rmse"] == pytest.approx(root_mean_squared_error(y[TRAIN:], prediction), rel=1e-9)
    if numbers == "none":  # trees get the numbers as the model does, but their splits are between the same rows
        trees = HistGradientBoostingRegressor(random_state=0).fit(features[:TRAIN], y[:TRAIN])
        error = root_mean_squared_error(y[TRAIN:], trees.predict(features[TRAIN:]))
        assert found["boosting"]["test/rmse"] == pytest.approx(error, rel=1e-9)


def test_the_console_has_the_baselines_below_each_part(capsys: pytest.CaptureFixture[str]) -> None:
    table()
    summary = run(*SPLIT).summary
    lines = capsys.readouterr().out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.split() == ["loss", "rmse", "mae", "r2"])
    rows = [line.split() for line in lines[first + 1 : first + 7]]
    assert [row[0] for row in rows] == ["train", "mean", "linear", "test", "mean", "linear"]
    assert [float(row[-3]) for row in rows] == pytest.approx(
        [
            source[f"{part}/rmse"]
            for part in ("train", "test")
            for source in (summary["metrics"], summary["baselines"]["mean"], summary["baselines"]["linear"])
        ],
        rel=1e-5,  # six digits are printed
    )


@pytest.mark.parametrize(("steps", "worse"), [(1, True), (2000, False)])
def test_a_model_that_is_not_better_than_the_mean_is_said_to_be_so(
    steps: int, worse: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    table()
    summary = run(*SPLIT, f"train.steps={steps}", "optimizer=adam", "optimizer.lr=0.01").summary
    mean = summary["baselines"]["mean"]["test/rmse"]
    line = (
        "mean     the model is not better than the mean of the training rows: test/rmse "
        f"{summary['metrics']['test/rmse']:.6g}, and {mean:.6g} for the mean"
    )
    assert (line in capsys.readouterr().out) == worse
    assert (summary["metrics"]["test/rmse"] > mean) == worse


def test_a_linear_baseline_that_would_take_long_is_left_out() -> None:
    table(columns=1000)
    assert list(run("data.features=null").summary["baselines"]) == ["mean"]


def test_a_run_of_a_known_function_has_a_noise_floor_instead() -> None:
    summary = runner.run(None, ["device=cpu", "record.plots=false", "train.steps=1"]).summary
    assert "baselines" not in summary
    assert "noise_floor" in summary


def test_a_baseline_that_fails_costs_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table()
    monkeypatch.setitem(baselines._FITS, "linear", lambda dataset: 1 / 0)
    assert "baselines" not in run().summary
    assert (
        "note: the results are complete, but not the comparison with `record.baselines`: ZeroDivisionError: division by zero"
        in capsys.readouterr().out
    )


def test_baselines_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as refused:
        run("record.baselines=[means,boosting,boosting]")
    assert refused.value.problems == (
        "`record.baselines` must be a list of mean, linear, boosting, got means; did you mean mean?",
        "`record.baselines` must not repeat an entry, got [means, boosting, boosting]; remove one",
        "`record.baselines` must not contain boosting, because scikit-learn is not installed; install it with "
        '`pip install "runner[baselines]"`, or remove boosting',
    )


@pytest.mark.parametrize("valid", [0, 30])
def test_a_sweep_has_the_baselines_and_says_when_it_compares_on_test_rows(
    valid: int, capsys: pytest.CaptureFixture[str]
) -> None:
    table()
    sweep = ["optimizer.lr=0.01,0.02", "seeds=2", *SPLIT, f"data.split.valid={valid}"]
    path, _ = runner.multirun(None, [*QUICK, *MODEL, *sweep])
    summaries = [json.loads((path / str(i) / "summary.json").read_text()) for i in range(4)]
    metric = "valid/rmse" if valid else "test/rmse"
    values = summaries[0]["baselines"]
    assert all(summary["baselines"] == values for summary in summaries)  # the rows are the same
    out = capsys.readouterr().out
    assert f"baselines {metric}: mean {values['mean'][metric]:.6g}, linear {values['linear'][metric]:.6g}" in out
    assert ("use data.split.valid" in out) == (not valid)


@pytest.mark.parametrize("numbers", ["none", "standardize", "robust"])
def test_the_linear_baseline_of_redundant_columns_is_that_of_scikit_learn(numbers: str) -> None:
    """In 34,522 rows on one thread, rounding leaves the dependent columns of three categories far from 0."""
    path = Path(runner.__file__).parents[2] / "experiments" / "diamonds" / "diamonds.csv.gz"
    options = ["data.split.test=0.2", "data.split.valid=0.16", "optimizer.lr=1e-30", "dtype=float32"]
    found = run(
        f"data.path={path}", "data.target=price", f"data.numbers={numbers}", "record.baselines=[linear]", *options
    )
    table = pyarrow.csv.read_csv(path)
    kinds = ("cut", "color", "clarity")
    texts = np.stack([table[name].to_numpy() for name in kinds], 1)
    values = np.stack([table[name].to_numpy() for name in table.column_names if name not in (*kinds, "price")], 1)
    features = np.hstack([values, OneHotEncoder(sparse_output=False).fit_transform(texts)])
    price = table["price"].to_numpy().astype(float)
    parts: dict[str, list[int]] = {}
    for line in (found.directory / "residuals.csv").read_text().splitlines()[1:]:
        row, part, *_ = line.split(",")
        parts.setdefault(part, []).append(int(row) - 1)
    model = make_pipeline(StandardScaler(), LinearRegression()).fit(features[parts["train"]], price[parts["train"]])
    for part, rows in parts.items():
        wanted = root_mean_squared_error(price[rows], model.predict(features[rows]))
        # The columns are float32, 24 bits, and some of them are nearly multiples of others.
        assert found.summary["baselines"]["linear"][f"{part}/rmse"] == pytest.approx(wanted, rel=1e-6)
