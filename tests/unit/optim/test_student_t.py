"""Student's t quantile, and mean and interval of a sample, against reference values, scipy and closed forms."""

from __future__ import annotations

import math
import statistics
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from runner.optim.student_t import Estimate, estimate, t_quantile

INF, NAN = math.inf, math.nan


# (probability, degrees of freedom, quantile) by scipy.stats.t.ppf. Printed tables have the first digits of most of them.
REFERENCES = [
    (0.75, 1, 1.0),
    (0.975, 1, 12.706204736174694),
    (0.95, 2, 2.9199855803537242),
    (0.975, 3, 3.1824463052837078),
    (0.995, 4, 4.604094871349992),
    (0.975, 5, 2.5705818356363146),
    (0.51, 7, 0.025977941569516962),
    (0.975, 10, 2.228138851986274),
    (0.9999, 12, 5.263273007826034),
    (0.95, 30, 1.697260886593957),
    (0.975, 120, 1.9799304050824402),
    (0.975, 4095, 1.9605434621072302),
]


@pytest.mark.parametrize(("probability", "degrees", "quantile"), REFERENCES)
def test_the_quantile_has_its_reference_value(probability: float, degrees: int, quantile: float) -> None:
    assert t_quantile(probability, degrees) == pytest.approx(quantile, rel=1e-11)


@given(st.floats(0.51, 0.9999), st.integers(1, 512))
def test_the_quantile_agrees_with_scipy(probability: float, degrees: int) -> None:
    assert t_quantile(probability, degrees) == pytest.approx(float(stats.t.ppf(probability, degrees)), rel=1e-11)


@pytest.mark.parametrize("probability", [0.6, 0.9, 0.975])
def test_the_quantile_has_its_closed_forms(probability: float) -> None:
    within = 2 * probability - 1
    four = math.cos(math.acos(math.sqrt(1 - within**2)) / 3) / math.sqrt(1 - within**2)  # Shaw (2006)
    closed = {
        1: math.tan(math.pi * within / 2),
        2: within * math.sqrt(2 / (1 - within**2)),
        4: 2 * math.sqrt(four - 1),
    }
    # 1e-13: about a hundred roundings of 1e-16; subtracting 1 amplifies them near the median.
    assert {degrees: t_quantile(probability, degrees) for degrees in closed} == pytest.approx(closed, rel=1e-13)


def test_the_median_is_zero() -> None:
    assert [t_quantile(0.5, degrees) for degrees in (1, 2, 7, 100)] == [0, 0, 0, 0]


@pytest.mark.parametrize("count", [2, 3, 8, 32, 512])
def test_an_estimate_agrees_with_scipy(count: int) -> None:
    values = (5 + np.random.default_rng(count).standard_normal(count)).tolist()
    found = estimate(values)
    interval = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    expected = (count, statistics.mean(values), statistics.stdev(values), interval.low, interval.high)
    assert astuple(found) == pytest.approx(expected, rel=1e-11)  # accuracy of the quantile


def test_the_interval_contains_the_mean_in_95_percent_of_experiments() -> None:
    random, trials = np.random.default_rng(0), 4000
    found = [estimate(random.standard_normal(4).tolist()) for _ in range(trials)]
    share = sum(each.low <= 0 <= each.high for each in found) / trials
    assert abs(share - 0.95) < 4 * math.sqrt(0.95 * 0.05 / trials)  # four standard errors of a fraction


def test_the_interval_of_resamples_of_the_same_rows_is_that_of_nadeau_and_bengio() -> None:
    values = (5 + np.random.default_rng(0).standard_normal(10)).tolist()
    found = estimate(values, held_out=1 / 9)
    half = stats.t.ppf(0.975, 9) * statistics.stdev(values) * math.sqrt(1 / 10 + 1 / 9)
    assert (found.mean, found.deviation) == (estimate(values).mean, estimate(values).deviation)
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), rel=1e-11)


def test_the_interval_of_repeated_cross_validation_contains_the_expected_error() -> None:
    """Ten times five folds of 60 rows of a linear model of five features, whose expected squared error is known."""
    random, rows, folds, features, trained = np.random.default_rng(0), 60, 5, 5, 48
    expected = 1 + features / (trained - features - 1)  # of least squares with normal features and unit noise
    contained = {0.0: 0, 1 / (folds - 1): 0}
    for _ in range(300):
        x = random.standard_normal((rows, features))
        y = x.sum(1) + random.standard_normal(rows)
        errors = []
        for order in (random.permutation(rows) for _ in range(10)):
            for fold in np.array_split(order, folds):
                rest = np.setdiff1d(order, fold)
                solution = np.linalg.lstsq(x[rest], y[rest])[0]
                errors.append(float(np.mean((y[fold] - x[fold] @ solution) ** 2)))
        for held_out in contained:
            found = estimate(errors, held_out)
            contained[held_out] += found.low <= expected <= found.high
    independent, corrected = (count / 300 for count in contained.values())
    assert independent < 0.5  # measured: 0.35
    assert corrected > 0.88  # measured: 0.92, with a standard error of 0.016


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], Estimate(0, NAN, NAN, NAN, NAN)),
        ([0.25], Estimate(1, 0.25, NAN, NAN, NAN)),
        ([NAN], Estimate(1, NAN, NAN, NAN, NAN)),
        ([1.0, NAN], Estimate(2, NAN, NAN, NAN, NAN)),
        ([1.0, INF, 2.0], Estimate(3, INF, NAN, NAN, NAN)),
        ([INF, -INF], Estimate(2, NAN, NAN, NAN, NAN)),
    ],
)
def test_undefined_numbers_are_nan(values: list[float], expected: Estimate) -> None:
    assert repr(estimate(values)) == repr(expected)


@given(st.floats(-1e300, 1e300), st.integers(2, 40))
def test_equal_values_have_deviation_zero(value: float, count: int) -> None:
    assert estimate([value] * count) == Estimate(count, value, 0.0, value, value)


@given(st.lists(st.floats(1, 2), min_size=2, max_size=20), st.sampled_from([-1000, -60, 60, 1000]))
def test_an_estimate_scales_with_its_values(values: list[float], power: int) -> None:
    scale = 2.0**power  # a power of two is exact in every operation; its square would overflow or underflow
    found = astuple(estimate([value * scale for value in values]))
    assert found == (len(values), *(number * scale for number in astuple(estimate(values))[1:]))
