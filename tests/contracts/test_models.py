"""What every model keeps to, whatever it computes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from runner.compute.rng import stream
from runner.config import schema as c
from runner.config.compose import compose
from runner.models.base import Model
from runner.models.base import build as build_model

COLUMNS = ("x", "z")
ROWS = 7

CHOICES: dict[str, Any] = {
    **{f"linear {init}": c.Linear(name="linear", bias=True, init=init) for init in ("kaiming", "uniform", "normal")},
    "linear unbiased": c.Linear(name="linear", bias=False, init="kaiming"),
    "linear zeros": c.Linear(name="linear", bias=True, init="zeros"),
    "polynomial": c.Polynomial(name="polynomial", degree=3, init="kaiming"),
    # relu has no gradient at its corner, which a finite difference may step over; the others are smooth.
    "mlp": c.Mlp(name="mlp", widths=(5, 4), activation="tanh", dropout=0.0),
    "mlp without layers": c.Mlp(name="mlp", widths=(), activation="gelu", dropout=0.0),
    "mlp dropout": c.Mlp(name="mlp", widths=(5,), activation="silu", dropout=0.5),
    "formula": c.Formula(name="formula", expression="a*exp(-b*x) + c*z", start={"b": 0.5}, init="uniform"),
    "formula of one column": c.Formula(name="formula", expression="a*x + type", start={}, init="normal"),
}

# Models that are not listed above, with the values of their YAML files.
for name, kind in c.ModelConfig.choices.items():
    if not any(isinstance(choice, kind) for choice in CHOICES.values()):
        CHOICES[name] = compose([f"model={name}"]).config.model


@pytest.fixture(params=CHOICES)
def choice(request: pytest.FixtureRequest) -> Any:
    return CHOICES[request.param]


def _build(choice: Any, seed: int = 0) -> Model:
    return build_model(choice, COLUMNS, stream(seed, "init"))


def _features(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(ROWS, len(COLUMNS), dtype=torch.float64, generator=stream(0, "data")).to(dtype)


def _bits(model: Model) -> dict[str, bytes]:
    return {name: parameter.detach().numpy().tobytes() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, ROWS])
def test_one_number_a_row_in_the_parameters_type(choice: Any, dtype: torch.dtype, rows: int) -> None:
    prediction = _build(choice).to(dtype)(_features(dtype)[:rows])
    assert prediction.shape == (rows, 1)
    assert prediction.dtype == dtype


def test_a_rows_prediction_does_not_depend_on_the_others(choice: Any) -> None:
    model = _build(choice).eval()
    together = model(_features())
    alone = torch.cat([model(_features()[row : row + 1]) for row in range(ROWS)])
    # A product with one row may be summed in another order: some roundings of numbers near 1.
    torch.testing.assert_close(alone, together, rtol=1e-13, atol=1e-14)


def test_gradients_are_those_of_finite_differences(choice: Any) -> None:
    model = _build(choice).eval()
    names = [name for name, _ in model.named_parameters()]
    values = tuple(parameter.detach().clone().requires_grad_() for parameter in model.parameters())
    features = _features().requires_grad_()

    def forward(x: Tensor, *parameters: Tensor) -> Tensor:
        prediction: Tensor = torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (x,))
        return prediction

    assert torch.autograd.gradcheck(forward, (features, *values))


def test_start_values_come_from_the_generator_alone(choice: Any) -> None:
    before = torch.get_rng_state()
    first = _bits(_build(choice))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert _bits(_build(choice)) == first
    if getattr(choice, "init", None) != "zeros":
        other = _bits(_build(choice, seed=1))
        drawn = [name for name in first if name not in getattr(choice, "start", {})]
        assert all(other[name] != first[name] for name in drawn)


def test_float32_starts_from_the_rounded_numbers_of_float64(choice: Any) -> None:
    wide, narrow = _build(choice), _build(choice).to(torch.float32)
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.float64}
    for one, other in zip(wide.parameters(), narrow.parameters(), strict=True):
        assert torch.equal(other, one.float())


def test_a_copy_is_equal_and_apart(choice: Any) -> None:
    model = _build(choice).eval()
    copied = copy.deepcopy(model)
    assert torch.equal(copied(_features()), model(_features()))
    assert copied.draws == model.draws
    before = _bits(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(1)
    assert _bits(model) == before


def test_other_parameters_can_stand_in(choice: Any) -> None:
    model, other = _build(choice).eval(), _build(choice, seed=1).eval()
    before = _bits(model)
    stood_in = torch.func.functional_call(model, dict(other.named_parameters()), (_features(),))
    assert torch.equal(stood_in, other(_features()))
    assert _bits(model) == before


def test_the_state_is_the_whole_model(choice: Any) -> None:
    model, other = _build(choice).eval(), _build(choice, seed=1).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(_features()), model(_features()))
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_draws_tells_whether_training_draws(choice: Any) -> None:
    model = _build(choice).train()
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        model(_features())
        assert (not torch.equal(torch.get_rng_state(), before)) == model.draws


# ---------------------------------------------------------------------------------------------------- derivatives


def _parameters(choice: Any, lanes: int | None) -> dict[str, Tensor]:
    own = [dict(_build(choice, seed).named_parameters()) for seed in range(lanes or 1)]
    stacked = {name: torch.stack([values[name] for values in own]) for name in own[0]}
    return stacked if lanes else {name: value[0] for name, value in stacked.items()}


def _numbers(choice: Any, seed: int, features: Tensor) -> Tensor:
    """Derivatives [rows, numbers] by torch's own loop over the rows."""
    model = _build(choice, seed).eval()
    found = []
    for row in features:
        gradients = torch.autograd.grad(model(row.unsqueeze(0)).sum(), list(model.parameters()))
        found.append(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    return torch.stack(found)


def test_the_jacobian_has_every_derivative_of_every_row(choice: Any) -> None:
    model = _build(choice).eval()
    found = model.jacobian(_parameters(choice, None), _features())
    torch.testing.assert_close(found, _numbers(choice, 0, _features()), rtol=1e-13, atol=1e-15)  # roundings


@pytest.mark.parametrize("own", [False, True])
def test_the_jacobian_of_lanes_is_that_of_each(choice: Any, own: bool) -> None:
    features = [_features() + lane for lane in range(2)] if own else [_features()] * 2
    given = torch.stack(features) if own else features[0]
    found = _build(choice).eval().jacobian(_parameters(choice, 2), given)
    for lane, rows in enumerate(found.expand(2, -1, -1)):
        torch.testing.assert_close(rows, _numbers(choice, lane, features[lane]), rtol=1e-13, atol=1e-15)  # roundings


def test_features_alone_may_have_lanes(choice: Any) -> None:
    features = torch.stack([_features(), _features() + 1])
    found = _build(choice).eval().jacobian(_parameters(choice, None), features)
    for lane in range(2):
        torch.testing.assert_close(
            found[lane], _numbers(choice, 0, features[lane]), rtol=1e-13, atol=1e-15
        )  # roundings


def test_a_model_that_says_it_is_linear_has_one_jacobian(choice: Any) -> None:
    model = _build(choice).eval()
    jacobians = [_numbers(choice, seed, _features()) for seed in range(3)]
    assert model.is_linear(_features()) == all(torch.equal(jacobians[0], other) for other in jacobians)
