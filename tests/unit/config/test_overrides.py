"""Words of the command line: what they are sorted into, before anything is composed."""

from __future__ import annotations

from typing import Any

import pytest

from runner.config.hydra_adapter import options
from runner.config.overrides import Plan, read

GROUPS = options()


def plan(*words: str) -> Plan:
    return read(words, GROUPS)


def test_options_and_values_are_told_apart() -> None:
    found = plan("experiment=linreg", "model=mlp", "optimizer.lr=1e-3", "seed=3", "model.widths=[8,8]")
    assert found == Plan(
        groups={"experiment": "linreg", "model": "mlp"},
        values={"optimizer.lr": 1e-3, "seed": 3, "model.widths": [8, 8]},
    )
    assert found.names == ["experiment", "model", "optimizer.lr", "seed", "model.widths"]


@pytest.mark.parametrize("word", ["experiment=linreg", "+experiment=linreg", "++experiment=linreg"])
def test_a_plus_does_not_matter(word: str) -> None:
    assert plan(word) == Plan(groups={"experiment": "linreg"})
    assert plan("++seed=3").values == plan("+seed=3").values == {"seed": 3}


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("data.path=my file.csv", "my file.csv"),
        ("data.path='my file.csv'", "my file.csv"),
        ("data.path=a=b,c.csv", "a=b,c.csv"),
        ("data.path='a,b.csv'", "a,b.csv"),
        ("data.path=größe.csv", "größe.csv"),
        ("data.path=it's.csv", "it's.csv"),
        ("data.path=back\\slash 'x'", "back\\slash 'x'"),
        ("data.path=ends(with\\", "ends(with\\"),
        ("data.path='unclosed", "'unclosed"),
        ("data.path=007", "007"),
        ("data.target=true", "true"),
        ("name=2024", "2024"),
        ("name=1e3", "1e3"),
        ("name=", ""),
        ("name=~", "~"),
        ("model.expression=a*x + b", "a*x + b"),
        ("model.expression=a*exp(-b*x) + c", "a*exp(-b*x) + c"),
        ("model.expression=sin(x)", "sin(x)"),
        ("model.expression='sin(x)'", "sin(x)"),
        ("run_dir=${oc.env:HOME}/x", "${oc.env:HOME}/x"),
    ],
)
def test_a_text_is_taken_as_it_is_typed(word: str, text: str) -> None:
    found = plan(word)
    assert found.problems == []
    assert list(found.values.values()) == [text]


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("run_dir=null", None),
        ("optimizer.lr=1e3", 1000.0),
        ("seed=${a:${b}}", "${a:${b}}"),
        ("record.plots=false", False),
        ("model.start={a: 0.5, b: .1}", {"a": 0.5, "b": 0.1}),
        ("model.start={1: 2}", {"1": 2}),
        ("model.start={}", {}),
        ("model.start.a=3", 3),
        ("data.features=[a,'b c']", ["a", "b c"]),
        ("dtype=int64", "int64"),
        ("optimizer.lr=", ""),
    ],
)
def test_other_values_are_read_as_yaml(word: str, value: Any) -> None:
    found = plan(word)
    assert found.problems == []
    assert list(found.values.values()) == [value]


def test_steps_and_epochs_replace_each_other() -> None:
    assert plan("train.steps=3").values == {"train.steps": 3, "train.epochs": None}
    assert plan("train.epochs=3").values == {"train.epochs": 3, "train.steps": None}
    assert plan("train.epochs=3", "train.steps=null").values == {"train.epochs": 3, "train.steps": None}
    assert plan("train.epochs=null").values == {"train.epochs": None}
    assert plan("train.steps=3", "train.epochs=3").problems == [
        "`train.steps` and `train.epochs` are both given; one replaces the other: leave one out"
    ]


def test_what_is_given_twice_is_noticed_and_the_last_counts() -> None:
    found = plan("seed=1", "model=mlp", "seed=2", "model=linear", "model.start.a=1", "model.start.a=2")
    assert found.values == {"seed": 2, "model.start.a": 2}
    assert found.groups == {"model": "linear"}
    assert found.notices == [
        "`seed` is given twice; the last one counts: 2",
        "`model` is given twice; the last one counts: linear",
        "`model.start.a` is given twice; the last one counts: 2",
    ]


def test_a_value_given_again_comes_last() -> None:
    assert list(plan("model.start={a: 1}", "model.start.a=2", "model.start={}").values) == [
        "model.start.a",
        "model.start",
    ]


def test_a_group_without_an_option_is_undecided() -> None:
    found = plan("model=nope", "seed=3")
    assert found.undecided == {"model"}
    assert found.groups == {}
    assert found.values == {"seed": 3}


def test_no_advice_is_to_add_a_key() -> None:
    words = ["lrr=3", "+lrr=3", "++optimizer.lrr=3", "nope.nope=1", "hydra.nope=3", "hydra/launcher=x", "optimzer=adam"]
    found = plan(*words)
    assert len(found.problems) == len(words)
    assert not any("+" in problem for problem in found.problems)


def test_every_word_is_judged() -> None:
    words = ["--lr=3", "foo", "=3", "lrr=1", "model=nope", "~seed", "seed=1,2", "optimizer.lr=a=b", "a@b=c", "train.early_stopping=3"]  # fmt: skip
    assert len(plan(*words).problems) == len(words)
