"""Losses: the mean over the rows of a batch, of prediction and target of equal shape."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from runner import config as c
from runner.errors import RunFailed

Loss = Callable[[Tensor, Tensor], Tensor]
"""(prediction [rows, 1], target [rows, 1]) → mean loss []."""


def build(config: c.Mse | c.Mae | c.Huber) -> Loss:
    """The loss that was chosen.

    The operators themselves and not torch.nn.functional: its wrappers broadcast prediction and target first, which costs
    a step of a small model a tenth, forward and backward, and is what must not happen here.
    """
    if isinstance(config, c.Huber):
        return _same_shapes(partial(torch.ops.aten.huber_loss.default, delta=config.delta))
    return _same_shapes({"mse": torch.ops.aten.mse_loss.default, "mae": torch.ops.aten.l1_loss.default}[config.name])


def _same_shapes(mean: Loss) -> Loss:
    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        # torch only warns and broadcasts [rows] against [rows, 1] to a [rows, rows] table of errors.
        if prediction.shape != target.shape:
            raise RunFailed(
                f"the prediction must have the target's shape {list(target.shape)}, but has {list(prediction.shape)}; "
                "the model must give one number a row"
            )
        return mean(prediction, target)

    return loss
