"""What is done to features and target before training, and how it is undone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scaling:
    """Standardised = (value − mean) / scale: features [columns], target []; after the logarithm where there is one."""

    feature_mean: Tensor
    feature_scale: Tensor
    target_mean: Tensor
    target_scale: Tensor
    log_target: bool

    @staticmethod
    def fit(features: Tensor, target: Tensor, standardize: bool, log_target: bool) -> Scaling:
        """Mean and deviation (of n − 1) of the training rows in float64; identities when not standardised.

        A constant column has the scale 1, so that it becomes 0 and not nan.
        """
        if not standardize:
            columns = features.shape[1]
            zeros, ones = torch.zeros(columns, dtype=torch.float64), torch.ones(columns, dtype=torch.float64)
            return Scaling(
                zeros, ones, torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64), log_target
            )
        values = target.log() if log_target else target
        return Scaling(*_moments(features), *_moments(values), log_target)

    def features(self, raw: Tensor) -> Tensor:
        """Features [rows, columns] of the file → as the model sees them."""
        return (raw - self.feature_mean) / self.feature_scale

    def target(self, raw: Tensor) -> Tensor:
        """Target of the file → as the model is trained on it."""
        return ((raw.log() if self.log_target else raw) - self.target_mean) / self.target_scale

    def undo(self, prediction: Tensor) -> Tensor:
        """A prediction of the model → in the units of the file, on the prediction's device and in its type."""
        mean, scale = self.target_mean.to(prediction), self.target_scale.to(prediction)
        values = prediction * scale + mean
        return values.exp() if self.log_target else values

    def state_dict(self) -> dict[str, Tensor | bool]:
        """Stored with the model."""
        return dict(vars(self))


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation over the rows."""
    # Asked of the values: the mean of equal numbers is rounded, and so their deviation is often 1e-17 and not 0.
    constant = (values == values[0]).all(0)
    deviation = values.std(0, correction=min(1, len(values) - 1))
    mean = torch.where(constant, values[0], values.mean(0))
    return mean, torch.where(constant | (deviation == 0), torch.ones_like(deviation), deviation)
