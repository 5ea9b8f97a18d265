"""Runs whose answer is known: what they report, when they end, and that vmapped and resumed runs agree."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch

import runner
from runner import cli
from runner.runs import checkpoint
from runner.runs.sinks.jsonl import read_rows
from runner.training.run import Run

QUICK = ["device=cpu", "device.threads=1", "record.plots=false", "dtype=float64"]
DECAY = ["data=curve", "data.expression=3*exp(-0.7*x) + 1", "data.stop=5", "data.rows=40", "model=formula", "model.expression=a*exp(-b*x) + d", "optimizer=lm"]  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*overrides: str) -> Run:
    return runner.run(None, [*QUICK, *overrides])


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def saved(directory: Path) -> dict[str, Any]:
    loaded = checkpoint.load(directory / "checkpoints")
    assert loaded is not None
    return loaded.state


# ------------------------------------------------------------------------------------------------------- the optimum


def test_rows_and_summary_have_the_distance_to_the_optimum() -> None:
    overrides = ["data=line", "data.standardize=true", "data.split.test=20", "update=manual"]
    result = run(*overrides, "optimizer.lr=0.05", "train.steps=60", "record.every_steps=20")
    best = run(*overrides, "optimizer=lstsq").summary["metrics"]["train/loss"]
    optimum = result.summary["optimum"]
    assert optimum["loss"] == pytest.approx(best, rel=1e-13)
    assert optimum["gap"] == pytest.approx(result.summary["metrics"]["train/loss"] - best, rel=1e-6)  # digits cancel
    assert [row["optimum/loss"] for row in result.rows] == [optimum["loss"]] * 3
    last = result.rows[-1]
    assert (last["optimum/gap"], last["optimum/distance"]) == (optimum["gap"], optimum["distance"])
    assert last["optimum/gap"] < result.rows[0]["optimum/gap"]
    assert result.summary["converged"] is False


@pytest.mark.parametrize("overrides", [["optimizer=sgd"], ["optimizer=momentum", "optimizer.momentum=0.3"]])
@pytest.mark.parametrize("update", ["manual", "optimizer"])
def test_the_observed_rate_agrees_with_the_predicted_one(overrides: list[str], update: str) -> None:
    result = run("data=line", "data.rows=30", "data.features=2", "data.stop=5", *overrides, f"update={update}", "optimizer.lr=0.02", "train.steps=600", "record.every_steps=10")  # fmt: skip
    optimum = result.summary["optimum"]
    assert 0.9 < optimum["predicted_rate"] < 1
    assert optimum["observed_rate"] == pytest.approx(
        optimum["predicted_rate"], rel=1e-4
    )  # other directions still decay


def test_the_observed_rate_ignores_rows_at_the_level_of_rounding() -> None:
    overrides = ["data=line", "data.standardize=true", "optimizer.lr=0.01", "update=manual", "train.steps=2500"]
    result = run(*overrides, "record.every_steps=100")
    optimum = result.summary["optimum"]
    assert result.rows[-1]["optimum/distance"] == pytest.approx(
        result.rows[-2]["optimum/distance"], rel=0.1
    )  # no more progress
    assert optimum["observed_rate"] == pytest.approx(
        optimum["predicted_rate"], rel=1e-3
    )  # two directions decay at nearly the same rate


@pytest.mark.parametrize(("factor", "converges"), [(0.99, True), (1.01, False)])
def test_steps_diverge_above_the_largest_stable_rate(
    factor: float, converges: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["data=line", "data.rows=30", "optimizer=sgd", "record.every_steps=100"]
    limit = run(*overrides, "optimizer.lr=0", "train.steps=1").summary["optimum"]["largest_stable_lr"]
    capsys.readouterr()
    result = run(*overrides, f"optimizer.lr={factor * limit!r}", "train.steps=300")
    first, *_, last = [row["optimum/distance"] for row in result.rows]
    assert (last < first) == converges
    warned = f"note: lr is above the stability limit 2/λmax = {limit:.6g}: with `optimizer.lr`={factor * limit:g} steps lead away"
    output = capsys.readouterr().out
    assert (warned in output) != converges
    if not converges:
        assert output.index(warned) < output.index("step 100/300")


def test_an_unknown_optimum_is_not_reported() -> None:
    assert "optimum" not in run("data=line", "loss=mae", "train.steps=2").summary
    assert "optimum" not in run("data=line", "model=mlp", "train.steps=2").summary
    assert run("data=line", "loss=mae", "train.steps=2").summary["noise_floor"] == {"rmse": 10.0}


def test_lbfgs_ends_at_the_optimum() -> None:
    result = run("data=line", "data.features=3", "optimizer=lbfgs", "train.steps=30")
    optimum = result.summary["optimum"]
    assert optimum["distance"] < 1e-9 * float(
        np.linalg.norm(result.summary["parameters"]["weight"])
    )  # condition below 1e3
    assert result.summary["converged"] is True
    assert result.summary["steps"] == 30


# ------------------------------------------------------------------------------------------------------- lstsq and lm


def test_lstsq_reports_the_fit_and_its_digits(capsys: pytest.CaptureFixture[str]) -> None:
    result = runner.run("linreg", [*QUICK, "optimizer=lstsq"])
    summary = result.summary
    assert (summary["steps"], summary["stopped_early"], summary["converged"]) == (2, True, True)
    weight, error = summary["parameters"]["weight"][0][0], summary["standard_errors"]["weight"][0][0]
    interval = summary["confidence_intervals"]["weight"]
    assert interval["low"][0][0] < weight - error < weight + error < interval["high"][0][0]
    output = capsys.readouterr().out.splitlines()
    optimum = summary["optimum"]
    assert [line for line in output if line.startswith(("x =", "constant", "optimum", "digits", "noise", "fit", "settled"))] == [
        f"x = {weight:.4f} ± {error:.4f} (95 %: {interval['low'][0][0]:.4f} … {interval['high'][0][0]:.4f})",
        "constant = 1.41 ± 1.91 (95 %: -2.38 … 5.20)",
        f"optimum  train/loss {optimum['loss']:.6g}; the run ended {optimum['gap']:.3g} above the optimum, its parameters {optimum['distance']:.3g} away",
        "digits   about 13 of the 16 digits of float64 are certain in the worst parameter; condition number 106",
        "noise    rmse 10 (loss 100) is the error of the function that made the data; on average no model is better on new rows",
        f"fit      converged after 2 steps; residual standard deviation {summary['residual_standard_deviation']:.6g}, 88 degrees of freedom",
    ]  # fmt: skip
    assert (result.directory / "run.log").read_text().splitlines()[-3:-2] == output[-3:-2]


def test_lm_agrees_with_scipy() -> None:
    result = run(*DECAY, "train.steps=100")
    state = saved(result.directory)
    x = np.linspace(0, 5, 40)
    y = _target(x)
    best, covariance = scipy.optimize.curve_fit(
        lambda x, a, b, d: a * np.exp(-b * x) + d, x, y, [3, 0.7, 1], xtol=1e-15, ftol=1e-15
    )
    names = ("a", "b", "d")
    errors = np.sqrt(np.diag(covariance))
    assert [result.summary["parameters"][n] for n in names] == pytest.approx(
        best.tolist(), rel=1e-6
    )  # scipy's stopping
    assert [result.summary["standard_errors"][n] for n in names] == pytest.approx(
        errors.tolist(), rel=1e-4
    )  # scipy's derivatives are differences
    residuals = best[0] * np.exp(-best[1] * x) + best[2] - y
    share = 1 - np.square(residuals).sum() / np.square(y - y.mean()).sum()
    assert result.summary["metrics"]["train/r2"] == pytest.approx(share, rel=1e-10)
    assert set(state["optimizer"]["a"]) == {"scale", "radius", "offset"}


def _target(x: Any) -> Any:
    """Return the target of DECAY, by the data package only."""
    from runner.config import schema as c
    from runner.config.compose import compose
    from runner.data import dataset

    made = c.Curve(name="curve", expression="3*exp(-0.7*x) + 1", rows=40, start=0.0, stop=5.0, noise=0.1, noise_distribution="normal", log_target=False, standardize=False, numbers=None, target_scale=None, seed=None, split=compose(["data=line"]).config.data.split)  # fmt: skip
    rows = dataset.build(made, 0, torch.float64, torch.device("cpu")).parts["train"]
    order = rows.all.numbers[:, 0].argsort()
    assert rows.all.numbers[order, 0].numpy() == pytest.approx(x)
    return rows.all.target[order, 0].numpy()


NOT_CONVERGED = {
    "too few steps": ([*DECAY, "train.steps=2"], "the parameters are still changing (relative offset "),
    "a plateau": (
        [*DECAY[:5], "model.expression=a*(1 - exp(-b*x))", "data.start=1", "model.start={a: 1.0, b: 1000.0}", "optimizer=lm", "train.steps=50"],
        "near these values b can change without changing any prediction; start from other values than a=1, b=1000 with model.start",
    ),
    "a peak beside the data": (
        ["data=curve", "data.expression='3*exp(-(x - 6)**2)'", "data.stop=10", "model=formula", "model.expression='a*exp(-(x - m)**2)'", "model.start={a: 1.0, m: 1000.0}", "optimizer=lm"],
        "near these values a and m can change together without changing any prediction; start from other values than a=1, m=1000 with model.start",
    ),
    "a slope below rounding": (
        ["data=line", "model=formula", "model.expression=a**2*x", "model.start={a: 1e-9}", "optimizer=lm"],
        "no further step finds better parameters, but by their derivatives they are not at a minimum (relative offset ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_CONVERGED)
def test_a_fit_that_has_not_converged_says_so(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    overrides, reason = NOT_CONVERGED[case]
    summary = run(*overrides).summary
    assert summary["converged"] is False
    assert summary["not_converged_because"].startswith(reason)
    assert "standard_errors" not in summary
    after = f"after {summary['steps']} step{'s' if summary['steps'] > 1 else ''}"
    output = capsys.readouterr().out
    assert f"\nfit      not converged {after}: {summary['not_converged_because']}\n" in output
    assert "settled" not in output


UNDETERMINED = {
    "two parameters for one": (
        ["data=line", "model=formula", "model.expression=a*b*x", "optimizer=lm", "train.steps=50"],
        ["a", "b"],
        "a and b can change together without changing any prediction, so there are no standard errors",
    ),
    "a constant column": (
        ["data=csv", "data.path=constant.csv", "data.target=y", "optimizer=lstsq"],
        ["z", "constant"],
        "z and constant can change together without changing any prediction, so there are no standard errors",
    ),
    "powers of two values": (  # x² = 4·x − 3, although the square of the standardized x is 1
        ["data=csv", "data.path=two.csv", "data.target=y", "optimizer=lstsq", "model=polynomial", "model.degree=2", "data.standardize=true"],
        ["x", "x^2", "constant"],
        "x, x^2 and constant can change together without changing any prediction, so there are no standard errors",
    ),
    "a column of zeros": (
        ["data=csv", "data.path=zeros.csv", "data.target=y", "model=formula", "model.expression=a*exp(-b*x) + c*z", "optimizer=lm"],
        ["c"],
        "c can change without changing any prediction, so there are no standard errors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNDETERMINED)
def test_parameters_that_the_data_leave_open_are_named(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "constant.csv").write_text("x,z,y\n1,3,2\n2,3,4.5\n3,3,6\n4,3,8\n")
    (tmp_path / "two.csv").write_text("x,y\n1,2\n3,3\n1,2.5\n3,3.75\n1,2.25\n")
    (tmp_path / "zeros.csv").write_text("x,z,y\n0,0,3\n1,0,2.1\n2,0,1.3\n3,0,0.9\n4,0,0.7\n")
    overrides, names, sentence = UNDETERMINED[case]
    summary = run(*overrides).summary
    assert (summary["converged"], summary["undetermined"]) == (True, names)
    assert "standard_errors" not in summary
    output = capsys.readouterr().out
    assert f"\nfit      converged after {summary['steps']} steps; residual standard deviation " in output
    assert f"\nfit      {sentence}\n" in output


SADDLES = {
    "equal terms": (
        "2*exp(-0.5*x) + 5*exp(-3*x)",
        "a*exp(-b*x) + c*exp(-d*x)",
        {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0},
    ),
    "an even function": ("2*cos(0.7*x)", "a*cos(w*x)", {"a": 1.0, "w": 0.0}),
    "a square": ("4*x", "a**2*x", {"a": 0.0}),
    "a product of zeros": ("4*x", "a*exp(b)*b*x", {"a": 0.0, "b": 0.0}),
}


@pytest.mark.parametrize("case", SADDLES)
def test_lm_leaves_a_saddle(case: str) -> None:
    """The residuals that remain are the noise, which scipy finds from a start beside the saddle."""
    truth, expression, start = SADDLES[case]
    table = ["data=curve", f"data.expression='{truth}'", "data.rows=40", "data.stop=3", "data.noise=0.01", "data.noise_distribution=normal"]  # fmt: skip
    values = ", ".join(f"{name}: {value}" for name, value in start.items())
    fit = ["model=formula", f"model.expression='{expression}'", f"model.start={{{values}}}", "optimizer=lm"]
    summary = run(*table, *fit).summary
    assert summary["converged"] is True
    assert summary["metrics"]["train/rmse"] < 0.012  # 40 rows of noise 0.01; at the saddle it is above 0.1
    _, vmapped = runner.multirun(None, [*QUICK, *table, *fit, "seed=0,1"])
    assert [member.metrics["train/rmse"] < 0.012 for member in vmapped.members] == [True, True]
    first = vmapped.members[0].metrics["train/rmse"]
    assert first == pytest.approx(
        summary["metrics"]["train/rmse"], rel=1e-12
    )  # the squares of 40 rows, summed otherwise


def test_a_formula_that_is_not_finite_at_its_start_fails(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [
        *QUICK,
        "data=line",
        "model=formula",
        "model.expression=log(a*x)",
        "model.start={a: -1.0}",
        "optimizer=lm",
    ]
    assert cli.main(overrides) == 1
    # A formula refuses data.standardize=true, which is not advised.
    assert capsys.readouterr().err == (
        "error: `model.start` must give a finite loss, got nan with a=-1; start from other values\n"
    )


INFINITE = ["data=csv", "data.path=t.csv", "data.target=y", "model=formula", "model.expression=a*(x - c)**0.5 + d"]
ROOTS = "x,y\n1,1\n4,2.1\n0,0.1\n9,3.2\n0,0.2\n"


@pytest.mark.parametrize(
    "optimizer", ["lm", "lbfgs", "adam update=manual", "adam update=optimizer", "sgd train.check_gradients=true"]
)
def test_an_infinite_derivative_is_reported_with_its_parameter_and_row(
    optimizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text(ROOTS)
    start = "model.start={a: 1, c: 0, d: 0.5}"
    assert cli.main([*QUICK, *INFINITE, start, *f"optimizer={optimizer}".split(), "train.steps=9"]) == 1
    assert capsys.readouterr().err == (
        "error: `model.start` must give finite derivatives, got -inf by c in row 3 and 1 more of the data with c=0, a=1, d=0.5; "
        "start from other values, or remove these rows\n"
    )


def test_an_infinite_derivative_of_a_later_batch_is_that_of_each_trial(tmp_path: Path) -> None:
    """With lr=0 the parameters stay where they are until the batch with row 3 comes, at another step for each seed."""
    (tmp_path / "t.csv").write_text(ROOTS.removesuffix("0,0.2\n"))
    overrides = [*QUICK, *INFINITE, "model.start={a: 1, c: 0, d: 0.5}", "optimizer=sgd", "optimizer.lr=0", "train.batch_size=1", "train.steps=4"]  # fmt: skip
    _, results = runner.multirun(None, [*overrides, "seed=range(0,6)"])
    steps = set()
    for member in results.members:
        with pytest.raises(runner.Diverged) as raised:
            runner.run(None, [*overrides, f"seed={member.number}"])
        assert member.reason == str(raised.value)
        if found := re.fullmatch(
            r"the derivatives must be finite at step (\d), got -inf by c in row 3 of the data with c=0, a=1, d=0.5; the parameters "
            r"of step (\d) are restored. Start from other values with model.start, or remove this row",
            member.reason,
        ):
            steps.add(int(found[1]))
            assert int(found[2]) == int(found[1]) - 1
    assert len(steps) > 1


@pytest.mark.parametrize("standardize", [False, True])
def test_standardizing_is_advised_where_it_is_allowed_and_not_done(
    standardize: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*QUICK, "data=line", "optimizer.lr=1e20", f"data.standardize={str(standardize).lower()}"]) == 1
    error = capsys.readouterr().err
    assert "Make optimizer.lr smaller" in error
    assert error.endswith(", or standardize the data with data.standardize=true\n") != standardize


@pytest.mark.parametrize(
    "model", [["model=mlp"], ["model=formula", "model.expression=a*exp(b*x)"], ["model=formula", "model.expression=abs(a)*x"]]
)  # fmt: skip
def test_lstsq_is_refused_for_a_nonlinear_model(model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [*QUICK, "data=line", *model, "optimizer=lstsq"]
    name = model[0].removeprefix("model=")
    problem = (
        f"`optimizer` must not be lstsq for a model that is not linear in its parameters, got {name}; use optimizer=lm"
    )
    assert cli.main(overrides) == 2
    assert capsys.readouterr().err == f"error: {problem}\n"
    assert not Path("runs").exists()
    assert cli.main(["-m", *overrides, "seeds=2"]) == 2
    assert capsys.readouterr().err == f"error: {problem}\n"
    assert not list(Path().glob("runs/run/*"))


def test_lm_fits_a_network() -> None:
    result = run("data=curve", "data.noise=0", "data.stop=6", "data.rows=50", "model=mlp", "model.widths=[6]", "model.activation=tanh", "optimizer=lm", "train.steps=100")  # fmt: skip
    assert result.summary["metrics"]["train/rmse"] < 5e-3  # adam with lr=0.1 leaves 0.14


def test_up_to_twenty_coefficients_have_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    few = run("data=line", "data.features=2", "optimizer=lstsq").summary
    output = capsys.readouterr().out.splitlines()
    (first, second), (bias,) = few["standard_errors"]["weight"][0], few["standard_errors"]["bias"]
    shown = [line.split(" (95 %")[0] for line in output if "±" in line]
    assert shown == [
        f"x1 = {few['parameters']['weight'][0][0]:.4f} ± {first:.4f}",
        f"x2 = {few['parameters']['weight'][0][1]:.4f} ± {second:.4f}",
        f"constant = {few['parameters']['bias'][0]:.2f} ± {bias:.2f}",
    ]
    for features, lines in ((19, 20), (20, 0)):
        run("data=line", f"data.features={features}", "optimizer=lstsq")
        assert capsys.readouterr().out.count("±") == lines


def test_a_very_small_and_a_very_large_number_stay_readable() -> None:
    from runner.runs.sinks.reporter import lines_of

    numbers = {"a": (0.0, 1e-12), "b": (6.02214076e23, 1.5e20), "d": (-572.6991, 762.47)}
    summary = {
        "metrics": {},
        "parameters": {name: value for name, (value, _) in numbers.items()},
        "standard_errors": {name: error for name, (_, error) in numbers.items()},
        "confidence_intervals": {name: {"low": v - 2 * e, "high": v + 2 * e} for name, (v, e) in numbers.items()},
    }
    assert lines_of(summary) == [
        "a = 0 ± 1e-12 (95 %: -2e-12 … 2e-12)",
        "b = 6.02214e+23 ± 1.5e+20 (95 %: 6.01914e+23 … 6.02514e+23)",
        "d = -573 ± 762 (95 %: -2098 … 952)",
    ]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_an_exact_fit(dtype: str) -> None:
    result = run(*DECAY, "data.noise=0", f"dtype={dtype}")
    assert result.summary["converged"] is True
    eps = 2.0 ** (-52 if dtype == "float64" else -23)
    assert [result.summary["parameters"][n] for n in "abd"] == pytest.approx([3, 0.7, 1], rel=100 * eps)  # condition 10
    assert result.summary["stopped_early"] is True


def test_a_standardized_fit_is_the_same_fit() -> None:
    overrides = ["data=line", "data.features=2", "data.split.test=20", "optimizer=lstsq"]
    plain, scaled = (run(*overrides, f"data.standardize={value}").summary for value in ("false", "true"))
    for what in ("parameters", "standard_errors"):
        for name, value in plain[what].items():
            assert np.asarray(scaled[what][name]) == pytest.approx(np.asarray(value), rel=1e-11)  # a condition of 200
    assert scaled["metrics"]["test/rmse"] == pytest.approx(plain["metrics"]["test/rmse"], rel=1e-11)
    assert scaled["noise_floor"]["rmse"] == plain["noise_floor"]["rmse"] == 10
    assert scaled["noise_floor"]["loss"] < 1 < plain["noise_floor"]["loss"]


def test_the_plot_shows_the_optimum_and_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []

    def draw(content: Any) -> dict[str, bytes]:
        drawn.append(content)
        return {}

    monkeypatch.setattr("runner.runs.plots.draw", draw)
    summary = run("data=line", "train.steps=2", "optimizer.lr=1e-5", "record.plots=true").summary
    assert drawn[0].levels == {"optimum": summary["optimum"]["loss"], "noise floor": 100.0}


# ------------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("overrides", [DECAY, ["data=line", "data.features=2", "optimizer=lstsq"]], ids=["lm", "lstsq"])
def test_a_run_resumed_at_any_step_ends_with_the_same_bits(overrides: list[str]) -> None:
    uninterrupted = run(*overrides, "checkpoint.every_steps=1", "checkpoint.keep=100")
    steps = uninterrupted.summary["steps"]
    assert uninterrupted.summary["stopped_early"]
    for cut in range(1, steps + 1):
        first = run(*overrides, f"train.steps={cut}", f"run_dir={cut}")
        resumed = runner.run(None, [f"resume={first.directory}", "train.steps=1000"])
        assert resumed.summary["parameters_sha256"] == uninterrupted.summary["parameters_sha256"], cut
        assert (resumed.summary["steps"], resumed.summary["stopped_early"]) == (steps, True)


def test_a_converged_run_has_nothing_left_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    done = run(*DECAY, "train.steps=100")
    capsys.readouterr()
    resumed = runner.run(None, [f"resume={done.directory}"])
    assert resumed.summary == done.summary
    assert capsys.readouterr().out.endswith("there is nothing left to do (a further step finds no better parameters)\n")


def test_a_converged_run_killed_before_its_summary_still_reports_that(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = run(*DECAY, "train.steps=100")
    (done.directory / "summary.json").unlink()
    capsys.readouterr()
    resumed = runner.run(None, [f"resume={done.directory}"])
    assert resumed.summary["parameters_sha256"] == done.summary["parameters_sha256"]
    assert f"fit      converged after {done.summary['steps']} steps; residual" in capsys.readouterr().out


@pytest.mark.parametrize("cut", [3, 9, 20])
def test_lbfgs_resumes_with_the_same_bits_where_no_step_makes_progress(cut: int) -> None:
    overrides = ["data=curve", "data.rows=30", "model=formula", "model.expression=a*sin(b*x + d)", "optimizer=lbfgs"]
    uninterrupted = run(*overrides, "train.steps=25")
    first = run(*overrides, f"train.steps={cut}")
    resumed = runner.run(None, [f"resume={first.directory}", "train.steps=25"])
    assert resumed.summary["parameters_sha256"] == uninterrupted.summary["parameters_sha256"]


# --------------------------------------------------------------------------------------------------------- vmapped

SWEPT = {
    "lm over seeds and radii": [*DECAY, "seed=0,1,2", "optimizer.radius=0.01,100"],
    "lm over starts": [*DECAY, "data.seed=0", "model.start={a: 1.0},{a: 30.0},{b: 2.0}"],
    "lm on networks": ["data=curve", "data.rows=30", "data.stop=4", "model=mlp", "model.widths=[3]", "model.activation=tanh", "optimizer=lm", "seed=0,1", "train.steps=6"],
    "lstsq over seeds and decays": ["data=line", "data.features=2", "optimizer=lstsq", "optimizer.weight_decay=0,0.1", "seed=0,1"],
    "lstsq on the same rows": ["data=line", "data.seed=0", "data.features=2", "optimizer=lstsq", "optimizer.weight_decay=0,0.1,3"],
    "lstsq on a network without layers": ["data=line", "data.features=2", "model=mlp", "model.widths=[]", "optimizer=lstsq", "seed=0,1"],
    "lm in float32": [*DECAY, "seed=0,1,2", "dtype=float32"],
    "sgd": ["data=line", "data.standardize=true", "optimizer.lr=0.01,0.1", "seed=0,1", "train.steps=30", "record.every_steps=10"],
}  # fmt: skip


@pytest.mark.parametrize("case", SWEPT)
def test_each_run_of_a_sweep_agrees_with_a_single_run(case: str) -> None:
    directory, results = runner.multirun(None, [*QUICK, *SWEPT[case]])
    assert {member.state for member in results.members} == {"finished"}
    ends = set()
    for member in read_json(directory / "sweep.json")["members"]:
        number = member["number"]
        vmapped = read_json(directory / str(number) / "summary.json")
        assert read_json(directory / str(number) / "run.json")["lanes"] == len(results.members)
        single = run(
            *[word for word in member["overrides"] if not word.startswith("run_dir")], f"run_dir=single/{number}"
        )
        assert (vmapped["steps"], vmapped["stopped_early"]) == (
            single.summary["steps"],
            single.summary["stopped_early"],
        )
        assert vmapped.keys() == single.summary.keys()
        rel = 1e-5 if case.endswith("float32") else 1e-8  # some roundings of float32, or those of batched kernels
        for name in ("metrics", "parameters", "optimum", "standard_errors", "confidence_intervals", "converged", "noise_floor"):  # fmt: skip
            same(vmapped.get(name), single.summary.get(name), name, rel)
        for one, other in zip(read_rows(directory / str(number) / "metrics.jsonl"), single.rows, strict=True):
            same({**one, "samples_per_second": 0}, {**other, "samples_per_second": 0}, "rows", rel)
        ends.add(vmapped["steps"])
    if case.startswith("lm over"):
        assert len(ends) > 1  # each ends at its own step


def same(one: Any, other: Any, what: str, rel: float) -> None:
    """Compare numbers up to `rel`; numbers that are 0 at the optimum are rounding itself."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), what
        for name in one:
            if name.endswith(("gap", "distance", "observed_rate")) and isinstance(one[name], float):
                assert one[name] == pytest.approx(other[name], rel=1e-6, abs=1e-9), (what, name)
            else:
                same(one[name], other[name], f"{what} {name}", rel)
    elif one is None or isinstance(one, (bool, str)):
        assert one == other, what
    else:
        assert np.asarray(one, float) == pytest.approx(np.asarray(other, float), rel=rel), what


def test_resumed_runs_of_a_sweep_end_like_those_of_an_uninterrupted_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Converged lanes are done; the others resume from their own radius."""
    overrides = [*QUICK, *SWEPT["lm over seeds and radii"], "checkpoint.every_steps=1"]
    uninterrupted, _ = runner.multirun(None, [*overrides, "run_dir=whole"])
    cut, _ = runner.multirun(None, [*overrides, "run_dir=cut", "train.steps=8"])
    assert len({read_json(cut / str(n) / "summary.json")["stopped_early"] for n in range(6)}) == 2
    for number in range(6):
        ended = read_json(uninterrupted / str(number) / "summary.json")
        resumed = runner.run(None, [f"resume={cut / str(number)}", "train.steps=1000"]).summary
        assert (resumed["steps"], resumed["converged"]) == (ended["steps"], ended["converged"])
        same(resumed["parameters"], ended["parameters"], "parameters", 1e-8)


def test_rates_that_are_too_high_are_in_the_log_of_each_run() -> None:
    directory, _ = runner.multirun(None, [*QUICK, "data=line", "optimizer.lr=1e-5,1", "train.steps=1"])
    logs = [(directory / str(number) / "run.log").read_text() for number in range(2)]
    assert [bool(re.search("note: lr is above the stability limit", log)) for log in logs] == [False, True]
    assert math.isfinite(read_json(directory / "1" / "summary.json")["optimum"]["largest_stable_lr"])


@pytest.mark.parametrize("optimizer", ["lstsq", "lm"])
def test_a_fit_that_rounding_spoils_has_not_converged(optimizer: str) -> None:
    """Powers of a year cancel to 1e-7 of themselves, which float32 does not resolve."""
    year = np.arange(1990.0, 2021.0)
    y = 5 + 0.2 * (year - 2000) - 0.01 * (year - 2000) ** 2 + 1e-3 * (year - 2000) ** 3
    y += np.random.default_rng(7).normal(0, 0.1, len(year))
    Path("years.csv").write_text(
        "year,y\n" + "".join(f"{a!r},{b!r}\n" for a, b in zip(year.tolist(), y.tolist(), strict=True))
    )
    cubic = [
        "data=csv",
        "data.path=years.csv",
        "data.target=y",
        "model=polynomial",
        "model.degree=3",
        f"optimizer={optimizer}",
    ]
    spoilt, whole, scaled = (run(*cubic, *more).summary for more in (["dtype=float32"], ["dtype=float64"], ["dtype=float32", "data.standardize=true"]))  # fmt: skip
    polynomial = np.polynomial.Polynomial.fit(year, y, 3)
    deviation = math.sqrt(sum((y - polynomial(year)) ** 2) / 27)
    for summary in (whole, scaled):
        assert summary["converged"] is True
        assert summary["residual_standard_deviation"] == pytest.approx(deviation, rel=1e-6)  # of float32
    assert (spoilt["converged"], "standard_errors" in spoilt) == (False, False)
    assert spoilt["not_converged_because"].endswith("; use data.standardize=true or use dtype=float64")


def test_a_minimum_at_a_kink_is_not_denied() -> None:
    """The best breakpoint is at the x of a row, where the sum of squares has no derivative."""
    draw = np.random.default_rng(6)
    x = np.linspace(-5, 5, 41)
    y = 0.5 + 1.5 * np.maximum(x - 1.3 * draw.random(), 0) + draw.normal(0, 0.1, 41)
    Path("segments.csv").write_text(
        "x,y\n" + "".join(f"{a!r},{b!r}\n" for a, b in zip(x.tolist(), y.tolist(), strict=True))
    )
    segments = [
        "data=csv",
        "data.path=segments.csv",
        "data.target=y",
        "model=formula",
        "model.expression=b + a*max(x - c, 0)",
        "optimizer=lm",
    ]
    free, fixed = (
        run(*segments, "model.start={a: 1, b: 0}", key).summary for key in ("model.start.c=0", "model.fixed.c=0.75")
    )
    assert free["parameters"]["c"] == pytest.approx(0.75, rel=1e-6)  # lm ends beside the kink
    assert free["not_converged_because"].startswith(
        "no further step finds better parameters, but by their derivatives "
    )
    line = scipy.stats.linregress(np.maximum(x - 0.75, 0), y)
    assert fixed["parameters"] == pytest.approx({"a": line.slope, "b": line.intercept, "c": 0.75}, rel=1e-9)
    assert fixed["standard_errors"] == pytest.approx({"a": line.stderr, "b": line.intercept_stderr}, rel=1e-9)


def test_lm_takes_no_step_to_an_infinite_parameter(capsys: pytest.CaptureFixture[str]) -> None:
    """The first steps lead to times of more than 3e38, which float32 takes for infinite. The loss would be finite there."""
    t = np.linspace(0, 3600, 40)
    y = 80 * np.exp(-t / 600) + 20 + np.random.default_rng(4).normal(0, 0.3, 40)
    Path("cooling.csv").write_text(
        "t,y\n" + "".join(f"{a!r},{b!r}\n" for a, b in zip(t.tolist(), y.tolist(), strict=True))
    )
    cooling = [
        "data=csv",
        "data.path=cooling.csv",
        "data.target=y",
        "model=formula",
        "model.expression=a*exp(-t/tau) + c",
        "optimizer=lm",
    ]
    start = "model.start={a: 0.93, tau: 0.96, c: 0.22}"
    summary = run(*cooling, start, "dtype=float32").summary
    assert summary["converged"] is False
    assert summary["not_converged_because"].endswith(
        "start from other values than a=0.93, tau=0.96, c=0.22 with model.start"
    )
    assert "diverged" not in capsys.readouterr().out
