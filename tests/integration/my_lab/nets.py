"""Modules as users write them, and as they get them wrong."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Linear  # noqa: F401 - an import, which is not defined here


class Line(nn.Module):
    """A linear model, with names that a model of the package has as well."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.stages = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        prediction: Tensor = self.stages(x)
        return prediction


class Net(nn.Module):
    """Two layers."""

    def __init__(self, in_features: int, out_features: int, width: int = 8) -> None:
        super().__init__()
        self.hidden, self.last = nn.Linear(in_features, width), nn.Linear(width, out_features)

    def forward(self, x: Tensor) -> Tensor:
        prediction: Tensor = self.last(torch.tanh(self.hidden(x)))
        return prediction


class Codes(nn.Module):
    """Embeddings beside the numbers."""

    def __init__(self, in_features: int, out_features: int, cardinalities: Sequence[int]) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(count, 2) for count in cardinalities)
        self.last = nn.Linear(in_features + 2 * len(cardinalities), out_features)

    def forward(self, x: Tensor, categories: Tensor) -> Tensor:
        vectors = [table(codes) for table, codes in zip(self.tables, categories.unbind(1), strict=True)]
        prediction: Tensor = self.last(torch.cat([x, *vectors], 1))
        return prediction


class Normed(Net):
    """Batch normalisation."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.norm = nn.BatchNorm1d(in_features)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(x))


class Dropping(Net):
    """Dropout of its own kind."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.dropout(x, 0.2, self.training))


class Elsewhere(Net):
    """Random numbers that are not torch's."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + random.random())


class Centered(Net):
    """Depends on all rows that are predicted together."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


class Frozen(Net):
    """Has parameters that are not trained."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.hidden.requires_grad_(False)


class Tied(nn.Module):
    """Uses one parameter under two names."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(in_features, in_features), nn.Linear(in_features, in_features)
        self.two.weight = self.one.weight
        self.last = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        prediction: Tensor = self.last(torch.tanh(self.two(torch.tanh(self.one(x)))))
        return prediction


class Lazy(nn.Module):
    """Finds out its size in the first forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.LazyLinear(1)

    def forward(self, x: Tensor) -> Tensor:
        prediction: Tensor = self.last(x)
        return prediction


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (1 - x.tanh() ** 2)  # type: ignore[no-any-return]


class ByHand(Net):
    """A derivative by hand, in a form that torch.func does not take."""

    def forward(self, x: Tensor) -> Tensor:
        prediction: Tensor = _Tanh.apply(super().forward(x))  # type: ignore[no-untyped-call]
        return prediction


class Unused(Net):
    """Has a layer without use."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.head = nn.Linear(2, 2)


class Flat(Net):
    """Returns [rows]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, 0]


class Pair(Net):
    """Returns more than the predictions."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class Detached(Net):
    """Returns predictions without a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


class Nan(Net):
    """Has no finite prediction."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * float("nan")


class Changing(Net):
    """Changes the rows that it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2))


class Narrow(Net):
    """Takes other inputs than it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, :0])


class Empty(nn.Module):
    """Has no parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1]


class Required(Net):
    """Requires an argument that nobody fills in."""

    def __init__(self, in_features: int, out_features: int, depth: int) -> None:
        super().__init__(in_features, out_features, depth)


class NoModule:
    """No module."""


Alias = Net


def function(x: Tensor) -> Tensor:
    """Return what is given."""
    return x
