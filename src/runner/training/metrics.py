"""Metrics over a whole part of the data. They are added up as sums and weights, and the mean is taken once.

With several targets a metric is the mean over the targets, and "rmse/y" is that of the target y. Of metrics of the user's own,
there is the mean only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
from runner.training.own_metrics import OwnMetric

NEEDS_SPREAD = ("r2",)
"""Metrics without a value where a target is the same in all rows."""

CHUNK_ROWS = 65_536
"""Rows of one forward pass in an evaluation. Bounds its memory, and is the same on every device."""

LARGER_IS_BETTER = {"loss": False, "rmse": False, "mae": False, "r2": True}
"""Name of a metric → whether larger values are better; of the user's own, smaller ones are."""

CLEARLY = 0.1
"""Relative difference of two errors from which it is no longer that of any two evaluations of a run with batches."""

PER_TARGET = ("rmse", "mae", "r2")
"""Metrics that each target has."""


def metric_names(targets: Sequence[str], own: Sequence[str] = ()) -> list[str]:
    """Return the names of all metrics for these targets, the user's own among them: "rmse", and with several targets "rmse/y"."""
    of_targets = [f"{name}/{target}" for target in targets for name in PER_TARGET if len(targets) > 1]
    return [*LARGER_IS_BETTER, *own, *of_targets]


@dataclass(frozen=True)
class Evaluation:
    """Metrics and predictions of a model: the loss in the units of training, all others in the units of the file."""

    model: torch.nn.Module
    forward: Callable[..., Tensor]
    """Inputs of a batch → predictions […, rows, targets] as the model scales them."""
    loss: Loss
    autocast: Callable[[], Any]
    undo: Callable[[Tensor], Tensor]
    """Inverse of the target's scaling."""
    parts: Mapping[str, Rows]
    strategy: Strategy
    targets: Sequence[str]
    own: Sequence[OwnMetric] = ()
    """Metrics of the user's own."""

    def metrics(self, part: str) -> list[dict[str, float]]:
        """Return for each lane the metrics of one part by the names of `metric_names`. r2 is nan for a constant target.

        All are means by the weights of the rows. Every process must call it.
        """
        rows = self.parts[part]
        count, target, weight = len(rows), rows.all.target, rows.all.weight
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
        lanes = zip(*(sum_.reshape(-1).tolist() for sum_ in sums), strict=True)
        names, found = [metric.name for metric in self.own], list[dict[str, float]]()
        for loss, total, *others in lanes:
            own = dict(zip(names, others, strict=False))
            found.append(means(self.targets, loss, total, others[len(own) :], own))
        return found

    def predictions(self, part: str) -> Tensor:
        """Return the predictions [rows, targets] of one part in the units of the file, float64 on the CPU."""
        rows = self.parts[part]
        chunks = range(0, len(rows), CHUNK_ROWS)
        with _EvaluationMode(self.model):
            return torch.cat([self.predict(*rows.take(slice(i, i + CHUNK_ROWS)).inputs) for i in chunks])

    def predict(self, *inputs: Tensor) -> Tensor:
        """Return predictions [rows, targets] in the units of the file, float64 on the CPU, for scaled inputs [rows, columns]."""
        with _EvaluationMode(self.model):
            return self.undo(self._forward(*inputs).cpu().double())

    def _sums(self, rows: Batch, center: Tensor) -> Tensor:
        """Return weighted sums [n] or [n, lanes] over these rows.

        They are loss and weights, the metrics of the user's own, and for each target squared error, absolute error and squared
        distance from the center.
        """
        target, weight = rows.target, rows.weight
        prediction, count = self._forward(*rows.inputs), target.shape[-2]
        with self.autocast():
            loss = self.loss(prediction, target, weight) if count else prediction.sum()  # the mean of no rows is nan
        wide = center.dtype
        truth = self.undo(target.to(wide))
        prediction = self.undo(prediction.to(wide))
        error = prediction - truth
        terms = [error.square(), error.abs(), (truth - center).square()]
        if weight is not None:
            weight = weight.to(wide)
            terms = [term * weight for term in terms]
        total = torch.full_like(loss, count, dtype=wide) if weight is None else weight.sum((-2, -1))
        own = [metric.total(prediction, truth, weight) for metric in self.own]
        of_targets = torch.stack([term.sum(-2).expand(*loss.shape, -1) for term in terms], -1).flatten(-2)
        return torch.cat(
            (torch.stack((loss.to(wide) * count, total.expand(loss.shape), *own)), of_targets.movedim(-1, 0))
        )

    def _forward(self, *inputs: Tensor) -> Tensor:
        with self.autocast():
            return self.forward(*inputs)


def means(
    targets: Sequence[str], loss: float, total: float, sums: Sequence[float], own: Mapping[str, float]
) -> dict[str, float]:
    """Return the metrics of sums: the loss times the weights, the weights, and the three sums of each target in turn.

    These are its squared error, its absolute error and its squared distance from the mean. `own` has the sums of the user's own
    metrics by name.
    """
    by_target = zip(targets, sums[::3], sums[1::3], sums[2::3], strict=True)
    found = {target: _metrics(squares, absolute, spread, total) for target, squares, absolute, spread in by_target}
    mean = {name: sum(each[name] for each in found.values()) / len(found) for name in PER_TARGET}
    several = found if len(found) > 1 else {}
    of_targets = {f"{name}/{target}": value for target, each in several.items() for name, value in each.items()}
    return {"loss": loss / total, **mean, **{name: value / total for name, value in own.items()}, **of_targets}


def has_no_spread(rows: Rows, undo: Callable[[Tensor], Tensor]) -> bool:
    """Return whether a target has one value in all of these rows, in the units of the file, as it does in a single row."""
    target = rows.all.target
    low, high = _range(undo(target.to(widest(target.device))))
    return bool((low == high).any())


def _range(truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest value of each target and lane."""
    return truth.amin(-2, keepdim=True), truth.amax(-2, keepdim=True)


def _mean(truth: Tensor, weight: Tensor | None) -> Tensor:
    """Return the mean of each target and lane by the weights."""
    if weight is None:
        return truth.mean(-2, keepdim=True)
    weight = weight.to(truth)
    return (truth * weight).sum(-2, keepdim=True) / weight.sum(-2, keepdim=True)


def _metrics(squares: float, absolute: float, spread: float, total: float) -> dict[str, float]:
    r2 = 1 - squares / spread if spread > 0 else float("nan")
    return {"rmse": (squares / total) ** 0.5, "mae": absolute / total, "r2": r2}


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
        self._sign = -1.0 if LARGER_IS_BETTER.get(metric) else 1.0
        self.value: float | None = None
        self.step: int | None = None
        """Step of the best value; None without one, and if an older version found it."""
        self.waited = 0

    def update(self, value: float, step: int) -> bool:
        """Count the value of a step, and return whether it is better than the best so far by more than `min_delta`."""
        better = math.isfinite(value) and (self.value is None or self._sign * (self.value - value) > self._min_delta)
        self.value, self.step = (value, step) if better else (self.value, self.step)
        self.waited = 0 if better else self.waited + 1
        return better

    def is_clearly_better_than(self, value: float) -> bool:
        """Return whether the error of `value` is larger by more than `CLEARLY`; of r2 the error is 1 − r2."""
        if self.value is None:
            return False
        best, other = (1 - x if LARGER_IS_BETTER.get(self.metric) else x for x in (self.value, value))
        return other > (1 + CLEARLY) * best

    def state_dict(self) -> dict[str, Any]:
        """Return the metric, its best value and the step of that, and the number of evaluations since."""
        return {"metric": self.metric, "value": self.value, "step": self.step, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned, unless it is of another metric."""
        if state.get("metric") not in (None, self.metric):
            return
        self.value, self.step, self.waited = state["value"], state.get("step"), state["waited"]
