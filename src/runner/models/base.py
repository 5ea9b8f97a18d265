"""Models: modules from features [rows, columns] to predictions [rows, 1]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from runner.compute.precision import DTYPES
from runner.compute.rng import stream
from runner.config import schema as c


class Standardization(Protocol):
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

    config_name = "model"
    """Name of the model in the configuration, which `build` sets; messages show it."""

    @property
    def draws(self) -> bool:
        """Whether the forward pass in training draws random numbers."""
        return any(isinstance(module, _DropoutNd) and module.p > 0 for module in self.modules())

    def fitted(self, scaling: Standardization) -> Mapping[str, Tensor]:
        """The parameters to report; a model that is linear in the features undoes the scaling."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    def unscaling(self, scaling: Standardization) -> Tensor | None:
        """The matrix that takes the model's numbers to those of `fitted`, up to a constant; None where they are the same."""
        return None

    def jacobian(self, parameters: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Derivative of each prediction by each number of the parameters, these one after the other as they are named.

        Features [rows, columns] → [rows, numbers]. With [lanes, …] in front of the parameters, of the features or of both
        → [lanes, rows, numbers], without lanes where it is the same for all.
        """
        from torch.func import functional_call, grad, vmap

        def prediction(values: Mapping[str, Tensor], row: Tensor) -> Tensor:
            return functional_call(self, dict(values), (row.unsqueeze(0),)).reshape(())  # type: ignore[no-any-return]

        each = vmap(grad(prediction), in_dims=(None, 0))
        own = {name: parameter.shape for name, parameter in self.named_parameters()}
        stacked = next(iter(parameters.values())).dim() > len(next(iter(own.values())))
        lanes = stacked or features.dim() > 2
        if lanes:
            each = vmap(each, in_dims=(0 if stacked else None, 0 if features.dim() > 2 else None))
        found = each({name: parameters[name].detach() for name in own}, features)
        return torch.cat([found[name].flatten(1 + lanes) for name in own], -1)

    def is_linear(self, features: Tensor) -> bool:
        """Whether the predictions for these rows are linear in the parameters, up to a constant."""
        return False

    def tensor_plan(self) -> Mapping[str, str]:
        """How processes may split each layer's work: name of a linear layer → "column", its outputs, or "row", its inputs.

        In the order of the forward pass, with every parameter in one of the layers. After each column layer comes a row
        layer, which takes the parts of that one's outputs as they are. Empty where there is nothing to split.
        """
        return {}

    def stages(self, count: int) -> Sequence[Sequence[str]]:
        """How processes may cut the model into `count` stages: names of direct children, which run one after the other.

        As many stages as there are layers where those are fewer, and none where the model is not such a chain.
        """
        return ()


def build(config: c.ModelConfig, feature_names: Sequence[str], generator: torch.Generator) -> Model:
    """The model that was chosen, in float64 on the CPU, its start values drawn from `generator`.

    Raises `DataError` for a formula that does not fit the columns.
    """
    # torch's constructors draw start values too, from the global generator, before ours replace them.
    with torch.random.fork_rng(devices=[]):
        model: Model = config.build(feature_names, generator)
    model.config_name = config.name
    if config.draws != model.draws:
        raise TypeError(
            f"{type(config).__name__}.draws must be {model.draws}, since that is what its model does, but is {config.draws}; correct it"
        )
    return model


def start_model(config: c.Config, feature_names: Sequence[str]) -> Model:
    """The model of a run at step 0, in the run's type, on the CPU."""
    start = build(config.model, feature_names, stream(config.seed, "init"))
    return start.to(DTYPES[config.dtype])
