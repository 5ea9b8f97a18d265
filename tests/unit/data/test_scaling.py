"""Scaling is fitted to the training rows in float64 and inverted exactly."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import Tensor

from runner.data.scaling import Scaling, moments

FEATURES = [[1.0, -4.0], [2.0, 8.0], [4.0, 3.0], [9.0, 5.0]]
TARGET = [1.0, 10.0, 100.0, 5.0]


def _wide(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _fit(standardize: bool, log_target: bool) -> Scaling:
    return Scaling.fit(
        _wide(FEATURES), _wide(TARGET), scaled=standardize, scales_target=standardize, log_target=log_target
    )


def test_standardized_values_follow_the_definition() -> None:
    scaling = _fit(True, False)
    columns = list(zip(*FEATURES, strict=True))
    expected = [
        [
            (value - statistics.mean(column)) / statistics.stdev(column)
            for value, column in zip(row, columns, strict=True)
        ]
        for row in FEATURES
    ]
    # The same formula in another order of summation: a few roundings of float64.
    torch.testing.assert_close(scaling.features(_wide(FEATURES)), _wide(expected), rtol=1e-14, atol=1e-15)
    unit = [(value - statistics.mean(TARGET)) / statistics.stdev(TARGET) for value in TARGET]
    torch.testing.assert_close(scaling.target(_wide(TARGET)), _wide(unit), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("unit", [1.0, 0.01])
def test_a_weight_counts_rows(unit: float) -> None:
    """Whatever the unit of the weights is: the smallest one is a row."""
    counts = [1, 3, 2, 1]
    mean, deviation = moments(_wide(FEATURES), _wide(counts) * unit)
    repeated = zip(*(row for row, count in zip(FEATURES, counts, strict=True) for _ in range(count)), strict=True)
    columns = list(repeated)
    assert mean.tolist() == pytest.approx([statistics.mean(column) for column in columns], rel=1e-14)
    assert deviation.tolist() == pytest.approx([statistics.stdev(column) for column in columns], rel=1e-14)


def test_the_logarithm_is_taken_before_the_mean() -> None:
    scaling = _fit(True, True)
    logs = [math.log(value) for value in TARGET]
    torch.testing.assert_close(float(scaling.target_mean), statistics.mean(logs), rtol=1e-14, atol=0)
    torch.testing.assert_close(float(scaling.target_scale), statistics.stdev(logs), rtol=1e-14, atol=0)


def test_without_standardizing_every_bit_is_unchanged() -> None:
    scaling = _fit(False, False)
    assert torch.equal(scaling.features(_wide(FEATURES)), _wide(FEATURES))
    assert torch.equal(scaling.target(_wide(TARGET)), _wide(TARGET))
    assert torch.equal(scaling.undo(_wide(TARGET)), _wide(TARGET))
    assert torch.equal(_fit(False, True).target(_wide(TARGET)), _wide(TARGET).log())


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("log_target", [True, False])
def test_undo_is_the_inverse_of_target(standardize: bool, log_target: bool) -> None:
    scaling = _fit(standardize, log_target)
    # exp turns the rounding of a logarithm below 5 into a relative error of less than ten units in the last place.
    torch.testing.assert_close(scaling.undo(scaling.target(_wide(TARGET))), _wide(TARGET), rtol=3e-15, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_undo_keeps_the_dtype_and_shape_of_the_prediction(dtype: torch.dtype) -> None:
    undone = _fit(True, True).undo(torch.zeros(3, 1, dtype=dtype))
    assert undone.dtype == dtype
    assert undone.shape == (3, 1)


@pytest.mark.parametrize("rows", [1, 2, 3, 6, 7, 50])
def test_a_constant_column_becomes_zero(rows: int) -> None:
    # The mean of equal numbers such as 0.1 is rounded: that of three of them differs from 0.1.
    features = torch.stack([torch.full((rows,), 0.1, dtype=torch.float64), torch.arange(rows).double()], dim=1)
    scaling = Scaling.fit(features, features[:, 0], scaled=True, scales_target=True, log_target=False)
    assert scaling.feature_scale[0] == scaling.target_scale == 1
    assert torch.equal(scaling.features(features)[:, 0], torch.zeros(rows, dtype=torch.float64))
    assert torch.equal(scaling.target(features[:, 0]), torch.zeros(rows, dtype=torch.float64))
    # A later row that differs keeps its distance in the column's own units.
    assert float(scaling.target(_wide(1.1))) == 1


def test_a_deviation_that_underflows_is_not_divided_by() -> None:
    features = _wide([[0.0], [1e-200]])
    assert (
        Scaling.fit(features, features[:, 0], scaled=True, scales_target=True, log_target=False)
        .features(features)
        .isfinite()
        .all()
    )


def test_the_state_has_every_field() -> None:
    scaling = _fit(True, True)
    state = scaling.state_dict()
    again = Scaling(**state)  # type: ignore[arg-type]  # the dict mixes tensors and a flag
    assert again == scaling
    assert set(state) == {"feature_mean", "feature_scale", "target_mean", "target_scale", "log_target"}
