"""The update done by torch.optim."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from runner import config as c
from runner.errors import RunFailed
from runner.optimizers import Objective, State
from runner.sharding import scattered

FUSED = ("cpu", "cuda")
"""Devices on which torch's fused Adam was run; it is the fastest of its versions there."""


def build(config: Any, parameters: Mapping[str, Tensor]) -> torch.optim.Optimizer:
    """Torch's own optimizer for what was chosen; the learning rate is set at every step."""
    tensors = list(parameters.values())
    if isinstance(config, (c.Sgd, c.Momentum)):
        momentum = config.momentum if isinstance(config, c.Momentum) else 0.0
        return torch.optim.SGD(tensors, lr=config.lr, momentum=momentum, weight_decay=config.weight_decay)
    kind = torch.optim.AdamW if isinstance(config, c.AdamW) else torch.optim.Adam
    fused = tensors[0].device.type in FUSED
    return kind(
        tensors, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=fused or None
    )


def named_state(optimizer: torch.optim.Optimizer, names: list[str]) -> State:
    """Torch's state by the names of the parameters instead of their numbers."""
    tensors = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    return {
        name: dict(optimizer.state[tensor])
        for name, tensor in zip(names, tensors, strict=True)
        if tensor in optimizer.state
    }


def load_named_state(optimizer: torch.optim.Optimizer, names: list[str], state: State) -> None:
    """The way back; torch moves and casts. Values may be whole where the parameters are sharded."""
    groups = optimizer.state_dict()["param_groups"]
    tensors = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    slots = {
        i: {
            slot: scattered(value, tensors[i]) if isinstance(value, Tensor) else value
            for slot, value in state[n].items()
        }
        for i, n in enumerate(names)
        if state.get(n)
    }
    optimizer.load_state_dict({"state": slots, "param_groups": groups})


class Library:
    """An optimizer that asks for the gradients once a step."""

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> None:
        self._optimizer = optimizer
        self._names = list(parameters)
        self._lr: float | None = None

    def step(self, objective: Objective, lr: float) -> Tensor:
        if lr != self._lr:
            self._lr = self._optimizer.param_groups[0]["lr"] = lr
        loss, gradients = objective.gradient()
        if gradients is not None:
            self._optimizer.step()
        return loss

    def state_dict(self) -> State:
        return named_state(self._optimizer, self._names)

    def load_state_dict(self, state: State) -> None:
        load_named_state(self._optimizer, self._names, state)
        self._lr = None


class Lbfgs:
    """Limited-memory BFGS, which asks for the gradients as often as its line search wants."""

    def __init__(self, config: c.Lbfgs, parameters: Mapping[str, Tensor]) -> None:
        self._names = list(parameters)
        self._optimizer = torch.optim.LBFGS(
            list(parameters.values()),
            lr=config.lr,
            max_iter=config.max_iter,
            history_size=config.history_size,
            tolerance_grad=config.tolerance_grad,
            tolerance_change=config.tolerance_change,
            line_search_fn=config.line_search,
        )

    def step(self, objective: Objective, lr: float) -> Tensor:
        if lr == 0:  # torch's line search divides by the length of its first step
            return objective.gradient()[0]
        self._optimizer.param_groups[0]["lr"] = lr
        shares: list[Tensor] = []

        def loss() -> Tensor:
            shares.append(objective.gradient()[0])
            return objective.whole(shares[-1])

        try:
            self._optimizer.step(loss)  # type: ignore[no-untyped-call]
        except ZeroDivisionError:
            raise RunFailed(
                "the line search of lbfgs found no step to take: its bracket shrank to a point. "
                "Use a larger optimizer.lr, dtype=float64 or optimizer.line_search=null"
            ) from None
        return shares[0]

    def state_dict(self) -> State:
        return named_state(self._optimizer, self._names)

    def load_state_dict(self, state: State) -> None:
        load_named_state(self._optimizer, self._names, state)
