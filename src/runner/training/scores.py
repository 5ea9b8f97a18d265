"""Metrics of predictions that come block by block, in float64 on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from runner.data.scaling import Scaling
from runner.models.losses import Loss
from runner.training.metrics import means
from runner.training.own_metrics import OwnMetric


class Scores:
    """Adds up the metrics of targets and predictions, both in the units of the file.

    The sum of squares about the mean is carried from block to block as in Chan, Golub and LeVeque, "Algorithms for computing
    the sample variance", The American Statistician 37 (1983) 242-247.
    """

    def __init__(self, targets: Sequence[str], scaling: Scaling, loss: Loss, own: Sequence[OwnMetric] = ()) -> None:
        self._targets, self._scaling, self._loss, self._own = targets, scaling, loss, own
        self.rows = 0
        """Number of rows with all targets, which alone are counted."""
        self._cost = 0.0
        self._weight = 0.0
        self._sums = torch.zeros(3, len(targets), dtype=torch.float64)
        """Squared error, absolute error and squared distance from the mean of each target."""
        self._own_sums = dict.fromkeys((metric.name for metric in own), 0.0)
        """Weighted sums of the user's own metrics."""
        self._mean = torch.zeros(len(targets), dtype=torch.float64)
        self._range = torch.tensor([[torch.inf], [-torch.inf]], dtype=torch.float64).repeat(1, len(targets))

    def add(self, target: Tensor, prediction: Tensor, weight: Tensor | None = None) -> None:
        """Add rows: target and prediction [rows, targets], and weights [rows]. Rows without a target or weight are left out."""
        known = counted(target, weight)
        weight = None if weight is None else weight[known]
        target, prediction = target[known], prediction[known]
        if not len(target):
            return
        weight = torch.ones(len(target), dtype=torch.float64) if weight is None else weight
        column, total = weight.unsqueeze(1), float(weight.sum())
        error = prediction - target
        mean = (target * column).sum(0) / total
        between, both = mean - self._mean, self._weight + total
        spread = ((target - mean).square() * column).sum(0) + between.square() * (self._weight * total / both)
        self._sums += torch.stack(((error.square() * column).sum(0), (error.abs() * column).sum(0), spread))
        self._mean += between * (total / both)
        self._weight = both
        cost = self._loss(self._scaling.target(prediction), self._scaling.target(target), column)
        self._cost += float(cost) * len(target)
        for metric in self._own:
            self._own_sums[metric.name] += float(metric.total(prediction, target, column))
        self._range = torch.stack(
            (torch.minimum(self._range[0], target.amin(0)), torch.maximum(self._range[1], target.amax(0)))
        )
        self.rows += len(target)

    def metrics(self) -> dict[str, float]:
        """Return the metrics by their names, as a run has them; nan where there are no rows."""
        squares, absolute, spread = self._sums
        # A constant target has no spread; its rounded mean would give it one.
        spread = torch.where(self._range[0] < self._range[1], spread, 0.0)
        sums = torch.stack((squares, absolute, spread), 1).flatten().tolist()
        return means(self._targets, self._cost, self._weight, sums, self._own_sums) if self.rows else {}


def counted(target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mask [rows] of the rows that have scores: those with all targets [rows, targets], and a weight above 0 if any."""
    known = ~target.isnan().any(1)
    return known if weight is None else known & (weight > 0)
