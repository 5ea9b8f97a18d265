"""Metrics of the user's own: functions of predictions and targets with a value for each row, whose weighted mean is the metric."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runner.config import imports
from runner.config import schema as c
from runner.config.imports import Target
from runner.errors import ConfigError, RunFailed
from runner.models import row_values
from runner.models.row_values import RowFunction

FUNCTION = "a function (prediction, target)"


@dataclass(frozen=True)
class OwnMetric:
    """A function of the user's own, in the units of the file."""

    target: Target
    function: RowFunction

    @property
    def name(self) -> str:
        """Name of the metric: that of the function."""
        return self.target.name

    def total(self, prediction: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        """Return the weighted sum over rows of the mean over targets: [], or [lanes] for predictions [lanes, rows, targets].

        Targets and weights, [rows, …], have lanes in front if they differ. Raises `RunFailed` for an error of the function.
        """
        if not prediction.shape[-2]:  # a process without rows
            return prediction.sum((-2, -1))
        target = target.expand_as(prediction)
        lanes = zip(prediction, target, strict=True) if prediction.dim() > 2 else [(prediction, target)]
        try:
            with row_values.explained(self.target, f"{self.name}(prediction, target)"):
                found = torch.stack(
                    [row_values.values(self.function, *lane).mean(1, keepdim=True) for lane in lanes]
                ).to(prediction)
        except ConfigError as error:
            raise RunFailed(error.problems[0]) from error
        values = found.reshape(*prediction.shape[:-1], 1)
        return (values if weight is None else values * weight).sum((-2, -1))


def build(config: c.Config) -> tuple[OwnMetric, ...]:
    """Return the metrics of the user's own of a configuration. Raises `ConfigError` with the problems of each."""
    if refusals := [text for target in config.own_metrics for text in _refusals(target)]:
        raise ConfigError(refusals)
    return tuple(OwnMetric(target, _function(target)) for target in config.own_metrics)


def _function(target: Target) -> RowFunction:
    function: RowFunction = imports.load(target, None, FUNCTION)
    if isinstance(function, type):
        raise ConfigError(f"{target.shown} must be {FUNCTION}, got a class; name {FUNCTION}")
    return function


def _refusals(target: Target) -> tuple[str, ...]:
    try:
        _function(target)
    except ConfigError as error:
        return error.problems
    return ()


def problems(metrics: Sequence[OwnMetric], prediction: Tensor, target: Tensor) -> Iterator[str]:
    """Yield the problem of each metric with rows of predictions and targets [rows, targets], in the units of the file."""
    for metric in metrics:
        try:
            with row_values.explained(metric.target, f"{metric.name}(prediction, target)"), torch.no_grad():
                found = row_values.probe(metric.function, prediction.clone(), target.clone())
                # Before training a prediction may be anything, such as the negative of what has a logarithm.
                best = row_values.values(metric.function, target.clone(), target.clone())
        except ConfigError as error:
            yield from error.problems
            continue
        without = ~(found.isfinite().all(1) | best.isfinite().all(1))
        if without.any():
            row = int(without.nonzero()[0])
            value, shown = (", ".join(f"{x:.6g}" for x in part[row].tolist()) for part in (best, target))
            yield (
                f"{metric.target.shown} must have a finite value for each row, got {value} for the target {shown}, "
                "whatever the prediction; correct it, or leave such rows out"
            )
