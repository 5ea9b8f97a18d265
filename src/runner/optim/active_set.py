"""Damped least squares within bounds: the step δ that minimises ‖J·δ + r‖² + damping·‖scale·δ‖² with low ≤ δ ≤ high.

Primal active set method: Nocedal and Wright, "Numerical Optimization" (2006), section 16.5. The free entries move towards
their own minimum until one meets a bound, where it is held. At the minimum, the held entry that descent would move inside
most is released. No move increases the objective. Every tensor has a leading lane axis.
"""

from __future__ import annotations

import torch
from torch import Tensor

from runner.compute.bounds import Bounds
from runner.optim.linearised import ROUNDING, Linearised

MOVES = 4
"""Maximum number of moves for each entry. One for each entry that meets a bound is usual, and one more."""


def step_within(
    matrix: Tensor, residuals: Tensor, scale: Tensor, damping: Tensor, bounds: Bounds, *, rows: int
) -> Tensor:
    """Return the step [lanes, n] for J [lanes, rows, n], r [lanes, rows], scale [lanes, n] and damping [lanes].

    `bounds` are those of the step, [lanes, n], with low ≤ 0 ≤ high. `rows` is the number of rows that J is the triangular factor of.
    """
    weight = damping.unsqueeze(1) * scale.square()
    rounding = ROUNDING * torch.finfo(scale.dtype).eps * scale * residuals.norm(dim=1, keepdim=True)
    step = torch.zeros_like(scale)
    held = bounds.active(step, times(matrix.mT, residuals))
    done = torch.zeros_like(damping, dtype=torch.bool)
    for _ in range(MOVES * (scale.shape[1] + 1)):
        kept = torch.where(held, step, 0.0)
        problem = Linearised.from_triangle(
            matrix.masked_fill(held.unsqueeze(1), 0.0), residuals + times(matrix, kept), scale, rows
        )
        target = torch.where(held, step, problem.unscaled(problem.damped(damping)))
        move = torch.where(done.unsqueeze(1), 0.0, target - step)
        limit = torch.where(move < 0, bounds.low, bounds.high)
        share = torch.where(move == 0, torch.inf, (limit - step) / move)
        first = share.amin(1, keepdim=True)
        meets = (share == first) & (first < 1)
        step = torch.where(meets, limit, bounds.project(torch.where(first < 1, step + first * move, step + move)))
        gradient = times(matrix.mT, times(matrix, step) + residuals) + weight * step
        inward = torch.where(held & ~bounds.active(step, gradient), gradient.abs() / scale, 0.0)
        inward = torch.where((first < 1) | (gradient.abs() <= rounding), 0.0, inward)
        released = (inward > 0) & (inward == inward.amax(1, keepdim=True))
        held = (held | meets) & ~released
        done = done | ~(meets | released).any(1)
        if bool(done.all()):
            break
    return step


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return the products [lanes, rows] of matrices [lanes, rows, n] with vectors [lanes, n]."""
    product: Tensor = (matrix @ vector.unsqueeze(2)).squeeze(2)
    return product
