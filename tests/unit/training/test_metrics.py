"""Metrics equal their closed forms in numpy, for every chunk size, scaling and type."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from runner.compute import precision
from runner.compute.batch import Batch
from runner.compute.strategies.base import Single
from runner.config import schema as c
from runner.data.dataset import ResidentRows
from runner.data.scaling import Scaling
from runner.errors import RunFailed
from runner.models import losses
from runner.training import metrics
from runner.training.metrics import Best, Evaluation

CPU = torch.device("cpu")
X = np.linspace(-1.0, 2.0, 23)
Y = np.exp(0.7 * X) + 0.3 * np.sin(9 * X) + 2


@pytest.mark.parametrize("error", [MemoryError("bad"), torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")])  # fmt: skip
def test_an_evaluation_without_memory_is_named(error: Exception) -> None:
    def forward(features: Tensor) -> Tensor:
        raise error

    rows = ResidentRows(Batch(torch.zeros(3, 1), torch.zeros(3, 1)), torch.arange(3))
    loss, autocast = losses.build(c.Mse(name="mse")), precision.autocast("off", CPU)
    evaluation = Evaluation(Half(), forward, loss, autocast, lambda target: target, {"valid": rows}, Single(CPU), ["y"])
    for evaluate in (evaluation.metrics, evaluation.predictions):
        with pytest.raises(RunFailed, match=r"^out of memory in an evaluation, .*; make the model smaller"):
            evaluate("valid")


class Half(torch.nn.Module):
    """Half of the only feature plus one, with a dropout that must be off; records the rows of every call."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = torch.nn.Dropout(0.5)
        self.seen: list[int] = []
        self.gradients: list[bool] = []

    def forward(self, features: Tensor) -> Tensor:
        self.seen.append(len(features))
        self.gradients.append(torch.is_grad_enabled())
        dropped: Tensor = self.dropout(features)
        return 0.5 * dropped + 1


def _evaluation(
    target: Sequence[float] | np.ndarray = Y,
    scaling: Scaling | None = None,
    dtype: torch.dtype = torch.float64,
    amp: str = "off",
    loss: Any = None,
) -> Evaluation:
    """Return the evaluation of the model above on X. The target is scaled, the features are not."""
    truth = torch.tensor(np.asarray(target), dtype=torch.float64)
    features = torch.from_numpy(X[: len(truth)]).unsqueeze(1)
    scaling = scaling or Scaling.fit(features, truth, scaled=False, scales_target=False, log_target=False)
    rows = ResidentRows(
        Batch(features.to(dtype), scaling.target(truth).unsqueeze(1).to(dtype)), torch.arange(len(truth))
    )
    model = Half()
    return Evaluation(
        model=model,
        forward=model,
        loss=losses.build(loss or c.Mse(name="mse")),
        autocast=precision.autocast(amp, CPU),
        undo=scaling.undo,
        parts={"train": rows},
        strategy=Single(CPU),
        targets=["y"],
    )


def _expected(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    error = predicted - truth
    return {
        "rmse": float(np.sqrt(np.mean(error**2))),
        "mae": float(np.mean(np.abs(error))),
        "r2": float(1 - np.sum(error**2) / np.sum((truth - truth.mean()) ** 2)),
    }


def _close(one: dict[str, float], other: dict[str, float]) -> None:
    assert set(one) == set(other)
    # Sums of some twenty numbers near 1 in float64, in two orders.
    np.testing.assert_allclose(list(one.values()), [other[name] for name in one], rtol=1e-13)


def test_metrics_equal_their_closed_forms() -> None:
    expected = _expected(Y, 0.5 * X + 1)
    _close(_evaluation().metrics("train")[0], {**expected, "loss": expected["rmse"] ** 2})


def test_the_loss_is_the_training_loss() -> None:
    metrics = _evaluation(loss=c.Mae(name="mae")).metrics("train")[0]
    _close(metrics, {**_expected(Y, 0.5 * X + 1), "loss": float(np.mean(np.abs(Y - 0.5 * X - 1)))})


@pytest.mark.parametrize("log_target", [True, False])
@pytest.mark.parametrize("standardize", [True, False])
def test_loss_is_in_the_units_of_training_and_the_others_in_the_units_of_the_file(
    log_target: bool, standardize: bool
) -> None:
    truth = torch.from_numpy(Y)
    scaling = Scaling.fit(
        torch.from_numpy(X).unsqueeze(1), truth, scaled=standardize, scales_target=standardize, log_target=log_target
    )
    logs = np.log(Y) if log_target else Y
    mean, scale = (logs.mean(), logs.std(ddof=1)) if standardize else (0.0, 1.0)
    undone = (0.5 * X + 1) * scale + mean
    expected = _expected(Y, np.exp(undone) if log_target else undone)
    loss = float(np.mean((0.5 * X + 1 - (logs - mean) / scale) ** 2))
    _close(_evaluation(scaling=scaling).metrics("train")[0], {**expected, "loss": loss})


@pytest.mark.parametrize("chunk", [1, 5, 22, 23, 24])
def test_every_row_counts_once_for_any_chunk_size(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, predicted = _evaluation().metrics("train")[0], _evaluation().predictions("train")
    monkeypatch.setattr(metrics, "CHUNK_ROWS", chunk)
    parts = _evaluation()
    _close(parts.metrics("train")[0], whole)
    assert isinstance(parts.model, Half)
    assert parts.model.seen == [chunk] * (23 // chunk) + [23 % chunk] * (23 % chunk > 0)
    assert torch.equal(_evaluation().predictions("train"), predicted)


def test_a_target_far_from_zero_keeps_its_digits() -> None:
    far = Y + 1e8
    metrics = _evaluation(far).metrics("train")[0]
    # At 1e8 float64 resolves 1.5e-8; a sum of squares minus a square of sums would leave no digit of r2.
    np.testing.assert_allclose(metrics["r2"], _expected(far, 0.5 * X + 1)["r2"], rtol=1e-7)


@pytest.mark.parametrize("amp", ["off", "bfloat16"])
def test_sums_of_narrow_predictions_are_taken_in_float64(amp: str) -> None:
    metrics = _evaluation(dtype=torch.float32, amp=amp).metrics("train")[0]
    features, target = X.astype(np.float32).astype(np.float64), Y.astype(np.float32).astype(np.float64)
    # Only the prediction is rounded, to 24 bits: 1e-7 of numbers near 1, with errors of about 2.
    np.testing.assert_allclose(metrics["rmse"], _expected(target, 0.5 * features + 1)["rmse"], rtol=1e-7)
    np.testing.assert_allclose(metrics["mae"], _expected(target, 0.5 * features + 1)["mae"], rtol=1e-7)


def test_the_scaling_of_narrow_predictions_is_inverted_in_float64() -> None:
    scaling = Scaling.fit(
        torch.from_numpy(X).unsqueeze(1), torch.from_numpy(Y), scaled=True, scales_target=True, log_target=True
    )
    narrow = _evaluation(scaling=scaling, dtype=torch.bfloat16)
    truth = scaling.undo(narrow.parts["train"].all.target.double()).flatten().numpy()
    metrics = narrow.metrics("train")[0]
    expected = _expected(truth, narrow.predictions("train").flatten().numpy())
    _close({name: metrics[name] for name in expected}, expected)


@pytest.mark.parametrize("constant", [2.0, 0.1])  # the mean of three times 0.1 is rounded
def test_r2_of_a_constant_target_is_nan(constant: float) -> None:
    metrics = _evaluation([constant] * 3).metrics("train")[0]
    assert math.isnan(metrics["r2"])
    assert metrics["mae"] > 0


def test_a_perfect_prediction_has_r2_one() -> None:
    metrics = _evaluation(0.5 * X + 1).metrics("train")[0]
    assert metrics == {"loss": 0, "rmse": 0, "mae": 0, "r2": 1}


def test_predictions_are_in_the_units_of_the_file() -> None:
    truth = torch.from_numpy(Y)
    scaling = Scaling.fit(torch.from_numpy(X).unsqueeze(1), truth, scaled=True, scales_target=True, log_target=True)
    predicted = _evaluation(scaling=scaling, dtype=torch.float32).predictions("train")
    assert (predicted.dtype, predicted.shape) == (torch.float64, (23, 1))
    logs = np.log(Y)
    expected = np.exp((0.5 * X + 1) * logs.std(ddof=1) + logs.mean())
    # The prediction is float32 and its scaling is inverted in float64: 1e-7 of a logarithm near 1.
    np.testing.assert_allclose(predicted.flatten().numpy(), expected, rtol=3e-7)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("evaluate", [lambda e: e.metrics("train")[0], lambda e: e.predictions("train")])
def test_dropout_is_off_and_the_mode_is_restored(training: bool, evaluate: Callable[[Evaluation], Any]) -> None:
    evaluated = _evaluation()
    evaluated.model.train(training)
    evaluate(evaluated)
    assert evaluated.model.training is training
    assert [module.training for module in evaluated.model.modules()] == [training] * 2
    assert isinstance(evaluated.model, Half)
    assert evaluated.model.gradients == [False]
    assert torch.is_grad_enabled()


def test_the_mode_is_restored_after_an_error() -> None:
    evaluated = dataclasses.replace(_evaluation(), forward=lambda features: features[:, 0])
    evaluated.model.train()
    with pytest.raises(RunFailed, match="the prediction must have the target's shape"):
        evaluated.metrics("train")[0]
    assert evaluated.model.training
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("metric", "values", "better"),
    [
        ("rmse", [3.0, 2.0, 2.5, 2.0, 1.0], [True, True, False, False, True]),
        ("r2", [0.1, 0.5, 0.4, 0.5, 0.9], [True, True, False, False, True]),
        ("loss", [math.nan, math.inf, 5.0, math.nan, 4.0], [False, False, True, False, True]),
    ],
)
def test_the_best_value_follows_the_direction_of_the_metric(
    metric: str, values: list[float], better: list[bool]
) -> None:
    best = Best(metric)
    assert [best.update(value, step) for step, value in enumerate(values)] == better
    assert best.value == values[-1]
    assert best.waited == 0


def test_an_improvement_must_exceed_min_delta() -> None:
    best = Best("loss", min_delta=0.5)
    assert [best.update(value, step) for step, value in enumerate((4.0, 3.5, 3.75, 3.25))] == [True, False, False, True]
    best.update(3.0, 4)
    assert (best.value, best.step, best.waited) == (3.25, 3, 1)


def test_the_best_value_resumes_from_its_state() -> None:
    first = Best("rmse")
    for step, value in enumerate((2.0, 3.0, 4.0)):
        first.update(value, step)
    second = Best("rmse")
    second.load_state_dict(first.state_dict())
    assert (second.value, second.step, second.waited) == (2.0, 0, 2)
    assert not second.update(2.5, 3)
    assert second.waited == 3
