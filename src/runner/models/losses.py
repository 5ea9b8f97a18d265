"""Losses: the mean over the rows of a batch, of prediction and target of equal shape."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from runner.config import schema as c
from runner.errors import RunFailed

Loss = Callable[[Tensor, Tensor], Tensor]
"""(prediction [rows, 1], target [rows, 1]) → mean loss []."""

_KINDS: dict[str, Any] = {
    "mse": torch.ops.aten.mse_loss.default,
    "mae": torch.ops.aten.l1_loss.default,
    "huber": torch.ops.aten.huber_loss.default,
}


def build(config: c.Mse | c.Mae | c.Huber) -> Loss:
    """The loss that was chosen.

    The operators themselves and not torch.nn.functional: its wrappers broadcast prediction and target first, which costs
    a step of a small model a tenth, forward and backward, and is what must not happen here.
    """
    kind = _KINDS[config.name]
    return _same_shapes(partial(kind, delta=config.delta) if isinstance(config, c.Huber) else kind)


def of_lanes(config: c.Mse | c.Mae | c.Huber) -> Loss:
    """The same loss for each lane alone: (prediction [lanes, rows, 1], target [lanes, rows, 1] or [rows, 1]) → [lanes]."""
    each = _KINDS[config.name] if not isinstance(config, c.Huber) else partial(_KINDS["huber"], delta=config.delta)

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        _refuse_other(prediction.shape[-2:], target.shape[-2:])
        errors: Tensor = each(prediction, target.expand_as(prediction), reduction=0)
        return errors.mean((-2, -1))

    return loss


def _same_shapes(mean: Loss) -> Loss:
    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        if prediction.shape != target.shape:
            _refuse_other(prediction.shape, target.shape)
        return mean(prediction, target)

    return loss


def _refuse_other(prediction: torch.Size, target: torch.Size) -> None:
    """Torch only warns and broadcasts [rows] against [rows, 1] to a [rows, rows] table of errors."""
    if prediction != target:
        raise RunFailed(
            f"the prediction must have the target's shape {list(target)}, but has {list(prediction)}; "
            "the model must give one number a row"
        )
