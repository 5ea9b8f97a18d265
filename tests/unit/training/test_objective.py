"""Loss and gradients of a step's batch are the same however it is cut, and at every call within the step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from runner.compute.batch import Batch
from runner.compute.precision import Unscaled, autocast, scaler
from runner.compute.processes import SingleProcess
from runner.compute.rng import dropout_seeder, preserve_rng_state, stream
from runner.compute.strategies.base import Single
from runner.compute.strategies.exact import Exact
from runner.config import schema as c
from runner.data.batches import EpochBatches
from runner.data.dataset import ResidentRows
from runner.models import losses
from runner.models.base import Model
from runner.models.base import build as build_model
from runner.training.divergence import Nonfinite
from runner.training.objective import BatchObjective

CPU = torch.device("cpu")
ROWS = 22


def _rows(dtype: torch.dtype = torch.float64) -> ResidentRows:
    generator = stream(0, "data")
    features = torch.randn(ROWS, 2, dtype=torch.float64, generator=generator)
    target = torch.randn(ROWS, 1, dtype=torch.float64, generator=generator) * 5
    return ResidentRows(Batch(features.to(dtype), target.to(dtype)), torch.arange(100, 100 + ROWS))


def _model(dropout: float = 0.0) -> Model:
    config = c.Mlp(name="mlp", init_from=None, widths=(6,), activation="tanh", dropout=dropout, embedding_size=None)
    return build_model(config, ("x", "z"), ["y"], stream(0, "init"))


def _objective(
    model: Any, rows: ResidentRows | None = None, batch_size: int | None = None, **changes: Any
) -> BatchObjective:
    arguments: dict[str, Any] = {
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
        "draw": dropout_seeder(getattr(model, "draws", False), 0, CPU),
        "predict": model,
        "jacobian": lambda features: model.jacobian(dict(model.named_parameters()), features),
    }
    return BatchObjective(**{**arguments, **changes})


def _evaluated(objective: BatchObjective, step: int = 1) -> tuple[Tensor, list[Tensor]]:
    loss, gradients = objective.at(step).gradient()
    assert gradients is not None
    return loss, [gradient.clone() for gradient in gradients]


def _by_hand(model: torch.nn.Module, features: Tensor, target: Tensor) -> tuple[Tensor, list[Tensor]]:
    loss = (model(features) - target).square().mean()
    return loss.detach(), list(torch.autograd.grad(loss, list(model.parameters())))


def _assert_close(one: tuple[Tensor, list[Tensor]], other: tuple[Tensor, list[Tensor]]) -> None:
    # Sums over 22 rows in another order: some roundings of float64.
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_a_full_batch_equals_autograd_over_all_rows() -> None:
    model, rows = _model(), _rows()
    _assert_close(_evaluated(_objective(model)), _by_hand(model, rows.all.numbers, rows.all.target))


def test_a_small_batch_equals_autograd_over_its_rows() -> None:
    model, rows = _model(), _rows()
    objective = _objective(model, batch_size=8)
    for step in (3, 1, 5):  # the third batch of an epoch has the remaining 6 rows
        chosen = EpochBatches(ROWS, 8, 0, CPU).at(step)
        assert isinstance(chosen, Tensor)
        _assert_close(_evaluated(objective, step), _by_hand(model, rows.all.numbers[chosen], rows.all.target[chosen]))


@pytest.mark.parametrize("batch_size", [None, 9])
@pytest.mark.parametrize("accumulate", [2, 3, 4, 21, 22, 100])
def test_an_accumulated_batch_equals_the_whole_batch(accumulate: int, batch_size: int | None) -> None:
    # 3 does not divide 22, 4 does not divide 9 or the last batch of 4: the parts are uneven, or fewer than requested.
    model = _model()
    for step in (1, 3):
        whole = _evaluated(_objective(model, batch_size=batch_size), step)
        _assert_close(_evaluated(_objective(model, batch_size=batch_size, accumulate=accumulate), step), whole)


def test_gradients_are_left_on_the_parameters_and_do_not_add_up() -> None:
    model = _model()
    objective = _objective(model)
    _evaluated(objective)
    _, gradients = _evaluated(objective)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)
    _assert_close(_evaluated(objective), _by_hand(model, _rows().all.numbers, _rows().all.target))


@pytest.mark.parametrize("clip_norm", [0.01, 1e6])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_clipping_equals_that_of_torch_by_the_norm_of_all_gradients(clip_norm: float, accumulate: int) -> None:
    model = _model()
    objective = _objective(model, clip_norm=clip_norm, accumulate=accumulate)
    _, clipped = _evaluated(objective)
    _, whole = _evaluated(_objective(model, accumulate=accumulate))
    for parameter, gradient in zip(model.parameters(), whole, strict=True):
        parameter.grad = gradient
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    assert objective.norm is not None
    assert torch.equal(objective.norm, norm)
    for parameter, gradient in zip(model.parameters(), clipped, strict=True):
        assert parameter.grad is not None
        assert torch.equal(gradient, parameter.grad)


def test_the_norm_is_measured_only_on_request() -> None:
    measured, unmeasured = _objective(_model(), check_gradients=True), _objective(_model())
    _, gradients = _evaluated(measured)
    _evaluated(unmeasured)
    assert measured.norm is not None
    expected = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    torch.testing.assert_close(measured.norm, expected, rtol=1e-14, atol=0)  # 25 squares in another order
    assert unmeasured.norm is None


@pytest.mark.parametrize("accumulate", [1, 3])
def test_every_call_within_a_step_draws_the_same_numbers(accumulate: int) -> None:
    with torch.random.fork_rng(devices=[]):
        objective = _objective(_model(dropout=0.5), batch_size=8, accumulate=accumulate)
        first = _evaluated(objective, 2)
        torch.rand(5)
        again = objective.gradient()
        assert torch.equal(first[0], again[0])
        other = _evaluated(objective, 3)
        assert not torch.equal(first[0], other[0])
        back = _evaluated(objective, 2)
        assert torch.equal(first[0], back[0])
        assert all(torch.equal(one, other) for one, other in zip(first[1], back[1], strict=True))


def test_every_step_and_seed_draws_other_numbers() -> None:
    with torch.random.fork_rng(devices=[]):
        model = _model(dropout=0.5)  # the full batch: rows and parameters are the same at every step
        drawn = [
            _evaluated(_objective(model, draw=dropout_seeder(True, seed, CPU)), step)[0]
            for seed in (0, 1)
            for step in (1, 2)
        ]
    assert len({float(loss) for loss in drawn}) == 4


def test_a_model_without_dropout_leaves_the_global_generator_unchanged() -> None:
    before = torch.get_rng_state()
    _evaluated(_objective(_model()))
    assert torch.equal(torch.get_rng_state(), before)


class Overflowing(torch.nn.Module):
    """Weight times the first feature; infinite where that feature is above a limit."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
        self.limit = limit

    def forward(self, features: Tensor) -> Tensor:
        first = features[:, :1]
        return torch.where(first > self.limit, torch.inf, first) * self.weight


@pytest.mark.parametrize("batch_size", [None, 8])
def test_rows_without_a_finite_prediction_are_numbered_as_in_the_source(batch_size: int | None) -> None:
    rows, batches = _rows(), EpochBatches(ROWS, batch_size, 0, CPU)
    objective = _objective(Overflowing(limit=1.0), batches=batches)
    nonfinite = rows.source[rows.all.numbers[:, 0] > 1.0].tolist()
    reported = [
        number for step in range(1, batches.per_epoch + 1) for number in objective.nonfinite(step)[0].predictions
    ]
    assert 0 < len(nonfinite) < ROWS
    assert sorted(reported) == nonfinite


@pytest.mark.parametrize("limit", [1e9, -1e9])
def test_no_row_is_named_when_all_or_no_predictions_are_finite(limit: float) -> None:
    assert _objective(Overflowing(limit)).nonfinite(1) == [Nonfinite([] if limit < 0 else ())]


def _scaled(limit: float) -> BatchObjective:
    model = Overflowing(limit).to(torch.float32)
    return _objective(model, rows=_rows(torch.float32), scaler=scaler("float16", CPU), clip_norm=0.5)


def test_scaled_gradients_are_unscaled_before_they_are_clipped() -> None:
    plain = _objective(Overflowing(1e9).to(torch.float32), rows=_rows(torch.float32), clip_norm=0.5)
    loss, (gradient,) = _evaluated(plain)
    scaled_loss, (scaled,) = _evaluated(_scaled(1e9))
    # The scale is a power of two, so that nothing is rounded.
    assert torch.equal(scaled, gradient)
    assert torch.equal(scaled_loss, loss)
    assert abs(float(gradient)) <= 0.5


def test_overflowed_gradients_are_not_returned() -> None:
    objective = _scaled(1.0)
    loss, gradients = objective.at(1).gradient()
    assert gradients is None
    assert not loss.isfinite()
    assert objective.scaler.skipped_steps == 1


def test_the_state_of_the_global_generator_is_restored_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="of the run"):
        _draw_and_fail()
    assert torch.equal(torch.get_rng_state(), before)


def _draw_and_fail() -> None:
    with preserve_rng_state(True, CPU):
        _evaluated(_objective(_model(dropout=0.5)))
        raise ValueError("of the run")


@pytest.mark.parametrize(
    ("accumulate", "batch_size", "expected"),
    [
        (22, None, []),
        (1000, None, ["`train.accumulate`=1000 is above the 22 rows of a batch, so 22 parts are used"]),
        (6, 8, []),
        (7, 8, ["`train.accumulate`=7 is above the 6 rows of the last batch of an epoch, so 6 parts are used"]),
        (
            9,
            8,
            [
                "`train.accumulate`=9 is above the 8 rows of a batch, so 8 parts are used",
                "`train.accumulate`=9 is above the 6 rows of the last batch of an epoch, so 6 parts are used",
            ],
        ),
        (30, 1000, ["`train.accumulate`=30 is above the 22 rows of a batch, so 22 parts are used"]),
    ],
)
def test_more_parts_than_rows_get_a_warning(accumulate: int, batch_size: int | None, expected: list[str]) -> None:
    objective = _objective(_model(), batch_size=batch_size, accumulate=accumulate)
    assert objective.warnings == expected
    for text in expected:
        step = objective.batches.per_epoch if "last batch" in text else 1
        assert f"so {len(objective.at(step)._parts)} parts are used" in text


def test_more_parts_than_rows_of_a_chunk_get_a_warning() -> None:
    strategy = Exact("single", CPU, SingleProcess(), chunks=4)
    objective = _objective(_model(), accumulate=9, strategy=strategy)
    assert objective.warnings == [
        "`train.accumulate`=9 is above the 6 rows of a portion of a batch, so 6 parts are used"
    ]
