"""QR factorisation of tall matrices in pieces (TSQR).

The triangular factor R of a matrix contains all that least squares needs and is as small as one square block. Pieces of rows,
in chunks or on several processes, are factored separately; R of the whole matrix is the factor of their stacked factors:
Demmel, Grigori, Hoemmen and Langou, "Communication-optimal parallel and sequential QR and LU factorizations", SIAM J. Sci.
Comput. 34 (2012). Normal equations are not formed, since they would lose half of the digits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from runner.compute.batch import Batch
from runner.compute.precision import widest

PIECE_ROWS = 16_384
"""Number of rows of a matrix that are factored at a time. It bounds memory and is the same on every device."""

NUMBERS_AT_ONCE = 2**23
"""Maximum number of matrix entries, over all lanes, that are processed at a time."""


def triangle(matrix: Tensor) -> Tensor:
    """Return R […, min(rows, n), n] with RᵀR = MᵀM for a matrix M […, rows, n]."""
    factor: Tensor = torch.linalg.qr(matrix, mode="r").R
    return factor


def padded(matrix: Tensor, rows: int) -> Tensor:
    """Return a matrix with zeros below, so that it has so many rows. To factor the zeros would take the time of a square matrix."""
    missing = rows - matrix.shape[-2]
    return torch.nn.functional.pad(matrix, (0, 0, 0, missing)) if missing > 0 else matrix


def qr_of_pieces(pieces: Iterable[Tensor], targets: int = 1) -> Tensor:
    """Return R […, n, n] of all pieces […, rows, n] stacked by rows; only one piece is in memory at a time.

    The rows of several targets take turns.
    """
    factor: Tensor | None = None
    for whole in pieces:
        piece = _shorter(whole, targets)
        factor = triangle(piece if factor is None else torch.cat((factor, piece), -2))
    assert factor is not None
    return padded(factor, factor.shape[-1])


def _shorter(matrix: Tensor, targets: int) -> Tensor:
    """Return F with FᵀF = MᵀM for a matrix M […, rows, n] whose rows of several targets take turns; F may have fewer rows.

    The parameters of a linear model are each of one target. Its rows are zero in the columns of the others: to factor them
    together would take the square of the number of targets longer.
    """
    if targets == 1:
        return matrix
    factors = []
    for target in range(targets):
        own = matrix[..., target::targets, :]
        used = (own != 0).flatten(0, -2).any(0)
        factor = own if int(used.sum()) == own.shape[-1] else triangle(own[..., used])
        factors.append(own.new_zeros(*factor.shape[:-1], own.shape[-1]))
        factors[-1][..., used] = factor
    return torch.cat(factors, -2)


def compressed(matrices: Iterator[Tensor], rows: int, targets: int = 1) -> Tensor:
    """Return F with FᵀF = MᵀM for the pieces M […, rows, n + 2] of [J, r, y], of whose whole `rows` is the number of rows.

    It is the triangular factor if there are more rows than parameters. With fewer rows it is M itself, which is smaller, and
    padded to `rows` where it is only a portion of them. The rows of several targets take turns.
    """
    first = next(matrices)
    if rows > first.shape[-1] - 2:
        return qr_of_pieces(chain([first], matrices), targets)
    return padded(torch.cat([first, *matrices], -2), rows)


def augmented(jacobian: Tensor, prediction: Tensor, rows: Batch) -> Tensor:
    """Return √w·[J, r, y] […, rows·targets, n + 2] in the widest dtype, for weights w, targets y and r = prediction − y.

    J is […, rows·targets, n], the prediction […, rows, targets]; lanes broadcast. Least squares of these rows is weighted
    least squares.
    """
    columns = (jacobian, *map(of_residuals, (prediction - rows.target, rows.target)))
    # torch.broadcast_shapes takes half a second on its first call, since it imports a library for symbols.
    lanes = np.broadcast_shapes(*(part.shape[:-2] for part in columns))
    wide = widest(jacobian.device)
    matrix = torch.cat([part.to(wide).expand(*lanes, *part.shape[-2:]) for part in columns], -1)
    if rows.weight is None:
        return matrix
    return matrix * of_residuals(rows.weight.to(wide).sqrt().expand(*rows.weight.shape[:-1], rows.target.shape[-1]))


def of_residuals(values: Tensor) -> Tensor:
    """Return values […, rows, targets] as a column […, rows·targets, 1], in the order of the rows of a Jacobian."""
    return values.flatten(-2).unsqueeze(-1)


def weighted(values: Tensor, weight: Tensor | None) -> Tensor:
    """Return values […, rows, n] with each row multiplied by its weight […, rows, 1]; unchanged without weights."""
    return values if weight is None else values * weight


def lanes_at_once(rows: int, numbers: int) -> int:
    """Return how many lanes of matrices of `rows` rows, for `numbers` parameters, are factored at a time."""
    return max(1, NUMBERS_AT_ONCE // (min(rows, PIECE_ROWS) * (numbers + 2)))


def select_lanes(rows: Batch, some: slice | Tensor) -> Batch:
    """Return the rows of some lanes; tensors [rows, columns] that all lanes share are unchanged."""
    return rows.map(lambda values: values if values.dim() == 2 else values[some])


def penalised(factor: Tensor, parameters: Tensor, decay: Tensor, rows: int) -> Tensor:
    """Return the factor [lanes, n + 1, n + 1] of [J, r] after adding decay/2·‖p‖² to the mean of r² over the rows.

    `parameters` are [lanes, n] and `decay` is [lanes]. The factor may have a single lane that all share. It is returned
    unchanged if every decay is 0.
    """
    if not bool(decay.any()):
        return factor
    lanes, numbers = len(decay), parameters.shape[1]
    identity = torch.eye(numbers, dtype=factor.dtype, device=factor.device).expand(lanes, -1, -1)
    penalty = torch.cat((identity, parameters.expand(lanes, -1).unsqueeze(2)), 2)
    penalty = penalty * (rows * decay / 2).sqrt()[:, None, None]
    return triangle(torch.cat((factor.expand(lanes, -1, -1), penalty), 1))


def without_columns(factor: Tensor, left_out: Tensor) -> Tensor:
    """Return the factor [lanes, rows, m] after columns were replaced by unit vectors that are orthogonal to all others.

    `left_out` is a mask [lanes, n] of its first n columns. The factor is returned unchanged if it is empty.
    """
    if not bool(left_out.any()):
        return factor
    mask = torch.nn.functional.pad(left_out, (0, factor.shape[-1] - left_out.shape[1]))
    units = torch.diag_embed(mask.to(factor.dtype))
    return triangle(torch.cat((factor.masked_fill(mask.unsqueeze(1), 0.0), units), 1))


def pieces(rows: Batch) -> Iterator[Batch]:
    """Yield the rows in pieces of at most `PIECE_ROWS` residuals, or one row; one empty piece for no rows."""
    count, targets = rows.target.shape[-2:]
    most = max(1, PIECE_ROWS // targets)
    if count <= most:
        yield rows
        return
    for first in range(0, count, most):
        some = slice(first, first + most)
        yield rows.map(lambda values, some=some: values[..., some, :])  # type: ignore[misc]


def inverse(factor: Tensor) -> Tensor:
    """Return the inverse […, n, n] of an upper triangular matrix; inf and nan if it is singular."""
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    solved: Tensor = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=True)
    return solved
