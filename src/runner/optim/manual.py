"""Manual updates: compute gradients, apply a rule, and write the result into the parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from runner.compute.dtensor import is_sharded, like, local, scattered
from runner.compute.precision import scalar_type
from runner.compute.transfer import upload
from runner.optim.base import Objective, State
from runner.optim.rules import Rule


class Manual:
    """Applies a pure update rule to live parameters, which may be sharded."""

    settled: Sequence[int] = ()

    def __init__(self, rule: Rule, parameters: Mapping[str, Tensor]) -> None:
        self._rule = rule
        self._names = list(parameters)
        self._wholes = list(parameters.values())
        self._sharded = any(is_sharded(parameter) for parameter in self._wholes)
        with torch.no_grad():
            self._parameters = [local(parameter) for parameter in self._wholes]
        self._slots = rule.init(self._parameters)
        self.rate_type: torch.dtype | None = scalar_type(self._parameters[0])
        self._in_place = False
        self._lr_value: Any = None
        self._lr: Any = None

    def step(self, objective: Objective, lr: Any) -> Tensor:
        """Update the parameters in place by the rule; return this process's share of the loss [] or [lanes] before it."""
        if lr is not self._lr_value:
            device = self._parameters[0].device
            rate = lr if isinstance(lr, Tensor) else upload(torch.tensor(lr, dtype=self.rate_type), device)
            self._lr_value, self._lr = lr, rate
        loss, gradients = objective.gradient()
        if gradients is None:
            return loss
        with torch.no_grad():
            if self._sharded:  # rules are elementwise, so each process updates only its own shard
                self._parameters = [local(parameter) for parameter in self._wholes]
                gradients = [local(gradient) for gradient in gradients]
            updated, slots = self._rule.step(self._parameters, gradients, self._slots, self._lr)
            torch._foreach_copy_(self._parameters, updated)
            if self._in_place:
                for slot, tensors in slots.items():
                    torch._foreach_copy_(self._slots[slot], tensors)
            else:
                self._slots = slots
        for parameter in self._wholes:
            parameter.grad = None
        return loss

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Update the slots in place from now on: graphs read and write the present ones."""
        self._in_place = True
        yield

    def state_dict(self) -> State:
        """Return the rule's slots by parameter name; sharded like the parameters."""
        return {
            name: {slot: like(tensors[i], self._wholes[i]) for slot, tensors in self._slots.items()}
            for i, name in enumerate(self._names)
        }

    def load_state_dict(self, state: State) -> None:
        """Restore slots from a saved state, casting and sharding as needed; missing slots start as in a new run."""
        fresh = self._rule.init(self._parameters)
        self._slots = {
            slot: [
                local(scattered(state[name][slot], whole)).to(device=zero.device, dtype=zero.dtype, copy=True)
                if slot in state.get(name, {})
                else zero
                for name, whole, zero in zip(self._names, self._wholes, zeros, strict=True)
            ]
            for slot, zeros in fresh.items()
        }
