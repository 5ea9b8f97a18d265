"""Optimum and convergence rate of problems that are linear in their parameters, against numpy and closed forms."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from runner.compute.batch import Batch
from runner.compute.rng import stream
from runner.config import schema as c
from runner.config.compose import compose
from runner.models.base import Model
from runner.models.base import build as build_model
from runner.optim import optimum
from runner.optim.optimum import (
    find_optimum,
    largest_stable_lr,
    noise_floor,
    observed_rate,
    predicted_rate,
    stability_warnings,
)

ROWS = 40


def config(*overrides: str) -> c.Config:
    return compose(["dtype=float64", *overrides]).config


def make_model(settings: c.Config, columns: int = 2) -> Model:
    return build_model(
        settings.model, [f"x{i}" if columns > 1 else "x" for i in range(columns)], ["y"], stream(0, "init")
    )


def table(columns: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(ROWS, columns, generator=generator, dtype=torch.float64) * 2 + 1
    return features, features.sum(1, keepdim=True) - 4 + torch.randn(ROWS, 1, generator=generator, dtype=torch.float64)


def with_lr(settings: c.Config, lr: float) -> c.Config:
    optimizer: Any = settings.optimizer
    return replace(settings, optimizer=replace(optimizer, lr=lr))


def solve(settings: c.Config, columns: int = 2, weight_decay: float = 0.0) -> optimum.Optimum:
    result = find_optimum(make_model(settings, columns), Batch(*table(columns)), settings, [weight_decay])
    assert result is not None
    return result


def design(columns: int = 2) -> Any:
    return np.column_stack((table(columns)[0].numpy(), np.ones(ROWS)))


def target(columns: int = 2) -> Any:
    return table(columns)[1].numpy()[:, 0]


# ---------------------------------------------------------------------------------------------------------- the optimum


def test_the_optimum_is_the_solution_of_numpy() -> None:
    result = solve(config("model=linear"))
    solution, squares = np.linalg.lstsq(design(), target())[:2]
    assert result.solution.numpy()[0] == pytest.approx(solution, rel=1e-13)  # a condition number below 10
    assert float(result.loss) == pytest.approx(squares[0] / ROWS, rel=1e-13)
    assert float(result.condition) == pytest.approx(np.linalg.cond(design()), rel=1e-12)
    eigenvalues = np.linalg.eigvalsh(2 * design().T @ design() / ROWS)[::-1]
    assert result.eigenvalues.numpy()[0] == pytest.approx(eigenvalues, rel=1e-12)


def test_the_gap_is_the_loss_above_the_optimum() -> None:
    result = solve(config("model=linear"))
    point = np.array([3.0, -2.0, 0.5])
    gap, distance = result.gap(torch.tensor(point).unsqueeze(0))
    best = np.linalg.lstsq(design(), target())[0]

    def loss(p: Any) -> float:
        return float(np.square(design() @ p - target()).mean())

    assert float(gap) == pytest.approx(loss(point) - loss(best), rel=1e-12)
    assert float(distance) == pytest.approx(float(np.linalg.norm(point - best)), rel=1e-12)


def test_the_gap_keeps_its_digits_near_the_optimum() -> None:
    """The difference of two losses of about 1 would have no digits left."""
    result = solve(config("model=linear"))
    gap, _ = result.gap(result.solution + torch.tensor([1e-9, 0.0, 0.0]).double())
    column = design()[:, 0]
    assert float(gap) == pytest.approx(1e-18 * float(column @ column) / ROWS, rel=1e-6)  # 1e-9 added to 1 is rounded


def test_with_weight_decay_the_gap_includes_the_penalty() -> None:
    decay = 0.3
    result = solve(config("model=linear"), weight_decay=decay)
    best = np.linalg.solve(design().T @ design() / ROWS + decay / 2 * np.eye(3), design().T @ target() / ROWS)
    assert result.solution.numpy()[0] == pytest.approx(best, rel=1e-12)  # normal equations of a condition number of 10
    assert float(result.loss) == pytest.approx(float(np.square(design() @ best - target()).mean()), rel=1e-12)

    def objective(p: Any) -> float:
        return float(np.square(design() @ p - target()).mean() + decay / 2 * p @ p)

    point = np.array([3.0, -2.0, 0.5])
    gap, _ = result.gap(torch.tensor(point).unsqueeze(0))
    assert float(gap) == pytest.approx(objective(point) - objective(best), rel=1e-12)
    assert float(result.eigenvalues[0, 0]) == pytest.approx(
        np.linalg.eigvalsh(2 * design().T @ design() / ROWS)[-1] + decay, rel=1e-12
    )


LINEAR = {
    "model=linear": True,
    "model=polynomial": True,
    "model=mlp model.widths=[]": True,
    "model=mlp": False,
    "model=formula model.expression='a*x0 + b*exp(x1)/3 - 2'": True,
    "model=formula model.expression='(a - b)*x0'": True,
    "model=formula model.expression='a*b*x0'": False,
    "model=formula model.expression='abs(a)*x0'": False,
    "model=formula model.expression='a**2*x0'": False,
    "model=formula model.expression='a*x0 + (abs(b - 3) + b)*x1'": False,
    "model=formula model.expression='a*log(-1 - x0**2)'": False,
    "model=linear loss=mae": False,
    "model=linear loss=huber": False,
}


@pytest.mark.parametrize("overrides", LINEAR)
def test_there_is_an_optimum_for_linear_models_with_a_squared_loss(overrides: str) -> None:
    settings = compose(
        overrides.replace("'", "").split(" ", 1) if "expression" in overrides else overrides.split()
    ).config
    assert (find_optimum(make_model(settings), Batch(*table()), settings, [0.0]) is not None) == LINEAR[overrides]


def test_an_optimum_that_takes_too_long_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config("model=linear")
    monkeypatch.setattr(optimum, "MOST_WORK", optimum.work(ROWS, 3) - 1)
    assert find_optimum(make_model(settings), Batch(*table()), settings, [0.0]) is None


@pytest.mark.parametrize(
    ("model", "own"),
    [
        ("model=linear", (True, True)),
        ("model=linear", (False, True)),
        ("model=linear", (False, False)),
        ("model=mlp model.widths=[]", (True, True)),
        ("model=formula model.expression=a*x0+b*x1", (True, True)),
    ],
    ids=str,
)
def test_vmapped_runs_have_the_optima_of_single_runs(
    model: str, own: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features and target per lane (`own`) or shared, in batches of two lanes."""
    settings = config(*model.split())
    monkeypatch.setattr(
        "runner.optim.qr.NUMBERS_AT_ONCE", 2 * ROWS * (sum(p.numel() for p in make_model(settings).parameters()) + 2)
    )
    decays = [0.0, 0.1, 1.0]
    tables = [[table(seed=lane if is_own else 0)[part] for lane in range(3)] for part, is_own in enumerate(own)]
    stacked = [torch.stack(parts) if is_own else parts[0] for parts, is_own in zip(tables, own, strict=True)]
    together = find_optimum(make_model(settings), Batch(stacked[0], stacked[1]), settings, decays)
    assert together is not None
    for lane, decay in enumerate(decays):
        single = find_optimum(make_model(settings), Batch(tables[0][lane], tables[1][lane]), settings, [decay])
        assert single is not None
        for name, value in vars(single).items():
            if name != "curvature":  # a triangle, up to the signs of its rows
                torch.testing.assert_close(getattr(together, name)[lane], value[0], rtol=1e-11, atol=0.0)  # roundings
        torch.testing.assert_close(together.eigenvalues[lane], single.eigenvalues[0], rtol=1e-11, atol=1e-14)


def test_the_digits_are_a_lower_bound() -> None:
    """A polynomial of degree 8 on [0, 10] with known coefficients: the worst one has at least as many digits as promised."""
    settings = config("model=polynomial", "model.degree=8")
    x = torch.linspace(0, 10, ROWS, dtype=torch.float64).unsqueeze(1)
    true = np.ones(9)
    y = torch.tensor(np.vander(x[:, 0].numpy(), 9) @ true).unsqueeze(1)
    result = find_optimum(make_model(settings, 1), Batch(x, y), settings, [0.0])
    assert result is not None
    worst = -math.log10(float((result.solution - 1).abs().max()))
    assert 6 < float(result.digits) < worst < 16
    assert float(result.condition) > 1e8
    line = config("model=linear")
    both = [float(solve(replace(line, dtype=dtype)).digits) for dtype in ("float64", "float32")]
    assert both[0] - both[1] == pytest.approx(math.log10(2**29))  # the additional bits of float64


def test_a_parameter_that_is_zero_has_digits_too() -> None:
    """The bias of standardized data."""
    x, y = ((part - part.mean()) / part.std() for part in table(1))
    result = find_optimum(make_model(config("model=linear"), 1), Batch(x, y), config("model=linear"), [0.0])
    assert result is not None
    assert abs(float(result.solution[0, 1])) < 1e-15
    assert 15 < float(result.digits) < 16


def test_linearly_dependent_columns_leave_no_digits() -> None:
    settings = config("model=linear")
    features, y = table(1)
    result = find_optimum(make_model(settings), Batch(torch.column_stack((features, 2 * features)), y), settings, [0.0])
    assert result is not None
    assert float(result.digits) == 0
    assert float(result.condition) > 1e15
    assert float(result.loss) == pytest.approx(float(solve(settings, 1).loss), rel=1e-12)


# ------------------------------------------------------------------------------------------------- speed of convergence


def descended(lr: float, momentum: float, steps: int) -> float:
    """Return the distance from the optimum after gradient descent, computed step by step."""
    best = np.linalg.lstsq(design(), target())[0]
    p, v = best + 1.0, np.zeros(3)
    for _ in range(steps):
        v = momentum * v + 2 * design().T @ (design() @ p - target()) / ROWS
        p = p - lr * v
    return float(np.linalg.norm(p - best))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steps_below_the_limit_converge_and_above_it_diverge(momentum: float) -> None:
    overrides = ["optimizer=momentum", f"optimizer.momentum={momentum}"] if momentum else ["optimizer=sgd"]
    settings = config(*overrides)
    limit = largest_stable_lr(settings, float(solve(settings).eigenvalues[0, 0]))
    assert descended(0.99 * limit, momentum, 3000) < 1e-6
    assert descended(1.01 * limit, momentum, 300) > 10


@pytest.mark.parametrize("overrides", ["optimizer=sgd", "optimizer=momentum optimizer.momentum=0.5"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_the_predicted_rate_is_the_factor_per_step_of_the_distance(overrides: str, share: float) -> None:
    settings = config(*overrides.split())
    eigenvalues = solve(settings).eigenvalues[0]
    lr = share * largest_stable_lr(settings, float(eigenvalues[0]))
    rate = predicted_rate(with_lr(settings, lr), eigenvalues)
    momentum = getattr(settings.optimizer, "momentum", 0.0)
    steps = [max(1, round(k * math.log(1e-4) / math.log(rate or 0.5))) for k in (1, 3)]
    near, nearer = (descended(lr, momentum, count) for count in steps)
    # Complex roots oscillate: the phase at which the two distances are taken is a factor of 2, over 50 steps or more.
    assert rate == pytest.approx((nearer / near) ** (1 / (steps[1] - steps[0])), rel=0.03)


@pytest.mark.parametrize(
    "overrides",
    ["optimizer=adam", "optimizer=lstsq", "optimizer=lm", "train.batch_size=8", "schedule=cosine", "train.clip_norm=1"],
)
def test_no_rate_is_predicted_for_other_methods(overrides: str) -> None:
    settings = config(*overrides.split())
    assert predicted_rate(settings, solve(settings).eigenvalues[0]) is None


def test_a_learning_rate_above_the_limit_is_warned_about() -> None:
    settings = config("optimizer=sgd")
    result = solve(settings)
    limit = largest_stable_lr(settings, float(result.eigenvalues[0, 0]))
    requested = [with_lr(settings, lr) for lr in (0.999 * limit, 1.001 * limit)]
    both = optimum.Optimum(*(torch.cat((value, value)) for value in vars(result).values()))
    fine, high = stability_warnings(requested, both)
    assert fine is None
    assert high == (
        f"lr is above the stability limit 2/λmax = {limit:.6g}: with `optimizer.lr`={1.001 * limit:g} steps lead away "
        "from the optimum; use a smaller learning rate or data.standardize=true"
    )
    heavy = config("optimizer=momentum", "optimizer.momentum=0.5", f"optimizer.lr={1.4 * limit}")
    assert stability_warnings([heavy], result) == [None]
    faster = with_lr(heavy, 1.6 * limit)
    assert str(stability_warnings([faster], result)[0]).startswith(
        f"lr is above the stability limit (1 + momentum)·2/λmax = {1.5 * limit:.6g}:"
    )


def test_the_advice_on_the_learning_rate_is_allowed_by_the_configuration() -> None:
    for overrides in (["data.standardize=true"], ["model=formula", "model.expression=a*x0+b*x1", "data.features=2"]):
        settings = config("optimizer=sgd", "optimizer.lr=1e6", *overrides)
        (message,) = stability_warnings([settings], solve(settings))
        assert str(message).endswith("; use a smaller learning rate")


def test_adaptive_rules_have_no_limit() -> None:
    settings = config("optimizer=adam", "optimizer.lr=100")
    assert stability_warnings([settings], solve(settings)) == [None]


def test_the_observed_rate_is_measured_in_the_second_half_above_rounding() -> None:
    far = [{"step": step, "optimum/distance": 5.0 * 0.5**step} for step in range(1, 11)]
    near = [{"step": step, "optimum/distance": 5.0 * 0.5**10 * 0.9 ** (step - 10)} for step in range(11, 31)]
    stalled = [{"step": step, "optimum/distance": 1e-7} for step in range(31, 100)]
    assert observed_rate([*far, *near, {"step": 12, "optimum/distance": "nan"}, *stalled], 1e-6) == pytest.approx(0.9)
    assert observed_rate(far[:1], 0.0) is None
    assert observed_rate(stalled, 1e-6) is None


# ----------------------------------------------------------------------------------------------------------- the noise


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("data=line data.noise=3", {"loss": 9 / 16, "rmse": 3}),
        ("data=curve data.noise=3", {"loss": 9 / 16, "rmse": 3}),
        ("data=line data.noise=6 data.noise_distribution=uniform", {"loss": 3 / 16, "rmse": math.sqrt(3)}),
        ("data=line data.noise=0", {"loss": 0, "rmse": 0}),
        ("data=line data.noise=3 loss=mae", {"rmse": 3}),
        ("data=diabetes", None),
        ("data=curve data.expression=exp(x) data.log_target=true", None),
    ],
)
def test_the_noise_floor(overrides: str, expected: dict[str, float] | None) -> None:
    """For a target scaled by 1/4."""
    floor = noise_floor(config(*overrides.split()), torch.tensor([4.0]))
    assert floor == (None if expected is None else pytest.approx(expected))
