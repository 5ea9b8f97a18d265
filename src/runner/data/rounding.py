"""Information that a column loses when it is cast to the dtype of a run: what is refused, and what is reported.

Float32 has 24 significant bits. It rounds a Julian date such as 2459000.05 to a multiple of 0.25, so that different times
become equal, and a target of 3e-50 becomes 0. Both are found among the sorted distinct values of a column.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from runner.data.diagnostics import listed, shown
from runner.data.kinds import are_integers
from runner.errors import DataError

Advised = Callable[[str, Any], str | None]
"""Returns the advice to use another value of a key, as an argument; None if the configuration would be refused with it."""

_SIGNIFICANT_BITS = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}
_WIDER = ("float32", "float64")
_MOST_ROWS = 2**15
"""Number of rows that are compared with each other. Neighbours in a longer table are closer because there are more of them."""
_MOST_SHOWN = 3
"""Number of columns whose loss is reported in full; the others are listed."""
_TOLERANCE = 1e-3
"""Rounding that is reported, relative to the distance between neighbouring values."""
_NEIGHBOURS = 4
"""Number of values on each side over which a distance is averaged: two random values may be close to each other by chance."""


_BY_HAND = {
    "offset": "subtract an offset from the column",
    "large": "use a larger unit for the column",
    "small": "use a smaller unit for the column",
    "far": "remove the rows whose value is far from the others",
}
"""Changes to a column in its file, by the cause of its loss."""


@dataclass(frozen=True, eq=False)
class Column:
    """A column in the units of the file, and the scaling before the cast: scaled = (value − mean) / scale."""

    name: str
    values: np.ndarray
    """Float64 [rows]."""
    integers: bool = False
    """Whether all values are integers that must stay exact."""
    standardized: bool = False
    mean: float = 0.0
    scale: float = 1.0
    logarithm: bool = False
    """Whether the logarithm of the values is scaled."""

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """Return values of the file as they are before the cast."""
        values = np.log(values) if self.logarithm else values
        return (values - self.mean) / self.scale if self.standardized else values

    def restored(self, scaled: float) -> float:
        """Return a scaled value in the units of the file."""
        value = float(scaled) * self.scale + self.mean
        return float(np.exp(value)) if self.logarithm else value


@dataclass(frozen=True)
class _Loss:
    """Effect of a dtype on a column."""

    text: str
    """The effect in words, to follow the name of the column and the dtype."""
    cause: Literal["offset", "large", "small"]
    """Why: its values differ by little compared with their size, or they are too large or too small."""
    refused: bool = False
    inexact: bool = False
    """Whether it is a single value that cannot be represented."""
    row: int | None = None
    """The row of that value, from 0."""


@dataclass
class Check:
    """Collects the losses of columns and weights, one column after the other."""

    dtype_name: str
    advised: Advised
    place: Callable[[int], str] = lambda row: f"row {row + 1}"
    """Where a row, counted from 0, is in its source."""
    _problems: list[str] = field(default_factory=list)
    _warnings: dict[str, str] = field(default_factory=dict)

    def add(self, column: Column) -> None:
        """Refuse a column that overflows, has an integer that would be rounded, or loses half of its distinct values or more.

        Other losses are a warning.
        """
        loss = _loss(column, self.dtype_name)
        if loss is None:
            return
        place = "" if loss.row is None else f" in {self.place(loss.row)}"
        effect = f"{self.dtype_name} {loss.text}{place}; {_remedy(column, self.dtype_name, loss, self.advised)}"
        if loss.refused:
            self._problems.append(f"`dtype` must represent column {shown(column.name)}, but {effect}")
        else:
            self._warnings[column.name] = f"`dtype` rounds column {shown(column.name)}: {effect}"

    def suspects(self, scaled: np.ndarray) -> list[int]:
        """Return the places of those columns [columns, rows], scaled, that may lose something, of many at once.

        Which of them do is for `add` to say, which takes much longer than a short column.
        """
        if self.dtype_name == "float64":
            return []
        rounded = _cast(scaled, self.dtype_name)
        suspected = ~np.isfinite(rounded).all(1) | ((rounded != scaled).any(1) & are_integers(scaled))
        ordered = np.sort(scaled[:, :_MOST_ROWS], 1)
        different = np.ones(ordered.shape, bool)
        different[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        counts = np.where(suspected, 0, different.sum(1))
        for count in np.unique(counts[~suspected]).tolist():  # columns with as many distinct values are one array
            places = np.flatnonzero(counts == count)
            values = ordered[places][different[places]].reshape(-1, count)
            suspected[places] = _may_lose(values, _cast(values, self.dtype_name))
        return [int(place) for place in np.flatnonzero(suspected)]

    def add_weights(self, weights: np.ndarray) -> None:
        """Refuse weights [rows], relative to their mean, if one becomes 0. Only their relative rounding matters besides."""
        lost = (_cast(weights, self.dtype_name) == 0) & (weights > 0)
        if lost.any():
            row = int(lost.argmax())
            self._problems.append(
                f"`dtype` must hold the weight of every row, but {self.dtype_name} turns {float(weights[row]):g} of "
                f"{self.place(row)}, relative to the mean weight, into 0; use a larger dtype, or set that weight to 0"
            )

    def warnings(self) -> list[str]:
        """Return a warning for each column that loses information, with its values and a remedy.

        Raises `DataError` with every column and weight that is refused.
        """
        if self._problems:
            raise DataError(self._problems)
        others = list(self._warnings)[_MOST_SHOWN:]
        more = [f"`dtype` also rounds columns {listed(others)}"] if others else []
        return [*list(self._warnings.values())[:_MOST_SHOWN], *more]


def _remedy(column: Column, dtype_name: str, loss: _Loss, advised: Advised) -> str:
    """Return what to do: a wider dtype that loses nothing, standardizing, or a change of the data."""
    sufficient = (advised("dtype", d) for d in _WIDER if d != dtype_name and _loss(column, d) is None)
    wider = next((argument for argument in sufficient if argument), None)
    if wider and loss.inexact:
        return f"use {wider}"
    scaling = None if column.standardized else advised("data.standardize", True)
    by_hand = _BY_HAND["far" if column.standardized else loss.cause]
    if wider and not scaling and not column.standardized:
        return f"use {wider}, or {by_hand}"
    arguments = [argument for argument in (wider, scaling) if argument]
    return f"use {', or '.join(arguments)}" if arguments else by_hand


def _loss(column: Column, dtype_name: str) -> _Loss | None:
    return _overflow(column, dtype_name) or (None if dtype_name == "float64" else _rounding(column, dtype_name))


def _cast(values: np.ndarray, dtype_name: str) -> np.ndarray:
    """Return what a dtype makes of float64 values, in float64."""
    cast: np.ndarray = torch.from_numpy(values).to(getattr(torch, dtype_name)).double().numpy()
    return cast


def _may_lose(values: np.ndarray, rounded: np.ndarray) -> np.ndarray:
    """Return the mask [columns] of those whose sorted distinct values [columns, values] become equal, 0, or are rounded much."""
    equal, zero = rounded[:, 1:] == rounded[:, :-1], (rounded == 0) & (values != 0)
    error = np.abs(rounded - values) / _gaps(values)
    suspected: np.ndarray = equal.any(1) | zero.any(1) | (2 * error.mean(1) > _TOLERANCE)
    return suspected


def _overflow(column: Column, dtype_name: str) -> _Loss | None:
    """Return the loss of a column with a value beyond the largest, or with an integer that would be rounded."""
    largest = torch.finfo(getattr(torch, dtype_name)).max
    extremes = column.scaled(np.array([column.values.min(), column.values.max()]))
    lost: np.ndarray = np.zeros(len(column.values), dtype=bool)
    if np.abs(extremes).max() > largest:
        lost |= np.abs(column.scaled(column.values)) > largest
    cause: Literal["large", "offset"] = "large" if lost.any() else "offset"
    if column.integers:
        mantissa = np.ldexp(np.frexp(column.values)[0], _SIGNIFICANT_BITS[dtype_name])
        lost |= mantissa != np.trunc(mantissa)
    if not lost.any():
        return None
    row = int(lost.argmax())
    value = float(column.values[row])
    what = f"the integer {value:.0f} exactly" if column.integers else repr(value)
    return _Loss(f"cannot represent {what}", cause, refused=True, inexact=True, row=row)


def _rounding(column: Column, dtype_name: str) -> _Loss | None:
    """Return the loss of a column in which different values become equal, others become 0, or neighbours are rounded much.

    A column without an offset is rounded too. What n random values of any unit lose then is not reported: about n²/2**bits
    of them meet another one, and they are rounded by less than 2·n/2**bits of the distance between neighbours.
    """
    values = np.unique(column.values[:_MOST_ROWS])
    scaled, bits = column.scaled(values), _SIGNIFICANT_BITS[dtype_name]
    different = np.append(True, scaled[1:] != scaled[:-1])
    values, scaled = values[different], scaled[different]
    rounded = _cast(scaled, dtype_name)
    equal, zero, error = (
        rounded[1:] == rounded[:-1],
        (rounded == 0) & (scaled != 0),
        np.abs(rounded - scaled) / _gaps(scaled),
    )
    count, lost, by_chance = len(values), int(equal.sum()), len(values) ** 2 / 2**bits
    kept = count - lost
    refused = lost >= kept and kept < 2 ** (bits - 3)  # a column without an offset keeps more, however many rows it has
    if zero.any():
        example = float(values[zero.argmax()])
        return _Loss(
            f"turns {int(zero.sum()):,} of its {count:,} distinct values into 0, such as {example!r}", "small", refused
        )
    if refused or lost > by_chance + 3 * by_chance**0.5:
        first = int(equal.argmax())
        one, other, both = float(values[first]), float(values[first + 1]), column.restored(rounded[first])
        text = f"keeps only {kept:,} of its {count:,} distinct values: {one!r} and {other!r} become {both!r}"
        return _Loss(text, "offset", refused)
    if 2 * error.mean() > max(_TOLERANCE, 2 * by_chance / count):  # the largest error is about twice the mean
        worst = int(error.argmax())
        one, other, distance = float(values[worst]), column.restored(rounded[worst]), _gaps(values)[worst]
        return _Loss(f"rounds {one!r} to {other!r}, where values are {distance:.4g} apart", "offset")
    return None


def _gaps(values: np.ndarray) -> np.ndarray:
    """Return the mean distance between neighbours around each of these sorted values […, values]; infinite for a single one."""
    count = values.shape[-1]
    if count == 1:
        return np.full(values.shape, np.inf)
    place = np.arange(count)
    low, high = np.maximum(place - _NEIGHBOURS, 0), np.minimum(place + _NEIGHBOURS, count - 1)
    gaps: np.ndarray = (values[..., high] - values[..., low]) / (high - low)
    return gaps
