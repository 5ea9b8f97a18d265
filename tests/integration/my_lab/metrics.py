"""Metrics of a user's own: some that are used, and one for each mistake."""

from __future__ import annotations

import torch
from torch import Tensor


def relative(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the relative error [rows, targets]."""
    return ((prediction - target) / target).abs()


def within(prediction: Tensor, target: Tensor) -> Tensor:
    """Return [rows, 1] 1 where the largest error of a row is above 0.1, else 0."""
    return ((prediction - target).abs().amax(1, keepdim=True) > 0.1).to(target)


def of_row(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the absolute error [rows] of a row."""
    return (prediction - target).abs().mean(1)


def mean(prediction: Tensor, target: Tensor) -> Tensor:
    """Return a mean [], which does not add up."""
    return (prediction - target).abs().mean()


def to_spread(prediction: Tensor, target: Tensor) -> Tensor:
    """Return errors in units of the spread of the other rows."""
    return (prediction - target).abs() / target.std()


def rmse(prediction: Tensor, target: Tensor) -> Tensor:
    """Have the name of a metric that there is."""
    return (prediction - target).square()


def failing(prediction: Tensor, target: Tensor) -> Tensor:
    """Raise an error."""
    raise KeyError("no such column")


def exchanged(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Have the arguments in the order of scikit-learn."""
    return ((y_pred - y_true) / y_true).abs()


class Relative:
    """No function."""


alias = relative
sqrt = torch.sqrt
