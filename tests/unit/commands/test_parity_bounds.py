"""How far a cell may be from its reference: which bound it has, and that each bound holds for rounding and for nothing else."""

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


def configured(*words: str) -> Config:
    return compose([*words, "device=cpu", "strategy=single", "device.threads=1"], None).config


def reference(*words: str) -> Config:
    return configured(*words, "dtype=float64", "update=manual")


def trained(config: Config, steps: int, faster: float = 1.0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters and losses, as a run in the configuration's own type comes to them; `faster` is what rates are multiplied by."""
    parts = build.build(config, build.prepare(config, CPU, 1)[0], SingleProcess())
    schedule: Any = parts.schedule
    losses = [parts.optimizer.step(parts.objective.at(step), faster * schedule(step)) for step in range(1, steps + 1)]
    return dict(parts.model.state_dict()), {"": torch.stack([loss.reshape(()) for loss in losses])}


def off(config: Config, whole: Config, steps: int, faster: float = 1.0) -> tuple[float, float]:
    found, exact = trained(config, steps, faster), trained(whole, steps)
    return relative_difference(found[0], exact[0]), relative_difference(found[1], exact[1])


# ------------------------------------------------------------------------------------------------------ which bound it is


@pytest.mark.parametrize(
    ("words", "kind", "steps", "most"),
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
def test_the_bound_of_a_cell(words: list[str], kind: str, steps: int, most: float | None) -> None:
    config = compose(["+experiment=linreg", "device=cpu", "strategy=single", "train.steps=300", *words], None).config
    by: Any = "optimizer" if config.optimizer.name == "lbfgs" else "manual"
    whole = replace(
        config, dtype="float64", update=by, device=replace(config.device, name="cpu"), strategy=replace(config.strategy, name="single")
    )  # fmt: skip
    found = bound(config, whole, 300, Rounding(whole, CPU))
    assert (found.kind, found.steps) == (kind, steps)
    assert most is None or (found.parameters, found.loss) == (most, most)
    assert kind in REASONS


def test_a_bound_promises_nothing_where_rounding_may_leave_no_digit() -> None:
    assert Bound("sampled", 20, 2.0, 0.5).holds_digits
    assert not Bound("sampled", 20, 2.0, 1.0).holds_digits


# ------------------------------------------------------------------------------------------------------------ differences


def test_a_difference_is_relative_to_the_largest_number_of_each_tensor() -> None:
    whole = {"a": torch.tensor([100.0, 1.0]), "b": torch.tensor([0.0, -2.0])}
    assert relative_difference(whole, whole) == 0
    assert relative_difference({**whole, "a": torch.tensor([101.0, 1.0])}, whole) == pytest.approx(0.01)
    assert relative_difference({**whole, "b": torch.tensor([0.5, -2.0], dtype=torch.bfloat16)}, whole) == 0.25
    assert relative_difference({"a": torch.ones(1)}, {"a": torch.zeros(1)}) == math.inf
    assert math.isnan(relative_difference({**whole, "a": torch.tensor([math.nan, 1.0])}, whole))


# ------------------------------------------------------------------------------------------------------- linear problems


def test_the_roundoff_of_results_and_sums() -> None:
    assert roundoffs("float64", "highest") == (2.0**-53, 2.0**-53)
    assert roundoffs("float32", "highest") == (2.0**-24, 2.0**-24)
    assert roundoffs("float32", "high") == (2.0**-11, 2.0**-24)
    assert roundoffs("bfloat16", "medium") == (2.0**-8, 2.0**-24)
    assert gamma(3, 2.0**-8) == pytest.approx((1 + 2.0**-8) ** 3 - 1, rel=0.01)  # to first order the same
    assert gamma(256, 2.0**-8) == math.inf


def test_what_later_steps_make_of_errors_by_gradient_descent() -> None:
    found = error_growth(torch.tensor([5.0, 0.0, 30.0], dtype=torch.float64), [0.1, 0.1], 0.0)
    # 1 − 0.1·λ is 0.5, 1 and −2: an error of the last step stays, one before it is multiplied once, that of the start twice.
    assert found.tolist() == pytest.approx([1 + 0.5 + 0.25, 3.0, 1 + 2 + 4])


def test_what_later_steps_make_of_errors_with_momentum() -> None:
    value, momentum, rates = 3.0, 0.9, [0.1, 0.05, 0.2]
    row, total = np.array([1.0, 0.0]), 1.0
    for rate in reversed(rates):
        # (p, 0.2·v), the largest rate, after a step.
        row = row @ np.array([[1 - rate * value, -rate / 0.2 * momentum], [0.2 * value, momentum]])
        total += float(np.linalg.norm(row))
    (found,) = error_growth(torch.tensor([value], dtype=torch.float64), rates, momentum).tolist()
    assert found == pytest.approx(math.sqrt(2) * total)


def least_squares(*words: str) -> LinearProblem:
    config = reference(*words)
    found = linear_problem(build.build(config, build.prepare(config, CPU, 1)[0], SingleProcess()))
    assert found is not None
    return found


def test_a_formula_that_is_linear_in_its_parameters_is_a_linear_problem() -> None:
    found = least_squares(
        *CURVE, "model.expression=w*x + 3*x + u*x**2", "model.start={w: 0.5, u: 0}", "optimizer=momentum"
    )
    x = torch.linspace(0, 15, 16, dtype=torch.float64)
    assert torch.allclose(found.design, torch.stack((x, x**2), 1))
    assert found.start.tolist() == [0.5, 0.0]
    assert found.momentum == 0.9
    assert found.sensitivity == pytest.approx(
        2, rel=1e-3
    )  # x² doubles a relative error; of the change of 1e-6 to first order
    assert found.rates == [0.01] * 30


def test_other_problems_are_not() -> None:
    for words in (
        ["model.expression=w*x*w"],
        ["optimizer=adam"],
        ["loss=huber"],
        ["train.batch_size=4"],
        ["train.clip_norm=9"],
    ):
        config = reference(*CURVE, *words)
        assert linear_problem(build.build(config, build.prepare(config, CPU, 1)[0], SingleProcess())) is None


PROBLEMS = {
    "one parameter": (*CURVE, "optimizer=sgd"),
    "a line": ("+experiment=linreg", "train.steps=60"),
    "momentum": ("+experiment=linreg", "optimizer=momentum", "optimizer.lr=1e-4", "train.steps=60"),
    "decay and schedule": ("+experiment=linreg", "optimizer.weight_decay=0.1", "schedule=cosine", "train.steps=60"),
    "powers": (*CURVE, "model=polynomial", "model.degree=3", "data.stop=2", "optimizer.lr=0.02"),
}


@pytest.mark.parametrize("words", PROBLEMS.values(), ids=PROBLEMS)
def test_rounding_stays_within_the_bound_of_a_linear_problem_and_half_the_rate_does_not(words: tuple[str, ...]) -> None:
    whole, single = reference(*words), configured(*words, "dtype=float32", "update=optimizer")
    steps = whole.train.steps or 0
    most = Rounding(whole, CPU).linear.effect("float32", "highest", steps)  # type: ignore[union-attr]
    parameters, loss = off(single, whole, steps)
    assert parameters <= most[0] < 1
    assert loss <= most[1] < 1
    wrong = off(single, whole, steps, faster=0.5)
    assert wrong[0] > most[0] or wrong[1] > most[1]


def test_a_bound_in_float64_is_smaller_by_the_ratio_of_the_roundoffs() -> None:
    problem = least_squares("+experiment=linreg", "train.steps=60")
    double, single = (problem.effect(dtype, "highest", 60)[0] for dtype in ("float64", "float32"))
    assert double / single == pytest.approx(2.0**-29, rel=1e-4)  # to first order in the roundoff


# --------------------------------------------------------------------------------------------------------- other problems


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_rounding_stays_within_the_sampled_bound_and_another_rate_does_not(optimizer: str) -> None:
    words = (*MLP, f"optimizer={optimizer}")
    whole, single = reference(*words), configured(*words, "dtype=float32", "update=optimizer")
    found = bound(single, whole, 25, Rounding(whole, CPU))
    assert (found.kind, found.steps) == ("sampled", 20)
    parameters, loss = off(single, whole, 20)
    assert parameters <= found.parameters < 1e-3
    assert loss <= found.loss < 1e-3
    wrong = off(single, whole, 20, faster=1.01)
    assert max(wrong[0] / found.parameters, wrong[1] / found.loss) > 1


def test_a_sampled_bound_is_the_same_twice() -> None:
    whole = reference(*MLP)
    assert Rounding(whole, CPU).sampled("float32", "highest", 5) == Rounding(whole, CPU).sampled(
        "float32", "highest", 5
    )


def test_there_is_no_bound_where_a_training_with_errors_comes_to_nothing() -> None:
    whole = reference("+experiment=linreg", "optimizer.lr=1e30")
    assert Rounding(whole, CPU).sampled("float32", "highest", 20)[0] == math.inf
