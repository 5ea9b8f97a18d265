"""Runs side by side: the parameters of all of them are stacked, and a forward pass is one program for every lane.

The parameters of a lane lie in one row, so that an update of all runs is an update of one matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from runner.compute.strategies.base import Loss, Single

ROWS = "rows"
"""The one tensor that the optimizer knows: all parameters of a lane in a row."""


class Vmapped(Single):
    """One process on one device, with a model a lane; all of them have the same layers."""

    def __init__(self, device: torch.device, models: Sequence[torch.nn.Module]) -> None:
        super().__init__(device)
        rows = [torch.cat([p.detach().reshape(-1) for p in model.parameters()]) for model in models]
        self.rows = torch.nn.Parameter(torch.stack(rows).to(device))
        """Parameters [lanes, numbers]."""

    def place(self, model: Any, loss: Loss) -> Callable[[Tensor], Tensor]:
        """Return the forward pass of all lanes: features [rows, columns] that they share, or [lanes, rows, columns].

        `model` is any one of the models; its own parameters are not used.
        """
        super().place(model, loss)
        self._shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        self._sizes = [shape.numel() for shape in self._shapes.values()]
        return lambda features: self.predict(model, self.named(model), features)

    def parameters(self, model: Any) -> dict[str, Tensor]:
        return {ROWS: self.rows}

    def named(self, model: Any) -> dict[str, Tensor]:
        return self.split(self.rows)

    def predict(self, model: Any, parameters: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Predictions [lanes, rows, 1] of the model with the parameters [lanes, …] of each lane."""
        shared = None if features.dim() == 2 else 0
        prediction: Tensor = vmap(lambda p, x: functional_call(model, p, (x,)), in_dims=(0, shared))(
            dict(parameters), features
        )
        return prediction

    def split(self, rows: Tensor) -> dict[str, Tensor]:
        """A matrix like that of the parameters [lanes, numbers] → name → [lanes, …], as views."""
        parts = torch.split(rows, self._sizes, dim=1)
        return {
            name: part.view(len(rows), *shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }

    def joined(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Join what `split` gives into one matrix [lanes, numbers]."""
        return torch.cat(
            [tensors[name].flatten(1) if shape else tensors[name].unsqueeze(1) for name, shape in self._shapes.items()],
            1,
        )

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Of each lane's gradients, [lanes, 1]."""
        (rows,) = gradients
        norm: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        return norm
