"""Formulas of users, such as `a*exp(-b*x) + c`: parsed once, evaluated many times on tensors or floats.

    formula    = sum [("<" | "<=" | ">" | ">=" | "==" | "!=") sum]         a comparison is 1 where it holds, else 0
    sum        = operand {("+" | "-" | "*" | "/" | "**") operand}         with the precedence of Python
    operand    = number | name | "pi" | "π" | function "(" formula {"," formula} ")" | "(" formula ")" | ("+" | "-") operand
    name       = a letter of any alphabet or "_", then letters, marks, digits and "_" | "`" any other text "`"

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
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

from runner.errors import ExpressionError

Operand = int | float
"""Operand of an operation: the index of an earlier value, or a constant. Indices are integers and constants are floats."""

_MAX_CHARACTERS = 1_000
_MAX_NESTING = 100
"""Greatest depth of parentheses, calls, signs and exponents inside each other. Sums and products are not nested."""

_TOKEN = re.compile(
    r"(?P<space>[ \t]+)"
    r"|(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[^\W\d]\w*)"
    r"|`(?P<quoted>[^`\n]+)`"
    r"|(?P<symbol>\*\*|[<>=!]=|[-+*/(),<>])"
)
_WORD = re.compile(r"[\w.]*")
_HINTS = {
    "^": "write a power with `**`",
    "=": "write only the right-hand side, and compare with `==`",
    "\n": "write it on one line",
    "`": "close the name with another backtick",
    "{": 'put the formula of each target in quotes, as in {u: "a*x", v: "b*x"}',
    "ln": "write the natural logarithm as `log`",
    "pow": "write a power with `**`",
}
_COLUMN_OF_THIS_NAME = "write a column of this name in backticks"
_PIECES = "a formula consists of numbers, names (in backticks if they have other characters), + - * / **, comparisons, parentheses and functions"


class Operation(NamedTuple):
    """One operation of a formula: an operator, "neg" for a sign, or a function, and what it is applied to."""

    symbol: str
    operands: tuple[Operand, ...]


@dataclass(frozen=True)
class Expression:
    """A parsed formula.

    Its values are numbered: first those of the names, then the results of the operations, in order.
    """

    text: str
    names: tuple[str, ...]
    """Free names in order of first appearance, without constants."""
    constants: frozenset[str] = field(repr=False, compare=False)
    """Names of the constants that it uses, such as "pi"."""
    fixed: Mapping[str, float] = field(repr=False, compare=False)
    """Names that stand for a number here, and the number."""
    operations: tuple[Operation, ...] = field(repr=False, compare=False)
    result: Operand = field(repr=False, compare=False)
    """The value of the formula."""

    def __call__(self, values: Mapping[str, Any]) -> Any:
        """Return the value of the formula. Each name has a tensor (they broadcast) or a float; other names are ignored.

        A formula without names always returns a float. Outside of a function's domain, tensors become nan or inf as in
        torch, and floats raise ValueError, ZeroDivisionError or OverflowError as in `math`. Raises KeyError if a name has
        no value.
        """
        return self.result if isinstance(self.result, float) else self.values(values)[self.result]

    def values(self, values: Mapping[str, Any]) -> list[Any]:
        """Return all values: those of the names, and the result of every operation."""
        found = [values[name] for name in self.names]
        # A loop instead of nested closures: torch.compile traces only some fifty nested calls.
        for symbol, operands in self.operations:
            found.append(COMPUTE[symbol](*(found[o] if isinstance(o, int) else o for o in operands)))
        return found

    def __reduce__(self) -> tuple[Callable[..., Expression], tuple[Any, ...]]:
        return parse, (self.text, dict(self.fixed))


def parse(text: str, fixed: Mapping[str, float] = MappingProxyType({})) -> Expression:
    """Parse a formula, in which the names in `fixed` stand for their numbers.

    Raises `ExpressionError` with the column, counted from 1, if it is invalid.
    """
    if len(text) > _MAX_CHARACTERS:
        _refuse(text, _MAX_CHARACTERS + 1, f"it must have at most {_MAX_CHARACTERS:,} characters, got {len(text):,}")
    if not text.strip(" \t"):
        _refuse(text, 1, "it is empty; write one such as a*x + b")
    parser = _Parser(text, fixed)
    result = parser.parse()
    names = tuple(parser.names)
    # The parser numbers operations from 0 because it learns the number of names at the end.
    operations = tuple(
        Operation(symbol, tuple(_renumbered(o, names) for o in operands)) for symbol, operands in parser.operations
    )
    return Expression(text, names, frozenset(parser.constants), fixed, operations, _renumbered(result, names))


def written(name: str) -> str:
    """Return a name as it is written in a formula: in backticks if it is no plain name, or has another meaning."""
    plain = name.isidentifier() and not name.startswith("__") and not keyword.iskeyword(name)
    return name if plain and name not in _ARGUMENTS and name not in _CONSTANTS else f"`{name}`"


def folded(name: str) -> str:
    """Return what two names have in common that differ only in case, blanks, underscores and hyphens."""
    return re.sub(r"[\s_-]", "", name).casefold()


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


def _comparison(compare: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return a function that is 1 where a comparison holds, and 0 elsewhere, in the type of its operands."""

    def compared(left: Any, right: Any) -> Any:
        holds = compare(left, right)
        if isinstance(holds, bool):
            return float(holds)
        kind = right if isinstance(left, (float, int)) else left
        return holds.to(kind.dtype)

    return compared


def _sign(value: Any) -> Any:
    if isinstance(value, (float, int)):
        return float((value > 0) - (value < 0))
    return value.sign()


def _extreme(on_float: Callable[[float, float], float], name: str, bound: str) -> Callable[[Any, Any], Any]:
    """Return the smaller or larger of two values; `name` is the method for two tensors, `bound` the argument of `clamp`."""

    def extreme(left: Any, right: Any) -> Any:
        numbers = isinstance(left, (float, int)), isinstance(right, (float, int))
        if all(numbers):
            return on_float(left, right)
        if any(numbers):
            tensor, number = (right, left) if numbers[0] else (left, right)
            return tensor.clamp(**{bound: number})
        return getattr(left, name)(right)

    return extreme


def where(condition: Any, true: Any, false: Any) -> Any:
    """Return `true` where the condition is not 0, and `false` elsewhere."""
    if isinstance(condition, (float, int)):
        return true if condition != 0 else false
    kind = next((value for value in (true, false) if not isinstance(value, (float, int))), condition)
    # Made on the device: a number from the host would make a step wait.
    true, false = (kind.new_full((), v) if isinstance(v, (float, int)) else v for v in (true, false))
    return true.where(condition != 0, false)


_IN_MATH = (
    "acos", "asin", "atan", "cos", "cosh", "erf", "erfc", "exp", "expm1", "log", "log10", "log1p", "log2", "sin", "sinh", "sqrt",
    "tan", "tanh",
)  # fmt: skip
_UNARY: dict[str, Callable[[Any], Any]] = {
    "abs": abs,
    "sign": _sign,
    **{name: _function(name, getattr(math, name)) for name in _IN_MATH},
}
_OF_SEVERAL: dict[str, Callable[..., Any]] = {
    "max": _extreme(max, "maximum", "min"),
    "min": _extreme(min, "minimum", "max"),
    "where": where,
}
_ARGUMENTS = {**dict.fromkeys(_UNARY, 1), "max": 2, "min": 2, "where": 3}
"""Function → its number of arguments."""
_FUNCTIONS = sorted(_ARGUMENTS)
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "**": _power,
    **{
        symbol: _comparison(compare)
        for symbol, compare in (
            ("<", operator.lt), ("<=", operator.le), (">", operator.gt), (">=", operator.ge), ("==", operator.eq), ("!=", operator.ne),
        )
    },
}  # fmt: skip
COMPUTE: dict[str, Callable[..., Any]] = {**_OPERATORS, **_UNARY, **_OF_SEVERAL, "neg": operator.neg}
"""Symbol of an operation → its function of floats and tensors."""
_CONSTANTS = dict.fromkeys(("pi", "π"), math.pi)
# The precedence of each operator, and the lowest precedence in its right operand. A sign is between `*` and `**`: -x**2 is
# -(x**2). An exponent may begin with a sign (2**-x) and includes further powers (x**y**z is x**(y**z)). Comparisons are not
# chained: their operands are sums.
_SIGN = 4
_PRECEDENCE = {
    **dict.fromkeys(("<", "<=", ">", ">=", "==", "!="), (1, 2)), "+": (2, 3), "-": (2, 3), "*": (3, _SIGN), "/": (3, _SIGN),
    "**": (5, _SIGN),
}  # fmt: skip


def _renumbered(operand: Operand | str, names: tuple[str, ...]) -> Operand:
    """Return an operand of the parser, a name or the number of an operation, as an index of `Expression.values`."""
    if isinstance(operand, str):
        return names.index(operand)
    return operand if isinstance(operand, float) else len(names) + operand


class _Token(NamedTuple):
    """A token and its position."""

    kind: str  # number, name, quoted, symbol or end
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
        kind, end = str(match.lastgroup), match.end()
        end = _end_of_name(text, end) if kind == "name" else end
        token = _Token(kind, match.group(kind) + text[match.end() : end], position + 1)
        position = end
        if token.kind == "number":
            _check_number(text, token)
        if token.kind == "name":
            _check_name(text, token)
        if token.kind != "space":
            tokens.append(token)
    return [*tokens, _Token("end", "", len(text) + 1)]


def _end_of_name(text: str, end: int) -> int:
    """Return the end of a name that is known up to `end`. Marks, such as vowel signs of Devanagari, belong to it."""
    while end < len(text) and (unicodedata.category(text[end]) in ("Mn", "Mc") or re.match(r"\w", text[end])):
        end += 1
    return end


def _check_number(text: str, token: _Token) -> None:
    tail = _WORD.match(text, token.column - 1 + len(token.text))
    written = token.text + (tail.group() if tail else "")
    if written != token.text or re.match("0[0-9]", written):
        reason = "is not a decimal number; write numbers like 12, 0.5 or 1e-3, and products with `*`"
        _refuse(text, token.column, f"`{written}` {reason}")
    if math.isinf(float(token.text)):
        _refuse(text, token.column, "the number is too large for float64; use at most 1.797e308")


def _check_name(text: str, token: _Token) -> None:
    if not token.text.isidentifier():  # \w has digits of all kinds, such as ²
        strange = next(i for i in range(len(token.text)) if not token.text[: i + 1].isidentifier())
        _refuse(text, token.column + strange, f"{token.text[strange]!r} is not allowed; {_PIECES}")
    if token.text.startswith("__"):
        _refuse(text, token.column, f"`{token.text}` begins with two underscores; choose another name")
    if keyword.iskeyword(token.text):
        _refuse(
            text,
            token.column,
            f"`{token.text}` is a reserved word of Python; choose another name, or {_COLUMN_OF_THIS_NAME}",
        )


_Parsed = float | int | str
"""Parsed operand: a constant, the number of an operation, or a free name."""


class _Parser:
    """Precedence climbing over the tokens. Constants are folded while parsing; the rest becomes operations."""

    def __init__(self, text: str, fixed: Mapping[str, float]) -> None:
        self.text, self.fixed = text, fixed
        self.names: dict[str, None] = {}  # keeps the order of first appearance
        self.constants: set[str] = set()
        self.operations: list[tuple[str, tuple[_Parsed, ...]]] = []
        self.tokens = _tokens(text)
        self.position = 0
        self.depth = 0

    def parse(self) -> _Parsed:
        """Parse the whole text and return its result. Raises `ExpressionError`."""
        result = self.formula(0)
        if self.next.kind != "end":
            self.refuse_next()
        return result

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

    def formula(self, lowest: int) -> _Parsed:
        """Parse operands joined by operators whose precedence is at least `lowest`."""
        left, compared = self.operand(), False
        while self.next.kind == "symbol" and _PRECEDENCE.get(self.next.text, (-1, 0))[0] >= lowest:
            symbol = self.take()
            precedence, inner = _PRECEDENCE[symbol.text]
            if precedence == 1 and compared:
                self.refuse(symbol, "comparisons cannot be chained; write a product such as (0 < x)*(x < 1)")
            compared = compared or precedence == 1
            right = self.nested(symbol, inner) if symbol.text == "**" else self.formula(inner)
            left = self.apply(symbol, symbol.text, left, right)
        return left

    def operand(self) -> _Parsed:
        """Parse a number, a name, a call, a group in parentheses, or a signed operand."""
        token = self.take()
        if token.kind == "number":
            return float(token.text)
        if token.kind == "name":
            return self.name(token)
        if token.kind == "quoted":
            return self.free(token.text)
        if token.text == "(":
            return self.parentheses(token)
        if token.text not in ("+", "-"):
            actual = f"got `{token.text}`" if token.text else "but the formula ends"
            self.refuse(token, f"expected a number, a name or `(`, {actual}")
        operand = self.nested(token, _SIGN)
        return operand if token.text == "+" else self.apply(token, "neg", operand)

    def name(self, token: _Token) -> _Parsed:
        """Parse a call of a function, a constant, or a free name."""
        called = self.next.kind == "symbol" and self.next.text == "("
        if token.text in _ARGUMENTS:
            if called:
                return self.call(token)
            example = ", ".join("xyz"[: _ARGUMENTS[token.text]])
            self.refuse(
                token,
                f"`{token.text}` is a function and needs an argument, as in {token.text}({example}); {_COLUMN_OF_THIS_NAME}",
            )
        if called:
            near = difflib.get_close_matches(token.text, _FUNCTIONS, n=1)
            hint = f"did you mean `{near[0]}`?" if near else "write a product with `*`"
            known = f"is not one of the functions {', '.join(_FUNCTIONS)}"
            self.refuse(token, f"`{token.text}` {known}; {_HINTS.get(token.text, hint)}")
        if token.text in _CONSTANTS:
            self.constants.add(token.text)
            return _CONSTANTS[token.text]
        return self.free(token.text)

    def free(self, name: str) -> _Parsed:
        """Return the number of a fixed name, or a free name, and remember it."""
        if name in self.fixed:
            return float(self.fixed[name])
        self.names[name] = None
        return name

    def call(self, function: _Token) -> _Parsed:
        """Parse the arguments of a function in parentheses, and apply it."""
        opening, expected = self.take(), _ARGUMENTS[function.text]
        arguments: list[_Parsed] = []
        if not self.at(")"):
            arguments.append(self.nested(opening, 0))
        while self.at(","):
            self.take()
            arguments.append(self.nested(opening, 0))
        self.close(opening)
        if len(arguments) != expected:
            number = {1: "exactly one argument", 2: "two arguments", 3: "three arguments"}[expected]
            self.refuse(function, f"`{function.text}` takes {number}, got {len(arguments) or 'none'}")
        return self.apply(function, function.text, *arguments)

    def at(self, symbol: str) -> bool:
        """Whether the next token is this symbol."""
        return self.next.kind == "symbol" and self.next.text == symbol

    def parentheses(self, opening: _Token) -> _Parsed:
        """Parse the rest of a group in parentheses."""
        operand = self.nested(opening, 0)
        self.close(opening)
        return operand

    def close(self, opening: _Token) -> None:
        """Consume the closing parenthesis."""
        if self.next.kind == "end":
            self.refuse(opening, "the parenthesis is not closed")
        if not self.at(")"):
            self.refuse_next()
        self.take()

    def refuse_next(self) -> NoReturn:
        """Raise `ExpressionError` for the next token, which cannot follow a complete operand."""
        token = self.next
        if token.text == "," and token.kind == "symbol":
            self.refuse(token, "`,` is not allowed outside of the arguments of a function")
        if token.text == ")" and token.kind == "symbol":
            self.refuse(token, "`)` has no opening parenthesis")
        self.refuse(token, f"expected an operator such as `*` before `{token.text}`")

    def nested(self, place: _Token, lowest: int) -> _Parsed:
        """Parse a formula one level deeper. Raises `ExpressionError` beyond `_MAX_NESTING`."""
        self.depth += 1
        if self.depth > _MAX_NESTING:
            self.refuse(place, f"it is nested more than {_MAX_NESTING} deep")
        operand = self.formula(lowest)
        self.depth -= 1
        return operand

    def apply(self, place: _Token, symbol: str, *operands: _Parsed) -> _Parsed:
        """Apply an operation: fold constants, or add it."""
        # A constant operand stays a float, so that torch computes `tensor ** 2.0` and not a power of two tensors.
        if symbol == "/" and operands[1] == 0.0 and isinstance(operands[1], float):
            self.refuse(place, "it divides by the constant 0")
        numbers = [operand for operand in operands if isinstance(operand, float)]
        if len(numbers) == len(operands):
            return self.constant(place, symbol, numbers)
        self.operations.append((symbol, operands))
        return len(self.operations) - 1

    def constant(self, place: _Token, symbol: str, operands: list[float]) -> float:
        """Compute a constant. Raises `ExpressionError` if it is not a finite real number."""
        try:
            value = float(COMPUTE[symbol](*operands))
        except (ValueError, OverflowError):
            value = math.nan
        if not math.isfinite(value):
            constants = f"the constant{'s' * (len(operands) > 1)} {' and '.join(f'{number:g}' for number in operands)}"
            self.refuse(place, f"`{place.text}` of {constants} is not a finite real number")
        return value
