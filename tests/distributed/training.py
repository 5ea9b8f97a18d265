"""The same training twice: with a strategy on one of several processes, and with plain torch on whole batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from runner.compute.batch import Batch
from runner.compute.rng import stream
from runner.compute.strategies.base import MicroBatch, Strategy
from runner.config import schema as c
from runner.models.base import Model
from runner.models.base import build as build_model

CPU = torch.device("cpu")
BATCHES = (16, 7, 5) * 8
"""Rows of each step: even and odd numbers, which different numbers of processes divide."""

OPTIMIZERS: Mapping[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
}
TOLERANCE = {"sgd": 1e-12, "momentum": 1e-12, "adam": 1e-10}
"""Bounds for sums in another order over 24 steps in float64; Adam divides by square roots of small numbers."""


@dataclass(frozen=True)
class Trained:
    """Result of a training: whole parameters; loss and gradient norm of each step; predictions."""

    parameters: dict[str, Tensor]
    losses: Tensor
    norms: Tensor
    predictions: Tensor


class Gloo:
    """The part of `World` that strategies use, over gloo."""

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
def connected() -> Iterator[Any]:
    """Connect the processes of the environment and provide their world."""
    dist.init_process_group("gloo")
    yield Gloo(dist.get_rank(), dist.get_world_size())
    dist.destroy_process_group()


def mlp(*widths: int, dropout: float = 0.0) -> c.Mlp:
    """Return the configuration of a network."""
    return c.Mlp(name="mlp", init_from=None, widths=widths, activation="tanh", dropout=dropout, embedding_size=None)


def build(config: Any, columns: int = 2) -> Model:
    """Return the model of a configuration with its start values of seed 0."""
    return build_model(config, [f"x{i}" for i in range(columns)], ["y"], stream(0, "init"))


def rows(count: int, columns: int = 2) -> Batch:
    """Return the first `count` of 64 rows, with weights from 0 to 2."""
    features = torch.randn(64, columns, dtype=torch.float64, generator=stream(0, "data"))
    weight = torch.linspace(0, 2, 64, dtype=torch.float64)[torch.randperm(64, generator=stream(0, "order"))]
    return Batch(features, features.sin().sum(1, keepdim=True), weight.unsqueeze(1)).map(lambda values: values[:count])


def squares(prediction: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Return the mean of the weighted squared errors, written out."""
    errors = (prediction - target) ** 2
    return errors.mean() if weight is None else (errors * weight).sum() / len(target)


def reference(config: Any, rule: str, columns: int = 2) -> Trained:
    """Train with autograd on whole batches and an optimizer of torch.optim."""
    model = build(config, columns)
    optimizer, losses, norms = OPTIMIZERS[rule](model.parameters()), [], []
    for count in BATCHES:
        batch = rows(count, columns)
        optimizer.zero_grad()
        loss = squares(model(*batch.inputs), batch.target, batch.weight)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        norms.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm())
        optimizer.step()
    with torch.no_grad():
        predictions = model(rows(11, columns)[0])
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return Trained(parameters, torch.stack(losses), torch.stack(norms), predictions)


def train(strategy: Strategy, config: Any, rule: str, columns: int = 2) -> Trained:
    """Train in the same way with the gradients of a strategy; the optimizer updates this process's part."""
    model = build(config, columns)
    forward = strategy.place(model, squares)
    parameters = dict(model.named_parameters())
    optimizer, shares, norms = OPTIMIZERS[rule](parameters.values()), [], []
    for count in BATCHES:
        optimizer.zero_grad()
        shares.append(gradient(strategy, forward, count, columns))
        norms.append(strategy.norm([p.grad for p in parameters.values() if p.grad is not None]))
        optimizer.step()
    with torch.no_grad():
        portions = strategy.portions(11)
        predictions = torch.cat([forward(rows(11, columns)[0][p.first : p.last]) for p in portions])
    return Trained(
        strategy.gather_parameters(parameters), strategy.total(torch.stack(shares)), torch.stack(norms), predictions
    )


def gradient(strategy: Strategy, forward: Callable[[Tensor], Tensor], count: int, columns: int = 2) -> Tensor:
    """Return this process's share of the loss of one batch and leave the gradients in `.grad`."""
    batch = rows(count, columns)

    def backward(part: MicroBatch, factor: float) -> Tensor:
        loss = squares(forward(*part.rows.inputs), part.rows.target, part.rows.weight) * part.share
        (loss * factor).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    parts = [
        MicroBatch(batch.map(lambda values, p=p: values[p.first : p.last]), (p.last - p.first) / count, p.stream)  # type: ignore[misc]
        for p in strategy.portions(count)
    ]
    return strategy.gradient(parts, backward)


def assert_equal(result: Trained, expected: Trained, tolerance: float, prediction_rows: slice = slice(None)) -> None:
    """Compare two trainings: the order of their parameters, and each tensor relative to its largest magnitude."""
    assert list(result.parameters) == list(expected.parameters)
    pairs = [(result.parameters[name], value) for name, value in expected.parameters.items()]
    pairs += [(result.losses, expected.losses), (result.norms, expected.norms)]
    pairs += [(result.predictions, expected.predictions[prediction_rows])]
    assert largest_difference(pairs) <= tolerance


def largest_difference(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return the largest difference of all pairs, each relative to the largest magnitude of its second tensor."""
    for one, other in pairs:
        assert one.shape == other.shape
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)
