"""Autocast, and a gradient scaler that treats any update as torch's scaler treats its own optimizers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from runner.compute.precision import DTYPES, GradientScaler, Scaler, Unscaled, autocast, scaler, widest

CPU = torch.device("cpu")
LR = 0.25


def _product() -> torch.dtype:
    return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


@pytest.mark.parametrize("amp", ["bfloat16", "float16"])
def test_autocast_computes_products_in_the_narrow_type(amp: str) -> None:
    context = autocast(amp, CPU)
    for _ in range(2):  # one context for every call of a run
        with context():
            assert _product() == DTYPES[amp]
        assert _product() == torch.float32


def test_off_changes_nothing() -> None:
    with autocast("off", CPU)():
        assert _product() == torch.float32


def test_sums_are_kept_in_the_widest_type_of_the_device() -> None:
    assert widest(CPU) == torch.float64
    assert widest(torch.device("mps")) == torch.float32


@pytest.mark.parametrize(("amp", "kind"), [("off", Unscaled), ("bfloat16", Unscaled), ("float16", GradientScaler)])
def test_only_float16_is_scaled(amp: str, kind: type) -> None:
    assert type(scaler(amp, CPU)) is kind


def _slopes() -> list[float]:
    """Return the gradient of each of 40 steps; four are not finite."""
    return [math.inf if step in (0, 1, 7, 30) else 1.0 + step / 8 for step in range(40)]


def _ours(steps: list[float], scaler: Scaler, p: Tensor) -> list[tuple[float, bool]]:
    """Return (parameter, accepted) after every step of gradient descent with a manual update."""
    results: list[tuple[float, bool]] = []
    for slope in steps:
        p.grad = None
        scaler.scale((p * slope).sum()).backward()  # type: ignore[no-untyped-call]
        scaler.unscale([p])
        accepted = scaler.accept([p])
        if accepted:
            assert p.grad is not None
            p.data.add_(p.grad, alpha=-LR)
        results.append((float(p.detach()), accepted))
    return results


def _torchs(steps: list[float], scaler: torch.amp.GradScaler, p: Tensor) -> list[float]:
    optimizer = torch.optim.SGD([p], lr=LR)
    values = []
    for slope in steps:
        optimizer.zero_grad()
        scaler.scale((p * slope).sum()).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        values.append(float(p.detach()))
    return values


def _parameter() -> Tensor:
    return torch.tensor([3.0], requires_grad=True)


def test_steps_are_skipped_and_the_scale_adapted_as_torch_does() -> None:
    ours, theirs = GradientScaler(CPU), torch.amp.GradScaler("cpu")
    state: Any = {**theirs.state_dict(), "growth_interval": 5}  # grows within these forty steps
    theirs.load_state_dict(state)
    ours.load_state_dict({**state, "skipped_steps": 0})
    results = _ours(_slopes(), ours, _parameter())
    assert [value for value, _ in results] == _torchs(_slopes(), theirs, _parameter())
    assert [step for step, (_, accepted) in enumerate(results) if not accepted] == [0, 1, 7, 30]
    assert ours.state_dict() == {**theirs.state_dict(), "skipped_steps": 4}
    # 65,536 halved four times, and doubled after each five steps in a row: 5 of 2…6, 8…29 and 31…39 hold 1, 4 and 1.
    assert ours.state_dict()["scale"] == 65536.0 / 2**4 * 2**6


def test_the_scaled_loss_is_the_loss_times_the_scale() -> None:
    ours = GradientScaler(CPU)
    assert float(ours.scale(torch.tensor(0.5))) == 0.5 * 65536
    p = _parameter()
    ours.scale((p * 3).sum()).backward()  # type: ignore[no-untyped-call]
    assert p.grad is not None
    assert float(p.grad) == 3 * 65536
    ours.unscale([p])
    assert float(p.grad) == 3


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_one_number_that_is_not_finite_in_any_gradient_skips_the_step(bad: float) -> None:
    ours = GradientScaler(CPU)
    one, other = _parameter(), torch.ones(3, requires_grad=True)
    ours.scale((one * 2).sum() + (other * torch.tensor([1.0, bad, 1.0])).sum()).backward()  # type: ignore[no-untyped-call]
    ours.unscale([one, other])
    assert ours.accept([one, other]) is False
    assert ours.skipped_steps == 1


def test_a_restored_scaler_continues_like_the_original() -> None:
    steps = _slopes()
    straight, p = GradientScaler(CPU), _parameter()
    whole = _ours(steps, straight, p)
    first, q = GradientScaler(CPU), _parameter()
    _ours(steps[:9], first, q)
    second = GradientScaler(CPU)
    second.load_state_dict(first.state_dict())
    assert second.skipped_steps == 3
    assert _ours(steps[9:], second, q) == whole[9:]
    assert second.state_dict() == straight.state_dict()


def test_without_scaling_nothing_is_changed() -> None:
    ours = Unscaled()
    loss = torch.tensor(2.0)
    assert ours.scale(loss) is loss
    p = _parameter()
    p.grad = torch.tensor([math.inf])
    ours.unscale([p])
    assert float(p.grad) == math.inf
    assert ours.accept([p]) is True
    assert ours.state_dict() == {}
    ours.load_state_dict({})
    assert ours.skipped_steps == 0
