"""Covariance of fitted parameters, and what follows from it for the predictions.

The covariance is s²·(JᵀJ)⁻¹ = s²·R⁻¹R⁻ᵀ for the Jacobian J = QR of the predictions f and the residual standard deviation s.
By the delta method a prediction with derivatives j has the standard error s·‖j·R⁻¹‖: Seber and Wild, "Nonlinear Regression"
(1989), section 5.1. It is exact for models that are linear in their parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from torch import Tensor

MOST_PARAMETERS = 50
"""Largest number of parameters whose covariance is kept: it grows with the square."""

NEARLY_ONE = 0.999
"""Correlation from which two parameters are reported as nearly interchangeable."""


@dataclass(frozen=True)
class Covariance:
    """Covariance of the parameters of one fit, on the CPU."""

    inverted: Tensor
    """R⁻¹ [n, n], for the parameters that the model has; with several targets a root of their covariance."""
    reported: Tensor
    """Its rows [reported, n] for the parameters that are reported and not at a bound, in their units."""
    deviation: float
    """Standard deviation s of a row with weight 1, in the units trained in: by the residuals, or given; 1 with several targets."""

    @property
    def matrix(self) -> Tensor:
        """Covariance [reported, reported] of the reported parameters."""
        root = self.deviation * self.reported
        return root @ root.T

    @property
    def correlation(self) -> Tensor:
        """Correlation [reported, reported] of the reported parameters; nan for one without an error."""
        unit = self.reported / self.reported.norm(dim=1, keepdim=True)
        matrix: Tensor = (unit @ unit.T).clamp(-1.0, 1.0)
        matrix.diagonal().copy_(unit.norm(dim=1).round())
        return matrix

    def variance(self, jacobian: Tensor) -> Tensor:
        """Return ‖j·R⁻¹‖² [rows] for the derivatives [rows, n] of predictions: their variance over s²."""
        variance: Tensor = (jacobian.to(self.inverted) @ self.inverted).square().sum(1)
        return variance


def rows_by_name(matrix: Tensor, names: Sequence[str]) -> dict[str, list[float]]:
    """Return a matrix [n, n] as name → row, for n names."""
    return dict(zip(names, matrix.tolist(), strict=True))


def nearly_equal(correlation: Mapping[str, Sequence[float]]) -> Iterator[tuple[str, str, float]]:
    """Yield the pairs of parameters whose correlation is nearly 1 or −1, with it. `correlation` is name → row."""
    names = [*correlation]
    for first, second in combinations(range(len(names)), 2):
        value = correlation[names[first]][second]
        if abs(value) >= NEARLY_ONE:
            yield names[first], names[second], value
