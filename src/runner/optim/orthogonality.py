"""Convergence of least-squares fits that are too large to factor their Jacobian once more.

At a minimum the residuals r are orthogonal to every column of the Jacobian J. The cosines of the angles between them need one
pass over the rows, and MINPACK ends by the largest of them (`gtol`): Moré, "The Levenberg–Marquardt Algorithm: Implementation and
Theory", Lecture Notes in Mathematics 630 (1978). It is at most the relative offset of `runner.optim.convergence`, which is the
cosine of the angle between r and the space of all columns. Every tensor has a leading lane axis; a single run is one lane.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from runner.optim.linearised import lengths


@dataclass(frozen=True)
class Angles:
    """Lengths of the columns of J, r and y, and angles between the first and r."""

    columns: Tensor
    """Lengths [lanes, n] of the columns of J."""
    residuals: Tensor
    """Length [lanes] of r."""
    target: Tensor
    """Length [lanes] of y."""
    cosines: Tensor
    """Cosines [lanes, n] of the angles between r and the columns of J."""

    def penalised(self, parameters: Tensor, penalty: Tensor) -> Angles:
        """Return the angles with a row √penalty·(1, p) for each parameter p added to [J, r].

        `parameters` are [lanes, n] and `penalty` is [lanes, 1]. The lengths of r and y stay those of the data.
        """
        columns = (self.columns.square() + penalty).sqrt()
        unit = torch.where(self.residuals > 0, self.residuals, 1.0).unsqueeze(1)
        products = self.cosines * self.columns + penalty * parameters / unit
        return Angles(columns, self.residuals, self.target, products / columns)


def angles(matrices: Iterable[Tensor]) -> Angles:
    """Return lengths and angles, from the pieces [lanes, rows, n + 2] of [J, r, y].

    Where an entry is not finite, cosines are not finite.
    """
    sizes, products = [], []
    for matrix in matrices:
        divisors = lengths(matrix)  # of a column too short or too long to be squared as well
        unit = matrix / divisors.unsqueeze(1)
        sizes.append(divisors * unit.norm(dim=1))
        products.append((unit[:, :, :-2].mT @ unit[:, :, -2:-1]).squeeze(2))
    of_pieces = torch.stack(sizes, 1)
    whole = lengths(of_pieces)
    shares = of_pieces / whole.unsqueeze(1)
    cosines = (torch.stack(products, 1) * shares[:, :, :-2] * shares[:, :, -2:-1]).sum(1)
    whole = whole * shares.norm(dim=1)
    return Angles(whole[:, :-2], whole[:, -2], whole[:, -1], cosines)
