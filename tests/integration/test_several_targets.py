"""`data.target` with several columns: against scikit-learn, SciPy, closed forms, and runs of one target each."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import least_squares
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

import runner
from runner.cli import main
from runner.runs.sinks.jsonl import read_rows
from runner.training.run import Run

QUICK = ["data=csv", "data.path=t.csv", "dtype=float64", "device=cpu", "device.threads=1", "record.plots=false"]
BOTH = "data.target=[u,v]"
SOLVE = ["model=linear", "optimizer=lstsq", "train.steps=3"]
SHARED = ["model=formula", 'model.expression={u: "a*exp(-b*x)", v: "a*x + c"}', "optimizer=lm", "train.steps=100"]
TRAIN, TEST = slice(0, 45), slice(45, None)
SPLIT = ["data.split.test=15", "data.split.order=sequential"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def table() -> dict[str, np.ndarray]:
    """Write t.csv with two targets of different size whose errors in one row are correlated; return its columns."""
    draw = np.random.default_rng(3)
    x, z = draw.uniform(0, 3, 60), draw.normal(size=60)
    noise = draw.multivariate_normal([0, 0], [[0.01, 0.15], [0.15, 4]], 60)
    columns = {
        "x": x,
        "z": z,
        "w": draw.integers(0, 4, 60).astype(float),
        "u": 3 * np.exp(-0.7 * x) + noise[:, 0],
        "v": 3 * x + 20 + noise[:, 1],
    }
    np.savetxt("t.csv", np.column_stack([*columns.values()]), "%.17g", ",", header=",".join(columns), comments="")
    return columns


def run(*overrides: str) -> Run:
    return runner.run(None, [*QUICK, *overrides])


def numbers(entry: dict[str, Any]) -> list[float]:
    return [number for value in entry.values() for number in np.asarray(value).flatten().tolist()]


# ------------------------------------------------------------------------------------------------------ linear models


WEIGHTS = {"plain": "data.drop=[w]", "weighted": "data.weight=w"}


@pytest.mark.parametrize("standardize", ["false", "true"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_linear_fit_is_that_of_scikit_learn_and_of_a_run_for_each_target(
    weights: str, standardize: str, table: dict[str, np.ndarray]
) -> None:
    overrides = [*SOLVE, *SPLIT, WEIGHTS[weights], f"data.standardize={standardize}"]
    summary = run(BOTH, *overrides).summary
    x, y = np.column_stack([table["x"], table["z"]]), np.column_stack([table["u"], table["v"]])
    w = table["w"] if weights == "weighted" else np.ones(60)
    expected = LinearRegression().fit(x[TRAIN], y[TRAIN], w[TRAIN])
    # Rounding, of sums of 45 numbers.
    np.testing.assert_allclose(summary["parameters"]["weight"], expected.coef_, rtol=1e-11)
    np.testing.assert_allclose(summary["parameters"]["bias"], expected.intercept_, rtol=1e-11)
    names = ["x → u", "z → u", "x → v", "z → v", "constant → u", "constant → v"]
    assert list(summary["coefficients"]) == names
    assert list(summary["coefficients"].values()) == numbers(summary["parameters"])
    alone = [run(f"data.target={own}", "data.features=[x,z]", *overrides).summary for own in ("u", "v")]
    for kind in ("parameters", "standard_errors"):
        for name, value in summary[kind].items():
            separate = [each[kind][name] for each in alone]
            np.testing.assert_allclose(
                np.asarray(value), np.concatenate(separate), rtol=1e-11, err_msg=f"{kind} {name}"
            )
    assert summary["degrees_of_freedom"] == sum(each["degrees_of_freedom"] for each in alone)
    for target, each in zip(("u", "v"), alone, strict=True):
        deviation = summary["residual_standard_deviation"][target]
        assert deviation == pytest.approx(each["residual_standard_deviation"], rel=1e-12)
        interval = summary["confidence_intervals"]["bias"]["low"][("u", "v").index(target)]
        assert interval == pytest.approx(each["confidence_intervals"]["bias"]["low"][0], rel=1e-11)
        for metric in ("rmse", "mae", "r2"):
            own = summary["metrics"][f"test/{metric}/{target}"]
            assert own == pytest.approx(each["metrics"][f"test/{metric}"], rel=1e-11)
    assert not {"chi_square", "reduced_chi_square", "aic", "bic"} & {*summary}


def test_the_covariance_between_targets_is_that_of_their_errors(table: dict[str, np.ndarray]) -> None:
    """S ⊗ (XᵀX)⁻¹ for the covariance S of the residuals: Zellner (1962)."""
    summary = run(BOTH, *SOLVE, "data.features=[x]").summary
    design, y = np.column_stack([table["x"], np.ones(60)]), np.column_stack([table["u"], table["v"]])
    residuals = y - design @ np.linalg.lstsq(design, y)[0]
    expected = np.kron(residuals.T @ residuals / 58, np.linalg.inv(design.T @ design))
    order = ["x → u", "constant → u", "x → v", "constant → v"]
    found = summary["covariance"]
    names = list(found)
    rows = [[found[row][names.index(column)] for column in order] for row in order]
    np.testing.assert_allclose(rows, expected, rtol=1e-11)


def test_a_polynomial_has_the_coefficients_of_each_target(table: dict[str, np.ndarray]) -> None:
    overrides = ["model=polynomial", "model.degree=2", *SOLVE[1:], "data.standardize=true", "data.features=[x]"]
    summary = run(BOTH, *overrides).summary
    powers = np.column_stack([table["x"], table["x"] ** 2])
    expected = LinearRegression().fit(powers, np.column_stack([table["u"], table["v"]]))
    np.testing.assert_allclose(summary["parameters"]["linear.weight"], expected.coef_, rtol=1e-10)
    assert list(summary["coefficients"]) == ["x → u", "x^2 → u", "x → v", "x^2 → v", "constant → u", "constant → v"]
    alone = [run(f"data.target={own}", *overrides).summary["standard_errors"] for own in ("u", "v")]
    for name, errors in summary["standard_errors"].items():
        np.testing.assert_allclose(np.asarray(errors), np.concatenate([each[name] for each in alone]), rtol=1e-10)


# ------------------------------------------------------------------------------------------------------------ formulas


def test_formulas_share_their_parameters(table: dict[str, np.ndarray]) -> None:
    summary = run(BOTH, *SHARED, "data.features=[x]").summary
    x, y = table["x"], np.column_stack([table["u"], table["v"]])

    def residuals(p: np.ndarray) -> np.ndarray:
        prediction = np.column_stack([p[0] * np.exp(-p[1] * x), p[0] * x + p[2]])
        flat: np.ndarray = (prediction - y).flatten()
        return flat

    fit = least_squares(residuals, [1.0, 1.0, 1.0], method="lm", xtol=1e-15, ftol=1e-15, gtol=1e-15)
    found = summary["parameters"]
    assert list(found) == ["a", "b", "c"]
    # SciPy stops where a step changes the parameters by 1e-8 of their errors.
    np.testing.assert_allclose(list(found.values()), fit.x, rtol=1e-6)
    # Least squares with errors of covariance S in a row, in closed form.
    a, b, _ = found.values()
    each = np.stack([np.column_stack([np.exp(-b * x), -a * x * np.exp(-b * x), 0 * x]), np.column_stack([x, 0 * x, 1 + 0 * x])], 1)  # fmt: skip
    jacobian = each.reshape(-1, 3)
    errors = residuals(np.array(list(found.values()))).reshape(-1, 2)
    covariance = errors.T @ errors / ((120 - 3) / 2)
    inverse = np.linalg.inv(jacobian.T @ jacobian)
    middle = np.einsum("rin,ij,rjm->nm", each, covariance, each)
    np.testing.assert_allclose(list(summary["covariance"].values()), inverse @ middle @ inverse, rtol=1e-8)
    assert (summary["converged"], summary["degrees_of_freedom"]) == (True, 117)
    rows = read_rows(run(BOTH, *SHARED, "data.features=[x]").directory / "metrics.jsonl")
    assert rows[-1]["param/a"] == pytest.approx(a, rel=1e-12)


def test_formulas_without_common_parameters_are_fits_of_their_own(table: dict[str, np.ndarray]) -> None:
    texts = {"u": "a*exp(-b*x)", "v": "c*x + d"}
    options = ["model=formula", "optimizer=lm", "train.steps=100", "data.features=[x]"]
    # In another order than the targets.
    summary = run(BOTH, *options, f"model.expression={{v: '{texts['v']}', u: '{texts['u']}'}}").summary
    alone = [run(f"data.target={own}", *options, f"model.expression={texts[own]}").summary for own in texts]
    for kind in ("parameters", "standard_errors"):
        expected = {name: value for each in alone for name, value in each[kind].items()}
        # Both end within 1e-9 of their standard errors.
        assert summary[kind] == pytest.approx(expected, rel=1e-7)


def test_a_formula_of_each_target_keeps_bounds_and_fixed_values(table: dict[str, np.ndarray]) -> None:
    overrides = [BOTH, *SHARED, "data.features=[x]", "model.fixed.c=20", "model.bounds={b: [0.9, 2]}"]
    summary = run(*overrides).summary
    assert (summary["parameters"]["b"], summary["at_bounds"], summary["parameters"]["c"]) == (0.9, {"b": "lower"}, 20.0)
    x = table["x"]
    design, y = np.concatenate([np.exp(-0.9 * x), x]), np.concatenate([table["u"], table["v"] - 20])
    assert summary["parameters"]["a"] == pytest.approx(design @ y / (design @ design), rel=1e-12)
    assert (list(summary["standard_errors"]), summary["degrees_of_freedom"]) == (["a"], 119)
    errors = np.stack([design[:60] * summary["parameters"]["a"], design[60:] * summary["parameters"]["a"]], 1) - np.stack([y[:60], y[60:]], 1)  # fmt: skip
    covariance, halves = errors.T @ errors / (119 / 2), np.stack([design[:60], design[60:]], 1)
    variance = np.einsum("ri,ij,rj->", halves, covariance, halves) / (design @ design) ** 2
    assert summary["standard_errors"]["a"] == pytest.approx(math.sqrt(variance), rel=1e-10)


# ------------------------------------------------------------------------------------------------- metrics and records


@pytest.mark.parametrize("log", ["false", "true"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_metrics_and_baselines_are_those_of_scikit_learn(weights: str, log: str, table: dict[str, np.ndarray]) -> None:
    table["u"] += 1  # above 0
    np.savetxt("t.csv", np.column_stack([*table.values()]), "%.17g", ",", header=",".join(table), comments="")
    overrides = ["model=mlp", "model.widths=[3]", "train.steps=5", f"data.log_target={log}", "data.standardize=true"]
    summary = run(BOTH, *SPLIT, WEIGHTS[weights], *overrides, "record.residuals=true").summary
    with residuals_path().open() as file:
        rows = list(csv.DictReader(file))
    truth, predicted = (np.array([[float(row[f"{kind}/{t}"]) for t in ("u", "v")] for row in rows]) for kind in ("target", "prediction"))  # fmt: skip
    np.testing.assert_array_equal(
        truth.astype(np.float32), np.column_stack([table["u"], table["v"]]).astype(np.float32)
    )
    assert [float(row["residual/v"]) for row in rows] == pytest.approx((truth - predicted)[:, 1], rel=1e-9, abs=1e-12)
    w = table["w"] if weights == "weighted" else np.ones(60)
    x = np.column_stack([table["x"], table["z"]])

    def check(metrics: dict[str, float], prediction: np.ndarray) -> None:
        for part, some in (("train", TRAIN), ("test", TEST)):
            for name, metric in (("rmse", root_mean_squared_error), ("mae", mean_absolute_error), ("r2", r2_score)):
                arguments: Any = (truth[some], prediction[some])
                mean = metric(*arguments, sample_weight=w[some])
                each = metric(*arguments, sample_weight=w[some], multioutput="raw_values")
                assert metrics[f"{part}/{name}"] == pytest.approx(mean, rel=1e-9, abs=1e-12)
                found = [metrics[f"{part}/{name}/{target}"] for target in ("u", "v")]
                assert found == pytest.approx(each, rel=1e-9, abs=1e-12)

    check(summary["metrics"], predicted)
    mean = DummyRegressor().fit(x[TRAIN], truth[TRAIN], w[TRAIN])
    check(summary["baselines"]["mean"], mean.predict(x))
    linear = LinearRegression().fit(x[TRAIN], np.log(truth[TRAIN]) if log == "true" else truth[TRAIN], w[TRAIN])
    check(summary["baselines"]["linear"], np.exp(linear.predict(x)) if log == "true" else linear.predict(x))


def residuals_path() -> Path:
    (path,) = Path().glob("runs/*/*/residuals.csv")
    return path


def test_the_console_has_a_row_for_each_target(
    table: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(BOTH, *SOLVE, *SPLIT, "record.baselines=[mean]", "data.features=[x]")
    lines, summary = capsys.readouterr().out.splitlines(), result.summary
    first = next(i for i, line in enumerate(lines) if line.split() == ["loss", "rmse", "mae", "r2"])
    rows = [line.split() for line in lines[first + 1 : first + 9]]
    assert [row[0] for row in rows] == ["train", "→", "→", "mean", "test", "→", "→", "mean"]
    assert [row[1] for row in (rows[1], rows[2])] == ["u", "v"]
    metrics = summary["metrics"]
    expected = [f"{metrics[name]:.6g}" for name in ("test/loss", "test/rmse", "test/mae", "test/r2")]
    assert rows[4][1:] == expected
    assert rows[6][2:] == [f"{metrics[f'test/{name}/v']:.6g}" for name in ("rmse", "mae", "r2")]
    assert any(line.startswith("data ") and line.endswith("of 1 feature → u, v") for line in lines)
    assert any(line.startswith("x → v = ") for line in lines)
    assert "targets  rmse, mae and r2 of a part are means over 2 targets" in lines
    deviations = summary["residual_standard_deviation"]
    assert any(
        f"residual standard deviation u {deviations['u']:.6g}, v {deviations['v']:.6g}, 86 degrees" in line
        for line in lines
    )
    assert list(read_rows(result.directory / "metrics.jsonl")[-1]) != []
    assert not any("/rmse/" in line for line in lines)


def test_names_that_look_like_others_stay_apart(
    table: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    """A target may have the name of a metric, or a slash, a comma or a quote in it."""
    names = {"u": "a/b", "v": 'loss, "v"'}
    with Path("t.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([names.get(name, name) for name in table])
        writer.writerows(np.column_stack([*table.values()]).tolist())
    result = run("""data.target=['a/b','loss, "v"']""", *SOLVE, "data.features=[x]", "train.eval_every_steps=1", "record.residuals=true")  # fmt: skip
    summary = result.summary
    assert [name for name in summary["metrics"] if "rmse" in name] == ["train/rmse", "train/rmse/a/b", 'train/rmse/loss, "v"']  # fmt: skip
    with residuals_path().open() as file:
        assert next(csv.reader(file))[2:5] == ["target/a/b", "prediction/a/b", "residual/a/b"]
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  → ")]
    assert [row[1] for row in rows] == ["a/b", "loss,"]


def test_preprocessing_has_the_scale_of_each_target(table: dict[str, np.ndarray]) -> None:
    result = run(BOTH, *SOLVE, *SPLIT, "data.target_scale=standardize", "data.features=[x]")
    u, v = json.loads((result.directory / "preprocessing.json").read_text())["targets"]
    for found, name in ((u, "u"), (v, "v")):
        assert (found["name"], found["log"]) == (name, False)
        # Sums of 45 numbers in another order.
        assert found["mean"] == pytest.approx(table[name][TRAIN].mean(), rel=1e-14)
        assert found["scale"] == pytest.approx(table[name][TRAIN].std(ddof=1), rel=1e-14)


def test_there_are_plots_for_each_target(table: dict[str, np.ndarray]) -> None:
    result = run(BOTH, *SOLVE, "data.features=[x]", "record.plots=true")
    assert sorted(path.name for path in (result.directory / "plots").iterdir()) == [
        "fit_1.png",
        "fit_2.png",
        "loss.png",
        "residuals_1.png",
        "residuals_2.png",
    ]


def test_a_list_of_one_target_is_that_target(table: dict[str, np.ndarray]) -> None:
    options = [*SOLVE, "data.features=[x]", "train.steps=2"]
    listed, alone = run("data.target=[u]", *options).summary, run("data.target=u", *options).summary
    assert {**listed, "timing": 0} == {**alone, "timing": 0}


# ------------------------------------------------------------------------------------------------------- kinds of runs


NETWORK = ["model=mlp", "model.widths=[4]", "optimizer=adam", "optimizer.lr=0.01", "train.steps=30", "data.drop=[w]"]
NETWORK += ["train.batch_size=16", "data.standardize=true", *SPLIT]


def test_a_run_that_is_resumed_ends_with_the_same_bits(table: dict[str, np.ndarray]) -> None:
    whole = run(BOTH, *NETWORK)
    part = run(BOTH, *NETWORK, "train.steps=13")
    resumed = runner.run(None, [f"resume={part.directory}", "train.steps=30"])
    assert resumed.summary["parameters_sha256"] == whole.summary["parameters_sha256"]
    assert resumed.summary["metrics"] == whole.summary["metrics"]


SWEPT = {
    "network": (NETWORK, "optimizer.lr=0.01,0.02"),
    "lstsq": ([*SOLVE, "data.drop=[w]"], "optimizer.weight_decay=0,0.1"),
    "lm": ([*SHARED, "data.features=[x]"], "model.start.b=0.5,1"),
}


@pytest.mark.parametrize("name", SWEPT)
def test_trials_that_are_vmapped_are_runs_alone(name: str, table: dict[str, np.ndarray]) -> None:
    options, swept = SWEPT[name]
    directory, _ = runner.multirun(None, [*QUICK, BOTH, *options, swept])
    key, _, values = swept.partition("=")
    for number, value in enumerate(values.split(",")):
        trial = json.loads((directory / str(number) / "summary.json").read_text())
        assert json.loads((directory / str(number) / "run.json").read_text())["lanes"] == 2
        alone = run(BOTH, *options, f"{key}={value}").summary
        for kind in ("parameters", "standard_errors", "metrics"):
            # Batched products are summed in another order.
            found, expected = (numbers(summary.get(kind, {})) for summary in (trial, alone))
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-11)


def test_a_network_with_two_targets_learns_both(table: dict[str, np.ndarray]) -> None:
    options = ["model=mlp", "model.widths=[8]", "optimizer=lm", "train.steps=20", "data.features=[x]"]
    summary = run(BOTH, *options, "data.standardize=true").summary
    assert summary["metrics"]["train/r2/u"] > 0.95
    assert summary["metrics"]["train/r2/v"] > 0.5


# ---------------------------------------------------------------------------------------------------------- bad input


FORMULA = ["model=formula", "optimizer=lm"]
REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "none": (["data.target=[]"], ["`data.target` must name a column, got []; name one"]),
    "twice": (
        ["data.target=[u,u]"],
        ["`data.target` must name each column once, got 'u' 2 times; remove the duplicates"],
    ),
    "unknown": (
        ["data.target=[u,q]"],
        ["`data.target` must name a column of 't.csv', got 'q'; the columns are 'x', 'z', 'w', 'u', 'v'"],
    ),
    "a feature": (["data.features=[x,v]"], ["`data.features` must not contain a target 'v'; remove it"]),
    "a weight": (["data.weight=v"], ["`data.weight` must not be a target, got 'v'; name another column"]),
    "sigma": (
        ["data.sigma=w"],
        [
            "`data.sigma` must be null with several targets, got 'w', the deviations of one; use data.weight, or name one target"
        ],
    ),
    "one formula": (
        [*FORMULA, "model.expression=a*x"],
        [
            "`model.expression` must have a formula for each of the targets u, v, got one; write model.expression={u: …, v: …}"
        ],
    ),
    "formula of another target": (
        [*FORMULA, "model.expression={u: a*x, vv: b*x}"],
        [
            "`model.expression` must have a formula for the target v, got none; add it",
            "`model.expression.vv` must name a target of the data, which has u, v; did you mean `v`?",
        ],
    ),
    "formula without a column": (
        [*FORMULA, "model.expression={u: a*x, v: b}", "data.features=[x]"],
        [
            "`model.expression.v` must use a column of the data (x), got 'b'; correct the names, and write those with blanks "
            "or signs in backticks"
        ],
    ),
    "formulas that cannot be read": (
        [*FORMULA, "model.expression={u: a*x+, v: b*}"],
        [
            "`model.expression.u`: the formula 'a*x+' is refused at column 5: expected a number, a name or `(`, but the formula ends",
            "`model.expression.v`: the formula 'b*' is refused at column 3: expected a number, a name or `(`, but the formula ends",
        ],
    ),
    "start of no parameter": (
        [*FORMULA, "model.expression={u: a*x, v: b*x}", "model.start.q=1"],
        [
            "`model.start.q` must name a parameter of `model.expression`={u: 'a*x', v: 'b*x'}, which has a, x, b; remove it or correct its name"
        ],
    ),
    "logarithm": (
        ["data.log_target=true", "data.target=[z,u,w]"],
        [
            "`data.log_target` needs a target above 0, got",
            "`data.log_target` needs a target above 0, got",
        ],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_run_is_refused(
    name: str, table: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    overrides, messages = REFUSED[name]
    own = [] if any(text.startswith("data.target") for text in overrides) else [BOTH]
    assert main([*QUICK, *own, "train.steps=2", *overrides]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == len(messages)
    assert all(line.startswith(f"error: {text}") for line, text in zip(errors, messages, strict=True)), errors
    assert not Path("runs").exists()
