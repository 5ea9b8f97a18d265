"""Scaling of features and target before training, and its inverse."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scaling:
    """Standardization, scaled = (value − mean) / scale. With `log_target` the target's logarithm is taken first.

    Means and scales are float64 on the CPU, in the units of the file (of the logarithm with `log_target`).
    """

    feature_mean: Tensor
    """Mean [columns] of the training features; 0 without standardization."""
    feature_scale: Tensor
    """Standard deviation [columns] of the training features; 1 without standardization and for constant columns."""
    target_mean: Tensor
    """Mean [targets] of the training targets; 0 without standardization."""
    target_scale: Tensor
    """Standard deviation [targets] of the training targets; 1 without standardization and for a constant target."""
    log_target: bool
    """Whether the model is trained on the natural logarithm of the targets."""

    @staticmethod
    def fit(
        features: Tensor, target: Tensor, *, scaled: Tensor | bool, scales_target: bool, log_target: bool
    ) -> Scaling:
        """Return the scaling fitted to training features [rows, columns] and target [rows, targets], both float64.

        `scaled` masks the features [columns] that are standardized, or says whether all are.
        """
        mask = torch.as_tensor(scaled).expand(features.shape[1])
        blocks = [features[:, mask]] if bool(mask.any()) else []
        return Scaling.fit_blocks(blocks, mask.tolist(), target, scales_target=scales_target, log_target=log_target)

    @staticmethod
    def fit_blocks(
        blocks: Iterable[Tensor],
        scaled: Sequence[bool],
        target: Tensor,
        *,
        scales_target: bool,
        log_target: bool,
        weight: Tensor | None = None,
    ) -> Scaling:
        """Return the scaling fitted to training features, and to target [rows, targets] in float64.

        `scaled` says of each feature whether it is standardized; the blocks [rows, columns] together are those that are. The
        others, and the target without `scales_target`, have mean 0 and scale 1. Standard deviations divide by rows − 1. A
        constant column gets scale 1, so it becomes 0 instead of nan. `weight` [rows], above 0, is as in `moments`.
        """
        mean, scale = torch.zeros(len(scaled), dtype=torch.float64), torch.ones(len(scaled), dtype=torch.float64)
        first, places = 0, torch.tensor(scaled, dtype=torch.bool).nonzero().flatten()
        for block in blocks:
            own = places[first : first + block.shape[1]]
            mean[own], scale[own] = moments(block, weight)
            first += len(own)
            del block  # before the next one is made
        center, spread = torch.zeros_like(target[0]), torch.ones_like(target[0])
        if scales_target:
            center, spread = moments(target.log() if log_target else target, weight)
        return Scaling(mean, scale, center, spread, log_target)

    def features(self, raw: Tensor) -> Tensor:
        """Return scaled features [rows, columns] for features in the units of the file."""
        return (raw - self.feature_mean) / self.feature_scale

    def some_features(self, places: Sequence[int], raw: Tensor, into: Tensor) -> Tensor:
        """Return some scaled features [features, rows], by their places among the columns, in memory that is given."""
        mean, scale = self.feature_mean[places].unsqueeze(1), self.feature_scale[places].unsqueeze(1)
        return torch.sub(raw, mean, out=into).div_(scale)

    def target(self, raw: Tensor) -> Tensor:
        """Return the scaled target [rows, targets] for a target in the units of the file."""
        return ((raw.log() if self.log_target else raw) - self.target_mean) / self.target_scale

    def seen_through(self, other: Scaling) -> Scaling:
        """Return this scaling for values that `other` has scaled already; without `log_target`, which both must share.

        Where both are equal it changes nothing, to the bit.
        """
        return Scaling(
            (self.feature_mean - other.feature_mean) / other.feature_scale,
            self.feature_scale / other.feature_scale,
            (self.target_mean - other.target_mean) / other.target_scale,
            self.target_scale / other.target_scale,
            log_target=False,
        )

    def undo(self, prediction: Tensor) -> Tensor:
        """Return a prediction […, targets] in the units of the file, on the prediction's device and in its dtype."""
        mean, scale = self.target_mean.to(prediction), self.target_scale.to(prediction)
        values = prediction * scale + mean
        return values.exp() if self.log_target else values

    def state_dict(self) -> dict[str, Tensor | bool]:
        """Return the fields by name, to be stored with the model."""
        return dict(vars(self))


def moments(values: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation over the rows of float64 values [rows, …], with 1 for a deviation of 0.

    A row of the smallest `weight` [rows] counts as one row, and one of twice that weight as two equal ones.
    """
    # Compare the values themselves: the mean of equal numbers is rounded, so their deviation is often 1e-17, not 0.
    constant = (values == values[0]).all(0)
    if weight is None:
        center, deviation = values.mean(0), values.std(0, correction=min(1, len(values) - 1))
    else:
        counts = (weight / weight.min()).reshape(-1, *[1] * (values.ndim - 1))
        center = (values * counts).sum(0) / counts.sum()
        deviation = ((values - center).square() * counts).sum(0).div((counts.sum() - 1).clamp(min=1)).sqrt()
    mean = torch.where(constant, values[0], center)
    return mean, torch.where(constant | (deviation == 0), torch.ones_like(deviation), deviation)
