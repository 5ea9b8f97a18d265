"""Optimizers and update rules of the laboratory, and what is wrong with some."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


class Lion(torch.optim.Optimizer):
    """Chen et al., "Symbolic discovery of optimization algorithms" (2023), algorithm 2."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                if not self.state[p]:
                    self.state[p]["exp_avg"] = torch.zeros_like(p)
                average = self.state[p]["exp_avg"]
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(torch.sign(average * first + p.grad * (1 - first)) * group["lr"])
                average.mul_(second).add_(p.grad * (1 - second))


class LionRule:
    """The same as an update rule."""

    def __init__(self, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0):
        self.betas, self.weight_decay = betas, weight_decay

    def init(self, params: list[Tensor]) -> dict[str, list[Tensor]]:
        return {"exp_avg": [torch.zeros_like(p) for p in params]}

    def step(self, params: Any, grads: Any, state: Any, lr: Tensor) -> Any:
        first, second = self.betas
        averages = state["exp_avg"]
        new = [
            p * (1 - lr * self.weight_decay) - torch.sign(m * first + g * (1 - first)) * lr
            for p, g, m in zip(params, grads, averages, strict=True)
        ]
        return new, {"exp_avg": [m * second + g * (1 - second) for m, g in zip(averages, grads, strict=True)]}


class Counting(Lion):
    """Keeps a number in its group, as Prodigy does: the steps become shorter."""

    def __init__(self, params: Any, lr: float):
        super().__init__(params, lr)
        self.param_groups[0]["k"] = 0

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        group = self.param_groups[0]
        group["k"] += 1
        lr, group["lr"] = group["lr"], group["lr"] / group["k"]
        super().step()
        group["lr"] = lr


class Normed(torch.optim.Optimizer):
    """Steps of the length of the learning rate, for each parameter: not elementwise."""

    def __init__(self, params: Any, lr: float):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad / (p.grad.norm() + 1e-12) * group["lr"])


class NormedRule:
    """The same as an update rule."""

    def init(self, params: list[Tensor]) -> dict[str, list[Tensor]]:
        return {}

    def step(self, params: Any, grads: Any, state: Any, lr: Tensor) -> Any:
        return [p - g / (g.norm() + 1e-12) * lr for p, g in zip(params, grads, strict=True)], state


# ---------------------------------------------------------------------------------------------------------- bad ones


class Closure(Lion):
    def step(self, closure: Any) -> None:  # type: ignore[override]
        closure()


class Hidden(Counting):
    """Keeps its number where no checkpoint looks."""

    def __init__(self, params: Any, lr: float):
        super().__init__(params, lr)
        self.taken = 0

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.taken += 1
        self.param_groups[0]["k"] = self.taken
        super().step()
        self.param_groups[0]["k"] = 0


class Unsaved(Lion):
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        super().step()
        for state in self.state.values():
            state["history"] = np.zeros(3)


class Noisy(Lion):
    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        super().step()
        for p in self.param_groups[0]["params"]:
            p.add_(torch.randn_like(p) * 1e-3)


class Failing(Lion):
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        raise ValueError("no step today")


class NoRate(torch.optim.Optimizer):
    def __init__(self, params: Any):
        super().__init__(params, {})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        pass


class Idle(Lion):
    """Changes nothing, which is no fault."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        pass


class OneShape(LionRule):
    def init(self, params: list[Tensor]) -> dict[str, list[Tensor]]:
        return {"exp_avg": [torch.zeros(()) for _ in params]}


class NoState(LionRule):
    def step(self, params: Any, grads: Any, state: Any, lr: Tensor) -> Any:
        return super().step(params, grads, state, lr)[0]


class Neither:
    def step(self) -> None: ...
