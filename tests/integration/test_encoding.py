"""Encoding of features: categories with and without a reference, transforms of numbers, and `preprocessing.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from sklearn.preprocessing import RobustScaler

import runner
from runner.errors import ConfigError, DataError
from runner.training.run import Run

QUICK = ["device=cpu", "device.threads=1", "record.plots=false", "dtype=float64", "data=csv", "data.path=t.csv", "data.target=y"]  # fmt: skip
COLORS = ("blue", "green", "red")
ROWS = 60


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def table(missing: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Write t.csv with columns color, x and y, the first colors missing, and return codes of the colors, x and y."""
    draw = np.random.default_rng(5)
    code, x = draw.integers(0, 3, ROWS), draw.normal(2, 3, ROWS)
    y = np.array([1.0, 4.0, -2.0])[code] + 0.5 * x + 0.3 * draw.normal(size=ROWS)
    cells = ["" if i < missing else COLORS[k] for i, k in enumerate(code.tolist())]
    lines = (f"{cell},{a!r},{b!r}" for cell, a, b in zip(cells, x.tolist(), y.tolist(), strict=True))
    Path("t.csv").write_text("\n".join(["color,x,y", *lines]) + "\n")
    return code, x, y


def run(*overrides: str) -> Run:
    return runner.run(None, [*QUICK, *overrides])


def preprocessing(result: Run) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((result.directory / "preprocessing.json").read_text())
    return values


@pytest.mark.parametrize("optimizer", ["lstsq", "lm"])
@pytest.mark.parametrize("standardize", ["true", "false"])
def test_a_solver_compares_categories_with_the_first_one(optimizer: str, standardize: str) -> None:
    """Treatment coding: coefficients and standard errors are those of ordinary least squares on that design."""
    code, x, y = table()
    result = run("model=linear", f"optimizer={optimizer}", f"data.standardize={standardize}")
    design = np.stack([code == 1, code == 2, x, np.ones(ROWS)], 1).astype(float)
    coefficients, squares, *_ = np.linalg.lstsq(design, y)
    errors = np.sqrt(squares[0] / (ROWS - 4) * np.linalg.inv(design.T @ design).diagonal())
    summary = result.summary
    assert list(summary["coefficients"]) == ["color=green", "color=red", "x", "constant"]
    # The condition number is below 20, and lm ends at a relative offset of 1e-9.
    assert list(summary["coefficients"].values()) == pytest.approx(coefficients.tolist(), rel=1e-8)
    found = [*np.ravel(summary["standard_errors"]["weight"]), *summary["standard_errors"]["bias"]]
    assert found == pytest.approx(errors.tolist(), rel=1e-8)
    assert preprocessing(result)["features"][0] == {
        "name": "color", "kind": "category", "values": ["green", "red"], "reference": "blue", "codes": False,
    }  # fmt: skip


def test_the_reference_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    table()
    run("model=linear", "optimizer=lstsq")
    assert "read     categories color (3); reference color=blue\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=linear", "optimizer=sgd", "train.steps=1"],
        ["model=linear", "optimizer=lstsq", "optimizer.weight_decay=0.1"],
        ["model=linear", "model.bias=false", "optimizer=lstsq"],
        ["model=mlp", "model.widths=[2]", "optimizer=lm", "train.steps=1"],
    ],
    ids=["gradient method", "penalty", "no constant", "network"],
)
def test_where_every_category_has_an_answer_each_has_a_column(overrides: list[str]) -> None:
    table()
    result = run(*overrides)
    assert preprocessing(result)["features"][0]["values"] == list(COLORS)


def test_missing_categories_are_their_own_reference() -> None:
    code, x, y = table(missing=10)
    result = run("model=linear", "optimizer=lstsq", "data.missing=mean")
    known = np.arange(ROWS) >= 10
    design = np.stack([*((code == k) & known for k in range(3)), x, np.ones(ROWS)], 1).astype(float)
    expected = np.linalg.lstsq(design, y)[0]
    assert list(result.summary["coefficients"]) == [*(f"color={name}" for name in COLORS), "x", "constant"]
    assert list(result.summary["coefficients"].values()) == pytest.approx(expected.tolist(), rel=1e-10)


def test_a_sweep_over_optimizers_gives_each_its_columns() -> None:
    table()
    path, _ = runner.multirun(None, [*QUICK, "model=linear", "optimizer=lstsq,sgd", "train.steps=2"])
    values = [json.loads((path / str(i) / "preprocessing.json").read_text())["features"][0]["values"] for i in range(2)]
    assert values == [["green", "red"], list(COLORS)]


# ------------------------------------------------------------------------------------------------- transforms of numbers


@pytest.mark.parametrize(
    ("numbers", "name"), [("none", "x"), ("standardize", "x"), ("quantile", "quantile(x)"), ("robust", "robust(x)")]
)
def test_numbers_are_transformed_and_the_target_is_not(numbers: str, name: str) -> None:
    """One step of gradient descent from zero: weight = lr·2·mean(f(x)·y), which needs f(x) alone."""
    _, x, y = table()
    result = run("data.drop=[color]", f"data.numbers={numbers}", "model=linear", "model.init=zeros", "optimizer=sgd", "optimizer.lr=0.5", "train.steps=1")  # fmt: skip
    scaled = RobustScaler().fit_transform(x[:, None])[:, 0]
    functions = {
        "none": x,
        "standardize": (x - x.mean()) / x.std(ddof=1),
        "robust": scaled / np.sqrt(1 + (scaled / 3) ** 2),
    }
    assert list(result.summary["coefficients"]) == [name, "constant"]
    if numbers in functions:
        feature = functions[numbers]
        slope, constant = (feature * y).mean(), y.mean()
        if numbers == "standardize":  # reported in the units of the file
            slope, constant = slope / x.std(ddof=1), constant - slope * x.mean() / x.std(ddof=1)
        assert list(result.summary["coefficients"].values()) == pytest.approx([slope, constant], rel=1e-12)
    else:  # noise makes the quantiles differ by about 1e-5 of a standard deviation
        ranks = (scipy.stats.rankdata(x) - 0.5) / ROWS
        slope = result.summary["coefficients"][name]
        assert slope == pytest.approx((scipy.stats.norm.ppf(ranks) * y).mean(), rel=0.15)
    assert preprocessing(result)["targets"] == [{"name": "y", "log": False, "mean": 0.0, "scale": 1.0}]


def test_standardize_is_shorthand_for_both() -> None:
    table()
    model = ["model=linear", "optimizer=adam", "train.steps=5"]
    short = run("data.standardize=true", *model).summary
    long = run("data.numbers=standardize", "data.target_scale=standardize", *model).summary
    assert short["parameters_sha256"] == long["parameters_sha256"]


def test_the_quantiles_are_those_of_the_seed_and_column() -> None:
    table()
    model = ["data.numbers=quantile", "model=linear", "optimizer=adam", "train.steps=1"]
    whole, alone, other = run(*model), run(*model, "data.drop=[color]"), run(*model, "data.seed=1")

    def quantiles(result: Run) -> list[float]:
        values: list[float] = preprocessing(result)["features"][-1]["transform"]["quantiles"]
        return values

    assert quantiles(whole) == quantiles(alone)
    assert quantiles(whole) != quantiles(other)


def test_missing_numbers_are_left_out_of_a_fit_and_filled_before_the_transform() -> None:
    values = [None, *np.linspace(1, 9, 9).tolist()]
    Path("t.csv").write_text(
        "\n".join(["x,y", *(f"{'' if v is None else v},{i}" for i, v in enumerate(values))]) + "\n"
    )
    result = run("data.missing=mean", "data.numbers=robust", "model=linear", "optimizer=adam", "train.steps=1")
    (feature,) = preprocessing(result)["features"]
    assert feature == {
        "name": "x", "kind": "number", "mean": 5.0, "indicated": True,
        "transform": {"kind": "robust", "median": 5.0, "scale": 4.0},
    }  # fmt: skip
    assert [entry["name"] for entry in preprocessing(result)["inputs"]] == ["robust(x)", "x missing"]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("kind,kind=b,y\na,1,2\nb,3,1\nc,2,5\nb,4,4\na,5,5\nc,7,1\n", "kind=b"),
        ("x,x missing,y\n1,1,2\n,3,1\n4,2,5\n3,4,4\n7,5,5\n9,7,1\n", "x missing"),
    ],
)
def test_a_column_with_the_name_of_an_encoded_one_is_refused_until_it_is_renamed(content: str, name: str) -> None:
    Path("t.csv").write_text(content)
    overrides = ["data.missing=mean", "model=linear", "optimizer=lstsq"]
    with pytest.raises(DataError) as refused:
        run(*overrides)
    assert list(refused.value.problems) == [
        "`data.path` must have columns of other names than those that categories, dates and missing values are given, got "
        f"{name!r}; use another name with `data.rename`"
    ]
    assert not Path("runs").exists()
    coefficients = run(*overrides, f"data.rename={{other: '{name}'}}").summary["coefficients"]
    assert {"other", name} <= set(coefficients)


def _dates(cells: list[str]) -> None:
    """Write t.csv with a column of dates, and one of numbers."""
    rows = (f"{cell},{row % 7},{row * row % 11}" for row, cell in enumerate(cells))
    Path("t.csv").write_text("\n".join(["when,x,y", *rows]) + "\n")


def test_parts_of_a_date_share_the_column_that_says_where_one_is_missing() -> None:
    _dates([*(f"202{row % 5}-{row % 12 + 1:02}-{row % 28 + 1:02}" for row in range(40)), ""])
    result = run("data.dates=parts", "data.missing=mean", "model=linear", "optimizer=lstsq")
    parts = ["when.year", "when missing", "when.month", "when.day", "when.weekday"]
    assert [entry["name"] for entry in preprocessing(result)["inputs"]] == [*parts, "x"]
    features = preprocessing(result)["features"]
    assert [(feature["name"], feature["kind"], feature["indicated"]) for feature in features] == [
        ("when.year", "year", True),
        ("when.month", "month", False),
        ("when.day", "day", False),
        ("when.weekday", "weekday", False),
        ("x", "number", False),
    ]
    assert features[0]["mean"] == 2022


def test_a_part_of_a_date_with_the_name_of_a_column_is_refused() -> None:
    Path("t.csv").write_text("when,when.year,y\n2023-01-01,5,1\n2024-02-02,6,2\n2025-03-03,4,3\n2025-03-04,1,3\n")
    with pytest.raises(DataError) as refused:
        run("data.dates=parts", "model=linear", "optimizer=lstsq")
    assert list(refused.value.problems) == [
        "`data.path` must have columns of other names than those that categories, dates and missing values are given, got "
        "'when.year'; use another name with `data.rename`"
    ]


def test_dates_in_a_file_of_their_own_become_the_parts_of_the_training_rows() -> None:
    _dates([f"2024-{row % 12 + 1:02}-{row % 28 + 1:02}" for row in range(40)])
    Path("v.csv").write_text("y,x,when\n1,2,2024-05-06\n2,3,\n")
    result = run("data.dates=parts", "data.missing=mean", "data.valid_path=v.csv", "model=linear", "optimizer=lstsq")
    assert [entry["name"] for entry in preprocessing(result)["inputs"]] == ["when.month", "when.day", "when.weekday", "x"]  # fmt: skip


REFUSED = {
    "data.standardize=true data.numbers=quantile": "`data.numbers` must be standardize or null with `data.standardize`=true, which stands for it, got quantile; use data.standardize=false data.target_scale=standardize",
    "data.standardize=true data.target_scale=none": "`data.target_scale` must be standardize or null with `data.standardize`=true, which stands for it, got none; use data.standardize=false data.numbers=standardize",
    "model=formula model.expression=a*x data.numbers=robust": "`data.numbers` must be none with `model`=formula, whose parameters are in the units of the data, got robust; use data.numbers=none",
    "model=formula model.expression=a*x data.target_scale=standardize": "`data.target_scale` must be none with `model`=formula, whose parameters are in the units of the data; use data.target_scale=none",
    "data.numbers=rank": "`data.numbers` must be one of none, standardize, quantile, robust or null, got 'rank'",
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED.items())
def test_what_contradicts_itself_is_refused(overrides: str, message: str) -> None:
    table()
    with pytest.raises(ConfigError) as refused:
        run(*overrides.split(" "))
    assert list(refused.value.problems) == [message]
    assert not Path("runs").exists()


def test_the_advice_of_a_refusal_is_accepted() -> None:
    table()
    for advice in (
        "data.numbers=quantile data.standardize=false data.target_scale=standardize",
        "data.target_scale=none data.standardize=false data.numbers=standardize",
    ):
        assert run(*advice.split(" "), "model=linear", "optimizer=adam", "train.steps=1").summary["steps"] == 1
