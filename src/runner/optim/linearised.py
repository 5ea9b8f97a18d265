"""Linear least squares: the step δ that minimises ‖J·δ + r‖, unrestricted or within a trust region.

Every tensor has a leading lane axis; a single run is one lane.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

ROUNDS = 60
"""Maximum number of Newton steps for the damping; three to five are usual."""

ROUNDING = 64
"""A singular value counts as zero up to at least this multiple of eps times the largest one.

With m rows and n columns the multiple is √(m·n), if that is larger. The rounding errors of Householder QR are bounded by a
multiple of m·n, and those of independent signs by its root: Higham and Mary, "A new approach to probabilistic rounding error
analysis", SIAM J. Sci. Comput. 41 (2019). Dependent columns of 34,522 rows have left a singular value of 97 times eps.
"""


@dataclass(frozen=True)
class Linearised:
    """Singular value decomposition of the column-scaled Jacobian J·diag(1/scale), with the residuals in its basis."""

    scale: Tensor
    """Divisors [lanes, n] of the columns of J."""
    values: Tensor
    """Singular values [lanes, k] of the scaled Jacobian, in descending order; k is the smaller of its numbers of rows and columns."""
    directions: Tensor
    """Right singular vectors [lanes, k, n], one per row."""
    left: Tensor
    """Left singular vectors [lanes, rows, k], one per column."""
    along: Tensor
    """Component [lanes, k] of the residuals along each left singular vector."""
    rows: int
    """Number of rows of J, whose rounding is in its triangular factor."""

    @staticmethod
    def from_triangle(triangle: Tensor, projected: Tensor, scale: Tensor, rows: int) -> Linearised:
        """Return the problem of J = QR, given R [lanes, k, n], Qᵀr [lanes, k] and scale [lanes, n].

        `rows` is the number of rows of J. Entries that are not finite count as 0.
        """
        scaled = (triangle / scale.unsqueeze(1)).nan_to_num(0.0, 0.0, 0.0)
        left, values, directions = _decomposed(scaled)
        return Linearised(scale, values, directions, left, torch.empty(0), rows).with_residuals(projected)

    def with_residuals(self, projected: Tensor) -> Linearised:
        """Return the problem with the same Jacobian and other residuals, given Qᵀr [lanes, rows]."""
        along = (self.left.mT @ projected.nan_to_num(0.0, 0.0, 0.0).unsqueeze(2)).squeeze(2)
        return replace(self, along=along)

    def step_of(self, other: Linearised) -> Tensor:
        """Return the Gauss–Newton step [lanes, n] of the same problem in another scale, in the basis of `directions`."""
        scaled = self.scale * other.unscaled(other.full)
        return (self.directions @ scaled.unsqueeze(2)).squeeze(2)

    @property
    def determined(self) -> Tensor:
        """Mask [lanes, k] of the singular values that differ from zero by more than rounding."""
        columns = self.scale.shape[1]
        precision = torch.finfo(self.values.dtype).eps * max(ROUNDING, columns, math.sqrt(self.rows * columns))
        mask: Tensor = self.values > precision * self.values[:, :1]
        return mask

    @property
    def offset(self) -> Tensor:
        """Length [lanes] of the residuals' projection on the column space of J: the part that a full step removes."""
        projected = torch.where(self.determined, self.along, 0.0)
        return torch.linalg.vector_norm(projected, dim=1)  # type: ignore[no-any-return]

    @property
    def full(self) -> Tensor:
        """Gauss–Newton step [lanes, k] in the basis of `directions`; the shortest one if several are equally good."""
        return torch.where(self.determined, -self.along / self.values, 0.0)

    def damped(self, damping: Tensor) -> Tensor:
        """Return the step [lanes, k] for a damping [lanes], in the basis of `directions`; the Gauss–Newton step for 0."""
        step = -self.values * self.along / (self.values.square() + damping.unsqueeze(1))
        return torch.where(damping.unsqueeze(1) > 0, step, self.full)

    def bounded(self, radius: Tensor, full: Tensor) -> tuple[Tensor, Tensor]:
        """Return the best step [lanes, n] no longer than 1.1·`radius` [lanes], and its damping [lanes].

        Steps are in the basis of `directions`, their length is that of the scaled parameters. `full` [lanes, n] is the
        Gauss–Newton step. The damping follows from the radius by Newton's method on 1/length, safeguarded by bounds:
        Moré, "The Levenberg–Marquardt Algorithm" (1978), section 5.
        """
        free = full.norm(dim=1) <= 1.1 * radius
        lower, upper = torch.zeros_like(radius), (self.values * self.along).norm(dim=1) / radius
        damping, step = 1e-3 * upper, full
        for _ in range(ROUNDS):
            step = -self.values * self.along / (self.values.square() + damping.unsqueeze(1))
            length = step.norm(dim=1)
            near = free | ((length - radius).abs() <= 0.1 * radius)
            if bool(near.all()):
                break
            lower = torch.where(length > radius, torch.maximum(lower, damping), lower)
            upper = torch.where(length > radius, upper, torch.minimum(upper, damping))
            slope = (step.square() / (self.values.square() + damping.unsqueeze(1))).sum(1) / length
            newton = damping + (length - radius) / radius * length / slope
            middle = torch.maximum(1e-3 * upper, (lower * upper).sqrt())
            better = torch.where((newton > lower) & (newton < upper), newton, middle)
            damping = torch.where(near, damping, better)
        return torch.where(free.unsqueeze(1), full, step), torch.where(free, 0.0, damping)

    def unscaled(self, along: Tensor) -> Tensor:
        """Return a step [lanes, n] in the basis of `directions` as a step [lanes, n] of the parameters."""
        return (self.directions.mT @ along.unsqueeze(2)).squeeze(2) / self.scale

    @property
    def shortest(self) -> Tensor:
        """Gauss–Newton step [lanes, n] of the parameters; the shortest one, in their own units, if several are equally good."""
        return self.shortest_steps().of(self)

    def shortest_steps(self) -> ShortestSteps:
        """Return what gives the shortest step for any residuals of this Jacobian."""
        full_rank, (_, k, n) = bool(self.determined.all()), self.directions.shape
        if full_rank and k == n:
            return ShortestSteps(None)
        rows = torch.where(self.determined.unsqueeze(2), self.directions * self.scale.unsqueeze(1), 0.0)
        length = torch.linalg.vector_norm(rows, dim=2, keepdim=True)
        length = torch.where(length > 0, length, 1.0)
        rows = rows / length
        if not full_rank:
            return ShortestSteps(torch.linalg.pinv(rows) / length.mT)
        basis, lower = torch.linalg.qr(rows.mT)
        return ShortestSteps(torch.linalg.solve_triangular(lower.mT, basis, upper=False, left=False) / length.mT)


@dataclass(frozen=True)
class ShortestSteps:
    """The shortest steps that change the residuals in given ways."""

    inverse: Tensor | None
    """Pseudo-inverse [lanes, n, k] of the determined directions in the units of the parameters; None if no other step is as good."""

    def of(self, problem: Linearised) -> Tensor:
        """Return the shortest Gauss–Newton step [lanes, n] of a problem with the same Jacobian."""
        if self.inverse is None:
            return problem.unscaled(problem.full)
        return (self.inverse @ problem.full.unsqueeze(2)).squeeze(2)


def _decomposed(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the thin singular value decomposition of matrices [lanes, rows, n]; wide ones are made square by QR first."""
    if matrix.shape[-2] >= matrix.shape[-1]:
        left, values, directions = torch.linalg.svd(matrix, full_matrices=False)
        return left, values, directions
    basis, lower = torch.linalg.qr(matrix.mT)
    left, values, directions = torch.linalg.svd(lower.mT)
    return left, values, directions @ basis.mT


def lengths(triangle: Tensor) -> Tensor:
    """Return the lengths [lanes, n] of the columns of R [lanes, rows, n] as divisors: 1 for a zero or non-finite column."""
    largest = triangle.abs().amax(1)
    # A power of two changes no digit of the columns, whose squares may be too small or too large for the dtype.
    unit = torch.where((largest > 0) & largest.isfinite(), largest.log2().floor().exp2(), 1.0)
    norms = unit * (triangle / unit.unsqueeze(1)).norm(dim=1)
    return torch.where((norms > 0) & norms.isfinite(), norms, 1.0)
