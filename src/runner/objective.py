"""What an optimizer asks: the loss and gradients of one step's rows, the same rows and random numbers at every call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from runner.precision import Scaler
from runner.seeding import address


class Rows(Protocol):
    """A part of the data on the device."""

    @property
    def source(self) -> Tensor: ...
    def take(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]: ...


class Batches(Protocol):
    """Row numbers of every step's batch."""

    def at(self, step: int) -> Tensor | slice: ...


@dataclass
class Objective:
    """Mean loss of a step's batch and its gradients: accumulated over parts, unscaled, clipped."""

    model: Callable[[Tensor], Tensor]
    parameters: Sequence[Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    rows: Rows
    batches: Batches
    autocast: Callable[[], AbstractContextManager[Any]]
    scaler: Scaler
    accumulate: int
    clip_norm: float | None
    check_gradients: bool
    draw: Callable[[int], None]
    norm: Tensor | None = field(default=None, init=False)
    """Norm of the last gradients before clipping; None where it is not looked at."""
    _step: int = field(default=0, init=False)
    _parts: Sequence[tuple[Tensor, Tensor, float]] = field(default=(), init=False)

    def at(self, step: int) -> Objective:
        """Turn to the rows and random numbers of a step, from 1."""
        self._step = step
        features, target = self.rows.take(self.batches.at(step))
        if self.accumulate == 1:
            self._parts = ((features, target, 1.0),)
        else:
            parts = min(self.accumulate, len(target))
            pairs = zip(features.tensor_split(parts), target.tensor_split(parts), strict=True)
            self._parts = [(x, y, len(y) / len(target)) for x, y in pairs]
        return self

    def gradient(self) -> tuple[Tensor, Sequence[Tensor] | None]:
        """Mean loss [] and the gradients, also left in `.grad`; None when the scaler found them not finite."""
        for parameter in self.parameters:
            parameter.grad = None
        self.draw(self._step)
        total = self._backward(*self._parts[0])
        for part in self._parts[1:]:
            total = total + self._backward(*part)
        self.scaler.unscale(self.parameters)
        if self.clip_norm is not None or self.check_gradients:
            self._measure()
        if not self.scaler.accept(self.parameters):
            # The scaler's to deal with: a norm that is not finite is no divergence when the step is skipped.
            self.norm = None if self.norm is None else torch.zeros_like(self.norm)
            return total, None
        return total, [parameter.grad for parameter in self.parameters]  # type: ignore[misc]

    def without_value(self, step: int) -> list[int]:
        """Source numbers of the rows of a step whose prediction is not finite; none when that holds for all of them."""
        chosen = self.batches.at(step)
        features, _ = self.rows.take(chosen)
        with torch.no_grad(), self.autocast():
            bad = (~self.model(features).isfinite()).flatten().cpu()
        source = self.rows.source[chosen.cpu() if isinstance(chosen, Tensor) else chosen]
        numbers: list[int] = source[bad].tolist()
        return [] if bool(bad.all()) else numbers

    def _backward(self, features: Tensor, target: Tensor, weight: float) -> Tensor:
        with self.autocast():
            loss = self.loss(self.model(features), target)
        if weight != 1.0:
            loss = loss * weight
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _measure(self) -> None:
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        self.norm = torch.nn.utils.get_total_norm(gradients)
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(list(self.parameters), self.clip_norm, self.norm)


def drawing(draws: bool, seed: int, device: torch.device) -> Callable[[int], None]:
    """What makes the random numbers of the forward pass a function of (seed, step): nothing for a model that draws none."""
    if not draws:
        return lambda step: None
    generator = generator_of(device)

    def draw(step: int) -> None:
        generator.manual_seed(address(seed, "dropout", step))

    return draw


@contextmanager
def borrowed(draws: bool, device: torch.device) -> Iterator[None]:
    """Give torch's own generator back as it was: the random numbers of a caller, in a notebook, are the caller's."""
    generator = generator_of(device) if draws else None
    state = generator.get_state() if generator is not None else None
    try:
        yield
    finally:
        if generator is not None and state is not None:
            generator.set_state(state)


def generator_of(device: torch.device) -> torch.Generator:
    """Torch's own generator of a device, the one that dropout draws from."""
    if device.type == "cpu":
        return torch.default_generator
    module: Any = getattr(torch, device.type)
    if device.type == "mps":
        generator: torch.Generator = module._get_default_mps_generator()
    else:
        module.init()
        generator = module.default_generators[device.index or 0]
    return generator
