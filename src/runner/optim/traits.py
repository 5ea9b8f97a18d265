"""What a run has to know of its optimizer before it is built: whether runs can share its steps, and processes its parameters.

Of a class of the user's own this is found out by steps on a few small tensors, not assumed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from runner.compute.rng import preserve_rng_state
from runner.config import imports
from runner.config import schema as c
from runner.config.imports import Target
from runner.config.validation import shown
from runner.errors import ConfigError
from runner.optim import custom
from runner.optim.base import Optimizer, State
from runner.optim.manual import Manual
from runner.optim.rules import Rule, Slots
from runner.optim.saved_slots import unsaveable

PROBED_SIZE = 3
"""Largest dimension of the tensors on which a class is tried."""
PROBED_RATES = (0.1, 0.01)
"""Learning rates of the steps on them."""
PROBED_STEPS = 3
"""Steps on them; the state is saved and loaded before the last one."""
CLOSE = 1e-4
"""Relative difference below which two answers are the same up to rounding in float32."""

Make = Callable[[Mapping[str, Tensor]], Optimizer]
"""Function from parameters by name to their optimizer."""


@dataclass(frozen=True)
class Traits:
    """Traits on which sweeps and strategies depend."""

    alone_because: str | None = None
    """Why its runs cannot be vmapped, as the end of a sentence; None if they can."""
    elementwise: bool = True
    """Whether the update of a number depends on nothing but that number, its gradient and its state."""


def examine(config: c.OptimizerConfig, update: str, parameters: Iterable[Tensor]) -> Traits:
    """Return the traits of an optimizer. A class of the user's own takes steps on small copies of some of the parameters.

    Raises `ConfigError` for one that does not fit `update`, fails, draws random numbers, or cannot go on from its saved state.
    """
    if not isinstance(config, c.CustomOptimizer):
        return Traits(f"{config.name} searches along a line of its own" if config.evaluates_repeatedly else None)
    target, tensors = config.code, _few(parameters)
    make = _made_by(config, update)
    make(_named(tensors))  # its own errors are not those of a step
    with imports.explained(target, "a step on small parameters"), preserve_rng_state(True, torch.device("cpu")):
        expected = _stepped(target, make, tensors)
        alone = _alone_because(make, tensors) if update == "manual" else "its torch.optim.Optimizer trains one run"
        return Traits(alone, _is_elementwise(make, tensors, expected))


def _made_by(config: c.CustomOptimizer, update: str) -> Make:
    if update != "manual":
        return lambda parameters: custom.build(config, parameters)
    rule = custom.rule([config], lambda values: torch.tensor(list(values)))
    return lambda parameters: Manual(_Checked(rule, config.code), parameters)


def _stepped(target: Target, make: Make, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the tensors after all steps. Raises `ConfigError` where a resumed run would not have the same."""
    before = torch.default_generator.get_state()
    straight = _Trial(make, tensors)
    straight.take(range(PROBED_STEPS - 1))
    state = straight.optimizer.state_dict()
    if problems := list(_unsaved(target, state)):
        raise ConfigError(problems)
    resumed = _Trial(make, straight.tensors)
    resumed.optimizer.load_state_dict(copy.deepcopy(state))
    for trial in (straight, resumed):
        trial.take([PROBED_STEPS - 1])
    if not torch.equal(torch.default_generator.get_state(), before):
        raise ConfigError(
            f"{target.shown} must not draw random numbers, which a resumed run and other processes do not repeat; use another one"
        )
    if not all(map(torch.equal, straight.tensors, resumed.tensors)):
        raise ConfigError(
            f"{target.shown} must go on in the same way after its state was saved and loaded, but does not; "
            "keep all that a step needs in the state, or in param_groups"
        )
    return straight.tensors


def _unsaved(target: Target, state: State) -> Iterator[str]:
    """Yield a sentence for each slot that a checkpoint cannot have."""
    kinds = {slot: what for slots in state.values() for slot, value in slots.items() if (what := unsaveable(value))}
    for slot, what in kinds.items():
        yield f"{target.shown} must have a state of tensors and numbers, which are saved, got {what} in {slot!r}; convert it"


def _is_elementwise(make: Make, tensors: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Return whether every number by itself goes where it went among others."""
    trial = _Trial(make, _entries(tensors))
    try:
        trial.take(range(PROBED_STEPS), lambda step: _entries(_gradients(tensors, step)))
    except Exception:  # it may need more than one number
        return False
    return _close(trial.tensors, _entries(expected))


def _alone_because(make: Make, tensors: Sequence[Tensor]) -> str | None:
    """Return why runs of an update rule cannot be vmapped: stacked ones must go where each goes by itself."""
    singles = [_Trial(make, tensors, rate) for rate in PROBED_RATES]
    lanes = torch.stack([torch.cat([tensor.flatten() for tensor in tensors])] * len(PROBED_RATES))
    stack = _Trial(make, [lanes], torch.tensor(PROBED_RATES).unsqueeze(1))
    for single in singles:
        single.take(range(PROBED_STEPS))
    try:
        stack.take(
            range(PROBED_STEPS),
            lambda step: [torch.cat([g.flatten() for g in _gradients(tensors, step)]).expand_as(lanes).clone()],
        )
    except Exception as error:
        return f"its update rule does not take several runs at once ({imports.described(error)[:200]})"
    rows = [torch.cat([tensor.flatten() for tensor in single.tensors]) for single in singles]
    if not _close(stack.tensors, [torch.stack(rows)]):
        return "its update rule has another answer for several runs at once, as one that is not elementwise"
    return None


class _Trial:
    """An optimizer that takes steps on copies of tensors."""

    def __init__(self, make: Make, tensors: Sequence[Tensor], rates: float | Tensor = PROBED_RATES[0]) -> None:
        self.rates = rates
        self.tensors = [torch.nn.Parameter(tensor.detach().clone()) for tensor in tensors]
        self.optimizer = make(_named(self.tensors))

    def take(self, steps: Iterable[int], gradients: Callable[[int], Sequence[Tensor]] | None = None) -> None:
        """Take steps with gradients of their own, or with these."""
        for step in steps:
            given = _gradients(self.tensors, step) if gradients is None else gradients(step)
            for tensor, gradient in zip(self.tensors, given, strict=True):
                tensor.grad = gradient
            objective: Any = _Given(given)
            self.optimizer.step(objective, self.rates)


class _Given:
    """An objective whose gradients are given."""

    def __init__(self, gradients: Sequence[Tensor]) -> None:
        self._gradients = gradients

    def gradient(self) -> tuple[Tensor, Sequence[Tensor]]:
        """Return a loss of 0, and the gradients."""
        return torch.zeros(()), self._gradients


class _Checked:
    """An update rule whose results are checked. Raises `ConfigError` for those that are none."""

    def __init__(self, rule: Rule, target: Target) -> None:
        self._rule, self._target = rule, target

    def init(self, params: Sequence[Tensor]) -> Slots:
        """Return the state that the rule begins with."""
        state = self._rule.init(params)
        self._check_state("init", state, params)
        return state

    def step(
        self, params: Sequence[Tensor], grads: Sequence[Tensor], state: Slots, lr: Tensor
    ) -> tuple[list[Tensor], Slots]:
        """Return the new parameters and the new state."""
        result: Any = self._rule.step(params, grads, state, lr)
        if not (isinstance(result, tuple) and len(result) == 2):
            self._refuse("return the new parameters and the new state from step", f"a {type(result).__name__}")
        updated, slots = result
        if not isinstance(updated, (list, tuple)) or list(map(_shape, updated)) != list(map(_shape, params)):
            self._refuse("return one parameter for each from step, of its shape", _described(updated))
        self._check_state("step", slots, params)
        if slots.keys() != state.keys():
            self._refuse(f"return the slots of init from step, {_names(state)}", _names(slots))
        return updated, slots

    def _check_state(self, method: str, state: Any, params: Sequence[Tensor]) -> None:
        if not isinstance(state, Mapping) or not all(isinstance(slot, str) for slot in state):
            self._refuse(f"return a mapping from slots to lists of tensors from {method}", f"a {type(state).__name__}")
        for slot, tensors in state.items():
            wanted = [()] * len(params) if slot == "step" else list(map(_shape, params))
            if not isinstance(tensors, (list, tuple)) or list(map(_shape, tensors)) != wanted:
                what = (
                    "numbers []"
                    if slot == "step"
                    else "one tensor for each parameter, of its shape (a count of steps is called step)"
                )
                self._refuse(f"have {what} in the slot {slot!r} of {method}", _described(tensors))

    def _refuse(self, wanted: str, got: str) -> None:
        raise ConfigError(f"{self._target.shown} must {wanted}, got {got}; correct the class")


def _shape(value: Any) -> tuple[int, ...] | None:
    """Return the shape of a tensor of real numbers; None for anything else."""
    return tuple(value.shape) if isinstance(value, Tensor) and value.is_floating_point() else None


def _described(values: Any) -> str:
    if isinstance(values, (list, tuple)) and all(isinstance(value, Tensor) for value in values):
        return f"{[list(value.shape) for value in values]}"
    return shown(values)


def _names(slots: Mapping[str, Any]) -> str:
    return ", ".join(slots) or "none"


def _few(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return a small copy of one parameter of each number of dimensions, in float32 on the CPU."""
    chosen = {parameter.dim(): parameter.detach() for parameter in parameters}
    return [p[tuple(slice(PROBED_SIZE) for _ in p.shape)].cpu().float().clone() for p in chosen.values()]


def _named(tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"parameter {i}": tensor for i, tensor in enumerate(tensors, start=1)}


def _entries(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return each number by itself, with as many dimensions as its tensor."""
    return [entry.reshape([1] * tensor.dim()) for tensor in tensors for entry in tensor.detach().flatten()]


def _gradients(tensors: Sequence[Tensor], step: int) -> list[Tensor]:
    """Return gradients of a step, whose numbers are all different."""
    return [
        torch.sin(torch.arange(tensor.numel(), dtype=tensor.dtype) * (i + 1) + step + 1).reshape(tensor.shape)
        for i, tensor in enumerate(tensors)
    ]


def _close(ones: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=CLOSE, atol=CLOSE, equal_nan=True) for a, b in zip(ones, others, strict=True))
