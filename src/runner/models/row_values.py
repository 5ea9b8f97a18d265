"""Functions of the user's own that have a value for each row, as losses and metrics do: found out on a few rows, not assumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor

from runner.config import imports
from runner.config.imports import Target
from runner.errors import ConfigError
from runner.models.habits import PROBED_ROWS, Misfit

RowFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Function of (prediction [rows, targets], target [rows, targets]) that returns [rows, targets], [rows] or [rows, 1]."""

_TARGETS = ("target", "y_true")
"""Names of a first argument that would get the prediction."""


@contextmanager
def explained(target: Target, doing: str) -> Iterator[None]:
    """Turn a `Misfit`, and an error of the user's code while it is `doing` something, into a `ConfigError` that names it."""
    try:
        with imports.explained(target, doing):
            yield
    except ConfigError as error:
        if isinstance(error.__cause__, Misfit):
            raise ConfigError(f"{target.shown} must {error.__cause__}") from error.__cause__
        raise


def values(function: RowFunction, prediction: Tensor, target: Tensor) -> Tensor:
    """Return the values of rows as [rows, targets] or [rows, 1]. Raises `Misfit` unless there is one for each row."""
    found, (rows, targets) = function(prediction, target), prediction.shape
    wanted = f"return a value for each row, [rows, targets], [rows] or [rows, 1], here [{rows}, {targets}]"
    if not isinstance(found, Tensor):
        raise Misfit(f"{wanted}, got a {type(found).__name__}; return a tensor")
    shape = list(found.shape)
    if not shape:
        raise Misfit(
            f"{wanted}, got one number, which cannot be weighted and divided into portions; leave out its mean or sum"
        )
    if shape not in ([rows, targets], [rows], [rows, 1]):
        raise Misfit(f"{wanted}, got {shape}; take no mean, and add nothing up but the targets of a row")
    if not found.is_floating_point():
        raise Misfit(f"{wanted}, got {str(found.dtype).removeprefix('torch.')} numbers; convert them")
    return found.unsqueeze(1) if found.dim() == 1 else found


def probed(rows: int) -> Tensor:
    """Return the numbers of the rows to try a function on, from all over the data: more likely to differ than the first ones."""
    return torch.linspace(0, rows - 1, PROBED_ROWS, dtype=torch.float64).long()


def probe(function: RowFunction, prediction: Tensor, target: Tensor) -> Tensor:
    """Return the values of rows. Raises `Misfit` for a function whose values are not those of the rows alone."""
    _check_order(function)
    versions = prediction._version, target._version
    with torch.random.fork_rng(devices=[]):
        first, again = (values(function, prediction, target) for _ in range(2))
    if (prediction._version, target._version) != versions:
        raise Misfit(
            "leave its arguments as they are, but it changes them in place; use operations without a trailing _"
        )
    if not torch.equal(first.nan_to_num(), again.nan_to_num()):
        raise Misfit(
            "return the same values for the same rows, but a second call has others; use no random numbers, keep nothing"
        )
    # Other rows of the same data: made-up ones might not be allowed.
    same = values(function, *(part[:1].repeat(len(part), 1) for part in (prediction, target)))
    if not torch.equal(first[:1].nan_to_num(), same[:1].nan_to_num()):
        raise Misfit(
            "return values of each row alone, but they depend on the other rows; use no mean, sum or order over the rows"
        )
    values(function, prediction[:1], target[:1])  # a batch may have one row, of which squeeze() makes a number
    return first


def _check_order(function: RowFunction) -> None:
    names = list(imports.parameters_of(getattr(function, "forward", function)))[:2]
    if names and names[0] in _TARGETS:
        raise Misfit(f"take the prediction first and the target second, got ({', '.join(names)}); exchange them")
