"""Update rules: pure and elementwise, `init(params) → state` and `step(params, grads, state, lr) → params, state`.

Hyperparameters are tensors: 0-d for one run; for runs side by side [lanes, 1, …], which broadcast against the stacked
parameters. The learning rate comes in the parameters' type. The others are kept in float64, where the device has it, so that
1 − β₂ᵗ keeps its digits: a 0-d tensor does not widen the parameters; one with lanes, or beside a single number, is brought to
their type where they meet.
The order of operations is that of torch.optim's for-loop versions.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from runner.compute.precision import widest
from runner.config import schema as c

Slots = dict[str, list[Tensor]]
"""Slot name → one tensor a parameter, in the order of the parameters."""


class Rule(Protocol):
    """How parameters follow from gradients."""

    def init(self, params: Sequence[Tensor]) -> Slots:
        """The state before the first step."""

    def step(
        self, params: Sequence[Tensor], grads: Sequence[Tensor], state: Slots, lr: Tensor
    ) -> tuple[list[Tensor], Slots]:
        """New parameters and new state; nothing that is given is changed. `lr` is [] or [lanes, 1, …]."""


def _decayed(params: Sequence[Tensor], grads: Sequence[Tensor], weight_decay: Tensor | None) -> Sequence[Tensor]:
    """Gradients of the loss with weight_decay/2·‖p‖² added."""
    if weight_decay is None:
        return grads
    return [torch.addcmul(g, p, _beside(g, weight_decay)) for p, g in zip(params, grads, strict=True)]


def _beside(tensor: Tensor, number: Tensor) -> Tensor:
    """A hyperparameter in the type of the tensor that it meets."""
    return number.to(tensor.dtype) if number.dim() or not tensor.dim() else number


@dataclass(frozen=True)
class SgdRule:
    """p ← p − lr·(g + weight_decay·p)."""

    weight_decay: Tensor | None

    def init(self, params: Sequence[Tensor]) -> Slots:
        return {}

    def step(
        self, params: Sequence[Tensor], grads: Sequence[Tensor], state: Slots, lr: Tensor
    ) -> tuple[list[Tensor], Slots]:
        grads = _decayed(params, grads, self.weight_decay)
        # Not p − lr·g: one rounding less, and the bits of torch.optim.SGD.
        return [torch.addcmul(p, g, lr, value=-1) for p, g in zip(params, grads, strict=True)], state


@dataclass(frozen=True)
class MomentumRule:
    """v ← momentum·v + g; p ← p − lr·v. At the first step v = g, which v = 0 before it gives as well."""

    momentum: Tensor
    weight_decay: Tensor | None

    def init(self, params: Sequence[Tensor]) -> Slots:
        return {"momentum_buffer": [torch.zeros_like(p) for p in params]}

    def step(
        self, params: Sequence[Tensor], grads: Sequence[Tensor], state: Slots, lr: Tensor
    ) -> tuple[list[Tensor], Slots]:
        grads = _decayed(params, grads, self.weight_decay)
        buffers = [
            (v * _beside(v, self.momentum)).add_(g) for v, g in zip(state["momentum_buffer"], grads, strict=True)
        ]
        return [torch.addcmul(p, v, lr, value=-1) for p, v in zip(params, buffers, strict=True)], {
            "momentum_buffer": buffers
        }


@dataclass(frozen=True)
class AdamRule:
    """Kingma and Ba (2015), algorithm 1, with l2 in the gradient; or, decoupled, Loshchilov and Hutter (2019), algorithm 2."""

    beta1: Tensor
    beta2: Tensor
    eps: Tensor
    weight_decay: Tensor | None
    decoupled: bool

    def init(self, params: Sequence[Tensor]) -> Slots:
        return {
            "step": [torch.zeros((), dtype=torch.float32) for _ in params],
            "exp_avg": [torch.zeros_like(p) for p in params],
            "exp_avg_sq": [torch.zeros_like(p) for p in params],
        }

    def step(
        self, params: Sequence[Tensor], grads: Sequence[Tensor], state: Slots, lr: Tensor
    ) -> tuple[list[Tensor], Slots]:
        if self.decoupled and self.weight_decay is not None:
            shrink = 1 - lr * self.weight_decay
            params = [p * _beside(p, shrink) for p in params]
        else:
            grads = _decayed(params, grads, self.weight_decay)
        count = state["step"][0] + 1
        taken = float(count)  # the count lives on the CPU: reading it does not wait for the device
        rate = -lr / (1 - self.beta1**taken)
        root = (1 - self.beta2**taken).sqrt()
        first = [torch.lerp(m, g, (1 - self.beta1).to(m.dtype)) for m, g in zip(state["exp_avg"], grads, strict=True)]
        second = [
            (v * _beside(v, self.beta2)).addcmul_(g * _beside(g, 1 - self.beta2), g)
            for v, g in zip(state["exp_avg_sq"], grads, strict=True)
        ]
        new = [
            torch.addcdiv(p, m * _beside(m, rate), (v.sqrt() / _beside(v, root)).add_(_beside(v, self.eps)))
            for p, m, v in zip(params, first, second, strict=True)
        ]
        return new, {"step": [count] * len(new), "exp_avg": first, "exp_avg_sq": second}


Numbers = Callable[[Iterable[float]], Tensor]
"""Values of one hyperparameter, one a run → its tensor on the device: 0-d for one run, [lanes, 1] for several."""


def build(configs: Sequence[c.OptimizerConfig], device: torch.device) -> Rule:
    """The rule that was chosen, for runs that differ in its hyperparameters alone."""

    def numbers(values: Iterable[float]) -> Tensor:
        tensor = torch.tensor(list(values), dtype=widest(device), device=device)
        return tensor.reshape(()) if len(tensor) == 1 else tensor.unsqueeze(1)

    assert configs[0].rule is not None
    rule: Rule = pkgutil.resolve_name(configs[0].rule)(configs, numbers)
    return rule


def sgd(configs: Sequence[c.Sgd], numbers: Numbers) -> Rule:
    """Gradient descent."""
    return SgdRule(_weight_decay(configs, numbers))


def momentum(configs: Sequence[c.Momentum], numbers: Numbers) -> Rule:
    """Gradient descent with momentum."""
    return MomentumRule(numbers(k.momentum for k in configs), _weight_decay(configs, numbers))


def adam(configs: Sequence[c.Adam | c.AdamW], numbers: Numbers, decoupled: bool = False) -> Rule:
    """Adam; with `decoupled` weight decay that of AdamW."""
    beta1, beta2 = (numbers(k.betas[i] for k in configs) for i in (0, 1))
    return AdamRule(beta1, beta2, numbers(k.eps for k in configs), _weight_decay(configs, numbers), decoupled)


def adamw(configs: Sequence[c.AdamW], numbers: Numbers) -> Rule:
    """AdamW."""
    return adam(configs, numbers, decoupled=True)


def _weight_decay(configs: Sequence[Any], numbers: Numbers) -> Tensor | None:
    return numbers(k.weight_decay for k in configs) if any(k.weight_decay for k in configs) else None
