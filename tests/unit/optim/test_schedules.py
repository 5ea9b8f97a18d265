"""Learning rate by step, against torch's schedulers where they compute the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from runner.config import schema as c
from runner.optim import schedules

LR = 0.3
STEPS = 40


def _ours(config: Any, steps: int = STEPS) -> list[float]:
    schedule: Any = schedules.build(config, LR, steps)
    return [schedule(step) for step in range(1, steps + 1)]


def _torchs(make: Callable[[Any], Any], steps: int = STEPS) -> list[float]:
    """Return the rate of every step by a scheduler of torch, which counts from 0 and steps after each update."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def _close(ours: list[float], theirs: list[float]) -> None:
    # torch computes each rate from the previous one, we from the step: some roundings per step, forty steps.
    torch.testing.assert_close(torch.tensor(ours).double(), torch.tensor(theirs).double(), rtol=1e-13, atol=1e-15)


def test_constant_is_the_base_rate() -> None:
    assert _ours(c.Constant(name="constant")) == [LR] * STEPS


@pytest.mark.parametrize("every", [1, 7, 100])
def test_step_is_torchs_steplr(every: int) -> None:
    config = c.Step(name="step", every_steps=every, factor=0.5)
    _close(_ours(config), _torchs(lambda o: lr_scheduler.StepLR(o, step_size=every, gamma=0.5)))


def test_step_falls_after_every_steps_and_not_before() -> None:
    assert _ours(c.Step(name="step", every_steps=2, factor=0.5), 5) == [LR, LR, LR / 2, LR / 2, LR / 4]


@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_cosine_is_torchs_cosine_annealing(final: float) -> None:
    config = c.Cosine(name="cosine", final_factor=final)
    _close(_ours(config), _torchs(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=STEPS - 1, eta_min=final * LR)))


@pytest.mark.parametrize("rise", [2, 10, 39])
def test_warmup_is_torchs_linear_rise(rise: int) -> None:
    config = c.WarmupCosine(name="warmup_cosine", warmup_steps=rise, final_factor=0.0)
    linear = _torchs(lambda o: lr_scheduler.LinearLR(o, start_factor=1 / rise, end_factor=1, total_iters=rise - 1))
    _close(_ours(config)[:rise], linear[:rise])


def test_after_the_warmup_a_cosine_spans_the_remaining_steps() -> None:
    config = c.WarmupCosine(name="warmup_cosine", warmup_steps=10, final_factor=0.1)
    cosine = _torchs(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=STEPS - 10, eta_min=0.1 * LR))
    _close(_ours(config)[9:], cosine[: STEPS - 9])


@pytest.mark.parametrize(
    ("config", "first", "last"),
    [
        (c.Cosine(name="cosine", final_factor=0.25), LR, LR * 0.25),
        (c.WarmupCosine(name="warmup_cosine", warmup_steps=4, final_factor=0.25), LR / 4, LR * 0.25),
        (c.WarmupCosine(name="warmup_cosine", warmup_steps=1, final_factor=0.25), LR, LR * 0.25),
    ],
)
def test_the_first_and_last_rate_are_exact(config: Any, first: float, last: float) -> None:
    rates = _ours(config)
    assert (rates[0], rates[-1]) == (first, last)


def test_a_run_of_one_step_has_the_full_rate() -> None:
    assert _ours(c.Cosine(name="cosine", final_factor=0.0), 1) == [LR]


def test_steps_beyond_the_last_stay_at_the_end() -> None:
    schedule = schedules.build(c.Cosine(name="cosine", final_factor=0.25), LR, STEPS)
    assert schedule(STEPS + 1) == schedule(2 * STEPS) == LR * 0.25
