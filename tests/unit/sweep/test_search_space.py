"""The search space: which values an argument stands for, and that Hydra parses the values of a trial back equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.sweep.search_space import Choice, Dimension, Interval, Range, Space, read


def dimension(argument: str) -> Dimension:
    space, problems = read([argument])
    assert problems == []
    return space.dimensions[argument.partition("=")[0]]


def reread(argument: str) -> Any:
    """Parse an override with Hydra, and return its value."""
    return OverridesParser.create().parse_override(argument).value()


class Last:
    """Suggests the largest value of every dimension."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return high

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return high

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
        return choices[-1]


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("optimizer.lr=interval(1e-5,1e-1)", Interval(1e-5, 1e-1)),
        ("optimizer.lr=tag(log, interval(1e-5, 1e-1))", Interval(1e-5, 1e-1, log=True)),
        ("optimizer.lr=range(1,10)", Range(1, 9)),
        ("train.batch_size=range(1,10,step=2)", Range(1, 9, 2)),
        ("train.batch_size=range(1,9,step=3)", Range(1, 7, 3)),
        ("train.batch_size=range(9,1,step=-3)", Range(3, 9, 3)),
        ("train.batch_size=tag(log, range(1,129))", Range(1, 128, 1, log=True)),
        ("optimizer.lr=range(0.1,1.0,step=0.1)", Range(0.1, 0.9, 0.1)),
        ("optimizer.lr=range(0,1,step=0.5)", Range(0.0, 0.5, 0.5)),
        ("optimizer=adam,sgd,adam", Choice(("adam", "sgd"))),
        ("optimizer.lr=choice(0.1,1e-3)", Choice(("0.1", "0.001"))),
        ("model.widths=[8],[8,8]", Choice(("[8]", "[8,8]"))),
        ("data.features=choice([a,'b c'],['1','#'])", Choice(("[a,b c]", "['1','#']"))),
        ("model.start={a:1.5},{a:null}", Choice(("{a:1.5}", "{a:null}"))),
        ("train.clip_norm=null,1", Choice(("null", "1"))),
        ("data.path='a,b.csv','it\\'s.csv'", Choice(("'a,b.csv'", "'it\\'s.csv'"))),
    ],
)
def test_the_dimension_of_an_argument(argument: str, expected: Dimension) -> None:
    assert dimension(argument) == expected


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        # The schema decides: interval(0,1) of a learning rate is not "0 or 1".
        ("optimizer.lr=interval(0,1)", Interval(0.0, 1.0)),
        ("model.start.a=interval(0,1)", Interval(0.0, 1.0)),
        ("train.batch_size=interval(8,64)", Range(8, 64)),
        ("train.batch_size=tag(log, interval(8,64))", Range(8, 64, 1, log=True)),
        ("train.batch_size=interval(8.0,64.0)", Range(8, 64)),
        # For a number or a share of rows, and for an unknown key, the notation decides.
        ("data.split.valid=interval(10,20)", Range(10, 20)),
        ("data.split.valid=interval(0.1,0.5)", Interval(0.1, 0.5)),
        ("unknown.key=interval(1,5)", Range(1, 5)),
        ("unknown.key=interval(1,5e0)", Interval(1.0, 5.0)),
    ],
)
def test_an_interval_has_the_type_of_its_key(argument: str, expected: Dimension) -> None:
    assert dimension(argument) == expected


def test_all_other_arguments_are_fixed() -> None:
    fixed = ["+experiment=linreg", "model.expression=sin(x) + b", "data.path=it's, a.csv", "model.widths=[8,8]"]
    space, problems = read([fixed[0], "seed=range(0,3)", *fixed[1:]])
    assert problems == []
    assert space == Space(tuple(fixed), {"seed": Range(0, 2)})
    assert space.overrides({"seed": 2}) == [*fixed, "seed=2"]


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=30), min_size=2, unique=True))
def test_quoted_texts_reach_the_trial_unchanged(texts: list[str]) -> None:
    quoted = [QuotedString(text, Quote.single).with_quotes() for text in texts]
    for argument in (f"data.path=choice({','.join(quoted)})", f"data.path={','.join(quoted)}"):
        space, problems = read([argument])
        assert problems == []
        assert [reread(space.overrides(point)[0]) for point in space.grid] == texts


@settings(deadline=None)  # the machine may be busy
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_reaches_the_trial_exactly(number: float) -> None:
    space = Space((), {"optimizer.lr": Interval(number, number)})
    (argument,) = space.overrides(space.suggest(Last()))
    assert reread(argument) == number


def test_values_and_grid() -> None:
    assert Range(1, 9, 4).values == (1, 5, 9)
    assert Range(0.1, 0.5, 0.1).values == (0.1, 0.2, 0.3, 0.4, 0.5)
    space, _ = read(["a=1,2", "b=range(0,3)"])
    assert space.grid == [{"a": a, "b": b} for a in ("1", "2") for b in (0, 1, 2)]
    assert space.continuous == []
    assert read(["a=1,2", "optimizer.lr=interval(0,1)"])[0].continuous == ["optimizer.lr"]
    assert space.numeric == ["b"]


def test_probes_contain_the_ends_of_every_dimension() -> None:
    space, _ = read(["x=1", "optimizer=sgd,adam,adamw", "optimizer.lr=interval(0,1)", "seed=range(0,5)"])
    assert list(space.probes()) == [
        ["x=1", "optimizer=sgd", "optimizer.lr=0.0", "seed=0"],
        ["x=1", "optimizer=adam", "optimizer.lr=1.0", "seed=4"],
        ["x=1", "optimizer=adamw", "optimizer.lr=0.0", "seed=0"],
    ]


FORMS = "write choice(a,b), range(1,10), interval(0,1) or tag(log, interval(1e-5,1e-1))"


@pytest.mark.parametrize(
    ("argument", "needs"),
    [
        ("optimizer.lr=interval(1,0.1)", "an interval from a smaller to a larger finite number"),
        ("optimizer.lr=interval(0,inf)", "an interval from a smaller to a larger finite number"),
        ("optimizer.lr=tag(log, interval(0,1))", "an interval above 0 if it is tagged log"),
        ("train.batch_size=interval(1.5,8)", "an interval of integers"),
        ("seed=range(5,1)", "a range with values in it"),
        ("seed=range(1,5,0)", "a range of finite numbers with a step that is not 0"),
        ("optimizer.lr=tag(log, range(0.1,1,step=0.1))", "a range of integers of at least 1 with step 1 if it is tagged log"),
        ("seed=tag(log, range(1,9,step=2))", "a range of integers of at least 1 with step 1 if it is tagged log"),
        ("seed=tag(log, range(0,5))", "a range of integers of at least 1 with step 1 if it is tagged log"),
        ("seed=shuffle(range(0,5))", "without shuffle and sort, since the sampler chooses the order"),
        ("seed=sort(3,1,2)", "without shuffle and sort, since the sampler chooses the order"),
        ("seed=shuffle(1,2)", "without shuffle and sort, since the sampler chooses the order"),
        ("seed=tag(odd, range(0,5))", "without a tag, or an interval or range with the tag log"),
        ("seed=tag(log, choice(1,2))", "without a tag, or an interval or range with the tag log"),
        ("optimizer=glob(*)", "choice, range or interval"),
    ],
)  # fmt: skip
def test_a_sweep_that_cannot_be_searched_is_refused(argument: str, needs: str) -> None:
    name, _, text = argument.partition("=")
    assert read([argument]) == (Space((), {}), [f"`{name}` must be {needs}, got {text}; {FORMS}"])


def test_a_sweep_that_hydra_cannot_parse_is_refused_with_its_reason() -> None:
    _, problems = read(["optimizer.lr=interval(1)"])
    assert problems == [
        "`optimizer.lr` must be a sweep that Hydra can parse, got interval(1) "
        f"(missing a required argument: 'end'); {FORMS}"
    ]


def test_all_problems_are_reported_at_once() -> None:
    _, problems = read(
        ["seed=range(5,1)", "optimizer.lr=interval(2,1)", "a=1,2", "a=3,4", "b=1", "+b=1,2", "+c=1", "c=1,2"]
    )
    assert [problem.split("`")[1] for problem in problems] == ["seed", "optimizer.lr", "a", "+b", "c"]
    assert problems[2:] == [
        "`a` must be swept once, got two sweeps; leave one out",
        "`+b` must be fixed or swept, got both; leave one out",
        "`c` must be fixed or swept, got both; leave one out",
    ]
