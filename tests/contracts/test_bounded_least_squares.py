"""Levenberg–Marquardt within bounds against scipy's bounded solvers, and the step within bounds against its linear one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from test_least_squares import CPU, LM, objective

from runner.compute.bounds import Bounds
from runner.compute.rng import stream
from runner.config import schema as c
from runner.config.expression import parse
from runner.models.base import build as build_model
from runner.optim.active_set import step_within
from runner.optim.build import build as build_optimizer

Pair = tuple[float | None, float | None]

# Formula, true values, start values, bounds: a solution inside, at one bound, at several, at a corner, and starts at a bound.
PROBLEMS: Mapping[str, tuple[str, dict[str, float], dict[str, float], dict[str, Pair]]] = {
    "line, inside": ("a*x + b", {"a": 2, "b": 1}, {"a": 1, "b": 0}, {"a": (0, 5), "b": (-3, 3)}),
    "line, slope at its upper bound": ("a*x + b", {"a": 2, "b": 1}, {"a": 1, "b": 0}, {"a": (None, 1.5)}),
    "line, corner": ("a*x + b", {"a": 2, "b": 1}, {"a": 0.5, "b": 0}, {"a": (0, 1.5), "b": (None, 0.5)}),
    "line, start at the wrong bound": ("a*x + b", {"a": 2, "b": 1}, {"a": -1, "b": 4}, {"a": (-1, None), "b": (None, 4)}),
    "parabola, curvature at 0": ("a + b*x + d*x**2", {"a": 1, "b": 2, "d": -0.1}, {"a": 0, "b": 0, "d": 1}, {"d": (0, None)}),
    "decay, offset at 0": ("a*exp(-b*x) + d", {"a": 3, "b": 0.7, "d": -0.2}, {"a": 1, "b": 0.1, "d": 1}, {"d": (0, None)}),
    "decay, inside": ("a*exp(-b*x) + d", {"a": 3, "b": 0.7, "d": 1}, {"a": 1, "b": 0.1, "d": 0}, {"a": (0, 10), "b": (0, 5), "d": (0, 5)}),
    "decay, start at three bounds": ("a*exp(-b*x) + d", {"a": 3, "b": 0.7, "d": 1}, {"a": 0.5, "b": 0, "d": 0}, {"a": (0.5, None), "b": (0, 5), "d": (0, 5)}),
    "decay, rate at its upper bound": ("a*exp(-b*x) + d", {"a": 3, "b": 0.7, "d": 1}, {"a": 1, "b": 0.5, "d": 0}, {"b": (0.01, 0.5)}),
    "saturation, inside": ("a*x/(k + x)", {"a": 2, "k": 0.5}, {"a": 1, "k": 3}, {"a": (0, None), "k": (0, None)}),
    "saturation, constant at its bound": ("a*x/(k + x)", {"a": 2, "k": 0.5}, {"a": 1, "k": 3}, {"k": (1, None)}),
    "Hill, exponent at 1": ("a*x**h/(k**h + x**h)", {"a": 2, "h": 0.8, "k": 1.5}, {"a": 1, "h": 2, "k": 1}, {"h": (1, 5), "k": (0.01, None)}),
    "Hill, inside": ("a*x**h/(k**h + x**h)", {"a": 2, "h": 3, "k": 1.5}, {"a": 1, "h": 1, "k": 3}, {"h": (0.5, 5), "k": (0.01, 10)}),
    "peak, width at its bound": ("a*exp(-((x - m)/s)**2) + d", {"a": 2, "m": 2, "s": 0.4, "d": 0.3}, {"a": 1, "m": 1.8, "s": 0.6, "d": 0}, {"s": (0.5, 2), "a": (0, None)}),
    "peak, background at 0": ("a*exp(-((x - m)/s)**2) + d", {"a": 2, "m": 2, "s": 0.4, "d": -0.1}, {"a": 1, "m": 2.2, "s": 0.6, "d": 0}, {"d": (0, None), "s": (0.1, 3)}),
    "logistic, both ends at bounds": ("l + (u - l)/(1 + exp(-k*(x - m)))", {"l": 0.1, "u": 2, "k": 3, "m": 2}, {"l": 0, "u": 1, "k": 1, "m": 1}, {"l": (None, 0), "u": (None, 1.8)}),
    "two decays, slow rate at its bound": ("a*exp(-b*x) + d*exp(-g*x)", {"a": 2, "b": 2, "d": 1, "g": 0.3}, {"a": 1, "b": 3, "d": 0.5, "g": 0.5}, {"g": (0.4, 1), "b": (1, None)}),
    "power, exponent at its bound": ("a*x**b", {"a": 1, "b": 0.6}, {"a": 2, "b": 1}, {"b": (0.75, 2)}),
    "sine, frequency inside": ("a*sin(w*x + p) + d", {"a": 1.5, "w": 2, "p": 0.3, "d": 0.2}, {"a": 1, "w": 1.8, "p": 0, "d": 0}, {"w": (1.5, 2.5), "p": (-1, 1), "a": (0, None)}),
    "amplitude in small units": ("a*1e9*exp(-b*x)", {"a": 3e-9, "b": 0.7}, {"a": 1e-9, "b": 0.1}, {"a": (0, 2.5e-9), "b": (0, None)}),
}  # fmt: skip


def data(name: str) -> tuple[Any, Any]:
    """Return x and y of a problem, with noise of 0.05."""
    expression, true, _, _ = PROBLEMS[name]
    x = torch.linspace(0.05, 4, 60, dtype=torch.float64)
    noise = torch.randn(60, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    return x, parse(expression)({"x": x, **true}) + 0.05 * noise


def fitted(name: str, dtype: torch.dtype = torch.float64) -> tuple[dict[str, float], float]:
    """Return our parameters and sum of squares of a problem; fail if `lm` does not converge."""
    expression, _, start, bounds = PROBLEMS[name]
    x, y = data(name)
    config = c.Formula(
        name="formula", init_from=None, expression=expression, start=start, init="uniform", bounds=bounds, fixed={}
    )
    assert not list(config.problems())
    model = build_model(config, ["x"], ["y"], stream(0, "init")).to(dtype)
    parameters = dict(model.named_parameters())
    optimizer = build_optimizer(LM, "manual", parameters, Bounds.of(config.limits, parameters))
    problem = objective(model, x.to(dtype).unsqueeze(1), y.to(dtype).unsqueeze(1))
    for step in range(1, 101):
        optimizer.step(problem.at(step), None)
        for parameter, (low, high) in config.limits.items():
            assert low <= float(parameters[parameter].detach()) <= high, step
        if optimizer.settled:
            return {p: float(v.detach()) for p, v in parameters.items()}, float(problem.squares().detach())
    pytest.fail("not converged after 100 steps")


def by_scipy(name: str) -> tuple[dict[str, float], float]:
    """Return parameters and sum of squares of the better one of scipy's two bounded methods."""
    expression, _, start, bounds = PROBLEMS[name]
    formula, (x, y) = parse(expression), data(name)
    names = list(start)
    pairs = [bounds.get(n, (None, None)) for n in names]
    low, high = [-np.inf if p[0] is None else p[0] for p in pairs], [np.inf if p[1] is None else p[1] for p in pairs]

    def residuals(values: Any) -> Any:
        return (formula({"x": x, **dict(zip(names, values, strict=True))}) - y).numpy()

    found = [
        scipy.optimize.least_squares(
            residuals, list(start.values()), bounds=(low, high), method=method, x_scale="jac", jac="3-point",
            xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=2000,
        )
        for method in ("trf", "dogbox")
    ]  # fmt: skip
    best = min(found, key=lambda result: float(result.cost))
    return dict(zip(names, best.x, strict=True)), 2 * best.cost


@pytest.mark.parametrize("name", PROBLEMS)
def test_lm_finds_the_minimum_within_bounds(name: str) -> None:
    parameters, squares = fitted(name)
    expected, least = by_scipy(name)
    assert squares <= least * (1 + 1e-9)
    for parameter, value in expected.items():
        # scipy's differences leave about half of the digits.
        assert parameters[parameter] == pytest.approx(value, rel=1e-5, abs=1e-6 * max(map(abs, expected.values())))
    bounds = PROBLEMS[name][3]
    if "at" in name.partition(",")[2].split() and "start" not in name:
        assert any(parameters[p] in pair for p, pair in bounds.items()), "a parameter is exactly at its bound"


def test_half_of_the_problems_end_at_a_bound() -> None:
    ends = [any(fitted(name)[0][p] in pair for p, pair in PROBLEMS[name][3].items()) for name in PROBLEMS]
    assert 10 <= sum(ends) < len(ends)


@pytest.mark.parametrize("name", ["decay, offset at 0", "Hill, exponent at 1", "line, corner"])
def test_single_precision_ends_at_the_same_bounds(name: str) -> None:
    wide, narrow = fitted(name)[0], fitted(name, torch.float32)[0]
    bounds = PROBLEMS[name][3]
    assert {p for p in bounds if wide[p] in bounds[p]} == {p for p in bounds if narrow[p] in bounds[p]} != set()
    assert narrow == pytest.approx(wide, rel=1e-4)  # float32 has seven digits, of which the fit keeps about half


@pytest.mark.parametrize("damped", [False, True])
@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_a_step_within_bounds_is_the_best_one(n: int, damped: bool) -> None:
    """Bounded least squares by scipy, over columns of many lengths of which two are nearly parallel, in 40 lanes at once."""
    random = np.random.default_rng(n)
    lanes = 40
    matrix = random.normal(size=(lanes, n + 2, n)) * 10.0 ** random.uniform(-3, 3, (lanes, 1, n))
    matrix[::3, :, -1] = 2 * matrix[::3, :, 0] + 1e-3 * matrix[::3, :, -1] * (n > 1)
    residuals = random.normal(size=(lanes, n + 2))
    damping = 10 ** random.uniform(-6, 2, lanes) * damped
    scale = np.linalg.norm(matrix, axis=1)
    stacked = np.concatenate((matrix, np.sqrt(damping)[:, None, None] * np.eye(n) * scale[:, None, :]), 1)
    right = np.concatenate((-residuals, np.zeros((lanes, n))), 1)
    free = np.stack([np.linalg.lstsq(*pair, rcond=None)[0] for pair in zip(stacked, right, strict=True)])
    low, high = (
        sign
        * np.where(random.random((lanes, n)) < 0.2, np.inf, np.abs(free) * 10 ** random.uniform(-2, 0.5, (lanes, n)))
        for sign in (-1, 1)
    )
    tensor = torch.from_numpy
    bounds_of_steps = Bounds(tensor(low), tensor(high))
    steps = step_within(
        tensor(matrix), tensor(residuals), tensor(scale), tensor(damping), bounds_of_steps, rows=n + 2
    ).numpy()
    assert ((low <= steps) & (steps <= high)).all()
    for lane in range(lanes):
        scaled = stacked[lane] / scale[lane], right[lane]
        bounds = low[lane] * scale[lane], high[lane] * scale[lane]
        best = 2 * scipy.optimize.lsq_linear(*scaled, bounds=bounds, method="bvls", tol=1e-14).cost
        reached = float(((stacked[lane] @ steps[lane] - right[lane]) ** 2).sum())
        # A nearly parallel pair of columns, with a condition number of 1e7, costs half of the digits.
        assert reached <= best + 1e-8 * float(residuals[lane] @ residuals[lane]), lane


def test_bounds_are_numbers_of_the_dtype() -> None:
    parameters = {"a": torch.zeros((), dtype=torch.float32), "b": torch.zeros((), dtype=torch.float32)}
    bounds = Bounds.of({"b": (0.1, np.inf)}, parameters)
    assert bounds.low.tolist() == [-np.inf, float(np.float32(0.1))]
    assert bounds.high.tolist() == [np.inf, np.inf]
    values = torch.tensor([[3.0, 0.0], [float("nan"), 7.0]])
    projected = bounds.project(values)
    assert projected[0].tolist() == [3.0, float(np.float32(0.1))]
    assert projected[1].isnan().tolist() == [True, False]
    gradient = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    assert bounds.active(projected, gradient).tolist() == [[False, True], [False, False]]
    assert bounds.low.device == CPU
