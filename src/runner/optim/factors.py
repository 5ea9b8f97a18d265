"""Jacobian and residuals of a fit at its parameters, in pieces or as triangular factors.

Every tensor has a leading lane axis; a single run is one lane.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from runner.compute.batch import Batch
from runner.compute.precision import widest
from runner.optim.base import Differentiable
from runner.optim.qr import augmented, pieces, qr_of_pieces, weighted


def factor(model: Differentiable, parameters: Mapping[str, Tensor], rows: Batch) -> Tensor:
    """Return the triangular factor [lanes, n + 2, n + 2] of [J, r, y], with each row times the root of its weight."""
    return qr_of_pieces(matrices(model, parameters, rows), rows.target.shape[-1])


def matrices(model: Differentiable, parameters: Mapping[str, Tensor], rows: Batch) -> Iterator[Tensor]:
    """Yield [J, r, y] in pieces [lanes, residuals, n + 2], with each row times the root of its weight."""
    for piece, prediction in _predicted(model, parameters, rows):
        yield augmented(model.jacobian(parameters, piece.numbers), prediction, piece)


def _predicted(model: Differentiable, parameters: Mapping[str, Tensor], rows: Batch) -> Iterator[tuple[Batch, Tensor]]:
    """Yield the rows in pieces, in the widest type, with their predictions [lanes, rows, targets]."""
    wide = widest(rows.target.device)
    for narrow in pieces(rows):
        piece = narrow.map(lambda values: values.to(wide))
        x, shared = piece.numbers, None if piece.numbers.dim() == 2 else 0
        with torch.no_grad():
            prediction = vmap(lambda p, x: functional_call(model, p, (x,)), in_dims=(0, shared))(parameters, x)  # type: ignore[arg-type]
        yield piece, prediction


def residuals(model: Differentiable, parameters: Mapping[str, Tensor], rows: Batch) -> Tensor:
    """Return the triangular factor [lanes, targets, targets] of the weighted residuals [lanes, rows, targets]."""
    return qr_of_pieces(
        weighted(prediction - piece.target, None if piece.weight is None else piece.weight.sqrt())
        for piece, prediction in _predicted(model, parameters, rows)
    )


def mixed(model: Differentiable, parameters: Mapping[str, Tensor], rows: Batch, root: Tensor) -> Tensor:
    """Return the triangular factor [lanes, n, n] of (I ⊗ S)·J for a factor S [lanes, targets, targets].

    With SᵀS as the covariance of the targets in a row it is M of the covariance R⁻¹R⁻ᵀ·MᵀM·R⁻¹R⁻ᵀ of the parameters.
    """

    def of_targets() -> Iterator[Tensor]:
        for piece, prediction in _predicted(model, parameters, rows):
            matrix = augmented(model.jacobian(parameters, piece.numbers), prediction, piece)[..., :-2]
            of_rows = matrix.reshape(*prediction.shape, matrix.shape[-1])
            yield (root.unsqueeze(1) @ of_rows).flatten(1, 2)

    return qr_of_pieces(of_targets())
