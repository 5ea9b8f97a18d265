"""Models: modules from features [rows, columns] to predictions [rows, 1]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from runner import config as c


class Scaling(Protocol):
    """Standardised = (value − mean) / scale, for features [columns] and target []."""

    @property
    def feature_mean(self) -> Tensor: ...
    @property
    def feature_scale(self) -> Tensor: ...
    @property
    def target_mean(self) -> Tensor: ...
    @property
    def target_scale(self) -> Tensor: ...


class Model(torch.nn.Module):
    """A module whose parameters can be told in the user's terms."""

    draws = False
    """Whether the forward pass in training draws random numbers."""

    def fitted(self, scaling: Scaling) -> Mapping[str, Tensor]:
        """The parameters to report; a model that is linear in the features undoes the scaling."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}


def build(
    config: c.Linear | c.Polynomial | c.Mlp | c.Formula, feature_names: Sequence[str], generator: torch.Generator
) -> Model:
    """The model that was chosen, in float64 on the CPU, its start values drawn from `generator`.

    Raises `DataError` for a formula that does not fit the columns.
    """
    # torch's constructors draw start values too, from the global generator, before ours replace them.
    with torch.random.fork_rng(devices=[]):
        return _built(config, feature_names, generator)


def _built(
    config: c.Linear | c.Polynomial | c.Mlp | c.Formula, feature_names: Sequence[str], generator: torch.Generator
) -> Model:
    from runner.models import formula, linear, mlp

    columns = len(feature_names)
    if isinstance(config, c.Formula):
        return formula.build(config, feature_names, generator)
    if isinstance(config, c.Mlp):
        return mlp.build(config, columns, generator)
    if isinstance(config, c.Polynomial):
        return linear.polynomial(config, columns, generator)
    return linear.linear(config, columns, generator)
