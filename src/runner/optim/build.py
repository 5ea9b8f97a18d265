"""The optimizer that a configuration names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from runner.config import schema as c
from runner.optim import rules
from runner.optim.base import Optimizer
from runner.optim.manual import Manual


def build(config: c.OptimizerConfig, update: str, parameters: Mapping[str, Tensor]) -> Optimizer:
    """The optimizer of one run, for its parameters by name; its rule by hand where `update` is "manual"."""
    if update == "manual" and config.rule is not None:
        return _by_hand([config], parameters)
    optimizer: Optimizer = config.build(parameters)
    return optimizer


def build_lanes(configs: Sequence[c.OptimizerConfig], parameters: Mapping[str, Tensor]) -> Optimizer:
    """The optimizer of vmapped runs, for their stacked parameters [lanes, …] by name."""
    if configs[0].rule is not None:
        return _by_hand(configs, parameters)
    optimizer: Optimizer = configs[0].build(parameters, configs)
    return optimizer


def _by_hand(configs: Sequence[c.OptimizerConfig], parameters: Mapping[str, Tensor]) -> Optimizer:
    return Manual(rules.build(configs, next(iter(parameters.values())).device), parameters)
