"""A module for `runner.run(model=…)`."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Two layers."""

    def __init__(self, in_features: int, out_features: int, width: int = 4) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(in_features, width), nn.Linear(width, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Return the predictions [rows, targets]."""
        prediction: Tensor = self.last(torch.tanh(self.first(x)))
        return prediction
