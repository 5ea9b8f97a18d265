"""QR factorisation of tall matrices in pieces."""

from __future__ import annotations

import pytest
import torch

from runner.optim import qr


@pytest.mark.parametrize("targets", [2, 3, 5])
def test_rows_of_several_targets_have_the_factor_of_all_rows(targets: int) -> None:
    """Each target has columns of its own, two that all share, and one that only the first target has in one piece."""
    draw = torch.Generator().manual_seed(targets)
    own = [torch.randn(2, 60, 3, dtype=torch.float64, generator=draw) for _ in range(targets)]
    matrix = torch.zeros(2, 60 * targets, 3 * targets + 3, dtype=torch.float64)
    for target, columns in enumerate(own):
        matrix[:, target::targets, 3 * target : 3 * target + 3] = columns
    matrix[..., -3:-1] = torch.randn(2, 60 * targets, 2, dtype=torch.float64, generator=draw)
    matrix[:, 0, -1] = 1.0
    pieces = [matrix[:, first : first + 20 * targets] for first in range(0, 60 * targets, 20 * targets)]
    factor = qr.qr_of_pieces(pieces, targets)
    assert factor.shape == (2, 3 * targets + 3, 3 * targets + 3)
    torch.testing.assert_close(factor.mT @ factor, matrix.mT @ matrix, rtol=1e-13, atol=1e-12)


def test_an_empty_piece_of_several_targets_adds_nothing() -> None:
    matrix = torch.randn(1, 8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    factor = qr.qr_of_pieces([matrix[:, :0], matrix], 2)
    torch.testing.assert_close(factor.mT @ factor, matrix.mT @ matrix, rtol=1e-13, atol=1e-13)
