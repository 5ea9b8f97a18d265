"""What a fit says about its answer, against statsmodels and lmfit: `tests/fixtures/known_fits.json` has their numbers."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runner
from runner.runs import plots
from runner.training import predictions
from runner.training.run import Run

QUICK = ["device=cpu", "device.threads=1", "record.plots=false", "dtype=float64", "data=csv", "data.target=y"]
ANSWERS = json.loads((Path(__file__).parents[1] / "fixtures" / "known_fits.json").read_text(encoding="utf-8"))
DECAY = ["model=formula", "model.expression=a*exp(-b*x) + d", "model.start={a: 3, b: 1, d: 1}", "optimizer=lm"]
FITS = {
    "linear": ["model=linear", "optimizer=lstsq", "data.split.order=sequential", "data.split.test=6"],
    "polynomial": ["model=polynomial", "model.degree=2", "optimizer=lstsq"],
    "formula": DECAY,
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_table(columns: dict[str, list[float]], path: str = "table.csv") -> str:
    """Write a table; return the override that names it."""
    rows = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    Path(path).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return f"data.path={path}"


def fit(name: str, *overrides: str) -> Run:
    return runner.run(None, [*QUICK, write_table(ANSWERS[name]["columns"]), *FITS[name], *overrides])


def residuals(directory: Path) -> list[dict[str, str]]:
    with open(directory / "residuals.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------------------------------------------------- the numbers


CASES = [("linear", ""), ("linear", "data.standardize=true"), ("linear", "optimizer=lm"), ("polynomial", ""), ("polynomial", "data.standardize=true")]  # fmt: skip


@pytest.mark.parametrize(("name", "override"), CASES)
def test_a_linear_fit_has_the_answers_of_statsmodels(name: str, override: str) -> None:
    expected, summary = ANSWERS[name], fit(name, *filter(None, [override])).summary
    rel = 1e-8  # a condition number of 1e6 in these powers, in statsmodels' normal equations
    assert list(summary["coefficients"]) == list(expected["coefficients"])
    assert summary["coefficients"] == pytest.approx(expected["coefficients"], rel=rel)
    assert list(summary["covariance"]) == list(expected["coefficients"])
    assert np.array([*summary["covariance"].values()]) == pytest.approx(np.array(expected["covariance"]), rel=rel)
    errors = np.sqrt(np.diag(expected["covariance"]))
    correlation = np.array(expected["covariance"]) / np.outer(errors, errors)
    assert np.array([*summary["correlation"].values()]) == pytest.approx(correlation, rel=rel)
    for entry in ("chi_square", "reduced_chi_square"):
        assert summary[entry] == pytest.approx(expected[entry], rel=rel)
    assert summary["residual_standard_deviation"] == pytest.approx(math.sqrt(expected["reduced_chi_square"]), rel=rel)
    # statsmodels adds the constant of the normal distribution.
    rows = summary["degrees_of_freedom"] + len(errors)
    for entry in ("aic", "bic"):
        assert summary[entry] == pytest.approx(expected[entry] - rows * (1 + math.log(2 * math.pi)), rel=rel)


def test_a_formula_has_the_answers_of_lmfit() -> None:
    expected, summary = ANSWERS["formula"], fit("formula").summary
    assert "coefficients" not in summary
    assert summary["parameters"] == pytest.approx(expected["parameters"], rel=1e-6)
    rel = 2e-4  # lmfit's derivatives are differences, of which it forms the product
    assert list(summary["covariance"]) == ["a", "b", "d"]
    assert np.array([*summary["covariance"].values()]) == pytest.approx(np.array(expected["covariance"]), rel=rel)
    for name, row in summary["correlation"].items():
        assert dict(zip("abd", row, strict=True)) == pytest.approx(expected["correlation"][name], rel=rel)
    for entry in ("chi_square", "reduced_chi_square", "aic", "bic"):
        assert summary[entry] == pytest.approx(expected[entry], rel=1e-10)
    x, (a, b, _) = np.array(expected["columns"]["x"]), summary["parameters"].values()
    jacobian = np.column_stack((np.exp(-b * x), -a * x * np.exp(-b * x), np.ones(20)))
    covariance = np.linalg.inv(jacobian.T @ jacobian) * summary["reduced_chi_square"]
    assert np.array([*summary["covariance"].values()]) == pytest.approx(covariance, rel=1e-11)  # a condition of 100


def test_more_than_fifty_parameters_have_no_matrices() -> None:
    summary = runner.run(None, [*QUICK[:4], "data=line", "data.features=50", "data.rows=99", "optimizer=lstsq"]).summary
    assert "standard_errors" in summary
    assert not {"covariance", "correlation"} & summary.keys()


def test_without_standard_errors_there_is_a_sum_of_squares_and_no_criterion() -> None:
    summary = fit("linear", "optimizer.weight_decay=0.1").summary
    residual = [float(row["residual"]) for row in residuals(next(Path("runs/run").iterdir()))[:24]]
    assert summary["chi_square"] == pytest.approx(sum(value**2 for value in residual), rel=1e-12)
    assert not {"aic", "bic", "covariance", "correlation", "standard_errors"} & summary.keys()


# ---------------------------------------------------------------------------------------------------------- the names


def test_coefficients_are_printed_by_column_and_power(capsys: pytest.CaptureFixture[str]) -> None:
    summary = fit("polynomial", "data.standardize=true").summary
    lines = capsys.readouterr().out.splitlines()
    named = {line.split(" = ")[0]: line for line in lines if "(95 %:" in line}
    assert list(named) == ["x", "x^2", "constant"]
    errors = [*summary["standard_errors"]["linear.weight"][0], *summary["standard_errors"]["linear.bias"]]
    for (name, line), error in zip(named.items(), errors, strict=True):
        value, shown = line.split(" = ")[1].split(" (")[0].split(" ± ")
        assert float(value) == pytest.approx(summary["coefficients"][name], abs=error / 100)
        assert float(shown) == pytest.approx(error, rel=1e-2)
    assert set(summary["parameters"]) == {"linear.weight", "linear.bias"}
    log = (next(Path("runs/run").iterdir()) / "run.log").read_text(encoding="utf-8").splitlines()
    assert set(named.values()) <= set(log)


def test_a_fit_without_standard_errors_is_printed_by_the_same_names(capsys: pytest.CaptureFixture[str]) -> None:
    summary = fit("linear", "optimizer=sgd", "optimizer.lr=1e-6", "train.steps=3").summary
    lines = capsys.readouterr().out.splitlines()
    for name, value in summary["coefficients"].items():
        assert f"{name} = {value:.6g}" in lines


def test_columns_that_look_like_powers_are_told_apart_by_backticks() -> None:
    x = np.arange(1.0, 9.0)
    table = write_table({"x": x.tolist(), "x^2": np.sin(x).tolist(), "y": (x**3).tolist()})
    summary = runner.run(None, [*QUICK, table, "model=polynomial", "model.degree=2", "optimizer=lstsq"]).summary
    assert list(summary["coefficients"]) == ["`x`", "`x`^2", "`x^2`", "`x^2`^2", "constant"]
    table = write_table({"constant": x.tolist(), "y": (2 * x + 1).tolist()})
    summary = runner.run(None, [*QUICK, table, "optimizer=lstsq"]).summary
    assert summary["coefficients"] == pytest.approx({"`constant`": 2.0, "constant": 1.0}, rel=1e-12)


def test_a_model_without_a_bias_has_no_constant() -> None:
    assert list(fit("linear", "model.bias=false").summary["coefficients"]) == ["length", "width"]
    assert "constant" in fit("linear", "model.bias=false", "data.standardize=true").summary["coefficients"]


def test_coefficients_of_the_logarithm_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    summary = fit("linear", "data.log_target=true").summary
    assert summary["fitted_to"] == "log(y)"
    lines = capsys.readouterr().out.splitlines()
    place = lines.index("fitted to log(y), the natural logarithm:")
    assert lines[place + 1].startswith("length = ")
    assert "fitted_to" not in fit("linear").summary


def test_powers_that_no_float_holds_are_no_error() -> None:
    x = 1e9 + np.linspace(0, 1, 60)
    table = write_table({"x": x.tolist(), "y": (x - 1e9).tolist()})
    run = runner.run(None, [*QUICK, table, "model=polynomial", "model.degree=40", "data.standardize=true", "train.steps=1", "optimizer=adam", "optimizer.lr=1e-9"])  # fmt: skip
    assert run.summary["coefficients"].keys() >= {"x", "x^40"}


# --------------------------------------------------------------------------------------------------------- the sentence


def test_strongly_correlated_parameters_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    x = 2000 + np.arange(20.0)
    table = write_table({"year": x.tolist(), "y": (3 + np.sin(x)).tolist()})
    summary = runner.run(None, [*QUICK, table, "optimizer=lstsq"]).summary
    value = summary["correlation"]["year"][1]
    assert value < -0.999
    sentence = f"fit      the parameters year and constant are strongly correlated ({value:.6f}): a change of one compensates a change of the other"  # fmt: skip
    assert sentence in capsys.readouterr().out.splitlines()
    fit("linear")
    assert "correlated" not in capsys.readouterr().out


def test_only_the_closest_pairs_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    x = np.linspace(100, 101, 40)
    table = write_table({"x": x.tolist(), "y": np.sin(9 * x).tolist()})
    summary = runner.run(None, [*QUICK, table, "model=polynomial", "model.degree=3", "data.standardize=true", "optimizer=lstsq"]).summary  # fmt: skip
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fit      ")]
    assert sum("strongly correlated" in line for line in lines) == 3
    assert "fit      3 more such pairs: see `correlation` in summary.json" in lines
    assert len(summary["correlation"]) == 4


# --------------------------------------------------------------------------------------------------------- residuals.csv


@pytest.mark.parametrize("override", ["", "data.standardize=true"])
@pytest.mark.parametrize("name", ["linear", "polynomial"])
def test_residuals_are_those_of_statsmodels(name: str, override: str) -> None:
    expected, run = ANSWERS[name], fit(name, *filter(None, [override]))
    rows, target = residuals(run.directory), expected["columns"]["y"]
    assert [int(row["row"]) for row in rows] == list(range(1, len(target) + 1))
    held_out = len(target) - 24 if name == "linear" else 0
    assert [row["part"] for row in rows] == ["train"] * (len(target) - held_out) + ["test"] * held_out
    numbers = {key: [float(row[key]) for row in rows] for key in ("target", "prediction", "residual", "standardized_residual")}  # fmt: skip
    assert numbers["target"] == pytest.approx(target, rel=1e-15)
    assert numbers["standardized_residual"] == pytest.approx(expected["standardized"], rel=1e-7, abs=1e-9)
    for row in rows:
        assert float(row["residual"]) == float(row["target"]) - float(row["prediction"])
    train = [value for value, row in zip(numbers["residual"], rows, strict=True) if row["part"] == "train"]
    assert sum(value**2 for value in train) == pytest.approx(expected["chi_square"], rel=1e-9)


def test_residuals_of_a_random_split_are_in_the_order_of_the_file() -> None:
    run = fit("polynomial", "data.split.order=random", "data.split.test=5", "data.split.valid=4")
    rows = residuals(run.directory)
    assert [float(row["target"]) for row in rows] == ANSWERS["polynomial"]["columns"]["y"]
    assert sorted({row["part"] for row in rows}) == ["test", "train", "valid"]
    for part in ("train", "valid", "test"):
        squares = [float(row["residual"]) ** 2 for row in rows if row["part"] == part]
        assert math.sqrt(sum(squares) / len(squares)) == pytest.approx(
            run.summary["metrics"][f"{part}/rmse"], rel=1e-12
        )


def test_a_network_in_float32_has_residuals_with_the_digits_of_the_file() -> None:
    run = fit("linear", "model=mlp", "model.widths=[4]", "optimizer=adam", "train.steps=5", "dtype=float32")
    rows = residuals(run.directory)
    assert [float(row["target"]) for row in rows] == ANSWERS["linear"]["columns"]["y"]
    assert {row["standardized_residual"] for row in rows} == {""}


def test_a_row_that_alone_determines_a_parameter_has_no_standardized_residual() -> None:
    table = write_table({"x": [1.0, 2.0, 3.0, 4.0], "z": [0.0, 0.0, 0.0, 1.0], "y": [1.0, 2.5, 2.8, 9.0]})
    run = runner.run(None, [*QUICK, table, "optimizer=lstsq"])
    values = [row["standardized_residual"] for row in residuals(run.directory)]
    assert values[3] == ""
    assert all(math.isfinite(float(value)) for value in values[:3])


def test_residuals_are_left_out_where_they_are_not_wanted_or_too_many(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not (fit("linear", "record.residuals=false").directory / "residuals.csv").exists()
    monkeypatch.setattr(predictions, "MOST_ROWS", 29)
    assert not (fit("linear").directory / "residuals.csv").exists()
    sentence = "residuals.csv is not written: there are 30 rows, and more than 29 make it too large"
    assert sentence in capsys.readouterr().out.splitlines()


def test_trials_write_residuals_on_request_and_the_same_as_alone() -> None:
    table = write_table(ANSWERS["formula"]["columns"])
    swept = [*QUICK, table, *DECAY, "optimizer.radius=0.5,5"]
    directory, results = runner.multirun(None, swept)
    with open(directory / "results.csv", encoding="utf-8", newline="") as file:
        found = [float(row["param/b"]) for row in csv.DictReader(file)]
    assert found == [member.parameters["param/b"] for member in results.members]
    assert found == pytest.approx([ANSWERS["formula"]["parameters"]["b"]] * 2, rel=1e-6)
    assert not list(directory.glob("*/residuals.csv"))
    directory, _ = runner.multirun(None, [*swept, "record.residuals=true"])
    for number, radius in enumerate(("0.5", "5")):
        trial = directory / str(number)
        alone = runner.run(None, [*QUICK, table, *DECAY, f"optimizer.radius={radius}"])
        summary = json.loads((trial / "summary.json").read_text(encoding="utf-8"))
        for entry in ("chi_square", "aic", "bic"):
            assert summary[entry] == pytest.approx(alone.summary[entry], rel=1e-12)
        for name in "abd":
            assert summary["covariance"][name] == pytest.approx(alone.summary["covariance"][name], rel=1e-9)
        assert [row["part"] for row in residuals(trial)] == ["train"] * 20
        for one, other in zip(residuals(trial), residuals(alone.directory), strict=True):
            assert one["target"] == other["target"]
            assert float(one["residual"]) == pytest.approx(float(other["residual"]), rel=1e-7)


# -------------------------------------------------------------------------------------------------------------- the bands


def drawn(monkeypatch: pytest.MonkeyPatch, name: str, *overrides: str) -> Any:
    """Return the content of the plots of a fit."""
    contents: list[Any] = []

    def draw(content: Any) -> dict[str, bytes]:
        contents.append(content)
        return {}

    monkeypatch.setattr(plots, "draw", draw)
    fit(name, "record.plots=true", *overrides)
    return contents[0]


@pytest.mark.parametrize(("name", "override"), [("polynomial", ""), ("polynomial", "data.standardize=true"), ("formula", "")])  # fmt: skip
def test_the_bands_are_those_of_statsmodels_and_lmfit(
    name: str, override: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At both ends of the range, which are rows of the table."""
    content = drawn(monkeypatch, name, *filter(None, [override]))
    assert list(content.bands) == ["95 % confidence band", "95 % prediction band"]
    for kind, band in zip(("confidence", "prediction"), content.bands.values(), strict=True):
        for side, expected in zip(band, ANSWERS[name][kind], strict=True):
            assert (side[0], side[-1]) == pytest.approx((expected[0], expected[-1]), rel=1e-6)


def test_bands_of_a_logarithm_are_in_the_units_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    content = drawn(monkeypatch, "polynomial", "data.log_target=true")
    low, high = content.bands["95 % prediction band"]
    line = content.line[1]
    assert np.sqrt(low * high) == pytest.approx(line, rel=1e-12)
    assert (low < line).all()
    assert (line < high).all()


def test_a_fit_without_errors_and_one_of_two_columns_have_no_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn(monkeypatch, "polynomial", "optimizer.weight_decay=0.1").bands == {}
    assert drawn(monkeypatch, "linear").bands == {}
