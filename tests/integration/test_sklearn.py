"""Estimators for scikit-learn: its own checks, its tools, and the answers of a run and of scipy."""

from __future__ import annotations

import importlib
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.optimize
import torch
from sklearn.base import clone
from sklearn.datasets import make_friedman1
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import check_estimator

import runner
from runner.errors import ConfigError, DataError
from runner.sklearn import CurveRegressor, Regressor

SHORT = ["model.widths=[8]"]
DECAY = "a*exp(-b*x0) + c"
START = {"a": 1.0, "b": 0.5, "c": 0.0}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def short(**options: Any) -> Regressor:
    """Return an estimator that trains in a few steps."""
    return Regressor(**{"epochs": 20, "overrides": SHORT, **options})


def rows(count: int = 40, columns: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return features and a target that is nearly linear in them."""
    draw = np.random.default_rng(0)
    features = draw.normal(size=(count, columns))
    return features, 3 + features @ np.arange(1.0, columns + 1) + 0.1 * draw.normal(size=count)


def decay(count: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return x, y and the standard deviations of y of a decay."""
    draw = np.random.default_rng(0)
    x, sigma = np.linspace(0, 5, count), 0.05 + 0.1 * draw.random(count)
    return x, 2 * np.exp(-1.3 * x) + 0.5 + sigma * draw.normal(size=count), sigma


def mixed(count: int = 60) -> tuple[pd.DataFrame, np.ndarray]:
    """Return a table of numbers, texts, truth values, categories and dates, with missing values, and a target."""
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"size": draw.normal(size=count), "kind": draw.choice(["red", "green", "blue"], count)})
    frame["new"], frame["grade"] = draw.random(count) < 0.5, pd.Categorical(draw.choice(["low", "high"], count))
    frame["day"] = pd.date_range("2024-01-01", periods=count, freq="7h")
    target = frame["size"] + 2 * (frame["kind"] == "red") + frame["new"] + 0.1 * draw.normal(size=count)
    for place, name in enumerate(["size", "kind", "grade", "day"]):
        frame.loc[[place, 2 * place + 20], name] = None
    return frame, target.to_numpy()


def write(path: str, **columns: np.ndarray) -> None:
    pd.DataFrame(columns).to_csv(path, index=False)


# -------------------------------------------------------------------------------------------------- scikit-learn's own


@pytest.mark.parametrize("estimator", [Regressor(), CurveRegressor()], ids=["model", "formula"])
@pytest.mark.filterwarnings("ignore")  # the checks have warnings of their own
def test_every_check_of_scikit_learn_passes(estimator: Any) -> None:
    found = check_estimator(estimator, on_skip=None, on_fail=None)
    assert {(each["check_name"], str(each["exception"])) for each in found if each["status"] == "failed"} == set()
    assert not any(each["expected_to_fail"] for each in found)
    assert {each["check_name"] for each in found if each["status"] == "skipped"} <= {"check_array_api_input"}
    assert len(found) >= 55


def test_a_search_in_a_pipeline_finds_the_better_learning_rate() -> None:
    features, target = rows()
    pipeline = make_pipeline(StandardScaler(), short(random_state=1))
    search = GridSearchCV(pipeline, {"regressor__lr": [1e-6, 0.05]}, cv=3).fit(features, target)
    assert search.best_params_ == {"regressor__lr": 0.05}
    scores = cross_val_score(clone(search.best_estimator_), features, target, cv=3)
    assert scores.mean() == search.best_score_


def test_a_clone_and_a_pickle_predict_the_same() -> None:
    features, target = rows()
    fitted = short().fit(features, target)
    expected = fitted.predict(features)
    assert np.array_equal(pickle.loads(pickle.dumps(fitted)).predict(features), expected)
    assert np.array_equal(clone(fitted).fit(features, target).predict(features), expected)
    assert np.array_equal(fitted.predict(features[7:8]), expected[7:8])


def test_default_values_fit_a_small_table() -> None:
    """Better than a linear model where the target is not linear, with no tuning."""
    features, target = make_friedman1(300, noise=1.0, random_state=0)
    train, test = slice(200), slice(200, None)
    score = Regressor().fit(features[train] * 1000, target[train]).score(features[test] * 1000, target[test])
    assert score > 0.85
    assert LinearRegression().fit(features[train], target[train]).score(features[test], target[test]) < 0.75


# ------------------------------------------------------------------------------------------------------ the same answer


def test_a_model_has_the_bits_of_a_run() -> None:
    features, target = rows()
    weight = np.arange(len(target)) % 4.0
    write("t.csv", x0=features[:, 0], x1=features[:, 1], x2=features[:, 2], y=target, w=weight)
    fitted = short(lr=0.02, random_state=5).fit(features, target, sample_weight=weight)
    typed = ["data=csv", "data.path=t.csv", "data.target=y", "data.weight=w", "optimizer.lr=0.02", "seed=5"]
    run = runner.run("table", [*typed, *SHORT, "train.epochs=20", "record.plots=false"])
    assert fitted.summary_["parameters_sha256"] == run.summary["parameters_sha256"]
    assert fitted.summary_["metrics"] == run.summary["metrics"]
    assert np.array_equal(fitted.predict(features), runner.load(run.directory, device="cpu").predict(features))
    assert fitted.n_iter_ == run.summary["steps"] == 20


def test_a_formula_has_the_bits_of_a_run() -> None:
    x, y, sigma = decay()
    write("t.csv", x0=x, y=y, s=sigma)
    fitted = CurveRegressor(DECAY, start=START).fit(x[:, None], y, sigma=sigma)
    typed = ["data=csv", "data.path=t.csv", "data.target=y", "data.sigma=s", f"model.expression={DECAY}"]
    summary = runner.run("formula", [*typed, "model.start={a: 1, b: 0.5, c: 0}", "record.plots=false"]).summary
    for entry in ("parameters", "parameters_sha256", "standard_errors", "covariance", "chi_square", "converged"):
        assert fitted.summary_[entry] == summary[entry]


def test_the_best_state_is_selected_as_in_a_run() -> None:
    features, target = rows(60)
    write("t.csv", x0=features[:, 0], x1=features[:, 1], x2=features[:, 2], y=target)
    early = ["data.split.valid=0.3", "train.eval_every_steps=1", "train.early_stopping.patience=2", "optimizer.lr=0.5"]
    fitted = short(overrides=[*SHORT, *early]).fit(features, target)
    typed = ["data=csv", "data.path=t.csv", "data.target=y", *SHORT, *early, "train.epochs=20"]
    run = runner.run("table", [*typed, "record.plots=false"])
    assert fitted.summary_["selected"] == run.summary["selected"]
    assert fitted.summary_["selected"]["step"] < fitted.n_iter_ == run.summary["steps"]
    assert np.array_equal(fitted.predict(features), runner.load(run.directory, device="cpu").predict(features))


@pytest.mark.parametrize("absolute", [False, True])
def test_a_weighted_formula_has_the_answer_of_scipy(absolute: bool) -> None:
    x, y, sigma = decay()
    fitted = CurveRegressor(DECAY, start=START, absolute_sigma=absolute).fit(x[:, None], y, sigma=sigma)

    def curve(x: np.ndarray, a: float, b: float, c: float) -> Any:
        return a * np.exp(-b * x) + c

    def jacobian(x: np.ndarray, a: float, b: float, c: float) -> Any:
        return np.stack([np.exp(-b * x), -a * x * np.exp(-b * x), np.ones_like(x)], 1)

    options = {"jac": jacobian, "ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15}
    best, covariance = scipy.optimize.curve_fit(curve, x, y, [1, 0.5, 0], sigma, absolute, **options)
    assert [*fitted.params_] == ["a", "b", "c"]
    # Both stop where a step would move the predictions by a small part of their standard errors.
    np.testing.assert_array_less(np.abs([*fitted.params_.values()] - best), 1e-6 * np.sqrt(np.diag(covariance)))
    np.testing.assert_allclose(fitted.covariance_, covariance, rtol=1e-7)
    assert [*fitted.standard_errors_.values()] == pytest.approx(np.sqrt(np.diag(covariance)).tolist(), rel=1e-7)
    assert fitted.converged_
    np.testing.assert_array_almost_equal_nulp(fitted.predict(x[:, None]), curve(x, **fitted.params_), 4)


def test_a_weight_is_one_over_the_variance() -> None:
    x, y, sigma = decay()
    by_sigma = CurveRegressor(DECAY, start=START).fit(x[:, None], y, sigma=sigma)
    by_weight = CurveRegressor(DECAY, start=START).fit(x[:, None], y, sample_weight=7 / sigma**2)
    assert by_weight.params_ == pytest.approx(by_sigma.params_, rel=1e-9)
    assert by_weight.standard_errors_ == pytest.approx(by_sigma.standard_errors_, rel=1e-7)


def test_a_parameter_that_is_fixed_or_at_its_bound_has_no_standard_error() -> None:
    x, y, _ = decay()
    options: dict[str, Any] = {"bounds": {"b": (None, 0.6), "a": (0, np.inf)}, "fixed": {"c": np.float64(0.25)}}
    fitted = CurveRegressor(DECAY, start={"a": 1, "b": np.float32(0.5)}, **options).fit(x[:, None], y)
    slope = np.exp(-0.6 * x)
    a = slope @ (y - 0.25) / (slope @ slope)
    error = np.sqrt(((y - 0.25 - a * slope) ** 2).sum() / (len(x) - 1) / (slope @ slope))
    assert fitted.params_ == pytest.approx({"a": a, "b": 0.6, "c": 0.25}, rel=1e-9)
    assert fitted.standard_errors_ == pytest.approx({"a": error, "b": np.nan, "c": np.nan}, rel=1e-7, nan_ok=True)
    assert fitted.covariance_[0, 0] == pytest.approx(error**2, rel=1e-7)
    assert np.isnan(fitted.covariance_).sum() == 8


def test_formulas_of_several_targets_share_their_parameters() -> None:
    x, y, _ = decay()
    both = np.stack([y, 3 * y + 0.1 * np.cos(7 * x)], 1)
    formulas, start = [DECAY, "d*exp(-b*x0) + e"], {**START, "d": 1.0, "e": 0.0}
    fitted = CurveRegressor(formulas, start=start).fit(x[:, None], both)

    def residuals(values: np.ndarray) -> Any:
        a, b, c, d, e = values
        return (np.stack([a * np.exp(-b * x) + c, d * np.exp(-b * x) + e], 1) - both).ravel()

    best = scipy.optimize.least_squares(residuals, [*start.values()], jac="3-point", xtol=1e-15, ftol=1e-15, gtol=1e-15)
    assert [*fitted.params_] == [*start]
    # The derivatives of scipy are differences, which have half of the digits.
    np.testing.assert_allclose([*fitted.params_.values()], best.x, rtol=1e-6)
    np.testing.assert_allclose(fitted.predict(x[:, None]).ravel(), best.fun + both.ravel(), rtol=1e-6)
    write("t.csv", x0=x, u=both[:, 0], v=both[:, 1])
    expression = f'model.expression={{u: "{formulas[0]}", v: "{formulas[1]}"}}'
    typed = ["data=csv", "data.path=t.csv", "data.target=[u,v]", expression]
    summary = runner.run("formula", [*typed, f"model.start={start}".replace("'", ""), "record.plots=false"]).summary
    for entry in ("parameters", "standard_errors", "covariance"):
        assert fitted.summary_[entry] == summary[entry]
    assert get_tags(fitted).target_tags.multi_output
    assert not get_tags(CurveRegressor()).target_tags.multi_output


def test_without_a_formula_the_answer_is_that_of_linear_least_squares() -> None:
    features, target = rows()
    fitted, linear = CurveRegressor().fit(features, target), LinearRegression().fit(features, target)
    assert fitted.expression_ == "b0 + b1*x0 + b2*x1 + b3*x2"
    assert [*fitted.params_.values()] == pytest.approx([linear.intercept_, *linear.coef_], rel=1e-10)
    model = Regressor(None, model="linear", optimizer="lstsq", overrides=["dtype=float64"]).fit(features, target)
    np.testing.assert_allclose(model.predict(features), linear.predict(features), rtol=1e-12)


# ------------------------------------------------------------------------------------------------------------- the rows


def test_columns_of_a_frame_have_their_names_in_a_formula() -> None:
    x, y, _ = decay()
    frame = pd.DataFrame({"b0": np.ones(len(x)), "t (s)": x})
    named = CurveRegressor("a*exp(-b*`t (s)`) + c", start=START).fit(frame, y)
    assert named.params_ == CurveRegressor(DECAY, start=START).fit(x[:, None], y).params_
    assert named.feature_names_in_.tolist() == ["b0", "t (s)"]
    assert CurveRegressor().fit(frame, y).expression_ == "b_0 + b_1*b0 + b_2*`t (s)`"


def test_columns_called_as_the_target_are_features() -> None:
    features, target = rows()
    plain, named = short().fit(features, target), short()
    named.fit(pd.DataFrame(features, columns=["y", "weight", "y_"]), target)
    assert named.predictor_.target_names == ("y__",)
    assert np.array_equal(named.predict(pd.DataFrame(features, columns=["y", "weight", "y_"])), plain.predict(features))


def test_some_of_the_columns_may_be_the_features() -> None:
    features, target = rows()
    fitted = short(overrides=[*SHORT, "data.features=[x2,x0]"]).fit(features, target)
    changed = features * [1, 1000, 1]
    assert np.array_equal(fitted.predict(changed), fitted.predict(features))
    assert not np.array_equal(fitted.predict(features[:, ::-1]), fitted.predict(features))


def test_columns_may_have_new_names() -> None:
    x, y, _ = decay()
    renamed = CurveRegressor("a*exp(-b*t) + c", start=START, overrides=["data.rename={t: x0}"]).fit(x[:, None], y)
    plain = CurveRegressor(DECAY, start=START).fit(x[:, None], y)
    assert np.array_equal(renamed.predict(x[:, None]), plain.predict(x[:, None]))


def test_a_table_is_read_like_a_file() -> None:
    """Texts, truth values, categories, dates and missing values have the bits of a run with a Parquet file of the table."""
    frame, target = mixed()
    frame.assign(y=target).to_parquet("t.parquet")
    options = [*SHORT, "data.missing=mean", "data.dates=parts"]
    fitted = short(overrides=options, random_state=3).fit(frame, target)
    typed = ["data=parquet", "data.path=t.parquet", "data.target=y", "seed=3", *options]
    run = runner.run("table", [*typed, "train.epochs=20", "record.plots=false"])
    kinds = {"size": "number", "kind": "category", "new": "category", "grade": "category", "day": "date"}
    assert fitted.predictor_.preprocessing.kinds == kinds
    assert fitted.predictor_.preprocessing.state() == runner.load(run.directory).preprocessing.state()
    assert fitted.summary_["parameters_sha256"] == run.summary["parameters_sha256"]
    assert np.array_equal(fitted.predict(frame), runner.load(run.directory, device="cpu").predict(frame))


def test_a_table_of_polars_or_pyarrow_has_the_answer_of_one_of_pandas() -> None:
    polars = pytest.importorskip("polars")
    frame, target = mixed()
    options = [*SHORT, "data.missing=mean"]
    expected = short(overrides=options).fit(frame, target).predict(frame)
    for other in (polars.from_pandas(frame), pa.table(frame)):
        assert np.array_equal(short(overrides=options).fit(other, target).predict(other), expected)


def test_a_table_with_missing_values_works_in_the_tools() -> None:
    frame, target = mixed()  # a shuffled split has an index, which is no column
    pipeline = make_pipeline(FunctionTransformer(), short(overrides=[*SHORT, "data.missing=mean"], random_state=1))
    search = GridSearchCV(pipeline, {"regressor__lr": [1e-6, 0.05]}, cv=KFold(3, shuffle=True, random_state=0))
    search.fit(frame, target)
    assert search.best_params_ == {"regressor__lr": 0.05}
    assert search.best_score_ > 0.5
    expected = search.predict(frame)
    assert np.array_equal(pickle.loads(pickle.dumps(search.best_estimator_)).predict(frame), expected)
    assert np.array_equal(clone(search.best_estimator_).fit(frame, target).predict(frame), expected)
    assert np.array_equal(search.predict(frame[5:6]), expected[5:6])


def test_a_category_that_fit_has_not_seen_is_predicted_with_a_warning() -> None:
    frame, target = mixed()
    fitted = short(overrides=[*SHORT, "data.missing=mean"]).fit(frame, target)
    changed = frame.assign(kind=["violet", "violet", *frame["kind"][2:]])
    with pytest.warns(UserWarning, match=r"^column 'kind' has values that .* did not have: 'violet' \(2 rows\); they"):
        found = fitted.predict(changed)
    assert np.isfinite(found).all()
    assert np.array_equal(found[2:], fitted.predict(frame)[2:])


def test_missing_values_are_as_the_configuration_says() -> None:
    features, target = rows()
    features[3, 1] = np.nan
    frame = pd.DataFrame(features, columns=["a", "b", "c"])
    with pytest.raises(ValueError, match="Input X contains NaN"):
        short().fit(features, target)
    with pytest.raises(DataError) as raised:
        short().fit(frame, target)
    assert str(raised.value) == (
        "`data.missing`: column 'b' of 'the table' has 1 missing value (2.5%), in row 4; use data.missing=drop or data.missing=mean"
    )
    mean = short(overrides=[*SHORT, "data.missing=mean"])
    assert (get_tags(mean).input_tags.allow_nan, get_tags(short()).input_tags.allow_nan) == (True, False)
    assert np.array_equal(mean.fit(features, target).predict(features), clone(mean).fit(frame, target).predict(frame))
    kept = np.arange(len(target)) != 3
    drop, rest = short(overrides=[*SHORT, "data.missing=drop"]), short().fit(features[kept], target[kept])
    assert np.array_equal(drop.fit(features, target).predict(features[kept]), rest.predict(features[kept]))


def test_several_targets_are_trained_together_and_a_column_stays_one() -> None:
    features, target = rows()
    both = short(epochs=100).fit(features, np.stack([target, -target], 1))
    assert both.predict(features).shape == (40, 2)
    assert both.score(features, np.stack([target, -target], 1)) > 0.9
    weighted = short().fit(features, np.stack([target, -target], 1), sample_weight=np.ones(40))
    assert weighted.predictor_.target_names == ("y0", "y1")
    column = short().fit(features, target[:, None])
    assert np.array_equal(column.predict(features), short().fit(features, target).predict(features)[:, None])


# ---------------------------------------------------------------------------------------------------- nothing is touched


def test_a_fit_leaves_no_file_and_no_setting_behind(tmp_path: Path) -> None:
    features, target = rows()
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()
    random, numpy_random = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    options = ["model.dropout=0.5", "deterministic=true", "device.threads=3", "device.matmul_precision=medium"]
    short(overrides=[*SHORT, *options]).fit(features, target)
    assert before == (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
    )
    assert torch.equal(random, torch.get_rng_state())
    assert numpy_random == np.random.get_state()[1].tolist()  # type: ignore[index]
    assert [*tmp_path.iterdir()] == []


def test_fits_in_threads_are_those_of_one_after_the_other() -> None:
    features, target = rows()
    seeds = [0, 1, 2]
    alone = [short(random_state=seed).fit(features, target).predict(features) for seed in seeds]
    with ThreadPoolExecutor(3) as pool:
        together = [*pool.map(lambda seed: short(random_state=seed).fit(features, target).predict(features), seeds)]
    assert np.array_equal(alone, together)
    assert not np.array_equal(alone[0], alone[1])


def test_the_seed_is_the_random_state() -> None:
    features, target = rows()

    def predicted(**options: Any) -> list[float]:
        found: list[float] = short(**options).fit(features, target).predict(features).tolist()
        return found

    assert predicted() == predicted(random_state=0) == predicted(overrides=[*SHORT, "seed=0"])
    assert predicted(random_state=np.int64(3)) == predicted(overrides=[*SHORT, "seed=3"])
    assert predicted(random_state=np.random.RandomState(1)) == predicted(random_state=np.random.RandomState(1))


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (Regressor(model="net"), "model"),
        (Regressor(lr=-1.0), "`optimizer.lr` must be a finite number from 0 to 1e+38, got -1"),
        (Regressor(overrides="seed=1"), '`overrides` must be a list of strings such as ["seed=3"], got \'seed=1\'; put it in a list'),
        (Regressor(overrides=["data=line"]), "`data` must be left out, because `fit` is given the rows, got data=line; remove it from `overrides`"),
        (Regressor(overrides=["data.valid_path=v.csv"]), "`data.valid_path` is not a key of memory, which has "),
        (Regressor(overrides=["launch.processes=2"]), "`launch.processes` and `launch.nodes` must be 1 in a fit in memory; remove them"),
        (Regressor(overrides=["seeds=3"]), "`seeds` must be null in a fit in memory, which trains one model, got 3; fit once for each `seed`"),
        (CurveRegressor(["a*x0", "b*x0"]), "`expression` must have as many formulas as y has columns, 1, got 2; give one for each column"),
        (CurveRegressor("a*x0 +"), "`model.expression`: "),
        (CurveRegressor("a*x0", start={"k": 1}), "`model.start.k` must name a parameter of `model.expression`='a*x0', which has a, x0; remove it"),
    ],
    ids=["model", "lr", "overrides", "data", "path", "launch", "seeds", "formulas", "formula", "start"],
)  # fmt: skip
def test_what_cannot_be_fitted_is_refused(estimator: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        estimator.fit(*rows())
    assert message in str(raised.value)


def test_a_formula_without_the_columns_is_refused_with_their_names() -> None:
    with pytest.raises(DataError) as raised:
        CurveRegressor("a*x + b").fit(*rows())
    assert str(raised.value) == (
        "`model.expression` must use a column of the data (x0, x1, x2), got 'a*x + b'; correct the names, and write those with "
        "blanks or signs in backticks"
    )


def test_columns_of_categories_in_an_array_are_refused() -> None:
    message = "the rows must be a table with named columns, because {} categories or groups, got an array; use a table"
    with pytest.raises(DataError) as raised:
        short(overrides=["data.categorical=[x1]", "data.split.group=x2", "data.split.valid=0.2"]).fit(*rows())
    assert str(raised.value) == message.format("'x1', 'x2' are")
    frame, target = mixed()
    fitted = short(epochs=1, overrides=[*SHORT, "data.missing=mean"]).fit(frame, target)
    with pytest.raises(DataError) as raised, pytest.warns(UserWarning, match="does not have valid feature names"):
        fitted.predict(np.zeros((1, 5)))
    assert str(raised.value) == message.format("'kind', 'new', 'grade' are")


def test_weights_and_deviations_together_are_refused() -> None:
    features, target = rows()
    with pytest.raises(ConfigError, match=r"^`data.weight` must be null with `data.sigma`='sigma', got 'weight'; "):
        CurveRegressor().fit(features, target, sample_weight=np.ones(40), sigma=np.ones(40))
    with pytest.raises(
        ValueError, match=r"^sigma must have the shape \(40,\), got \(39,\); give one number for each row$"
    ):
        CurveRegressor().fit(features, target, sigma=np.ones(39))


def test_a_fit_that_has_not_converged_is_a_warning() -> None:
    x, y, _ = decay()
    with pytest.warns(ConvergenceWarning, match=r"^the fit has not converged: the parameters are still changing "):
        fitted = CurveRegressor(DECAY, start=START, overrides=["train.steps=2"]).fit(x[:, None], y)
    assert not fitted.converged_
    assert fitted.n_iter_ == 2


def test_data_in_memory_are_not_for_the_command_line() -> None:
    with pytest.raises(ConfigError) as raised:
        runner.run("table", ["data=memory"])
    assert str(raised.value) == (
        '`data` must not be memory, whose rows only Python code can give; call runner.run(data=…), with overrides=["resume=RUN_DIR"] '
        "to resume a run, or use data=csv with a file of the rows"
    )


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    monkeypatch.delitem(sys.modules, "runner.sklearn")
    with pytest.raises(ImportError) as raised:
        importlib.import_module("runner.sklearn")
    assert str(raised.value) == (
        'runner.sklearn needs scikit-learn 1.6 or newer, which is not installed; pip install "runner[baselines]"'
    )
