"""Derivatives of a formula by its parameters, right wherever the formula is differentiable.

Automatic differentiation multiplies the derivatives of the operations. For `(x/c)**h` with h < 1 at x = 0 it computes ∞·0 = nan as
the derivative by c, although the formula is 0 for every c. Here 0 times an infinite derivative is 0. At a kink, such as that of
`sqrt((x-c)**2)` at c, the derivative is taken as 0. A derivative that is infinite stays infinite, and one that does not exist
because a number is outside of a function's domain stays nan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from runner.config.expression import Expression, Operation, where

_Number = Any  # float or Tensor

_LOCAL: dict[str, Callable[..., _Number]] = {
    "neg": lambda result, a: -1.0,
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

_CONSTANT = frozenset(("sign", "<", "<=", ">", ">=", "==", "!="))
"""Operations whose derivative is 0 wherever it exists."""

_BOUNDED = _CONSTANT | {"acos", "asin", "atan", "cos", "erf", "erfc", "sin", "tanh"}
"""Operations whose results are finite."""

_CLOSED = frozenset(("+", "-", "*", "neg", "abs", "max", "min", "where"))
"""Operations whose results are finite for finite operands, up to overflow."""

_FINITE = frozenset(("neg", "abs", "atan", "cos", "erf", "erfc", "sin", "tanh", "+", "-", "max", "min", "where"))
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
    if position == 0:
        return 0.0
    return ((condition != 0) == (position == 1)).to(result.dtype)


_LOCAL_OF_SEVERAL: dict[str, Callable[..., _Number]] = {
    "+": lambda position, result, a, b: 1.0,
    "-": lambda position, result, a, b: (1.0, -1.0)[position],
    "*": lambda position, result, a, b: (b, a)[position],
    "/": lambda position, result, a, b: 1 / b if position == 0 else -result / b,
    "**": _power,
    "max": _larger,
    "min": _smaller,
    "where": _selected,
}
"""Operation on several operands → its derivative by the one at a position, given its result and the operands."""


_Tangents = dict[int, tuple[_Number, bool]]
"""Parameter, as its index among the names → the derivative of a value by it, and whether that may be infinite."""


class Derivatives:
    """The derivatives of one formula by some of its names.

    They are computed from the inside out (forward mode): the terms of an inner derivative are added before an outer one, which
    may be infinite, is multiplied with their sum. At the kink of `sqrt(x**2 - 2*c*x + c**2)` that sum is 0.
    """

    def __init__(self, expression: Expression, parameters: Sequence[str]) -> None:
        self.expression = expression
        self.parameters = [expression.names.index(name) for name in parameters]
        """Index of each parameter among the names of the expression."""
        self._finite = [True] * len(expression.names)
        for symbol, operands in expression.operations:
            inner = all(self._finite[operand] for operand in operands if isinstance(operand, int))
            self._finite.append(symbol in _BOUNDED or (symbol in _CLOSED and inner))

    def at(self, values: Sequence[_Number]) -> list[_Number]:
        """Return the derivative by each parameter, a float or a tensor, from the `Expression.values` there."""
        tangents: list[_Tangents] = [{} for _ in self.expression.names]
        for index in self.parameters:
            tangents[index][index] = 1.0, False
        for operation in self.expression.operations:
            tangents.append(self._of_operation(operation, values, tangents))
        result = self.expression.result
        whole = tangents[result] if isinstance(result, int) else {}
        return [whole.get(index, (0.0, False))[0] for index in self.parameters]

    def _of_operation(
        self, operation: Operation, values: Sequence[_Number], tangents: Sequence[_Tangents]
    ) -> _Tangents:
        """Return the derivatives of the next value, the result of an operation on earlier ones."""
        symbol, operands = operation
        found: _Tangents = {}
        if symbol in _CONSTANT:
            return found
        result = values[len(tangents)]
        numbers = [values[operand] if isinstance(operand, int) else operand for operand in operands]
        for position, operand in enumerate(operands):
            inner = tangents[operand] if isinstance(operand, int) else {}
            if not inner:
                continue
            local, local_infinite = _local(symbol, position, result, numbers), self._infinite(operation, position)
            for parameter, (tangent, infinite) in inner.items():
                term = _product(tangent, local, infinite, local_infinite)
                infinite = infinite or local_infinite  # noqa: PLW2901
                if parameter in found:
                    term, infinite = found[parameter][0] + term, infinite or found[parameter][1]  # noqa: PLW2901
                found[parameter] = term, infinite
        return found

    def _infinite(self, operation: Operation, position: int) -> bool:
        """Return whether the derivative of an operation by the operand at a position may be infinite."""
        symbol, operands = operation
        if symbol == "*":
            factor = operands[1 - position]
            return isinstance(factor, int) and not self._finite[factor]
        return symbol not in _FINITE


def _local(symbol: str, position: int, result: _Number, numbers: Sequence[_Number]) -> _Number:
    """Return the derivative of an operation by the operand at a position."""
    if symbol in _LOCAL:
        return _LOCAL[symbol](result, *numbers)
    return _LOCAL_OF_SEVERAL[symbol](position, result, *numbers)


def _product(tangent: _Number, local: _Number, infinite: bool, local_infinite: bool) -> _Number:
    """Return tangent·local, which is 0 where one of them is 0, whatever the other is. The flags say which may be infinite."""
    if isinstance(tangent, float):
        return 0.0 if tangent == 0 else local if tangent == 1 else tangent * local
    if isinstance(local, float):
        return 0.0 if local == 0 else tangent * local
    product = tangent * local
    if local_infinite:
        product = torch.where(tangent == 0, 0.0, product)
    if infinite:
        product = torch.where(local == 0, 0.0, product)
    return product


class Formula(torch.autograd.Function):
    """A formula whose gradient comes from `Derivatives`. They are computed together with its value."""

    generate_vmap_rule = True

    @staticmethod
    def forward(derivatives: Derivatives, *values: Tensor) -> tuple[Tensor, ...]:
        """Return the value, and its derivative by each parameter, for the values of all names of the formula."""
        expression = derivatives.expression
        every = expression.values(dict(zip(expression.names, values, strict=True)))
        assert isinstance(expression.result, int)  # it has names
        result: Tensor = every[expression.result]
        # A derivative may be one of the arguments, of which autograd saves only views.
        slopes = (
            slope.view_as(slope) if isinstance(slope, Tensor) else result.new_full((), slope)
            for slope in derivatives.at(every)
        )
        return result, *slopes

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep the derivatives for the backward pass."""
        ctx.parameters = inputs[0].parameters
        ctx.shapes = [value.shape for value in inputs[1:]]
        ctx.save_for_backward(*output[1:])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """Return the gradient by each parameter, and None for every other argument."""
        result: list[Tensor | None] = [None] * (1 + len(ctx.shapes))
        for index, slope in zip(ctx.parameters, ctx.saved_tensors, strict=True):
            result[1 + index] = (gradient * slope).sum_to_size(ctx.shapes[index])
        return tuple(result)
