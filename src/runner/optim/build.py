"""Build the optimizer of a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from runner.config import schema as c
from runner.optim import rules
from runner.optim.base import Optimizer
from runner.optim.manual import Manual


def build(config: c.OptimizerConfig, update: str, parameters: Mapping[str, Tensor]) -> Optimizer:
    """Return the optimizer of one run for its parameters by name; it uses our own update rule if `update` is "manual"."""
    if update == "manual" and config.rule is not None:
        return _manual([config], parameters)
    optimizer: Optimizer = config.build(parameters)
    return optimizer


def build_lanes(configs: Sequence[c.OptimizerConfig], parameters: Mapping[str, Tensor]) -> Optimizer:
    """Return the optimizer of vmapped runs for their stacked parameters [lanes, …] by name."""
    if configs[0].rule is not None:
        return _manual(configs, parameters)
    optimizer: Optimizer = configs[0].build(parameters, configs)
    return optimizer


def _manual(configs: Sequence[c.OptimizerConfig], parameters: Mapping[str, Tensor]) -> Optimizer:
    return Manual(rules.build(configs, next(iter(parameters.values())).device), parameters)
