"""Reports of fits with an active bound or a fixed parameter, against SciPy, lmfit and closed forms."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lmfit
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

import runner
from runner import cli
from runner.runs import plots
from runner.training.run import Run

QUICK = ["device=cpu", "device.threads=1", "record.plots=false", "dtype=float64", "data=csv", "data.path=t.csv"]
# The best offset d is below 0, where its bound holds it; the slope g is fixed.
CURVE = ["data.target=y", "data.features=[x]", "model=formula", "model.expression=a*exp(-b*x) + d + g*x"]
HELD = ["model.bounds={d: [0, null], b: [0.1, 2]}", "model.fixed.g=0.01"]
DECAY = [*CURVE, *HELD, "model.start={a: 1, b: 0.3, d: 0.2}", "optimizer=lm"]
WEIGHTED = {
    "equal": [],
    "relative": ["data.sigma=s"],
    "absolute": ["data.sigma=s", "data.sigma_kind=absolute"],
}
TIGHT = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15}
ROWS = 40


@pytest.fixture(autouse=True)
def columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Write t.csv: a decay with an offset below 0, and the standard deviations s of its noise."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    x = np.linspace(0, 5, ROWS)
    s = 0.05 + 0.02 * x
    return write({"x": x, "s": s, "y": 3 * np.exp(-0.7 * x) - 0.2 + 0.01 * x + s * draw.normal(size=ROWS)})


def write(columns: dict[str, Any]) -> dict[str, Any]:
    """Write t.csv with these columns, and return them."""
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    Path("t.csv").write_text("\n".join([",".join(columns), *(",".join(map(repr, row)) for row in rows)]) + "\n")
    return columns


def mapping(values: Mapping[str, float | tuple[float, float]]) -> str:
    """Return parameters with their values or bounds as an override has them."""
    return f"{{{', '.join(f'{name}: {[*value] if isinstance(value, tuple) else value}' for name, value in values.items())}}}"


def run(*overrides: str) -> Run:
    return runner.run(None, [*QUICK, *overrides])


def curve(x: Any, a: float, b: float, d: float, g: float) -> Any:
    return a * np.exp(-b * x) + d + g * x


def by_lmfit(columns: Mapping[str, Any], kind: str) -> Any:
    """Return lmfit's fit with d and g held."""
    model = lmfit.Model(curve)
    parameters = model.make_params(a=3, b=0.7, d={"value": 0, "vary": False}, g={"value": 0.01, "vary": False})
    return model.fit(
        columns["y"], parameters, x=columns["x"], weights=None if kind == "equal" else 1 / columns["s"],
        scale_covar=kind != "absolute", fit_kws=TIGHT,
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------- a bound that holds


@pytest.mark.parametrize("kind", WEIGHTED)
def test_the_answers_are_those_of_lmfit_with_both_parameters_held(kind: str, columns: dict[str, Any]) -> None:
    summary, expected = run(*DECAY, *WEIGHTED[kind]).summary, by_lmfit(columns, kind)
    assert (summary["at_bounds"], summary["fixed"], summary["converged"]) == ({"d": "lower"}, ["g"], True)
    assert summary["parameters"] == pytest.approx(expected.best_values, rel=1e-6)  # lmfit's derivatives are differences
    assert summary["degrees_of_freedom"] == expected.nfree == ROWS - 2
    assert list(summary["covariance"]) == list(summary["correlation"]) == list(summary["standard_errors"]) == ["a", "b"]
    rel = 2e-4  # lmfit forms the product of the differences
    assert np.array([*summary["covariance"].values()]) == pytest.approx(expected.covar, rel=rel)
    assert summary["correlation"]["a"][1] == pytest.approx(expected.params["a"].correl["b"], rel=rel)
    for name in "ab":
        assert summary["standard_errors"][name] == pytest.approx(expected.params[name].stderr, rel=rel)
    # Both criteria count the two parameters that are free.
    for entry, value in {"chi_square": "chisqr", "reduced_chi_square": "redchi", "aic": "aic", "bic": "bic"}.items():
        assert summary[entry] == pytest.approx(getattr(expected, value), rel=1e-9)


@pytest.mark.parametrize("kind", WEIGHTED)
def test_errors_and_standardized_residuals_are_those_of_the_free_columns(kind: str, columns: dict[str, Any]) -> None:
    """The Jacobian written out for a and b alone."""
    result = run(*DECAY, *WEIGHTED[kind])
    a, b, d, g = result.summary["parameters"].values()
    x, root = columns["x"], np.ones(ROWS) if kind == "equal" else 1 / columns["s"]
    residual = root * (columns["y"] - curve(x, a, b, d, g))
    jacobian = root[:, None] * np.column_stack((np.exp(-b * x), -a * x * np.exp(-b * x)))
    spread = 1.0 if kind == "absolute" else math.sqrt(residual @ residual / (ROWS - 2))
    errors = spread * np.sqrt(np.diag(np.linalg.inv(jacobian.T @ jacobian)))
    assert list(result.summary["standard_errors"].values()) == pytest.approx(errors.tolist(), rel=1e-11)
    reach = scipy.stats.t.ppf(0.975, ROWS - 2) * errors
    for name, value, half in zip("ab", (a, b), reach.tolist(), strict=True):
        interval = result.summary["confidence_intervals"][name]
        assert (interval["low"], interval["high"]) == pytest.approx((value - half, value + half), rel=1e-11)
    leverage = np.diag(jacobian @ np.linalg.pinv(jacobian))
    with open(result.directory / "residuals.csv", encoding="utf-8", newline="") as file:
        found = [float(row["standardized_residual"]) for row in csv.DictReader(file)]
    assert found == pytest.approx((residual / spread / np.sqrt(1 - leverage)).tolist(), rel=1e-9)


def test_the_bands_are_those_of_lmfit_with_both_parameters_held(
    columns: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    contents: list[Any] = []

    def draw(content: Any) -> dict[str, bytes]:
        contents.append(content)
        return {}

    monkeypatch.setattr(plots, "draw", draw)
    run(*DECAY, "record.plots=true")
    expected = by_lmfit(columns, "equal")
    confidence = expected.eval_uncertainty(sigma=0.95)
    halves = {"95 % confidence band": confidence, "95 % prediction band": expected.dely_predicted}
    assert contents[0].bands.keys() == halves.keys()
    for name, half in halves.items():
        low, high = contents[0].bands[name]  # both ends of the range are rows of the table
        assert (low[0], low[-1]) == pytest.approx(tuple((expected.best_fit - half)[[0, -1]]), rel=1e-4)
        assert (high[0], high[-1]) == pytest.approx(tuple((expected.best_fit + half)[[0, -1]]), rel=1e-4)


def test_residuals_and_figures_say_what_was_held(capsys: pytest.CaptureFixture[str]) -> None:
    run(*DECAY)
    lines = capsys.readouterr().out.splitlines()
    assert "d = 0 (at its lower bound)" in lines
    assert "g = 0.01 (fixed)" in lines
    assert sum(line.startswith(("a = ", "b = ")) and "±" in line for line in lines) == 2
    assert (
        "fit      d is at its lower bound: it has no standard error, and those of the others hold for this value"
        in lines
    )


def test_where_every_parameter_is_at_a_bound_there_are_no_errors(capsys: pytest.CaptureFixture[str]) -> None:
    x = np.linspace(0, 1, ROWS)
    columns = write({"x": x, "y": 2 * x + 1})
    summary = run("data.target=y", "model=formula", "model.expression=a*x + b", "model.start={a: 0, b: 0}", "model.bounds={a: [0, 1.5], b: [null, 0.5]}", "optimizer=lm").summary  # fmt: skip
    assert (summary["converged"], summary["at_bounds"]) == (True, {"a": "upper", "b": "upper"})
    assert summary["parameters"] == {"a": 1.5, "b": 0.5}
    assert summary["degrees_of_freedom"] == ROWS
    chi_square = float(((columns["y"] - 1.5 * x - 0.5) ** 2).sum())
    assert summary["chi_square"] == pytest.approx(chi_square, rel=1e-12)
    for criterion in ("aic", "bic"):  # no parameter is free
        assert summary[criterion] == pytest.approx(ROWS * math.log(chi_square / ROWS), rel=1e-12)
    assert summary["standard_errors"] == summary["confidence_intervals"] == summary["covariance"] == {}
    printed = capsys.readouterr().out
    assert "\nfit      a is at its upper bound: it has no standard error\n" in printed
    assert "those of the others" not in printed


@pytest.mark.parametrize("optimizer", ["lm", "adam"])
def test_an_infinite_derivative_at_a_bound_is_answered_by_moving_it(
    optimizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The mean of y is below 0, so the best D is at its bound; the derivative of its root at 0 is infinite."""
    write({"x": np.linspace(0.1, 4, ROWS), "y": np.linspace(-0.2, 0.1, ROWS)})
    fit = [
        *QUICK,
        "data.target=y",
        "model=formula",
        "model.expression=sqrt(D*x)",
        "model.start.D=1",
        f"optimizer={optimizer}",
    ]
    fit += ["optimizer.lr=0.05"] if optimizer == "adam" else []
    assert cli.main([*fit, "model.bounds.D=[0,null]"]) == 1
    assert re.search(
        r"the derivatives must be finite at step \d+, got inf by D in row 1 and 39 more of the data with D=0; the parameters of "
        r"step \d+ are restored\. D is at its lower bound: move the bound with model\.bounds\.D, or remove these rows",
        capsys.readouterr().err,
    )
    assert run(*fit[len(QUICK) :], "model.bounds.D=[1e-6,null]").summary["at_bounds"] == {"D": "lower"}


# ------------------------------------------------------------------------------------------------ a bound that holds nothing


@pytest.mark.parametrize("kind", WEIGHTED)
def test_a_solution_inside_has_the_answers_of_curve_fit(kind: str, columns: dict[str, Any]) -> None:
    x, free = columns["x"], [*CURVE, "model.start={a: 1, b: 0.3, d: 0.2, g: 0}", "optimizer=lm"]
    bounds = {"a": (0, 10), "b": (0.1, 2), "d": (-1, 1), "g": (-1, 1)}
    summary = run(*free, f"model.bounds={mapping(bounds)}", *WEIGHTED[kind]).summary
    best, covariance = scipy.optimize.curve_fit(
        curve, x, columns["y"], (1, 0.3, 0.2, 0), None if kind == "equal" else columns["s"], kind == "absolute",
        bounds=tuple(zip(*bounds.values(), strict=True)), x_scale="jac", **TIGHT,
        jac=lambda x, a, b, d, g: np.column_stack((np.exp(-b * x), -a * x * np.exp(-b * x), np.ones(ROWS), x)),
    )  # fmt: skip
    assert "at_bounds" not in summary
    assert list(summary["parameters"].values()) == pytest.approx(best.tolist(), rel=1e-6)
    assert np.array([*summary["covariance"].values()]) == pytest.approx(covariance, rel=1e-6)
    without = run(*free, *WEIGHTED[kind]).summary
    for entry in ("parameters", "standard_errors"):  # bounds that hold nothing change the last digits at most
        assert summary[entry] == pytest.approx(without[entry], rel=1e-9)


# Formula, true values, start values, lmfit's limits; the solution is inside, where lmfit can reach it.
INSIDE: Mapping[str, tuple[str, dict[str, float], dict[str, float], dict[str, tuple[float, float]]]] = {
    "decay": ("a*exp(-b*x) + d", {"a": 3, "b": 0.7, "d": 1}, {"a": 1, "b": 0.2, "d": 0.5}, {"a": (0, 9), "b": (0.05, 5), "d": (0, 5)}),
    "saturation": ("a*x/(k + x)", {"a": 2, "k": 0.5}, {"a": 1, "k": 3}, {"a": (0, 8), "k": (0.01, 9)}),
    "peak": ("a*exp(-((x - m)/s)**2) + d", {"a": 2, "m": 2, "s": 0.7, "d": 0.3}, {"a": 1, "m": 1.5, "s": 1, "d": 0.1}, {"m": (0, 4), "s": (0.1, 3)}),
    "logistic": ("u/(1 + exp(-k*(x - m)))", {"u": 2, "k": 3, "m": 2}, {"u": 1, "k": 1, "m": 1.5}, {"u": (0.5, 5), "k": (0.1, 9)}),
    "sine": ("a*sin(w*x + p)", {"a": 1.5, "w": 2, "p": 0.3}, {"a": 1, "w": 1.8, "p": 0.1}, {"w": (1.5, 2.5), "p": (-1, 1)}),
}  # fmt: skip


@pytest.mark.parametrize("name", INSIDE)
def test_a_bounded_fit_has_the_answers_of_lmfit(name: str) -> None:
    formula, true, start, limits = INSIDE[name]
    x = np.linspace(0.05, 5, ROWS)
    values = eval(formula, {"exp": np.exp, "sin": np.sin, "x": x, **true})
    columns = write({"x": x, "y": values + 0.05 * np.random.default_rng(1).normal(size=ROWS)})
    wide = dict.fromkeys(start, (-np.inf, np.inf)) | limits
    parameters = {p: lmfit.Parameter(p, value, min=wide[p][0], max=wide[p][1]) for p, value in start.items()}
    expected = lmfit.models.ExpressionModel(formula).fit(columns["y"], x=x, **parameters, fit_kws=TIGHT)
    summary = run("data.target=y", "model=formula", f"model.expression={formula}", f"model.start={mapping(start)}", f"model.bounds={mapping(limits)}", "optimizer=lm").summary  # fmt: skip
    assert summary["parameters"] == pytest.approx(expected.best_values, rel=1e-6)  # lmfit's derivatives are differences
    for p in start:
        assert summary["standard_errors"][p] == pytest.approx(expected.params[p].stderr, rel=1e-3)  # by differences
    for entry, value in {"chi_square": "chisqr", "aic": "aic", "bic": "bic"}.items():
        assert summary[entry] == pytest.approx(getattr(expected, value), rel=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_a_bound_does_not_determine_what_the_data_leave_open(seed: int) -> None:
    """The derivative by a is 0 up to rounding, whose sign is no reason to hold a at its bound."""
    x = np.linspace(0.1, 4, ROWS)
    write({"x": x, "y": 3 * x + 0.1 * np.random.default_rng(seed).normal(size=ROWS)})
    summary = run("data.target=y", "model=formula", "model.expression=a*b*x", "model.start={a: 2, b: 1}", "model.bounds={a: [null, 2]}", "optimizer=lm").summary  # fmt: skip
    assert (summary["converged"], summary["undetermined"]) == (True, ["a", "b"])
    assert "standard_errors" not in summary


# --------------------------------------------------------------------------------------------------------- linear problems


@pytest.mark.parametrize("seed", range(6))
def test_coefficients_that_must_not_be_negative_are_those_of_nnls(seed: int) -> None:
    """Every start value is at its bound."""
    draw, names = np.random.default_rng(seed), "pqrstu"
    design = draw.normal(size=(ROWS, 6)) + draw.normal(size=(ROWS, 1))
    target = design @ draw.permutation([2, 1, 0.5, 0, -0.3, -0.5]) + draw.normal(size=ROWS)
    write({**dict(zip(names, design.T, strict=True)), "y": target})
    zeros, bounds = (f"{{{', '.join(f'k{name}: {value}' for name in names)}}}" for value in ("0", "[0, null]"))
    expression = " + ".join(f"k{name}*{name}" for name in names)
    summary = run("data.target=y", "model=formula", f"model.expression={expression}", f"model.start={zeros}", f"model.bounds={bounds}", "optimizer=lm").summary  # fmt: skip
    expected, _ = scipy.optimize.nnls(design, target)
    assert list(summary["parameters"].values()) == pytest.approx(expected.tolist(), rel=1e-10, abs=1e-12)
    held = {f"k{name}": "lower" for name, value in zip(names, expected, strict=True) if value == 0}
    assert summary["at_bounds"] == held
    assert 0 < len(held) < 6
    free = design[:, expected > 0]
    residual = target - design @ expected
    spread = residual @ residual / (ROWS - free.shape[1])
    errors = np.sqrt(spread * np.diag(np.linalg.inv(free.T @ free)))
    assert list(summary["standard_errors"].values()) == pytest.approx(errors.tolist(), rel=1e-10)


def test_lstsq_solves_for_the_parameters_that_are_not_fixed(columns: dict[str, Any]) -> None:
    """A line through a given point of the axis, by its closed form; the optimum is the solution."""
    summary = run("data.target=y", "data.features=[x]", "model=formula", "model.expression=m*x + t", "model.fixed.t=0.5", "optimizer=lstsq").summary  # fmt: skip
    x, y = columns["x"], columns["y"] - 0.5
    slope = x @ y / (x @ x)
    assert summary["parameters"] == pytest.approx({"m": slope, "t": 0.5}, rel=1e-12)
    variance = ((y - slope * x) ** 2).sum() / (ROWS - 1)
    assert summary["standard_errors"] == pytest.approx({"m": math.sqrt(variance / (x @ x))}, rel=1e-12)
    assert summary["optimum"]["loss"] == pytest.approx(((y - slope * x) ** 2).mean(), rel=1e-12)


# --------------------------------------------------------------------------------------------------------- several targets


def test_targets_share_bounded_and_fixed_parameters(columns: dict[str, Any]) -> None:
    """By scipy's bounded solver on the stacked residuals; the second formula has no parameter of its own that is free."""
    x = columns["x"]
    other = 0.7 * np.exp(-0.7 * x) + 0.02 * np.random.default_rng(2).normal(size=ROWS)
    write({"x": x, "y": columns["y"], "z": other})
    summary = run(
        "data.target=[y,z]", "data.features=[x]", "model=formula", "optimizer=lm", "model.start={a: 1, b: 0.3, d: 0.2}",
        "model.expression={y: 'a*exp(-b*x) + d', z: 'c*exp(-b*x)'}", "model.bounds={d: [0, null]}", "model.fixed.c=0.7",
    ).summary  # fmt: skip

    def residuals(values: Any) -> Any:
        return np.concatenate((values[0] * np.exp(-values[1] * x) - columns["y"], 0.7 * np.exp(-values[1] * x) - other))

    expected = scipy.optimize.least_squares(residuals, (3, 0.7), **TIGHT).x
    assert summary["at_bounds"] == {"d": "lower"}
    assert summary["parameters"] == pytest.approx({"a": expected[0], "b": expected[1], "d": 0, "c": 0.7}, rel=1e-7)
    assert summary["degrees_of_freedom"] == 2 * ROWS - 2
    assert list(summary["standard_errors"]) == ["a", "b"]


def test_a_target_whose_parameters_are_all_fixed_has_a_prediction(columns: dict[str, Any]) -> None:
    write({"x": columns["x"], "y": columns["y"], "z": 2 * columns["x"]})
    summary = run("data.target=[y,z]", "data.features=[x]", "model=formula", "model.expression={y: 'a*exp(-b*x)', z: 'c*x'}", "model.fixed.c=2", "model.start={a: 1, b: 0.3}", "optimizer=lm").summary  # fmt: skip
    alone = run("data.target=y", "data.features=[x]", "model=formula", "model.expression=a*exp(-b*x)", "model.start={a: 1, b: 0.3}", "optimizer=lm").summary  # fmt: skip
    assert summary["parameters"] == pytest.approx({**alone["parameters"], "c": 2}, rel=1e-9)
    assert summary["metrics"]["train/rmse/z"] == 0


# ------------------------------------------------------------------------------------------------------------------ sweeps


@pytest.mark.parametrize("kind", WEIGHTED)
@pytest.mark.parametrize("optimizer", ["lm", "momentum"])
def test_seeds_of_a_sweep_are_the_runs_alone(optimizer: str, kind: str) -> None:
    """Start values are drawn, and those outside of their bounds moved inside."""
    rate = ["optimizer.lr=0.05", "train.steps=60"] if optimizer == "momentum" else []
    given = [*CURVE, *HELD, "model.bounds.b=[1.1,2]", f"optimizer={optimizer}", *rate, *WEIGHTED[kind]]
    directory, _ = runner.multirun(None, [*QUICK, *given, "seeds=4"])
    for number in range(4):
        member = directory / str(number)
        assert json.loads((member / "run.json").read_text())["lanes"] == 4
        summary = json.loads((member / "summary.json").read_text())
        alone = run(*given, f"seed={number}").summary
        assert summary.get("at_bounds") == alone.get("at_bounds")
        assert summary["parameters"]["b"] >= 1.1
        for entry in ("parameters", "standard_errors", "metrics"):
            assert summary.get(entry, {}) == pytest.approx(alone.get(entry, {}), rel=1e-10), entry
