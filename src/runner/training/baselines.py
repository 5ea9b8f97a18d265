"""What a simple model reaches on the same rows: the mean of the training rows, linear least squares, boosted trees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from runner.compute.precision import widest
from runner.compute.strategies.base import Single
from runner.config import schema as c
from runner.data.dataset import Dataset
from runner.models.linear import LinearModel
from runner.models.losses import build as build_loss
from runner.optim.optimum import affordable, least_squares
from runner.training.metrics import Evaluation
from runner.training.own_metrics import OwnMetric

Predict = Callable[[Tensor], Tensor]
"""Function of features [rows, columns] that returns scaled predictions [rows, targets]."""

Fit = tuple[Dataset, Predict]
"""A fitted function, and the dataset whose features it takes."""

MOST_NUMBERS = 10_000_000
"""Largest number of values, rows times features times targets, to which boosted trees are fitted: it takes about a minute."""

_known: WeakKeyDictionary[Dataset, dict[tuple[str, ...], Mapping[str, float]]] = WeakKeyDictionary()
"""Those computed already: thousands of trials of a sweep share a dataset."""


def baselines(dataset: Dataset, names: Sequence[str], own: Sequence[OwnMetric] = ()) -> dict[str, Mapping[str, float]]:
    """Return metrics of the named baselines, such as "test/rmse", in the units of the file; one that would take minutes is left out.

    Each is fitted to the training rows, with their weights. `own` are metrics of the user's own.
    """
    known, found = _known.setdefault(dataset, {}), dict[str, Mapping[str, float]]()
    for name in names:
        key = (name, *(metric.target.text for metric in own))
        if key not in known and (fit := _FITS[name](dataset)) is not None:
            known[key] = _metrics(*fit, own)
        if key in known:
            found[name] = known[key]
    return found


def _mean(dataset: Dataset) -> Fit:
    """Return the mean of each target over the training rows, in the units of the file."""
    train = dataset.parts["train"].all
    target, weight = train.target, train.weight
    truth = dataset.scaling.undo(target.to(widest(target.device)))
    weight = torch.ones_like(truth) if weight is None else weight.to(truth)
    mean = (truth * weight).sum(0) / weight.sum(0)
    scaled = dataset.scaling.target(mean.cpu().double()).to(truth)
    return dataset, (lambda features: scaled.expand(len(features), -1))


def _linear(dataset: Dataset) -> Fit | None:
    """Return least squares with standardized numbers, whatever the model gets; None where it takes long."""
    if not affordable(len(dataset.parts["train"]), dataset.width + 1):
        return None
    dataset = dataset.standardized().one_hot()
    train = dataset.parts["train"].all
    wide = widest(train.numbers.device)
    model = LinearModel(train.numbers.shape[1], 1, dtype=wide, device=train.numbers.device)
    solution = torch.stack(
        [least_squares(model, train._replace(target=column.unsqueeze(1))) for column in train.target.T], 1
    )
    return dataset, (lambda features: features.to(wide) @ solution[:-1] + solution[-1])


def _boosting(dataset: Dataset) -> Fit | None:
    """Return scikit-learn's `HistGradientBoostingRegressor` with its defaults for each scaled target; None where it is slow."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    train = dataset.parts["train"].all
    if len(train.target) * dataset.width * train.target.shape[1] > MOST_NUMBERS:
        return None
    dataset = dataset.one_hot()
    train = dataset.parts["train"].all.map(Tensor.cpu).to(torch.float64)
    weights = None if train.weight is None else train.weight.flatten().numpy()
    trees = [
        HistGradientBoostingRegressor(random_state=0).fit(train.numbers.numpy(), column.numpy(), weights)
        for column in train.target.T
    ]

    def predict(features: Tensor) -> Tensor:
        values = features.cpu().double().numpy()
        predictions = torch.stack([torch.from_numpy(of_target.predict(values)) for of_target in trees], 1)
        return predictions.to(features.device, widest(features.device))

    return dataset, predict


_FITS: Mapping[str, Callable[[Dataset], Fit | None]] = {
    "mean": _mean,
    "linear": _linear,
    "boosting": _boosting,
}


class _Function(torch.nn.Module):
    def __init__(self, function: Predict, dtype: torch.dtype) -> None:
        super().__init__()
        self._function, self._dtype = function, dtype

    def forward(self, features: Tensor, *codes: Tensor) -> Tensor:
        # The mean of the training rows needs no codes; others get the categories one-hot, among the features.
        return self._function(features).to(self._dtype)


def _metrics(dataset: Dataset, predict: Predict, own: Sequence[OwnMetric]) -> dict[str, float]:
    """Return the metrics of a function of features on every part of the data."""
    target = dataset.parts["train"].all.target
    model, loss, strategy = _Function(predict, target.dtype), build_loss(c.Mse(name="mse")), Single(target.device)
    undo, targets = dataset.scaling.undo, dataset.target_names
    evaluation = Evaluation(model, model, loss, nullcontext, undo, dataset.evaluated, strategy, targets, own)
    return {
        f"{part}/{name}": value
        for part in dataset.evaluated
        for values in evaluation.metrics(part)
        for name, value in values.items()
        if name != "loss"
    }
