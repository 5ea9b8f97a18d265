"""Convergence of large fits: the angles between residuals and columns of the Jacobian, against NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from runner.compute.batch import Batch
from runner.compute.rng import stream
from runner.config.compose import compose
from runner.data.scaling import Scaling
from runner.models.base import build as build_model
from runner.optim import standard_errors
from runner.optim.orthogonality import angles
from runner.optim.standard_errors import Fit, Inference, infer

ROWS, COLUMNS = 90, 4
DRAWN = np.random.default_rng(3)
X = DRAWN.normal(size=(ROWS, COLUMNS))
Y = X @ np.array([1.0, -2.0, 0.5, 3.0]) + 2 + DRAWN.normal(size=ROWS)


def no_scaling(columns: int) -> Scaling:
    return Scaling(torch.zeros(columns).double(), torch.ones(columns).double(), torch.zeros(()).double(), torch.ones(()).double(), False)  # fmt: skip


def judged(parameters: Sequence[Any], *overrides: str) -> list[Inference]:
    """Return the results of fits with the given weights and bias, as lanes."""
    config = compose(["dtype=float64", "optimizer=lstsq", *overrides]).config
    model = build_model(config.model, [f"x{i}" for i in range(COLUMNS)], ["y"], stream(0, "init"))
    scaling = no_scaling(COLUMNS)
    values = torch.tensor(np.array(parameters))
    named = {"weight": values[:, None, :COLUMNS], "bias": values[:, COLUMNS:]}
    rows = Batch(torch.from_numpy(X), torch.from_numpy(Y).unsqueeze(1))
    fits = [Fit(config, model.fitted(scaling), scaling, None)] * len(parameters)
    results = infer(model, named, rows, fits)
    assert all(result is not None for result in results)
    return results  # type: ignore[return-value]


def solution(decay: float = 0.0) -> Any:
    """Return weights and bias at the minimum of the mean of squared residuals + decay/2·‖p‖²."""
    design = np.column_stack((X, np.ones(ROWS)))
    rows = np.vstack((design, np.sqrt(ROWS * decay / 2) * np.eye(COLUMNS + 1)))
    return np.linalg.lstsq(rows, np.append(Y, np.zeros(COLUMNS + 1)), rcond=None)[0]


@pytest.fixture
def _large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model counts as too large to be factored."""
    monkeypatch.setattr(standard_errors, "MOST_NUMBERS", 0)


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("unit", [1.0, 1e-200, 1e200])
def test_cosines_and_lengths_are_those_of_numpy(pieces: int, unit: float) -> None:
    matrix = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 12, 7)))
    found = angles((matrix * unit).chunk(pieces, 1))
    columns, residuals = matrix[:, :, :5].numpy(), matrix[:, :, 5].numpy()
    expected = np.einsum("lrn,lr->ln", columns, residuals) / (
        np.linalg.norm(columns, axis=1) * np.linalg.norm(residuals, axis=1)[:, None]
    )
    # Sums of 12 products, each rounded to 2e-16.
    np.testing.assert_allclose(found.cosines.numpy(), expected, rtol=0, atol=1e-15)
    np.testing.assert_allclose(found.columns.numpy() / unit, np.linalg.norm(columns, axis=1), rtol=1e-15)
    np.testing.assert_allclose(found.residuals.numpy() / unit, np.linalg.norm(residuals, axis=1), rtol=1e-15)
    np.testing.assert_allclose(found.target.numpy() / unit, matrix[:, :, 6].norm(dim=1).numpy(), rtol=1e-15)


def test_a_column_of_zeros_has_no_angle_and_an_infinite_entry_no_number() -> None:
    matrix = torch.ones(1, 3, 4, dtype=torch.float64)
    matrix[:, :, 0] = 0.0
    assert angles([matrix]).cosines.tolist() == [[0.0, pytest.approx(1.0, rel=1e-15)]]
    matrix[0, 1, 0] = torch.inf
    assert not bool(angles([matrix]).cosines.isfinite().all())


@pytest.mark.usefixtures("_large")
def test_a_large_fit_has_converged_at_its_solution_only() -> None:
    best = solution()
    at, near, away = judged([best, best + 1e-9, best + 1e-3])
    assert [result.converged for result in (at, near, away)] == [True, True, False]
    assert (at.standard_errors, at.covariance, at.degrees_of_freedom) == (None, None, ROWS - COLUMNS - 1)
    residuals = Y - np.column_stack((X, np.ones(ROWS))) @ best
    assert at.chi_square == pytest.approx(float(residuals @ residuals), rel=1e-13)
    moved = np.column_stack((X, np.ones(ROWS)))
    off = Y - moved @ (best + 1e-3)
    cosine = np.abs(moved.T @ off / np.linalg.norm(moved, axis=0)).max() / np.linalg.norm(off)
    assert away.verdict.offset == pytest.approx(cosine, rel=1e-10)
    assert away.verdict.reason(settled=True) == (
        f"no further step finds better parameters, but by their derivatives they are not at a minimum (relative offset {cosine:.1g}, "
        "threshold 1e-06); use data.standardize=true"
    )


def test_the_largest_cosine_is_at_most_the_relative_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [solution() + 0.01 * DRAWN.normal(size=COLUMNS + 1) for _ in range(20)]
    offsets = [result.verdict.offset for result in judged(values)]
    monkeypatch.setattr(standard_errors, "MOST_NUMBERS", 0)
    for offset, result in zip(offsets, judged(values), strict=True):
        assert offset / np.sqrt(COLUMNS + 1) / 3 < result.verdict.offset <= offset  # columns that are nearly orthogonal


@pytest.mark.usefixtures("_large")
def test_a_penalty_moves_the_solution_of_a_large_fit() -> None:
    decay = "optimizer.weight_decay=0.3"
    assert [result.converged for result in judged([solution(0.3), solution()], decay)] == [True, False]


@pytest.mark.usefixtures("_large")
def test_a_large_fit_whose_residuals_are_not_finite_has_not_converged() -> None:
    (result,) = judged([np.full(COLUMNS + 1, 1e308)])
    assert result.verdict.cause == "the residuals or their derivatives are not finite"
    assert np.isnan(result.chi_square)


@pytest.mark.usefixtures("_large")
def test_an_exact_large_fit_has_converged(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.array([1.0, 2.0, -3.0, 4.0, 0.5])
    monkeypatch.setitem(globals(), "Y", X @ values[:COLUMNS] + values[COLUMNS])
    assert judged([values])[0].converged


@pytest.mark.usefixtures("_large")
def test_other_optimizers_do_not_judge_large_fits() -> None:
    config = compose(["dtype=float64", "optimizer=adam", "optimizer.lr=0.1"]).config
    model = build_model(config.model, ["x"], ["y"], stream(0, "init"))
    rows = Batch(torch.ones(3, 1).double(), torch.ones(3, 1).double())
    named: dict[str, Tensor] = {name: value.detach().unsqueeze(0) for name, value in model.named_parameters()}
    scaling = no_scaling(1)
    assert infer(model, named, rows, [Fit(config, model.fitted(scaling), scaling, None)]) == [None]
