"""Formulas as models: columns are variables and all other names are parameters, whatever the names are."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from runner.compute.rng import stream
from runner.config import schema as c
from runner.data.scaling import Scaling
from runner.errors import DataError
from runner.models.base import Model
from runner.models.base import build as build_model


def _config(expression: str, **options: Any) -> c.Formula:
    defaults = {"start": {}, "init": "normal", "bounds": {}, "fixed": {}}
    return c.Formula(name="formula", init_from=None, expression=expression, **{**defaults, **options})


def _formula(expression: str, columns: Sequence[str] = ("x",), **options: Any) -> Model:
    return build_model(_config(expression, **options), columns, ["y"], stream(3, "init"))


def _values(model: Model) -> dict[str, float]:
    return {name: float(parameter.detach()) for name, parameter in model.named_parameters()}


def _problems(expression: str, columns: Sequence[str] = ("x",), **options: Any) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        _formula(expression, columns, **options)
    return caught.value.problems


def test_the_prediction_is_the_formulas_value() -> None:
    model = _formula("a*x**2 + b*z - c", ("z", "unused", "x"), start={"a": 2.0, "b": 10.0, "c": 0.5})
    features = torch.tensor([[1.0, 99.0, 3.0], [2.0, 99.0, -1.0]], dtype=torch.float64)
    assert model(features).tolist() == [[27.5], [21.5]]


def test_parameters_are_single_numbers_in_the_order_of_the_formula() -> None:
    model = _formula("c*x + a*x**2 + b")
    assert [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()] == [
        ("c", ()),
        ("a", ()),
        ("b", ()),
    ]


@pytest.mark.parametrize(
    ("init", "draw"),
    [
        ("uniform", lambda g: torch.rand((), dtype=torch.float64, generator=g)),
        ("normal", lambda g: torch.empty((), dtype=torch.float64).normal_(generator=g)),
        ("zeros", lambda g: torch.zeros((), dtype=torch.float64)),
    ],
)
def test_missing_start_values_are_drawn(init: str, draw: Any) -> None:
    generator = stream(3, "init")
    expected = {name: float(draw(generator)) for name in ("a", "b", "c")}
    assert _values(_formula("a*x + b/c", init=init)) == expected


def test_setting_a_start_value_does_not_change_the_others() -> None:
    drawn = _values(_formula("a*x + b/c"))
    assert _values(_formula("a*x + b/c", start={"a": -7.5})) == {**drawn, "a": -7.5}
    assert _values(_formula("a*x + b/c", start={"b": 0.0})) == {**drawn, "b": 0.0}


# One of each kind: a method of torch's module, a method and an attribute of ours, a plain attribute, and a property.
MODULE_ATTRIBUTES = ("state_dict", "train", "columns", "training", "draws", "config_name")


@pytest.mark.parametrize("name", MODULE_ATTRIBUTES)
def test_a_parameter_may_have_the_name_of_a_module_attribute(name: str) -> None:
    model = _formula(f"{name}*x + b", start={name: 2.0, "b": 1.0})
    x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    assert model(x).tolist() == [[3.0], [7.0]]
    model(x).sum().backward()
    gradients = {n: float(p.grad) for n, p in model.named_parameters() if p.grad is not None}
    assert gradients == {name: 4.0, "b": 2.0}
    assert set(model.state_dict()) == {name, "b"}
    other = _formula(f"{name}*x + b", start={name: 0.0, "b": 0.0})
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))
    narrow = copy.deepcopy(model).to(torch.float32)
    assert {p.dtype for p in narrow.parameters()} == {torch.float32}
    called = torch.func.functional_call(
        model, {name: torch.tensor(5.0).double(), "b": torch.tensor(0.0).double()}, (x,)
    )
    assert called.tolist() == [[5.0], [15.0]]
    assert _values(model) == {name: 2.0, "b": 1.0}
    assert model.eval().training is False
    assert model.train().training is True


def test_a_fixed_parameter_is_a_constant_and_moves_no_start_value() -> None:
    drawn = _values(_formula("a*x + b/c"))
    model = _formula("a*x + b/c", fixed={"b": 6.0})
    assert _values(model) == {"a": drawn["a"], "c": drawn["c"]}
    x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    assert torch.equal(model(x), _formula("a*x + 6/c", start=_values(model))(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))


@pytest.mark.parametrize(
    ("bounds", "moved"),
    [
        ((0.0, None), lambda drawn: drawn),
        ((0.0, 1.0), lambda drawn: drawn),
        ((5.0, None), lambda drawn: 5.0 + drawn),
        ((None, -5.0), lambda drawn: -5.0 - drawn),
        ((10.0, 20.0), lambda drawn: 10.0 + 10.0 * drawn),
    ],
)
def test_a_drawn_start_value_is_moved_inside_its_bounds(bounds: Any, moved: Any) -> None:
    drawn = _values(_formula("a*x + b"))
    model = _formula("a*x + b", bounds={"a": bounds})
    assert _values(model) == {"a": pytest.approx(moved(drawn["a"]), rel=1e-15), "b": drawn["b"]}


@pytest.mark.parametrize(("key", "value"), [("bounds", (0.0, None)), ("fixed", 1.0)])
def test_a_bound_or_a_value_for_a_column_is_refused(key: str, value: Any) -> None:
    options: Any = {key: {"x": value}}
    assert _problems("a*x + b", **options) == (
        f"`model.{key}.x` must name a parameter, but 'x' is a column of the data; remove it",
    )


def test_a_formula_without_a_free_parameter_is_refused() -> None:
    assert _problems("a*x + b", fixed={"a": 1.0, "b": 2.0}) == (
        "`model.fixed` must leave a parameter to fit, but has all of a, b; remove one",
    )


def test_reported_parameters_are_the_formulas_own() -> None:
    features = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    scaling = Scaling.fit(features, features[:, 0], scaled=False, scales_target=False, log_target=False)
    model = _formula("a*x + b", start={"a": 0.1, "b": 2.0})
    fitted = model.fitted(scaling)
    assert {name: float(value) for name, value in fitted.items()} == {"a": 0.1, "b": 2.0}
    assert not any(value.requires_grad for value in fitted.values())


def test_a_formula_has_no_tensor_plan_and_no_stages() -> None:
    assert not _formula("a*x + b").tensor_plan()
    assert not _formula("a*x + b").stages(1)


def test_a_start_value_for_a_column_is_refused() -> None:
    assert _problems("a*x + b", start={"x": 1.0}) == (
        "`model.start.x` must name a parameter, but 'x' is a column of the data; remove it",
    )


def test_a_formula_without_a_column_is_refused() -> None:
    assert _problems("a*time + b", ("t", "u")) == (
        "`model.expression` must use a column of the data (t, u), got 'a*time + b'; correct the names, and write those with blanks or signs in backticks",
    )


def test_a_formula_without_a_parameter_is_refused() -> None:
    assert _problems("2*x + z", ("x", "z")) == (
        "`model.expression` must have a parameter to fit, but every name in '2*x + z' is a column; add one",
    )


def test_all_problems_are_reported_at_once() -> None:
    problems = _problems("a*time", ("x",), start={"x": 1.0})
    assert [problem.split(" must ")[0] for problem in problems] == ["`model.start.x`", "`model.expression`"]


def test_columns_of_any_name_are_written_in_backticks() -> None:
    model = _formula("V*`[S] (uM)`/(K + `[S] (uM)`) + `pi`*pi", ("[S] (uM)", "pi"), start={"V": 6.0, "K": 1.0})
    features = torch.tensor([[2.0, 0.0], [5.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(model(features).flatten(), torch.tensor([4.0, 5.0 + torch.pi], dtype=torch.float64))


def test_a_name_in_backticks_must_be_a_column() -> None:
    assert _problems("a*x + `[S] (um)`", ("x", "[S] (uM)")) == (
        "`model.expression` must name a column of the data in backticks, got '[S] (um)'; the columns are 'x', '[S] (uM)'",
    )
    assert _problems("V*S/(K + S)", ("[S] (uM)",)) == (
        "`model.expression` must use a column of the data ([S] (uM)), got 'V*S/(K + S)'; correct the names, and write "
        "those with blanks or signs in backticks, or rename them with data.rename",
    )
    assert _values(_formula("`a`*x", ("x",), start={"a": 2.0})) == {"a": 2.0}


def _doubts(expression: str, features: Sequence[str], *others: str, selected: bool = False) -> list[str]:
    return list(_config(expression).doubts(features, others, selected))


def test_parameters_with_nearly_the_name_of_a_column_are_reported() -> None:
    assert _doubts("a*temp + `Temp 2`*b*temp_2", ("Temp", "Temp 2", "TEMP-2"), "y") == [
        "`model.expression`: the parameter temp has nearly the name of the column 'Temp'; write Temp if the column is meant",
        "`model.expression`: the parameter temp_2 has nearly the name of the column 'TEMP-2'; "
        "write `TEMP-2` if the column is meant",
        "`model.expression` does not use the columns 'Temp', 'TEMP-2' of the data",
    ]
    # The micro sign and the Greek letter look the same.
    assert len(_doubts("a*x + \u00b5", ("x", "\u03bc"), selected=True)) == 1
    assert _doubts("a*x + b", ("x",), "y") == []
    # The column is used once, and written differently the second time.
    assert _doubts("a*X + exp(-b*x)", ("X",), "y") == [
        "`model.expression`: the parameter x has nearly the name of the column 'X'; write X if the column is meant"
    ]


def test_parameters_with_the_name_of_a_column_that_is_no_feature_are_reported() -> None:
    assert _doubts("a*x + z*y", ("x",), "z", "y", selected=True) == [
        f"`model.expression`: {name} is a parameter and not the column '{name}', which is not among the features; "
        "give the parameter another name"
        for name in "zy"
    ]


def test_columns_that_are_not_used_are_one_line_unless_the_user_chose_them() -> None:
    columns = [f"c{i}" for i in range(15)]
    assert _doubts("a*c0 + b", columns[:2]) == ["`model.expression` does not use the column 'c1' of the data"]
    (line,) = _doubts("a*c0 + b", columns)
    assert line.endswith("'c9', 'c10' and 4 more of the data")
    assert _doubts("a*c0 + b", columns, selected=True) == []


def test_letters_of_every_alphabet_are_letters() -> None:
    model = _formula("α*时间 + Température", ("时间",), start={"α": 2.0, "Température": 1.0})
    assert model(torch.tensor([[3.0]], dtype=torch.float64)).tolist() == [[7.0]]
    assert [name for name, _ in model.named_parameters()] == ["α", "Température"]
    # Vowel signs and accents that are characters of their own.
    assert list(_values(_formula("तापमान*x + e\u0301te\u0301 + ที่"))) == ["तापमान", "e\u0301te\u0301", "ที่"]


def test_a_name_that_is_a_constant_and_a_column_is_refused() -> None:
    assert _problems("a*x + b*pi", ("x", "pi")) == (
        "`model.expression` must not use `pi`, which is both a constant and a column of the data; "
        "write the column as `` `pi` `` in backticks, or rename it with data.rename",
    )
    assert _values(_formula("a*x + b*pi", ("x", "pi2"), start={"a": 1.0, "b": 2.0})) == {"a": 1.0, "b": 2.0}
