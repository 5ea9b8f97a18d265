"""Transforms of numbers: the values of scikit-learn, their bounds, and that a saved one is the same."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import QuantileTransformer, RobustScaler

from runner.data.transforms import NOISE, Quantile, Robust, Transform, of_state


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


SAMPLES = {
    "lognormal": np.random.default_rng(1).lognormal(size=5000),
    "rounded": np.round(np.random.default_rng(1).lognormal(size=5000), 1),
    "few rows": np.array([3.0, 1.0, 2.0]),
    "integers": np.arange(1000.0) % 7,
}


@pytest.mark.parametrize("values", SAMPLES.values(), ids=SAMPLES)
def test_quantiles_are_those_of_scikit_learn(values: np.ndarray) -> None:
    ours = Quantile.fit(values, generator())
    noise = torch.randn(len(values), generator=generator(), dtype=torch.float64).numpy()
    noisy = values + NOISE * values.std() * noise
    theirs = QuantileTransformer(
        n_quantiles=min(max(min(len(values) // 30, 1000), 10), len(values)),
        output_distribution="normal",
        subsample=None,
    ).fit(noisy[:, None])
    new = np.concatenate([values, np.linspace(values.min() - 1, values.max() + 1, 97)])
    # Both interpolate in float64; near the ends a rounding error of 1e-17 in a probability of 1e-7 is one of 1e-10 in the value.
    np.testing.assert_allclose(ours.apply(new), theirs.transform(new[:, None])[:, 0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("unit", [2.0**-40, 2.0**40])
def test_quantiles_do_not_depend_on_the_unit(unit: float) -> None:
    values = SAMPLES["rounded"]  # times a power of two, which rounds nothing
    scaled = Quantile.fit(unit * values, generator()).apply(unit * values)
    assert scaled.tolist() == Quantile.fit(values, generator()).apply(values).tolist()


def test_equal_numbers_become_equal_quantiles() -> None:
    transformed = Quantile.fit(np.full(50, 2.5), generator()).apply(np.full(3, 2.5))
    assert len(set(transformed.tolist())) == 1


def test_the_robust_transform_is_scikit_learns_scaler_with_a_smooth_clip() -> None:
    values = SAMPLES["lognormal"]
    scaled = RobustScaler().fit_transform(values[:, None])[:, 0]
    # One division and one square root in float64 on each side.
    np.testing.assert_allclose(Robust.fit(values).apply(values), scaled / np.sqrt(1 + (scaled / 3) ** 2), rtol=1e-14)


@pytest.mark.parametrize(
    ("values", "scale"),
    [([0, 0, 0, 0, 8], 4), ([5, 5, 5], 1)],
    ids=["no interquartile range", "one value"],
)
def test_the_scale_of_a_column_without_an_interquartile_range(values: list[float], scale: float) -> None:
    assert Robust.fit(np.array(values, float)).scale == scale


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=60), st.data())
def test_transformed_numbers_are_bounded_in_order_and_the_same_from_a_state(
    rows: list[float], data: st.DataObject
) -> None:
    values = np.array(rows)
    transforms: list[tuple[Transform, float]] = [(Quantile.fit(values, generator()), 5.2), (Robust.fit(values), 3.0)]
    for transform, bound in transforms:
        new = np.sort(np.array(data.draw(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=20))))
        transformed = transform.apply(new)
        assert np.isfinite(transformed).all()
        assert np.abs(transformed).max() <= bound
        # Equal up to rounding where two neighbours are far beyond the bound.
        assert (np.diff(transformed) >= -1e-9).all()
        again = of_state(json.loads(json.dumps(transform.state())))
        assert again.apply(new).tolist() == transformed.tolist()
