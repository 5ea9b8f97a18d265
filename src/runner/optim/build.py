"""Build the optimizer of a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from runner.compute.bounds import Bounds
from runner.config import schema as c
from runner.optim import rules
from runner.optim.base import Optimizer
from runner.optim.manual import Manual
from runner.optim.projected import Projected


def build(
    config: c.OptimizerConfig, update: str, parameters: Mapping[str, Tensor], bounds: Bounds | None = None
) -> Optimizer:
    """Return the optimizer of one run for its parameters by name; it uses our own update rule if `update` is "manual".

    `bounds` are those of all entries of the parameters, if there are any.
    """
    if config.least_squares:
        return _solver([config], parameters, None, bounds)
    if update == "manual" and config.rule is not None:
        return _within(bounds, _manual([config], parameters), parameters, None)
    return _within(bounds, config.build(parameters), parameters, None)


def build_lanes(
    configs: Sequence[c.OptimizerConfig], parameters: Mapping[str, Tensor], bounds: Bounds | None = None
) -> Optimizer:
    """Return the optimizer of vmapped runs for their stacked parameters [lanes, …] by name, which have the same bounds."""
    if configs[0].least_squares:
        return _solver(configs, parameters, configs, bounds)
    return _within(bounds, _manual(configs, parameters), parameters, len(configs))


def _solver(
    configs: Sequence[c.OptimizerConfig],
    parameters: Mapping[str, Tensor],
    lanes: Sequence[c.OptimizerConfig] | None,
    bounds: Bounds | None,
) -> Optimizer:
    more = () if bounds is None else (bounds,)
    optimizer: Optimizer = configs[0].build(parameters, lanes, *more)
    return optimizer


def _within(bounds: Bounds | None, optimizer: Any, parameters: Mapping[str, Tensor], lanes: int | None) -> Optimizer:
    if bounds is None:
        unbounded: Optimizer = optimizer
        return unbounded
    return Projected(optimizer, parameters, bounds, lanes)


def _manual(configs: Sequence[c.OptimizerConfig], parameters: Mapping[str, Tensor]) -> Optimizer:
    return Manual(rules.build(configs, next(iter(parameters.values())).device), parameters)
