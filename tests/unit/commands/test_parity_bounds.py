"""Bounds of parity cells: the kind of each cell, and that rounding meets a bound while a wrong learning rate misses it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from runner.commands.parity.bounds import REASONS, Bound, bound
from runner.commands.parity.rounding import (
    LinearProblem,
    Rounding,
    error_growth,
    gamma,
    linear_problem,
    relative_difference,
    roundoffs,
)
from runner.compute.devices import DeviceChoice
from runner.compute.processes import SingleProcess
from runner.config.compose import compose
from runner.config.schema import Config
from runner.training import build

CPU = DeviceChoice("cpu", "cpu", "CPU", "cpu")
CURVE = ("+experiment=curve_fit", "train.steps=30")
MLP = (
    "+experiment=mlp",
    "data.rows=200",
    "model.widths=[8]",
    "train.epochs=null",
    "train.steps=25",
    "optimizer.lr=0.01",
)


def configured(*overrides: str) -> Config:
    return compose([*overrides, "device=cpu", "strategy=single", "device.threads=1"], None).config


def reference(*overrides: str) -> Config:
    return configured(*overrides, "dtype=float64", "update=manual")


def trained(config: Config, steps: int, factor: float = 1.0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Train in the dtype of the configuration and return parameters and losses; learning rates are multiplied by `factor`."""
    parts = build.build(config, build.prepare(config, CPU, 1)[0], SingleProcess())
    schedule: Any = parts.schedule
    losses = [parts.optimizer.step(parts.objective.at(step), factor * schedule(step)) for step in range(1, steps + 1)]
    return dict(parts.model.state_dict()), {"": torch.stack([loss.reshape(()) for loss in losses])}


def differences(config: Config, reference: Config, steps: int, factor: float = 1.0) -> tuple[float, float]:
    result, exact = trained(config, steps, factor), trained(reference, steps)
    return relative_difference(result[0], exact[0]), relative_difference(result[1], exact[1])


# ---------------------------------------------------------------------------------------------------------- kinds of bound


@pytest.mark.parametrize(
    ("overrides", "kind", "steps", "limit"),
    [
        (["dtype=float64", "update=manual"], "equal", 300, 0.0),
        (["dtype=float64", "update=optimizer"], "equal", 300, 0.0),
        (["dtype=float64", "update=optimizer", "optimizer=momentum"], "equal", 300, 0.0),
        (["dtype=float64", "update=manual", "optimizer=adam"], "equal", 300, 0.0),
        (["dtype=float64", "update=optimizer", "optimizer=adam"], "reordered", 200, 1e-10),
        (["dtype=float64", "update=manual", "strategy=ddp"], "reordered", 200, 1e-12),
        (["dtype=float64", "update=manual", "strategy=fsdp", "optimizer=adamw"], "reordered", 200, 1e-10),
        (["dtype=float64", "update=optimizer", "strategy=ddp", "strategy.reduction=exact"], "equal", 300, 0.0),
        (["dtype=float32", "update=manual"], "linear", 300, None),
        (["dtype=float64", "update=manual", "device=cuda"], "linear", 300, None),
        (["dtype=float32", "update=manual", "loss=mae"], "sampled", 20, None),
        (["dtype=float32", "update=manual", "train.clip_norm=1"], "sampled", 20, None),
        (["dtype=float32", "update=manual", "train.batch_size=5"], "sampled", 20, None),
        (
            ["dtype=float64", "update=optimizer", "optimizer=lbfgs", "optimizer.max_iter=2", "strategy=ddp"],
            "sampled",
            20,
            None,
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_bound_of_a_cell(overrides: list[str], kind: str, steps: int, limit: float | None) -> None:
    config = compose(
        ["+experiment=linreg", "device=cpu", "strategy=single", "train.steps=300", *overrides], None
    ).config
    update: Any = "optimizer" if config.optimizer.name == "lbfgs" else "manual"
    exact = replace(
        config, dtype="float64", update=update, device=replace(config.device, name="cpu"), strategy=replace(config.strategy, name="single")
    )  # fmt: skip
    result = bound(config, exact, 300, Rounding(exact, CPU))
    assert (result.kind, result.steps) == (kind, steps)
    assert limit is None or (result.parameters, result.loss) == (limit, limit)
    assert kind in REASONS


def test_a_bound_promises_nothing_if_rounding_may_leave_no_digit() -> None:
    assert Bound("sampled", 20, 2.0, 0.5).holds_digits
    assert not Bound("sampled", 20, 2.0, 1.0).holds_digits


# ------------------------------------------------------------------------------------------------------------ differences


def test_a_difference_is_relative_to_the_largest_magnitude_of_its_tensor() -> None:
    exact = {"a": torch.tensor([100.0, 1.0]), "b": torch.tensor([0.0, -2.0])}
    assert relative_difference(exact, exact) == 0
    assert relative_difference({**exact, "a": torch.tensor([101.0, 1.0])}, exact) == pytest.approx(0.01)
    assert relative_difference({**exact, "b": torch.tensor([0.5, -2.0], dtype=torch.bfloat16)}, exact) == 0.25
    assert relative_difference({"a": torch.ones(1)}, {"a": torch.zeros(1)}) == math.inf
    assert math.isnan(relative_difference({**exact, "a": torch.tensor([math.nan, 1.0])}, exact))


# ------------------------------------------------------------------------------------------------------- linear problems


def test_the_roundoff_of_results_and_sums() -> None:
    assert roundoffs("float64", "highest") == (2.0**-53, 2.0**-53)
    assert roundoffs("float32", "highest") == (2.0**-24, 2.0**-24)
    assert roundoffs("float32", "high") == (2.0**-11, 2.0**-24)
    assert roundoffs("bfloat16", "medium") == (2.0**-8, 2.0**-24)
    assert gamma(3, 2.0**-8) == pytest.approx((1 + 2.0**-8) ** 3 - 1, rel=0.01)  # equal to first order
    assert gamma(256, 2.0**-8) == math.inf


def test_error_growth_of_gradient_descent() -> None:
    result = error_growth(torch.tensor([5.0, 0.0, 30.0], dtype=torch.float64), [0.1, 0.1], 0.0)
    # 1 − 0.1·λ is 0.5, 1 and −2. The error of the last step is multiplied by it 0 times, that of the start twice.
    assert result.tolist() == pytest.approx([1 + 0.5 + 0.25, 3.0, 1 + 2 + 4])


def test_error_growth_with_momentum() -> None:
    value, momentum, rates = 3.0, 0.9, [0.1, 0.05, 0.2]
    row, total = np.array([1.0, 0.0]), 1.0
    for rate in reversed(rates):
        # (p, 0.2·v) after a step; 0.2 is the largest rate.
        row = row @ np.array([[1 - rate * value, -rate / 0.2 * momentum], [0.2 * value, momentum]])
        total += float(np.linalg.norm(row))
    (result,) = error_growth(torch.tensor([value], dtype=torch.float64), rates, momentum).tolist()
    assert result == pytest.approx(math.sqrt(2) * total)


def least_squares(*overrides: str) -> LinearProblem:
    config = reference(*overrides)
    result = linear_problem(build.build(config, build.prepare(config, CPU, 1)[0], SingleProcess()))
    assert result is not None
    return result


def test_a_formula_that_is_linear_in_its_parameters_is_a_linear_problem() -> None:
    result = least_squares(
        *CURVE, "model.expression=w*x + 3*x + u*x**2", "model.start={w: 0.5, u: 0}", "optimizer=momentum"
    )
    x = torch.linspace(0, 15, 16, dtype=torch.float64)
    assert torch.allclose(result.design, torch.stack((x, x**2), 1))
    assert result.start.tolist() == [0.5, 0.0]
    assert result.momentum == 0.9
    assert result.sensitivity == pytest.approx(
        2, rel=1e-3
    )  # x² doubles a relative error, to first order in the change of 1e-6
    assert result.rates == [0.01] * 30


def test_other_problems_are_not_linear_problems() -> None:
    for overrides in (
        ["model.expression=w*x*w"],
        ["optimizer=adam"],
        ["loss=huber"],
        ["train.batch_size=4"],
        ["train.clip_norm=9"],
    ):
        config = reference(*CURVE, *overrides)
        assert linear_problem(build.build(config, build.prepare(config, CPU, 1)[0], SingleProcess())) is None


PROBLEMS = {
    "one parameter": (*CURVE, "optimizer=sgd"),
    "a line": ("+experiment=linreg", "train.steps=60"),
    "momentum": ("+experiment=linreg", "optimizer=momentum", "optimizer.lr=1e-4", "train.steps=60"),
    "decay and schedule": ("+experiment=linreg", "optimizer.weight_decay=0.1", "schedule=cosine", "train.steps=60"),
    "powers": (*CURVE, "model=polynomial", "model.degree=3", "data.stop=2", "optimizer.lr=0.02"),
}


@pytest.mark.parametrize("overrides", PROBLEMS.values(), ids=PROBLEMS)
def test_rounding_meets_the_linear_bound_and_half_the_learning_rate_misses_it(overrides: tuple[str, ...]) -> None:
    exact, single = reference(*overrides), configured(*overrides, "dtype=float32", "update=optimizer")
    steps = exact.train.steps or 0
    limit = Rounding(exact, CPU).linear.effect("float32", "highest", steps)  # type: ignore[union-attr]
    parameters, loss = differences(single, exact, steps)
    assert parameters <= limit[0] < 1
    assert loss <= limit[1] < 1
    wrong = differences(single, exact, steps, factor=0.5)
    assert wrong[0] > limit[0] or wrong[1] > limit[1]


def test_a_linear_bound_is_proportional_to_the_unit_roundoff() -> None:
    problem = least_squares("+experiment=linreg", "train.steps=60")
    double, single = (problem.effect(dtype, "highest", 60)[0] for dtype in ("float64", "float32"))
    assert double / single == pytest.approx(2.0**-29, rel=1e-4)  # to first order in the roundoff


# --------------------------------------------------------------------------------------------------------- other problems


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_rounding_meets_the_sampled_bound_and_another_learning_rate_misses_it(optimizer: str) -> None:
    overrides = (*MLP, f"optimizer={optimizer}")
    exact, single = reference(*overrides), configured(*overrides, "dtype=float32", "update=optimizer")
    result = bound(single, exact, 25, Rounding(exact, CPU))
    assert (result.kind, result.steps) == ("sampled", 20)
    parameters, loss = differences(single, exact, 20)
    assert parameters <= result.parameters < 1e-3
    assert loss <= result.loss < 1e-3
    wrong = differences(single, exact, 20, factor=1.01)
    assert max(wrong[0] / result.parameters, wrong[1] / result.loss) > 1


def test_a_sampled_bound_is_reproducible() -> None:
    exact = reference(*MLP)
    assert Rounding(exact, CPU).sampled("float32", "highest", 5) == Rounding(exact, CPU).sampled(
        "float32", "highest", 5
    )


def test_there_is_no_bound_if_a_training_with_errors_fails() -> None:
    exact = reference("+experiment=linreg", "optimizer.lr=1e30")
    assert Rounding(exact, CPU).sampled("float32", "highest", 20)[0] == math.inf
