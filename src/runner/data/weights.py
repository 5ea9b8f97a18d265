"""Weights of rows, from a column of weights or of standard deviations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from runner.data.scaling import Scaling
from runner.data.tables import Table
from runner.errors import DataError


@dataclass(frozen=True)
class Weights:
    """Weights of all rows of a table."""

    values: Tensor
    """Weights [rows] with mean 1 over the training rows, float64 on the CPU."""
    unit_deviation: float | None
    """Standard deviation of the target of a row with weight 1, in the units trained in; None where none is given."""


def counted_rows(table: Table, rows: Tensor) -> Tensor:
    """Return those of some row numbers whose weight is above 0, or all if there is none.

    A row that is left out by its weight may have any value, which no mean of the others should have in it.
    """
    if table.weight is None:
        return rows
    counted = rows[torch.from_numpy(table.weight)[rows] > 0]
    return counted if len(counted) else rows


def weigh(table: Table, parts: Mapping[str, Tensor], scaling: Scaling) -> Weights | None:
    """Return the weights of a table's rows, or None if it has no column for them.

    A standard deviation σ gives the weight 1/σ². Where the target's logarithm is taken, σ becomes σ/target to first order.
    `parts` are the row numbers of each part. Raises `DataError` for values that are no weights or no standard deviations,
    and for a part without weight.
    """
    if table.sigma is not None:
        sigma = torch.from_numpy(table.sigma)
        _require(sigma > 0, sigma, "data.sigma", "must be above 0 in every row", table)
        if scaling.log_target:
            sigma = sigma / torch.from_numpy(table.targets[0].values)
        sigma = sigma / scaling.target_scale
        unit = sigma.min()
        raw = (unit / sigma).square()  # not 1/σ², which may overflow
    elif table.weight is not None:
        raw, unit = torch.from_numpy(table.weight), None
        _require(raw >= 0, raw, "data.weight", "must not be below 0 in any row", table)
        raw = raw / raw.max().clamp(min=torch.finfo(raw.dtype).tiny)
    else:
        return None
    problems = [
        f"`data.weight` must be above 0 in some {name} row, got 0 in all {len(rows):,}; use other weights or another split"
        for name, rows in parts.items()
        if len(rows) and not bool(raw[rows].any())
    ]
    if problems:
        raise DataError(problems)
    mean = raw[parts["train"]].mean()
    return Weights(raw / mean, None if unit is None else float(unit / mean.sqrt()))


def _require(good: Tensor, values: Tensor, key: str, rule: str, table: Table) -> None:
    """Raise `DataError` with the first row for which a rule does not hold."""
    bad = (~good).nonzero().flatten()
    if len(bad):
        row = int(bad[0])
        raise DataError(
            f"`{key}` {rule}, got {float(values[row]):g} in {table.place(row)} ({len(bad):,} such rows); correct or "
            "remove those rows"
        )
