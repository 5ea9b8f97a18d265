"""Vmapped runs: the parameters of all runs are stacked, and one forward pass computes every lane.

All parameters of a lane form one row of a matrix, so that one update of the matrix updates all runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from runner.compute.strategies.base import Loss, Single

STACK = "stack"
"""Name of the one tensor that the optimizer updates, the matrix of all lanes' parameters; in no file."""


class Vmapped(Single):
    """One process on one device with one model for each lane; all models have the same layers."""

    def __init__(self, device: torch.device, models: Sequence[torch.nn.Module]) -> None:
        super().__init__(device)
        lanes = [torch.cat([p.detach().reshape(-1) for p in model.parameters()]) for model in models]
        self.stack = torch.nn.Parameter(torch.stack(lanes).to(device))
        """Parameters [lanes, numbers]."""

    def place(self, model: Any, loss: Loss) -> Callable[..., Tensor]:
        """Return the forward pass of all lanes: inputs [rows, columns], which they share, or [lanes, rows, columns].

        `model` is any one of the models; its own parameters are not used.
        """
        super().place(model, loss)
        self._shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        self._sizes = [shape.numel() for shape in self._shapes.values()]
        return lambda *inputs: self.predict(model, self.parameters_by_name(model), *inputs)

    def parameters(self, model: Any) -> dict[str, Tensor]:
        """Return the matrix of all lanes' parameters [lanes, numbers] under the name `STACK`."""
        return {STACK: self.stack}

    def parameters_by_name(self, model: Any) -> dict[str, Tensor]:
        """Return the parameters of all lanes by the model's names, [lanes, …], as views of the matrix."""
        return self.split(self.stack)

    def predict(self, model: Any, parameters: Mapping[str, Tensor], *inputs: Tensor) -> Tensor:
        """Return the predictions [lanes, rows, targets] of the model with each lane's parameters [lanes, …]."""
        lanes = tuple(None if values.dim() == 2 else 0 for values in inputs)
        prediction: Tensor = vmap(lambda p, x: functional_call(model, p, x), in_dims=(0, lanes))(
            dict(parameters), inputs
        )
        return prediction

    def split(self, stack: Tensor) -> dict[str, Tensor]:
        """Split a matrix like that of the parameters [lanes, numbers] into name → [lanes, …], as views."""
        parts = torch.split(stack, self._sizes, dim=1)
        return {
            name: part.view(len(stack), *shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }

    def join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Join what `split` returns into one matrix [lanes, numbers]."""
        return torch.cat(
            [tensors[name].flatten(1) if shape else tensors[name].unsqueeze(1) for name, shape in self._shapes.items()],
            1,
        )

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Return the norm of each lane's gradients [lanes, 1]."""
        (stack,) = gradients
        norm: Tensor = torch.linalg.vector_norm(stack, dim=1, keepdim=True)
        return norm
