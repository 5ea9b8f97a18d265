"""Derivatives of a formula by its parameters, right wherever the formula is differentiable.

Automatic differentiation multiplies the derivatives of the operations. For `(x/c)**h` with h < 1 at x = 0 it computes ∞·0 = nan as
the derivative by c, although the formula is 0 for every c. Here 0 times an infinite derivative is 0. At a kink, such as that of
`sqrt((x-c)**2)` at c, the derivative is taken as 0. A derivative that is infinite stays infinite, and one that does not exist
because a number is outside of a function's domain stays nan.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from runner.config.expression import COMPUTE, Expression, Operand, Operation, where

_Number = Any  # float or Tensor

_LOCAL: dict[str, Callable[..., _Number]] = {
    "abs": lambda result, a: a.sign(),
    "acos": lambda result, a: -1 / (1 - a * a).sqrt(),
    "asin": lambda result, a: 1 / (1 - a * a).sqrt(),
    "atan": lambda result, a: 1 / (1 + a * a),
    "cos": lambda result, a: -a.sin(),
    "cosh": lambda result, a: a.sinh(),
    "erf": lambda result, a: (-a * a).exp() * (2 / math.sqrt(math.pi)),
    "erfc": lambda result, a: (-a * a).exp() * (-2 / math.sqrt(math.pi)),
    "exp": lambda result, a: result,
    "expm1": lambda result, a: a.exp(),
    "log": lambda result, a: 1 / a,
    "log10": lambda result, a: 1 / (a * math.log(10)),
    "log1p": lambda result, a: 1 / (1 + a),
    "log2": lambda result, a: 1 / (a * math.log(2)),
    "sin": lambda result, a: a.cos(),
    "sinh": lambda result, a: a.cosh(),
    "sqrt": lambda result, a: 0.5 / result,
    "tan": lambda result, a: 1 + result * result,
    "tanh": lambda result, a: 1 - result * result,
}
"""Function of one operand → its derivative, given its result and the operand."""

_NUMBERS = {"neg": (-1.0,), "+": (1.0, 1.0), "-": (1.0, -1.0)}
"""Operation whose derivatives are numbers → the one by each operand."""

_CONSTANT = frozenset(("sign", "<", "<=", ">", ">=", "==", "!="))
"""Operations whose derivative is 0 wherever it exists."""

_BOUNDED = _CONSTANT | {"acos", "asin", "atan", "cos", "erf", "erfc", "sin", "tanh"}
"""Operations whose results are finite."""

_CLOSED = frozenset(("+", "-", "*", "neg", "abs", "max", "min", "where"))
"""Operations whose results are finite for finite operands, up to overflow."""

_FINITE = frozenset(("abs", "atan", "cos", "erf", "erfc", "sin", "tanh", "max", "min", "where"))
"""Operations whose derivatives are finite."""


def _power(position: int, result: Tensor, base: _Number, exponent: _Number) -> _Number:
    if position == 1:
        logarithm = base.log() if isinstance(base, Tensor) else math.log(base) if base > 0 else math.nan
        return where(base == 0, 0.0, result * logarithm)
    if isinstance(exponent, Tensor):
        return torch.where(exponent == 0, 0.0, exponent * base ** (exponent - 1))
    return exponent * base ** (exponent - 1)


def _larger(position: int, result: Tensor, *operands: _Number) -> _Number:
    return (operands[position] > operands[1 - position]).to(result.dtype)


def _smaller(position: int, result: Tensor, *operands: _Number) -> _Number:
    return (operands[position] < operands[1 - position]).to(result.dtype)


def _selected(position: int, result: Tensor, condition: Tensor, *others: _Number) -> _Number:
    return ((condition != 0) == (position == 1)).to(result.dtype)


_LOCAL_OF_SEVERAL: dict[str, Callable[..., _Number]] = {
    "/": lambda position, result, a, b: 1 / b if position == 0 else -result / b,
    "**": _power,
    "max": _larger,
    "min": _smaller,
    "where": _selected,
}
"""Operation on several operands → its derivative by the one at a position, given its result and the operands."""


def _product_of_infinite_local(tangent: Tensor, local: Tensor) -> Tensor:
    return torch.where(tangent == 0, tangent, tangent * local)


def _product_of_infinite_tangent(tangent: Tensor, local: Tensor) -> Tensor:
    return torch.where(local == 0, local, tangent * local)


def _product_of_infinite(tangent: Tensor, local: Tensor) -> Tensor:
    return torch.where(tangent == 0, tangent, torch.where(local == 0, local, tangent * local))


_PRODUCTS: dict[tuple[bool, bool], Callable[[Any, Any], Any]] = {
    (False, False): operator.mul,
    (False, True): _product_of_infinite_local,
    (True, False): _product_of_infinite_tangent,
    (True, True): _product_of_infinite,
}
"""Whether tangent and local derivative may be infinite → their product, which is 0 where one of them is 0."""


class _Slope(NamedTuple):
    """A derivative: a number, or the slot in which it will be, and whether it may be infinite."""

    at: float | int  # a number is a float, a slot an integer
    infinite: bool = False


class Derivatives:
    """The derivatives of one formula by some of its names.

    They are computed from the inside out (forward mode): the terms of an inner derivative are added before an outer one, which
    may be infinite, is multiplied with their sum. At the kink of `sqrt(x**2 - 2*c*x + c**2)` that sum is 0.

    The formula is compiled once into instructions on slots. The first slots hold the values of the names, then constants.
    """

    def __init__(self, expression: Expression, parameters: Sequence[str]) -> None:
        self.expression = expression
        self.names = tuple(parameters)
        self._parameters = [expression.names.index(name) for name in parameters]
        numbers = {o: None for _, operands in expression.operations for o in operands if isinstance(o, float)}
        self._constants = list(numbers)
        self._first = len(expression.names) + len(numbers)
        self._instructions: list[tuple[Callable[..., Any], tuple[int, ...]]] = []
        self._slots = list(range(len(expression.names)))  # of each value of the expression
        self._finite = [True] * len(expression.names)
        slopes: list[dict[int, _Slope]] = [{} for _ in expression.names]
        for index in self._parameters:
            slopes[index][index] = _Slope(1.0)
        for operation in expression.operations:
            slopes.append(self._compile(operation, slopes))
        assert isinstance(expression.result, int)  # it has names
        self._result = self._slots[expression.result]
        whole = slopes[expression.result]
        self._derivatives = [whole.get(index, _Slope(0.0)).at for index in self._parameters]
        self.by_parameter = [
            (index, at if isinstance(at, float) else None)
            for index, at in zip(self._parameters, self._derivatives, strict=True)
        ]
        """Index of each parameter among the names of the expression, and the derivative by it if that is a number."""

    def __reduce__(self) -> tuple[type[Derivatives], tuple[Expression, tuple[str, ...]]]:
        return Derivatives, (self.expression, self.names)  # compiled again: functions without a name cannot be pickled

    def evaluate(self, values: Sequence[Tensor]) -> tuple[Tensor, list[float | Tensor]]:
        """Return the formula's value and its derivative by each parameter, for the values of all its names."""
        slots: list[Any] = [*values, *self._constants]
        for compute, arguments in self._instructions:
            slots.append(compute(*[slots[i] for i in arguments]))
        return slots[self._result], [slots[at] if isinstance(at, int) else at for at in self._derivatives]

    def _emit(self, compute: Callable[..., Any], *slots: int) -> int:
        """Add an instruction, and return the slot of its result."""
        self._instructions.append((compute, slots))
        return self._first + len(self._instructions) - 1

    def _slot(self, operand: Operand) -> int:
        """Return the slot of a value of the expression, or of a constant."""
        if isinstance(operand, float):
            return len(self.expression.names) + self._constants.index(operand)
        return self._slots[operand]

    def _compile(self, operation: Operation, slopes: Sequence[dict[int, _Slope]]) -> dict[int, _Slope]:
        """Compile the next operation, and return its slope by each parameter that it depends on."""
        symbol, operands = operation
        inputs = [self._slot(operand) for operand in operands]
        result = self._emit(COMPUTE[symbol], *inputs)
        self._slots.append(result)
        inner = all(self._finite[operand] for operand in operands if isinstance(operand, int))
        self._finite.append(symbol in _BOUNDED or (symbol in _CLOSED and inner))
        found: dict[int, _Slope] = {}
        for position, operand in enumerate(operands):
            if symbol in _CONSTANT or not isinstance(operand, int) or not slopes[operand]:
                continue
            local = self._local(operation, position, result, inputs)
            for parameter, slope in slopes[operand].items():
                term = self._times(slope, local)
                found[parameter] = self._plus(found[parameter], term) if parameter in found else term
        return found

    def _local(self, operation: Operation, position: int, result: int, inputs: Sequence[int]) -> _Slope:
        """Compile the derivative of an operation by its operand at a position."""
        symbol, operands = operation
        number = _local_number(operation, position)
        if number is not None:
            return _Slope(number)
        if symbol == "*":
            factor = operands[1 - position]
            assert isinstance(factor, int)
            return _Slope(self._slots[factor], not self._finite[factor])
        local = _LOCAL[symbol] if symbol in _LOCAL else partial(_LOCAL_OF_SEVERAL[symbol], position)
        return _Slope(self._emit(local, result, *inputs), symbol not in _FINITE)

    def _times(self, slope: _Slope, local: _Slope) -> _Slope:
        for one, other in ((slope, local), (local, slope)):
            if isinstance(one.at, float) and one.at in (0.0, 1.0):
                return other if one.at else one
        if isinstance(slope.at, float) and isinstance(local.at, float):
            return _Slope(slope.at * local.at)
        infinite = slope.infinite, local.infinite
        numbers = isinstance(slope.at, float) or isinstance(local.at, float)  # neither of them 0
        product = operator.mul if numbers else _PRODUCTS[infinite]
        return _Slope(self._emit(product, *map(self._filled, (slope, local))), any(infinite))

    def _plus(self, one: _Slope, other: _Slope) -> _Slope:
        if isinstance(one.at, float) and isinstance(other.at, float):
            return _Slope(one.at + other.at)
        return _Slope(self._emit(operator.add, *map(self._filled, (one, other))), one.infinite or other.infinite)

    def _filled(self, slope: _Slope) -> int:
        """Return the slot of a slope. A number gets an instruction that returns it."""
        number = slope.at
        return number if isinstance(number, int) else self._emit(lambda: number)


def _local_number(operation: Operation, position: int) -> float | None:
    """Return the derivative of an operation by the operand at a position if it is the same everywhere."""
    symbol, operands = operation
    if symbol in _NUMBERS:
        return _NUMBERS[symbol][position]
    if symbol == "where" and position == 0:
        return 0.0
    other = operands[1 - position] if symbol in ("*", "/") else None
    if isinstance(other, float) and (symbol == "*" or position == 0):
        return other if symbol == "*" else 1 / other
    return None


class Formula(torch.autograd.Function):
    """A formula whose gradient comes from `Derivatives`. They are computed together with its value."""

    generate_vmap_rule = True

    @staticmethod
    def forward(derivatives: Derivatives, *values: Tensor) -> tuple[Tensor, ...]:
        """Return the value, and its derivatives that are tensors, for the values of all names of the formula."""
        result, slopes = derivatives.evaluate(values)
        # A derivative may be one of the arguments, of which autograd saves only views.
        return result, *(
            slope.view_as(slope) if any(slope is value for value in values) else slope
            for slope in slopes
            if isinstance(slope, Tensor)
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep the derivatives for the backward pass."""
        ctx.derivatives, ctx.shapes = inputs[0], [value.shape for value in inputs[1:]]
        ctx.save_for_backward(*output[1:])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """Return the gradient by each parameter, and None for every other argument."""
        result: list[Tensor | None] = [None] * (1 + len(ctx.shapes))
        tensors = iter(ctx.saved_tensors)
        for index, number in ctx.derivatives.by_parameter:
            term = gradient * (next(tensors) if number is None else number) if number != 1.0 else gradient
            shape = ctx.shapes[index]
            result[1 + index] = term.sum_to_size(shape) if shape else term.sum()
        return tuple(result)
