"""Pipeline parallelism gives the answer of one process, with each layer on one process only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from processes import values
from torch import Tensor
from training import (
    CPU,
    OPTIMIZERS,
    TOLERANCE,
    Gloo,
    Trained,
    assert_equal,
    build,
    connected,
    gradient,
    largest_difference,
    mlp,
    reference,
    rows,
    squares,
    train,
)

from runner.compute.strategies.pipeline import Pipeline
from runner.config import schema as c
from runner.errors import ConfigError

MLP = mlp(8, 6)


def _trained(rank: int) -> dict[str, Trained]:
    with connected() as world:
        return {rule: train(Pipeline(CPU, world), MLP, rule) for rule in OPTIMIZERS}


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.long)])
def test_the_training_is_that_of_one_process(size: int) -> None:
    for trained in values(size, _trained):
        for rule, result in trained.items():
            assert_equal(result, reference(MLP, rule), TOLERANCE[rule])


def _held(rank: int) -> tuple[list[str], list[str], list[str], bool, list[bool]]:
    with connected() as world:
        strategy, model = Pipeline(CPU, world), build(MLP)
        strategy.place(model, squares)
        state = {name: value + 1 for name, value in build(MLP).state_dict().items()}
        strategy.load(model, state)
        whole = strategy.gather_parameters(dict(model.named_parameters()))
        strategy.load(model, dict(model.state_dict()))
        again = strategy.gather_parameters(dict(model.named_parameters()))
        return (
            [name for name, _ in model.named_parameters()],
            list(model.state_dict()),
            list(whole),
            all(torch.equal(whole[name], value) and torch.equal(again[name], value) for name, value in state.items()),
            [strategy.any(rank == 1), strategy.any(False)],
        )


def test_each_process_holds_the_layers_of_its_stage_under_their_names() -> None:
    names = [name for name, _ in build(MLP).named_parameters()]
    for rank, (held, state, whole, loaded, flags) in enumerate(values(2, _held)):
        assert held == state == [names[:2], names[2:]][rank]
        assert whole == names
        assert loaded
        assert flags == [True, False]


COUNTS = (16, 1, 0, 7, 16, 6)


def _predictions(rank: int) -> list[Tensor]:
    with connected() as world, torch.no_grad():
        model = build(mlp(8, 6, dropout=0.5))
        forward = Pipeline(CPU, world).place(model, squares)
        model.eval()
        return [forward(rows(count)[0]) for count in COUNTS]


def test_every_process_receives_the_predictions_of_any_number_of_rows() -> None:
    model = build(mlp(8, 6, dropout=0.5)).eval()
    for predictions in values(3, _predictions):
        assert [tuple(prediction.shape) for prediction in predictions] == [(count, 1) for count in COUNTS]
        some = [
            (result, model(rows(count)[0]).detach()) for result, count in zip(predictions, COUNTS, strict=True) if count
        ]
        # A product with fewer rows may be summed in another order, which changes roundings.
        assert largest_difference(some) <= 1e-14


def _micro_batches(rank: int) -> list[list[int]]:
    with connected() as world:
        strategy, model = Pipeline(CPU, world), build(MLP)
        forward = strategy.place(model, squares)
        seen: list[int] = []
        next(model.children()).register_forward_pre_hook(lambda layer, inputs: seen.append(len(inputs[0])))
        sizes = []
        for count in (16, 9, 7, 16, 9, 7):  # torch infers the shapes in the first step of a size
            seen.clear()
            gradient(strategy, forward, count)
            sizes.append(list(seen))
    return sizes[3:]


def test_a_batch_is_divided_into_equal_micro_batches() -> None:
    for parts in values(3, _micro_batches):
        assert parts == [[8, 8], [3, 3, 3], [7]]


def _drawn(rank: int) -> tuple[int, list[float], list[Tensor]]:
    with connected() as world:
        strategy, model = Pipeline(CPU, world), build(mlp(8, 6, dropout=0.5))
        forward = strategy.place(model, squares)
        (portion,) = strategy.portions(16)
        shares, gradients = [], []
        for seed in (0, 0, 1):
            model.zero_grad()
            torch.manual_seed(seed)
            shares.append(gradient(strategy, forward, 16))
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        return portion.stream, strategy.total(torch.stack(shares)).tolist(), gradients


def test_each_stage_has_its_own_random_numbers_and_the_first_step_draws_no_more_than_others() -> None:
    drawn = values(2, _drawn)
    assert [stream for stream, _, _ in drawn] == [0, 1]
    for _, (first, again, other), gradients in drawn:
        assert first == again != other
        assert torch.equal(gradients[0], gradients[1])
        assert not torch.equal(gradients[0], gradients[2])


@pytest.mark.parametrize(
    ("config", "clause"),
    [
        (MLP, "`model`=mlp has 3"),
        (c.Linear(name="linear", init_from=None, bias=True, init="kaiming"), "`model`=linear cannot be divided"),
        (
            c.Polynomial(name="polynomial", init_from=None, degree=2, init="kaiming"),
            "`model`=polynomial cannot be divided",
        ),
        (
            c.Formula(
                name="formula", init_from=None, expression="a*x0 + x1", start={}, init="normal", bounds={}, fixed={}
            ),
            "`model`=formula cannot be divided",
        ),
    ],
)
def test_a_model_with_fewer_layers_than_processes_is_refused(config: Any, clause: str) -> None:
    world: Any = Gloo(rank=0, size=4)
    with pytest.raises(ConfigError) as caught:
        Pipeline(CPU, world).place(build(config), squares)
    assert caught.value.problems == (
        f"`strategy`=pipeline needs at least as many layers as processes, but {clause} and there are 4 processes; "
        "use strategy=ddp, fewer processes or a deeper model",
    )
