"""Formulas of users, such as `a*exp(-b*x) + c`: parsed once, evaluated many times on tensors or floats.

    formula  = operand {("+" | "-" | "*" | "/" | "**") operand}       with the precedence of Python
    operand  = number | name | "pi" | function "(" formula ")" | "(" formula ")" | ("+" | "-") operand

Formulas have their own parser because `ast.parse` does not fit: it accepts a whole language, normalizes identifiers, builds
integers of any size, counts columns in bytes, and changes its error messages between versions. Python never executes the text
of a user.
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

_Step = Callable[[list[Any], Mapping[str, Any]], None]
"""Operation on a stack of values. The mapping has the values of the names."""
_Operand = float | None
"""Parsed operand: a constant, or None if the steps leave its value on top of the stack."""

_MAX_CHARACTERS = 1_000
_MAX_NESTING = 100
"""Greatest depth of parentheses, calls, signs and exponents inside each other. Sums and products are not nested."""

_TOKEN = re.compile(
    r"(?P<space>[ \t]+)"
    r"|(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<symbol>\*\*|[-+*/(),])"
)
_WORD = re.compile(r"[A-Za-z0-9_.]*")
_HINTS = {
    "^": "write a power with `**`",
    "=": "write only the right-hand side",
    "\n": "write it on one line",
}
_PIECES = "a formula consists of numbers, names in ASCII letters, + - * / **, parentheses and functions"


@dataclass(frozen=True)
class Expression:
    """A parsed formula. `names` are its free names in order of first appearance, without `pi`."""

    text: str
    names: tuple[str, ...]
    _steps: tuple[_Step, ...] = field(repr=False, compare=False)

    def __call__(self, values: Mapping[str, Any]) -> Any:
        """Return the value of the formula. Each name has a tensor (they broadcast) or a float; other names are ignored.

        A formula without names always returns a float. Outside of a function's domain, tensors become nan or inf as in
        torch, and floats raise ValueError, ZeroDivisionError or OverflowError as in `math`. Raises KeyError if a name has
        no value.
        """
        stack: list[Any] = []
        # A loop instead of nested closures: torch.compile traces only some fifty nested calls.
        for step in self._steps:
            step(stack, values)
        return stack.pop()

    def __reduce__(self) -> tuple[Callable[[str], Expression], tuple[str]]:
        return parse, (self.text,)  # closures cannot be pickled, so the text is parsed again


def parse(text: str) -> Expression:
    """Parse a formula. Raises `ExpressionError` with the column, counted from 1, if it is invalid."""
    if len(text) > _MAX_CHARACTERS:
        _refuse(text, _MAX_CHARACTERS + 1, f"it must have at most {_MAX_CHARACTERS:,} characters, got {len(text):,}")
    if not text.strip(" \t"):
        _refuse(text, 1, "it is empty; write one such as a*x + b")
    parser = _Parser(text)
    parser.parse()
    return Expression(text, tuple(parser.names), tuple(parser.steps))


def _refuse(text: str, column: int, reason: str) -> NoReturn:
    """Raise `ExpressionError` with the formula, shortened around the column, and the reason."""
    start = max(0, column - 60)
    shown = "…" * (start > 0) + text[start : start + 100] + "…" * (start + 100 < len(text))
    raise ExpressionError(f"the formula {shown!r} is refused at column {column}: {reason}")


def _power(base: Any, exponent: Any) -> Any:
    """Return base**exponent. A negative float to a fractional power raises ValueError instead of becoming complex."""
    if isinstance(base, (float, int)) and isinstance(exponent, (float, int)):
        return math.pow(base, exponent)
    return base**exponent


def _function(name: str, on_float: Callable[[float], float]) -> Callable[[Any], Any]:
    """Return a function that calls `on_float` for numbers and the method of this name for tensors."""
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
# The precedence of each operator, and the lowest precedence in its right operand. A sign is between `*` and `**`: -x**2 is
# -(x**2). An exponent may begin with a sign (2**-x) and includes further powers (x**y**z is x**(y**z)).
_SIGN = 3
_PRECEDENCE = {"+": (1, 2), "-": (1, 2), "*": (2, _SIGN), "/": (2, _SIGN), "**": (4, _SIGN)}


class _Token(NamedTuple):
    """A token and its position."""

    kind: str  # number, name, symbol or end
    text: str
    column: int  # from 1


def _tokens(text: str) -> list[_Token]:
    """Return the tokens of a formula without spaces, and an end token."""
    tokens: list[_Token] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            character = text[position]
            _refuse(text, position + 1, f"{character!r} is not allowed; {_HINTS.get(character, _PIECES)}")
        token = _Token(str(match.lastgroup), match.group(), position + 1)
        position = match.end()
        if token.kind == "number":
            _check_number(text, token)
        if token.kind == "name":
            _check_name(text, token)
        if token.kind != "space":
            tokens.append(token)
    return [*tokens, _Token("end", "", len(text) + 1)]


def _check_number(text: str, token: _Token) -> None:
    tail = _WORD.match(text, token.column - 1 + len(token.text))
    written = token.text + (tail.group() if tail else "")
    if written != token.text or re.match("0[0-9]", written):
        reason = "is not a decimal number; write numbers like 12, 0.5 or 1e-3, and products with `*`"
        _refuse(text, token.column, f"`{written}` {reason}")
    if math.isinf(float(token.text)):
        _refuse(text, token.column, "the number is too large for float64; use at most 1.797e308")


def _check_name(text: str, token: _Token) -> None:
    if token.text.startswith("__"):
        _refuse(text, token.column, f"`{token.text}` begins with two underscores; choose another name")
    if keyword.iskeyword(token.text):
        _refuse(text, token.column, f"`{token.text}` is a reserved word of Python; choose another name")


class _Parser:
    """Precedence climbing over the tokens. Constants are folded while parsing; the rest becomes steps on a stack."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.names: dict[str, None] = {}  # keeps the order of first appearance
        self.steps: list[_Step] = []
        self.tokens = _tokens(text)
        self.position = 0
        self.depth = 0

    def parse(self) -> None:
        """Parse the whole text into `names` and `steps`. Raises `ExpressionError`."""
        result = self.formula(0)
        if self.next.kind != "end":
            self.refuse_next()
        if result is not None:
            self.steps.append(lambda stack, _: stack.append(result))

    @property
    def next(self) -> _Token:
        """The next token, which is not consumed."""
        return self.tokens[self.position]

    def take(self) -> _Token:
        """Consume and return the next token."""
        token = self.next
        self.position += 1
        return token

    def refuse(self, place: _Token, reason: str) -> NoReturn:
        """Raise `ExpressionError` at a token."""
        _refuse(self.text, place.column, reason)

    def formula(self, lowest: int) -> _Operand:
        """Parse operands joined by operators whose precedence is at least `lowest`."""
        left = self.operand()
        while self.next.text in _PRECEDENCE and _PRECEDENCE[self.next.text][0] >= lowest:
            operator_ = self.take()
            inner = _PRECEDENCE[operator_.text][1]
            right = self.nested(operator_, inner) if operator_.text == "**" else self.formula(inner)
            left = self.binary(operator_, left, right)
        return left

    def operand(self) -> _Operand:
        """Parse a number, a name, a call, a group in parentheses, or a signed operand."""
        token = self.take()
        if token.kind == "number":
            return float(token.text)
        if token.kind == "name":
            return self.name(token)
        if token.text == "(":
            return self.parentheses(token, token)
        if token.text not in ("+", "-"):
            actual = f"got `{token.text}`" if token.text else "but the formula ends"
            self.refuse(token, f"expected a number, a name or `(`, {actual}")
        operand = self.nested(token, _SIGN)
        return operand if token.text == "+" else self.unary(token, operator.neg, operand)

    def name(self, token: _Token) -> _Operand:
        """Parse a call of a function, the constant pi, or a free name."""
        called = self.next.text == "("
        if token.text in _FUNCTIONS:
            if called:
                return self.unary(token, _FUNCTIONS[token.text], self.parentheses(token, self.take()))
            self.refuse(token, f"`{token.text}` is a function and needs an argument, as in {token.text}(x)")
        if called:
            near = difflib.get_close_matches(token.text, _FUNCTIONS, n=1)
            hint = f"did you mean `{near[0]}`?" if near else "write a product with `*`"
            self.refuse(token, f"`{token.text}` is not one of the functions {', '.join(_FUNCTIONS)}; {hint}")
        if token.text == "pi":
            return math.pi
        self.names[token.text] = None
        self.steps.append(lambda stack, values: stack.append(values[token.text]))
        return None

    def parentheses(self, owner: _Token, opening: _Token) -> _Operand:
        """Parse the rest of parentheses: the argument of function `owner`, or a group if both tokens are the same."""
        if self.next.text == ")" and owner is not opening:
            self.refuse(self.next, f"`{owner.text}` takes exactly one argument, got none")
        operand = self.nested(opening, 0)
        if self.next.kind == "end":
            self.refuse(opening, "the parenthesis is not closed")
        if self.next.text != ")":
            self.refuse_next()
        self.take()
        return operand

    def refuse_next(self) -> NoReturn:
        """Raise `ExpressionError` for the next token, which cannot follow a complete operand."""
        token = self.next
        if token.text == ",":
            self.refuse(token, "`,` is not allowed; a function takes exactly one argument")
        if token.text == ")":
            self.refuse(token, "`)` has no opening parenthesis")
        self.refuse(token, f"expected an operator such as `*` before `{token.text}`")

    def nested(self, place: _Token, lowest: int) -> _Operand:
        """Parse a formula one level deeper. Raises `ExpressionError` beyond `_MAX_NESTING`."""
        self.depth += 1
        if self.depth > _MAX_NESTING:
            self.refuse(place, f"it is nested more than {_MAX_NESTING} deep")
        operand = self.formula(lowest)
        self.depth -= 1
        return operand

    def unary(self, place: _Token, compute: Callable[[Any], Any], operand: _Operand) -> _Operand:
        """Apply a function of one operand: fold a constant, or add a step."""
        if operand is not None:
            return self.constant(place, compute, operand)

        def step(stack: list[Any], _: Mapping[str, Any]) -> None:
            stack[-1] = compute(stack[-1])

        self.steps.append(step)
        return None

    def binary(self, place: _Token, left: _Operand, right: _Operand) -> _Operand:
        """Apply an operator: fold constants, or add a step."""
        # A constant operand stays a float, so that torch computes `tensor ** 2.0` and not a power of two tensors.
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

    def constant(self, place: _Token, compute: Callable[..., Any], *operands: float) -> float:
        """Compute a constant. Raises `ExpressionError` if it is not a finite real number."""
        try:
            value = float(compute(*operands))
        except (ValueError, OverflowError):
            value = math.nan
        if not math.isfinite(value):
            constants = f"the constant{'s' * (len(operands) > 1)} {' and '.join(f'{number:g}' for number in operands)}"
            self.refuse(place, f"`{place.text}` of {constants} is not a finite real number")
        return value
