"""A network that knows nothing of runner: an ordinary `torch.nn.Module`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Periodic(nn.Module):
    """A network of waves: each feature becomes sines and cosines of trained frequencies, then two linear layers.

    Gorishniy, Rubachev and Babenko, "On embeddings for numerical features in tabular deep learning", arXiv:2203.05556 (2022).
    `in_features` and `out_features` are filled in by runner; the others are `model.kwargs`.
    """

    def __init__(
        self, in_features: int, out_features: int, width: int = 32, frequencies: int = 8, scale: float = 0.5
    ) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.randn(in_features, frequencies) * scale)
        self.hidden = nn.Linear(2 * in_features * frequencies, width)
        self.last = nn.Linear(width, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Return predictions [rows, targets] for features [rows, columns]."""
        angles = 2 * math.pi * x.unsqueeze(-1) * self.frequencies
        waves = torch.cat([angles.sin(), angles.cos()], -1).flatten(1)
        prediction: Tensor = self.last(torch.relu(self.hidden(waves)))
        return prediction
