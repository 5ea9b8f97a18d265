"""Losses against closed forms, and refusal of shapes that would broadcast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from runner.config import schema as c
from runner.errors import RunFailed
from runner.models import losses

MSE, MAE, HUBER = c.Mse(name="mse"), c.Mae(name="mae"), c.Huber(name="huber", delta=2.0)
PREDICTION = [1.0, -1.0, 5.0, 2.0]
TARGET = [0.0, 1.0, 2.0, 2.0]  # errors 1, −2, 3, 0


def _column(values: list[float], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype).unsqueeze(1)


@pytest.mark.parametrize(
    ("config", "mean"),
    [
        (MSE, (1 + 4 + 9 + 0) / 4),
        (MAE, (1 + 2 + 3 + 0) / 4),
        (HUBER, (1 / 2 + 4 / 2 + 2 * (3 - 1) + 0) / 4),  # e²/2, and beyond delta: delta·(|e| − delta/2)
    ],
)
def test_a_loss_is_the_mean_over_rows(config: Any, mean: float) -> None:
    loss = losses.build(config)(_column(PREDICTION), _column(TARGET), None)
    assert loss.shape == ()
    assert float(loss) == mean


@pytest.mark.parametrize(
    ("config", "slopes"),
    [(MSE, [2, -4, 6, 0]), (MAE, [1, -1, 1, 0]), (HUBER, [1, -2, 2, 0])],
)
def test_the_gradient_at_every_row(config: Any, slopes: list[float]) -> None:
    prediction = _column(PREDICTION).requires_grad_()
    (slope,) = torch.autograd.grad(losses.build(config)(prediction, _column(TARGET), None), prediction)
    assert slope.flatten().tolist() == [value / 4 for value in slopes]


@pytest.mark.parametrize("config", [MSE, MAE, HUBER])
def test_the_dtype_is_kept(config: Any) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert losses.build(config)(_column(PREDICTION, dtype), _column(TARGET, dtype), None).dtype == dtype


@pytest.mark.parametrize("shape", [(4,), (1, 4), (1, 1), (4, 2)])
def test_a_prediction_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(RunFailed) as caught:
        losses.build(MSE)(torch.zeros(shape), _column(TARGET), None)
    assert str(caught.value) == (
        f"the prediction must have the target's shape [4, 1], got {list(shape)}; return a number per row and target from the model"
    )
