"""A least-squares problem to first order: min ‖J·δ + r‖, and its steps, full or within a radius.

Everything has a lane for each run; one run alone is one lane.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDS = 60
"""Most corrections of the damping; three to five are usual."""

ROUNDING = 64
"""Roundings of the largest singular value that a smaller one must exceed: those of equal columns of many rows reach some ten."""


@dataclass(frozen=True)
class Linearised:
    """J in its singular values, with the columns divided by `scale` [lanes, n], and r along its left singular vectors."""

    scale: Tensor
    values: Tensor
    """Singular values [lanes, n] of the scaled Jacobian, falling."""
    directions: Tensor
    """Its right singular vectors [lanes, n, n], one a row."""
    along: Tensor
    """The part [lanes, n] of the residuals along each left one."""

    @staticmethod
    def of(triangle: Tensor, projected: Tensor, scale: Tensor) -> Linearised:
        """From R [lanes, n, n] of J = QR and Qᵀr [lanes, n]; what is not finite counts as nothing."""
        scaled = (triangle / scale.unsqueeze(1)).nan_to_num(0.0, 0.0, 0.0)
        left, values, directions = torch.linalg.svd(scaled)
        along = (left.mT @ projected.nan_to_num(0.0, 0.0, 0.0).unsqueeze(2)).squeeze(2)
        return Linearised(scale, values, directions, along)

    @property
    def determined(self) -> Tensor:
        """Which singular values [lanes, n] can be told from zero."""
        precision = torch.finfo(self.values.dtype).eps * max(ROUNDING, self.values.shape[1])
        told: Tensor = self.values > precision * self.values[:, :1]
        return told

    @property
    def offset(self) -> Tensor:
        """Length [lanes] of what a step could take away from the residuals."""
        seen = torch.where(self.determined, self.along, 0.0)
        return torch.linalg.vector_norm(seen, dim=1)  # type: ignore[no-any-return]

    @property
    def full(self) -> Tensor:
        """The Gauss–Newton step along the singular directions [lanes, n]: the shortest where several are as good."""
        return torch.where(self.determined, -self.along / self.values, 0.0)

    def bounded(self, radius: Tensor) -> tuple[Tensor, Tensor]:
        """The best step of at most 1.1·`radius` [lanes] in the scaled parameters, [lanes, n], and its damping [lanes].

        The damping follows from the radius by Newton's method on 1/length, kept between bounds: Moré (1978), section 5.
        """
        full = self.full
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
        """A step along the singular directions as one of the parameters, [lanes, n]."""
        return (self.directions.mT @ along.unsqueeze(2)).squeeze(2) / self.scale

    def shortest(self, parameters: Tensor) -> Tensor:
        """Of all parameters with the residuals of these, [lanes, n], those of least length."""
        if bool(self.determined.all()):
            return parameters
        idle = torch.where(self.determined.unsqueeze(2), 0.0, self.directions / self.scale.unsqueeze(1))
        idle = torch.nn.functional.normalize(idle, dim=2)
        along: Tensor = torch.linalg.pinv(idle.mT) @ parameters.unsqueeze(2)
        return parameters - (idle.mT @ along).squeeze(2)


def lengths(triangle: Tensor) -> Tensor:
    """Lengths [lanes, n] of the columns, to divide by: 1 for one that is zero or not finite."""
    found = triangle.norm(dim=1)
    return torch.where((found > 0) & found.isfinite(), found, 1.0)
