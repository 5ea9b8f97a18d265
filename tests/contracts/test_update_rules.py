"""Update rules against torch.optim on the same problem."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from runner.config import schema as c
from runner.optim import rules
from runner.optim.base import Linearisation
from runner.optim.build import build as build_optimizer

CHOICES: dict[str, Any] = {
    "sgd": c.Sgd(name="sgd", lr=0.1, weight_decay=0.0),
    "sgd decayed": c.Sgd(name="sgd", lr=0.1, weight_decay=0.02),
    "momentum": c.Momentum(name="momentum", lr=0.05, momentum=0.9, weight_decay=0.0),
    "momentum decayed": c.Momentum(name="momentum", lr=0.05, momentum=0.9, weight_decay=0.02),
    "adam": c.Adam(name="adam", lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0),
    "adam decayed": c.Adam(name="adam", lr=0.01, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.02),
    "adamw": c.AdamW(name="adamw", lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    "adamw undecayed": c.AdamW(name="adamw", lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0),
}

RULES = ("sgd", "momentum", "adam", "adamw")
"""One choice of each rule, where weight decay makes no difference."""

# Both sides do the same operations on the same numbers, so one step differs only in the rounding of its last operations;
# 200 steps accumulate these. Gradient descent, with or without momentum, rounds identically and must give the same bits.
ULPS_AFTER_200_STEPS = {
    "sgd": 0, "sgd decayed": 0, "momentum": 0, "momentum decayed": 0,
    "adam": 200, "adam decayed": 200, "adamw": 200, "adamw undecayed": 200,
}  # fmt: skip


class Gradients:
    """Objective of an update rule, which uses gradients only."""

    def whole(self, share: Tensor) -> Tensor:
        """Return the share: there is one process."""
        return share

    def residuals(self) -> Linearisation:
        raise AssertionError("an update rule must use gradients only")

    def mean_square(self) -> Tensor:
        raise AssertionError("an update rule must use gradients only")

    def squares(self) -> Tensor:
        raise AssertionError("an update rule must use gradients only")


class Problem(Gradients):
    """Smooth loss of a matrix and a vector, with gradients by autograd."""

    def __init__(self, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(5)
        self.x = torch.randn(20, 3, generator=generator, dtype=torch.float64).to(dtype)
        self.y = torch.randn(20, 2, generator=generator, dtype=torch.float64).to(dtype)
        weight = torch.randn(3, 2, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        bias = torch.zeros(2, dtype=dtype).requires_grad_()
        self.parameters = {"weight": weight, "bias": bias}

    def gradient(self) -> tuple[Tensor, Sequence[Tensor]]:
        for parameter in self.parameters.values():
            parameter.grad = None
        loss = (self.x @ self.parameters["weight"] + self.parameters["bias"] - self.y).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach(), [parameter.grad for parameter in self.parameters.values()]  # type: ignore[misc]


def trained(choice: Any, update: str, dtype: torch.dtype, steps: int, lr: Callable[[int], float]) -> Problem:
    problem = Problem(dtype)
    optimizer = build_optimizer(choice, update, problem.parameters)
    for step in range(steps):
        optimizer.step(problem, lr(step))
    return problem


def ulps(a: Tensor, b: Tensor) -> float:
    """Return the largest difference in units in the last place of the largest entry."""
    place = torch.finfo(a.dtype).eps * float(a.abs().max())
    return float((a - b).abs().max()) / place


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CHOICES)
def test_manual_and_torch_updates_agree(name: str, dtype: torch.dtype) -> None:
    choice = CHOICES[name]
    schedule = lambda step: choice.lr * (1 - step / 400)  # noqa: E731
    manual = trained(choice, "manual", dtype, 200, schedule)
    library = trained(choice, "optimizer", dtype, 200, schedule)
    for parameter in manual.parameters:
        a, b = manual.parameters[parameter].detach(), library.parameters[parameter].detach()
        assert ulps(a, b) <= ULPS_AFTER_200_STEPS[name]
    assert float(manual.gradient()[0]) < float(Problem(dtype).gradient()[0])


@pytest.mark.parametrize("name", CHOICES)
def test_the_adapter_agrees_with_plain_torch_optim(name: str) -> None:
    """Against torch.optim used as in its documentation, without our adapter."""
    choice = CHOICES[name]
    kind: Any = {
        "sgd": torch.optim.SGD,
        "momentum": torch.optim.SGD,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
    }[choice.name]
    options = {k: v for k, v in vars(choice).items() if k not in ("name", "lr")}
    problem = Problem(torch.float64)
    reference = kind(problem.parameters.values(), lr=choice.lr, **options)
    for _ in range(50):
        problem.gradient()
        reference.step()
    ours = trained(choice, "optimizer", torch.float64, 50, lambda step: choice.lr)
    for parameter in problem.parameters:
        # Fused and unfused Adam round differently in their last operations.
        assert ulps(ours.parameters[parameter].detach(), problem.parameters[parameter].detach()) <= 50


@pytest.mark.parametrize("name", CHOICES)
def test_rules_are_pure(name: str) -> None:
    problem = Problem(torch.float32)
    rule = rules.build([CHOICES[name]], torch.device("cpu"))
    params = [p.detach().clone() for p in problem.parameters.values()]
    grads = [g.clone() for g in problem.gradient()[1]]
    state = rule.init(params)
    lr = torch.tensor(0.01, dtype=torch.float64)
    before = [t.clone() for t in (*params, *grads, *(t for slot in state.values() for t in slot))]
    once = rule.step(params, grads, state, lr)
    again = rule.step(params, grads, state, lr)
    after = [*params, *grads, *(t for slot in state.values() for t in slot)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(once[0], again[0], strict=True))
    assert all(p.dtype == torch.float32 for p in once[0])


@pytest.mark.parametrize("name", CHOICES)
def test_vmapped_runs_agree_with_single_runs(name: str) -> None:
    """Two vmapped runs with different learning rates."""
    problem = Problem(torch.float64)
    params = [p.detach().clone() for p in problem.parameters.values()]
    grads = [g.clone() for g in problem.gradient()[1]]
    rule = rules.build([CHOICES[name]], torch.device("cpu"))
    rates = [0.01, 0.3]
    single = [rule.step(params, grads, rule.init(params), torch.tensor(rate, dtype=torch.float64))[0] for rate in rates]
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        lanes = torch.tensor(rates, dtype=torch.float64).reshape(2, *[1] * param.dim())
        stacked, doubled = torch.stack([param, param]), torch.stack([grad, grad])
        together = rule.step([stacked], [doubled], rule.init([stacked]), lanes)[0][0]
        for lane in range(2):
            assert torch.equal(together[lane], single[lane][i])


@pytest.mark.parametrize(
    ("first", "second"),
    [("manual", "optimizer"), ("optimizer", "manual"), ("manual", "manual"), ("optimizer", "optimizer")],
)
@pytest.mark.parametrize("name", RULES)
def test_manual_and_torch_updates_resume_each_others_state(name: str, first: str, second: str) -> None:
    choice = CHOICES[name]
    problem = Problem(torch.float64)
    optimizer = build_optimizer(choice, first, problem.parameters)
    for _ in range(10):
        optimizer.step(problem, choice.lr)
    state = {n: {s: v.clone() for s, v in slots.items()} for n, slots in optimizer.state_dict().items()}
    follower = build_optimizer(choice, second, problem.parameters)
    follower.load_state_dict(state)
    for _ in range(10):
        follower.step(problem, choice.lr)
    uninterrupted = trained(choice, first, torch.float64, 20, lambda step: choice.lr)
    for parameter in problem.parameters:
        bound = 0 if first == second else ULPS_AFTER_200_STEPS[name]
        assert ulps(problem.parameters[parameter].detach(), uninterrupted.parameters[parameter].detach()) <= bound


@pytest.mark.parametrize("update", ["manual", "optimizer"])
@pytest.mark.parametrize("name", ["momentum", "adam", "adamw"])
def test_slots_have_the_names_of_torch(name: str, update: str) -> None:
    problem = Problem(torch.float32)
    optimizer = build_optimizer(CHOICES[name], update, problem.parameters)
    optimizer.step(problem, 0.01)
    expected = {"momentum_buffer"} if name.startswith("momentum") else {"step", "exp_avg", "exp_avg_sq"}
    assert {parameter: set(slots) for parameter, slots in optimizer.state_dict().items()} == {
        "weight": expected,
        "bias": expected,
    }


@pytest.mark.parametrize("update", ["manual", "optimizer"])
@pytest.mark.parametrize("name", RULES)
def test_a_skipped_step_changes_nothing(name: str, update: str) -> None:
    problem = Problem(torch.float32)
    optimizer = build_optimizer(CHOICES[name], update, problem.parameters)
    before = [p.detach().clone() for p in problem.parameters.values()]

    class Skipped(Gradients):
        def gradient(self) -> tuple[Tensor, None]:
            return problem.gradient()[0], None

    optimizer.step(Skipped(), 0.1)
    assert all(torch.equal(a, b) for a, b in zip(before, problem.parameters.values(), strict=True))


def test_lbfgs_finds_the_least_squares_solution() -> None:
    choice = c.Lbfgs(
        name="lbfgs",
        lr=1.0,
        max_iter=20,
        history_size=10,
        tolerance_grad=1e-12,
        tolerance_change=1e-14,
        line_search="strong_wolfe",
    )
    problem = trained(choice, "optimizer", torch.float64, 5, lambda step: 1.0)
    ones = torch.ones(20, 1, dtype=torch.float64)
    solution = torch.linalg.lstsq(torch.cat([problem.x, ones], 1), problem.y).solution
    # A loss that is flat to 1e-14 near its minimum determines parameters to about the root of that.
    assert torch.allclose(problem.parameters["weight"].detach(), solution[:3], atol=1e-6)
    assert torch.allclose(problem.parameters["bias"].detach(), solution[3], atol=1e-6)


def test_lbfgs_resumes_from_a_saved_state() -> None:
    choice = c.Lbfgs(
        name="lbfgs",
        lr=0.5,
        max_iter=2,
        history_size=4,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search="strong_wolfe",
    )
    problem = Problem(torch.float64)
    first = build_optimizer(choice, "optimizer", problem.parameters)
    for _ in range(3):
        first.step(problem, 0.5)
    second = build_optimizer(choice, "optimizer", problem.parameters)
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        second.step(problem, 0.5)
    uninterrupted = trained(choice, "optimizer", torch.float64, 6, lambda step: 0.5)
    assert all(
        torch.equal(a, b) for a, b in zip(problem.parameters.values(), uninterrupted.parameters.values(), strict=True)
    )
