"""Rows whose targets are compared with predictions, and a random sample of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from runner.compute.rng import stream_seed
from runner.data.kinds import Column


@dataclass(frozen=True, eq=False)
class Compared:
    """Some rows with their predictions."""

    features: Mapping[str, Column]
    """Columns of the table by name."""
    target: Tensor
    """[rows, targets] in the units of the file, float64; nan where one is missing."""
    prediction: Tensor
    """[rows, targets] likewise."""
    weight: Tensor | None
    """[rows], up to a factor; None if all rows count the same."""

    def __len__(self) -> int:
        return len(self.target)

    @property
    def known(self) -> np.ndarray:
        """Numbers of the rows that count: those with all targets, and a weight above 0."""
        mask = ~self.target.isnan().any(1)
        if self.weight is not None:
            mask &= self.weight > 0
        rows: np.ndarray = mask.nonzero().flatten().numpy()
        return rows

    def take(self, rows: np.ndarray) -> Compared:
        """Return some of the rows by their numbers."""
        places = torch.from_numpy(rows)
        features = {name: column.take(rows) for name, column in self.features.items()}
        weight = None if self.weight is None else self.weight[places]
        return Compared(features, self.target[places], self.prediction[places], weight)

    @staticmethod
    def joined(blocks: Sequence[Compared]) -> Compared:
        """Return the rows of several blocks as one."""
        first = blocks[0]
        weights = [block.weight for block in blocks if block.weight is not None]
        return Compared(
            {name: _followed([block.features[name] for block in blocks]) for name in first.features},
            torch.cat([block.target for block in blocks]),
            torch.cat([block.prediction for block in blocks]),
            torch.cat(weights) if weights else None,
        )


def _followed(columns: Sequence[Column]) -> Column:
    def follow(column: Column, other: Column) -> Column:
        both = column.followed_by(other)
        assert both is not None  # the blocks of a source have columns of the same kinds
        return both

    return reduce(follow, columns)


class Sample:
    """Rows drawn at random, without replacement, from all that are added: all of them, if there are not more than `most`.

    Every row has a random number, and those with the smallest numbers are kept. They depend on the order of the rows alone.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._random = np.random.default_rng(stream_seed(0, "sample"))
        self._blocks: list[Compared] = []
        self._numbers: list[np.ndarray] = []
        self.total = 0
        """Number of rows that were added."""

    def add(self, rows: Compared) -> None:
        """Add rows."""
        self._blocks.append(rows)
        self._numbers.append(self._random.random(len(rows)))
        self.total += len(rows)
        if sum(map(len, self._blocks)) > 2 * self._most:
            self._reduce()

    def rows(self) -> Compared:
        """Return the sample, in the order of the rows. There must be a row."""
        self._reduce()
        return self._blocks[0]

    def _reduce(self) -> None:
        rows, numbers = Compared.joined(self._blocks), np.concatenate(self._numbers)
        if len(rows) > self._most:
            kept = np.sort(np.argpartition(numbers, self._most)[: self._most])
            rows, numbers = rows.take(kept), numbers[kept]
        self._blocks, self._numbers = [rows], [numbers]
