"""Formulas that users write, such as `a*exp(-b*x) + c`: read once, evaluated many times on tensors or floats.

    formula  = operand {("+" | "-" | "*" | "/" | "**") operand}       binding and grouping as in Python
    operand  = number | name | "pi" | function "(" formula ")" | "(" formula ")" | ("+" | "-") operand

The reader is written out here instead of leaning on `ast.parse`: Python's own parser accepts a whole language that
would then have to be refused piece by piece, normalises identifiers, builds integers of any size, counts columns in
bytes, and words its errors differently from version to version. No text of a user is ever given to Python to run.
"""

from __future__ import annotations

import difflib
import keyword
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

from runner.errors import ExpressionError

Step = Callable[[list[Any], Mapping[str, Any]], None]  # changes the top of the stack; the mapping has the names' values
Part = float | None  # what has been read: a constant that is known already, or None for one that the steps leave on top

MAX_CHARACTERS = 1_000
MAX_NESTING = 100  # parentheses, calls, signs and exponents inside each other; sums and products are not nested

_TOKEN = re.compile(
    r"(?P<space>[ \t]+)"
    r"|(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<symbol>\*\*|[-+*/(),])"
)
_WORD = re.compile(r"[A-Za-z0-9_.]*")
_HINTS = {
    "^": "a power is written `**`",
    "=": "write the right-hand side alone",
    "\n": "write it on one line",
}
_PIECES = "it is made of numbers, names in ASCII letters, + - * / **, parentheses and functions"


@dataclass(frozen=True)
class Expression:
    """A formula that has been read. `names` are its free names in order of first appearance, without `pi`."""

    text: str
    names: tuple[str, ...]
    _steps: tuple[Step, ...] = field(repr=False, compare=False)

    def __call__(self, values: Mapping[str, Any]) -> Any:
        """The value where each name stands for a tensor (they broadcast) or a float; further names are ignored.

        A formula without names always gives a float. Outside of a function's domain tensors follow torch (nan, inf);
        floats raise ValueError, ZeroDivisionError or OverflowError, as in `math`. KeyError: a name has no value.
        """
        stack: list[Any] = []
        for step in self._steps:  # a loop, not nested closures: torch.compile traces some fifty calls inside each other
            step(stack, values)
        return stack.pop()

    def __reduce__(self) -> tuple[Callable[[str], Expression], tuple[str]]:
        return parse, (self.text,)  # closures cannot be pickled; the text says everything


def parse(text: str) -> Expression:
    """Reads a formula. Raises ExpressionError, with the column counted from 1, where it is not one."""
    if len(text) > MAX_CHARACTERS:
        _refuse(text, MAX_CHARACTERS + 1, f"it has {len(text):,} characters, and at most {MAX_CHARACTERS:,} are read")
    if not text.strip(" \t"):
        _refuse(text, 1, "it is empty; write one such as a*x + b")
    reader = _Reader(text)
    reader.whole()
    return Expression(text, tuple(reader.names), tuple(reader.steps))


def _refuse(text: str, column: int, why: str) -> NoReturn:
    start = max(0, column - 60)
    shown = "…" * (start > 0) + text[start : start + 100] + "…" * (start + 100 < len(text))
    raise ExpressionError(f"the formula {shown!r} is refused at column {column}: {why}")


def _power(base: Any, exponent: Any) -> Any:
    """Python's `**`, except that a negative float to a fractional power is a domain error and not a complex number."""
    if isinstance(base, (float, int)) and isinstance(exponent, (float, int)):
        return math.pow(base, exponent)
    return base**exponent


def _function(name: str, on_float: Callable[[float], float]) -> Callable[[Any], Any]:
    return lambda value: on_float(value) if isinstance(value, (float, int)) else getattr(value, name)()


_IN_MATH = ("acos", "asin", "atan", "cos", "cosh", "exp", "log", "sin", "sinh", "sqrt", "tan", "tanh")
_FUNCTIONS = {"abs": abs, **{name: _function(name, getattr(math, name)) for name in _IN_MATH}}
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "**": _power,
}
# How tightly an operator binds, and how tightly the operators in its right operand must. A sign binds between `*` and
# `**` (-x**2 is -(x**2)), and the exponent may begin with one (2**-x) and holds further powers (x**y**z is x**(y**z)).
_SIGN = 3
_BINDING = {"+": (1, 2), "-": (1, 2), "*": (2, _SIGN), "/": (2, _SIGN), "**": (4, _SIGN)}


class _Token(NamedTuple):
    kind: str  # number, name, symbol or end
    text: str
    column: int  # from 1


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            odd = text[position]
            _refuse(text, position + 1, f"{odd!r} is not part of a formula; {_HINTS.get(odd, _PIECES)}")
        token = _Token(str(match.lastgroup), match.group(), position + 1)
        position = match.end()
        if token.kind == "number":
            _check_number(text, token)
        if token.kind == "name":
            _check_name(text, token)
        if token.kind != "space":
            found.append(token)
    return [*found, _Token("end", "", len(text) + 1)]


def _check_number(text: str, token: _Token) -> None:
    tail = _WORD.match(text, token.column - 1 + len(token.text))
    written = token.text + (tail.group() if tail else "")
    if written != token.text or re.match("0[0-9]", written):
        why = "is not a decimal number; numbers look like 12, 0.5 or 1e-3, and a product is written with `*`"
        _refuse(text, token.column, f"`{written}` {why}")
    if math.isinf(float(token.text)):
        _refuse(text, token.column, "the number is too large for float64; numbers go up to 1.797e308")


def _check_name(text: str, token: _Token) -> None:
    if token.text.startswith("__"):
        _refuse(text, token.column, f"`{token.text}` begins with two underscores; choose another name")
    if keyword.iskeyword(token.text):
        _refuse(text, token.column, f"`{token.text}` is a reserved word of Python; choose another name")


class _Reader:
    """Precedence climbing over the tokens. Constants are folded as they are read; the rest becomes steps on a stack."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.names: dict[str, None] = {}  # keeps the order of first appearance
        self.steps: list[Step] = []
        self.tokens = _tokens(text)
        self.position = 0
        self.depth = 0

    def whole(self) -> None:
        part = self.formula(0)
        if self.next.kind != "end":
            self.stray()
        if part is not None:
            self.steps.append(lambda stack, _: stack.append(part))

    @property
    def next(self) -> _Token:
        return self.tokens[self.position]

    def take(self) -> _Token:
        token = self.next
        self.position += 1
        return token

    def refuse(self, place: _Token, why: str) -> NoReturn:
        _refuse(self.text, place.column, why)

    def formula(self, weakest: int) -> Part:
        """The operands joined by operators that bind at least as tightly as `weakest`."""
        left = self.operand()
        while self.next.text in _BINDING and _BINDING[self.next.text][0] >= weakest:
            sign = self.take()
            inner = _BINDING[sign.text][1]
            right = self.nested(sign, inner) if sign.text == "**" else self.formula(inner)
            left = self.binary(sign, left, right)
        return left

    def operand(self) -> Part:
        token = self.take()
        if token.kind == "number":
            return float(token.text)
        if token.kind == "name":
            return self.named(token)
        if token.text == "(":
            return self.enclosed(token, token)
        if token.text not in ("+", "-"):
            here = f"not `{token.text}`" if token.text else "but the formula ends"
            self.refuse(token, f"a number, a name or `(` must stand here, {here}")
        part = self.nested(token, _SIGN)
        return part if token.text == "+" else self.unary(token, operator.neg, part)

    def named(self, token: _Token) -> Part:
        called = self.next.text == "("
        if token.text in _FUNCTIONS:
            if called:
                return self.unary(token, _FUNCTIONS[token.text], self.enclosed(token, self.take()))
            self.refuse(token, f"`{token.text}` is a function and needs an argument, as in {token.text}(x)")
        if called:
            near = difflib.get_close_matches(token.text, _FUNCTIONS, n=1)
            hint = f"did you mean `{near[0]}`?" if near else "a product is written with `*`"
            self.refuse(token, f"`{token.text}` is not a function; there are {', '.join(_FUNCTIONS)}; {hint}")
        if token.text == "pi":
            return math.pi
        self.names[token.text] = None
        self.steps.append(lambda stack, values: stack.append(values[token.text]))
        return None

    def enclosed(self, owner: _Token, opening: _Token) -> Part:
        """What stands in parentheses: the argument of the function `owner`, or a group when the two tokens are one."""
        if self.next.text == ")" and owner is not opening:
            self.refuse(self.next, f"`{owner.text}` takes exactly one argument, but has none")
        part = self.nested(opening, 0)
        if self.next.kind == "end":
            self.refuse(opening, "the parenthesis is not closed")
        if self.next.text != ")":
            self.stray()
        self.take()
        return part

    def stray(self) -> NoReturn:
        """Refuses the next token, which cannot follow a complete operand."""
        token = self.next
        if token.text == ",":
            self.refuse(token, "`,` has no place in a formula; a function takes exactly one argument")
        if token.text == ")":
            self.refuse(token, "`)` closes nothing")
        self.refuse(token, f"an operator such as `*` must stand before `{token.text}`")

    def nested(self, place: _Token, weakest: int) -> Part:
        self.depth += 1
        if self.depth > MAX_NESTING:
            self.refuse(place, f"it is nested more than {MAX_NESTING} deep")
        part = self.formula(weakest)
        self.depth -= 1
        return part

    def unary(self, place: _Token, compute: Callable[[Any], Any], part: Part) -> Part:
        if part is not None:
            return self.constant(place, compute, part)

        def step(stack: list[Any], _: Mapping[str, Any]) -> None:
            stack[-1] = compute(stack[-1])

        self.steps.append(step)
        return None

    def binary(self, place: _Token, left: Part, right: Part) -> Part:
        """A constant operand stays a float to the end: torch then sees `tensor ** 2.0`, not a power of two tensors."""
        compute = _OPERATORS[place.text]
        if place.text == "/" and right == 0:
            self.refuse(place, "it divides by the constant 0")
        if left is not None and right is not None:
            return self.constant(place, compute, left, right)
        if right is not None:
            return self.unary(place, lambda value: compute(value, right), None)
        if left is not None:
            return self.unary(place, lambda value: compute(left, value), None)

        def step(stack: list[Any], _: Mapping[str, Any]) -> None:
            operand = stack.pop()
            stack[-1] = compute(stack[-1], operand)

        self.steps.append(step)
        return None

    def constant(self, place: _Token, compute: Callable[..., Any], *known: float) -> float:
        """`compute` of constants, which must come out as a finite real number."""
        try:
            value = float(compute(*known))
        except (ValueError, OverflowError):
            value = math.nan
        if not math.isfinite(value):
            of = f"the constant{'s' * (len(known) > 1)} {' and '.join(f'{number:g}' for number in known)}"
            self.refuse(place, f"`{place.text}` of {of} is not a finite real number")
        return value
