"""Optimizers of the user's own: a subclass of `torch.optim.Optimizer`, or an update rule, `init` and `step`, as in `runner.optim.rules`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from runner.config import imports
from runner.config import schema as c
from runner.errors import ConfigError
from runner.optim.base import Optimizer, State
from runner.optim.rules import Numbers, Rule
from runner.optim.torch_optim import Parameters, TorchOptimizer

WHAT = "a subclass of torch.optim.Optimizer, or a class of an update rule with `init` and `step`"
KWARGS = "optimizer.kwargs"

_GROUP = "group"


class UsersOptimizer(TorchOptimizer):
    """An optimizer of the user's own. What it changes in its parameter groups is a part of its state."""

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> None:
        super().__init__(optimizer, parameters)
        self._built = [_options(group) for group in optimizer.param_groups]

    def state_dict(self) -> State:
        """Return torch's state by parameter name; the first one has what changed in the groups as well."""
        state = super().state_dict()
        changed = {
            f"{_GROUP}{i}.{name}": value
            for i, (group, built) in enumerate(zip(self._optimizer.param_groups, self._built, strict=True))
            for name, value in _options(group).items()
            if name not in built or not _same(value, built[name])
        }
        first = self._names[0]
        return {**state, first: {**state.get(first, {}), **changed}} if changed else state

    def load_state_dict(self, state: State) -> None:
        """Load torch's state and the entries of the groups."""
        own = {name: {k: v for k, v in slots.items() if not k.startswith(_GROUP)} for name, slots in state.items()}
        super().load_state_dict(own)
        changed = {k: v for k, v in state.get(self._names[0], {}).items() if k.startswith(_GROUP)}
        for i, (group, built) in enumerate(zip(self._optimizer.param_groups, self._built, strict=True)):
            prefix = f"{_GROUP}{i}."
            group.update(built)
            group.update({k.removeprefix(prefix): v for k, v in changed.items() if k.startswith(prefix)})


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return copies of the entries of a parameter group that are its own: the learning rate is that of the schedule."""
    return {
        name: value.clone() if isinstance(value, Tensor) else value
        for name, value in group.items()
        if name not in ("params", "lr")
    }


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)


def build(config: c.CustomOptimizer, parameters: Parameters) -> Optimizer:
    """Return the user's optimizer of torch for these parameters. Raises `ConfigError` for a class that cannot be used."""
    kind, target = _kind(config), config.code
    if problems := update_problems(config, "optimizer") or list(_problems(config, kind)):
        raise ConfigError(problems)
    tensors, arguments = list(parameters.values()), c.plain(config)["kwargs"]
    optimizer = imports.called(target, kind, arguments, {"lr": config.lr}, KWARGS, tensors)
    if any("lr" not in group for group in optimizer.param_groups):
        raise ConfigError(f"{target.shown} must have an argument lr, which `optimizer.lr` and `schedule` set; add it")
    return UsersOptimizer(optimizer, parameters)


def rule(configs: Sequence[c.CustomOptimizer], numbers: Numbers) -> Rule:
    """Return the user's update rule, of runs that differ in the learning rate only. Raises `ConfigError` without one."""
    config = configs[0]
    kind, target = _kind(config), config.code
    if problems := update_problems(config, "manual"):
        raise ConfigError(problems)
    made: Rule = imports.called(target, kind, c.plain(config)["kwargs"], {}, KWARGS)
    return made


def update_problems(config: c.CustomOptimizer, update: str) -> list[str]:
    """Return the problem of a class that is not of the kind that `update` needs. Raises `ConfigError` for one of neither kind."""
    shown = config.code.shown
    if is_rule(config) and update == "optimizer":
        return [
            f"`update` must be manual with {shown}, an update rule, which is not one of torch.optim; use update=manual"
        ]
    if not is_rule(config) and update == "manual":
        return [
            f"`update` must be optimizer with {shown}, a subclass of torch.optim.Optimizer, which has no manual update "
            "rule; use update=optimizer"
        ]
    return []


def is_rule(config: c.CustomOptimizer) -> bool:
    """Return whether the class is an update rule, and not an optimizer of torch."""
    return not issubclass(_kind(config), torch.optim.Optimizer)


def _kind(config: c.CustomOptimizer) -> Any:
    """Return the class. Raises `ConfigError` unless it is of one of the two kinds."""
    target = config.code
    kind = imports.load(target, object, WHAT)
    if issubclass(kind, torch.optim.Optimizer):
        return kind
    if lacking := [name for name in ("init", "step") if not callable(getattr(kind, name, None))]:
        raise ConfigError(
            f"{target.shown} must be {WHAT}, got a class without {' and '.join(lacking)}; correct the class"
        )
    return kind


def _problems(config: c.CustomOptimizer, kind: Any) -> Iterator[str]:
    """Yield the problems of an optimizer of torch that cannot be called as all are."""
    target = config.code
    needed = [
        name
        for name, parameter in list(imports.parameters_of(kind.step).items())[1:]  # without self
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        yield (
            f"{target.shown} must take a step after one gradient, but its step requires {', '.join(needed)}; "
            "use another one, or optimizer=lbfgs"
        )
    if "lr" in config.kwargs:
        yield f"`{KWARGS}.lr` must not be given, since `optimizer.lr` is the learning rate; use optimizer.lr={config.kwargs['lr']}"
