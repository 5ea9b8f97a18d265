"""Least-squares solvers against numpy, scipy and closed forms, and properties that both have."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor
from torch.func import functional_call

from runner.compute.batch import Batch
from runner.compute.precision import Unscaled, autocast
from runner.compute.rng import dropout_seeder, stream
from runner.compute.strategies.base import Single
from runner.config import schema as c
from runner.data.batches import EpochBatches
from runner.data.dataset import ResidentRows
from runner.models import losses
from runner.models.base import Model
from runner.models.base import build as build_model
from runner.optim.build import build as build_optimizer
from runner.training.objective import BatchObjective

CPU = torch.device("cpu")
LM = c.Lm(name="lm", radius=1.0)


def lstsq(weight_decay: float = 0.0) -> c.Lstsq:
    return c.Lstsq(name="lstsq", weight_decay=weight_decay)


def linear(columns: int, dtype: torch.dtype = torch.float64, bias: bool = True) -> Model:
    return build_model(c.Linear(name="linear", init_from=None, bias=bias, init="kaiming"), [f"x{i}" for i in range(columns)], ["y"], stream(0, "init")).to(dtype)  # fmt: skip


def formula(expression: str, **start: float) -> Model:
    return build_model(c.Formula(name="formula", init_from=None, expression=expression, start=start, init="uniform", bounds={}, fixed={}), ["x"], ["y"], stream(0, "init"))  # fmt: skip


def objective(model: Model, features: Tensor, target: Tensor, **changes: Any) -> BatchObjective:
    parts: dict[str, Any] = {
        "model": model,
        "parameters": list(model.parameters()),
        "loss": losses.build(c.Mse(name="mse")),
        "rows": ResidentRows(Batch(features, target), torch.arange(len(target))),
        "batches": EpochBatches(len(target), None, 0, CPU),
        "strategy": Single(CPU),
        "autocast": autocast("off", CPU),
        "scaler": Unscaled(),
        "accumulate": 1,
        "clip_norm": None,
        "check_gradients": False,
        "draw": dropout_seeder(False, 0, CPU),
        "predict": lambda features: functional_call(model, doubled(model), (features,)),
        "jacobian": lambda features: model.jacobian(doubled(model), features),
    }
    return BatchObjective(**{**parts, **changes})


def doubled(model: Model) -> dict[str, Tensor]:
    return {name: parameter.detach().double() for name, parameter in model.named_parameters()}


def solved(
    config: Any, model: Model, features: Tensor, target: Tensor, most: int = 500
) -> tuple[np.ndarray[Any, Any], int]:
    """Return all parameters in one row and the number of steps; fail if the solver does not converge."""
    optimizer = build_optimizer(config, "manual", dict(model.named_parameters()))
    problem = objective(model, features, target)
    for step in range(1, most + 1):
        optimizer.step(problem.at(step), None)
        if optimizer.settled:
            return row(model), step
    pytest.fail(f"not converged after {most} steps")


def row(model: Model) -> np.ndarray[Any, Any]:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).double().numpy()


def table(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return features of very different magnitudes and a noisy target."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, columns, generator=generator, dtype=torch.float64) * 10.0 ** torch.arange(columns)
    noise = torch.randn(rows, 1, generator=generator, dtype=torch.float64)
    return features, features.sum(1, keepdim=True) * 0.3 + 2 + noise


def with_ones(features: Tensor) -> np.ndarray[Any, Any]:
    return np.column_stack((features.numpy(), np.ones(len(features))))


def difference(one: Any, other: Any) -> float:
    """Return the largest relative difference."""
    return float(np.max(np.abs(np.asarray(one) - np.asarray(other)) / np.abs(other)))


# -------------------------------------------------------------------------------------------------------------- lstsq


@pytest.mark.parametrize("rows", [5, 100, 40_000])  # the last one is factored in three pieces
def test_lstsq_is_the_solution_of_numpy(rows: int) -> None:
    features, target = table(rows, 4)
    result, steps = solved(lstsq(), linear(4), features, target)
    expected = np.linalg.lstsq(with_ones(features), target.numpy()[:, 0])[0]
    assert (
        difference(result, expected) < 1e-11
    )  # condition number 1e4 times the rounding of float64, in numpy's solution
    assert steps == 2


def test_start_values_leave_no_rounding_in_the_solution() -> None:
    """A feature of 1e15 and a target of 1e-19: the products of features and start values are 1e34 times the target."""
    x = torch.linspace(5e14, 1e15, 14, dtype=torch.float64).unsqueeze(1)
    target = 6.6e-34 * x - 3.4e-19 + 2e-21 * (torch.arange(14) % 3 - 1).double().unsqueeze(1)
    result, _ = solved(lstsq(), linear(1), x, target)
    slope, constant = np.polyfit(x[:, 0].numpy() * 1e-15, target[:, 0].numpy() * 1e19, 1)
    assert difference(result, [slope * 1e-34, constant * 1e-19]) < 1e-12  # condition number 6 in numpy's units


@pytest.mark.parametrize("rows", [3, 20])
def test_lstsq_with_more_columns_than_rows_is_the_shortest_solution(rows: int) -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(rows, 200, generator=generator, dtype=torch.float64)
    target = torch.randn(rows, 1, generator=generator, dtype=torch.float64)
    result, steps = solved(lstsq(), linear(200), features, target)
    expected = np.linalg.lstsq(with_ones(features), target.numpy()[:, 0], rcond=None)[0]
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-14)  # entries of 0.1 and a condition number of 2
    assert steps == 2


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_columns_that_rounding_makes_equal_leave_a_good_fit(unit: float) -> None:
    """Powers of a Julian date: the columns have units apart, and float64 cannot tell the square from a straight line."""
    day = torch.rand(50, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    date = (2_459_000 + day) * unit
    target = 12 + 0.3 * day + 0.01 * torch.randn(50, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    result, _ = solved(lstsq(), linear(2), torch.cat((date, date**2), 1), target)
    residuals = target[:, 0].numpy() - with_ones(torch.cat((date, date**2), 1)) @ result
    line = np.linalg.lstsq(with_ones(day), target.numpy()[:, 0])[1]
    # Each of three terms is about 1e6 and rounded to 1e-10, a hundred-millionth of the residuals.
    assert float(residuals @ residuals) < float(line[0]) * (1 + 1e-6)


def test_time_and_memory_of_lstsq_follow_the_smaller_number_of_rows_and_columns() -> None:
    """A few times the time of numpy; a square matrix of the columns would take hundreds of times as long."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(300, 5000, generator=generator, dtype=torch.float64)
    target = torch.randn(300, 1, generator=generator, dtype=torch.float64)

    def seconds(work: Callable[[], object]) -> float:
        began = time.process_time()
        work()
        return time.process_time() - began

    assert objective(linear(5000), features, target).at(1).residuals().factor.shape == (300, 5003)
    ours = min(seconds(lambda: solved(lstsq(), linear(5000), features, target)) for _ in range(3))
    numpys = min(seconds(lambda: np.linalg.lstsq(with_ones(features), target.numpy()[:, 0])) for _ in range(3))
    # Two factorisations and two Jacobians: 2.7 to 3.8 on an idle machine (docs/performance.md), more beside other work.
    assert ours < 25 * numpys


def test_lstsq_without_a_bias() -> None:
    features, target = table(30, 3)
    result, _ = solved(lstsq(), linear(3, bias=False), features, target)
    assert (
        difference(result, np.linalg.lstsq(features.numpy(), target.numpy()[:, 0])[0]) < 1e-12
    )  # as above, condition number 1e2


@pytest.mark.parametrize("degree", [1, 4])
def test_lstsq_is_the_polynomial_of_numpy(degree: int) -> None:
    x = torch.linspace(-2, 3, 50, dtype=torch.float64).unsqueeze(1)
    target = x.sin() + 0.1 * x
    model = build_model(
        c.Polynomial(name="polynomial", init_from=None, degree=degree, init="kaiming"), ["x"], ["y"], stream(0, "init")
    )
    *powers, constant = solved(lstsq(), model, x, target)[0]
    expected = np.polyfit(x[:, 0].numpy(), target[:, 0].numpy(), degree)[::-1]
    assert difference([constant, *powers], expected) < 1e-12  # the condition number is below 1e3


@pytest.mark.parametrize("weight_decay", [1e-3, 0.5, 100.0])
def test_lstsq_with_weight_decay_is_ridge_regression(weight_decay: float) -> None:
    """(XᵀX/n + λ/2)·p = Xᵀy/n, for the mean of squares plus λ/2·‖p‖², bias included as in the update rules."""
    features, target = table(60, 3)
    design = with_ones(features)
    normal = design.T @ design / 60 + weight_decay / 2 * np.eye(4)
    expected = np.linalg.solve(normal, design.T @ target.numpy()[:, 0] / 60)
    result, _ = solved(lstsq(weight_decay), linear(3), features, target)
    assert (
        difference(result, expected) < 1e-9
    )  # error of the reference: normal equations square the condition number of 1e2


def test_lstsq_in_float32_is_the_rounded_solution() -> None:
    features, target = (part.float() for part in table(200, 3))
    result, _ = solved(lstsq(), linear(3, torch.float32), features, target)
    expected = np.linalg.lstsq(with_ones(features.double()), target.double().numpy()[:, 0])[0]
    assert difference(result, expected) <= 2.0**-24  # half a unit in the last place of float32


def test_lstsq_on_a_formula_that_is_linear_in_its_parameters() -> None:
    x = torch.linspace(1, 9, 40, dtype=torch.float64).unsqueeze(1)
    target = 2 * x.log() - 3 / x + 5 + x.sin()
    result, _ = solved(lstsq(), formula("2 + a*log(x) + (b - c*x)/x"), x, target)
    design = np.column_stack((x.log().numpy(), 1 / x.numpy(), -np.ones(40)))
    expected = np.linalg.lstsq(design, target.numpy()[:, 0] - 2)[0]
    assert difference(result, expected) < 1e-12  # a condition number below 1e2


UNDETERMINED: dict[str, Callable[[Tensor], Tensor]] = {
    "more columns than rows": lambda features: features[:3],
    "a column twice": lambda features: torch.column_stack((features, features[:, 1])),
    "a sum of columns": lambda features: torch.column_stack((features, features[:, 0] + features[:, 2])),
    "a constant column": lambda features: torch.column_stack((features, torch.full_like(features[:, 0], 7.0))),
    "a column of zeros": lambda features: torch.column_stack((features, torch.zeros_like(features[:, 0]))),
}


@pytest.mark.parametrize("kind", UNDETERMINED)
def test_lstsq_returns_the_shortest_of_equally_good_solutions(kind: str) -> None:
    features = UNDETERMINED[kind](table(50, 4)[0])
    target = table(50, 4)[1][: len(features)]
    result, _ = solved(lstsq(), linear(features.shape[1]), features, target)
    expected = np.linalg.lstsq(with_ones(features), target.numpy()[:, 0])[0]
    # 1e4 roundings in numpy's solution, which does not scale columns; relative to the largest, since a 0 is 0 up to rounding.
    assert np.abs(result - expected).max() < 1e-11 * np.abs(expected).max()


def test_two_proportional_columns_count_as_dependent() -> None:
    """Rounding leaves a second singular value of some units in the last place, which grows with the number of rows."""
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        column, target = torch.randn(2, 1000, 1, generator=generator, dtype=torch.float64)
        factor = 1 + seed / 30
        result, _ = solved(
            lstsq(), linear(2, bias=False), torch.column_stack((column + 2, factor * (column + 2))), target
        )
        assert result[1] == pytest.approx(factor * result[0], rel=1e-12)  # a sum over many rows, in any order


def test_the_shortest_solution_does_not_depend_on_units() -> None:
    """A column of zeros, and two equal columns 10¹⁸ times as large as the target."""
    features, target = table(20, 1)
    features = torch.column_stack((1e18 * features, 1e18 * features, 0 * features))
    result, _ = solved(lstsq(), linear(3, bias=False), features, target)
    single, _ = solved(lstsq(), linear(1, bias=False), features[:, :1], target)
    assert result[:2] == pytest.approx(single[0] / 2, rel=1e-12)  # sums of 20 rows
    assert result[2] == 0


def test_lstsq_with_one_row() -> None:
    result, _ = solved(lstsq(), linear(1), torch.tensor([[2.0]]).double(), torch.tensor([[10.0]]).double())
    assert result == pytest.approx([4.0, 2.0], rel=1e-14)  # (2·10, 10)/(2² + 1), up to one or two roundings


# ----------------------------------------------------------------------------------------------------------------- lm

# Formula, true parameters, and starts from which plain Gauss-Newton steps fail or take long.
HARD: dict[str, tuple[str, dict[str, float], dict[str, float]]] = {
    "decay": ("a*exp(-b*x) + d", {"a": 5.0, "b": 0.7, "d": 1.0}, {"a": 1.0, "b": 4.0, "d": -20.0}),
    "saturation": ("a*(1 - exp(-b*x))", {"a": 240.0, "b": 5e-1}, {"a": 1.0, "b": 10.0}),
    "logistic": ("a/(1 + exp(b - g*x))", {"a": 70.0, "b": 2.6, "g": 0.9}, {"a": 700.0, "b": 5.0, "g": 0.4}),
    "rational": ("(a + b*x)/(1 + g*x)", {"a": 1.0, "b": 4.0, "g": 2.0}, {"a": 100.0, "b": 1.0, "g": 0.1}),
    "peak": ("a*exp(-(x - m)**2/w**2)", {"a": 3.0, "m": 4.0, "w": 1.5}, {"a": 1.0, "m": 1.5, "w": 5.0}),
    "wave": ("a*sin(b*x + d)", {"a": 2.0, "b": 1.3, "d": 0.4}, {"a": 9.0, "b": 1.1, "d": 0.0}),
    "units apart": ("a*exp(b/(x + d))", {"a": 6e-3, "b": 6e1, "d": 9.0}, {"a": 2e-2, "b": 40.0, "d": 25.0}),
}  # fmt: skip


def measured(name: str, noise: float = 0.05) -> tuple[Model, Tensor, Tensor]:
    """Return a model at its start values, and rows generated by its true parameters."""
    expression, true, start = HARD[name]
    x = torch.linspace(0.2, 8, 60, dtype=torch.float64).unsqueeze(1)
    with torch.no_grad():
        exact = formula(expression, **true)(x)
    generator = torch.Generator().manual_seed(3)
    noise *= float(exact.abs().max())
    return formula(expression, **start), x, exact + noise * torch.randn(60, 1, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", HARD)
def test_lm_is_the_solution_of_scipy_from_a_hard_start(name: str) -> None:
    model, x, target = measured(name)
    expression, true, _ = HARD[name]
    names = [parameter for parameter, _ in model.named_parameters()]
    probe = formula(expression, **true)

    def residuals(values: Any) -> Any:
        with torch.no_grad():
            for parameter, value in zip(names, values, strict=True):
                probe.get_parameter(parameter).fill_(value)
            return (probe(x) - target).numpy()[:, 0]

    best = scipy.optimize.least_squares(residuals, [true[n] for n in names], jac="3-point", x_scale="jac", ftol=1e-15, xtol=1e-15, gtol=1e-15)  # fmt: skip
    result, _ = solved(LM, model, x, target)
    assert float(np.square(residuals(result)).sum()) <= 2 * best.cost * (1 + 1e-13)  # a sum of 60 squares, rounded
    assert difference(result, best.x) < 1e-5  # error of the reference, whose derivatives are differences


@pytest.mark.parametrize("name", HARD)
def test_lm_finds_the_parameters_of_data_without_noise(name: str) -> None:
    """The residuals end at the level of rounding, where sums of squares cannot be compared any more."""
    model, x, target = measured(name, noise=0.0)
    result, _ = solved(LM, model, x, target)
    true = [HARD[name][1][parameter] for parameter, _ in model.named_parameters()]
    assert difference(result, true) < 1e-12  # condition numbers below 1e3


def test_lm_does_not_depend_on_the_units_of_a_parameter() -> None:
    model, x, target = measured("decay")
    other = formula("1e6*a*exp(-b*1e-4*x) + d*1e-3", a=1e-6, b=4e4, d=-2e4)
    result, steps = solved(LM, model, x, target)
    same, as_many = solved(LM, other, x, target)
    assert as_many == steps
    assert difference(same * [1e6, 1e-4, 1e-3], result) < 1e-9  # SETTLED, the relative offset at which it ends


def test_lm_solves_a_linear_problem_in_one_step() -> None:
    features, target = table(40, 3)
    model, far = linear(3), objective(linear(3), features, target)
    optimizer = build_optimizer(c.Lm(name="lm", radius=1e38), "manual", dict(model.named_parameters()))
    optimizer.step(objective(model, features, target).at(1), None)
    expected = np.linalg.lstsq(with_ones(features), target.numpy()[:, 0])[0]
    assert difference(row(model), expected) < 1e-10  # one solution without a refinement; the condition number is 1e3
    assert float(far.at(1).squares()) > 60


def test_the_first_step_keeps_within_its_radius() -> None:
    """Parameters are scaled by the lengths of their columns of the Jacobian."""
    model, x, target = measured("decay")
    start = row(model)
    problem = objective(model, x, target)
    columns = np.linalg.norm(problem.at(1).residuals().factor[:, :3].numpy(), axis=0)
    for radius in (1e-3, 1e-2):
        moved, _, _ = measured("decay")
        build_optimizer(c.Lm(name="lm", radius=radius), "manual", dict(moved.named_parameters())).step(objective(moved, x, target).at(1), None)  # fmt: skip
        length = np.linalg.norm((row(moved) - start) * columns) / np.linalg.norm(start * columns)
        assert 0.9 * radius <= length <= 1.1 * radius + 1e-12  # 10 % tolerance of Moré (1978), and roundings


def test_lm_steps_back_from_points_where_the_formula_is_not_finite() -> None:
    """A full step from the start makes the argument of the logarithm negative."""
    x = torch.linspace(0.5, 8, 40, dtype=torch.float64).unsqueeze(1)
    target = 3 * (x + 0.5).log()
    result, _ = solved(LM, formula("a*log(x + b)", a=1.0, b=60.0), x, target)
    assert difference(result, [3.0, 0.5]) < 1e-12  # a condition number below 1e3


def test_lm_in_float32_converges_as_in_float64() -> None:
    """A long valley without noise, where the sum of squares of float32 predictions would show no progress."""
    result = {}
    for dtype in (torch.float64, torch.float32):
        true = {"a": 0.1, "b": 1.0, "d": 0.9, "g": 3.0, "h": 1.6, "i": 5.0}
        start = {"a": 1.2, "b": 0.3, "d": 5.6, "g": 5.5, "h": 6.5, "i": 7.6}
        x = torch.linspace(0, 1.15, 24, dtype=torch.float64).unsqueeze(1)
        model, exact = (formula("a*exp(-b*x) + d*exp(-g*x) + h*exp(-i*x)", **values) for values in (start, true))
        target = exact(x).detach().to(dtype)
        solved(LM, model.to(dtype), x.to(dtype), target)
        result[dtype] = float((model(x.to(dtype)) - target).detach().abs().max())
    assert result[torch.float64] < 1e-14
    assert result[torch.float32] < 3e-6  # predictions of up to 2.6, rounded about ten times; 1e-4 before convergence


def test_lm_fits_a_small_network() -> None:
    config = c.Mlp(name="mlp", init_from=None, widths=(6,), activation="tanh", dropout=0.0, embedding_size=None)
    model = build_model(config, ["x"], ["y"], stream(1, "init"))
    x = torch.linspace(-3, 3, 60, dtype=torch.float64).unsqueeze(1)
    optimizer, problem = build_optimizer(LM, "manual", dict(model.named_parameters())), objective(model, x, x.sin())
    for step in range(1, 101):
        optimizer.step(problem.at(step), None)
    assert float(problem.squares()) / 60 < 1e-8  # relative to a sine, whose mean square is 0.5


@pytest.mark.parametrize("name", ["decay", "units apart"])
def test_a_resumed_state_gives_the_same_bits(name: str) -> None:
    model, x, target = measured(name)
    optimizer, problem = build_optimizer(LM, "manual", dict(model.named_parameters())), objective(model, x, target)
    for step in range(1, 500):
        saved = {name: {k: v.clone() for k, v in slots.items()} for name, slots in optimizer.state_dict().items()}
        copied, _, _ = measured(name)
        copied.load_state_dict(model.state_dict())
        resumed = build_optimizer(LM, "manual", dict(copied.named_parameters()))
        resumed.load_state_dict(saved)
        for solver, objective_ in ((optimizer, problem), (resumed, objective(copied, x, target))):
            solver.step(objective_.at(step), None)
        assert np.array_equal(row(model), row(copied)), step
        assert resumed.settled == optimizer.settled
        if optimizer.settled:
            return
    pytest.fail("not converged")


@pytest.mark.parametrize("config", [lstsq(), LM], ids=["lstsq", "lm"])
def test_a_step_after_convergence_changes_nothing(config: Any) -> None:
    features, target = table(30, 2)
    model = linear(2)
    problem = objective(model, features, target)
    optimizer = build_optimizer(config, "manual", dict(model.named_parameters()))
    while not optimizer.settled:
        optimizer.step(problem.at(1), None)
    before = row(model)
    optimizer.step(problem.at(1), None)
    assert difference(row(model), before) < 1e-13  # lstsq refines once more, lm does nothing
    assert list(optimizer.settled) == []  # reported once, in the step that converged


@pytest.mark.parametrize("accumulate", [2, 7])
def test_accumulated_portions_have_the_triangular_factor_of_the_whole_batch(accumulate: int) -> None:
    features, target = table(50, 3)
    model = linear(3)
    whole, parts = (objective(model, features, target, accumulate=n).at(1).residuals() for n in (1, accumulate))
    gram = [(result.factor.mT @ result.factor).numpy() for result in (whole, parts)]
    assert difference(gram[1], gram[0]) < 1e-12  # sums of 50 rows in another order
    assert float(parts.share) == pytest.approx(float(whole.share), rel=1e-13)
    assert parts.rows == whole.rows == 50
