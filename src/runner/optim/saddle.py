"""Steps away from a saddle: a point where the derivatives vanish along some directions although the sum of squares can still fall.

A fit with equal start values for two equal terms, or with a start value of 0 for a factor, is at such a point or runs into one.
Gauss–Newton steps have no component along these directions, so they cannot leave it. Random directions do: Jin, Ge, Netrapalli,
Kakade and Jordan, "How to Escape Saddle Points Efficiently", ICML (2017). Every tensor has a leading lane axis.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from runner.optim.linearised import Linearised

DIRECTIONS = 8
"""Number of directions that are tried."""

LENGTHS = (0.01, 0.1, 1.0)
"""Lengths that are tried along each direction, relative to the size of each parameter."""

TIE = 1e-6
"""Relative difference up to which two gains are equal, so that rounding does not decide between the two sides of a saddle."""


def step_away(
    model: Linearised, origin: Tensor, gain_at: Callable[[Tensor], Tensor], least: Tensor
) -> tuple[Tensor, Tensor]:
    """Return a step [lanes, n] away from the parameters `origin` [lanes, n], and a mask [lanes] of the lanes that have one.

    Steps are taken along the directions that the Jacobian does not determine. `gain_at` returns the relative decrease [lanes]
    of the sum of squares by a step, which must be above `least` [lanes]. Of the shortest steps with such a gain, the best one
    is returned, as longer ones may lead to another minimum.
    """
    known = torch.where(model.determined.unsqueeze(2), model.directions, 0.0)
    size = model.scale * torch.where(origin == 0, 1.0, origin.abs())
    # The same directions on every process and in every lane.
    generator = torch.Generator().manual_seed(0)
    along = size.unsqueeze(2) * torch.randn(origin.shape[1], DIRECTIONS, generator=generator, dtype=torch.float64).to(
        size
    )
    directions = (along - known.mT @ (known @ along)).mT / model.scale.unsqueeze(1)
    best, most = torch.zeros_like(origin), least
    for length in LENGTHS:
        waiting = most == least
        for step in (sign * length * direction for direction in directions.unbind(1) for sign in (1.0, -1.0)):
            gain = torch.where(waiting, gain_at(step), 0.0)
            better = gain > most * (1 + TIE)
            best = torch.where(better.unsqueeze(1), step, best)
            most = torch.where(better, gain, most)
    return best, most > least
