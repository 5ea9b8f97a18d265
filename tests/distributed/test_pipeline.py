"""The network cut into stages: the answer of one process, and each layer on one process only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from processes import values
from torch import Tensor
from torch.nn.functional import mse_loss
from training import (
    CPU,
    OPTIMIZERS,
    TOLERANCE,
    Gloo,
    Trained,
    assert_equal,
    build,
    by,
    by_hand,
    gradient,
    joined,
    largest_difference,
    mlp,
    rows,
)

from runner.compute.strategies.pipeline import Pipeline
from runner.config import schema as c
from runner.errors import ConfigError

MLP = mlp(8, 6)


def _trained(rank: int) -> dict[str, Trained]:
    with joined() as world:
        return {rule: by(Pipeline(CPU, world), MLP, rule) for rule in OPTIMIZERS}


@pytest.mark.parametrize("size", [2, 3])
def test_the_training_is_that_of_one_process(size: int) -> None:
    for trained in values(size, _trained):
        for rule, got in trained.items():
            assert_equal(got, by_hand(MLP, rule), TOLERANCE[rule])


def _held(rank: int) -> tuple[list[str], list[str], list[str], bool, list[bool]]:
    with joined() as world:
        strategy, model = Pipeline(CPU, world), build(MLP)
        strategy.place(model, mse_loss)
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


def test_each_process_holds_its_own_layers_under_their_names_and_gives_the_whole() -> None:
    names = [name for name, _ in build(MLP).named_parameters()]
    for rank, (held, state, whole, taken, flags) in enumerate(values(2, _held)):
        assert held == state == [names[:2], names[2:]][rank]
        assert whole == names
        assert taken
        assert flags == [True, False]


COUNTS = (16, 1, 0, 7, 16, 6)


def _predictions(rank: int) -> list[Tensor]:
    with joined() as world, torch.no_grad():
        model = build(mlp(8, 6, dropout=0.5))
        forward = Pipeline(CPU, world).place(model, mse_loss)
        model.eval()
        return [forward(rows(count)[0]) for count in COUNTS]


def test_every_process_is_given_the_predictions_of_any_number_of_rows() -> None:
    model = build(mlp(8, 6, dropout=0.5)).eval()
    for given in values(3, _predictions):
        assert [tuple(prediction.shape) for prediction in given] == [(count, 1) for count in COUNTS]
        some = [(got, model(rows(count)[0]).detach()) for got, count in zip(given, COUNTS, strict=True) if count]
        # A product with fewer rows may be summed in another order: some roundings.
        assert largest_difference(some) <= 1e-14


def _micro_batches(rank: int) -> list[list[int]]:
    with joined() as world:
        strategy, model = Pipeline(CPU, world), build(MLP)
        forward = strategy.place(model, mse_loss)
        seen: list[int] = []
        next(model.children()).register_forward_pre_hook(lambda layer, given: seen.append(len(given[0])))
        given = []
        for count in (16, 9, 7, 16, 9, 7):  # torch looks at the shapes in the first step of a size
            seen.clear()
            gradient(strategy, forward, count)
            given.append(list(seen))
    return given[3:]


def test_a_batch_is_cut_into_equal_parts_so_that_stages_work_at_once() -> None:
    for parts in values(3, _micro_batches):
        assert parts == [[8, 8], [3, 3, 3], [7]]


def _drawn(rank: int) -> tuple[int, list[float], list[Tensor]]:
    with joined() as world:
        strategy, model = Pipeline(CPU, world), build(mlp(8, 6, dropout=0.5))
        forward = strategy.place(model, mse_loss)
        (portion,) = strategy.portions(16)
        shares, gradients = [], []
        for seed in (0, 0, 1):
            model.zero_grad()
            torch.manual_seed(seed)
            shares.append(gradient(strategy, forward, 16))
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        return portion.stream, strategy.total(torch.stack(shares)).tolist(), gradients


def test_each_stage_draws_by_its_own_address_and_the_first_step_draws_no_more_than_others() -> None:
    drawn = values(2, _drawn)
    assert [stream for stream, _, _ in drawn] == [0, 1]
    for _, (first, again, other), gradients in drawn:
        assert first == again != other
        assert torch.equal(gradients[0], gradients[1])
        assert not torch.equal(gradients[0], gradients[2])


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (MLP, "`model`=mlp has 3"),
        (c.Linear(name="linear", bias=True, init="kaiming"), "`model`=linear cannot be cut"),
        (c.Polynomial(name="polynomial", degree=2, init="kaiming"), "`model`=polynomial cannot be cut"),
        (c.Formula(name="formula", expression="a*x0 + x1", start={}, init="normal"), "`model`=formula cannot be cut"),
    ],
)
def test_a_model_with_fewer_layers_than_processes_is_refused(config: Any, what: str) -> None:
    world: Any = Gloo(rank=0, size=4)
    with pytest.raises(ConfigError) as caught:
        Pipeline(CPU, world).place(build(config), mse_loss)
    assert caught.value.problems == (
        f"`strategy`=pipeline needs at least as many layers as processes, but {what} and there are 4 processes; "
        "use strategy=ddp, fewer processes or a deeper model",
    )
