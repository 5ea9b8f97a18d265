"""Updates by torch.optim."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from runner.compute.dtensor import is_sharded, scattered
from runner.config import schema as c
from runner.optim.base import Objective, Optimizer, State

FUSED: tuple[str, ...] = ("cpu", "cuda")
"""Devices on which torch's fused Adam was tested; it is the fastest implementation there."""

RATE_ON_DEVICE: tuple[str, ...] = ("cuda",)
"""Devices whose fused kernels read the learning rate from the device, as float32; "cuda" is ROCm too."""

Parameters = Mapping[str, Tensor]
"""Parameters by name."""


def sgd(config: c.Sgd | c.Momentum, parameters: Parameters, momentum: float = 0.0) -> Optimizer:
    """Return `torch.optim.SGD`, fused on CUDA and ROCm, where only that takes a learning rate on the device."""
    tensors = list(parameters.values())
    fused = tensors[0].device.type in RATE_ON_DEVICE and not is_sharded(tensors[0])  # torch does not shard it
    optimizer = torch.optim.SGD(
        tensors, lr=config.lr, momentum=momentum, weight_decay=config.weight_decay, fused=fused or None
    )
    return TorchOptimizer(optimizer, parameters)


def momentum(config: c.Momentum, parameters: Parameters) -> Optimizer:
    """Return `torch.optim.SGD` with momentum."""
    return sgd(config, parameters, config.momentum)


def adam(config: c.Adam | c.AdamW, parameters: Parameters, kind: type = torch.optim.Adam) -> Optimizer:
    """Return `torch.optim.Adam`, fused on the devices in `FUSED`."""
    tensors = list(parameters.values())
    fused = tensors[0].device.type in FUSED
    optimizer = kind(
        tensors, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=fused or None
    )
    return TorchOptimizer(optimizer, parameters)


def adamw(config: c.AdamW, parameters: Parameters) -> Optimizer:
    """Return `torch.optim.AdamW`, fused on the devices in `FUSED`."""
    return adam(config, parameters, torch.optim.AdamW)


def lbfgs(config: c.Lbfgs, parameters: Parameters) -> Optimizer:
    """Return `torch.optim.LBFGS`."""
    return TorchLbfgs(config, parameters)


def named_state(optimizer: torch.optim.Optimizer, names: list[str]) -> State:
    """Return torch's optimizer state keyed by parameter name instead of index."""
    tensors = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    return {
        name: dict(optimizer.state[tensor])
        for name, tensor in zip(names, tensors, strict=True)
        if tensor in optimizer.state
    }


def load_named_state(optimizer: torch.optim.Optimizer, names: list[str], state: State) -> None:
    """Load a state keyed by parameter name. Torch moves and casts it; full tensors are sharded like their parameters."""
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


SCALE = 2.0**30
"""Factor by which L-BFGS scales the loss, unless a tolerance is set in units of the loss.

Torch discards every curvature pair (step s, gradient change y) with s·y below 1e-10, an absolute number, and then makes little
progress. In 16 bits steps are never that small.
"""


class TorchOptimizer:
    """Adapter for an optimizer of torch that needs one gradient per step."""

    settled: Sequence[int] = ()

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> None:
        self._optimizer = optimizer
        self._names = list(parameters)
        self._lr: float | Tensor | None = None
        group, like = optimizer.param_groups[0], next(iter(parameters.values()))
        # float32 is too coarse for parameters in float64.
        on_device = group.get("fused") and like.device.type in RATE_ON_DEVICE and like.dtype != torch.float64
        self.rate_type: torch.dtype | None = torch.float32 if on_device else None

    def step(self, objective: Objective, lr: float | Tensor) -> Tensor:
        """Update the parameters in place unless the step is skipped; return this process's share of the loss [] before it."""
        if lr is not self._lr:
            self._lr = lr
            for group in self._optimizer.param_groups:
                group["lr"] = lr
        loss, gradients = objective.gradient()
        if gradients is not None:
            self._optimizer.step()
        return loss

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Declare the step capturable. Fused steps always are, but torch checks the declaration."""
        group = self._optimizer.param_groups[0]
        declared = group.get("capturable", False)
        group["capturable"] = True
        try:
            yield
        finally:
            group["capturable"] = declared

    def state_dict(self) -> State:
        """Return torch's state by parameter name."""
        return named_state(self._optimizer, self._names)

    def load_state_dict(self, state: State) -> None:
        """Load torch's state by parameter name."""
        load_named_state(self._optimizer, self._names, state)
        self._lr = None


class TorchLbfgs:
    """Limited-memory BFGS: Liu and Nocedal, "On the limited memory BFGS method for large scale optimization" (1989).

    Its line search evaluates loss and gradient several times per step. The first step is along the gradient, which has the
    units of 1/parameter. Scalar parameters, such as those of a formula, each have their own unit, so torch's optimizer
    works on them divided by their start values.
    """

    settled: Sequence[int] = ()
    rate_type: torch.dtype | None = None

    def __init__(self, config: c.Lbfgs, parameters: Mapping[str, Tensor]) -> None:
        self._config, self._names, self._parameters = config, list(parameters), list(parameters.values())
        self._units = [_unit(parameter.detach()) for parameter in self._parameters]
        self._free: list[Tensor] = [
            torch.nn.Parameter(p.detach() / u) for p, u in zip(self._parameters, self._units, strict=True)
        ]
        free = config.line_search is not None and not (config.tolerance_grad or config.tolerance_change)
        fine = self._parameters[0].dtype in (torch.float32, torch.float64)
        self._scale = SCALE if free and fine else 1.0
        self._optimizer = self._fresh()
        self._still: float | None = None  # loss [] at which no step made progress

    def _fresh(self) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(
            self._free,
            lr=self._config.lr,
            max_iter=self._config.max_iter,
            history_size=self._config.history_size,
            tolerance_grad=self._config.tolerance_grad,
            tolerance_change=self._config.tolerance_change,
            line_search_fn=self._config.line_search,
        )

    def step(self, objective: Objective, lr: float) -> Tensor:
        """Run up to `max_iter` iterations in place; return this process's share of the loss [] before them."""
        if lr == 0:  # torch's line search divides by the length of its first step
            return objective.gradient()[0]
        if self._still is not None:
            share = objective.gradient()[0]
            if float(objective.whole(share)) == self._still:
                return share
        self._optimizer.param_groups[0]["lr"] = lr
        self._read()
        before, shares = [free.detach().clone() for free in self._free], list[Tensor]()

        def loss() -> Tensor:
            self._write()
            shares.append(objective.gradient()[0])
            for free, parameter, unit in zip(self._free, self._parameters, self._units, strict=True):
                free.grad = None if parameter.grad is None else parameter.grad * (unit * self._scale)
            return objective.whole(shares[-1]) * self._scale

        try:
            self._optimizer.step(loss)  # type: ignore[arg-type]
        except ZeroDivisionError:  # the line search's bracket shrank to a point: drop the curvature pairs
            self._restore(before)
            self._optimizer = self._fresh()
        stuck = self._config.line_search is not None and all(map(torch.equal, self._free, before))
        self._still = None if not stuck or self._polish(loss) else float(objective.whole(shares[0]))
        self._write()
        return shares[0]

    def _polish(self, loss: Callable[[], Tensor]) -> bool:
        """Try full-length iterations where the loss is too rounded for a line search; return whether the gradient shrank.

        Otherwise parameters and state are restored.
        """
        before, state = [free.detach().clone() for free in self._free], copy.deepcopy(self._optimizer.state_dict())
        group = self._optimizer.param_groups[0]
        loss()
        largest = self._largest_gradient()
        group["line_search_fn"] = None
        self._optimizer.step(loss)  # type: ignore[arg-type]
        group["line_search_fn"] = self._config.line_search
        loss()
        if self._largest_gradient() < 0.9 * largest:
            return True
        self._restore(before)
        self._optimizer.load_state_dict(state)
        return False

    def _largest_gradient(self) -> float:
        """Return the largest absolute entry of the gradient."""
        return max(float(free.grad.abs().max()) for free in self._free if free.grad is not None)

    @torch.no_grad()
    def _restore(self, before: Sequence[Tensor]) -> None:
        torch._foreach_copy_(self._free, list(before))

    @torch.no_grad()
    def _read(self) -> None:
        """Copy the parameters into torch's optimizer, since loading a checkpoint or rewinding may have changed them."""
        torch._foreach_copy_(self._free, [p / u for p, u in zip(self._parameters, self._units, strict=True)])

    @torch.no_grad()
    def _write(self) -> None:
        """Copy the values of torch's optimizer into the parameters."""
        torch._foreach_copy_(self._parameters, [z * u for z, u in zip(self._free, self._units, strict=True)])

    def state_dict(self) -> State:
        """Return torch's state, kept under the first parameter's name, and the loss at which progress stopped."""
        state = named_state(self._optimizer, self._names)
        if self._names[0] in state:  # torch keeps one state for all parameters there
            state[self._names[0]]["still"] = self._still
        return state

    def load_state_dict(self, state: State) -> None:
        """Load torch's state and the loss at which progress stopped."""
        load_named_state(self._optimizer, self._names, state)
        self._still = state.get(self._names[0], {}).get("still")


def _unit(start: Tensor) -> float:
    """Return the magnitude of a scalar start value; 1 if it is 0 or not finite, and for all other tensors."""
    magnitude = float(start.abs()) if start.dim() == 0 else 0.0
    return magnitude if 0 < magnitude < math.inf else 1.0
