"""Models as graphs of ONNX: what each module makes of its inputs, and the scale of its targets."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import reduce, singledispatch
from io import StringIO

import numpy as np
import torch
from torch import Tensor, nn

from runner.commands.export.graph import OPSET, Value, concatenated
from runner.config import imports
from runner.data.scaling import Scaling
from runner.errors import ConfigError
from runner.models.custom import Custom
from runner.models.formula import FormulaModel
from runner.models.linear import PolynomialModel
from runner.models.mlp import Embeddings

DOUBLE, INTEGER = np.dtype(np.float64), np.dtype(np.int64)


@singledispatch
def predicted(module: nn.Module, *inputs: Value) -> Value:
    """Return what a module makes of its inputs, each [rows, columns]. Raises `ConfigError` for one that is not known here."""
    raise ConfigError(
        f"`--format onnx` must have a model of layers that it knows, got one with {type(module).__name__}; use --format safetensors"
    )


@predicted.register
def _custom(module: Custom, *inputs: Value) -> Value:
    """Return the predictions of the user's own module, which torch itself exports."""
    parameter = next(module.parameters())
    rows = torch.zeros(_TRACED_ROWS, module.numbers, dtype=parameter.dtype)
    codes = torch.zeros(_TRACED_ROWS, len(module.cardinalities), dtype=torch.int64)
    arguments = (rows, codes)[: len(inputs)]
    try:
        with _quietly():
            found = torch.onnx.export(
                module.eval(),
                arguments,
                opset_version=OPSET,
                dynamic_shapes=tuple({0: torch.export.Dim.DYNAMIC} for _ in arguments),
                external_data=False,
                verbose=False,
            )
    except ImportError as error:
        raise ConfigError(
            f'`--format onnx` needs {error.name} for a model of your own, which is not installed; pip install "runner[export]", '
            "or use --format safetensors"
        ) from None
    except Exception as error:  # torch has an error of its own for each thing that it cannot export
        raise ConfigError(
            f"`--format onnx` must have a model that torch can export, but {module.target.text} is none "
            f"({imports.described(error)[:300]}); use --format safetensors"
        ) from None
    assert found is not None
    return inputs[0].graph.inlined(found.model_proto, inputs, np.dtype(str(parameter.dtype).removeprefix("torch.")))


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep back what torch reports of its progress, and of packages that are not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


_TRACED_ROWS = 3
"""Rows of the inputs that torch follows through a module; their number stays free."""


@predicted.register
def _linear(module: nn.Linear, inputs: Value) -> Value:
    parameters = [module.weight] if module.bias is None else [module.weight, module.bias]
    return inputs.node("Gemm", *(_constant(inputs, parameter) for parameter in parameters), transB=1)


@predicted.register
def _sequential(module: nn.Sequential, *inputs: Value) -> Value:
    first, *others = module
    return reduce(lambda values, layer: predicted(layer, values), others, predicted(first, *inputs))


@predicted.register
def _embeddings(module: Embeddings, *inputs: Value) -> Value:
    """Return the numbers, if there are any, with the vectors of the codes behind them."""
    *numbers, codes = inputs
    weights = [parameter.detach().numpy() for parameter in module.parameters()]
    tables = [codes.graph.constant(weight, weight.dtype) for weight in weights]
    vectors = [
        table.node("Gather", codes.column(place), axis=0).node("Flatten", axis=1) for place, table in enumerate(tables)
    ]
    return concatenated([*numbers, *vectors])


@predicted.register
def _polynomial(module: PolynomialModel, inputs: Value) -> Value:
    powers = inputs.graph.constant(module.get_buffer("powers").numpy(), inputs.dtype)
    axis = inputs.graph.constant([2], INTEGER)
    return predicted(module.linear, (inputs.node("Unsqueeze", axis) ** powers).node("Flatten", axis=1))


@predicted.register
def _formula(module: FormulaModel, inputs: Value) -> Value:
    values: dict[str, Value] = {name: _constant(inputs, parameter) for name, parameter in module.named_parameters()}
    values |= {name: inputs.column(place) for name, place in module.columns.items()}
    found: list[Value] = [derivatives.expression(values) for derivatives in module.derivatives]
    return concatenated(found)


@predicted.register
def _dropout(module: nn.Dropout, inputs: Value) -> Value:
    return inputs


@predicted.register
def _relu(module: nn.ReLU, inputs: Value) -> Value:
    return inputs.node("Relu")


@predicted.register
def _tanh(module: nn.Tanh, inputs: Value) -> Value:
    return inputs.tanh()


@predicted.register
def _sigmoid(module: nn.Sigmoid, inputs: Value) -> Value:
    return inputs.node("Sigmoid")


@predicted.register
def _silu(module: nn.SiLU, inputs: Value) -> Value:
    return inputs * inputs.node("Sigmoid")


@predicted.register
def _gelu(module: nn.GELU, inputs: Value) -> Value:
    return inputs * 0.5 * (1 + (inputs * math.sqrt(0.5)).erf())


def _constant(inputs: Value, parameter: Tensor) -> Value:
    return inputs.graph.constant(parameter.detach().numpy(), inputs.dtype)


def unscaled(scaling: Scaling, prediction: Value) -> Value:
    """Return predictions in the units of the file, as `Scaling.undo`."""
    mean, scale = _moments(scaling, prediction)
    values = prediction * scale + mean
    return values.exp() if scaling.log_target else values


def scaled(scaling: Scaling, target: Value) -> Value:
    """Return targets in the units of the file as the model scales them, as `Scaling.target`."""
    mean, scale = _moments(scaling, target)
    return ((target.log() if scaling.log_target else target) - mean) / scale


def _moments(scaling: Scaling, value: Value) -> list[Value]:
    return [value.graph.constant([part.tolist()], value.dtype) for part in (scaling.target_mean, scaling.target_scale)]
