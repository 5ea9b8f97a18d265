"""Triangular factors: R of a QR factorisation tells of a tall matrix all that least squares asks, in the memory of a small one.

The factor of rows that lie apart, in chunks or on several processes, is the factor of their factors (TSQR: Demmel,
Grigori, Hoemmen and Langou, "Communication-optimal parallel and sequential QR and LU factorizations", SIAM J. Sci. Comput.
34, 2012). No normal equations are formed, which would lose half of the digits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from runner.compute.precision import widest

PIECE_ROWS = 16_384
"""Rows that are factored at a time: bounds memory, and is the same on every device."""

NUMBERS_AT_ONCE = 2**23
"""Numbers of the matrices of all lanes that are worked on at the same time."""


def triangle(matrix: Tensor) -> Tensor:
    """R […, n, n] with RᵀR = MᵀM of a matrix […, rows, n]; fewer rows than columns are filled up with zeros."""
    missing = matrix.shape[-1] - matrix.shape[-2]
    if missing > 0:
        matrix = torch.nn.functional.pad(matrix, (0, 0, 0, missing))
    factor: Tensor = torch.linalg.qr(matrix, mode="r").R
    return factor


def qr_of_pieces(pieces: Iterable[Tensor]) -> Tensor:
    """R […, n, n] of all pieces […, rows, n] below each other, of which no more than one is held at a time."""
    factor: Tensor | None = None
    for piece in pieces:
        factor = triangle(piece if factor is None else torch.cat((factor, piece), -2))
    assert factor is not None
    return factor


def augmented(jacobian: Tensor, residuals: Tensor, target: Tensor) -> Tensor:
    """[J, r, y] […, rows, n + 2] in the widest type, of J […, rows, n] and r and y […, rows, 1]; lanes broadcast."""
    # That of torch takes half a second: it imports a library for symbols first.
    lanes = np.broadcast_shapes(*(part.shape[:-2] for part in (jacobian, residuals, target)))
    wide = widest(jacobian.device)
    return torch.cat([part.to(wide).expand(*lanes, *part.shape[-2:]) for part in (jacobian, residuals, target)], -1)


def lanes_at_once(rows: int, numbers: int) -> int:
    """How many lanes of so many rows and numbers are factored at the same time."""
    return max(1, NUMBERS_AT_ONCE // (min(rows, PIECE_ROWS) * (numbers + 2)))


def select_lanes(values: Tensor, some: slice) -> Tensor:
    """The part [some, rows, columns] of some lanes; whole where all of them share it, [rows, columns]."""
    return values if values.dim() == 2 else values[some]


def penalised(factor: Tensor, parameters: Tensor, decay: Tensor, rows: int) -> Tensor:
    """The triangle [lanes, n + 1, n + 1] of [J, r] and of what decay/2·‖p‖² adds to the mean of r² over the rows.

    `parameters` are [lanes, n], `decay` is [lanes]; the factor may have one lane for all, and stays as it is where none decays.
    """
    if not bool(decay.any()):
        return factor
    lanes, numbers = len(decay), parameters.shape[1]
    identity = torch.eye(numbers, dtype=factor.dtype, device=factor.device).expand(lanes, -1, -1)
    below = torch.cat((identity, parameters.expand(lanes, -1).unsqueeze(2)), 2)
    below = below * (rows * decay / 2).sqrt()[:, None, None]
    return triangle(torch.cat((factor.expand(lanes, -1, -1), below), 1))


def pieces(features: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Features and target […, rows, columns] of `PIECE_ROWS` rows at a time; one piece where there are none."""
    rows = features.shape[-2]
    if rows <= PIECE_ROWS:
        yield features, target
        return
    for first in range(0, rows, PIECE_ROWS):
        yield features[..., first : first + PIECE_ROWS, :], target[..., first : first + PIECE_ROWS, :]


def inverse(factor: Tensor) -> Tensor:
    """The inverse […, n, n] of an upper triangle; inf and nan where it has none."""
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    solved: Tensor = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=True)
    return solved
