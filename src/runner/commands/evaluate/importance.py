"""How much a model relies on each feature of a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from runner.commands.evaluate.compared import Compared
from runner.compute.rng import stream
from runner.optim.student_t import Estimate, estimate
from runner.training.predicting import Predictor

BATCH_ROWS = 2**14
"""Rows that are predicted together: several shuffles of a small table fill the model's forward passes."""


@dataclass(frozen=True)
class Importance:
    """The growth of the rmse without the information of one feature."""

    feature: str
    values: tuple[float, ...]
    """Growth in each shuffle, in the units of the file."""

    @property
    def estimate(self) -> Estimate:
        """Mean over the shuffles, with Student's interval."""
        return estimate(self.values)


def importances(predictor: Predictor, rows: Compared, repeats: int) -> Iterator[Importance]:
    """Yield the permutation importance of each feature: the growth of the rmse when its values are shuffled among the rows.

    Breiman, "Random Forests", Machine Learning 45 (2001) 5-32, section 10; with any model, Fisher, Rudin and Dominici, "All
    Models are Wrong, but Many are Useful", Journal of Machine Learning Research 20 (2019) 177. A feature is a column of the
    table, however many inputs it has. A shuffle depends on the name of the feature and the number of the repeat alone.
    """
    base, inputs = _rmse(rows, rows.prediction), predictor.inputs(rows.features)
    together = max(1, BATCH_ROWS // len(rows))
    for name in rows.features:
        growth: list[float] = []
        for first in range(0, repeats, together):
            streams = (
                stream(0, f"importance/{name}", repeat) for repeat in range(first, min(first + together, repeats))
            )
            orders = torch.stack([torch.randperm(len(rows), generator=each) for each in streams])
            prediction = predictor.of_inputs(predictor.exchanged(inputs, name, orders)).values
            growth += (_rmse(rows, prediction.reshape(*orders.shape, -1)) - base).tolist()
        yield Importance(name, tuple(growth))


def _rmse(rows: Compared, prediction: Tensor) -> Tensor:
    """Return the rmse, the mean over the targets, of predictions [..., rows, targets] of rows that all have their targets."""
    squares = (prediction - rows.target).square()
    if rows.weight is None:
        return squares.mean(-2).sqrt().mean(-1)
    return ((squares * rows.weight.unsqueeze(1)).sum(-2) / rows.weight.sum()).sqrt().mean(-1)
