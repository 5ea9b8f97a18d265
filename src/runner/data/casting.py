"""Columns of a table as tensors of a run's dtype: scaled in float64, checked for what the dtype loses of them, and cast."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from runner.config import schema as c
from runner.data import rounding
from runner.data.encoding import Encoding, NumberEncoding
from runner.data.kinds import Categories, Column, Numbers
from runner.data.memory import LARGE, allocate
from runner.data.scaling import Scaling
from runner.errors import DataError

_SCALED_BY = {
    True: "`data.standardize` must be false",
    False: "`data.numbers` and `data.target_scale` must be none",
}


@dataclass(frozen=True)
class Cast:
    """Scales columns in float64, checks what a dtype loses of them, and casts them."""

    scaling: Scaling
    config: c.DataConfig
    dtype: torch.dtype
    check: rounding.Check

    def features(
        self, columns: list[Column], encoding: Encoding, parts: Mapping[str, Tensor]
    ) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Return the numbers [rows, columns] of each part, and the codes of its categories [rows, columns] if there are any.

        The columns are taken out of the list and cast, short ones many at a time, and put together only then: what is in memory
        is the table and a mebibyte or one column of the dtype, and later twice the features in the dtype.
        """
        columns.reverse()
        cast = deque(self._cast(columns, encoding, sum(map(len, parts.values()))))
        width, coded = len(encoding.scaled), len(encoding.coded)
        numbers = {name: torch.zeros(len(rows), width, dtype=self.dtype) for name, rows in parts.items()}
        codes = {name: torch.zeros(len(rows), coded, dtype=torch.int64) for name, rows in parts.items()}
        while cast:
            group = cast.popleft()
            for name, rows in parts.items():
                group.put(numbers[name], codes[name], rows)
        return {name: (numbers[name], codes[name] if coded else None) for name in parts}

    def targets(self, columns: Sequence[Numbers], values: Tensor) -> Tensor:
        """Return the targets [rows, targets], whose values in the file are float64 of that shape."""
        scaled = self.scaling.target(values)
        self._require_finite(scaled)
        log, standardized = self.scaling.log_target, self.config.scales_target
        scales = zip(self.scaling.target_mean.tolist(), self.scaling.target_scale.tolist(), strict=True)
        for column, (mean, scale) in zip(columns, scales, strict=True):
            exact = column.integers and not (standardized or log)
            self.check.add(rounding.Column(column.name, column.values, exact, standardized, mean, scale, log))
        return scaled.to(self.dtype)

    def weight(self, weights: Tensor) -> Tensor:
        """Return the weights [rows, 1]."""
        self.check.add_weights(weights.numpy())
        return weights.to(self.dtype).unsqueeze(1)

    def _cast(self, columns: list[Column], encoding: Encoding, rows: int) -> Iterator[_Numbers | _OneHot | _Codes]:
        """Yield all columns, which are taken from the end of the list; short ones of numbers many together."""
        together = max(LARGE // (8 * rows), 1)
        scaled = torch.empty(min(together, len(columns)), rows, dtype=torch.float64)
        group: dict[int, tuple[NumberEncoding, Numbers]] = {}
        coded = 0
        for place, encoded in encoding.placed():
            column = columns.pop()
            if isinstance(encoded, NumberEncoding):
                assert isinstance(column, Numbers)
                group[place] = encoded, column
            else:
                assert isinstance(column, Categories)
                if encoded.coded:
                    yield _Codes(coded, torch.from_numpy(encoded.codes(column)))
                    coded += 1
                else:
                    yield _OneHot(place, torch.from_numpy(encoded.places(column)))
            if len(group) == together:
                yield self._numbers(group, scaled)
                group.clear()
        if group:
            yield self._numbers(group, scaled)

    def _numbers(self, group: Mapping[int, tuple[NumberEncoding, Numbers]], scaled: Tensor) -> _Numbers:
        """Return columns by their place, filled, transformed, and scaled in memory [columns, rows] of float64."""
        places, filled = list(group), [encoded.transformed(column) for encoded, column in group.values()]
        values = np.stack(filled) if len(filled) > 1 else filled[0][np.newaxis]
        scaled = self.scaling.some_features(places, torch.from_numpy(values), scaled[: len(places)])
        self._require_finite(scaled)
        self._check(group, values, scaled)
        missing = {place + 1: column.missing for place, (encoded, column) in group.items() if encoded.indicated}
        memory = allocate(scaled.numel() * self.dtype.itemsize)
        cast = torch.frombuffer(memory, dtype=self.dtype, count=scaled.numel()).view_as(scaled).copy_(scaled)
        return _Numbers(places, cast, list(missing), [*map(torch.from_numpy, missing.values())])

    def _check(self, group: Mapping[int, tuple[NumberEncoding, Numbers]], values: np.ndarray, scaled: Tensor) -> None:
        """Check what the dtype loses of columns [columns, rows]."""
        standardized = self.config.number_transform == "standardize"
        pairs = list(group.items())
        for index in self.check.suspects(scaled.numpy()) if len(pairs) > 1 else [0]:
            place, (encoded, column) = pairs[index]
            if encoded.transform is None:  # a transform leaves no large offset, and bounds the values
                exact = column.integers and not standardized  # scaled integers are rounded anyway
                mean, scale = float(self.scaling.feature_mean[place]), float(self.scaling.feature_scale[place])
                self.check.add(rounding.Column(column.name, values[index], exact, standardized, mean, scale))

    def _require_finite(self, scaled: Tensor) -> None:
        if not bool(torch.stack(scaled.aminmax()).isfinite().all()):
            raise DataError(
                f"{_SCALED_BY[self.config.standardize]} for data whose mean or standard deviation float64 cannot represent; use a larger unit"
            )


@dataclass(frozen=True, eq=False)
class _Numbers:
    """Columns of numbers."""

    places: list[int]
    values: Tensor
    """[columns, rows]."""
    indicators: list[int]
    """Places of the columns that say where a value is missing."""
    missing: list[Tensor]
    """Masks [rows]."""

    def put(self, numbers: Tensor, codes: Tensor, rows: Tensor) -> None:
        """Write some rows into the columns of numbers."""
        numbers[:, self.places] = self.values.index_select(1, rows).T
        for place, missing in zip(self.indicators, self.missing, strict=True):
            numbers[:, place] = missing[rows]


@dataclass(frozen=True, eq=False)
class _OneHot:
    """A column of categories as columns of numbers, from a place on."""

    place: int
    known: Tensor
    """The column in which each row has its 1, [rows]; -1 for none."""

    def put(self, numbers: Tensor, codes: Tensor, rows: Tensor) -> None:
        """Write some rows into the columns of numbers, which are 0."""
        own = self.known[rows]
        known = (own >= 0).nonzero().flatten()
        numbers[known, self.place + own[known]] = 1


@dataclass(frozen=True, eq=False)
class _Codes:
    """A column of categories as codes."""

    place: int
    values: Tensor
    """[rows]."""

    def put(self, numbers: Tensor, codes: Tensor, rows: Tensor) -> None:
        """Write some rows into the columns of codes."""
        codes[:, self.place] = self.values[rows]
