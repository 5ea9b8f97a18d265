"""Metrics over a whole part of the data, as sums and counts: the mean is taken once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from runner.compute.precision import widest
from runner.compute.strategies.base import Strategy
from runner.data.base import Rows

CHUNK_ROWS = 65_536
"""Rows of one forward pass in an evaluation: bounds memory, and is the same on every device."""

LARGER_IS_BETTER = {"loss": False, "rmse": False, "mae": False, "r2": True}


@dataclass(frozen=True)
class Evaluation:
    """Loss in the units trained in; rmse, mae and r2 in the units of the file."""

    model: torch.nn.Module
    forward: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    autocast: Callable[[], Any]
    undo: Callable[[Tensor], Tensor]
    parts: Mapping[str, Rows]
    strategy: Strategy

    def metrics(self, part: str) -> list[dict[str, float]]:
        """For each lane loss, rmse, mae and r2 of one part, by these names; r2 is nan for a constant target."""
        rows = self.parts[part]
        count = rows.target.shape[-2]
        wide = widest(rows.target.device)
        truth = self.undo(rows.target.to(wide))
        # A constant target has no spread; its rounded mean would give it one.
        low, high = truth.amin((-2, -1), keepdim=True), truth.amax((-2, -1), keepdim=True)
        center = torch.where(low < high, truth.mean((-2, -1), keepdim=True), low)
        sums: Any = 0
        with self._inference():
            for first in range(0, count, CHUNK_ROWS):
                portions = self.strategy.portions(min(CHUNK_ROWS, count - first))
                taken = [rows.take(slice(first + portion.first, first + portion.last)) for portion in portions]
                sums = sums + self.strategy.reduce([self._sums(*pair, center) for pair in taken])
        return [_metrics(count, *lane) for lane in zip(*sums.reshape(4, -1).tolist(), strict=True)]

    def predictions(self, part: str) -> Tensor:
        """Predictions [rows] in the units of the file, float64 on the CPU."""
        rows = self.parts[part]
        chunks = range(0, len(rows.target), CHUNK_ROWS)
        with self._inference():
            return torch.cat([self.predict(rows.take(slice(i, i + CHUNK_ROWS))[0]) for i in chunks])

    def predict(self, features: Tensor) -> Tensor:
        """Predictions [rows] for features as the model sees them, in the units of the file, float64 on the CPU."""
        with self._inference():
            return self.undo(self._forward(features).cpu().double()).flatten()

    def _sums(self, features: Tensor, target: Tensor, center: Tensor) -> Tensor:
        """Sums [4] or [4, lanes] over these rows: loss, squared and absolute errors, squared distances from the center."""
        prediction, count = self._forward(features), target.shape[-2]
        with self.autocast():
            loss = self.loss(prediction, target) if count else prediction.sum()  # the mean of no rows is nan
        wide = center.dtype
        truth = self.undo(target.to(wide))
        error = self.undo(prediction.to(wide)) - truth
        sums = [of.sum((-2, -1)) for of in (error.square(), error.abs(), (truth - center).square())]
        return torch.stack([part.expand(loss.shape) for part in (loss.to(wide) * count, *sums)])

    def _forward(self, features: Tensor) -> Tensor:
        with self.autocast():
            return self.forward(features)

    def _inference(self) -> Any:
        return _Inference(self.model)


def _metrics(count: int, loss: float, squares: float, absolute: float, spread: float) -> dict[str, float]:
    r2 = 1 - squares / spread if spread > 0 else float("nan")
    return {"loss": loss / count, "rmse": (squares / count) ** 0.5, "mae": absolute / count, "r2": r2}


class _Inference:
    """No gradients, and layers such as dropout as they are after training; afterwards as before."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model, self._no_grad = model, torch.no_grad()

    def __enter__(self) -> None:
        self._training = self._model.training
        self._model.eval()
        self._no_grad.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._no_grad.__exit__(*error)
        self._model.train(self._training)


class Best:
    """The best value of one metric so far, and for how many evaluations it has not got better."""

    def __init__(self, metric: str, min_delta: float = 0.0) -> None:
        self.metric, self._min_delta = metric, min_delta
        self._sign = -1.0 if LARGER_IS_BETTER[metric] else 1.0
        self.value: float | None = None
        self.waited = 0

    def update(self, value: float) -> bool:
        """Whether `value` is better, by more than min_delta, than all before it."""
        better = math.isfinite(value) and (self.value is None or self._sign * (self.value - value) > self._min_delta)
        self.value = value if better else self.value
        self.waited = 0 if better else self.waited + 1
        return better

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.value, self.waited = state["value"], state["waited"]
