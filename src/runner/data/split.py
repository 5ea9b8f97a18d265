"""Split of the rows into training, validation and test."""

from __future__ import annotations

import torch
from torch import Tensor

from runner.config import schema as c
from runner.errors import DataError


def split(config: c.Split, rows: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return the sorted row numbers [n] of "train", "valid" and "test". Each row is in exactly one part.

    A fraction is rounded to the nearest row. Raises `DataError` if training or a requested part has no rows.
    """
    counts = {"test": _count(config.test, rows), "valid": _count(config.valid, rows)}
    problems = [
        f"`data.split.{part}` must select at least one row, got {share:g} of {rows} rows; use a larger value, or 0 for no {part} rows"
        for part, share in (("test", config.test), ("valid", config.valid))
        if share > 0 and counts[part] == 0
    ]
    train = rows - counts["test"] - counts["valid"]
    if train < 1:
        problems.append(
            f"`data.split.test` and `data.split.valid` must leave rows for training, got {counts['test']} and "
            f"{counts['valid']} of {rows}; use smaller values"
        )
    if problems:
        raise DataError(problems)
    order = torch.arange(rows) if config.order == "sequential" else torch.randperm(rows, generator=generator)
    parts = torch.split(order, [train, counts["valid"], counts["test"]])
    return {name: part.sort().values for name, part in zip(("train", "valid", "test"), parts, strict=True)}


def _count(share: float, rows: int) -> int:
    """Return the number of rows: the integer 1 is one row, 0.1 a tenth of the rows, 0 and 0.0 none."""
    return share if isinstance(share, int) else round(share * rows)
