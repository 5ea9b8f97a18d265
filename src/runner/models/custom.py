"""Models of the user's own: any `torch.nn.Module` whose forward pass maps numbers [rows, features] to predictions [rows, targets]."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from runner.compute import sizes
from runner.compute.precision import default_dtype
from runner.config import imports, trust
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
    """Return the user's module with start values drawn from `generator` in float32, in float64 on the CPU.

    Raises `ConfigError` if the class cannot be used, or is too large.
    """
    maker = _Maker(config.code, _kind(config), c.plain(config)["kwargs"], feature_names, target_names, cardinalities)
    return maker.model(generator)


def from_memory(config: c.MemoryModel, *columns: Any) -> Custom:
    """Raise `ConfigError`: the module of `model=memory` is not in the configuration."""
    raise ConfigError(
        f"`model` must not be memory, whose module ({config.target}) only Python code has; use model=custom with a class that can "
        "be imported, or give the module to runner.run or runner.load as model=…"
    )


def of_object(
    config: c.MemoryModel,
    feature_names: Sequence[str],
    target_names: Sequence[str],
    generator: torch.Generator,
    cardinalities: Sequence[int] = (),
    *,
    given: Any,
) -> Custom:
    """Return a model of what Python code gave: a copy of a module with its present values, or what a class or function returns.

    The other arguments, and the errors, are those of `build`.
    """
    target, kwargs = Target("model", config.target), c.plain(config)["kwargs"]
    if isinstance(given, nn.Module) and kwargs:
        raise ConfigError(
            f"`model.kwargs` must be {{}} for a module that is built already, got {kwargs}; pass its class"
        )
    return _Maker(target, given, kwargs, feature_names, target_names, cardinalities).model(generator)


def described(given: Any) -> str:
    """Return what Python code gave as a model, in words. Raises `ConfigError` for what can be none."""
    if isinstance(given, type):
        if not issubclass(given, nn.Module):
            raise ConfigError(f"`model` must be {MODULE}, got {_name(given)}; correct the class")
        return _name(given)
    if isinstance(given, nn.Module):
        return f"an instance of {_name(type(given))}"
    if not callable(given):
        remedy = f'use overrides=["model={given}"]' if isinstance(given, str) else "pass one of them"
        raise ConfigError(
            f"`model` must be a torch.nn.Module, its class, or a function that returns one, got {type(given).__name__}; {remedy}"
        )
    return _name(given)


def state_of_module(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of a `Custom` by the names of its module."""
    return {name.removeprefix("module."): value for name, value in state.items()}


def takes_codes(given: Any) -> bool:
    """Return whether a module or class takes the codes of categories; a function does if it has an argument `cardinalities`."""
    if isinstance(given, nn.Module):
        return _codes(type(given)) is not None
    if isinstance(given, type):
        return _codes(given) is not None
    return "cardinalities" in imports.parameters_of(given)


def importable(given: Any) -> Target | None:
    """Return the name by which a class can be imported again, in a program that trusts its package; None without one."""
    if not isinstance(given, type) or any(char in given.__qualname__ for char in ".<"):
        return None
    target = Target("model.target", _name(given))
    try:
        with trust.granted([target.package]):
            return target if imports.load(target, nn.Module, MODULE) is given else None
    except ConfigError:
        return None


def _name(given: Any) -> str:
    kind = given if hasattr(given, "__qualname__") else type(given)
    return f"{kind.__module__}:{kind.__qualname__}"


@dataclass(frozen=True, eq=False)
class _Maker:
    """How a module comes about, for these columns."""

    target: Target
    source: Any
    """The module, or the class or function that returns it."""
    arguments: dict[str, Any]
    feature_names: Sequence[str]
    target_names: Sequence[str]
    cardinalities: Sequence[int]

    def model(self, generator: torch.Generator) -> Custom:
        """Return the model, with start values drawn from `generator` unless it has some."""
        problem = sizes.unfit(
            sizes.PARAMETER_BYTES * self._count(), "`model.kwargs`", "got a model", "use a smaller one"
        )
        if problem is not None:
            raise ConfigError(problem)
        with default_dtype(torch.float32), torch.device("cpu"):
            # Modules draw from torch's global generator, whose state `models.base.build` restores.
            torch.default_generator.manual_seed(generator.initial_seed())
            module = self._module().cpu()
            model = Custom(module, self.target, _codes(type(module)), len(self.feature_names), self.cardinalities)
            if any(is_lazy(parameter) for parameter in module.parameters()):
                rows, counts = torch.zeros(2, len(self.feature_names)), len(self.cardinalities)
                codes = torch.zeros(2, counts, dtype=torch.int64) if counts else None
                with imports.explained(self.target, "its first forward pass"), torch.no_grad():
                    model(rows, codes)
        if problems := list(_problems(model, codes=bool(self.cardinalities))):
            raise ConfigError(problems)
        return model.double()

    def _module(self) -> nn.Module:
        if isinstance(self.source, nn.Module):
            with imports.explained(self.target, "its copy"):
                return copy.deepcopy(self.source)
        filled = {
            "in_features": len(self.feature_names),
            "out_features": len(self.target_names),
            "cardinalities": list(self.cardinalities),
        }
        module = imports.called(self.target, self.source, self.arguments, filled, "model.kwargs")
        if not isinstance(module, nn.Module):
            raise ConfigError(
                f"{self.target.shown} must return a torch.nn.Module, got {type(module).__name__}; return one"
            )
        # A function may return the same module again and again.
        return module if isinstance(self.source, type) else copy.deepcopy(module)

    def _count(self) -> int:
        """Return the number of parameters, for which the module is built without storage; 0 for one that cannot be."""
        if isinstance(self.source, nn.Module):
            return 0  # it is in memory
        try:
            with default_dtype(torch.float32), torch.device("meta"):
                return sum(parameter.numel() for parameter in self._module().parameters())
        except (
            Exception
        ):  # arguments that do not fit are reported when it is built; some modules need numbers to be built
            return 0


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


def _problems(model: Custom, codes: bool) -> Iterator[str]:
    """Yield what a module without a forward pass shows to be wrong. `codes` says whether there are codes for it."""
    if codes and model._codes is None:
        yield f"{model.target.shown} must have a forward pass with an argument `categories`, got none; add it"
    parameters = dict(model.module.named_parameters())
    if not any(parameter.requires_grad for parameter in parameters.values()):
        yield f"{model.target.shown} must have parameters that are trained, got none; register them as torch.nn.Parameter"
    complex_ones = [name for name, value in parameters.items() if not value.is_floating_point()]
    if complex_ones:
        yield f"{model.target.shown} must have parameters of real numbers, got {', '.join(complex_ones)}; change them"
