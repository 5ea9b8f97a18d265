"""The known answer of problems that are linear in their parameters, against numpy and closed forms."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

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


def config(*words: str) -> c.Config:
    return compose(["dtype=float64", *words]).config


def built(of: c.Config, columns: int = 2) -> Model:
    return build_model(of.model, [f"x{i}" if columns > 1 else "x" for i in range(columns)], stream(0, "init"))


def table(columns: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(ROWS, columns, generator=generator, dtype=torch.float64) * 2 + 1
    return features, features.sum(1, keepdim=True) - 4 + torch.randn(ROWS, 1, generator=generator, dtype=torch.float64)


def at(of: c.Config, lr: float) -> c.Config:
    optimizer: Any = of.optimizer
    return replace(of, optimizer=replace(optimizer, lr=lr))


def known(of: c.Config, columns: int = 2, weight_decay: float = 0.0) -> optimum.Optimum:
    found = find_optimum(built(of, columns), *table(columns), of, [weight_decay])
    assert found is not None
    return found


def design(columns: int = 2) -> Any:
    return np.column_stack((table(columns)[0].numpy(), np.ones(ROWS)))


def target(columns: int = 2) -> Any:
    return table(columns)[1].numpy()[:, 0]


# ------------------------------------------------------------------------------------------------------------ the optimum


def test_it_is_the_solution_of_numpy() -> None:
    found = known(config("model=linear"))
    solution, squares = np.linalg.lstsq(design(), target())[:2]
    assert found.solution.numpy()[0] == pytest.approx(solution, rel=1e-13)  # a condition number below 10
    assert float(found.loss) == pytest.approx(squares[0] / ROWS, rel=1e-13)
    assert float(found.condition) == pytest.approx(np.linalg.cond(design()), rel=1e-12)
    eigenvalues = np.linalg.eigvalsh(2 * design().T @ design() / ROWS)[::-1]
    assert found.eigenvalues.numpy()[0] == pytest.approx(eigenvalues, rel=1e-12)


def test_the_gap_is_the_loss_above_the_optimum() -> None:
    found = known(config("model=linear"))
    away = np.array([3.0, -2.0, 0.5])
    gap, distance = found.gap(torch.tensor(away).unsqueeze(0))
    best = np.linalg.lstsq(design(), target())[0]

    def loss(p: Any) -> float:
        return float(np.square(design() @ p - target()).mean())

    assert float(gap) == pytest.approx(loss(away) - loss(best), rel=1e-12)
    assert float(distance) == pytest.approx(float(np.linalg.norm(away - best)), rel=1e-12)


def test_the_gap_keeps_its_digits_next_to_the_optimum() -> None:
    """Where the difference of two losses, each about 1, would have none left."""
    found = known(config("model=linear"))
    gap, _ = found.gap(found.solution + torch.tensor([1e-9, 0.0, 0.0]).double())
    column = design()[:, 0]
    assert float(gap) == pytest.approx(1e-18 * float(column @ column) / ROWS, rel=1e-6)  # 1e-9 added to 1 is rounded


def test_with_weight_decay_the_gap_is_that_of_what_is_minimised() -> None:
    decay = 0.3
    found = known(config("model=linear"), weight_decay=decay)
    best = np.linalg.solve(design().T @ design() / ROWS + decay / 2 * np.eye(3), design().T @ target() / ROWS)
    assert found.solution.numpy()[0] == pytest.approx(best, rel=1e-12)  # normal equations of a condition number of 10
    assert float(found.loss) == pytest.approx(float(np.square(design() @ best - target()).mean()), rel=1e-12)

    def whole(p: Any) -> float:
        return float(np.square(design() @ p - target()).mean() + decay / 2 * p @ p)

    away = np.array([3.0, -2.0, 0.5])
    gap, _ = found.gap(torch.tensor(away).unsqueeze(0))
    assert float(gap) == pytest.approx(whole(away) - whole(best), rel=1e-12)
    assert float(found.eigenvalues[0, 0]) == pytest.approx(
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


@pytest.mark.parametrize("words", LINEAR)
def test_it_is_known_where_the_problem_is_linear_and_the_loss_a_square(words: str) -> None:
    of = compose(words.replace("'", "").split(" ", 1) if "expression" in words else words.split()).config
    assert (find_optimum(built(of), *table(), of, [0.0]) is not None) == LINEAR[words]


def test_it_is_not_looked_for_where_that_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    of = config("model=linear")
    monkeypatch.setattr(optimum, "MOST_WORK", optimum.work(ROWS, 3) - 1)
    assert find_optimum(built(of), *table(), of, [0.0]) is None


@pytest.mark.parametrize("model", ["model=linear", "model=polynomial", "model=mlp model.widths=[]", "model=formula model.expression=a*x0+b*x1"])  # fmt: skip
@pytest.mark.parametrize("own", [(True, True), (False, True), (False, False)], ids=str)
def test_lanes_have_what_each_has_alone(model: str, own: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Features and target of their own, or shared, and in batches of two lanes."""
    of = config(*model.split())
    monkeypatch.setattr(
        "runner.optim.qr.NUMBERS_AT_ONCE", 2 * ROWS * (sum(p.numel() for p in built(of).parameters()) + 2)
    )
    decays = [0.0, 0.1, 1.0]
    tables = [[table(seed=lane if is_own else 0)[part] for lane in range(3)] for part, is_own in enumerate(own)]
    stacked = [torch.stack(parts) if is_own else parts[0] for parts, is_own in zip(tables, own, strict=True)]
    together = find_optimum(built(of), stacked[0], stacked[1], of, decays)
    assert together is not None
    for lane, decay in enumerate(decays):
        alone = find_optimum(built(of), tables[0][lane], tables[1][lane], of, [decay])
        assert alone is not None
        for name, value in vars(alone).items():
            if name != "curvature":  # a triangle, up to the signs of its rows
                torch.testing.assert_close(getattr(together, name)[lane], value[0], rtol=1e-11, atol=0.0)  # roundings
        torch.testing.assert_close(together.eigenvalues[lane], alone.eigenvalues[0], rtol=1e-11, atol=1e-14)


def test_the_digits_are_a_lower_bound() -> None:
    """A polynomial of degree 8 on [0, 10] whose coefficients are known: the worst of them has more digits than that, not fewer."""
    of = config("model=polynomial", "model.degree=8")
    x = torch.linspace(0, 10, ROWS, dtype=torch.float64).unsqueeze(1)
    true = np.ones(9)
    y = torch.tensor(np.vander(x[:, 0].numpy(), 9) @ true).unsqueeze(1)
    found = find_optimum(built(of, 1), x, y, of, [0.0])
    assert found is not None
    worst = -math.log10(float((found.solution - 1).abs().max()))
    assert 6 < float(found.digits) < worst < 16
    assert float(found.condition) > 1e8
    line = config("model=linear")
    both = [float(known(replace(line, dtype=dtype)).digits) for dtype in ("float64", "float32")]
    assert both[0] - both[1] == pytest.approx(math.log10(2**29))  # the bits that float32 lacks


def test_a_parameter_that_is_zero_has_digits_all_the_same() -> None:
    """The constant of standardised data."""
    x, y = ((part - part.mean()) / part.std() for part in table(1))
    found = find_optimum(built(config("model=linear"), 1), x, y, config("model=linear"), [0.0])
    assert found is not None
    assert abs(float(found.solution[0, 1])) < 1e-15
    assert 15 < float(found.digits) < 16


def test_columns_that_depend_on_each_other_leave_no_digits() -> None:
    of = config("model=linear")
    features, y = table(1)
    found = find_optimum(built(of), torch.column_stack((features, 2 * features)), y, of, [0.0])
    assert found is not None
    assert float(found.digits) == 0
    assert float(found.condition) > 1e15
    assert float(found.loss) == pytest.approx(float(known(of, 1).loss), rel=1e-12)


# ------------------------------------------------------------------------------------------------- speed of convergence


def descended(lr: float, momentum: float, steps: int) -> float:
    """Distance from the optimum after gradient descent, written out."""
    best = np.linalg.lstsq(design(), target())[0]
    p, v = best + 1.0, np.zeros(3)
    for _ in range(steps):
        v = momentum * v + 2 * design().T @ (design() @ p - target()) / ROWS
        p = p - lr * v
    return float(np.linalg.norm(p - best))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steps_just_below_the_limit_converge_and_just_above_it_grow(momentum: float) -> None:
    words = ["optimizer=momentum", f"optimizer.momentum={momentum}"] if momentum else ["optimizer=sgd"]
    of = config(*words)
    limit = largest_stable_lr(of, float(known(of).eigenvalues[0, 0]))
    assert descended(0.99 * limit, momentum, 3000) < 1e-6
    assert descended(1.01 * limit, momentum, 300) > 10


@pytest.mark.parametrize("words", ["optimizer=sgd", "optimizer=momentum optimizer.momentum=0.5"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_the_rate_is_what_steps_multiply_the_distance_by(words: str, share: float) -> None:
    of = config(*words.split())
    eigenvalues = known(of).eigenvalues[0]
    lr = share * largest_stable_lr(of, float(eigenvalues[0]))
    rate = predicted_rate(at(of, lr), eigenvalues)
    momentum = getattr(of.optimizer, "momentum", 0.0)
    steps = [max(1, round(k * math.log(1e-4) / math.log(rate or 0.5))) for k in (1, 3)]
    near, nearer = (descended(lr, momentum, count) for count in steps)
    # Complex roots turn around: where in a turn the two distances are taken is a factor of 2, over 50 steps or more.
    assert rate == pytest.approx((nearer / near) ** (1 / (steps[1] - steps[0])), rel=0.03)


@pytest.mark.parametrize(
    "words",
    ["optimizer=adam", "optimizer=lstsq", "optimizer=lm", "train.batch_size=8", "schedule=cosine", "train.clip_norm=1"],
)
def test_no_rate_is_predicted_for_other_ways(words: str) -> None:
    of = config(*words.split())
    assert predicted_rate(of, known(of).eigenvalues[0]) is None


def test_a_rate_above_the_limit_is_told() -> None:
    of = config("optimizer=sgd")
    found = known(of)
    limit = largest_stable_lr(of, float(found.eigenvalues[0, 0]))
    asked = [at(of, lr) for lr in (0.999 * limit, 1.001 * limit)]
    both = optimum.Optimum(*(torch.cat((value, value)) for value in vars(found).values()))
    fine, high = stability_warnings(asked, both)
    assert fine is None
    assert high == (
        f"lr is above the stability limit 2/λmax = {limit:.6g}: `optimizer.lr`={1.001 * limit:g} takes steps that lead away "
        "from the optimum; make it smaller, or standardize the data with data.standardize=true"
    )
    heavy = config("optimizer=momentum", "optimizer.momentum=0.5", f"optimizer.lr={1.4 * limit}")
    assert stability_warnings([heavy], found) == [None]
    faster = at(heavy, 1.6 * limit)
    assert str(stability_warnings([faster], found)[0]).startswith(
        f"lr is above the stability limit (1 + momentum)·2/λmax = {1.5 * limit:.6g}:"
    )


def test_adaptive_rules_have_no_limit() -> None:
    of = config("optimizer=adam", "optimizer.lr=100")
    assert stability_warnings([of], known(of)) == [None]


def test_the_observed_rate_is_that_of_the_second_half_above_rounding() -> None:
    far = [{"step": step, "optimum/distance": 5.0 * 0.5**step} for step in range(1, 11)]
    near = [{"step": step, "optimum/distance": 5.0 * 0.5**10 * 0.9 ** (step - 10)} for step in range(11, 31)]
    still = [{"step": step, "optimum/distance": 1e-7} for step in range(31, 100)]
    assert observed_rate([*far, *near, {"step": 12, "optimum/distance": "nan"}, *still], 1e-6) == pytest.approx(0.9)
    assert observed_rate(far[:1], 0.0) is None
    assert observed_rate(still, 1e-6) is None


# ----------------------------------------------------------------------------------------------------------- the noise


@pytest.mark.parametrize(
    ("words", "expected"),
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
def test_the_noise_floor(words: str, expected: dict[str, float] | None) -> None:
    """Of a target that was divided by 4."""
    floor = noise_floor(config(*words.split()), 4.0)
    assert floor == (None if expected is None else pytest.approx(expected))
