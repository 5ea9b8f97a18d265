"""Strategies: how the computation of one run is placed on processes and devices.

A step's batch is divided into portions. Each process computes the loss and the gradients of its own portions, weighted by
their share of the rows of the batch, and the strategy adds them up. `Single` implements the whole contract with identities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.func import functional_call

from runner.compute.batch import Batch
from runner.compute.dtensor import gathered, scattered

Loss: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Mean weighted loss [] of predictions and targets [rows, targets] and weights [rows, 1]; None counts every row as 1."""


@dataclass(frozen=True)
class Portion:
    """Part of a batch that one process or chunk computes: the rows from `first` up to but not including `last`.

    `stream` numbers the portion's random numbers within a step.
    """

    first: int
    last: int
    stream: int = 0


@dataclass(frozen=True)
class MicroBatch:
    """Rows that one forward pass computes: a portion, or a piece of it with gradient accumulation.

    `share` is the share of these rows in the rows of the whole batch. `stream` is that of the portion.
    """

    rows: Batch
    share: float
    stream: int


class Strategy(Protocol):
    """Placement of the model and the rows of a batch, and the sums over all processes.

    Methods that communicate are collectives: every process must call them, in the same order.
    """

    name: str
    """Name of the strategy in the configuration, such as "ddp"."""
    sharded: bool
    """Whether each process holds only a part of the parameters and the optimizer state."""

    def place(self, model: Any, loss: Loss) -> Callable[..., Tensor]:
        """Move the model to this process's device, reduced to the part that the process holds.

        Returns the forward pass: inputs of a batch [rows, columns] → predictions [rows, targets]. `loss` is used by strategies that
        compute it themselves. Raises `ConfigError` for a model that the strategy cannot place.
        """

    def parameters(self, model: Any) -> dict[str, Tensor]:
        """Return the tensors that the optimizer updates, by name."""

    def parameters_by_name(self, model: Any) -> dict[str, Tensor]:
        """Return the model's parameters by the model's names; vmapped ones have shape [lanes, …]."""

    def predict(self, model: Any, parameters: Mapping[str, Tensor], *inputs: Tensor) -> Tensor:
        """Return the predictions of the model with other parameters, in the layout of `parameters_by_name`."""

    def portions(self, rows: int) -> Sequence[Portion]:
        """Return this process's portions of a batch of so many rows: at least one, which may be empty."""

    def gradient(self, parts: Sequence[MicroBatch], backward: Callable[[MicroBatch, float], Tensor]) -> Tensor:
        """Leave the gradients of the whole batch's mean loss in `.grad`; return this process's share [] of that loss.

        `backward(part, factor)` adds factor · share · gradient of the part's mean loss to `.grad` and returns
        share · loss []. `total` turns the shares into whole losses.
        """

    def total(self, shares: Tensor) -> Tensor:
        """Return the losses [n] of n whole batches from this process's shares [n], the same on every process."""

    def reduce(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the sum over the portions of all processes, the same on every process.

        `parts` has one tensor for each portion of this process; all have one shape, which the sum has too.
        """

    def share(self, whole: Tensor) -> Tensor:
        """Return this process's share of a whole loss [] that every process knows; `total` of the shares is that loss."""

    def concatenate(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the matrices of all processes' portions as one […, sum of rows, columns], in the order of the portions.

        `parts` has one matrix […, rows, columns] for each portion of this process.
        """

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Return the 2-norm [] of the whole gradients, all tensors together; vmapped: [lanes, 1]."""

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on some process."""

    def load(self, model: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
        """Copy parameters and buffers into the model: whole tensors, or what its `state_dict` returned on this process."""

    def gather_parameters(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the whole parameters of all processes, by name, on every process.

        `tensors` holds this process's parameters.
        """


class Single:
    """One process on one device."""

    name = "single"
    sharded = False

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def place(self, model: Any, loss: Loss) -> Callable[..., Tensor]:
        """Move the whole model to the device and return it: its call is the forward pass."""
        placed: Callable[..., Tensor] = model.to(self._device)
        return placed

    def parameters(self, model: Any) -> dict[str, Tensor]:
        """Return the model's own parameters that are trained."""
        return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    def parameters_by_name(self, model: Any) -> dict[str, Tensor]:
        """Return all of the model's own parameters."""
        return dict(model.named_parameters())

    def predict(self, model: Any, parameters: Mapping[str, Tensor], *inputs: Tensor) -> Tensor:
        """Return the predictions [rows, targets] of a functional call with the given parameters."""
        prediction: Tensor = functional_call(model, dict(parameters), inputs)
        return prediction

    def portions(self, rows: int) -> Sequence[Portion]:
        """Return one portion with all rows."""
        return (Portion(0, rows),)

    def gradient(self, parts: Sequence[MicroBatch], backward: Callable[[MicroBatch, float], Tensor]) -> Tensor:
        """Accumulate the gradients of all parts; the share is the whole loss."""
        share = backward(parts[0], 1.0)
        for part in parts[1:]:
            share = share + backward(part, 1.0)
        return share

    def total(self, shares: Tensor) -> Tensor:
        """Return the shares unchanged: they are whole losses."""
        return shares

    def reduce(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the sum of the parts in their order."""
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def share(self, whole: Tensor) -> Tensor:
        """Return the loss unchanged: the only process has all of it."""
        return whole

    def concatenate(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the parts of this process below each other; a single part is returned as it is."""
        return parts[0] if len(parts) == 1 else torch.cat(list(parts), -2)

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Return the norm [] as torch computes it for gradient clipping."""
        return torch.nn.utils.get_total_norm(list(gradients))

    def any(self, flag: bool) -> bool:
        """Return the flag of this process."""
        return flag

    def load(self, model: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
        """Copy the state into the model, cut to local parts where the model's tensors are sharded."""
        present = model.state_dict()
        model.load_state_dict({name: scattered(state[name], onto) for name, onto in present.items()})

    def gather_parameters(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors detached, with DTensors gathered."""
        return {name: gathered(tensor.detach()) for name, tensor in tensors.items()}


class DataParallel(Single):
    """One process on all visible GPUs with `torch.nn.DataParallel`; torch itself recommends ddp instead."""

    name = "dp"

    def place(self, model: Any, loss: Loss) -> Callable[..., Tensor]:
        """Wrap the model, which stays on the first GPU and is copied to the others in every forward pass."""
        return torch.nn.DataParallel(model.to(self._device))
