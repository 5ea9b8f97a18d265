"""What a fit tells of its parameters, against scipy: standard errors, intervals, and whether it is one at all."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from torch import Tensor

from runner.compute.rng import stream
from runner.config import schema as c
from runner.config.compose import compose
from runner.data.scaling import Scaling
from runner.models.base import Model
from runner.models.base import build as build_model
from runner.optim import standard_errors
from runner.optim.standard_errors import Fit, Inference, infer

PLAIN = ["dtype=float64", "optimizer=lm"]


def config(*words: str) -> c.Config:
    return compose([*PLAIN, *words]).config


def built(of: c.Config, columns: int = 1) -> Model:
    return build_model(of.model, ["x"] if columns == 1 else [f"x{i}" for i in range(columns)], stream(0, "init"))


def unscaled(columns: int) -> Scaling:
    return Scaling(torch.zeros(columns).double(), torch.ones(columns).double(), torch.zeros(()).double(), torch.ones(()).double(), False)  # fmt: skip


def inferred(of: c.Config, values: dict[str, Any], x: Tensor, y: Tensor, scaling: Scaling | None = None) -> Inference:
    """Of one run whose parameters have these values."""
    model, scaling = built(of, x.shape[1]), scaling or unscaled(x.shape[1])
    model.load_state_dict({name: torch.as_tensor(value, dtype=torch.float64) for name, value in values.items()})
    parameters = {name: parameter.unsqueeze(0) for name, parameter in model.named_parameters()}
    (found,) = infer(model, parameters, (x, y), [Fit(of, model.fitted(scaling), scaling)])
    assert found is not None
    return found


def column(rows: int = 50, low: float = 0.0, high: float = 5.0) -> Tensor:
    return torch.linspace(low, high, rows, dtype=torch.float64).unsqueeze(1)


def noise(rows: int = 50, size: float = 0.1) -> Tensor:
    return size * torch.randn(rows, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


LINE = "model=linear"
DECAY = ["model=formula", "model.expression=a*exp(-b*x) + d"]


def decay(x: Any, a: float, b: float, d: float) -> Any:
    return a * np.exp(-b * x) + d


def decayed(rows: int = 50, size: float = 0.1) -> tuple[Tensor, Tensor, Any, Any]:
    """Rows, and scipy's solution and covariance."""
    x = column(rows)
    y = torch.tensor(decay(x.numpy(), 3.0, 1.2, 0.5)) + noise(rows, size)
    best, covariance = scipy.optimize.curve_fit(
        decay, x[:, 0].numpy(), y[:, 0].numpy(), [3.0, 1.2, 0.5], xtol=1e-15, ftol=1e-15, gtol=1e-15
    )
    return x, y, best, covariance


# -------------------------------------------------------------------------------------------- errors and intervals


def test_a_straight_line_has_the_errors_of_scipy() -> None:
    x, y = column(), 2 * column() - 1 + noise()
    line = scipy.stats.linregress(x[:, 0].numpy(), y[:, 0].numpy())
    found = inferred(config(LINE), {"weight": [[line.slope]], "bias": [line.intercept]}, x, y)
    assert found.converged
    assert found.standard_errors is not None
    assert float(found.standard_errors["weight"]) == pytest.approx(line.stderr, rel=1e-12)
    assert float(found.standard_errors["bias"]) == pytest.approx(line.intercept_stderr, rel=1e-12)
    assert found.standard_errors["weight"].shape == (1, 1)
    residuals = y[:, 0].numpy() - line.slope * x[:, 0].numpy() - line.intercept
    assert found.residual_deviation == pytest.approx(math.sqrt(np.square(residuals).sum() / 48), rel=1e-12)
    assert found.degrees_of_freedom == 48


@pytest.mark.parametrize("rows", [4, 5, 50, 30_000])  # the last in two pieces
def test_a_curve_has_the_errors_and_intervals_of_scipy(rows: int) -> None:
    x, y, best, covariance = decayed(rows)
    values = dict(zip(("a", "b", "d"), best, strict=True))
    found = inferred(config(*DECAY), values, x, y)
    assert found.converged, found.reason
    assert found.standard_errors is not None
    errors = np.sqrt(np.diag(covariance))
    assert [float(e) for e in found.standard_errors.values()] == pytest.approx(
        errors.tolist(), rel=1e-5
    )  # scipy's derivatives are differences
    t = scipy.stats.t.ppf(0.975, rows - 3)
    fitted = {name: torch.tensor(value) for name, value in values.items()}
    for (low, high), value, error in zip(
        found.intervals(fitted).values(), best, found.standard_errors.values(), strict=True
    ):
        assert float(low) == pytest.approx(value - t * float(error), rel=1e-10)  # what the quantile is held to
        assert float(high) == pytest.approx(value + t * float(error), rel=1e-10)


def test_errors_are_in_the_units_of_the_file() -> None:
    """A line that was fitted to standardised columns, against ordinary least squares on the columns themselves."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 2, generator=generator, dtype=torch.float64) * torch.tensor([3.0, 1e3]) + 50
    y = x @ torch.tensor([[2.0], [-0.1]]).double() + 7 + noise(60, 2.0)
    scaling = Scaling(x.mean(0), x.std(0), y.mean(), y.std(), False)
    inside = ((x - scaling.feature_mean) / scaling.feature_scale, (y - scaling.target_mean) / scaling.target_scale)
    design = np.column_stack((x.numpy(), np.ones(60)))
    solution = np.linalg.lstsq(np.column_stack((inside[0].numpy(), np.ones(60))), inside[1].numpy()[:, 0])[0]
    found = inferred(config(LINE), {"weight": solution[None, :2], "bias": solution[2:]}, *inside, scaling)
    best, squares = np.linalg.lstsq(design, y.numpy()[:, 0])[:2]
    errors = np.sqrt(np.diag(np.linalg.inv(design.T @ design)) * squares[0] / 57)
    assert found.standard_errors is not None
    assert found.standard_errors["weight"].numpy()[0] == pytest.approx(errors[:2], rel=1e-8)  # of the inverse above
    assert float(found.standard_errors["bias"]) == pytest.approx(errors[2], rel=1e-8)
    model = built(config(LINE), 2)
    model.load_state_dict({"weight": torch.tensor(solution[None, :2]), "bias": torch.tensor(solution[2:])})
    low, high = found.intervals(model.fitted(scaling))["weight"]
    assert ((low + high) / 2).numpy()[0] == pytest.approx(best[:2], rel=1e-9)


def test_errors_of_a_fit_without_a_constant_that_was_standardised_tell_of_the_one_it_got() -> None:
    x, y = column(), 2 * column() + 3 + noise()
    scaling = Scaling(x.mean(0), x.std(0), y.mean(), y.std(), False)
    inside = ((x - scaling.feature_mean) / scaling.feature_scale, (y - scaling.target_mean) / scaling.target_scale)
    slope = float((inside[0] * inside[1]).sum() / inside[0].square().sum())
    found = inferred(config(LINE, "model.bias=false"), {"weight": [[slope]]}, *inside, scaling)
    assert found.standard_errors is not None
    weight, bias = (float(found.standard_errors[name]) for name in ("weight", "bias"))
    # The line goes through the means: bias = mean of y − weight · mean of x, the means taken as given.
    assert bias == pytest.approx(weight * float(x.mean()), rel=1e-12)


def test_the_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """400 lines of 6 rows: 95 % of the intervals, give or take three standard deviations of such a count."""
    of, runs = config(LINE), 400
    generator = torch.Generator().manual_seed(2)
    x = column(6)
    y = 2 * x - 1 + torch.randn(runs, 6, 1, generator=generator, dtype=torch.float64)
    design = np.column_stack((x.numpy(), np.ones(6)))
    solutions = torch.tensor(np.linalg.lstsq(design, y[:, :, 0].numpy().T)[0].T)
    parameters = {"weight": solutions[:, None, :1], "bias": solutions[:, 1:]}
    fitted = [{name: value[lane] for name, value in parameters.items()} for lane in range(runs)]
    found = infer(built(of), parameters, (x, y), [Fit(of, own, unscaled(1)) for own in fitted])
    held = 0
    for one, own in zip(found, fitted, strict=True):
        assert one is not None
        low, high = one.intervals(own)["weight"]
        held += int(low <= 2.0 <= high)
    assert abs(held - 0.95 * runs) <= 3 * math.sqrt(0.95 * 0.05 * runs)


def test_lanes_have_what_each_has_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches of two lanes, of which one is not at its optimum and one has no finite value."""
    of = config(*DECAY)
    monkeypatch.setattr("runner.optim.qr.NUMBERS_AT_ONCE", 2 * 50 * 5)
    x, y, best, _ = decayed()
    rows = [[*best], [best[0], best[1], best[2] + 1], [1.0, -1e4, 0.0]]
    parameters = {name: torch.tensor([row[i] for row in rows]).double() for i, name in enumerate(("a", "b", "d"))}
    fits = [Fit(of, {n: v[lane] for n, v in parameters.items()}, unscaled(1)) for lane in range(3)]
    together = infer(built(of), parameters, (x, y), fits)
    for lane, one in enumerate(together):
        alone = inferred(of, {name: value[lane] for name, value in parameters.items()}, x, y)
        assert one is not None
        assert (one.converged, one.reason, one.degrees_of_freedom) == (alone.converged, alone.reason, 47)
        if one.standard_errors is not None and alone.standard_errors is not None:
            for name, error in alone.standard_errors.items():
                assert float(one.standard_errors[name]) == pytest.approx(float(error), rel=1e-11)  # roundings
    assert [one.converged for one in together if one is not None] == [True, False, False]


# --------------------------------------------------------------------------------------------- converged, or not


def test_parameters_that_a_step_would_still_change_have_not_converged() -> None:
    x, y, best, covariance = decayed()
    off = best + np.array([0.3, 0.0, 0.0]) * math.sqrt(covariance[0, 0])
    found = inferred(config(*DECAY), dict(zip(("a", "b", "d"), off, strict=True)), x, y)
    assert not found.converged
    assert found.standard_errors is None
    # The residuals' part along ∂f/∂a, of a thirtieth of a step's effect there, as a share of their length.
    effect = 0.3 * math.sqrt(covariance[0, 0]) * np.linalg.norm(np.exp(-best[1] * x.numpy()))
    share = effect / np.linalg.norm(decay(x.numpy(), *off) - y.numpy())
    assert found.reason == (
        f"a further step would still remove a part of the residuals that has {share:.1g} of their length, "
        "and 1e-06 or less counts as converged"
    )


def test_as_near_as_the_bar_counts() -> None:
    x, y, best, covariance = decayed()
    for share, converged in ((0.5, True), (2.0, False)):
        # A change of d alone shows in all residuals alike.
        away = share * standard_errors.CONVERGED * math.sqrt(float((y - torch.tensor(decay(x.numpy(), *best))).square().sum())) / math.sqrt(50)  # fmt: skip
        values = dict(zip(("a", "b", "d"), best + np.array([0.0, 0.0, away]), strict=True))
        assert inferred(config(*DECAY), values, x, y).converged == converged
    assert covariance[2, 2] > 0


def test_a_plateau_is_no_solution() -> None:
    """So far out that the predictions no longer change with b: its column is zero."""
    x, y = column(6, 1, 10), 200 * (1 - (-0.5 * column(6, 1, 10)).exp()) + noise(6, 5.0)
    level = float(y.mean())
    found = inferred(config("model=formula", "model.expression=a*(1 - exp(-b*x))"), {"a": level, "b": 1e4}, x, y)
    assert not found.converged
    assert found.reason == "some parameters can be changed together without changing the predictions: the data do not tell them apart"  # fmt: skip


def test_a_formula_with_too_many_parameters_is_not_determined() -> None:
    x, y = column(), 3 * column() + noise()
    slope = float((x * y).sum() / x.square().sum())
    found = inferred(config("model=formula", "model.expression=a*b*x"), {"a": 2.0, "b": slope / 2}, x, y)
    assert not found.converged
    assert found.reason.startswith("some parameters can be changed together")
    assert found.standard_errors is None


def test_residuals_that_are_not_finite() -> None:
    x, y = column(), noise()
    found = inferred(config("model=formula", "model.expression=a*log(b - x)"), {"a": 1.0, "b": 3.0}, x, y)
    assert (found.converged, found.reason) == (False, "its residuals or their derivatives are not finite")


def test_as_many_parameters_as_rows_leave_no_errors() -> None:
    x = column(2)
    found = inferred(config(LINE), {"weight": [[3.0]], "bias": [1.0]}, x, 3 * x + 1)
    assert (found.converged, found.degrees_of_freedom, found.standard_errors) == (True, 0, None)
    assert math.isnan(found.residual_deviation)
    assert "standard_errors" not in found.summary({})


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_an_exact_fit_has_converged_at_the_level_of_rounding(dtype: Any) -> None:
    x = column()
    y = torch.tensor(decay(x.numpy(), 3.0, 1.2, 0.5))
    if dtype == "float32":
        x, y = x.float(), y.float()
    values = {"a": 3.0, "b": float(torch.tensor(1.2, dtype=x.dtype)), "d": 0.5}
    found = inferred(replace(config(*DECAY), dtype=dtype), values, x, y)
    assert found.converged, found.reason
    assert found.standard_errors is not None
    eps = torch.finfo(x.dtype).eps
    assert all(float(error) < 10 * eps for error in found.standard_errors.values())


def test_with_weight_decay_there_are_no_errors() -> None:
    """A penalty draws the parameters away from where the errors would be those of least squares."""
    of = config(LINE, "optimizer=lstsq", "optimizer.weight_decay=0.1")
    x, y = column(), 2 * column() - 1 + noise()
    design = np.column_stack((x.numpy(), np.ones(50)))
    weight, bias = np.linalg.solve(design.T @ design / 50 + 0.05 * np.eye(2), design.T @ y.numpy()[:, 0] / 50)
    found = inferred(of, {"weight": [[weight]], "bias": [bias]}, x, y)
    assert (found.converged, found.standard_errors) == (True, None)


UNKNOWN = ["loss=mae optimizer=sgd", "optimizer=adamw optimizer.weight_decay=0.1", "model=mlp optimizer=adam", "dtype=bfloat16 optimizer=sgd"]  # fmt: skip


@pytest.mark.parametrize("words", UNKNOWN)
def test_nothing_is_inferred_where_it_would_not_hold(words: str) -> None:
    of = config(*words.split())
    model = built(of)
    parameters = {name: value.unsqueeze(0) for name, value in model.named_parameters()}
    assert infer(model, parameters, (column(), noise()), [Fit(of, model.fitted(unscaled(1)), unscaled(1))]) == [None]


def test_the_summary_tells_names_and_shapes() -> None:
    x, y = column(), 2 * column() - 1 + noise()
    line = scipy.stats.linregress(x[:, 0].numpy(), y[:, 0].numpy())
    values = {"weight": torch.tensor([[line.slope]]), "bias": torch.tensor([line.intercept])}
    told = inferred(config(LINE), values, x, y).summary(values)
    assert list(told) == [
        "converged",
        "degrees_of_freedom",
        "residual_standard_deviation",
        "standard_errors",
        "confidence_intervals",
    ]
    assert told["converged"] is True
    assert told["standard_errors"]["weight"] == [[pytest.approx(line.stderr, rel=1e-12)]]
    half = scipy.stats.t.ppf(0.975, 48) * line.stderr
    assert told["confidence_intervals"]["weight"] == {
        "low": [[pytest.approx(line.slope - half, rel=1e-10)]],
        "high": [[pytest.approx(line.slope + half, rel=1e-10)]],
    }
