"""One training, by a strategy on one of several processes and by plain torch on the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import mse_loss

from runner.compute.rng import stream
from runner.compute.strategies.base import MicroBatch, Strategy
from runner.config import schema as c
from runner.models.base import Model
from runner.models.base import build as build_model

CPU = torch.device("cpu")
BATCHES = (16, 7, 5) * 8
"""Rows of each step: even and odd numbers, some of which fewer processes divide than others."""

OPTIMIZERS: Mapping[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
}
TOLERANCE = {"sgd": 1e-12, "momentum": 1e-12, "adam": 1e-10}
"""Sums in another order, over 24 steps in float64; Adam divides by roots of small numbers."""


@dataclass(frozen=True)
class Trained:
    """What a training ends with: whole parameters; loss and norm of the gradients of each step; predictions."""

    parameters: dict[str, Tensor]
    losses: Tensor
    norms: Tensor
    predictions: Tensor


class Gloo:
    """What strategies ask of the other processes."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def sum(self, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def gather(self, tensor: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor)
        return parts

    def any(self, flag: bool) -> bool:
        return bool(self.sum(torch.tensor(int(flag))))


@contextmanager
def joined() -> Iterator[Any]:
    """The processes of the environment, as a world."""
    dist.init_process_group("gloo")
    yield Gloo(dist.get_rank(), dist.get_world_size())
    dist.destroy_process_group()


def mlp(*widths: int, dropout: float = 0.0) -> c.Mlp:
    return c.Mlp(name="mlp", widths=widths, activation="tanh", dropout=dropout)


def build(config: Any, columns: int = 2) -> Model:
    return build_model(config, [f"x{i}" for i in range(columns)], stream(0, "init"))


def rows(count: int, columns: int = 2) -> tuple[Tensor, Tensor]:
    """Features [count, columns] and target [count, 1]; fewer are the first of more."""
    features = torch.randn(64, columns, dtype=torch.float64, generator=stream(0, "data"))
    return features[:count], features.sin().sum(1, keepdim=True)[:count]


def by_hand(config: Any, rule: str, columns: int = 2) -> Trained:
    """Autograd on whole batches and the update of torch.optim."""
    model = build(config, columns)
    optimizer, losses, norms = OPTIMIZERS[rule](model.parameters()), [], []
    for count in BATCHES:
        features, target = rows(count, columns)
        optimizer.zero_grad()
        loss = mse_loss(model(features), target)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        norms.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm())
        optimizer.step()
    with torch.no_grad():
        predictions = model(rows(11, columns)[0])
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return Trained(parameters, torch.stack(losses), torch.stack(norms), predictions)


def by(strategy: Strategy, config: Any, rule: str, columns: int = 2) -> Trained:
    """The same, with gradients of a strategy; the optimizer sees what this process holds."""
    model = build(config, columns)
    forward = strategy.place(model, mse_loss)
    parameters = dict(model.named_parameters())
    optimizer, shares, norms = OPTIMIZERS[rule](parameters.values()), [], []
    for count in BATCHES:
        optimizer.zero_grad()
        shares.append(gradient(strategy, forward, count, columns))
        norms.append(strategy.norm([p.grad for p in parameters.values() if p.grad is not None]))
        optimizer.step()
    with torch.no_grad():
        portions = strategy.portions(11)
        own = torch.cat([forward(rows(11, columns)[0][p.first : p.last]) for p in portions])
    return Trained(strategy.gather_parameters(parameters), strategy.total(torch.stack(shares)), torch.stack(norms), own)


def gradient(strategy: Strategy, forward: Callable[[Tensor], Tensor], count: int, columns: int = 2) -> Tensor:
    """This process's share of the loss of one batch, with the gradients left in `.grad`."""
    features, target = rows(count, columns)

    def backward(part: MicroBatch, factor: float) -> Tensor:
        loss = mse_loss(forward(part.features), part.target) * part.weight
        (loss * factor).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    parts = [
        MicroBatch(features[p.first : p.last], target[p.first : p.last], (p.last - p.first) / count, p.stream)
        for p in strategy.portions(count)
    ]
    return strategy.gradient(parts, backward)


def assert_equal(got: Trained, want: Trained, tolerance: float, prediction_rows: slice = slice(None)) -> None:
    """Largest difference over largest magnitude, a tensor at a time, and the same parameters in the same order."""
    assert list(got.parameters) == list(want.parameters)
    pairs = [(got.parameters[name], value) for name, value in want.parameters.items()]
    pairs += [(got.losses, want.losses), (got.norms, want.norms)]
    pairs += [(got.predictions, want.predictions[prediction_rows])]
    assert largest_difference(pairs) <= tolerance


def largest_difference(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Over the largest magnitude of the second of each pair."""
    for one, other in pairs:
        assert one.shape == other.shape
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)
