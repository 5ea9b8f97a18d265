"""Standard errors, confidence intervals and convergence of fits, against scipy."""

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

from runner.compute.batch import Batch
from runner.compute.rng import stream
from runner.config import schema as c
from runner.config.compose import compose
from runner.data.scaling import Scaling
from runner.models.base import Model
from runner.models.base import build as build_model
from runner.optim import convergence
from runner.optim.standard_errors import Fit, Inference, infer

PLAIN = ["dtype=float64", "optimizer=lm"]


def config(*overrides: str) -> c.Config:
    return compose([*PLAIN, *overrides]).config


def make_model(settings: c.Config, columns: int = 1) -> Model:
    return build_model(
        settings.model, ["x"] if columns == 1 else [f"x{i}" for i in range(columns)], ["y"], stream(0, "init")
    )


def no_scaling(columns: int) -> Scaling:
    return Scaling(torch.zeros(columns).double(), torch.ones(columns).double(), torch.zeros(()).double(), torch.ones(()).double(), False)  # fmt: skip


def because(result: Inference) -> str:
    """Return why a fit whose optimizer could go on has not converged."""
    return result.verdict.reason(settled=False)


def infer_one(
    settings: c.Config, values: dict[str, Any], x: Tensor, y: Tensor, scaling: Scaling | None = None
) -> Inference:
    """Return the result for one run whose parameters have these values."""
    model, scaling = make_model(settings, x.shape[1]), scaling or no_scaling(x.shape[1])
    model.load_state_dict({name: torch.as_tensor(value, dtype=torch.float64) for name, value in values.items()})
    parameters = {name: parameter.unsqueeze(0) for name, parameter in model.named_parameters()}
    (result,) = infer(model, parameters, Batch(x, y), [Fit(settings, model.fitted(scaling), scaling, None)])
    assert result is not None
    return result


def column(rows: int = 50, low: float = 0.0, high: float = 5.0) -> Tensor:
    return torch.linspace(low, high, rows, dtype=torch.float64).unsqueeze(1)


def noise(rows: int = 50, size: float = 0.1) -> Tensor:
    return size * torch.randn(rows, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


LINE = "model=linear"
DECAY = ["model=formula", "model.expression=a*exp(-b*x) + d"]


def decay(x: Any, a: float, b: float, d: float) -> Any:
    return a * np.exp(-b * x) + d


def decay_rows(rows: int = 50, size: float = 0.1) -> tuple[Tensor, Tensor, Any, Any]:
    """Return rows, and scipy's solution and covariance."""
    x = column(rows)
    y = torch.tensor(decay(x.numpy(), 3.0, 1.2, 0.5)) + noise(rows, size)
    best, covariance = scipy.optimize.curve_fit(
        decay, x[:, 0].numpy(), y[:, 0].numpy(), [3.0, 1.2, 0.5], xtol=1e-15, ftol=1e-15, gtol=1e-15
    )
    return x, y, best, covariance


# ------------------------------------------------------------------------------------------- errors and intervals


def test_a_straight_line_has_the_errors_of_scipy() -> None:
    x, y = column(), 2 * column() - 1 + noise()
    line = scipy.stats.linregress(x[:, 0].numpy(), y[:, 0].numpy())
    result = infer_one(config(LINE), {"weight": [[line.slope]], "bias": [line.intercept]}, x, y)
    assert result.converged
    assert result.standard_errors is not None
    assert float(result.standard_errors["weight"]) == pytest.approx(line.stderr, rel=1e-12)
    assert float(result.standard_errors["bias"]) == pytest.approx(line.intercept_stderr, rel=1e-12)
    assert result.standard_errors["weight"].shape == (1, 1)
    residuals = y[:, 0].numpy() - line.slope * x[:, 0].numpy() - line.intercept
    assert result.residual_deviations[0] == pytest.approx(math.sqrt(np.square(residuals).sum() / 48), rel=1e-12)
    assert result.degrees_of_freedom == 48


@pytest.mark.parametrize("rows", [4, 5, 50, 30_000])  # the last in two pieces
def test_a_curve_has_the_errors_and_intervals_of_scipy(rows: int) -> None:
    x, y, best, covariance = decay_rows(rows)
    values = dict(zip(("a", "b", "d"), best, strict=True))
    result = infer_one(config(*DECAY), values, x, y)
    assert result.converged, because(result)
    assert result.standard_errors is not None
    errors = np.sqrt(np.diag(covariance))
    assert [float(e) for e in result.standard_errors.values()] == pytest.approx(
        errors.tolist(), rel=1e-5
    )  # scipy's derivatives are differences
    t = scipy.stats.t.ppf(0.975, rows - 3)
    fitted = {name: torch.tensor(value) for name, value in values.items()}
    for (low, high), value, error in zip(
        result.intervals(fitted).values(), best, result.standard_errors.values(), strict=True
    ):
        assert float(low) == pytest.approx(value - t * float(error), rel=1e-10)  # accuracy of the quantile
        assert float(high) == pytest.approx(value + t * float(error), rel=1e-10)


def test_errors_are_in_the_units_of_the_file() -> None:
    """A line fitted to standardized columns, against ordinary least squares on the raw columns."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 2, generator=generator, dtype=torch.float64) * torch.tensor([3.0, 1e3]) + 50
    y = x @ torch.tensor([[2.0], [-0.1]]).double() + 7 + noise(60, 2.0)
    scaling = Scaling(x.mean(0), x.std(0), y.mean(), y.std(), False)
    scaled = ((x - scaling.feature_mean) / scaling.feature_scale, (y - scaling.target_mean) / scaling.target_scale)
    design = np.column_stack((x.numpy(), np.ones(60)))
    solution = np.linalg.lstsq(np.column_stack((scaled[0].numpy(), np.ones(60))), scaled[1].numpy()[:, 0])[0]
    result = infer_one(config(LINE), {"weight": solution[None, :2], "bias": solution[2:]}, *scaled, scaling)
    best, squares = np.linalg.lstsq(design, y.numpy()[:, 0])[:2]
    errors = np.sqrt(np.diag(np.linalg.inv(design.T @ design)) * squares[0] / 57)
    assert result.standard_errors is not None
    assert result.standard_errors["weight"].numpy()[0] == pytest.approx(
        errors[:2], rel=1e-8
    )  # error of the inverse above
    assert float(result.standard_errors["bias"]) == pytest.approx(errors[2], rel=1e-8)
    model = make_model(config(LINE), 2)
    model.load_state_dict({"weight": torch.tensor(solution[None, :2]), "bias": torch.tensor(solution[2:])})
    low, high = result.intervals(model.fitted(scaling))["weight"]
    assert ((low + high) / 2).numpy()[0] == pytest.approx(best[:2], rel=1e-9)


def test_a_standardized_fit_without_a_bias_has_an_error_for_the_bias_that_scaling_adds() -> None:
    x, y = column(), 2 * column() + 3 + noise()
    scaling = Scaling(x.mean(0), x.std(0), y.mean(), y.std(), False)
    scaled = ((x - scaling.feature_mean) / scaling.feature_scale, (y - scaling.target_mean) / scaling.target_scale)
    slope = float((scaled[0] * scaled[1]).sum() / scaled[0].square().sum())
    result = infer_one(config(LINE, "model.bias=false"), {"weight": [[slope]]}, *scaled, scaling)
    assert result.standard_errors is not None
    weight, bias = (float(result.standard_errors[name]) for name in ("weight", "bias"))
    # The line goes through the means: bias = mean of y − weight · mean of x, with exact means.
    assert bias == pytest.approx(weight * float(x.mean()), rel=1e-12)


def test_the_intervals_contain_the_true_value_in_95_percent_of_runs() -> None:
    """400 lines of 6 rows: 95 % of the intervals, within three standard deviations of that count."""
    settings, runs = config(LINE), 400
    generator = torch.Generator().manual_seed(2)
    x = column(6)
    y = 2 * x - 1 + torch.randn(runs, 6, 1, generator=generator, dtype=torch.float64)
    design = np.column_stack((x.numpy(), np.ones(6)))
    solutions = torch.tensor(np.linalg.lstsq(design, y[:, :, 0].numpy().T)[0].T)
    parameters = {"weight": solutions[:, None, :1], "bias": solutions[:, 1:]}
    fitted = [{name: value[lane] for name, value in parameters.items()} for lane in range(runs)]
    results = infer(
        make_model(settings), parameters, Batch(x, y), [Fit(settings, one, no_scaling(1), None) for one in fitted]
    )
    covered = 0
    for result, one in zip(results, fitted, strict=True):
        assert result is not None
        low, high = result.intervals(one)["weight"]
        covered += int(low <= 2.0 <= high)
    assert abs(covered - 0.95 * runs) <= 3 * math.sqrt(0.95 * 0.05 * runs)


def test_vmapped_fits_have_the_results_of_single_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of two lanes; one lane is not at its optimum and one has no finite value."""
    settings = config(*DECAY)
    monkeypatch.setattr("runner.optim.qr.NUMBERS_AT_ONCE", 2 * 50 * 5)
    x, y, best, _ = decay_rows()
    rows = [[*best], [best[0], best[1], best[2] + 1], [1.0, -1e4, 0.0]]
    parameters = {name: torch.tensor([row[i] for row in rows]).double() for i, name in enumerate(("a", "b", "d"))}
    fits = [Fit(settings, {n: v[lane] for n, v in parameters.items()}, no_scaling(1), None) for lane in range(3)]
    together = infer(make_model(settings), parameters, Batch(x, y), fits)
    for lane, one in enumerate(together):
        single = infer_one(settings, {name: value[lane] for name, value in parameters.items()}, x, y)
        assert one is not None
        assert (one.converged, one.verdict.cause, one.degrees_of_freedom) == (
            single.converged,
            single.verdict.cause,
            47,
        )
        if one.standard_errors is not None and single.standard_errors is not None:
            for name, error in single.standard_errors.items():
                assert float(one.standard_errors[name]) == pytest.approx(float(error), rel=1e-11)  # roundings
    assert [one.converged for one in together if one is not None] == [True, False, False]


# --------------------------------------------------------------------------------------------- converged, or not


def test_parameters_away_from_the_optimum_have_not_converged() -> None:
    x, y, best, covariance = decay_rows()
    off = best + np.array([0.3, 0.0, 0.0]) * math.sqrt(covariance[0, 0])
    result = infer_one(config(*DECAY), dict(zip(("a", "b", "d"), off, strict=True)), x, y)
    assert not result.converged
    assert result.standard_errors is None
    # The residuals change along ∂f/∂a only, by 0.3 standard errors; the offset is relative to their length.
    effect = 0.3 * math.sqrt(covariance[0, 0]) * np.linalg.norm(np.exp(-best[1] * x.numpy()))
    share = effect / np.linalg.norm(decay(x.numpy(), *off) - y.numpy())
    assert (
        because(result)
        == f"the parameters are still changing (relative offset {share:.1g}, threshold 1e-06); train longer"
    )


@pytest.mark.parametrize(
    ("overrides", "advice"),
    [
        ("model=linear optimizer=sgd", "train longer, use data.standardize=true or use optimizer=lstsq"),
        ("model=linear optimizer=sgd data.standardize=true", "train longer or use optimizer=lstsq"),
        ("model=linear optimizer=sgd train.batch_size=8", "train longer or use data.standardize=true"),
        ("model=formula model.expression=w*x+b optimizer=sgd", "train longer or use optimizer=lstsq"),
        ("model=formula model.expression=w**2*x+b optimizer=lbfgs", "train longer or use optimizer=lm"),
        ("model=linear optimizer=lm", "train longer"),
    ],
)
def test_the_advice_for_a_fit_that_has_not_converged_is_allowed_by_its_configuration(
    overrides: str, advice: str
) -> None:
    settings = config(*overrides.split())
    names = {"weight": [[1.0]], "bias": [1.0]} if "linear" in overrides else {"w": 1.0, "b": 1.0}
    result = infer_one(settings, names, column(), 2 * column() + noise())
    assert because(result).startswith("the parameters are still changing (relative offset ")
    assert because(result).partition("; ")[2] == advice
    for key in ("data.standardize=true", "optimizer=lstsq", "optimizer=lm"):
        if f"use {key}" in advice:
            config(*[word for word in overrides.split() if not word.startswith(key.split("=")[0] + "=")], key)


def test_the_threshold_of_convergence_is_a_relative_offset() -> None:
    x, y, best, covariance = decay_rows()
    for share, converged in ((0.5, True), (2.0, False)):
        # A change of d changes all residuals by the same amount.
        away = share * convergence.CONVERGED * math.sqrt(float((y - torch.tensor(decay(x.numpy(), *best))).square().sum())) / math.sqrt(50)  # fmt: skip
        values = dict(zip(("a", "b", "d"), best + np.array([0.0, 0.0, away]), strict=True))
        assert infer_one(config(*DECAY), values, x, y).converged == converged
    assert covariance[2, 2] > 0


def test_a_plateau_is_not_a_solution() -> None:
    """So far out that the predictions no longer change with b: its column is zero."""
    x, y = column(6, 1, 10), 200 * (1 - (-0.5 * column(6, 1, 10)).exp()) + noise(6, 5.0)
    level = float(y.mean())
    result = infer_one(config("model=formula", "model.expression=a*(1 - exp(-b*x))"), {"a": level, "b": 1e4}, x, y)
    assert not result.converged
    assert because(result) == "near these values b can change without changing any prediction; start from other values with model.start"  # fmt: skip


def test_a_formula_with_too_many_parameters_is_not_determined() -> None:
    x, y = column(), 3 * column() + noise()
    slope = float((x * y).sum() / x.square().sum())
    result = infer_one(config("model=formula", "model.expression=a*b*x"), {"a": 2.0, "b": slope / 2}, x, y)
    assert (result.converged, result.verdict.undetermined, result.standard_errors) == (True, ("a", "b"), None)
    assert result.summary({}, [], ["y"], settled=True)["undetermined"] == ["a", "b"]


def test_columns_that_say_the_same_leave_a_linear_model_undetermined() -> None:
    x, y = torch.cat((column(), 2 * column(), column(50, 5, 9)), 1), 3 * column() + noise()
    design = np.column_stack((x.numpy(), np.ones(50)))
    *weight, bias = np.linalg.lstsq(design, y.numpy()[:, 0], rcond=None)[0].tolist()
    result = infer_one(config(LINE, "data.features=3"), {"weight": [weight], "bias": [bias]}, x, y)
    # The third column and the constant are a multiple of the first two as well.
    assert (result.converged, result.verdict.undetermined) == (True, ("weight[0]", "weight[1]", "weight[2]", "bias"))


def test_equal_terms_are_not_a_solution() -> None:
    """Where both terms are equal, only two of the four parameters are determined; elsewhere all of them are."""
    x = column()
    y = 2 * (-0.5 * x).exp() + 3 * (-2 * x).exp() + 0.01 * noise()
    equal = scipy.optimize.curve_fit(lambda x, a, b: 2 * a * np.exp(-b * x), x[:, 0].numpy(), y[:, 0].numpy(), [1, 1], xtol=1e-15, ftol=1e-15)[0]  # fmt: skip
    values = dict(zip("abcd", (*equal, *equal), strict=True))
    result = infer_one(config("model=formula", "model.expression=a*exp(-b*x) + c*exp(-d*x)"), values, x, y)
    assert because(result) == "near these values a, b, c and d can change together without changing any prediction; start from other values with model.start"  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "advice"),
    [
        (["optimizer=lm"], "; start from other values with model.start"),
        (["optimizer=lm", "dtype=float32"], "; start from other values with model.start or use dtype=float64"),
        (
            ["optimizer=lm", "dtype=float32", "device=mps"],
            "; start from other values with model.start or use dtype=float64 and device=cpu",
        ),
    ],
)
def test_a_fit_that_has_stopped_short_of_a_minimum_is_advised_to_start_elsewhere(
    overrides: list[str], advice: str
) -> None:
    x, y = column(), 3 * column() + noise()
    result = infer_one(config("model=formula", "model.expression=a*exp(b*x)", *overrides), {"a": 2.0, "b": 0.0}, x, y)
    text = result.verdict.reason(settled=True)
    assert text.startswith(
        "no further step finds better parameters, but by their derivatives they are not at a minimum (relative offset "
    )
    assert text.endswith(f", threshold 1e-06){advice}")


def test_residuals_that_are_not_finite_are_the_reason() -> None:
    x, y = column(), noise()
    result = infer_one(config("model=formula", "model.expression=a*log(b - x)"), {"a": 1.0, "b": 3.0}, x, y)
    reason = "the residuals or their derivatives are not finite; start from other values with model.start"
    assert (result.converged, because(result)) == (False, reason)


def test_as_many_parameters_as_rows_leave_no_errors() -> None:
    x = column(2)
    result = infer_one(config(LINE), {"weight": [[3.0]], "bias": [1.0]}, x, 3 * x + 1)
    assert (result.converged, result.degrees_of_freedom, result.standard_errors) == (True, 0, None)
    assert math.isnan(*result.residual_deviations)
    assert "standard_errors" not in result.summary({}, [], ["y"], settled=True)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_an_exact_fit_has_converged_at_the_level_of_rounding(dtype: Any) -> None:
    x = column()
    y = torch.tensor(decay(x.numpy(), 3.0, 1.2, 0.5))
    if dtype == "float32":
        x, y = x.float(), y.float()
    values = {"a": 3.0, "b": float(torch.tensor(1.2, dtype=x.dtype)), "d": 0.5}
    result = infer_one(replace(config(*DECAY), dtype=dtype), values, x, y)
    assert result.converged, because(result)
    assert result.standard_errors is not None
    eps = torch.finfo(x.dtype).eps
    assert all(float(error) < 10 * eps for error in result.standard_errors.values())


def test_with_weight_decay_there_are_no_errors() -> None:
    """A penalty moves the parameters away from the least-squares solution, for which the errors would hold."""
    settings = config(LINE, "optimizer=lstsq", "optimizer.weight_decay=0.1")
    x, y = column(), 2 * column() - 1 + noise()
    design = np.column_stack((x.numpy(), np.ones(50)))
    weight, bias = np.linalg.solve(design.T @ design / 50 + 0.05 * np.eye(2), design.T @ y.numpy()[:, 0] / 50)
    result = infer_one(settings, {"weight": [[weight]], "bias": [bias]}, x, y)
    assert (result.converged, result.standard_errors) == (True, None)


UNKNOWN = ["loss=mae optimizer=sgd", "optimizer=adamw optimizer.weight_decay=0.1", "model=mlp optimizer=adam", "dtype=bfloat16 optimizer=sgd"]  # fmt: skip


@pytest.mark.parametrize("overrides", UNKNOWN)
def test_there_is_no_result_where_it_would_not_hold(overrides: str) -> None:
    settings = config(*overrides.split())
    model = make_model(settings)
    parameters = {name: value.unsqueeze(0) for name, value in model.named_parameters()}
    assert infer(
        model, parameters, Batch(column(), noise()), [Fit(settings, model.fitted(no_scaling(1)), no_scaling(1), None)]
    ) == [None]


def test_the_summary_has_names_and_shapes() -> None:
    x, y = column(), 2 * column() - 1 + noise()
    line = scipy.stats.linregress(x[:, 0].numpy(), y[:, 0].numpy())
    values = {"weight": torch.tensor([[line.slope]]), "bias": torch.tensor([line.intercept])}
    summary = infer_one(config(LINE), values, x, y).summary(values, ["x", "constant"], ["y"], settled=True)
    assert list(summary) == [
        "converged",
        "degrees_of_freedom",
        "residual_standard_deviation",
        "chi_square",
        "reduced_chi_square",
        "aic",
        "bic",
        "standard_errors",
        "confidence_intervals",
        "covariance",
        "correlation",
    ]
    assert summary["converged"] is True
    assert summary["standard_errors"]["weight"] == [[pytest.approx(line.stderr, rel=1e-12)]]
    half = scipy.stats.t.ppf(0.975, 48) * line.stderr
    assert summary["confidence_intervals"]["weight"] == {
        "low": [[pytest.approx(line.slope - half, rel=1e-10)]],
        "high": [[pytest.approx(line.slope + half, rel=1e-10)]],
    }
