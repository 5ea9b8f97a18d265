"""The grid sweeper: every combination of the given values, each once and in order."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.config.overrides import quoted, values_of
from runner.errors import ConfigError
from runner.sweep.grid import jobs


def grid(arguments: Sequence[str], max_trials: int = 100) -> list[list[str]]:
    return jobs(arguments, None, max_trials)


def test_the_last_key_varies_fastest() -> None:
    assert grid(["+experiment=linreg", "seed=1,2", "train.steps=9", "dtype=float32,float64,bfloat16"]) == [
        ["+experiment=linreg", f"seed={seed}", "train.steps=9", f"dtype={dtype}"]
        for seed in (1, 2)
        for dtype in ("float32", "float64", "bfloat16")
    ]


def test_single_values_make_one_trial() -> None:
    assert grid(["seed=1"]) == [["seed=1"]]
    assert grid([]) == [[]]


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("seed=range(0,4)", [0, 1, 2, 3]),
        ("seed=range(9,0,-3)", [9, 6, 3]),
        ("data.noise=range(0,1,0.25)", [0.0, 0.25, 0.5, 0.75]),
        ("seed=choice(3,1,2)", [3, 1, 2]),
        ("seed=sort(3,1,2)", [1, 2, 3]),
        ("optimizer.lr=1e-4,0.0001,1e-3", [1e-4, 1e-3]),
        ("model.widths=[4,4],[8],[]", [[4, 4], [8], []]),
        ("model.start={a:1},{a:2,b:3}", [{"a": 1}, {"a": 2, "b": 3}]),
        ("train.clip_norm=null,1", [None, 1]),
        ("deterministic=true,false", [True, False]),
        ("++model.start.w=1,2", [1, 2]),
    ],
)
def test_the_values_of_an_argument(argument: str, values: list[Any]) -> None:
    assert [next(iter(values_of(job).values())) for job in grid([argument])] == values


@given(st.lists(st.text(min_size=1, max_size=20), min_size=2, max_size=4, unique=True))
def test_any_text_is_kept(texts: list[str]) -> None:
    """Quoted text is one value, whatever commas, quotes, brackets or backslashes it has."""
    found = grid([f"data.path={','.join(map(quoted, texts))}", "seed=1,2"])
    assert [values_of(job) for job in found] == [{"data.path": text, "seed": seed} for text in texts for seed in (1, 2)]


def test_a_shuffle_is_reproducible_and_keeps_the_state_of_random() -> None:
    random.seed(5)
    state = random.getstate()
    first = grid(["seed=shuffle(range(0,20))"])
    assert random.getstate() == state
    random.seed(6)
    assert grid(["seed=shuffle(range(0,20))"]) == first != grid(["seed=range(0,20)"])
    assert sorted(first) == sorted(grid(["seed=range(0,20)"]))


@pytest.mark.parametrize(
    ("arguments", "count", "advice"),
    [
        (["seed=range(0,11)"], "11", "give fewer values, or sweep.max_trials=11"),
        (
            ["seed=range(0,4)", "train.steps=1", "dtype=a,b,c"],
            "4 x 3 = 12",
            "give fewer values, or sweep.max_trials=12",
        ),
        (["seed=range(0,1000000000000)"], "1,000,000,000,000", "give fewer values"),
        (["data.noise=range(0.5,3,0.1)"], "25", "give fewer values, or sweep.max_trials=25"),
    ],
)
def test_too_many_trials_are_refused_before_they_are_made(arguments: list[str], count: str, advice: str) -> None:
    with pytest.raises(ConfigError) as caught:
        grid(arguments, 10)
    assert caught.value.problems == (
        f"`sweep.max_trials` must be at least the number of trials ({count}), got 10; {advice}",
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["seed=range(0,5)", "dtype=a,b"],
        ["data.noise=range(0.1,1.1,0.1)"],
        ["seed=range(9,-1,-1)"],
        ["seed=range(3,9,7)"],
    ],
)
def test_the_largest_allowed_number_of_trials_is_made(arguments: list[str]) -> None:
    count = len(grid(arguments, 1000))
    assert len(grid(arguments, count)) == count
    with pytest.raises(ConfigError, match=f"sweep.max_trials={count}$"):
        grid(arguments, count - 1)


def test_an_interval_is_refused_with_a_hint_at_the_search() -> None:
    with pytest.raises(ConfigError) as caught:
        grid(["optimizer.lr=interval(0,1)", "++model.start.w=tag(log, interval(1,2))", "seed=1,2"])
    assert caught.value.problems == (
        "`optimizer.lr` must be a list of values for a grid, got interval(0,1); write optimizer.lr=1,2,3 or range(…), "
        "or search with hydra/sweeper=optuna",
        "`model.start.w` must be a list of values for a grid, got tag(log, interval(1,2)); write ++model.start.w=1,2,3 or range(…), "
        "or search with hydra/sweeper=optuna",
    )
