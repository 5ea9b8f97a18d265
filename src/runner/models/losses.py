"""Losses: weighted means over the rows and targets of a batch, for predictions and targets of the same shape.

The weights have mean 1 over the training rows, so the sum of weighted losses is divided by the number of rows and targets.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from runner.config import schema as c
from runner.errors import RunFailed

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Function of (prediction [rows, targets], target [rows, targets], weight [rows, 1] or None) that returns the mean loss []."""

Cost = Callable[..., Tensor]
"""Function of (prediction, target, reduction = 1), as in `torch.ops.aten`, whose arguments are […, rows, targets].

0 returns the loss of each number, or of each row […, rows, 1]; 1 returns their mean [].
"""

# These are the operators of torch.ops.aten, not torch.nn.functional. The wrappers there broadcast prediction and target, which
# must not happen here and takes a tenth of the time of a small model's step, forward and backward.


def mse(config: c.Mse) -> Cost:
    """Return the squared error."""
    return torch.ops.aten.mse_loss.default


def mae(config: c.Mae) -> Cost:
    """Return the absolute error."""
    return torch.ops.aten.l1_loss.default


def huber(config: c.Huber) -> Cost:
    """Return the Huber loss: squared errors up to delta, absolute errors beyond it (Huber, 1964)."""
    return partial(torch.ops.aten.huber_loss.default, delta=config.delta)


def build(config: c.LossConfig) -> Loss:
    """Return the configured loss of one run. It raises `RunFailed` if prediction and target differ in shape."""
    cost: Cost = config.build()

    def loss(prediction: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        if prediction.shape != target.shape:
            _require_same_shape(prediction.shape, target.shape)
        if weight is None:
            return cost(prediction, target)
        return (cost(prediction, target, 0) * weight).mean()

    return loss


def build_lanes(config: c.LossConfig) -> Loss:
    """Return the configured loss of vmapped runs, one mean per lane [lanes].

    Its arguments are prediction [lanes, rows, targets], and target and weight [rows, …], with lanes in front if they differ.
    """
    cost: Cost = config.build()

    def loss(prediction: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        _require_same_shape(prediction.shape[-2:], target.shape[-2:])
        errors = cost(prediction, target.expand_as(prediction), 0)
        return (errors if weight is None else errors * weight).mean((-2, -1))

    return loss


def _require_same_shape(prediction: torch.Size, target: torch.Size) -> None:
    # Torch would only warn, and broadcast [rows] and [rows, 1] to errors [rows, rows].
    if prediction != target:
        raise RunFailed(
            f"the prediction must have the target's shape {list(target)}, got {list(prediction)}; "
            "return a number per row and target from the model"
        )
