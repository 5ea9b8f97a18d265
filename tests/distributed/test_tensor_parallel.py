"""Tensor parallelism, without and with sharded data parallelism, gives the answer of one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from processes import values
from training import CPU, OPTIMIZERS, TOLERANCE, Trained, assert_equal, build, connected, mlp, reference, squares, train

from runner.compute.dtensor import is_sharded, local
from runner.compute.strategies.base import Strategy
from runner.compute.strategies.fsdp import Fsdp
from runner.compute.strategies.tensor import TensorParallel
from runner.config import schema as c
from runner.errors import ConfigError

MODELS: dict[str, tuple[Any, int]] = {
    "one hidden layer": (mlp(8), 2),
    "three hidden layers": (mlp(8, 5, 4), 3),  # the second one is not split
    "no hidden layer": (mlp(), 4),
    "linear": (c.Linear(name="linear", init_from=None, bias=True, init="kaiming"), 2),
    "linear unbiased": (c.Linear(name="linear", init_from=None, bias=False, init="kaiming"), 4),
    "polynomial": (c.Polynomial(name="polynomial", init_from=None, degree=2, init="kaiming"), 3),
}


def _tensor(world: Any) -> Strategy:
    """Return the strategy that splits layers over all processes."""
    return TensorParallel(CPU, world)


def _mesh(world: Any) -> Strategy:
    """Return the strategy that splits rows between groups of two processes, and layers within each group."""
    return Fsdp(CPU, world, tensor_parallel=2)


def _trained(
    size: int, make: Callable[[Any], Strategy], runs: dict[str, tuple[Any, str, int]]
) -> list[dict[str, Trained]]:
    def work(rank: int) -> dict[str, Trained]:
        with connected() as world:
            return {name: train(make(world), config, rule, columns) for name, (config, rule, columns) in runs.items()}

    return values(size, work)


@pytest.mark.parametrize("size", [2, 4])
def test_the_training_is_that_of_one_process(size: int) -> None:
    config = mlp(8, 4)
    for trained in _trained(size, _tensor, {rule: (config, rule, 2) for rule in OPTIMIZERS}):
        for rule, result in trained.items():
            assert_equal(result, reference(config, rule), TOLERANCE[rule])


def test_every_kind_of_model_is_split() -> None:
    runs = {name: (config, "sgd", columns) for name, (config, columns) in MODELS.items()}
    for trained in _trained(2, _tensor, runs):
        for name, (config, rule, columns) in runs.items():
            assert_equal(trained[name], reference(config, rule, columns), TOLERANCE[rule])


def test_rows_and_layers_are_split_at_once() -> None:
    config, linear = mlp(8, 6), MODELS["linear"][0]
    runs = {**{rule: (config, rule, 2) for rule in OPTIMIZERS}, "linear": (linear, "sgd", 2)}
    for rank, trained in enumerate(_trained(4, _mesh, runs)):
        group_rows = slice(0, 6) if rank < 2 else slice(6, 11)  # 11 rows on two groups of processes
        for name, (model, rule, _) in runs.items():
            assert_equal(trained[name], reference(model, rule), TOLERANCE[rule], group_rows)


def _held(rank: int) -> tuple[list[bool], list[tuple[int, ...]], bool, list[bool]]:
    with connected() as world:
        strategy, model = _tensor(world), build(mlp(8, 6))
        strategy.place(model, squares)
        state = {name: value + 1 for name, value in build(mlp(8, 6)).state_dict().items()}
        strategy.load(model, state)
        whole = strategy.gather_parameters(dict(model.named_parameters()))
        strategy.load(model, dict(model.state_dict()))
        again = strategy.gather_parameters(dict(model.named_parameters()))
        loaded = all(
            torch.equal(whole[name], value) and torch.equal(again[name], value) for name, value in state.items()
        )
        return (
            [is_sharded(parameter) for parameter in model.parameters()],
            [tuple(local(parameter).shape) for parameter in model.parameters()],
            loaded,
            [strategy.any(rank == 1), strategy.any(False)],
        )


def test_each_process_holds_half_of_each_layer() -> None:
    for sharded, shapes, loaded, flags in values(2, _held):
        # [8, 2] is split by its outputs, [6, 8] and [1, 6] by their inputs; biases added to sums are held by all.
        assert shapes == [(4, 2), (4,), (6, 4), (6,), (1, 3), (1,)]
        assert all(sharded)
        assert loaded
        assert flags == [True, False]


REFUSED: dict[str, tuple[Any, int, str]] = {
    "widths": (
        mlp(6, 4),
        2,
        "`model.widths` must be divisible by the 3 processes that split each layer, got [6, 4], where 4 is not; "
        "use other widths, another number of processes or strategy=ddp",
    ),
    "inputs": (
        c.Polynomial(name="polynomial", init_from=None, degree=2, init="kaiming"),
        2,
        "the inputs of `model`=polynomial must be divisible by the 3 processes that split them, got 4; "
        "use another number of processes or strategy=ddp",
    ),
    "dropout": (
        mlp(6, 3, dropout=0.5),
        2,
        "`model.dropout` must be 0 when processes split each layer: each process would draw for its own units, and the "
        "answer would depend on their number; use model.dropout=0 or strategy=ddp",
    ),
    "formula": (
        c.Formula(name="formula", init_from=None, expression="a*x0 + b", start={}, init="normal", bounds={}, fixed={}),
        1,
        "`model` must have linear layers to split between processes, but formula has none; use strategy=ddp",
    ),
}


def _refusals(rank: int) -> dict[str, str]:
    messages = {}
    with connected() as world:
        for name, (config, columns, _) in REFUSED.items():
            with pytest.raises(ConfigError) as caught:
                _tensor(world).place(build(config, columns), squares)
            messages[name] = str(caught.value)
    return messages


def test_a_model_that_cannot_be_split_is_refused_with_the_reason() -> None:
    assert values(3, _refusals) == [{name: sentence for name, (_, _, sentence) in REFUSED.items()}] * 3


def test_all_processes_compute_all_rows() -> None:
    strategy = TensorParallel(CPU, None)  # type: ignore[arg-type]
    share = torch.tensor(3.0)
    assert [(portion.first, portion.last) for portion in strategy.portions(7)] == [(0, 7)]
    assert torch.equal(strategy.total(share), share)
    assert torch.equal(strategy.reduce([share]), share)
