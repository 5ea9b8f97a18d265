"""Models of the user's own: any `torch.nn.Module` whose forward pass maps numbers [rows, features] to predictions [rows, targets]."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from runner.compute import sizes
from runner.compute.precision import default_dtype
from runner.config import imports
from runner.config import schema as c
from runner.config.imports import Target
from runner.errors import ConfigError
from runner.models import habits, row_values
from runner.models.base import Model, Standardization
from runner.models.habits import Habits

MODULE = "a subclass of torch.nn.Module"


class Custom(Model):
    """A module of the user's own, with the contract of a model."""

    def __init__(
        self, module: nn.Module, target: Target, codes: str | None, numbers: int, cardinalities: Sequence[int]
    ) -> None:
        super().__init__()
        self.numbers, self.cardinalities = numbers, tuple(cardinalities)
        self.module = module
        self.target = target
        self.habits = Habits()
        self._codes = codes

    def forward(self, numbers: Tensor, categories: Tensor | None = None) -> Tensor:
        """Return the predictions of the module, which is given the codes of categories if it has an argument for them."""
        given: dict[str, Tensor | None] = {} if self._codes is None else {self._codes: categories}
        prediction: Tensor = self.module(numbers, **given)
        return prediction

    def fitted(self, scaling: Standardization) -> Mapping[str, Tensor]:
        """Return the parameters by the names that they have in the module."""
        return {name: parameter.detach() for name, parameter in self.module.named_parameters()}

    @property
    def draws(self) -> bool:
        """Whether the module draws random numbers, as far as it has been examined."""
        return self.habits.draws or self.habits.unseeded

    @property
    def alone_because(self) -> str | None:
        """Why its runs cannot be vmapped."""
        if self.habits.draws or self.habits.unseeded:
            return "its model draws random numbers"
        if self.habits.batch_matters:
            return "its model depends on the whole batch, as batch normalisation does"
        frozen = any(not parameter.requires_grad for parameter in self.parameters())
        return "some parameters of its model are not trained" if frozen else super().alone_because

    @property
    def batch_matters(self) -> bool:
        """Whether the module mixes the rows of a batch, or changes its buffers."""
        return self.habits.batch_matters

    def examine(self, inputs: tuple[Tensor, ...]) -> Iterator[str]:
        """Find out the habits of the module; yield the problems of its predictions, and of parameters without use."""
        try:
            with row_values.explained(self.target, "its forward pass"):
                self.habits = habits.probe(self, inputs, self.targets, "module.")
        except ConfigError as error:
            yield from error.problems
            return
        if self.habits.unused:
            yield (
                f"{self.target.shown} must use all of its parameters, got {', '.join(self.habits.unused[:3])} without a gradient; "
                "remove them, or set their requires_grad to False"
            )

    @property
    def remarks(self) -> Sequence[str]:
        """One sentence on the habits of the module, if it has any."""
        phrases = "; ".join(self.habits.phrases())
        return [f"{self.target.shown}: {phrases}"] if phrases else []


def wants_codes(config: c.CustomModel) -> bool:
    """Return whether the forward pass has an argument for the codes of categories."""
    return _codes(_kind(config)) is not None


def build(
    config: c.CustomModel,
    feature_names: Sequence[str],
    target_names: Sequence[str],
    generator: torch.Generator,
    cardinalities: Sequence[int] = (),
) -> Custom:
    """Return the user's module with start values drawn from `generator`, on the CPU and in float32 until it is cast.

    Raises `ConfigError` if the class cannot be used, or is too large.
    """
    kind, target = _kind(config), config.code
    filled = {
        "in_features": len(feature_names),
        "out_features": len(target_names),
        "cardinalities": list(cardinalities),
    }
    arguments: dict[str, Any] = c.plain(config)["kwargs"]
    problem = sizes.unfit(
        sizes.PARAMETER_BYTES * _count(kind, target, arguments, filled),
        "`model.kwargs`",
        "got a model",
        "use a smaller one",
    )
    if problem is not None:
        raise ConfigError(problem)
    # Every dtype of a run has the same start values.
    with default_dtype(torch.float32), torch.device("cpu"):
        # Modules draw from torch's global generator, whose state `models.base.build` restores.
        torch.default_generator.manual_seed(generator.initial_seed())
        module = imports.called(target, kind, arguments, filled, "model.kwargs")
        model = Custom(module, target, _codes(kind), len(feature_names), cardinalities)
        if any(is_lazy(parameter) for parameter in module.parameters()):
            rows = torch.zeros(2, len(feature_names))
            codes = torch.zeros(2, len(cardinalities), dtype=torch.int64) if cardinalities else None
            with imports.explained(target, "its first forward pass"), torch.no_grad():
                model(rows, codes)
    if problems := list(_problems(model)):
        raise ConfigError(problems)
    return model


def _kind(config: c.CustomModel) -> Any:
    return imports.load(config.code, nn.Module, MODULE)


def _codes(kind: Any) -> str | None:
    """Return the name of the argument of `forward` that takes codes: `categories`, or a second one that is required."""
    parameters = list(imports.parameters_of(kind.forward).values())[2:]  # without self and the numbers
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    chosen = [p for p in named if p.name == "categories"] or [
        p for p in named[:1] if p.default is inspect.Parameter.empty
    ]
    return chosen[0].name if chosen else None


def _count(kind: Any, target: Target, arguments: Mapping[str, Any], filled: Mapping[str, Any]) -> int:
    """Return the number of parameters, for which the module is built without storage; 0 for one that cannot be."""
    try:
        with default_dtype(torch.float32), torch.device("meta"):
            module = imports.called(target, kind, arguments, filled, "model.kwargs")
            return sum(parameter.numel() for parameter in module.parameters())
    except Exception:  # arguments that do not fit are reported when it is built; some modules need numbers to be built
        return 0


def _problems(model: Custom) -> Iterator[str]:
    """Yield what a module without a forward pass shows to be wrong."""
    parameters = dict(model.module.named_parameters())
    if not any(parameter.requires_grad for parameter in parameters.values()):
        yield f"{model.target.shown} must have parameters that are trained, got none; register them as torch.nn.Parameter"
    complex_ones = [name for name, value in parameters.items() if not value.is_floating_point()]
    if complex_ones:
        yield f"{model.target.shown} must have parameters of real numbers, got {', '.join(complex_ones)}; change them"
