"""Synthetic data: values of the formula on an even grid, and noise from a stream of its own."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from runner.compute.rng import stream
from runner.config import schema as c
from runner.config.compose import compose
from runner.data.synthetic import curve, line
from runner.data.tables import Table
from runner.errors import DataError

COMMON: dict[str, Any] = {
    "seed": None, "log_target": False, "standardize": False, "numbers": None, "target_scale": None, "split": compose(["data=line"]).config.data.split,
    "rows": 5, "start": -1.0, "stop": 1.0, "noise": 0.0, "noise_distribution": "normal",
}  # fmt: skip
LINE = c.Line(name="line", features=1, slope=2.0, intercept=3.0, **COMMON)
CURVE = c.Curve(name="curve", expression="exp(x) + 1", **COMMON)


def _features(table: Table) -> np.ndarray:
    features: np.ndarray = np.array([column.values for column in table.features]).T
    return features


def _names(table: Table) -> tuple[str, ...]:
    return tuple(column.name for column in table.features)


def test_a_line_lies_on_an_even_grid_that_includes_both_ends() -> None:
    table = line(LINE, seed=0)
    assert _features(table).tolist() == [[-1.0], [-0.5], [0.0], [0.5], [1.0]]
    assert table.targets[0].values.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert (_names(table), table.targets[0].name) == (("x",), "y")
    assert _features(table).dtype == table.targets[0].values.dtype == np.float64


def test_a_single_row_is_at_the_start() -> None:
    assert _features(line(dataclasses.replace(LINE, rows=1), seed=0)).tolist() == [[-1.0]]


def test_every_feature_of_a_line_has_the_same_slope() -> None:
    table = line(dataclasses.replace(LINE, features=3, rows=200, start=2.0, stop=4.0), seed=1)
    assert _names(table) == ("x1", "x2", "x3")
    assert _features(table).shape == (200, 3)
    # The sum of three numbers below 4, in another order: a few roundings.
    np.testing.assert_allclose(table.targets[0].values, 2 * _features(table).sum(axis=1) + 3, rtol=1e-15)
    assert _features(table).min() >= 2
    assert _features(table).max() < 4
    # Uniform on [2, 4): the mean is 3 with a standard deviation of 0.577/√600 = 0.024; five of them are allowed.
    assert abs(_features(table).mean() - 3) < 0.12


def test_a_curve_has_the_values_of_its_formula() -> None:
    table = curve(CURVE, seed=0)
    # One rounding each in exp and in the sum, and exp of libm and torch may differ in the last place.
    np.testing.assert_allclose(table.targets[0].values, [math.exp(x) + 1 for x in (-1, -0.5, 0, 0.5, 1)], rtol=1e-15)
    assert _names(table) == ("x",)


def test_a_curve_of_two_names_draws_both_features() -> None:
    table = curve(dataclasses.replace(CURVE, expression="b - a"), seed=0)
    assert _names(table) == ("b", "a")
    assert table.targets[0].values.tolist() == (_features(table)[:, 0] - _features(table)[:, 1]).tolist()


@pytest.mark.parametrize(("distribution", "draw"), [("normal", torch.randn), ("uniform", torch.rand)])
def test_noise_is_drawn_from_the_noise_stream(distribution: str, draw: Any) -> None:
    noisy: Any = {"noise": 0.25, "noise_distribution": distribution}
    drawn = draw(5, dtype=torch.float64, generator=stream(7, "noise")).numpy()
    clean = line(LINE, seed=7).targets[0].values
    assert (
        line(dataclasses.replace(LINE, **noisy), seed=7).targets[0].values.tolist() == (clean + 0.25 * drawn).tolist()
    )


def test_noise_does_not_change_the_features() -> None:
    wide = dataclasses.replace(LINE, features=2)
    noisy = dataclasses.replace(wide, noise=1.0)
    assert _features(line(wide, seed=3)).tolist() == _features(line(noisy, seed=3)).tolist()
    assert _features(line(wide, seed=3)).tolist() != _features(line(wide, seed=4)).tolist()


def test_the_global_generator_is_not_used() -> None:
    before = torch.get_rng_state()
    line(dataclasses.replace(LINE, features=2, noise=1.0), seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_formula_that_is_not_finite_is_refused_with_the_place() -> None:
    with pytest.raises(DataError) as caught:
        curve(dataclasses.replace(CURVE, expression="1/x"), seed=0)
    assert caught.value.problems == (
        "`data.expression` must be finite on the whole range, but '1/x' is not at x=0; change data.start and data.stop",
    )


@pytest.mark.parametrize(
    ("build", "config", "message"),
    [
        (
            line,
            dataclasses.replace(LINE, slope=1e308, stop=10.0),
            "`data`=line must give numbers up to 1.8e308, the largest float64, but the target of row 3 is inf; "
            "make `data.stop` or `data.slope` or `data.intercept` or `data.noise` smaller",
        ),
        (
            curve,
            dataclasses.replace(CURVE, noise=1.7e308),
            "`data`=curve must give numbers up to 1.8e308, the largest float64, but the target of row 1 is -inf; "
            "make `data.noise` smaller",
        ),
    ],
)
def test_a_target_beyond_float64_is_refused_by_the_keys_that_make_it(build: Any, config: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        build(config, seed=1)
    assert caught.value.problems == (message,)
