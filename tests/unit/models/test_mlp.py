"""Fully connected networks: layers, activations, dropout and start values."""

from __future__ import annotations

import dataclasses
import math
from itertools import chain
from typing import Any

import pytest
import torch
from torch.nn import functional

from runner.compute.rng import stream
from runner.config import schema as c
from runner.models.base import Model
from runner.models.base import build as build_model

MLP = c.Mlp(name="mlp", init_from=None, widths=(4, 3), activation="tanh", dropout=0.0, embedding_size=None)


def _mlp(**changes: Any) -> Model:
    return build_model(dataclasses.replace(MLP, **changes), ("a", "b"), ["y"], stream(0, "init"))


def _features() -> torch.Tensor:
    return torch.randn(6, 2, dtype=torch.float64, generator=stream(0, "data"))


def _shapes(model: Model) -> list[tuple[int, ...]]:
    return [tuple(parameter.shape) for parameter in model.parameters()]


def test_widths_are_the_sizes_of_hidden_layers() -> None:
    assert _shapes(_mlp()) == [(4, 2), (4,), (3, 4), (3,), (1, 3), (1,)]
    assert _shapes(_mlp(widths=())) == [(1, 2), (1,)]


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("relu", torch.relu),
        ("tanh", torch.tanh),
        ("gelu", functional.gelu),
        ("silu", functional.silu),
        ("sigmoid", torch.sigmoid),
    ],
)
def test_an_activation_follows_every_layer_except_the_last(name: str, activation: Any) -> None:
    model = _mlp(activation=name)
    one, one_bias, two, two_bias, last, last_bias = model.parameters()
    hidden = activation(functional.linear(_features(), one, one_bias))
    hidden = activation(functional.linear(hidden, two, two_bias))
    assert torch.equal(model(_features()), functional.linear(hidden, last, last_bias))


def test_start_values_are_drawn_layer_by_layer_from_one_stream() -> None:
    generator = stream(0, "init")
    for parameter, fan_in in zip(_mlp().parameters(), (2, 2, 4, 4, 3, 3), strict=True):
        drawn = torch.rand(parameter.shape, dtype=torch.float64, generator=generator)
        # The range is scaled in another order here: one or two roundings.
        torch.testing.assert_close(parameter.detach(), (2 * drawn - 1) / math.sqrt(fan_in), rtol=0, atol=4e-16)


def test_dropout_drops_only_in_training_and_keeps_the_mean() -> None:
    model = _mlp(widths=(2000,), dropout=0.25)
    assert model.draws
    hidden: list[torch.Tensor] = []
    dropout = next(module for module in model.modules() if isinstance(module, torch.nn.Dropout))
    dropout.register_forward_hook(lambda module, args, output: hidden.append((output / args[0]).detach()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model(_features())
    kept = hidden[0] > 0
    # 12,000 units: the dropped fraction has a standard deviation of 0.004; five of them are allowed.
    assert abs(float((~kept).double().mean()) - 0.25) < 0.02
    torch.testing.assert_close(hidden[0][kept], torch.full_like(hidden[0][kept], 1 / 0.75))
    model.eval()
    assert torch.equal(model(_features()), model(_features()))
    assert torch.equal(hidden[-1], torch.ones_like(hidden[-1]))


def test_without_dropout_nothing_is_drawn() -> None:
    model = _mlp()
    assert not model.draws
    assert not any(isinstance(module, torch.nn.Dropout) for module in model.modules())


def test_dropout_does_not_change_the_start_values() -> None:
    plain, dropped = _mlp(), _mlp(dropout=0.5)
    for one, other in zip(plain.parameters(), dropped.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("widths", "plan"),
    [
        ((), {"0": "row"}),
        ((4,), {"0": "column", "2": "row"}),
        ((4, 3), {"0": "column", "2": "row", "4": "row"}),
        ((4, 3, 2), {"0": "column", "2": "row", "4": "column", "6": "row"}),
    ],
)
def test_layers_are_split_in_pairs(widths: tuple[int, ...], plan: dict[str, str]) -> None:
    model = _mlp(widths=widths)
    assert list(model.tensor_plan().items()) == list(plan.items())
    planned = {f"{layer}.{name}" for layer in plan for name, _ in model.get_submodule(layer).named_parameters()}
    assert planned == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    ("count", "stages"),
    [
        (1, [["0", "1", "2", "3", "4", "5", "6"]]),
        (2, [["0", "1", "2"], ["3", "4", "5", "6"]]),
        (3, [["0", "1", "2"], ["3", "4", "5"], ["6"]]),
        (4, [["0", "1", "2"], ["3", "4", "5"], ["6"]]),
    ],
)
def test_stages_are_whole_layers_with_activation_and_dropout(count: int, stages: list[list[str]]) -> None:
    model = _mlp(dropout=0.5).eval()
    assert model.stages(count) == stages
    hidden = _features()
    for name in chain(*stages):
        hidden = model.get_submodule(name)(hidden)
    assert torch.equal(hidden, model(_features()))


def test_embeddings_are_the_beginning_of_the_first_layer() -> None:
    config, cardinalities = dataclasses.replace(MLP, embedding_size=3), (4, 2)
    model = build_model(config, ("a", "b"), ["y"], stream(0, "init"), cardinalities)
    assert _shapes(model) == [(4, 3), (2, 3), (4, 2 + 2 * 3), (4,), (3, 4), (3,), (1, 3), (1,)]
    assert config.parameter_count(2, 1, cardinalities) == sum(parameter.numel() for parameter in model.parameters())
    assert model.tensor_plan() == {}
    assert model.stages(3) == [["0", "1", "2"], ["3", "4"], ["5"]]
    codes = torch.tensor([[0, 1], [3, 0], [1, 1], [2, 0], [3, 1], [0, 0]])
    one, two, *_ = model.parameters()
    hidden = torch.cat([_features(), one[codes[:, 0]], two[codes[:, 1]]], 1)
    for name in ("1", "2", "3", "4", "5"):
        hidden = model.get_submodule(name)(hidden)
    assert torch.equal(model(_features(), codes), hidden)


def test_vectors_of_categories_are_normal_and_drawn_before_the_layers() -> None:
    config = dataclasses.replace(MLP, embedding_size=3)
    vectors, layer, *_ = build_model(config, (), ["y"], stream(0, "init"), [5]).parameters()
    generator = stream(0, "init")
    assert torch.equal(vectors, torch.empty(5, 3, dtype=torch.float64).normal_(generator=generator))
    assert torch.equal(
        layer, torch.empty(4, 3, dtype=torch.float64).uniform_(-1 / math.sqrt(3), 1 / math.sqrt(3), generator=generator)
    )


def test_stages_differ_by_at_most_one_layer() -> None:
    model = _mlp(widths=(4,) * 6)
    for count in range(1, 8):
        layers = [len(stage) // 2 + len(stage) % 2 for stage in model.stages(count)]
        assert len(layers) == count
        assert sum(layers) == 7
        assert max(layers) - min(layers) <= 1
