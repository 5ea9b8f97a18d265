"""Graphs of ONNX that are built by computing, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from scipy.special import ndtri
from sklearn.preprocessing import QuantileTransformer

from runner.commands.export import onnx_model, runtimes
from runner.commands.export.graph import Graph, Value
from runner.commands.export.onnx_model import normal_quantile
from runner.config.expression import parse
from runner.data.transforms import Quantile
from runner.errors import ConfigError


def run(compute: Callable[[Value], Value], cells: np.ndarray) -> np.ndarray:
    """Return what a graph of one input and one output computes of cells [rows]."""
    graph = Graph(["x", "y"])
    graph.output("y", compute(graph.input("x", cells.dtype.type)))
    session = onnxruntime.InferenceSession(graph.model({}).SerializeToString())
    found: np.ndarray = session.run(["y"], {"x": cells.reshape(-1, 1)})[0]
    return found[:, 0]


FORMULAS = [
    "1 + x*2 - x/3 - 1/(x - 7)", "2**x + x**2 + x**-1 - (-x)**3", "abs(x) + sign(x) + -x", "exp(x) + expm1(x/1e6)*1e6", "log(x*x) + log10(abs(x))",
    "log1p(x*x) + log1p(x*x/1e6)*1e6 + log2(x*x)", "sqrt(x*x + 1)", "sin(x) + cos(x) + tan(x/4)", "sinh(x/4) + cosh(x/4) + tanh(x)", "min(x, 2) + max(1, x) + max(x, x*x)",
    "where(x > 1, x, 2) + (x < 1) + (x <= 1) + (x >= 1) + (x == 1) + (x != 1)", "where(x, 1, 2) * where(x > 0, pi, x)",
]  # fmt: skip
ONLY_FLOAT32 = ["asin(x/9) + acos(x/9) + atan(x)", "erf(x) + erfc(x)"]


@pytest.mark.parametrize(
    ("text", "dtype"),
    [*((text, np.float64) for text in FORMULAS), *((text, np.float32) for text in [*FORMULAS, *ONLY_FLOAT32])],
)
def test_a_formula_is_the_same_graph(text: str, dtype: Any) -> None:
    """Also at 0, where logarithms are infinite, and beside it, where differences cancel."""
    cells = np.array([0, 1, -1, 2, 5.5, -3.25, 0.1, -1e-3, 1e-5, 2.5], dtype)
    expected = parse(text)({"x": torch.from_numpy(cells)}).numpy()
    found = run(lambda x: parse(text)({"x": x}), cells)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=20 * np.finfo(dtype).eps, atol=4 * np.finfo(dtype).eps)


def test_an_operation_that_the_runtime_lacks_is_named() -> None:
    graph = Graph(["x", "y"])
    graph.output("y", graph.input("x", np.float64).erf())
    with pytest.raises(ConfigError, match=r"lacks Erf in the dtype of this run; use --format safetensors"):
        runtimes.load(graph.model({}).SerializeToString(), ["y"])


def test_quantiles_of_the_normal_distribution() -> None:
    probabilities = np.concatenate([np.linspace(1e-7, 1 - 1e-7, 1001), [0.075, 0.925, 1e-11, 0.5]])
    found = run(normal_quantile, probabilities)
    np.testing.assert_allclose(found, ndtri(probabilities), rtol=1e-14, atol=1e-16)


def test_the_quantile_transform_with_equal_quantiles() -> None:
    values = np.array([1.0, 1, 1, 2, 3, 3, 5, 8, 8, 8])
    fitted = QuantileTransformer(n_quantiles=10, output_distribution="normal").fit(values.reshape(-1, 1))
    transform = Quantile(tuple(np.quantile(values, np.linspace(0, 1, 10)).tolist()))
    rows = np.array([-4, 1, 1.5, 2, 3, 3.1, 4.9, 8, 8.0001, 99])
    found = run(lambda x: normal_quantile(onnx_model.rank(transform, x).clamp(1e-7, 1 - 1e-7)), rows)
    np.testing.assert_allclose(found, transform.apply(rows), rtol=1e-14, atol=1e-15)
    inside = rows[2:7]
    np.testing.assert_allclose(found[2:7], fitted.transform(inside.reshape(-1, 1))[:, 0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("part", ["year", "month", "day", "weekday", "hour"])
def test_the_parts_of_dates(part: str) -> None:
    """The oracle is pandas: every day of 400 years, and the hours around some midnights."""
    days = np.arange(-150_000, 40_000).astype(np.float64) * 86400
    seconds = np.concatenate([days, days[::999] - 1, days[::999] + 3599.5, days[::999] + 3600])
    dates = pd.DatetimeIndex(np.floor(seconds).astype("datetime64[s]"))
    found = run(lambda x: onnx_model.date_part(x, part), seconds)
    np.testing.assert_array_equal(found, getattr(dates, {"weekday": "day_of_week"}.get(part, part)).to_numpy())
