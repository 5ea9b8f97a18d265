"""Contract of a model: a module that maps features [rows, columns] to predictions [rows, 1]."""

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
    """Scaling of the data that the model was trained on, scaled = (value − mean) / scale, in the units of the file."""

    @property
    def feature_mean(self) -> Tensor:
        """Mean [columns] of the features."""

    @property
    def feature_scale(self) -> Tensor:
        """Standard deviation [columns] of the features."""

    @property
    def target_mean(self) -> Tensor:
        """Mean [] of the target."""

    @property
    def target_scale(self) -> Tensor:
        """Standard deviation [] of the target."""


class Model(torch.nn.Module):
    """Module with one prediction per row, which can report its parameters in the user's units."""

    config_name = "model"
    """Name of the model in the configuration, which `build` sets; messages show it."""

    @property
    def draws(self) -> bool:
        """Whether the forward pass draws random numbers in training mode."""
        return any(isinstance(module, _DropoutNd) and module.p > 0 for module in self.modules())

    def fitted(self, scaling: Standardization) -> Mapping[str, Tensor]:
        """Return the parameters to report, by name. A model that is linear in the features undoes the scaling."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    def terms(self, columns: Sequence[str]) -> Sequence[str]:
        """Return the names of the terms whose coefficients are the entries of `fitted`, in order, for these columns.

        A term is a column ("x"), a power of one ("x^2"), or the "constant", which comes last and which `fitted` may leave
        out. Empty for a model that is not a sum of such terms.
        """
        return ()

    def unscaling(self, scaling: Standardization) -> Tensor | None:
        """Return the matrix [reported, numbers] that maps the model's parameters to those of `fitted`, up to a constant.

        `numbers` counts the entries of all parameters. None means that both are the same.
        """
        return None

    def jacobian(self, parameters: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Return the derivative of each prediction with respect to every entry of the parameters, in the order of names.

        The result is [rows, numbers] for features [rows, columns]. If parameters or features have a leading lane axis, it
        is [lanes, rows, numbers], or without lanes if it is the same for all of them.
        """
        from torch.func import functional_call, grad, vmap

        def prediction(values: Mapping[str, Tensor], row: Tensor) -> Tensor:
            return functional_call(self, dict(values), (row.unsqueeze(0),)).reshape(())  # type: ignore[no-any-return]

        each = vmap(grad(prediction), in_dims=(None, 0))
        shapes = {name: parameter.shape for name, parameter in self.named_parameters()}
        stacked = next(iter(parameters.values())).dim() > len(next(iter(shapes.values())))
        lanes = stacked or features.dim() > 2
        if lanes:
            each = vmap(each, in_dims=(0 if stacked else None, 0 if features.dim() > 2 else None))
        gradients = each({name: parameters[name].detach() for name in shapes}, features)
        return torch.cat([gradients[name].flatten(1 + lanes) for name in shapes], -1)

    def is_linear(self, features: Tensor) -> bool:
        """Return whether the predictions for features [rows, columns] are linear in the parameters, up to a constant."""
        return False

    def tensor_plan(self) -> Mapping[str, str]:
        """Return how processes may split each linear layer, by name: "column" (its outputs) or "row" (its inputs).

        Layers are in the order of the forward pass and contain every parameter. Each "column" layer is followed by a "row"
        layer, which uses the split outputs directly. Empty if the model cannot be split.
        """
        return {}

    def stages(self, count: int) -> Sequence[Sequence[str]]:
        """Return `count` pipeline stages, each a list of names of direct children that run one after another.

        There are fewer stages if the model has fewer layers, and none if it is not such a chain.
        """
        return ()


def build(config: c.ModelConfig, feature_names: Sequence[str], generator: torch.Generator) -> Model:
    """Return the configured model in float64 on the CPU, with start values drawn from `generator`.

    Raises `DataError` for a formula that does not fit the columns, and `TypeError` if the configuration class declares
    `draws` wrongly.
    """
    # torch's constructors draw start values from the global generator before ours replace them.
    with torch.random.fork_rng(devices=[]):
        model: Model = config.build(feature_names, generator)
    # A plain assignment would meet a parameter of a formula with this name.
    object.__setattr__(model, "config_name", config.name)
    if config.draws != model.draws:
        raise TypeError(
            f"{type(config).__name__}.draws must be {model.draws} like its model's, got {config.draws}; correct the class"
        )
    return model


def start_model(config: c.Config, feature_names: Sequence[str]) -> Model:
    """Return the model of a run at step 0, in the run's dtype, on the CPU."""
    start = build(config.model, feature_names, stream(config.seed, "init"))
    return start.to(DTYPES[config.dtype])
