"""Derivatives of formulas are right wherever the formula is differentiable: against closed forms, and against mpmath's."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import mpmath
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call, vmap

from runner.config.expression import COMPUTE, parse
from runner.errors import ExpressionError
from runner.models.derivatives import Derivatives
from runner.models.formula import FormulaModel

INF = math.inf


def model(text: str, parameters: dict[str, float], column: str = "x") -> FormulaModel:
    start = {name: torch.tensor(value, dtype=torch.float64) for name, value in parameters.items()}
    return FormulaModel([parse(text)], [column], start)


def rows(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


# Formula, parameters, x, and the derivative by each parameter at x.
CASES: list[tuple[str, dict[str, float], float, list[float]]] = [
    ("(x/c)**h", {"c": 2.0, "h": 0.5}, 0.0, [0.0, 0.0]),
    ("(x/c)**h", {"c": 2.0, "h": 0.5}, 2.0, [-0.25, 0.0]),
    ("b + (t-b)/(1 + (x/c)**h)", {"t": 95.0, "b": 5.0, "c": 40.0, "h": 0.8}, 0.0, [1.0, 0.0, 0.0, 0.0]),
    ("a*exp(-(x/tau)**beta)", {"a": 2.0, "tau": 3.0, "beta": 0.6}, 0.0, [1.0, 0.0, 0.0]),
    ("sqrt(d*x)", {"d": 3.0}, 0.0, [0.0]),
    ("sqrt(d*x)", {"d": 3.0}, 12.0, [1.0]),
    ("1/(1 + exp(-k*(x - m)))", {"k": 10.0, "m": 500.0}, 0.0, [0.0, 0.0]),
    ("1/(1 + exp(k*(x - m)))", {"k": 10.0, "m": -500.0}, 0.0, [0.0, 0.0]),
    ("a/cosh((x - m)/w)", {"a": 3.0, "m": 0.0, "w": 0.001}, 5.0, [0.0, 0.0, 0.0]),
    ("a*exp(-b/x)", {"a": 3.0, "b": 2.0}, 0.0, [0.0, 0.0]),
    ("a*exp(-b/x)", {"a": 3.0, "b": 2.0}, 2.0, [math.exp(-1), -1.5 * math.exp(-1)]),
    ("sqrt((x - c)**2)", {"c": 4.0}, 4.0, [0.0]),
    ("abs(x - c)", {"c": 4.0}, 4.0, [0.0]),
    ("abs(x - c)", {"c": 5.0}, 4.0, [1.0]),
    ("max(x - c, 0)", {"c": 4.0}, 4.0, [0.0]),
    ("max(x - c, 0)", {"c": 3.0}, 4.0, [-1.0]),
    ("min(a*x, b)", {"a": 2.0, "b": 7.0}, 3.0, [3.0, 0.0]),
    ("where(x > 0, a*log(x), b)", {"a": 2.0, "b": 7.0}, 0.0, [0.0, 1.0]),
    ("where(x > 0, a*log(x), b)", {"a": 2.0, "b": 7.0}, -1.0, [0.0, 1.0]),
    ("where(x > 0, a*log(x), b)", {"a": 2.0, "b": 7.0}, 1.0, [0.0, 0.0]),
    ("a*(x < c)", {"a": 2.0, "c": 1.0}, 0.5, [1.0, 0.0]),
    ("a*sign(x - c)", {"a": 2.0, "c": 1.0}, 0.5, [-1.0, 0.0]),
    ("x**n", {"n": 0.0}, 0.0, [0.0]),
    ("x**n", {"n": 2.0}, 3.0, [9 * math.log(3)]),
    ("n**x", {"n": 0.0}, 1.0, [1.0]),
    ("n**x", {"n": 0.0}, 0.0, [0.0]),
    ("2**(k*x)", {"k": 1.0}, 3.0, [24 * math.log(2)]),
    ("sqrt(a) + x", {"a": 0.0}, 1.0, [INF]),
    ("asin(a*x)", {"a": 1.0}, 1.0, [INF]),
    ("a*x + a*x**2 + b", {"a": 5.0, "b": 0.0}, 3.0, [12.0, 1.0]),
    ("a*erf(x/s) + erfc(s)*0 + log1p(x)*expm1(0*s)", {"a": 2.0, "s": 1.0}, 1.0, [math.erf(1), -4 / math.sqrt(math.pi) / math.e]),
    ("log10(a*x) + log2(b*x)", {"a": 2.0, "b": 4.0}, 3.0, [1 / (2 * math.log(10)), 1 / (4 * math.log(2))]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "parameters", "x", "expected"), CASES)
def test_derivatives_by_every_way_of_computing_them(
    text: str, parameters: dict[str, float], x: float, expected: list[float]
) -> None:
    formula, features = model(text, parameters), rows(x)
    right = torch.tensor([expected], dtype=torch.float64)
    values = dict(formula.named_parameters())

    def close(actual: Tensor) -> None:
        torch.testing.assert_close(actual, right, rtol=1e-14, atol=1e-15)  # a few roundings

    close(formula.jacobian(values, features))
    prediction = formula(features)
    close(torch.stack(torch.autograd.grad(prediction.sum(), list(values.values()))).unsqueeze(0))
    lanes = {name: torch.stack([value.detach()] * 3).requires_grad_() for name, value in values.items()}
    for shared in (features, features.expand(3, 1, 1)):
        predictions: Any = vmap(lambda p, f: functional_call(formula, p, (f,)), (0, None if shared is features else 0))(
            lanes, shared
        )
        gradients = torch.autograd.grad(predictions.sum(), list(lanes.values()))
        for lane in range(3):
            close(torch.stack([gradient[lane] for gradient in gradients]).unsqueeze(0))
    stacked = formula.jacobian({name: value.detach() for name, value in lanes.items()}, features)
    close(stacked[1])


def test_a_derivative_that_does_not_exist_is_nan() -> None:
    """The function is not defined for other exponents: x is negative."""
    formula = model("x**n", {"n": 2.0})
    assert formula(rows(-3.0)).tolist() == [[9.0]]
    assert formula.jacobian(dict(formula.named_parameters()), rows(-3.0)).isnan().all()


def test_the_gradient_is_that_of_the_predictions_even_where_their_own_gradients_differ() -> None:
    formula, features = (
        model("a*exp(-b*x) + c", {"a": 2.0, "b": 0.5, "c": 1.0}),
        torch.linspace(0, 4, 9).double()[:, None],
    )
    weights = torch.linspace(-1, 1, 9).double()[:, None]
    gradients = torch.autograd.grad((formula(features) * weights).sum(), list(formula.parameters()))
    by_rows = (formula.jacobian(dict(formula.named_parameters()), features) * weights).sum(0)
    torch.testing.assert_close(torch.stack(gradients), by_rows, rtol=1e-14, atol=1e-15)  # sums of nine terms


WRITTEN = {
    "neg": "-(a*x) + b",
    "where": "where(x, a, b)",
    "min": "min(a*x, b)",
    "max": "max(a*x, b)",
    **{symbol: f"(a*x) {symbol} b" for symbol in COMPUTE if not symbol.isalnum()},
}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda formula: pickle.loads(pickle.dumps(formula))])
@pytest.mark.parametrize("symbol", sorted(COMPUTE))
def test_a_copy_has_the_same_value_and_derivatives(symbol: str, copied: Any) -> None:
    formula = model(WRITTEN.get(symbol, f"{symbol}(a*x) + b"), {"a": 0.25, "b": 2.0})
    values, features = dict(formula.named_parameters()), rows(0.5, 1.5, 3.0)
    again = copied(formula)
    assert torch.equal(again(features), formula(features))
    assert torch.equal(again.jacobian(values, features), formula.jacobian(values, features))


# ---- random formulas, against derivatives of mpmath with 60 digits


FUNCTIONS = ("exp", "sqrt", "log", "sin", "cos", "atan", "tanh", "cosh", "abs", "erf", "expm1")


def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/"]), inner).map(lambda t: f"({t[0]}{t[1]}{t[2]})"),
        st.tuples(inner, st.sampled_from(["2.0", "0.5", "b", "3.0"])).map(lambda t: f"({t[0]}**{t[1]})"),
        inner.map(lambda t: f"(-{t})"),
        st.tuples(st.sampled_from(FUNCTIONS), inner).map(lambda t: f"{t[0]}({t[1]})"),
    )


formulas = st.recursive(st.sampled_from(["x", "a", "b", "2.0", "(a*x)", "(x/a)", "(b/x)"]), grown, max_leaves=7)
IN_MPMATH = {"abs": abs, **{name: getattr(mpmath, name) for name in FUNCTIONS if name != "abs"}}


def precise(text: str, values: dict[str, Any]) -> Any:
    """Return mpmath's value of a formula; nan where it has none."""
    try:
        return eval(text, {"__builtins__": {}}, {**IN_MPMATH, **values})
    except (ZeroDivisionError, ValueError, TypeError):
        return mpmath.nan


def slope(text: str, values: dict[str, Any], name: str) -> Any:
    """Return mpmath's derivative by a name, as the mean of two one-sided ones that must agree; nan where they do not."""
    step = mpmath.mpf(10) ** -25
    at, above, below = (precise(text, {**values, name: values[name] + k * step}) for k in (0, 1, -1))
    if any(isinstance(value, mpmath.mpc) or not mpmath.isfinite(value) for value in (at, above, below)):
        return mpmath.nan
    right, left = (above - at) / step, (at - below) / step
    return (right + left) / 2 if abs(right - left) <= 1e-9 * (1 + abs(right)) else mpmath.nan


@settings(derandomize=True, deadline=None, max_examples=600)
@given(
    formulas,
    st.sampled_from([0.0, 1e-3, 0.5, 2.0, 800.0, -2.0]),
    st.sampled_from([0.3, 1.5, 4.0, -0.7]),
    st.sampled_from([0.5, 1.0, 2.0, 3.5]),
)
def test_random_formulas_have_the_derivatives_of_mpmath(text: str, x: float, a: float, b: float) -> None:
    try:
        expression = parse(text)
    except ExpressionError:  # a constant that is not finite
        assume(False)
    assume("a" in expression.names)
    names = [name for name in ("a", "b") if name in expression.names]
    floats = {"x": x, "a": a, "b": b}
    doubles = {name: torch.tensor(value, dtype=torch.float64) for name, value in floats.items()}
    assume(bool(torch.as_tensor(expression(doubles)).isfinite()))
    with mpmath.workdps(60):
        exact = {name: mpmath.mpf(value) for name, value in floats.items()}
        value = precise(text, exact)
        assume(not isinstance(value, mpmath.mpc) and mpmath.isfinite(value))
        assume(abs(float(expression(doubles)) - value) <= 1e-12 * (1e-290 + abs(value)))
        _, derivatives = Derivatives(expression, names).evaluate([doubles[name] for name in expression.names])
        for name, derivative in zip(names, derivatives, strict=True):
            expected = slope(text, exact, name)
            # Where another rounding of the parameters changes the derivative, no formula for it can be right.
            others = [
                slope(text, {k: v * (1 + s * mpmath.mpf(2) ** -50) for k, v in exact.items()}, name) for s in (1, -1)
            ]
            if not all(
                mpmath.isfinite(v) and abs(v - expected) <= 1e-9 * (1 + abs(expected)) for v in (expected, *others)
            ):
                continue
            assert abs(float(derivative) - expected) <= 1e-6 * (1 + abs(expected)), (text, floats, name)
