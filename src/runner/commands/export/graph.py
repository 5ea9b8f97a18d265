"""A graph of ONNX that is built by computing: a value of the graph has the operators and methods of a tensor.

So what computes with tensors, such as a formula, makes the graph when it is given values of it. Operators are those of opset 20,
and of version 3 of ai.onnx.ml, which have runtimes of many languages; `docs` of ONNX: https://onnx.ai/onnx/operators/.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

OPSET, ML_OPSET, IR_VERSION = 20, 3, 10
ML = "ai.onnx.ml"
ROWS = "rows"
"""Name of the number of rows, which may be any."""

Number = float | int


class Graph:
    """Inputs, constants and nodes of a graph. `reserved` are the names of its inputs and outputs."""

    def __init__(self, reserved: Collection[str]) -> None:
        self._reserved = frozenset(reserved)
        self._count = 0
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._constants: list[Any] = []
        self._nodes: list[Any] = []

    def input(self, name: str, dtype: type) -> Value:
        """Return an input [rows, 1] of a dtype of numpy, str for texts."""
        self._inputs.append(self._described(name, dtype))
        return Value(self, name, np.dtype(dtype))

    def output(self, name: str, value: Value) -> None:
        """Make a value [rows, 1] an output."""
        from onnx import helper

        self._nodes.append(helper.make_node("Identity", [value.name], [name]))
        self._outputs.append(self._described(name, value.dtype.type))

    def constant(self, values: Any, dtype: np.dtype[Any]) -> Value:
        """Return a constant of a dtype of numpy."""
        from onnx import helper, numpy_helper

        name, array = self._name("constant"), np.asarray(values, dtype)
        if dtype.kind == "U":
            from onnx import TensorProto

            texts = [text.encode() for text in array.reshape(-1).tolist()]
            self._constants.append(helper.make_tensor(name, TensorProto.STRING, array.shape, texts))
        else:
            self._constants.append(numpy_helper.from_array(array, name))
        return Value(self, name, array.dtype)

    def node(
        self, op: str, inputs: Sequence[Value], dtype: np.dtype[Any], domain: str = "", **attributes: Any
    ) -> Value:
        """Return the result of a node, whose dtype is given."""
        from onnx import helper

        name = self._name(op)
        names = [value.name for value in inputs]
        self._nodes.append(helper.make_node(op, names, [name], name=f"{name} node", domain=domain, **attributes))
        return Value(self, name, dtype)

    def inlined(self, model: Any, inputs: Sequence[Value], dtype: np.dtype[Any]) -> Value:
        """Return the one output, of the given dtype, of another model of ONNX for these inputs. Its nodes become nodes of this graph."""
        import onnx
        from onnx import compose, helper, inliner

        prefix = self._name("model") + "/"
        own = compose.add_prefix(inliner.inline_local_functions(model), prefix)
        onnx.checker.check_model(own)
        for value, place in zip(inputs, own.graph.input, strict=True):
            self._nodes.append(helper.make_node("Identity", [value.name], [place.name]))
        self._nodes += own.graph.node
        self._constants += own.graph.initializer
        return Value(self, own.graph.output[0].name, dtype)

    def model(self, metadata: dict[str, str]) -> Any:
        """Return the checked model of ONNX with inputs and outputs in the order in which they were made."""
        import onnx
        from onnx import helper

        graph = helper.make_graph(self._nodes, "prediction", self._inputs, self._outputs, self._constants)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(ML, ML_OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="runner")
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(model, full_check=True)
        return model

    def _described(self, name: str, dtype: type) -> Any:
        from onnx import TensorProto, helper

        kind = TensorProto.STRING if dtype in (str, np.str_) else helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return helper.make_tensor_value_info(name, kind, [ROWS, 1])

    def _name(self, op: str) -> str:
        """Return a name that nothing has: a column may have any name."""
        while True:
            self._count += 1
            name = f"{op}.{self._count}"
            if name not in self._reserved:
                return name


class Value:
    """A value of a graph, with the operators and methods of a tensor that are used here."""

    def __init__(self, graph: Graph, name: str, dtype: np.dtype[Any]) -> None:
        self.graph, self.name, self.dtype = graph, name, dtype

    def node(
        self, op: str, *others: Value | Number, dtype: np.dtype[Any] | None = None, domain: str = "", **attributes: Any
    ) -> Value:
        """Return the result of a node with this value as its first input, of the same dtype unless one is given."""
        inputs = [self, *(other if isinstance(other, Value) else self.new_full((), other) for other in others)]
        return self.graph.node(op, inputs, dtype or self.dtype, domain, **attributes)

    def new_full(self, shape: tuple[int, ...], value: Number) -> Value:
        """Return a constant of the same dtype."""
        return self.graph.constant(np.full(shape, value), self.dtype)

    def to(self, dtype: np.dtype[Any]) -> Value:
        """Return the value in another dtype."""
        from onnx import helper

        if dtype == self.dtype:
            return self
        return self.node("Cast", dtype=dtype, to=helper.np_dtype_to_tensor_dtype(dtype))

    def column(self, place: int) -> Value:
        """Return a column [rows, 1] of a matrix [rows, columns]."""
        places = self.graph.constant([place], np.dtype(np.int64))
        return self.node("Gather", places, axis=1)

    def __add__(self, other: Value | Number) -> Value:
        return self.node("Add", other)

    def __sub__(self, other: Value | Number) -> Value:
        return self.node("Sub", other)

    def __mul__(self, other: Value | Number) -> Value:
        return self.node("Mul", other)

    def __truediv__(self, other: Value | Number) -> Value:
        return self.node("Div", other)

    def __pow__(self, other: Value | Number) -> Value:
        return self.node("Pow", other)

    def __radd__(self, other: Number) -> Value:
        return self.new_full((), other) + self

    def __rsub__(self, other: Number) -> Value:
        return self.new_full((), other) - self

    def __rmul__(self, other: Number) -> Value:
        return self.new_full((), other) * self

    def __rtruediv__(self, other: Number) -> Value:
        return self.new_full((), other) / self

    def __rpow__(self, other: Number) -> Value:
        return self.new_full((), other) ** self

    def __neg__(self) -> Value:
        return self.node("Neg")

    def __abs__(self) -> Value:
        return self.node("Abs")

    def __lt__(self, other: Value | Number) -> Value:
        return self._compared("Less", other)

    def __le__(self, other: Value | Number) -> Value:
        return self._compared("LessOrEqual", other)

    def __gt__(self, other: Value | Number) -> Value:
        return self._compared("Greater", other)

    def __ge__(self, other: Value | Number) -> Value:
        return self._compared("GreaterOrEqual", other)

    def __eq__(self, other: Value | Number) -> Value:  # type: ignore[override]
        return self._compared("Equal", other)

    def __ne__(self, other: Value | Number) -> Value:  # type: ignore[override]
        return self._compared("Equal", other).node("Not")

    __hash__ = object.__hash__

    def __or__(self, other: Value) -> Value:
        return self.node("Or", other)

    def _compared(self, op: str, other: Value | Number) -> Value:
        return self.node(op, other, dtype=np.dtype(np.bool_))

    def isnan(self) -> Value:
        """Return where the value is nan."""
        return self.node("IsNaN", dtype=np.dtype(np.bool_))

    def where(self, condition: Value, other: Value | Number) -> Value:
        """Return the value where a condition holds, and another one elsewhere."""
        other = other if isinstance(other, Value) else self.new_full((), other)
        return self.graph.node("Where", [condition, self, other], self.dtype)

    def maximum(self, other: Value) -> Value:
        """Return the larger of two values."""
        return self.node("Max", other)

    def minimum(self, other: Value) -> Value:
        """Return the smaller of two values."""
        return self.node("Min", other)

    def clamp(self, min: Number | None = None, max: Number | None = None) -> Value:  # noqa: A002 - the names of torch
        """Return the value with bounds."""
        bounded = self if min is None else self.node("Max", min)
        return bounded if max is None else bounded.node("Min", max)

    def floor(self) -> Value:
        """Return the largest integer that is not above the value."""
        return self.node("Floor")

    def sign(self) -> Value:
        """Return -1, 0 or 1."""
        return self.node("Sign")

    def sqrt(self) -> Value:
        """Return the square root."""
        return self.node("Sqrt")

    def exp(self) -> Value:
        """Return e to the power of the value."""
        return self.node("Exp")

    def expm1(self) -> Value:
        """Return exp(x) − 1 without cancellation near 0."""
        half = (self * 0.5).tanh()
        return (half * (self.exp() + 1)).where(abs(self) < 1, self.exp() - 1)

    def log(self) -> Value:
        """Return the natural logarithm."""
        return self.node("Log")

    def log1p(self) -> Value:
        """Return log(1 + x) without cancellation near 0, by Kahan's method: the rounding of 1 + x is divided out again."""
        whole = self + 1
        rounded = whole - 1
        near = whole.log() * self / rounded
        return self.where(rounded == 0, near.where(abs(self) < 1, whole.log()))

    def log2(self) -> Value:
        """Return the logarithm to the base 2."""
        return self.log() / math.log(2)

    def log10(self) -> Value:
        """Return the logarithm to the base 10."""
        return self.log() / math.log(10)

    def sin(self) -> Value:
        """Return the sine."""
        return self.node("Sin")

    def cos(self) -> Value:
        """Return the cosine."""
        return self.node("Cos")

    def tan(self) -> Value:
        """Return the tangent."""
        return self.sin() / self.cos()

    def asin(self) -> Value:
        """Return the inverse sine."""
        return self.node("Asin")

    def acos(self) -> Value:
        """Return the inverse cosine."""
        return self.node("Acos")

    def atan(self) -> Value:
        """Return the inverse tangent."""
        return self.node("Atan")

    def sinh(self) -> Value:
        """Return the hyperbolic sine."""
        return (self.expm1() - (-self).expm1()) * 0.5

    def cosh(self) -> Value:
        """Return the hyperbolic cosine."""
        return (self.exp() + (-self).exp()) * 0.5

    def tanh(self) -> Value:
        """Return the hyperbolic tangent."""
        return self.node("Tanh")

    def erf(self) -> Value:
        """Return the error function."""
        return self.node("Erf")

    def erfc(self) -> Value:
        """Return 1 − erf(x)."""
        return 1 - self.erf()


def concatenated(values: Sequence[Value]) -> Value:
    """Return columns [rows, …] side by side."""
    first, *others = values
    return first.node("Concat", *others, axis=1) if others else first
