"""Split of the rows into training, validation, calibration and test: a function of the rows and of the seed of the data."""

from __future__ import annotations

import heapq
import json
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from runner.config import schema as c
from runner.errors import DataError

PARTS = ("train", "valid", "calibrate", "test")
"""Parts, in the order in which they follow one another in the rows of a sequential split."""

BINS = 10
"""Bins of `data.split.stratify`=true."""


def division(config: c.Config) -> str:
    """Return what decides which rows of the same files are in which part, as JSON."""
    data, shares = config.data, config.data.split
    drawn = shares.order == "random" and (any(shares.shares.values()) or shares.folds is not None)
    seed = (config.seed if data.seed is None else data.seed) if drawn else None
    missing = getattr(data, "missing", None)
    columns = [getattr(data, "features", None), getattr(data, "target", None)] if missing == "drop" else None
    return json.dumps([c.plain(shares), seed, missing, columns, sorted(data.paths)])


def split(
    config: c.Split,
    target: np.ndarray,
    generator: torch.Generator,
    given: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> dict[str, Tensor]:
    """Return the sorted row numbers [n] of every part. Each row is in exactly one part.

    `target` [rows] are the values that `data.split.stratify` divides into bins. `given` [rows] has the place in `PARTS` of
    the rows whose part the table says, and 0 for the others, which are split. `groups` [rows] has a number for each group,
    whose rows stay together. A fraction is of the rows that are split, and rounded to the nearest row; a part of groups has
    the number of rows that whole groups bring nearest to it. Raises `DataError` if training or a requested part has no rows.
    """
    parts = np.zeros(len(target), np.int8) if given is None else given.copy()
    free = np.flatnonzero(parts == 0)
    counts = {part: _count(share, len(free)) for part, share in config.shares.items()}
    _refuse(config, counts, len(free), parts)
    if groups is None:
        parts[free] = _rows(config, counts, target[free], generator)
    else:
        parts[free] = _groups(config, counts, np.unique(groups[free], return_inverse=True)[1], generator)
    return {name: torch.from_numpy(np.flatnonzero(parts == place)) for place, name in enumerate(PARTS)}


def _count(share: float, rows: int) -> int:
    """Return the number of rows: the integer 1 is one row, 0.1 a tenth of the rows, 0 and 0.0 none."""
    return share if isinstance(share, int) else round(share * rows)


def _refuse(config: c.Split, counts: Mapping[str, int], rows: int, given: np.ndarray) -> None:
    """Raise `DataError` for shares that leave a part empty or that the table gives already, and for folds without a choice."""
    problems = [
        f"`data.split.{part}` must select at least one row, got {share:g} of {rows} rows; use a larger value, or 0 for no {part} rows"
        for part, share in config.shares.items()
        if share > 0 and counts[part] == 0
    ]
    requested = {f"`data.split.{part}`": str(count) for part, count in counts.items() if count}
    if requested and sum(counts.values()) >= rows:
        problems.append(
            f"{' and '.join(requested)} must leave rows for training, got {' and '.join(requested.values())} of {rows}; "
            "use smaller values"
        )
    if config.folds is not None and config.fold is None:
        problems.append(
            f"`data.split.fold` must be one of the folds, 1 to {config.folds}, for a single run, got null; add -m for a sweep "
            "over all of them"
        )
    known = {part for place, part in enumerate(PARTS) if place and (given == place).any()}
    problems += [
        f"`data.split.{part}` must be 0, because `data.split.column` says which rows are {part} rows, got {share:g}; "
        f"use data.split.{part}=0"
        for part, share in config.shares.items()
        if share and part in known
    ]
    if config.folds is not None and "valid" in known:
        problems.append(
            "`data.split.folds` must be null, because `data.split.column` says which rows are valid rows, got "
            f"{config.folds}; use data.split.folds=null"
        )
    if problems:
        raise DataError(problems)


def _rows(config: c.Split, counts: Mapping[str, int], target: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """Return the place in `PARTS` of each row [rows], int8."""
    order = _order(config, len(target), generator)
    if config.stratify:
        order = order[_by_bins(config.stratify, target[order])]
    parts, end = np.zeros(len(target), np.int8), len(target)
    for part in config.held_out:
        first = end - counts[part]
        parts[order[first:end]] = PARTS.index(part)
        end = first
    if config.folds is not None and config.fold is not None:
        _require_folds(config.folds, end, "rows")
        parts[np.array_split(order[:end], config.folds)[config.fold - 1]] = PARTS.index("valid")
    return parts


def _order(config: c.Split, count: int, generator: torch.Generator) -> np.ndarray:
    if config.order == "sequential":
        return np.arange(count)
    order: np.ndarray = torch.randperm(count, generator=generator).numpy()
    return order


def _by_bins(bins: bool | int, target: np.ndarray) -> np.ndarray:
    """Return an order of rows in which every stretch has about as many rows of each bin of the target.

    Bins are between quantiles; equal values are in one bin. The k-th row of a bin of n rows comes at the place (k − ½)/n, so
    that a cut anywhere takes the same share of every bin, up to one row. Rows keep their order within a bin.
    """
    count = len(target)
    number = BINS if bins is True else bins
    if number > count and bins is not True:
        raise DataError(
            f"`data.split.stratify` must be at most the number of rows, {count}, got {bins}; use fewer bins"
        )
    limits = np.unique(np.sort(target)[[count * i // number for i in range(1, number)]])
    places = np.searchsorted(limits, target, side="right")
    sizes = np.bincount(places)
    by_bin = np.argsort(places, kind="stable")
    rank = np.arange(count) - (np.cumsum(sizes) - sizes)[places[by_bin]]
    share = np.empty(count)
    share[by_bin] = (rank + 0.5) / sizes[places[by_bin]]
    order: np.ndarray = np.argsort(share, kind="stable")
    return order


def _groups(config: c.Split, counts: Mapping[str, int], codes: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """Return the place in `PARTS` of each row [rows], int8. `codes` has the number of each row's group, from 0."""
    sizes = np.bincount(codes)
    order = _order(config, len(sizes), generator)
    if config.order == "sequential":
        order = np.argsort(np.unique(codes, return_index=True)[1])  # by the first row of each group
    wanted = [part for part in config.held_out if counts[part]]
    if len(wanted) >= len(sizes):
        names = ", ".join((*reversed(wanted), "train"))
        raise DataError(
            f"`data.split.group` must have a group for each of {names}, got {len(sizes)} in all; name another column, or leave out a part"
        )
    parts, end = np.zeros(len(sizes), np.int8), len(sizes)
    for left, part in zip(range(len(wanted), 0, -1), wanted, strict=True):
        taken = sizes[order[:end]][::-1].cumsum()[: end - left]  # a group each is left for the other parts
        first = end - 1 - int(np.abs(taken - counts[part]).argmin())
        parts[order[first:end]] = PARTS.index(part)
        end = first
    if config.folds is not None and config.fold is not None:
        _require_folds(config.folds, end, "groups")
        parts[_fold_of_groups(order[:end], sizes, config.folds, config.fold)] = PARTS.index("valid")
    own: np.ndarray = parts[codes]
    return own


def _require_folds(folds: int, units: int, name: str) -> None:
    if folds > units:
        raise DataError(
            f"`data.split.folds` must be at most the number of {name} to divide, {units}, got {folds}; use fewer folds"
        )


def _fold_of_groups(order: np.ndarray, sizes: np.ndarray, folds: int, fold: int) -> np.ndarray:
    """Return the groups of a fold, from 1: from the largest to the smallest, each joins the fold with the fewest rows."""
    loads, chosen = [(0, number) for number in range(1, folds + 1)], []
    for group in order[np.argsort(-sizes[order], kind="stable")].tolist():
        rows, number = loads[0]
        heapq.heapreplace(loads, (rows + int(sizes[group]), number))
        if number == fold:
            chosen.append(group)
    return np.array(chosen)
