"""Linear models: start values, powers of the polynomial, and parameters in the units of the file."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from runner.compute.rng import stream
from runner.config import schema as c
from runner.data.scaling import Scaling
from runner.models.base import Model
from runner.models.base import build as build_model

COLUMNS = ("a", "b", "c")
LINEAR = c.Linear(name="linear", init_from=None, bias=True, init="kaiming")


def _linear(columns: tuple[str, ...] = COLUMNS, seed: int = 0, **changes: Any) -> Model:
    return build_model(dataclasses.replace(LINEAR, **changes), columns, ["y"], stream(seed, "init"))


def _polynomial(degree: int, columns: tuple[str, ...] = COLUMNS, init: Any = "kaiming") -> Model:
    return build_model(
        c.Polynomial(name="polynomial", init_from=None, degree=degree, init=init), columns, ["y"], stream(0, "init")
    )


def _with(model: Model, **values: Any) -> Model:
    for name, value in values.items():
        model.get_parameter(name.replace("__", ".")).data = torch.tensor(value, dtype=torch.float64)
    return model


@pytest.mark.parametrize(
    ("init", "draw"),
    [
        ("uniform", lambda shape, g: torch.rand(shape, dtype=torch.float64, generator=g)),
        ("normal", lambda shape, g: torch.randn(shape, dtype=torch.float64, generator=g)),
        ("zeros", lambda shape, g: torch.zeros(shape, dtype=torch.float64)),
        # U(−1/√3, 1/√3) for three columns
        ("kaiming", lambda shape, g: (2 * torch.rand(shape, dtype=torch.float64, generator=g) - 1) / math.sqrt(3)),
    ],
)
def test_start_values_have_the_configured_distribution(init: str, draw: Any) -> None:
    generator = stream(5, "init")
    expected = {"weight": draw((1, 3), generator), "bias": draw((1,), generator)}
    model = _linear(seed=5, init=init)
    # The range is scaled in another order here: one or two roundings.
    torch.testing.assert_close(dict(model.named_parameters()), expected, rtol=0, atol=4e-16, check_device=False)


def test_kaiming_is_the_default_of_torch() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        layer = torch.nn.Linear(3, 1, dtype=torch.float64)
    model = build_model(LINEAR, COLUMNS, ["y"], torch.Generator().manual_seed(5))
    # The same numbers in the same order; torch computes the bound as √(6 / (1 + 5)) / √3, which may round differently.
    torch.testing.assert_close(dict(model.named_parameters()), dict(layer.named_parameters()), rtol=1e-15, atol=0)


def test_the_prediction_is_the_weighted_sum() -> None:
    model = _with(_linear(), weight=[[1.0, 10.0, 100.0]], bias=[0.5])
    assert model(torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]]).double()).tolist() == [[321.5], [100.5]]


def test_without_a_bias_there_is_none() -> None:
    assert [name for name, _ in _linear(bias=False).named_parameters()] == ["weight"]


def test_the_powers_of_one_feature_are_adjacent() -> None:
    model = _with(_polynomial(3, ("a", "b")), linear__weight=[[1.0, 10.0, 100.0, 1e3, 1e4, 1e5]], linear__bias=[0.5])
    # a = 2: 2 + 40 + 800; b = −1: −1e3 + 1e4 − 1e5
    assert model(torch.tensor([[2.0, -1.0]]).double()).tolist() == [[842 - 91_000 + 0.5]]


def test_a_polynomial_of_degree_one_is_the_linear_model() -> None:
    features = torch.rand(4, 3, dtype=torch.float64, generator=stream(1, "data"))
    assert torch.equal(_polynomial(1)(features), _linear()(features))


def test_the_polynomials_powers_follow_its_dtype() -> None:
    model = _polynomial(2, ("a",)).to(torch.float32)
    assert model(torch.tensor([[3.0]])).dtype == torch.float32
    assert set(model.state_dict()) == {"linear.weight", "linear.bias"}


def _scaled(standardize: bool) -> tuple[Scaling, Tensor]:
    features = torch.tensor([[1.0, 20.0, 3.0], [2.0, 50.0, 1.0], [4.0, 30.0, 7.0]], dtype=torch.float64)
    target = torch.tensor([5.0, 9.0, -2.0], dtype=torch.float64)
    return Scaling.fit(features, target, scaled=standardize, scales_target=standardize, log_target=False), features


@pytest.mark.parametrize("bias", [True, False])
def test_reported_parameters_predict_in_the_units_of_the_file(bias: bool) -> None:
    scaling, features = _scaled(standardize=True)
    model = _linear(bias=bias)
    fitted = model.fitted(scaling)
    from_reported = features @ fitted["weight"].T + fitted["bias"]
    from_model = scaling.undo(model(scaling.features(features))).detach()
    # Features of up to 50 with coefficients near 1: some roundings of numbers below 100.
    torch.testing.assert_close(from_reported, from_model, rtol=0, atol=1e-13)
    assert fitted["weight"].shape == (1, 3)
    assert fitted["bias"].shape == (1,)


def test_without_scaling_the_parameters_are_reported_unchanged() -> None:
    scaling, _ = _scaled(standardize=False)
    model = _linear()
    assert {name: value.tolist() for name, value in model.fitted(scaling).items()} == {
        "weight": model.get_parameter("weight").tolist(),
        "bias": model.get_parameter("bias").tolist(),
    }
    assert set(_linear(bias=False).fitted(scaling)) == {"weight"}
    polynomial = _polynomial(2).fitted(scaling)
    assert set(polynomial) == {"linear.weight", "linear.bias"}
    assert not any(value.requires_grad for value in polynomial.values())


def test_the_scaling_of_float32_parameters_is_undone_in_float64() -> None:
    scaling, _ = _scaled(standardize=True)
    narrow = _linear().to(torch.float32)
    fitted = narrow.fitted(scaling)
    widened = copy.deepcopy(narrow).double().fitted(scaling)
    assert {value.dtype for value in fitted.values()} == {torch.float64}
    assert all(torch.equal(fitted[name], widened[name]) for name in ("weight", "bias"))


def test_a_linear_layer_is_split_by_its_inputs_and_has_no_stages() -> None:
    assert _linear().tensor_plan() == {"": "row"}
    assert _polynomial(2).tensor_plan() == {"linear": "row"}
    assert not _linear().stages(1)
    assert not _polynomial(2).stages(1)


def test_a_polynomial_undoes_the_scaling_of_data() -> None:
    """Its values in the units of the file are those of the polynomial of scaled features."""
    model = _polynomial(3, ("a", "b"))
    features = torch.linspace(90, 110, 12, dtype=torch.float64).reshape(6, 2) + torch.tensor([0.0, 500.0])
    target = torch.linspace(-3, 8, 6, dtype=torch.float64)
    scaling = Scaling.fit(features, target, scaled=True, scales_target=True, log_target=False)
    predicted = scaling.undo(model(scaling.features(features))).flatten()
    fitted = model.fitted(scaling)
    powers = features.unsqueeze(-1).pow(torch.arange(1, 4)).flatten(-2)
    in_units = (powers @ fitted["linear.weight"].T + fitted["linear.bias"]).flatten()
    # The coefficients reach 1e5, and cancel: 600³ times the rounding of float64.
    torch.testing.assert_close(in_units, predicted, rtol=0, atol=1e-4)
    unscaling = model.unscaling(scaling)
    assert unscaling is not None
    own = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    mapped = unscaling @ own
    torch.testing.assert_close(mapped[:-1], fitted["linear.weight"].flatten(), rtol=0, atol=0)


def test_a_polynomial_of_unscaled_data_reports_its_parameters() -> None:
    model = _polynomial(2, ("a",))
    features, target = torch.arange(6.0).double().unsqueeze(1), torch.arange(6.0).double()
    fitted = model.fitted(Scaling.fit(features, target, scaled=False, scales_target=False, log_target=False))
    for name, parameter in model.named_parameters():
        assert torch.equal(fitted[name], parameter)
