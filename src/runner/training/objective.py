"""What an optimizer asks: loss and gradients of one step's rows, the same rows and random numbers at every call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from runner.compute.dtensor import local
from runner.compute.precision import Scaler, widest
from runner.compute.strategies.base import MicroBatch, Portion, Strategy
from runner.data.base import Batches, Rows
from runner.optim.base import Linearisation
from runner.optim.qr import augmented, pieces, qr_of_pieces, triangle


@dataclass
class BatchObjective:
    """Mean loss of a step's batch and its gradients: of all portions and processes, unscaled, clipped."""

    model: Callable[[Tensor], Tensor]
    parameters: Sequence[Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    rows: Rows
    batches: Batches
    strategy: Strategy
    autocast: Callable[[], AbstractContextManager[Any]]
    scaler: Scaler
    accumulate: int
    clip_norm: float | Tensor | None
    check_gradients: bool
    draw: Callable[[int, int], None]
    alone: Callable[[Tensor], Tensor]
    """Features […, rows, columns] in the widest type → predictions in it, of this process alone."""
    jacobian: Callable[[Tensor], Tensor]
    """The same → derivatives of the predictions by the parameters […, rows, numbers]."""
    norm: Tensor | None = field(default=None, init=False)
    """Norm of the last gradients before clipping; None where it is not looked at."""
    step: int = field(default=0, init=False)
    _parts: Sequence[MicroBatch] = field(default=(), init=False)
    _cuts: dict[int, Sequence[Portion]] = field(default_factory=dict, init=False)

    def at(self, step: int) -> BatchObjective:
        """Turn to the rows and random numbers of a step, from 1."""
        self.step = step
        chosen, count = self.batches.at(step), self.batches.size(step)
        if isinstance(chosen, Tensor):
            self._parts = [self._part(chosen, cut, count) for cut in self._cut(count)]
        elif not self._parts:  # all rows: the same parts at every step
            self._parts = [self._part(slice(0, count), cut, count) for cut in self._cut(count)]
        return self

    def _cut(self, count: int) -> Sequence[Portion]:
        """The portions of a batch of so many rows, each in as many parts as are accumulated."""
        if count not in self._cuts:
            self._cuts[count] = [
                cut for portion in self.strategy.portions(count) for cut in _divided(portion, self.accumulate)
            ]
        return self._cuts[count]

    def _part(self, chosen: Tensor | slice, cut: Portion, count: int) -> MicroBatch:
        whole = cut.last - cut.first == count
        rows = (
            chosen
            if whole
            else slice(cut.first, cut.last)
            if isinstance(chosen, slice)
            else chosen[..., cut.first : cut.last]
        )
        features, target = self.rows.take(rows)
        return MicroBatch(features, target, (cut.last - cut.first) / count, cut.stream)

    def gradient(self) -> tuple[Tensor, Sequence[Tensor] | None]:
        """This process's share [] of the mean loss, and the gradients of the whole batch, also left in `.grad`.

        None for gradients that the scaler found not finite. `whole` makes the mean loss of a share.
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
            # The scaler's to deal with: a norm that is not finite is no divergence when the step is skipped.
            self.norm = None if self.norm is None else torch.zeros_like(self.norm)
            return share, None
        return share, [parameter.grad for parameter in self.parameters]  # type: ignore[misc]

    def whole(self, share: Tensor) -> Tensor:
        """The mean loss [] over all processes, for an optimizer that decides by it within a step."""
        return self.strategy.total(share.reshape(1))[0]

    def residuals(self) -> Linearisation:
        """Residuals and Jacobian of the step's rows, of all portions and processes."""
        factor = triangle(self.strategy.concatenate([qr_of_pieces(self._matrices(part)) for part in self._parts]))
        rows = self.batches.size(self.step)
        loss = factor[..., -2].square().sum(-1) / rows
        return Linearisation(self.strategy.share(loss), factor, rows)

    def squares(self) -> Tensor:
        """Sum of squared residuals [] or [lanes], of all portions and processes."""
        with torch.no_grad():
            return self.strategy.reduce([self._squares(part) for part in self._parts])

    def _squares(self, part: MicroBatch) -> Tensor:
        errors = (self.alone(features) - target for features, target in _widened(part))
        return sum((error.square().sum((-2, -1)) for error in errors), torch.zeros(()))

    def _matrices(self, part: MicroBatch) -> Iterator[Tensor]:
        for features, target in _widened(part):
            with torch.no_grad():
                prediction = self.alone(features)
            yield augmented(self.jacobian(features), prediction - target, target)

    def without_value(self, step: int) -> list[list[int]]:
        """For each lane the source numbers of a step's rows whose prediction is not finite; none when that holds for all."""
        chosen, source = self.batches.at(step), self.rows.source
        features, _ = self.rows.take(chosen)
        with torch.no_grad(), self.autocast():
            prediction = self.model(features).squeeze(-1)
        bad = (~prediction.isfinite()).reshape(-1, prediction.shape[-1]).cpu()
        # Rows that all lanes share are drawn for each lane, or the other way round.
        numbers = source[..., chosen] if isinstance(chosen, slice) else _drawn(source, chosen.cpu())
        numbers = numbers.expand(bad.shape)
        return [[] if bool(where.all()) else lane[where].tolist() for lane, where in zip(numbers, bad, strict=True)]

    def _backward(self, part: MicroBatch, factor: float) -> Tensor:
        if part.stream != self._stream:
            self._stream = part.stream
            self.draw(self.step, part.stream)
        with self.autocast():
            prediction = self.model(part.features)
            # A process without rows takes part all the same, with a loss of nothing: the mean of no rows is nan.
            loss = self.loss(prediction, part.target) if part.target.shape[-2] else prediction.sum()
        if part.weight != 1.0:
            loss = loss * part.weight
        self.scaler.scale(loss if factor == 1.0 else loss * factor).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _measure(self) -> None:
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        self.norm = self.strategy.norm(gradients)
        if self.clip_norm is not None:
            # As torch.nn.utils.clip_grads_with_norm_, but on the parts that this process holds.
            coefficient = (self.clip_norm / (self.norm + 1e-6)).clamp(max=1.0)
            parts = [local(gradient) for gradient in gradients]
            if coefficient.dim():  # one a lane
                torch._foreach_mul_(parts, [coefficient] * len(parts))
            else:
                torch._foreach_mul_(parts, coefficient)


def _widened(part: MicroBatch) -> Iterator[tuple[Tensor, Tensor]]:
    wide = widest(part.target.device)
    return ((features.to(wide), target.to(wide)) for features, target in pieces(part.features, part.target))


def _drawn(source: Tensor, chosen: Tensor) -> Tensor:
    """Source numbers of the rows [n] or [lanes, n] that were drawn, from those of all rows [rows] or [lanes, rows]."""
    if source.dim() == 1:
        return source[chosen]
    return source.gather(1, chosen.expand(source.shape[0], chosen.shape[-1]))


def _divided(portion: Portion, parts: int) -> list[Portion]:
    """A portion in parts that differ by a row at most, none of them empty unless the portion is."""
    rows = portion.last - portion.first
    parts = max(1, min(parts, rows))
    size, larger = divmod(rows, parts)
    edges = [portion.first + i * size + min(i, larger) for i in range(parts + 1)]
    return [Portion(first, last, portion.stream) for first, last in pairwise(edges)]
