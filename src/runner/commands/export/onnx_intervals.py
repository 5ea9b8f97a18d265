"""Intervals in a graph of ONNX, as `runner.training.intervals` and `runner.training.bands` compute them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import reduce

from torch import nn

from runner.commands.export.graph import Value
from runner.commands.export.onnx_modules import DOUBLE, INTEGER, predicted, scaled, unscaled
from runner.data.preprocessing import Preprocessing
from runner.errors import ConfigError
from runner.models.base import Model
from runner.models.linear import LinearModel, PolynomialModel
from runner.training.bands import Bands
from runner.training.intervals import Intervals
from runner.training.trained import Trained


def names(fitted: Preprocessing) -> list[str]:
    """Return the names of the outputs: the lower ends of all targets, and then the upper ones.

    Raises `ConfigError` if a column has the name of one.
    """
    found = [f"{target}_{end}" for end in ("lower", "upper") for target in fitted.target_names]
    taken = [name for name in found if name in (*fitted.kinds, *fitted.target_names)]
    if taken:
        raise ConfigError(
            f"`--interval` makes outputs whose names no column must have, got {', '.join(taken)}; train a new run with data.rename"
        )
    return found


def ends(
    intervals: Intervals | Bands, first: Trained, predictions: Sequence[Value], mean: Value, inputs: Sequence[Value]
) -> tuple[Value, Value]:
    """Return the ends (low, high) of intervals, each [rows, targets], in the units of the file.

    `predictions` are those of each model, `mean` is their mean, and `first` is the first model, with its inputs. Raises `ConfigError`
    for bands of a model that is not linear in its parameters.
    """
    scaling = first.preprocessing.scaling
    if isinstance(intervals, Bands):
        variance = _variance(first.model(), intervals, *inputs)
        half = (variance + 1).sqrt() * intervals.reach
    else:
        half = mean.graph.constant([intervals.reach.tolist()], DOUBLE)
        if len(predictions) > 1:
            half = half * _difficulty([scaled(scaling, each) for each in predictions], intervals)
    center = scaled(scaling, mean)
    return unscaled(scaling, center - half), unscaled(scaling, center + half)


def _difficulty(predictions: Sequence[Value], intervals: Intervals) -> Value:
    """Return what the models disagree by, with their errors in the training rows, [rows, targets]."""
    mean = reduce(operator.add, predictions) / len(predictions)
    squares = [(each - mean) * (each - mean) for each in predictions]
    variance = reduce(operator.add, squares) / (len(predictions) - 1)
    expected = (variance + mean.graph.constant([intervals.noise.tolist()], DOUBLE)).sqrt()
    return expected.where(expected > 0, 1)


def _variance(model: Model, bands: Bands, inputs: Value) -> Value:
    """Return the variance of the predictions over that of the noise, [rows, 1]: ‖j·R⁻¹‖² for their derivatives j."""
    if not isinstance(model, LinearModel | PolynomialModel):
        raise ConfigError(
            "`--interval` must be of a linear or polynomial model, or by rows of data.split.calibrate, in a file of ONNX, got "
            "Student's t for another model; use --format safetensors, or train a new run with data.split.calibrate=0.2"
        )
    # The derivatives are what the layer multiplies by its weights and its bias, so j·R⁻¹ is the layer with R⁻¹ for these.
    layer = model.linear if isinstance(model, PolynomialModel) else model
    inverted = bands.covariance.inverted
    layer.weight = nn.Parameter(inverted[: layer.in_features].T)
    if layer.bias is not None:
        layer.bias = nn.Parameter(inverted[layer.in_features])
    rooted = predicted(model, inputs.to(DOUBLE))
    return (rooted * rooted).node("ReduceSum", rooted.graph.constant([1], INTEGER), keepdims=1)
