"""Properties that every model must have."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from runner.compute.rng import stream
from runner.config import schema as c
from runner.config.compose import compose
from runner.config.trust import VARIABLE
from runner.models.base import Model
from runner.models.base import build as build_model

COLUMNS = ("x", "z")
ROWS = 7

TARGETS = ("u", "v")

CHOICES: dict[str, Any] = {
    "linear": c.Linear(name="linear", init_from=None, bias=True, init="kaiming"),
    "linear without bias": c.Linear(name="linear", init_from=None, bias=False, init="uniform"),
    "polynomial": c.Polynomial(name="polynomial", init_from=None, degree=3, init="kaiming"),
    # Not relu: a finite difference may step over its corner. The others are smooth.
    "mlp": c.Mlp(name="mlp", init_from=None, widths=(5, 4), activation="tanh", dropout=0.0, embedding_size=None),
    "mlp without layers": c.Mlp(
        name="mlp", init_from=None, widths=(), activation="gelu", dropout=0.0, embedding_size=None
    ),
    "mlp dropout": c.Mlp(name="mlp", init_from=None, widths=(5,), activation="silu", dropout=0.5, embedding_size=None),
    "formula": c.Formula(
        name="formula",
        init_from=None,
        expression="a*exp(-b*x) + c*z",
        start={"b": 0.5},
        init="uniform",
        bounds={},
        fixed={},
    ),
    "formula of one column": c.Formula(
        name="formula", init_from=None, expression="a*x + type", start={}, init="normal", bounds={}, fixed={}
    ),
    "formula of two targets": c.Formula(
        name="formula",
        init_from=None,
        expression={"v": "a*exp(-b*x)", "u": "a*x*z + targets"},
        start={"b": 0.5},
        init="uniform",
        bounds={},
        fixed={},
    ),
}

CHOICES["custom"] = c.CustomModel(name="custom", init_from=None, target="my_lab.nets:Net", kwargs={})

# Models that are not listed above, with the values of their YAML files. The one of Python code is nothing without it.
for name, kind in c.ModelConfig.choices.items():
    if kind is not c.MemoryModel and not any(isinstance(choice, kind) for choice in CHOICES.values()):
        CHOICES[name] = compose([f"model={name}"]).config.model


class Choice(NamedTuple):
    config: Any
    targets: Sequence[str]


def _choices() -> Iterator[Any]:
    """Yield every model with one target and with two, as far as its formulas allow it."""
    for name, config in CHOICES.items():
        formula = getattr(config, "expression", None)
        for targets in (TARGETS[:1], TARGETS):
            if formula is None or isinstance(formula, str) == (len(targets) == 1):
                yield pytest.param(Choice(config, targets), id=f"{name}, {len(targets)}")


@pytest.fixture(autouse=True)
def _trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The class of `model=custom` is one of the tests."""
    monkeypatch.setenv(VARIABLE, "my_lab")


@pytest.fixture(params=_choices())
def choice(request: pytest.FixtureRequest) -> Any:
    return request.param


def _build(choice: Choice, seed: int = 0) -> Model:
    return build_model(choice.config, COLUMNS, choice.targets, stream(seed, "init"))


def _features(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(ROWS, len(COLUMNS), dtype=torch.float64, generator=stream(0, "data")).to(dtype)


def _bits(model: Model) -> dict[str, bytes]:
    return {name: parameter.detach().numpy().tobytes() for name, parameter in model.named_parameters()}


def test_there_is_a_prediction_per_row_and_target_in_the_dtype_of_the_parameters(choice: Choice) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for rows in (1, ROWS):
            prediction = _build(choice).to(dtype)(_features(dtype)[:rows])
            assert prediction.shape == (rows, len(choice.targets))
            assert prediction.dtype == dtype


def test_a_prediction_does_not_depend_on_other_rows(choice: Choice) -> None:
    model = _build(choice).eval()
    batched = model(_features())
    single = torch.cat([model(_features()[row : row + 1]) for row in range(ROWS)])
    # A product with one row may be summed in another order: some roundings of numbers near 1.
    torch.testing.assert_close(single, batched, rtol=1e-13, atol=1e-14)


def test_gradients_agree_with_finite_differences(choice: Choice) -> None:
    model = _build(choice).eval()
    names = [name for name, _ in model.named_parameters()]
    values = tuple(parameter.detach().clone().requires_grad_() for parameter in model.parameters())
    features = _features().requires_grad_()

    def forward(x: Tensor, *parameters: Tensor) -> Tensor:
        prediction: Tensor = torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (x,))
        return prediction

    assert torch.autograd.gradcheck(forward, (features, *values))


def test_start_values_depend_only_on_the_generator(choice: Choice) -> None:
    before = torch.get_rng_state()
    first = _bits(_build(choice))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert _bits(_build(choice)) == first
    other = _bits(_build(choice, seed=1))
    drawn = [name for name in first if name not in getattr(choice.config, "start", {})]
    assert all(other[name] != first[name] for name in drawn)


def test_float32_start_values_are_rounded_float64_values(choice: Choice) -> None:
    wide, narrow = _build(choice), _build(choice).to(torch.float32)
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.float64}
    for one, other in zip(wide.parameters(), narrow.parameters(), strict=True):
        assert torch.equal(other, one.float())


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_equal_and_independent(choice: Choice, copier: Any) -> None:
    model = _build(choice).eval()
    copied = copier(model)
    assert torch.equal(copied(_features()), model(_features()))
    parameters = dict(model.named_parameters())
    assert torch.equal(copied.jacobian(parameters, _features()), model.jacobian(parameters, _features()))
    assert copied.draws == model.draws
    before = _bits(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(1)
    assert _bits(model) == before


def test_a_functional_call_uses_other_parameters(choice: Choice) -> None:
    model, other = _build(choice).eval(), _build(choice, seed=1).eval()
    before = _bits(model)
    called = torch.func.functional_call(model, dict(other.named_parameters()), (_features(),))
    assert torch.equal(called, other(_features()))
    assert _bits(model) == before


def test_the_state_dict_is_the_complete_model(choice: Choice) -> None:
    model, other = _build(choice).eval(), _build(choice, seed=1).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(_features()), model(_features()))
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_draws_is_whether_training_draws_random_numbers(choice: Choice) -> None:
    model = _build(choice).train()
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        model(_features())
        assert (not torch.equal(torch.get_rng_state(), before)) == model.draws


# ---------------------------------------------------------------------------------------------------- derivatives


def _parameters(choice: Choice, lanes: int) -> dict[str, Tensor]:
    """Return the start values of `lanes` seeds, stacked."""
    seeds = [dict(_build(choice, seed).named_parameters()) for seed in range(lanes)]
    return {name: torch.stack([values[name] for values in seeds]) for name in seeds[0]}


def _jacobian(choice: Choice, seed: int, features: Tensor) -> Tensor:
    """Return derivatives [rows·targets, numbers] by a loop of torch.autograd over the rows and targets."""
    model = _build(choice, seed).eval()
    derivatives = []
    for row in features:
        for prediction in model(row.unsqueeze(0))[0]:
            gradients = torch.autograd.grad(
                prediction, list(model.parameters()), retain_graph=True, materialize_grads=True
            )
            derivatives.append(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    return torch.stack(derivatives)


def _close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-15)  # roundings


def test_the_jacobian_has_every_derivative_of_every_row(choice: Choice) -> None:
    model = _build(choice).eval()
    parameters = dict(model.named_parameters())
    _close(model.jacobian(parameters, _features()), _jacobian(choice, 0, _features()))
    # Features with lanes, parameters without.
    stacked = torch.stack([_features(), _features() + 1])
    for lane, rows in enumerate(model.jacobian(parameters, stacked)):
        _close(rows, _jacobian(choice, 0, stacked[lane]))


def test_the_jacobian_of_stacked_parameters_is_that_of_each_lane(choice: Choice) -> None:
    for features in (_features().expand(2, -1, -1), torch.stack([_features(), _features() + 1])):
        shared = torch.equal(features[0], features[1])
        result = _build(choice).eval().jacobian(_parameters(choice, 2), features[0] if shared else features)
        for lane, rows in enumerate(result.expand(2, -1, -1)):
            _close(rows, _jacobian(choice, lane, features[lane]))


def test_a_linear_model_has_the_same_jacobian_for_all_parameters(choice: Choice) -> None:
    model = _build(choice).eval()
    jacobians = [_jacobian(choice, seed, _features()) for seed in range(3)]
    assert model.is_linear(_features()) == all(torch.equal(jacobians[0], other) for other in jacobians)
