"""Losses of a user's own: one that is used, and one for each mistake."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Quantile(nn.Module):
    """The quantile loss (Koenker and Bassett, 1978) of each number."""

    q: Tensor

    def __init__(self, q: float = 0.5) -> None:
        super().__init__()
        self.register_buffer("q", torch.tensor(q))

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the loss [rows, targets]."""
        error = target - prediction
        return torch.maximum(self.q * error, (self.q - 1) * error)


class OfRow(Quantile):
    """The same with one number for a row, [rows]."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the loss [rows]."""
        both = super().forward(prediction, target)
        return both.view(len(both), -1).mean(1)  # of memory without gaps


class Branching(Quantile):
    """The same in a way that vmap refuses."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the loss [rows, targets]."""
        return super().forward(prediction, target) if prediction.sum() > -1e30 else prediction


class Mean(Quantile):
    """A mean, as many losses are written."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the mean []."""
        return super().forward(prediction, target).mean()


class Squeezed(Quantile):
    """A loss that has the right shape unless there is one row."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the loss [rows] of several rows, and [] of one."""
        return super().forward(prediction, target).squeeze()


class Shrinking(Quantile):
    """A loss that has the right shape unless there are many rows."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the loss of the first ten rows."""
        return super().forward(prediction, target)[:10]


class Scaled(Quantile):
    """A loss of a row that depends on the other rows."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the loss divided by the range of the targets."""
        return super().forward(prediction, target) / (target.amax() - target.amin() + 1)


class Detached(Quantile):
    """A loss without a gradient."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the loss without its history."""
        return super().forward(prediction, target).detach()


class Noisy(Quantile):
    """A loss with random numbers."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the loss with noise."""
        return super().forward(prediction, target) * torch.rand(())


class InPlace(Quantile):
    """A loss that changes the data."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the loss of targets that are clipped in place."""
        return super().forward(prediction, target.clamp_(min=0))


class Root(nn.Module):
    """A loss without a gradient at 0."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return √(0·error), whose gradient is nan."""
        return ((target - prediction) * 0).sqrt()


class Trained(Quantile):
    """A loss with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


class Exchanged(nn.Module):
    """A loss with its arguments in the order of scikit-learn."""

    def forward(self, target: Tensor, prediction: Tensor) -> Tensor:
        """Return the absolute error."""
        return (target - prediction).abs()


class Failing(nn.Module):
    """A loss with a mistake."""

    def forward(self, prediction: Tensor, target: Tensor) -> Any:
        """Raise an error."""
        return prediction.reshape(-1, 7) + target


class Infinite(nn.Module):
    """A loss that is not finite."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return infinity."""
        return (prediction - target).abs() / 0


class Whole(nn.Module):
    """A loss of integers."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return rounded errors."""
        return (prediction - target).abs().long()


def relu(prediction: Tensor, target: Tensor) -> Tensor:
    """Be a function where a class is wanted."""
    return (target - prediction).relu()
