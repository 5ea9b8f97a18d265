"""Check the saved state of an optimizer before it is loaded: its parameters, its slots, and their shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from runner.config import schema as c
from runner.config.validation import cut
from runner.optim import custom, rules

Saved = Mapping[str, Mapping[str, Any]]


def problems(config: c.OptimizerConfig, parameters: Mapping[str, Tensor], saved: Saved) -> list[str]:
    """Return a sentence for each part of a saved state that is not of this optimizer and these parameters [any device]."""
    unknown = [name for name in saved if name not in parameters]
    if unknown:
        return [f"`optimizer` must have the parameters of the model, got {cut(', '.join(unknown))}"]
    if isinstance(config, c.CustomOptimizer) and not custom.is_rule(config):
        odd = {slot: value for slots in saved.values() for slot, value in slots.items() if unsaveable(value)}
        return [f"`optimizer` must have tensors and numbers, got {described(v)} in {slot}" for slot, v in odd.items()]
    if config.rule is not None:
        return _of_rule(config, parameters, saved)
    sizes = {1, *(p.numel() for p in parameters.values()), sum(p.numel() for p in parameters.values())}
    found = [_odd_slots(config, name, slots, sizes) for name, slots in saved.items()]
    if config.least_squares and len({tuple(sorted(slots)) for slots in saved.values()}) > 1:
        found.append("`optimizer` must have the same values for every parameter")
    return list(filter(None, found))


def _of_rule(config: c.OptimizerConfig, parameters: Mapping[str, Tensor], saved: Saved) -> list[str]:
    """Compare with the slots that the rule begins with. A run by torch.optim has none before its first step."""
    fresh = rules.build([config], torch.device("cpu")).init(
        [torch.empty_like(p, device="meta") for p in parameters.values()]
    )
    found = []
    for i, name in enumerate(parameters):
        slots = saved.get(name, {})
        if slots and slots.keys() != fresh.keys():
            found.append(
                f"`optimizer.{name}` must have {_listed(sorted(fresh))} for optimizer={config.name}, got {_listed(sorted(slots))}"
            )
            continue
        for slot, value in slots.items():
            shape = fresh[slot][i].shape
            if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape != shape:
                found.append(
                    f"`optimizer.{name}.{slot}` must be a floating-point tensor {list(shape)}, got {described(value)}"
                )
    return found


def _odd_slots(config: c.OptimizerConfig, name: str, slots: Mapping[str, Any], sizes: set[int]) -> str | None:
    """Return the problem of a parameter's slots of an optimizer without a rule, or None."""
    allowed = config.slots
    if allowed is not None and not slots.keys() <= {*allowed}:
        return f"`optimizer.{name}` must have {_listed(allowed)} for optimizer={config.name}, got {_listed(sorted(map(str, slots)))}"
    for slot, value in slots.items():
        if not all(_fits(item, sizes) for item in _items(value)):
            return f"`optimizer.{name}.{slot}` must have numbers and tensors of the parameters' sizes, got {described(value)}"
    return None


def _items(value: Any) -> Iterator[Any]:
    """Yield the entries of a list, as L-BFGS keeps its history, or the value itself."""
    yield from value if isinstance(value, list) else [value]


def _fits(value: Any, sizes: set[int]) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() and value.numel() in sizes
    return value is None or isinstance(value, (int, float))


def unsaveable(value: Any) -> str | None:
    """Return what a value of a state is that a checkpoint cannot have; None for tensors, numbers, texts and lists of them."""
    if isinstance(value, (list, tuple)):
        return next(filter(None, map(unsaveable, value)), None)
    if value is None or type(value) in (bool, int, float, str) or isinstance(value, Tensor):
        return None
    return f"a {type(value).__name__}"


def described(value: Any) -> str:
    """Return dtype and shape of a tensor, or the type of any other value."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return f"a {type(value).__name__}"


def _listed(names: Sequence[str]) -> str:
    return cut(", ".join(names)) or "nothing"
