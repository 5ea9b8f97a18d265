"""Directions that the rounding of many rows hides are not determined, for every solver of least squares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from runner.compute.bounds import Bounds
from runner.config.compose import compose
from runner.optim.active_set import step_within
from runner.optim.base import Linearisation
from runner.optim.least_squares import lm, lstsq

EPS = torch.finfo(torch.float64).eps
NEARLY_EQUAL = torch.tensor([[1.0, 1.0], [0.0, 300 * EPS]], dtype=torch.float64)
"""Columns that differ by 300 roundings: far more than those of ten rows, far less than those of 10⁶."""
TARGET = torch.tensor([1.0, 0.5], dtype=torch.float64)
WIDE = Bounds(torch.full((1, 2), -1e30, dtype=torch.float64), torch.full((1, 2), 1e30, dtype=torch.float64))


class _Line:
    """The objective ‖J·p − y‖² of so many rows, whose triangular factor is J."""

    def __init__(self, parameters: Tensor, rows: int) -> None:
        self.parameters, self.rows = parameters, rows

    def _residuals(self) -> Tensor:
        return NEARLY_EQUAL @ self.parameters - TARGET

    def residuals(self) -> Linearisation:
        factor = torch.zeros(4, 4, dtype=torch.float64)
        factor[:2] = torch.cat((NEARLY_EQUAL, self._residuals().unsqueeze(1), TARGET.unsqueeze(1)), 1)
        return Linearisation(self.squares() / self.rows, factor, self.rows)

    def squares(self) -> Tensor:
        return self._residuals().square().sum()

    def mean_square(self) -> Tensor:
        return self.squares() / self.rows


def _config(name: str) -> Any:
    return compose([f"optimizer={name}"]).config.optimizer


def _lstsq(rows: int) -> Tensor:
    return _solved(lstsq(_config("lstsq"), {"p": (p := _zeros())}), p, rows, 1)


def _lm(rows: int) -> Tensor:
    return _solved(lm(_config("lm"), {"p": (p := _zeros())}), p, rows, 100)


def _within(rows: int) -> Tensor:
    j = NEARLY_EQUAL.unsqueeze(0)
    none = torch.zeros(1, dtype=torch.float64)
    return step_within(j, -TARGET.unsqueeze(0), j.norm(dim=1), none, WIDE, rows=rows)[0]


def _zeros() -> Tensor:
    return torch.zeros(2, dtype=torch.float64)


def _solved(solver: Any, parameters: Tensor, rows: int, steps: int) -> Tensor:
    for _ in range(steps):
        solver.step(_Line(parameters, rows), 1.0)
    return parameters


@pytest.mark.parametrize("solved", [_lstsq, _lm, _within])
def test_a_direction_is_determined_by_few_rows_and_hidden_by_the_rounding_of_many(
    solved: Callable[[int], Tensor],
) -> None:
    exact = torch.tensor([1 - 0.5 / (300 * EPS), 0.5 / (300 * EPS)], dtype=torch.float64)
    torch.testing.assert_close(solved(10), exact, rtol=1e-12, atol=0)
    # The shortest solution of p₀ + p₁ = 1. Rounding of the columns leaves as many digits as its direction has.
    torch.testing.assert_close(solved(10**6), torch.tensor([0.5, 0.5], dtype=torch.float64), rtol=1e-11, atol=0)
