"""Which rows are for training, validation and test."""

from __future__ import annotations

import torch
from torch import Tensor

from runner.config import schema as c
from runner.errors import DataError


def split(config: c.Split, rows: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Part → row numbers [n], each row in exactly one part, in the order of the rows.

    A fraction is rounded to the nearest row. Raises `DataError` when a part that was asked for, or training, is empty.
    """
    counts = {"test": _count(config.test, rows), "valid": _count(config.valid, rows)}
    problems = [
        f"`data.split.{part}` must give at least one row, but {share:g} of {rows} rows is none; make it larger, or 0 for no such part"
        for part, share in (("test", config.test), ("valid", config.valid))
        if share > 0 and counts[part] == 0
    ]
    train = rows - counts["test"] - counts["valid"]
    if train < 1:
        problems.append(
            f"`data.split.test` and `data.split.valid` must leave rows to train on, but take {counts['test']} and "
            f"{counts['valid']} of {rows}; make them smaller"
        )
    if problems:
        raise DataError(problems)
    order = torch.arange(rows) if config.order == "sequential" else torch.randperm(rows, generator=generator)
    parts = torch.split(order, [train, counts["valid"], counts["test"]])
    return {name: part.sort().values for name, part in zip(("train", "valid", "test"), parts, strict=True)}


def _count(share: float, rows: int) -> int:
    """`1` is one row, `0.1` a tenth of them; YAML's 0.0 and 0 are none."""
    return share if isinstance(share, int) else round(share * rows)
