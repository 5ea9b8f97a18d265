"""Metrics over a whole part of the data. They are added up as sums and weights, and the mean is taken once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from runner.compute.batch import Batch
from runner.compute.precision import widest
from runner.compute.strategies.base import Loss, Strategy
from runner.data.base import Rows
from runner.errors import RunFailed
from runner.training.failures import is_out_of_memory

NEEDS_SPREAD = ("r2",)
"""Metrics without a value where all targets are equal."""

CHUNK_ROWS = 65_536
"""Rows of one forward pass in an evaluation. Bounds its memory, and is the same on every device."""

LARGER_IS_BETTER = {"loss": False, "rmse": False, "mae": False, "r2": True}
"""Name of a metric → whether larger values are better."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics and predictions of a model: the loss in the units of training, all others in the units of the file."""

    model: torch.nn.Module
    forward: Callable[[Tensor], Tensor]
    """Features → predictions as the model scales them."""
    loss: Loss
    autocast: Callable[[], Any]
    undo: Callable[[Tensor], Tensor]
    """Inverse of the target's scaling."""
    parts: Mapping[str, Rows]
    strategy: Strategy

    def metrics(self, part: str) -> list[dict[str, float]]:
        """Return for each lane the loss, rmse, mae and r2 of one part, by these names. r2 is nan for a constant target.

        All are means by the weights of the rows. Every process must call it.
        """
        rows = self.parts[part]
        count, (_, target, weight) = len(rows), rows.all
        wide = widest(target.device)
        truth = self.undo(target.to(wide))
        # A constant target has no spread; its rounded mean would give it one.
        low, high = _range(truth)
        center = torch.where(low < high, _mean(truth, weight), low)
        sums: Any = 0
        with _EvaluationMode(self.model):
            for first in range(0, count, CHUNK_ROWS):
                portions = self.strategy.portions(min(CHUNK_ROWS, count - first))
                batches = [rows.take(slice(first + portion.first, first + portion.last)) for portion in portions]
                sums = sums + self.strategy.reduce([self._sums(batch, center) for batch in batches])
        return [_metrics(*lane) for lane in zip(*sums.reshape(5, -1).tolist(), strict=True)]

    def predictions(self, part: str) -> Tensor:
        """Return the predictions [rows] of one part in the units of the file, float64 on the CPU."""
        rows = self.parts[part]
        chunks = range(0, len(rows), CHUNK_ROWS)
        with _EvaluationMode(self.model):
            return torch.cat([self.predict(rows.take(slice(i, i + CHUNK_ROWS)).numbers) for i in chunks])

    def predict(self, features: Tensor) -> Tensor:
        """Return predictions [rows] in the units of the file, float64 on the CPU, for scaled features [rows, columns]."""
        with _EvaluationMode(self.model):
            return self.undo(self._forward(features).cpu().double()).flatten()

    def _sums(self, rows: Batch, center: Tensor) -> Tensor:
        """Return weighted sums [5] or [5, lanes] over these rows.

        They are loss, squared error, absolute error, squared distance from the center, and the weights themselves.
        """
        numbers, target, weight = rows
        prediction, count = self._forward(numbers), target.shape[-2]
        with self.autocast():
            loss = self.loss(prediction, target, weight) if count else prediction.sum()  # the mean of no rows is nan
        wide = center.dtype
        truth = self.undo(target.to(wide))
        error = self.undo(prediction.to(wide)) - truth
        terms = [error.square(), error.abs(), (truth - center).square()]
        if weight is not None:
            weight = weight.to(wide)
            terms = [term * weight for term in terms]
        total = torch.full_like(loss, count, dtype=wide) if weight is None else weight.sum((-2, -1))
        sums = [loss.to(wide) * count, *(term.sum((-2, -1)) for term in terms), total]
        return torch.stack([part.expand(loss.shape) for part in sums])

    def _forward(self, features: Tensor) -> Tensor:
        with self.autocast():
            return self.forward(features)


def has_no_spread(rows: Rows, undo: Callable[[Tensor], Tensor]) -> bool:
    """Return whether all targets of these rows are equal in the units of the file, such as those of a single row."""
    target = rows.all.target
    low, high = _range(undo(target.to(widest(target.device))))
    return bool((low == high).all())


def _range(truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest target of each lane."""
    return truth.amin((-2, -1), keepdim=True), truth.amax((-2, -1), keepdim=True)


def _mean(truth: Tensor, weight: Tensor | None) -> Tensor:
    """Return the mean target of each lane by the weights."""
    if weight is None:
        return truth.mean((-2, -1), keepdim=True)
    weight = weight.to(truth)
    return (truth * weight).sum((-2, -1), keepdim=True) / weight.sum((-2, -1), keepdim=True)


def _metrics(loss: float, squares: float, absolute: float, spread: float, total: float) -> dict[str, float]:
    r2 = 1 - squares / spread if spread > 0 else float("nan")
    return {"loss": loss / total, "rmse": (squares / total) ** 0.5, "mae": absolute / total, "r2": r2}


class _EvaluationMode:
    """Context without gradients and with the model in evaluation mode; the previous mode is restored afterwards."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model, self._no_grad = model, torch.no_grad()

    def __enter__(self) -> None:
        self._training = self._model.training
        self._model.eval()
        self._no_grad.__enter__()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._no_grad.__exit__(kind, error, trace)
        self._model.train(self._training)
        if is_out_of_memory(error):
            raise RunFailed(
                f"out of memory in an evaluation, which takes up to {CHUNK_ROWS:,} rows at a time whatever `train.batch_size` is; "
                f"make the model smaller ({' '.join(str(error).split())[:200]})"
            ) from error


class Best:
    """The best value of one metric so far, and the number of evaluations since it improved."""

    def __init__(self, metric: str, min_delta: float = 0.0) -> None:
        self.metric, self._min_delta = metric, min_delta
        self._sign = -1.0 if LARGER_IS_BETTER[metric] else 1.0
        self.value: float | None = None
        self.waited = 0

    def update(self, value: float) -> bool:
        """Count a value, and return whether it is better than the best so far by more than `min_delta`."""
        better = math.isfinite(value) and (self.value is None or self._sign * (self.value - value) > self._min_delta)
        self.value = value if better else self.value
        self.waited = 0 if better else self.waited + 1
        return better

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and the number of evaluations since."""
        return {"value": self.value, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self.value, self.waited = state["value"], state["waited"]
