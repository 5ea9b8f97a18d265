"""Weighted rows: `data.sigma` and `data.weight`, against scipy and formulas written out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize

import runner
from runner.errors import ConfigError, DataError
from runner.runs import plots
from runner.training.run import Run

QUICK = ["device=cpu", "device.threads=1", "record.plots=false", "dtype=float64", "data=csv", "data.path=t.csv", "data.target=y"]  # fmt: skip
DECAY = ["model=formula", "model.expression=a*exp(-b*x)+c", "model.start={a: 6, b: 0.3, c: 1}", "optimizer=lm"]
ROWS = 30


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def table(seed: int = 0) -> dict[str, np.ndarray]:
    """Write t.csv and return its columns: a decay whose noise grows with x, and its standard deviations s."""
    draw = np.random.default_rng(seed)
    x = np.linspace(0.1, 6, ROWS)
    s = 0.02 + 0.05 * x
    y = 7 * np.exp(-0.4 * x) + 1.5 + s * draw.normal(size=ROWS)
    return write({"x": x, "s": s, "y": y, "w": draw.integers(0, 4, ROWS).astype(float)})


def write(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Write t.csv with these columns, and return them."""
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    lines = [",".join(columns), *(",".join(map(repr, row)) for row in rows)]
    Path("t.csv").write_text("\n".join(lines) + "\n")
    return columns


def run(*overrides: str) -> Run:
    return runner.run(None, [*QUICK, *overrides])


def sweep(*overrides: str) -> list[Any]:
    """Return the summaries of the members of a sweep."""
    path, _ = runner.multirun(None, [*QUICK, *overrides])
    members = sorted(
        (member for member in path.iterdir() if member.name.isdigit()), key=lambda member: int(member.name)
    )
    return [json.loads((member / "summary.json").read_text()) for member in members]


def decay(x: np.ndarray, a: float, b: float, c: float) -> np.ndarray:
    return a * np.exp(-b * x) + c


def solution(columns: Mapping[str, np.ndarray], sigma: np.ndarray, absolute: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return scipy's parameters and standard errors."""
    best, covariance = scipy.optimize.curve_fit(
        decay, columns["x"], columns["y"], (6, 0.3, 1), sigma=sigma, absolute_sigma=absolute, ftol=1e-15, xtol=1e-15
    )
    return best, np.sqrt(np.diag(covariance))


# curve_fit differentiates numerically, which leaves about 1e-8 of its errors.
def assert_is(summary: Mapping[str, Any], best: np.ndarray, errors: np.ndarray) -> None:
    assert list(summary["parameters"].values()) == pytest.approx(best.tolist(), rel=1e-8)
    assert list(summary["standard_errors"].values()) == pytest.approx(errors.tolist(), rel=1e-6)


# ------------------------------------------------------------------------------------------------------- the fit


@pytest.mark.parametrize("kind", ["relative", "absolute"])
def test_a_fit_with_standard_deviations_is_that_of_curve_fit(kind: str) -> None:
    columns = table()
    summary = run(*DECAY, "data.features=[x]", "data.sigma=s", f"data.sigma_kind={kind}").summary
    assert_is(summary, *solution(columns, columns["s"], kind == "absolute"))
    assert summary["degrees_of_freedom"] == ROWS - 3
    chi_square = (
        ((columns["y"] - decay(columns["x"], *solution(columns, columns["s"], True)[0])) / columns["s"]) ** 2
    ).sum()
    assert summary["chi_square"] == pytest.approx(chi_square, rel=1e-9)
    assert summary["reduced_chi_square"] == pytest.approx(chi_square / (ROWS - 3), rel=1e-9)
    assert summary["aic"] == pytest.approx(ROWS * np.log(chi_square / ROWS) + 2 * 3, rel=1e-9)


def test_standardized_residuals_are_those_of_weighted_least_squares() -> None:
    """By the hat matrix of the weighted problem; a row without weight has none."""
    columns = table()
    result = run("model=linear", "optimizer=lstsq", "data.features=[x]", "data.weight=w")
    root = np.sqrt(columns["w"])
    design = np.column_stack((columns["x"], np.ones(ROWS))) * root[:, None]
    hat = design @ np.linalg.pinv(design)
    residual = root * columns["y"] - hat @ (root * columns["y"])
    used = columns["w"] > 0
    deviation = np.sqrt((residual**2).sum() / (used.sum() - 2))
    expected = residual[used] / deviation / np.sqrt(1 - np.diag(hat)[used])
    lines = [line.split(",") for line in (result.directory / "residuals.csv").read_text().splitlines()[1:]]
    assert [line[5] == "" for line in lines] == (~used).tolist()
    assert [float(line[5]) for line in lines if line[5]] == pytest.approx(expected.tolist(), rel=1e-9)


def test_the_picture_has_error_bars_and_no_band_for_new_rows() -> None:
    table()
    result = run(*DECAY, "data.features=[x]", "data.sigma=s", "record.plots=true")
    assert (result.directory / "plots" / "fit.png").stat().st_size > 10_000


@pytest.mark.parametrize("factor", [1e-200, 1e-3, 1e150])
def test_the_unit_of_the_standard_deviations_does_not_matter_where_they_are_relative(factor: float) -> None:
    columns = table()
    write({**columns, "s": columns["s"] * factor})
    summary = run(*DECAY, "data.features=[x]", "data.sigma=s").summary
    assert_is(summary, *solution(columns, columns["s"], False))


def test_weights_are_one_over_the_variance() -> None:
    columns = table()
    write({**columns, "w": 3 / columns["s"] ** 2})
    summary = run(*DECAY, "data.features=[x]", "data.weight=w").summary
    assert_is(summary, *solution(columns, columns["s"], False))


def test_a_row_of_weight_0_counts_for_nothing() -> None:
    columns = table()
    kept = columns["w"] > 0
    summary = run(*DECAY, "data.features=[x]", "data.weight=w").summary
    some = {name: column[kept] for name, column in columns.items()}
    assert_is(summary, *solution(some, 1 / np.sqrt(some["w"]), False))
    assert summary["degrees_of_freedom"] == kept.sum() - 3


@pytest.mark.parametrize("kind", ["relative", "absolute"])
def test_the_logarithm_of_the_target_has_its_own_standard_deviations(kind: str) -> None:
    columns = table()
    line = ["model=linear", "optimizer=lstsq", "data.log_target=true", "data.standardize=true"]
    summary = run(*line, "data.features=[x]", "data.sigma=s", f"data.sigma_kind={kind}").summary
    sigma = columns["s"] / columns["y"]
    best, covariance = np.polyfit(columns["x"], np.log(columns["y"]), 1, w=1 / sigma, cov=True if kind == "relative" else "unscaled")  # fmt: skip
    parameters, errors = summary["parameters"], summary["standard_errors"]
    assert [parameters["weight"][0][0], parameters["bias"][0]] == pytest.approx(best.tolist(), rel=1e-12)
    expected = np.sqrt(np.diag(covariance)).tolist()
    assert [errors["weight"][0][0], errors["bias"][0]] == pytest.approx(expected, rel=1e-11)


def test_rows_without_weight_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    contents: list[Any] = []

    def draw(content: Any) -> dict[str, bytes]:
        contents.append(content)
        return {}

    monkeypatch.setattr(plots, "draw", draw)
    columns = table()
    kept = columns["w"] > 0
    write({**columns, "y": np.where(kept, columns["y"], -999.0)})
    run(*DECAY, "data.features=[x]", "data.weight=w", "record.plots=true")
    x, y, _ = contents[0].parts["train"]
    assert (x[:, 0].tolist(), y.tolist()) == (columns["x"][kept].tolist(), columns["y"][kept].tolist())
    assert contents[0].line[0][[0, -1]].tolist() == [columns["x"][kept].min(), columns["x"][kept].max()]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_row_without_weight_changes_no_scaling(dtype: str) -> None:
    columns = table()
    left_out = columns["w"] == 0
    cubic = ["model=polynomial", "model.degree=3", "data.features=[x]", "data.standardize=true", "optimizer=lstsq"]
    fits = []
    for value in (-999.0, 1e9):
        write(
            {**columns, "x": np.where(left_out, value / 10, columns["x"]), "y": np.where(left_out, value, columns["y"])}
        )
        fits.append(run(*cubic, "data.weight=w", f"dtype={dtype}").summary)
    write({name: column[~left_out] for name, column in columns.items()})
    removed = run(*cubic, "data.weight=w", "dtype=float64").summary
    rel = 1e-12 if dtype == "float64" else 1e-5  # of numbers with 16 and with 7 digits
    for fit in fits:
        assert fit["coefficients"] == pytest.approx(removed["coefficients"], rel=rel)
        assert fit["converged"] is True


# --------------------------------------------------------------------------------------------- losses and metrics

LOSSES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mse": lambda error: error**2,
    "mae": np.abs,
    "huber": lambda error: np.where(np.abs(error) <= 1, error**2 / 2, np.abs(error) - 0.5),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("update", ["manual", "optimizer"])
def test_the_first_step_goes_down_the_weighted_gradient(loss: str, update: str) -> None:
    """From zero: loss and update of one step of gradient descent, by the formulas."""
    columns = table()
    w = columns["w"] / columns["w"].mean()
    result = run("model=linear", "model.init=zeros", f"loss={loss}", "optimizer=sgd", "optimizer.lr=0.01", f"update={update}",
                 "train.steps=1", "data.features=[x]", "data.weight=w")  # fmt: skip
    error = -columns["y"]
    assert result.rows[0]["train/loss"] == pytest.approx((w * LOSSES[loss](error)).mean(), rel=1e-13)
    slope = {"mse": 2 * error, "mae": np.sign(error), "huber": np.clip(error, -1, 1)}[loss] * w / ROWS
    parameters = result.summary["parameters"]
    assert parameters["weight"][0][0] == pytest.approx(-0.01 * (slope * columns["x"]).sum(), rel=1e-12)
    assert parameters["bias"][0] == pytest.approx(-0.01 * slope.sum(), rel=1e-12)


def test_metrics_are_means_by_the_weights() -> None:
    """On rows that are not trained on as well, where the mean weight is not 1."""
    columns = table()
    options = ["data.features=[x]", "data.weight=w", "data.split.valid=8", "data.split.order=sequential"]
    summary = run("model=linear", "optimizer=lstsq", *options).summary
    parameters, metrics = summary["parameters"], summary["metrics"]
    error = parameters["weight"][0][0] * columns["x"] + parameters["bias"][0] - columns["y"]
    for part, rows in (("train", slice(0, 22)), ("valid", slice(22, ROWS))):
        w, y = columns["w"][rows], columns["y"][rows]
        mean_square = np.average(error[rows] ** 2, weights=w)
        spread = np.average((y - np.average(y, weights=w)) ** 2, weights=w)
        assert metrics[f"{part}/loss"] == pytest.approx(mean_square, rel=1e-12)
        assert metrics[f"{part}/rmse"] == pytest.approx(np.sqrt(mean_square), rel=1e-12)
        assert metrics[f"{part}/mae"] == pytest.approx(np.average(np.abs(error[rows]), weights=w), rel=1e-12)
        assert metrics[f"{part}/r2"] == pytest.approx(1 - mean_square / spread, rel=1e-11)


@pytest.mark.parametrize(
    "options",
    [
        ["optimizer=adam", "optimizer.lr=0.01", "train.steps=30", "model=mlp", "model.widths=[4]"],
        ["optimizer=lbfgs", "train.steps=5", "model=linear"],
        ["optimizer=sgd", "optimizer.lr=0.001", "train.steps=30", "model=linear", "train.accumulate=3"],
        [
            "optimizer=adam",
            "optimizer.lr=0.01",
            "train.steps=30",
            "model=mlp",
            "model.widths=[4]",
            "data.standardize=true",
        ],
    ],
    ids=["adam", "lbfgs", "accumulate", "standardized"],
)
def test_an_integer_weight_is_a_row_that_is_repeated(options: list[str]) -> None:
    columns = table()
    weighted = run(*options, "data.features=[x]", "data.weight=w").summary
    counts = columns["w"].astype(int)
    write({name: np.repeat(column, counts) for name, column in columns.items()})
    repeated = run(*options, "data.features=[x]").summary
    # Sums in another order, over 30 steps.
    for name, value in repeated["parameters"].items():
        np.testing.assert_allclose(weighted["parameters"][name], value, rtol=1e-9)
    assert weighted["metrics"]["train/rmse"] == pytest.approx(repeated["metrics"]["train/rmse"], rel=1e-9)


def test_the_optimum_is_weighted() -> None:
    table()
    options = ["model=linear", "data.features=[x]", "data.weight=w"]
    best = run(*options, "optimizer=lstsq").summary
    descent = run(*options, "optimizer=sgd", "optimizer.lr=0.05", "train.steps=2000").summary["optimum"]
    assert descent["loss"] == pytest.approx(best["metrics"]["train/loss"], rel=1e-13)
    assert 0 <= descent["gap"] < 1e-12


# -------------------------------------------------------------------------------------------------- every way of running


def test_trials_of_a_sweep_are_weighted_as_alone() -> None:
    """With a split of their own each, so that rows and weights differ between lanes."""
    table()
    options = ["optimizer=adam", "optimizer.lr=0.01", "train.steps=20", "train.batch_size=8", "model=mlp", "model.widths=[4]"]  # fmt: skip
    split = ["data.features=[x]", "data.sigma=s", "data.split.valid=6"]
    for seed, member in enumerate(sweep(*options, *split, "seeds=3")):
        alone = run(*options, *split, f"seed={seed}").summary
        for name, value in alone["metrics"].items():
            assert member["metrics"][name] == pytest.approx(value, rel=1e-9), name


def test_fits_of_a_sweep_have_the_standard_errors_of_single_fits() -> None:
    columns = table()
    absolute = ["data.features=[x]", "data.sigma=s", "data.sigma_kind=absolute"]
    for member in sweep(*DECAY, *absolute, "model.start.b=0.2,0.3"):
        assert_is(member, *solution(columns, columns["s"], True))


def test_a_resumed_run_ends_with_the_same_bits() -> None:
    table()
    options = ["optimizer=adam", "optimizer.lr=0.01", "train.batch_size=7", "model=mlp", "model.widths=[4]", "data.weight=w", "data.features=[x]"]  # fmt: skip
    whole = run(*options, "train.steps=40")
    part = run(*options, "train.steps=15")
    resumed = runner.run(None, [f"resume={part.directory}", "train.steps=40"])
    assert resumed.summary["parameters_sha256"] == whole.summary["parameters_sha256"]
    assert resumed.summary["metrics"] == whole.summary["metrics"]


# ------------------------------------------------------------------------------------------------------------ bad input


def test_the_columns_of_the_weights_are_no_features() -> None:
    columns = table()
    write({name: columns[name] for name in ("x", "s", "y")})
    assert list(run(*DECAY, "data.sigma=s").summary["parameters"]) == ["a", "b", "c"]
    assert np.shape(run("model=linear", "optimizer=lstsq", "data.sigma=s").summary["parameters"]["weight"]) == (1, 1)


BAD = {
    "data.sigma=s data.weight=w": "`data.weight` must be null with `data.sigma`='s', got 'w'; use data.weight=null or data.sigma=null",
    "data.sigma_kind=absolute": "`data.sigma_kind` must be relative without `data.sigma`, got absolute; name the column of `data.sigma`",
    "data.sigma=s data.features=[x,s]": "`data.features` must not contain the column of `data.sigma`, 's'; remove it",
    "data.weight=w data.features=[w]": "`data.features` must not contain the column of `data.weight`, 'w'; remove it",
    "data.weight=y": "`data.weight` must not be the target, got 'y'; name another column",
    "data.weight=zero data.features=[x]": "`data.weight` must be above 0 in some train row, got 0 in all 30; use other weights or another split",
    "data.weight=late data.features=[x] data.split.valid=5 data.split.order=sequential": "`data.weight` must be above 0 in some valid row, got 0 in all 5; use other weights or another split",
    "data.weight=x_minus_1 data.features=[x]": "`data.weight` must not be below 0 in any row, got -0.9 in row 1 (5 such rows); correct or remove those rows",
    "data.sigma=zero data.features=[x]": "`data.sigma` must be above 0 in every row, got 0 in row 1 (30 such rows); correct or remove those rows",
    "data.sigma=wide data.features=[x] dtype=float32": "`dtype` must hold the weight of every row, but float32 turns 3.33333e-100 of row 2, relative to the mean weight, into 0; use a larger dtype, or set that weight to 0",
}  # fmt: skip


@pytest.mark.parametrize("overrides", BAD)
def test_weights_that_cannot_be_used_are_refused(overrides: str) -> None:
    columns = table()
    last = np.arange(ROWS) >= 25
    wide = np.where(np.arange(ROWS) == 1, 1e50, 1 + 1e50 * (np.arange(ROWS) > 9))
    write({**columns, "zero": 0 * columns["x"], "late": 1.0 - last, "x_minus_1": columns["x"] - 1, "wide": wide})
    with pytest.raises((ConfigError, DataError)) as caught:
        run("model=linear", "optimizer=lstsq", *overrides.split())
    assert str(caught.value) == BAD[overrides]
    assert not Path("runs").exists()


def test_a_column_of_weights_that_does_not_exist_is_reported_with_the_nearest_name() -> None:
    table()
    with pytest.raises(DataError, match=r"^`data.sigma` must name a column of 't.csv', got 'S'; the columns are 's', "):
        run("model=linear", "optimizer=lstsq", "data.sigma=S")
