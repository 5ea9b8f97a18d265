"""One question: the loss and gradients of a step's batch, whole however it is cut, and the same at every call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from runner.compute.precision import Unscaled, autocast, scaler
from runner.compute.rng import drawing, preserve_rng_state, stream
from runner.compute.strategies.base import Single
from runner.config import schema as c
from runner.data.batches import EpochBatches
from runner.data.dataset import ResidentRows
from runner.models import losses
from runner.models.base import Model
from runner.models.base import build as build_model
from runner.training.objective import BatchObjective

CPU = torch.device("cpu")
ROWS = 22


def _rows(dtype: torch.dtype = torch.float64) -> ResidentRows:
    generator = stream(0, "data")
    features = torch.randn(ROWS, 2, dtype=torch.float64, generator=generator)
    target = torch.randn(ROWS, 1, dtype=torch.float64, generator=generator) * 5
    return ResidentRows(features.to(dtype), target.to(dtype), torch.arange(100, 100 + ROWS))


def _model(dropout: float = 0.0) -> Model:
    config = c.Mlp(name="mlp", widths=(6,), activation="tanh", dropout=dropout)
    return build_model(config, ("x", "z"), stream(0, "init"))


def _objective(
    model: Any, rows: ResidentRows | None = None, batch_size: int | None = None, **changes: Any
) -> BatchObjective:
    whole: dict[str, Any] = {
        "model": model,
        "parameters": list(model.parameters()),
        "loss": losses.build(c.Mse(name="mse")),
        "rows": rows or _rows(),
        "batches": EpochBatches(ROWS, batch_size, 0, CPU),
        "strategy": Single(CPU),
        "autocast": autocast("off", CPU),
        "scaler": Unscaled(),
        "accumulate": 1,
        "clip_norm": None,
        "check_gradients": False,
        "draw": drawing(getattr(model, "draws", False), 0, CPU),
        "predict": model,
        "jacobian": lambda features: model.jacobian(dict(model.named_parameters()), features),
    }
    return BatchObjective(**{**whole, **changes})


def _answer(objective: BatchObjective, step: int = 1) -> tuple[Tensor, list[Tensor]]:
    loss, gradients = objective.at(step).gradient()
    assert gradients is not None
    return loss, [gradient.clone() for gradient in gradients]


def _by_hand(model: torch.nn.Module, features: Tensor, target: Tensor) -> tuple[Tensor, list[Tensor]]:
    loss = (model(features) - target).square().mean()
    return loss.detach(), list(torch.autograd.grad(loss, list(model.parameters())))


def _assert_close(one: tuple[Tensor, list[Tensor]], other: tuple[Tensor, list[Tensor]]) -> None:
    # Sums over 22 rows in another order: some roundings of float64.
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_the_answer_is_that_of_the_whole_part() -> None:
    model, rows = _model(), _rows()
    _assert_close(_answer(_objective(model)), _by_hand(model, rows.features, rows.target))


def test_the_answer_is_that_of_the_steps_own_batch() -> None:
    model, rows = _model(), _rows()
    objective = _objective(model, batch_size=8)
    for step in (3, 1, 5):  # the third of an epoch has the 6 rows that are left
        chosen = EpochBatches(ROWS, 8, 0, CPU).at(step)
        assert isinstance(chosen, Tensor)
        _assert_close(_answer(objective, step), _by_hand(model, rows.features[chosen], rows.target[chosen]))


@pytest.mark.parametrize("batch_size", [None, 9])
@pytest.mark.parametrize("accumulate", [2, 3, 4, 21, 22, 100])
def test_a_batch_in_parts_has_the_answer_of_the_whole(accumulate: int, batch_size: int | None) -> None:
    # 3 does not divide 22, 4 does not divide 9 or the last batch of 4: the parts are uneven or fewer than asked.
    model = _model()
    for step in (1, 3):
        whole = _answer(_objective(model, batch_size=batch_size), step)
        _assert_close(_answer(_objective(model, batch_size=batch_size, accumulate=accumulate), step), whole)


def test_gradients_are_also_left_on_the_parameters_and_never_added_up() -> None:
    model = _model()
    objective = _objective(model)
    _answer(objective)
    _, gradients = _answer(objective)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)
    _assert_close(_answer(objective), _by_hand(model, _rows().features, _rows().target))


@pytest.mark.parametrize("clip_norm", [0.01, 1e6])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_clipping_is_torchs_by_the_norm_of_all_gradients(clip_norm: float, accumulate: int) -> None:
    model = _model()
    objective = _objective(model, clip_norm=clip_norm, accumulate=accumulate)
    _, clipped = _answer(objective)
    _, whole = _answer(_objective(model, accumulate=accumulate))
    for parameter, gradient in zip(model.parameters(), whole, strict=True):
        parameter.grad = gradient
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    assert objective.norm is not None
    assert torch.equal(objective.norm, norm)
    for parameter, gradient in zip(model.parameters(), clipped, strict=True):
        assert parameter.grad is not None
        assert torch.equal(gradient, parameter.grad)


def test_the_norm_is_looked_at_where_it_is_asked_for() -> None:
    looked, blind = _objective(_model(), check_gradients=True), _objective(_model())
    _, gradients = _answer(looked)
    _answer(blind)
    assert looked.norm is not None
    expected = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    torch.testing.assert_close(looked.norm, expected, rtol=1e-14, atol=0)  # 25 squares in another order
    assert blind.norm is None


@pytest.mark.parametrize("accumulate", [1, 3])
def test_every_call_within_a_step_draws_the_same_numbers(accumulate: int) -> None:
    with torch.random.fork_rng(devices=[]):
        objective = _objective(_model(dropout=0.5), batch_size=8, accumulate=accumulate)
        first = _answer(objective, 2)
        torch.rand(5)
        again = objective.gradient()
        assert torch.equal(first[0], again[0])
        elsewhere = _answer(objective, 3)
        assert not torch.equal(first[0], elsewhere[0])
        back = _answer(objective, 2)
        assert torch.equal(first[0], back[0])
        assert all(torch.equal(one, other) for one, other in zip(first[1], back[1], strict=True))


def test_steps_and_seeds_draw_numbers_of_their_own() -> None:
    with torch.random.fork_rng(devices=[]):
        model = _model(dropout=0.5)  # the full batch: rows and parameters are the same at every step
        asked = [
            _answer(_objective(model, draw=drawing(True, seed, CPU)), step)[0] for seed in (0, 1) for step in (1, 2)
        ]
    assert len({float(loss) for loss in asked}) == 4


def test_a_model_that_draws_nothing_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    _answer(_objective(_model()))
    assert torch.equal(torch.get_rng_state(), before)


class Overflowing(torch.nn.Module):
    """Weight times the first feature, and no value where that feature is above a limit."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
        self.limit = limit

    def forward(self, features: Tensor) -> Tensor:
        first = features[:, :1]
        return torch.where(first > self.limit, torch.inf, first) * self.weight


@pytest.mark.parametrize("batch_size", [None, 8])
def test_rows_without_a_value_are_told_by_their_number_in_the_source(batch_size: int | None) -> None:
    rows, batches = _rows(), EpochBatches(ROWS, batch_size, 0, CPU)
    objective = _objective(Overflowing(limit=1.0), batches=batches)
    bad = rows.source[rows.features[:, 0] > 1.0].tolist()
    told = [number for step in range(1, batches.per_epoch + 1) for number in objective.nonfinite_rows(step)[0]]
    assert 0 < len(bad) < ROWS
    assert sorted(told) == bad


@pytest.mark.parametrize("limit", [1e9, -1e9])
def test_no_row_is_named_when_none_or_all_are_without_a_value(limit: float) -> None:
    assert _objective(Overflowing(limit)).nonfinite_rows(1) == [[]]


def _scaled(limit: float) -> BatchObjective:
    model = Overflowing(limit).to(torch.float32)
    return _objective(model, rows=_rows(torch.float32), scaler=scaler("float16", CPU), clip_norm=0.5)


def test_scaled_gradients_are_unscaled_before_they_are_clipped() -> None:
    plain = _objective(Overflowing(1e9).to(torch.float32), rows=_rows(torch.float32), clip_norm=0.5)
    loss, (gradient,) = _answer(plain)
    scaled_loss, (scaled,) = _answer(_scaled(1e9))
    # The scale is a power of two, so that nothing is rounded.
    assert torch.equal(scaled, gradient)
    assert torch.equal(scaled_loss, loss)
    assert abs(float(gradient)) <= 0.5


def test_gradients_that_overflowed_are_withheld() -> None:
    objective = _scaled(1.0)
    loss, gradients = objective.at(1).gradient()
    assert gradients is None
    assert not loss.isfinite()
    assert objective.scaler.skipped_steps == 1


def test_a_borrowed_generator_is_given_back_as_it_was() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="of the run"):
        _draw_and_fail()
    assert torch.equal(torch.get_rng_state(), before)


def _draw_and_fail() -> None:
    with preserve_rng_state(True, CPU):
        _answer(_objective(_model(dropout=0.5)))
        raise ValueError("of the run")
