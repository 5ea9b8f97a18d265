"""Arguments of the command line: the plan that they give before anything is composed."""

from __future__ import annotations

from typing import Any

import pytest

from runner.config.hydra_adapter import options
from runner.config.overrides import Plan, parsed, read

GROUPS = options()


def plan(*arguments: str) -> Plan:
    return read(arguments, GROUPS)


def test_options_and_values_are_separated() -> None:
    found = plan("experiment=linreg", "model=mlp", "optimizer.lr=1e-3", "seed=3", "model.widths=[8,8]")
    assert found == Plan(
        groups={"experiment": "linreg", "model": "mlp"},
        values={"optimizer.lr": 1e-3, "seed": 3, "model.widths": [8, 8]},
    )
    assert found.names == ["experiment", "model", "optimizer.lr", "seed", "model.widths"]


@pytest.mark.parametrize("argument", ["experiment=linreg", "+experiment=linreg", "++experiment=linreg"])
def test_a_plus_is_optional(argument: str) -> None:
    assert plan(argument) == Plan(groups={"experiment": "linreg"})
    assert plan("++seed=3").values == plan("+seed=3").values == {"seed": 3}


@pytest.mark.parametrize(
    ("argument", "text"),
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
def test_a_string_key_keeps_the_text_as_typed(argument: str, text: str) -> None:
    found = plan(argument)
    assert found.problems == []
    assert list(found.values.values()) == [text]


@pytest.mark.parametrize(
    ("argument", "value"),
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
def test_other_values_are_parsed(argument: str, value: Any) -> None:
    found = plan(argument)
    assert found.problems == []
    assert list(found.values.values()) == [value]


def test_steps_and_epochs_replace_each_other() -> None:
    assert plan("train.steps=3").values == {"train.steps": 3, "train.epochs": None}
    assert plan("train.epochs=3").values == {"train.epochs": 3, "train.steps": None}
    assert plan("train.epochs=3", "train.steps=null").values == {"train.epochs": 3, "train.steps": None}
    assert plan("train.epochs=null").values == {"train.epochs": None}
    assert plan("train.steps=3", "train.epochs=3").problems == [
        "`train.steps` and `train.epochs` must not both be given, since one replaces the other; remove one"
    ]


def test_a_repeated_key_gets_a_notice_and_the_last_value_counts() -> None:
    found = plan("seed=1", "model=mlp", "seed=2", "model=linear", "model.start.a=1", "model.start.a=2")
    assert found.values == {"seed": 2, "model.start.a": 2}
    assert found.groups == {"model": "linear"}
    assert found.notices == [
        "`seed` is given twice; the last one counts: 2",
        "`model` is given twice; the last one counts: linear",
        "`model.start.a` is given twice; the last one counts: 2",
    ]


def test_a_repeated_value_moves_to_the_end() -> None:
    assert list(plan("model.start={a: 1}", "model.start.a=2", "model.start={}").values) == [
        "model.start.a",
        "model.start",
    ]


def test_a_group_with_an_unknown_option_is_unresolved() -> None:
    found = plan("model=nope", "seed=3")
    assert found.unresolved == {"model"}
    assert found.groups == {}
    assert found.values == {"seed": 3}


def test_no_message_advises_to_add_a_key() -> None:
    arguments = [
        "lrr=3",
        "+lrr=3",
        "++optimizer.lrr=3",
        "nope.nope=1",
        "hydra.nope=3",
        "hydra/launcher=x",
        "optimzer=adam",
    ]
    found = plan(*arguments)
    assert len(found.problems) == len(arguments)
    assert not any("+" in problem for problem in found.problems)


def test_every_argument_is_checked() -> None:
    arguments = ["--lr=3", "foo", "=3", "lrr=1", "model=nope", "~seed", "seed=1,2", "optimizer.lr=a=b", "a@b=c", "train.early_stopping=3"]  # fmt: skip
    assert len(plan(*arguments).problems) == len(arguments)


@pytest.mark.parametrize(
    ("argument", "key", "value"),
    [
        ("model.start={α: 1, 时间: 2.5}", "model.start", {"α": 1, "时间": 2.5}),
        ("model.start.α=1", "model.start.α", 1),
        ("data.features=[Température, 'a é']", "data.features", ["Température", "a é"]),
        ("data.target=时间", "data.target", "时间"),
    ],
)
def test_letters_of_every_alphabet_need_no_quotes(argument: str, key: str, value: object) -> None:
    found = plan(argument)
    assert (found.values, found.problems) == ({key: value}, [])


def test_choices_may_have_letters_of_every_alphabet() -> None:
    swept = parsed("data.target=α,'β γ'")
    assert swept.is_sweep_override()
    assert list(swept.sweep_string_iterator()) == ["α", "'β γ'"]
