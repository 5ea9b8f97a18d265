"""Formulas: valid ones agree with Python and torch; all others are refused promptly with the column."""

from __future__ import annotations

import ast
import copy
import math
import pickle
import time
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runner.config.expression import Expression, parse
from runner.errors import ExpressionError


def torch_or_math(name: str) -> Callable[[Any], Any]:
    return lambda value: getattr(torch if isinstance(value, torch.Tensor) else math, name, abs)(value)


def python_names(text: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(text.strip(" \t"))) if isinstance(node, ast.Name)}


FUNCTIONS = (
    "abs", "acos", "asin", "atan", "cos", "cosh", "erf", "erfc", "exp", "expm1", "log", "log10", "log1p", "log2", "sin", "sinh", "sqrt",
    "tan", "tanh",
)  # fmt: skip
LISTED = ", ".join(sorted((*FUNCTIONS, "max", "min", "sign", "where")))
IN_MATH = {name: getattr(math, name, abs) for name in FUNCTIONS}
IN_TORCH = {name: torch_or_math(name) for name in FUNCTIONS}
# Every run uses the same examples. There is no time limit for an example because the machine may be busy.
fixed = settings(derandomize=True, deadline=None, max_examples=400)


def refusal(text: str) -> str:
    with pytest.raises(ExpressionError) as caught:
        parse(text)
    assert len(caught.value.problems) == 1
    return caught.value.problems[0]


def column(text: str) -> int:
    return int(refusal(text).split("is refused at column ")[1].split(":")[0])


# ---- valid formulas


CONSTANTS = {
    "-3**2": -9.0, "(-3)**2": 9.0, "2**3**2": 512.0, "2**-1*3": 1.5, "2**-2**2": 2.0**-4, "8/4/2": 1.0, "8-4-2": 2.0,
    "8/4*2": 4.0, "2+3*4": 14.0, "(2+3)*4": 20.0, "2*-3": -6.0, "--+-2": -2.0, "-2*-+-3": -6.0, "0/3": 0.0,
    " \t.5 + 5. + 1e1+2.5E-1 ": 15.75, "2*pi": 2 * math.pi, "2*π": 2 * math.pi, "exp(1)": math.e, "abs(-2)": 2.0,
}  # fmt: skip


def test_constants_are_folded_to_floats_with_the_precedence_of_python() -> None:
    results = {text: parse(text)({}) for text in CONSTANTS}
    assert results == CONSTANTS
    assert {type(result) for result in results.values()} == {float}
    assert {parse(text).names for text in CONSTANTS} == {()}


def test_names_are_in_order_of_first_appearance_without_functions_and_pi() -> None:
    formula = parse("b*exp(-a*x) + pi*b + _c1*a + exp2")
    assert formula.names == ("b", "a", "x", "_c1", "exp2")
    assert formula.text == "b*exp(-a*x) + pi*b + _c1*a + exp2"


def test_values_are_passed_by_name_and_others_are_ignored() -> None:
    formula = parse("(a - b)/c")
    assert formula({"c": 4.0, "b": 2.0, "a": 10.0, "pi": 0.0}) == 2.0
    with pytest.raises(KeyError, match="b"):
        formula({"a": 1.0, "c": 1.0})


def test_an_expression_can_be_compared_copied_and_pickled() -> None:
    formula = parse("a*x**2")
    assert formula == parse("a*x**2") != parse("a*x**3")
    for twin in (copy.deepcopy(formula), pickle.loads(pickle.dumps(formula))):
        assert isinstance(twin, Expression)
        assert (twin, twin({"a": 3.0, "x": 2.0})) == (formula, 12.0)
    assert repr(formula) == "Expression(text='a*x**2', names=('a', 'x'))"
    with pytest.raises(AttributeError):
        formula.text = "x"  # type: ignore[misc]


@pytest.mark.parametrize("text", ["log(a)", "a**0.5", "sqrt(a)"])
def test_floats_outside_of_a_domain_raise_and_never_become_complex(text: str) -> None:
    with pytest.raises(ValueError, match=r"domain|nonnegative|positive"):
        parse(text)({"a": -1.0})


# ---- tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_functions_of_a_tensor_equal_those_of_torch(dtype: torch.dtype) -> None:
    x = torch.linspace(0.05, 0.95, 7, dtype=dtype)
    for name in FUNCTIONS:
        result = parse(f"{name}(x)")({"x": x})
        assert torch.equal(result, getattr(torch, name)(x)), name
        assert result.dtype == dtype, name
        assert parse(f"{name}(x)")({"x": 0.25}) == IN_MATH[name](0.25), name


def test_tensors_broadcast_and_arithmetic_equals_that_of_torch() -> None:
    a, x = torch.tensor([[0.5], [-2.0]]), torch.tensor([0.5, 1.5, 2.5])
    result = parse("2*a*x - x/a + 3**x - 1/x + (-a)")({"a": a, "x": x})
    assert torch.equal(result, 2 * a * x - x / a + 3**x - 1 / x + (-a))


class Echo:
    """A value whose operations return the other operand, so that a test sees what it received."""

    def __pow__(self, exponent: object) -> object:
        return exponent

    def __rmul__(self, factor: object) -> object:
        return factor


def test_a_tensor_receives_folded_constants_as_floats() -> None:
    for text in ("x**2", "x**(1 + 1)", "x**-(-2)", "2*x", "1 * 2 * x", "sqrt(4)*x", "2**3**0*x"):
        other = parse(text)({"x": Echo()})
        assert (type(other), other) == (float, 2.0), text


def test_gradients_equal_the_analytic_derivatives() -> None:
    x = torch.linspace(0.1, 3.0, 50, dtype=torch.float64)
    a, b, c = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (1.5, 0.7, 2.0))
    value = parse("a*exp(-b*x)*sin(2*pi*x/c) + c**2/x")({"a": a, "b": b, "c": c, "x": x})
    gradients = torch.autograd.grad(value.sum(), (a, b, c))
    decay, angle = torch.exp(-0.7 * x), torch.pi * x
    analytic = (
        (decay * torch.sin(angle)).sum(),
        (-x * 1.5 * decay * torch.sin(angle)).sum(),
        (-1.5 * decay * torch.cos(angle) * angle / 2.0 + 4.0 / x).sum(),
    )
    # Sums of 50 terms below 50 each; each term has about ten rounding errors of 1.1e-16.
    torch.testing.assert_close(torch.stack(gradients), torch.stack(analytic), rtol=0, atol=1e-12)


def test_formulas_run_under_vmap_and_torch_compile() -> None:
    formula = parse(
        "a*exp(-b*x) + x**2" + "+ sin(x)*b" * 60
    )  # long enough that nested calls would exceed the limit of dynamo
    x = torch.linspace(0.0, 1.0, 5, dtype=torch.float64)
    a, b = torch.rand(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = formula({"a": a, "b": b, "x": x}).sum()
        return total

    lanes = torch.func.vmap(torch.func.grad(loss))(a, b)
    # Equal up to the order in which torch adds five numbers of about 1.
    torch.testing.assert_close(lanes, torch.exp(-b[:, None] * x).sum(1), rtol=1e-14, atol=0)
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    assert torch.equal(compiled(a[0], b[0]), loss(a[0], b[0]))


# ---- agreement with Python on random formulas


def numbers() -> st.SearchStrategy[str]:
    return st.sampled_from(["0.0", "1.0", "2.", ".5", "3.25", "1e-3", "2.5E+1", "pi"])


def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Combine texts to longer ones, mostly without parentheses, so that precedence matters."""
    gap = st.sampled_from(["", "", " ", "\t"])
    return st.one_of(
        st.tuples(inner, gap, st.sampled_from(["+", "-", "*", "/", "**"]), gap, inner).map("".join),
        st.tuples(st.sampled_from(["-", "+"]), inner).map("".join),
        st.tuples(st.sampled_from(["", *FUNCTIONS]), inner).map(lambda pair: f"{pair[0]}({pair[1]})"),
    )


formulas = st.recursive(st.one_of(numbers(), st.sampled_from(["x", "y"])), grown, max_leaves=12)


def in_python(text: str, values: Mapping[str, Any], functions: Mapping[str, Any]) -> Any:
    """Return Python's value of a generated text. Its literals are floats, so that no large integer occurs."""
    return eval(text.strip(), {"__builtins__": {}}, {"pi": math.pi, **functions, **values})


def finite_in_python(text: str, values: Mapping[str, float]) -> float | None:
    try:
        result = in_python(text, values, IN_MATH)
    except (ValueError, ArithmeticError, TypeError):  # TypeError: a function of a complex number
        return None
    return result if isinstance(result, float) and math.isfinite(result) else None


@fixed
@given(formulas, st.floats(0.1, 3.0), st.floats(-3.0, -0.1))
def test_random_formulas_agree_with_python_and_torch(text: str, x: float, y: float) -> None:
    floats = {"x": x, "y": y}
    try:
        formula = parse(text)
    except ExpressionError as error:
        assert " constant" in str(error)  # noqa: PT017 (the text is well formed, so only a constant can be refused)
        return
    assert set(formula.names) == python_names(text) & {"x", "y"}
    expected = finite_in_python(text, floats)
    # In Python the absolute value of a complex power is real. Here the power is refused first.
    if expected is not None and not ("abs" in text and "**" in text):
        assert formula(floats) == expected
    if formula.names:
        doubles = {name: torch.tensor(value, dtype=torch.float64) for name, value in floats.items()}
        result = formula(doubles)
        torch.testing.assert_close(result, in_python(text, doubles, IN_TORCH), rtol=0, atol=0, equal_nan=True)


# ---- refused formulas


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a*x + foo(x)", f"column 7: `foo` is not one of the functions {LISTED}; write a product with `*`"),
        ("arcsin(x)", f"column 1: `arcsin` is not one of the functions {LISTED}; did you mean `asin`?"),
        ("ln(x)", f"column 1: `ln` is not one of the functions {LISTED}; write the natural logarithm as `log`"),
        ("pow(x, 2)", f"column 1: `pow` is not one of the functions {LISTED}; write a power with `**`"),
        ("a(x + 1)", f"column 1: `a` is not one of the functions {LISTED}; write a product with `*`"),
        ("x*exp", "column 3: `exp` is a function and needs an argument, as in exp(x); write a column of this name in backticks"),
        ("exp()", "column 1: `exp` takes exactly one argument, got none"),
        ("exp(x, a)", "column 1: `exp` takes exactly one argument, got 2"),
        ("exp(x,)", "column 7: expected a number, a name or `(`, got `)`"),
        ("x, y", "column 2: `,` is not allowed outside of the arguments of a function"),
        ("max(x)", "column 1: `max` takes two arguments, got 1"),
        ("where(x, 1)", "column 1: `where` takes three arguments, got 2"),
        ("a*max", "column 3: `max` is a function and needs an argument, as in max(x, y); write a column of this name in backticks"),
        ("0 < x < 1", "column 7: comparisons cannot be chained; write a product such as (0 < x)*(x < 1)"),
        ("a*`x", "column 3: '`' is not allowed; close the name with another backtick"),
        ("a*x²", "column 4: '²' is not allowed; a formula consists of numbers, names (in backticks if they have other characters), "
         "+ - * / **, comparisons, parentheses and functions"),
        ("y = a*x", "column 3: '=' is not allowed; write only the right-hand side, and compare with `==`"),
        ("a*x^2", "column 4: '^' is not allowed; write a power with `**`"),
        ("a +\nb", "column 4: '\\n' is not allowed; write it on one line"),
        ("2x", "column 1: `2x` is not a decimal number; write numbers like 12, 0.5 or 1e-3, and products with `*`"),
        ("a b", "column 3: expected an operator such as `*` before `b`"),
        ("(a)(b)", "column 4: expected an operator such as `*` before `(`"),
        ("a + * b", "column 5: expected a number, a name or `(`, got `*`"),
        ("a +", "column 4: expected a number, a name or `(`, but the formula ends"),
        ("a*(b + 1", "column 3: the parenthesis is not closed"),
        ("a*b) + 1", "column 4: `)` has no opening parenthesis"),
        ("", "column 1: it is empty; write one such as a*x + b"),
        (" \t", "column 1: it is empty; write one such as a*x + b"),
        ("__a*x", "column 1: `__a` begins with two underscores; choose another name"),
        ("x*lambda", "column 3: `lambda` is a reserved word of Python; choose another name, or write a column of this name in backticks"),
        ("x/(1 - 1)", "column 2: it divides by the constant 0"),
        ("x/-0", "column 2: it divides by the constant 0"),
        ("1 + log(-1)", "column 5: `log` of the constant -1 is not a finite real number"),
        ("(-1)**0.5", "column 5: `**` of the constants -1 and 0.5 is not a finite real number"),
        ("0**-1", "column 2: `**` of the constants 0 and -1 is not a finite real number"),
        ("1e308*10*x", "column 6: `*` of the constants 1e+308 and 10 is not a finite real number"),
        ("exp(1000)", "column 1: `exp` of the constant 1000 is not a finite real number"),
        ("x*1e999", "column 3: the number is too large for float64; use at most 1.797e308"),
    ],
)  # fmt: skip
def test_a_refusal_has_the_column_and_the_reason(text: str, reason: str) -> None:
    assert refusal(text) == f"the formula {text!r} is refused at {reason}"


REFUSED_AT: dict[int, list[str]] = {  # column → texts
    1: [
        *["__import__('os').system('x')", "eval(x)", "print(x)", "pi(x)", "...", "{x}", "[x for x in (1,)]"],
        *["lambda: x", "not x", "await x", "True", "'x'", '"x"', "~x", "1.__class__", "1.5.real"],
        *["1_000", "0o17", "0b1", "007", "1e", "1..2", "1j"],
        *["٣*x", "\ud800"],
    ],
    2: ["x.__class__", "x.real", "x[0]", "()", "f'{x}'", "b'x'", "x; y", "x\u00a0+ 1", "x\x00", "x\r\n"],
    3: [
        *["().__class__", "(x, y)", "x if x else y", "x and y", "x*None", "2*1.5j"],
        *["x % 2", "x @ y", "x | y", "x # y", "x \\", "x*²", "x \u2212 1"],  # U+2212 is the typographic minus sign
    ],
    4: ["(x := 2)", "x // 2"],
    5: ["exp(lambda: x)", "sin(*x)", "sin(**x)", "exp(exp)", "x + 0x1F"],
    6: ["sin(x=1)"],
    7: ["sin(x)(x)"],
    9: ["é + b + $"],  # columns count characters, not bytes
}


def test_other_texts_are_refused_with_the_column() -> None:
    places = {text: place for place, texts in REFUSED_AT.items() for text in texts}
    assert {text: column(text) for text in places} == places


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("2**2**2**99", 5),
        ("9**9**9**9*x", 5),
        ("1" * 400, 1),
        ("x + 1" + "0" * 400, 5),
        ("(" * 101 + "x" + ")" * 101, 101),
        ("(" * 1000, 101),
        ("-" * 999 + "x", 101),
        ("x" + "**x" * 300, 302),
        ("sin(" * 101 + "x" + ")" * 101, 404),
        ("(" * 1_000_000, 1001),
        ("x" * 1001, 1001),
        ("9" * 10_000_000, 1001),
    ],
)
def test_extreme_sizes_are_refused_promptly(text: str, place: int) -> None:
    started = time.perf_counter()
    message = refusal(text)
    assert time.perf_counter() - started < 1.0  # a thousand times the usual time, because the machine may be busy
    assert f"at column {place}: " in message
    assert len(message) < 400


def test_sizes_up_to_the_limits_are_accepted() -> None:
    for nested in ("(" * 100 + "x" + ")" * 100, "-" * 100 + "x", "x" + "**x" * 100):
        assert parse(nested)({"x": 1.0}) == 1.0
    assert parse("+".join(["-(-x)"] * 150))({"x": 1.0}) == 150.0  # a sum is not nested
    deepest = "x+1*sin(" * 100 + "x" + ")" * 100
    assert len(deepest) <= 1000
    assert parse(deepest).names == ("x",)
    assert parse("x" + "+x" * 499)({"x": 2.0}) == 1000.0
    assert parse("x" + " " * 999).names == ("x",)


def test_a_long_formula_is_shortened_around_the_column() -> None:
    text = "+".join(f"a{i}" for i in range(100)) + "+$+" + "+".join(f"b{i}" for i in range(100))
    message = refusal(text)
    assert "a99+$+b0+" in message
    assert "…" in message
    assert "a1+" not in message
    assert f"column {text.index('$') + 1}: " in message


tokens = [
    "x",
    "a",
    "pi",
    "exp",
    "sin(",
    "2",
    "0.5",
    "1e3",
    "(",
    ")",
    "+",
    "-",
    "*",
    "**",
    "/",
    " ",
    ",",
    "=",
    ".",
    "if",
]
garbage = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="ax01.e_+-*/() \t,=^[]{}'\"\\\n:<>@jé", max_size=60),
    st.lists(st.sampled_from(tokens), max_size=40).map("".join),
)


@fixed
@given(garbage)
@example("9" * 5000)
@example("(" * 200 + ")" * 200)
@example("[" * 999)
def test_any_text_is_a_formula_or_raises_an_expression_error(text: str) -> None:
    started = time.perf_counter()
    try:
        formula = parse(text)
    except ExpressionError as error:
        (message,) = error.problems
        assert message.startswith("the formula ")
        assert message.isprintable()
        assert 1 <= column(text) <= len(text) + 1
    else:
        # Python normalizes its names, and has none in backticks or after a comparison of its own.
        assert "`" in text or {unicodedata.normalize("NFKC", name) for name in formula.names} <= python_names(text)
    assert time.perf_counter() - started < 1.0  # as above
