"""Contract of a model: a module that maps the inputs of a batch, each [rows, columns], to predictions [rows, targets]."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
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
        """Mean [targets] of each target."""

    @property
    def target_scale(self) -> Tensor:
        """Standard deviation [targets] of each target."""


class Model(torch.nn.Module):
    """Module with a prediction of each target per row, which can report its parameters in the user's units.

    Its inputs are numbers, the features; one that takes categories as codes gets them as a second argument.
    """

    config_name = "model"
    """Name of the model in the configuration, which `build` sets; messages show it."""
    targets = 1
    """Number of targets, which `build` sets."""

    @property
    def draws(self) -> bool:
        """Whether the forward pass draws random numbers in training mode."""
        return any(isinstance(module, _DropoutNd) and module.p > 0 for module in self.modules())

    @property
    def alone_because(self) -> str | None:
        """Why its runs cannot be vmapped, as the end of a sentence; None if they can."""
        if self.draws:
            return "dropout draws from one stream"
        # What is stacked for the lanes are the parameters.
        other = len(self.state_dict()) != sum(1 for _ in self.parameters())
        return "its model has buffers, or a parameter with two names" if other else None

    @property
    def batch_matters(self) -> bool:
        """Whether a training step depends on how its rows are divided into forward passes."""
        return False

    def examine(self, inputs: tuple[Tensor, ...]) -> Iterator[str]:
        """Find out on rows of inputs, each [rows, columns], what code of the user's does; yield the problems with it."""
        yield from ()

    @property
    def remarks(self) -> Sequence[str]:
        """Sentences on what the user should know of the model, once it has been examined."""
        return ()

    def fitted(self, scaling: Standardization) -> Mapping[str, Tensor]:
        """Return the parameters to report, by name. A model that is linear in the features undoes the scaling."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    @property
    def of_columns(self) -> Collection[str]:
        """Names of the parameters that mean something else for other columns: all, unless the model knows better."""
        return tuple(name for name, _ in self.named_parameters())

    @property
    def of_targets(self) -> Collection[str]:
        """Names of the parameters that mean something else for other targets: all, unless the model knows better."""
        return tuple(name for name, _ in self.named_parameters())

    def unscaled(self, scaling: Standardization) -> Mapping[str, Tensor]:
        """Return the parameters, by name and in float64, of the same function of values that are not scaled.

        The names are those of `named_parameters`, and "bias" where the function needs one. The parameters of a model whose
        parameters do not depend on a scaling are returned as they are.
        """
        return {name: parameter.detach().cpu().double() for name, parameter in self.named_parameters()}

    def terms(self, columns: Sequence[str], targets: Sequence[str]) -> Sequence[str]:
        """Return the names of the terms whose coefficients are the entries of `fitted`, in order, for columns and targets.

        A term is a column ("x"), a power of one ("x^2"), or the "constant", which comes last and which `fitted` may leave
        out. With several targets it also names its target ("x → y"). Empty for a model that is not a sum of such terms.
        """
        return ()

    def unscaling(self, scaling: Standardization) -> Tensor | None:
        """Return the matrix [reported, numbers] that maps the model's parameters to those of `fitted`, up to a constant.

        `numbers` counts the entries of all parameters. None means that both are the same.
        """
        return None

    def jacobian(self, parameters: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Return the derivative of each prediction with respect to every entry of the parameters, in the order of names.

        The result is [rows·targets, numbers] for features [rows, columns]: row by row, and target by target in each row. If
        parameters or features have a leading lane axis, it has it too, unless it is the same for all lanes.
        """
        from torch.func import functional_call, grad, vmap

        def prediction(values: Mapping[str, Tensor], row: Tensor, target: int) -> Tensor:
            return functional_call(self, dict(values), (row.unsqueeze(0),))[0, target]  # type: ignore[no-any-return]

        def gradients(values: Mapping[str, Tensor], rows: Tensor) -> list[Mapping[str, Tensor]]:
            each = (grad(partial(prediction, target=target)) for target in range(self.targets))
            return [vmap(one, in_dims=(None, 0))(values, rows) for one in each]

        of_lanes = gradients
        shapes = {name: parameter.shape for name, parameter in self.named_parameters()}
        stacked = next(iter(parameters.values())).dim() > len(next(iter(shapes.values())))
        lanes = stacked or features.dim() > 2
        if lanes:
            of_lanes = vmap(gradients, in_dims=(0 if stacked else None, 0 if features.dim() > 2 else None))
        found = of_lanes({name: parameters[name].detach() for name in shapes}, features)
        return by_target([torch.cat([one[name].flatten(1 + lanes) for name in shapes], -1) for one in found])

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


def by_target(jacobians: Sequence[Tensor]) -> Tensor:
    """Return the Jacobian […, rows·targets, n] of all targets, from that of each, […, rows, n]."""
    return jacobians[0] if len(jacobians) == 1 else torch.stack(list(jacobians), -2).flatten(-3, -2)


def build(
    config: c.ModelConfig,
    feature_names: Sequence[str],
    target_names: Sequence[str],
    generator: torch.Generator,
    cardinalities: Sequence[int] = (),
    *,
    make: Callable[..., Model] | None = None,
) -> Model:
    """Return the configured model in float64 on the CPU, with start values drawn from `generator`.

    `cardinalities` are the numbers of codes of the categories, for a model that takes them. `make` is used instead of
    `config.build`. Raises `DataError` for a formula that does not fit the columns, and `TypeError` if the configuration class declares
    `draws` wrongly.
    """
    # torch's constructors draw start values from the global generator before ours replace them.
    with torch.random.fork_rng(devices=[]):
        codes = (cardinalities,) if config.wants_codes() else ()
        model: Model = (make or config.build)(feature_names, target_names, generator, *codes)
    # A plain assignment would meet a parameter of a formula with this name.
    object.__setattr__(model, "config_name", config.name)
    object.__setattr__(model, "targets", len(target_names))
    if config.draws != model.draws:
        raise TypeError(
            f"{type(config).__name__}.draws must be {model.draws} like its model's, got {config.draws}; correct the class"
        )
    return model


def start_model(
    config: c.Config,
    feature_names: Sequence[str],
    target_names: Sequence[str],
    cardinalities: Sequence[int] = (),
    *,
    make: Callable[..., Model] | None = None,
) -> Model:
    """Return the model of a run at step 0, in the run's dtype, on the CPU. The arguments are those of `build`."""
    start = build(config.model, feature_names, target_names, stream(config.seed, "init"), cardinalities, make=make)
    return start.to(DTYPES[config.dtype])
