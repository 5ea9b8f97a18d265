"""Losses: the mean over the rows of a batch, of prediction and target of equal shape."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from runner.config import schema as c
from runner.errors import RunFailed

Loss = Callable[[Tensor, Tensor], Tensor]
"""(prediction [rows, 1], target [rows, 1]) → mean loss []."""

Cost = Callable[..., Tensor]
"""(prediction, target, reduction) → the cost of each row (reduction 0) or their mean (1), as in `torch.ops.aten`.

The operators themselves and not torch.nn.functional: its wrappers broadcast prediction and target first, which costs a step
of a small model a tenth, forward and backward, and is what must not happen here.
"""

MEAN = 1
"""Torch's number for the reduction to a mean."""


def mse(config: c.Mse) -> Cost:
    """Squared errors."""
    return torch.ops.aten.mse_loss.default


def mae(config: c.Mae) -> Cost:
    """Absolute errors."""
    return torch.ops.aten.l1_loss.default


def huber(config: c.Huber) -> Cost:
    """Squared errors near zero, absolute ones beyond delta."""
    return partial(torch.ops.aten.huber_loss.default, delta=config.delta)


def build(config: c.LossConfig) -> Loss:
    """The loss that was chosen."""
    cost: Cost = config.build()

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        if prediction.shape != target.shape:
            _refuse_other(prediction.shape, target.shape)
        return cost(prediction, target)

    return loss


def build_lanes(config: c.LossConfig) -> Loss:
    """The same loss for each lane alone: (prediction [lanes, rows, 1], target [lanes, rows, 1] or [rows, 1]) → [lanes]."""
    cost: Cost = config.build()

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        _refuse_other(prediction.shape[-2:], target.shape[-2:])
        errors = cost(prediction, target.expand_as(prediction), 0)
        return errors.mean((-2, -1))

    return loss


def _refuse_other(prediction: torch.Size, target: torch.Size) -> None:
    """Torch only warns and broadcasts [rows] against [rows, 1] to a [rows, rows] table of errors."""
    if prediction != target:
        raise RunFailed(
            f"the prediction must have the target's shape {list(target)}, but has {list(prediction)}; "
            "the model must give one number a row"
        )
