"""Update rules: pure and elementwise, `init(params) → state` and `step(params, grads, state, lr) → params, state`.

Hyperparameters are tensors: 0-d for one run, [lanes, 1, …] for vmapped runs, where they broadcast against the stacked
parameters. The learning rate has the parameters' dtype. The others are float64 where the device supports it, so that
1 − β₂ᵗ keeps its digits. A 0-d tensor does not promote a parameter with dimensions; in every other case the
hyperparameter is cast to the parameter's dtype first.
Operations are in the order of torch.optim's for-loop implementations.
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
"""Slot name → one tensor per parameter, in the order of the parameters."""


class Rule(Protocol):
    """Pure function from parameters and gradients to new parameters, with explicit state."""

    def init(self, params: Sequence[Tensor]) -> Slots:
        """Return the state before the first step."""

    def step(
        self, params: Sequence[Tensor], grads: Sequence[Tensor], state: Slots, lr: Tensor
    ) -> tuple[list[Tensor], Slots]:
        """Return new parameters and new state without changing any argument. `lr` is [] or [lanes, 1, …]."""


def _with_l2(params: Sequence[Tensor], grads: Sequence[Tensor], weight_decay: Tensor | None) -> Sequence[Tensor]:
    """Return the gradients of the loss plus weight_decay/2·‖p‖²."""
    if weight_decay is None:
        return grads
    return [torch.addcmul(g, p, _cast(g, weight_decay)) for p, g in zip(params, grads, strict=True)]


def _cast(tensor: Tensor, number: Tensor) -> Tensor:
    """Return a hyperparameter in the dtype of the tensor that it is combined with, if it would promote that tensor."""
    return number.to(tensor.dtype) if number.dim() or not tensor.dim() else number


@dataclass(frozen=True)
class SgdRule:
    """Gradient descent: p ← p − lr·(g + weight_decay·p)."""

    weight_decay: Tensor | None

    def init(self, params: Sequence[Tensor]) -> Slots:
        """Return no slots: the rule has no state."""
        return {}

    def step(
        self, params: Sequence[Tensor], grads: Sequence[Tensor], state: Slots, lr: Tensor
    ) -> tuple[list[Tensor], Slots]:
        """Return updated parameters and the empty state."""
        grads = _with_l2(params, grads, self.weight_decay)
        # addcmul instead of p − lr·g rounds once less and gives the bits of torch.optim.SGD.
        return [torch.addcmul(p, g, lr, value=-1) for p, g in zip(params, grads, strict=True)], state


@dataclass(frozen=True)
class MomentumRule:
    """Gradient descent with momentum (Polyak, 1964): v ← momentum·v + g; p ← p − lr·v, with v = 0 before the first step."""

    momentum: Tensor
    weight_decay: Tensor | None

    def init(self, params: Sequence[Tensor]) -> Slots:
        """Return a momentum buffer of zeros for each parameter."""
        return {"momentum_buffer": [torch.zeros_like(p) for p in params]}

    def step(
        self, params: Sequence[Tensor], grads: Sequence[Tensor], state: Slots, lr: Tensor
    ) -> tuple[list[Tensor], Slots]:
        """Return updated parameters and momentum buffers."""
        grads = _with_l2(params, grads, self.weight_decay)
        buffers = [(v * _cast(v, self.momentum)).add_(g) for v, g in zip(state["momentum_buffer"], grads, strict=True)]
        return [torch.addcmul(p, v, lr, value=-1) for p, v in zip(params, buffers, strict=True)], {
            "momentum_buffer": buffers
        }


@dataclass(frozen=True)
class AdamRule:
    """Adam and AdamW.

    Kingma and Ba, "Adam: A Method for Stochastic Optimization" (2015), algorithm 1, with the l2 penalty in the gradient.
    If `decoupled`, Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019), algorithm 2.
    """

    beta1: Tensor
    beta2: Tensor
    eps: Tensor
    weight_decay: Tensor | None
    decoupled: bool

    def init(self, params: Sequence[Tensor]) -> Slots:
        """Return a step count of 0 and two moments of zeros for each parameter."""
        return {
            "step": [torch.zeros((), dtype=torch.float32, device=p.device) for p in params],
            "exp_avg": [torch.zeros_like(p) for p in params],
            "exp_avg_sq": [torch.zeros_like(p) for p in params],
        }

    def step(
        self, params: Sequence[Tensor], grads: Sequence[Tensor], state: Slots, lr: Tensor
    ) -> tuple[list[Tensor], Slots]:
        """Return updated parameters, moments and step count."""
        if self.decoupled and self.weight_decay is not None:
            shrink = 1 - lr * self.weight_decay
            params = [p * _cast(p, shrink) for p in params]
        else:
            grads = _with_l2(params, grads, self.weight_decay)
        count = state["step"][0] + 1
        # On the CPU a power with a number is rounded differently from one with a tensor, and torch.optim uses numbers.
        taken = count if count.device.type != "cpu" else float(count)
        rate = -lr / (1 - self.beta1**taken)
        root = (1 - self.beta2**taken).sqrt()
        first = [torch.lerp(m, g, (1 - self.beta1).to(m.dtype)) for m, g in zip(state["exp_avg"], grads, strict=True)]
        second = [
            (v * _cast(v, self.beta2)).addcmul_(g * _cast(g, 1 - self.beta2), g)
            for v, g in zip(state["exp_avg_sq"], grads, strict=True)
        ]
        new = [
            torch.addcdiv(p, m * _cast(m, rate), (v.sqrt() / _cast(v, root)).add_(_cast(v, self.eps)))
            for p, m, v in zip(params, first, second, strict=True)
        ]
        return new, {"step": [count] * len(new), "exp_avg": first, "exp_avg_sq": second}


Numbers = Callable[[Iterable[float]], Tensor]
"""Function from the values of one hyperparameter, one per run, to a tensor: 0-d for one run, [lanes, 1] for several."""


def build(configs: Sequence[c.OptimizerConfig], device: torch.device) -> Rule:
    """Return the configured rule for runs that differ only in hyperparameters, with its tensors on `device`."""

    def numbers(values: Iterable[float]) -> Tensor:
        tensor = torch.tensor(list(values), dtype=widest(device), device=device)
        return tensor.reshape(()) if len(tensor) == 1 else tensor.unsqueeze(1)

    assert configs[0].rule is not None
    rule: Rule = pkgutil.resolve_name(configs[0].rule)(configs, numbers)
    return rule


def sgd(configs: Sequence[c.Sgd], numbers: Numbers) -> Rule:
    """Return the rule of `optimizer=sgd`."""
    return SgdRule(_weight_decay(configs, numbers))


def momentum(configs: Sequence[c.Momentum], numbers: Numbers) -> Rule:
    """Return the rule of `optimizer=momentum`."""
    return MomentumRule(numbers(k.momentum for k in configs), _weight_decay(configs, numbers))


def adam(configs: Sequence[c.Adam | c.AdamW], numbers: Numbers, decoupled: bool = False) -> Rule:
    """Return the rule of `optimizer=adam`, or with `decoupled` weight decay that of AdamW."""
    beta1, beta2 = (numbers(k.betas[i] for k in configs) for i in (0, 1))
    return AdamRule(beta1, beta2, numbers(k.eps for k in configs), _weight_decay(configs, numbers), decoupled)


def adamw(configs: Sequence[c.AdamW], numbers: Numbers) -> Rule:
    """Return the rule of `optimizer=adamw`."""
    return adam(configs, numbers, decoupled=True)


def _weight_decay(configs: Sequence[Any], numbers: Numbers) -> Tensor | None:
    return numbers(k.weight_decay for k in configs) if any(k.weight_decay for k in configs) else None
