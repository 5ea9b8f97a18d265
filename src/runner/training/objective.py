"""The objective: loss and gradients of one step's batch, with the same rows and random numbers at every call within the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from runner.compute.batch import Batch
from runner.compute.bounds import Bounds
from runner.compute.dtensor import local
from runner.compute.precision import Scaler, widest
from runner.compute.strategies.base import Loss, MicroBatch, Portion, Strategy
from runner.data.base import Batches, Rows
from runner.optim.base import Linearisation
from runner.optim.qr import augmented, compressed, pieces, triangle, weighted
from runner.training.divergence import Nonfinite


@dataclass
class BatchObjective:
    """Mean loss of a step's batch and its gradients, over all portions and processes, unscaled and clipped.

    Implements `Objective` of `runner.optim.base`.
    """

    model: Callable[..., Tensor]
    """Inputs of a batch […, rows, columns] → predictions […, rows, targets], with gradients."""
    parameters: Sequence[Tensor]
    loss: Loss
    rows: Rows
    batches: Batches
    strategy: Strategy
    autocast: Callable[[], AbstractContextManager[Any]]
    scaler: Scaler
    accumulate: int
    clip_norm: float | Tensor | None
    check_gradients: bool
    draw: Callable[[int, int], None]
    """Seeds the random numbers of the forward pass for a step and the stream of a portion."""
    predict: Callable[[Tensor], Tensor]
    """Numbers […, rows, columns] in the widest type → predictions in it, without communication between processes."""
    jacobian: Callable[[Tensor], Tensor]
    """The same numbers → derivatives of the predictions by the parameters […, rows·targets, numbers]."""
    named: Callable[[], Mapping[str, Tensor]] = dict
    """Returns the parameters [] or [lanes] by name, in the order of the derivatives, for a model of which each has a meaning."""
    bounds: Bounds | None = None
    """Bounds of the named parameters, if there are any."""
    hide: Callable[[int], None] = lambda epoch: None
    """Hides the categories of an epoch in the rows, where the model takes categories."""
    norm: Tensor | None = field(default=None, init=False)
    """Norm of the newest gradients before clipping; None where it is not measured."""
    step: int = field(default=0, init=False)
    _parts: Sequence[MicroBatch] = field(default=(), init=False)
    """This process's micro-batches of the step."""
    _portions: dict[int, Sequence[Portion]] = field(default_factory=dict, init=False)
    """Rows of a batch → this process's portions of it, cut for accumulation."""

    @property
    def warnings(self) -> list[str]:
        """A sentence for each kind of batch with fewer rows than `train.accumulate` parts."""
        found: dict[int, str] = {}
        for batch, step in (("a batch", 1), ("the last batch of an epoch", self.batches.per_epoch)):
            count = self.batches.size(step)
            rows = max(portion.last - portion.first for portion in self.strategy.portions(count))
            if self.accumulate > max(1, rows):
                portion = batch if rows == count else f"a portion of {batch}"
                text = f"`train.accumulate`={self.accumulate} is above the {rows} rows of {portion}, so {max(1, rows)} parts are used"
                found.setdefault(count, text)
        return list(found.values())

    def at(self, step: int) -> BatchObjective:
        """Select the rows and random numbers of a step, from 1, and return this objective."""
        self.begin(step)
        return self.on(self.batches.at(step), self.batches.size(step))

    def begin(self, step: int) -> None:
        """Select the random numbers of a step, from 1, on which its rows depend."""
        self.step = step
        self.hide(self.batches.epoch(step))

    def on(self, chosen: Tensor | slice, count: int) -> BatchObjective:
        """Select a batch of `count` rows by their numbers [n] or [lanes, n], or all rows by a slice; return this objective."""
        if isinstance(chosen, Tensor):
            self._parts = [self._part(chosen, portion, count) for portion in self._cut(count)]
        elif not self._parts:  # all rows: the same parts at every step
            self._parts = [self._part(slice(0, count), portion, count) for portion in self._cut(count)]
        return self

    def _cut(self, count: int) -> Sequence[Portion]:
        """Return this process's portions of a batch of `count` rows, each cut into as many parts as are accumulated."""
        if count not in self._portions:
            self._portions[count] = [
                part for portion in self.strategy.portions(count) for part in _divided(portion, self.accumulate)
            ]
        return self._portions[count]

    def _part(self, chosen: Tensor | slice, portion: Portion, count: int) -> MicroBatch:
        whole = portion.last - portion.first == count
        rows = (
            chosen
            if whole
            else slice(portion.first, portion.last)
            if isinstance(chosen, slice)
            else chosen[..., portion.first : portion.last]
        )
        return MicroBatch(self.rows.take(rows), (portion.last - portion.first) / count, portion.stream)

    def gradient(self) -> tuple[Tensor, Sequence[Tensor] | None]:
        """Return this process's share [] or [lanes] of the mean loss, and the gradients of the whole batch.

        The gradients are also left in `.grad`. They are None when the loss scaler found them not finite: the step is
        to be skipped. `whole` turns the share into the mean loss.
        """
        for parameter in self.parameters:
            parameter.grad = None
        self._stream = self._parts[0].stream
        self.draw(self.step, self._stream)
        share = self.strategy.gradient(self._parts, self._backward)
        self.scaler.unscale(self.parameters)
        if self.clip_norm is not None or self.check_gradients:
            self._measure()
        if not self.scaler.accept(self.parameters):
            # The scaler skips this step: its norm must not count as a divergence.
            self.norm = None if self.norm is None else torch.zeros_like(self.norm)
            return share, None
        return share, [parameter.grad for parameter in self.parameters]  # type: ignore[misc]

    def whole(self, share: Tensor) -> Tensor:
        """Return the mean loss [] over all processes from this process's share []. Every process must call it."""
        return self.strategy.total(share.reshape(1))[0]

    def mean_square(self) -> Tensor:
        """Return this process's share [] or [lanes] of the mean of the weighted squared residuals, in the widest type."""
        return self.strategy.share(self.squares() / self._residuals)

    def residuals(self) -> Linearisation:
        """Return residuals and Jacobian of the step's rows over all portions and processes, as a triangular factor.

        Every row is multiplied by the root of its weight.
        """
        rows, targets = self._residuals, self.rows.all.target.shape[-1]
        factor = self.strategy.concatenate([compressed(self._matrices(part), rows, targets) for part in self._parts])
        if factor.shape[-2] > rows or rows > factor.shape[-1] - 2:
            factor = triangle(factor)
        loss = factor[..., -2].square().sum(-1) / rows
        return Linearisation(self.strategy.share(loss), factor, rows)

    @property
    def _residuals(self) -> int:
        """Number of residuals of the step's rows: one for each target."""
        return self.batches.size(self.step) * self.rows.all.target.shape[-1]

    def squares(self) -> Tensor:
        """Return the sum of weighted squared residuals [] or [lanes] over all portions and processes."""
        with torch.no_grad():
            return self.strategy.reduce([self._squares(part) for part in self._parts])

    def _squares(self, part: MicroBatch) -> Tensor:
        squares = (
            weighted((self.predict(rows.numbers) - rows.target).square(), rows.weight) for rows in _widened(part)
        )
        return sum((values.sum((-2, -1)) for values in squares), torch.zeros(()))

    def _matrices(self, part: MicroBatch) -> Iterator[Tensor]:
        for rows in _widened(part):
            with torch.no_grad():
                prediction = self.predict(rows.numbers)
            yield augmented(self.jacobian(rows.numbers), prediction, rows)

    def nonfinite(self, step: int) -> list[Nonfinite]:
        """Return for each lane what is not finite in a step's batch at the current parameters.

        Derivatives are examined one by one for a model with `named` parameters, such as a formula.
        """
        self.begin(step)
        chosen, named = self.batches.at(step), self.named()
        rows = self.rows.take(chosen)
        with torch.no_grad(), self.autocast():
            prediction = self.model(*rows.inputs)
        prediction = prediction.reshape(-1, *prediction.shape[-2:]).cpu()
        slopes = self.jacobian(rows.numbers) if named else rows.numbers.new_zeros((*rows.numbers.shape[:-1], 0))
        slopes = slopes.expand(len(prediction), *slopes.shape[-2:]).cpu()
        # Row numbers can be shared by all lanes while the predictions are not.
        source = self.rows.source
        numbers = source[..., chosen] if isinstance(chosen, slice) else _drawn(source, chosen.cpu())
        numbers = numbers.expand(prediction.shape[:-1])
        values = [
            {name: float(value.reshape(-1)[lane if value.dim() else 0]) for name, value in named.items()}
            for lane in range(len(prediction))
        ]
        found = [_nonfinite(*of_lane) for of_lane in zip(numbers, prediction, slopes, values, strict=True)]
        return found if self.bounds is None else [_with_bound(lane, self.bounds) for lane in found]

    def _backward(self, part: MicroBatch, factor: float) -> Tensor:
        if part.stream != self._stream:
            self._stream = part.stream
            self.draw(self.step, part.stream)
        with self.autocast():
            rows = part.rows
            prediction = self.model(*rows.inputs)
            # A process without rows still takes part in the reductions. The mean of no rows would be nan, so its loss is 0.
            loss = self.loss(prediction, rows.target, rows.weight) if rows.target.shape[-2] else prediction.sum()
        if part.share != 1.0:
            loss = loss * part.share
        self.scaler.scale(loss if factor == 1.0 else loss * factor).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _measure(self) -> None:
        """Measure the norm of the whole gradients, and clip them."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        self.norm = self.strategy.norm(gradients)
        if self.clip_norm is not None:
            # Like torch.nn.utils.clip_grads_with_norm_, but on the parts that this process holds.
            coefficient = (self.clip_norm / (self.norm + 1e-6)).clamp(max=1.0)
            parts = [local(gradient) for gradient in gradients]
            if coefficient.dim():  # one per lane
                torch._foreach_mul_(parts, [coefficient] * len(parts))
            else:
                torch._foreach_mul_(parts, coefficient)


def _nonfinite(numbers: Tensor, prediction: Tensor, slopes: Tensor, values: Mapping[str, float]) -> Nonfinite:
    """Return what is not finite of one lane: row numbers [rows], predictions [rows, targets], derivatives [rows·targets, n]."""
    lost = ~prediction.isfinite().all(1)
    if bool(lost.any()):
        return Nonfinite(predictions=[] if bool(lost.all()) else numbers[lost].tolist(), values=values)
    infinite = ~slopes.isfinite()
    if not bool(infinite.any()):
        return Nonfinite(values=values)
    column = int(infinite.any(0).nonzero()[0])
    derivative = float(slopes[infinite[:, column], column][0])
    rows = infinite[:, column].reshape(prediction.shape).any(1)
    return Nonfinite((), numbers[rows].tolist(), list(values)[column], derivative, values)


def _with_bound(found: Nonfinite, bounds: Bounds) -> Nonfinite:
    """Return what is not finite of one lane, with the bound that the parameter concerned is at."""
    sides = dict(zip(found.values, bounds.sides(bounds.low.new_tensor([*found.values.values()])), strict=True))
    return replace(found, at_bound=sides.get(found.parameter, ""))


def _widened(part: MicroBatch) -> Iterator[Batch]:
    """Yield the rows of a micro-batch in the widest type, in pieces that bound the memory of a factorization."""
    wide = widest(part.rows.target.device)
    return (rows.to(wide) for rows in pieces(part.rows))


def _drawn(source: Tensor, chosen: Tensor) -> Tensor:
    """Return the source numbers of chosen rows [n] or [lanes, n], from the source numbers [rows] or [lanes, rows] of all rows."""
    if source.dim() == 1:
        return source[chosen]
    return source.gather(1, chosen.expand(source.shape[0], chosen.shape[-1]))


def _divided(portion: Portion, parts: int) -> list[Portion]:
    """Return a portion in parts whose sizes differ by at most one row; no part is empty unless the portion is."""
    rows = portion.last - portion.first
    parts = max(1, min(parts, rows))
    size, larger = divmod(rows, parts)
    edges = [portion.first + i * size + min(i, larger) for i in range(parts + 1)]
    return [Portion(first, last, portion.stream) for first, last in pairwise(edges)]
