"""New rows for a trained model: from files, from a table in memory or from an array, in blocks whose columns are of known kinds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, Protocol

import numpy as np

from runner.config import schema as c
from runner.config import validation
from runner.data import files
from runner.data.array_source import ArraySource, refuse_categories
from runner.data.arrow_files import ArrowSource, table_of, texts_of
from runner.data.diagnostics import MOST_SHOWN, PLACES, UnknownColumn, listed, named, shown
from runner.data.dialect import Form
from runner.data.encoding import CategoryEncoding
from runner.data.kinds import MISSING, Block, Categories, Column
from runner.data.preprocessing import Preprocessing
from runner.data.progress import Report, unreported
from runner.data.tables import ARROW_SUFFIXES, TEXT_SUFFIXES
from runner.data.text_files import TextSource
from runner.data.texts import PlainTexts
from runner.errors import DataError

MOST_UNSEEN = 1000
"""Number of distinct values of a column, unknown to the training rows, that are counted one by one."""


class BlockSource(Protocol):
    """Rows that are read in blocks."""

    @property
    def path(self) -> str:
        """What messages call it."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the columns."""

    @property
    def notes(self) -> Sequence[str]:
        """What was detected, as phrases."""

    def blocks(
        self, places: Mapping[str, int], kinds: Mapping[str, str], kept: Sequence[str], markers: frozenset[str]
    ) -> Iterator[Block]:
        """Yield all rows: columns of known kinds, and columns as they stand, at these places by name. Raises `DataError`."""

    def places(self, rows: Sequence[int]) -> list[str]:
        """Return where some rows, from 0 and in ascending order, stand, such as "line 3"."""


def open_files(path: str, config: c.DataConfig, report: Report = unreported) -> BlockSource:
    """Return the rows of text, Parquet, Feather or Arrow files; text has the form that a configuration gives it.

    Raises `DataError`, which calls the path `data.path`.
    """
    found = files.find(path, (*TEXT_SUFFIXES, *ARROW_SUFFIXES), report)
    if all(next(file.chunks(), b"").startswith((b"PAR1", b"ARROW1")) for file in found):
        return ArrowSource.of_files(path, found)
    return TextSource(path, found, Form.of(config) if isinstance(config, c.Csv) else Form(), least_columns=1)


def of_frame(frame: Any, preprocessing: Preprocessing) -> BlockSource:
    """Return the rows of a table in memory, of an array [rows, features] of numbers, or of a source. Raises `DataError`."""
    if isinstance(frame, ArraySource | ArrowSource):
        return frame
    if isinstance(frame, np.ndarray):
        return _of_array(frame, preprocessing)
    return ArrowSource.of_table(table_of(frame))


def is_table(value: Any) -> bool:
    """Return whether a value is a table in memory, with named columns, and not an array or a single column."""
    arrow = hasattr(value, "__arrow_c_stream__") or hasattr(value, "to_parquet")
    return arrow and len(getattr(value, "shape", (0, 0))) == 2


def _of_array(array: np.ndarray, preprocessing: Preprocessing) -> ArraySource:
    """Return an array whose columns are the features in their order. Raises `DataError` if it does not fit them."""
    names = list(preprocessing.kinds)
    refuse_categories([name for name, kind in preprocessing.kinds.items() if kind == "category"])
    if array.ndim != 2 or array.shape[1] != len(names):
        raise DataError(
            f"the array must have the shape [rows, {len(names)}], got {list(array.shape)}; its columns are {listed(names)}"
        )
    if array.dtype.kind not in "fiub":
        raise DataError(f"the array must have numbers, got {array.dtype}; cast it")
    return ArraySource(array.astype(np.float64), names)


@dataclass(frozen=True)
class Policy:
    """What becomes of cells that the model has no value for."""

    missing: Literal["error", "drop", "mean"] = "error"
    """`data.missing`. A row is never left out of a prediction, so drop is the same as error."""
    unseen: Literal["error", "other"] = "other"
    """`predict.unseen`: whether a category that the training rows did not have is refused."""
    missing_values: tuple[str, ...] = ()
    rename: Mapping[str, str] = field(default_factory=dict)
    """New names → names in the source, as in `data.rename`."""

    @staticmethod
    def of(config: c.Config) -> Policy:
        """Return what a configuration says."""
        data, unseen = config.data, config.predict.unseen
        if isinstance(data, c.TableConfig):
            return Policy(data.missing, unseen, data.missing_values, data.rename)
        return Policy(unseen=unseen)


@dataclass
class NewRows:
    """Rows of a source with the columns that a model needs."""

    source: BlockSource
    preprocessing: Preprocessing
    policy: Policy
    keep: Sequence[str] = ()
    """Columns that are passed on as they are."""
    others: Sequence[str] = ()
    """Columns of numbers that are read if the source has them, such as a weight."""
    option: str = "--keep"
    """Option that names the columns to keep."""
    rows: int = 0
    """Number of rows that were read so far."""
    _missing: dict[str, _Missing] = field(default_factory=dict)
    _unseen: dict[str, _Unseen] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [validation.normalized(name) for name in self.source.names]
        new_names = {old: new for new, old in self.policy.rename.items() if new not in names}
        self.names = [new_names.get(name, name) for name in names]
        self._places = {name: place for place, name in enumerate(self.names)}
        self._refuse_unfit()

    @property
    def has_targets(self) -> bool:
        """Whether the source has all targets, so that predictions can be compared with them."""
        return all(name in self._places for name in self.preprocessing.target_names)

    @property
    def notes(self) -> list[str]:
        """How the source is read where that is not obvious, as phrases."""
        used = {*self.preprocessing.kinds, *self.preprocessing.target_names, *self.keep, *self.others}
        unused = [name for name in self.names if name not in used]
        several = "1 column is" if len(unused) == 1 else f"{len(unused):,} columns are"
        return [*self.source.notes, *([f"{several} not used: {listed(unused)}"] if unused else [])]

    def blocks(self) -> Iterator[Block]:
        """Yield the rows in blocks. Nothing is yielded after a value that is refused; `DataError` has them all at the end."""
        present = [*(self.preprocessing.target_names if self.has_targets else ())]
        present += [name for name in self.others if name in self._places]
        kinds = {**self.preprocessing.kinds, **dict.fromkeys(present, "number")}
        for block in self.source.blocks(self._places, kinds, self.keep, self._markers):
            for name in self.preprocessing.kinds:
                self._note_missing(block.columns[name])
            for encoding in self.preprocessing.encoding.columns:
                if isinstance(encoding, CategoryEncoding):
                    self._note_unseen(encoding, block.columns[encoding.name])
            self.rows += len(block)
            if not self._refused:
                yield block
        if problems := self._problems():
            raise DataError(problems)

    def encode(self, cells: Any, places: dict[str, int]) -> np.ndarray:
        """Return the place of each cell of a block's `kept` column, int32 [rows], or -1 for a missing value.

        New texts are given the next place. Raises `DataError` for a column of lists or other nested values.
        """
        texts = PlainTexts(cells, self._markers) if isinstance(cells, list) else texts_of(cells, self._markers)
        if texts is None:
            raise DataError(
                f"`{self.option}` must name a column of texts, numbers or dates, got one of type {cells.type}; use another one"
            )
        return texts.encode(places)

    def warnings(self) -> list[str]:
        """Return what the user should know of the rows that were read."""
        return [
            f"column {shown(name)} has values that the training rows did not have: {unseen}; they are predicted as another category"
            for name, unseen in self._unseen.items()
        ]

    def _refuse_unfit(self) -> None:
        """Raise `DataError` if a column is absent, or is there twice."""
        path, needed = self.source.path, [*self.preprocessing.kinds]
        lacking = [name for name in needed if name not in self._places]
        problems: list[Any] = []
        if len(lacking) == 1:
            problems.append(
                f"`data.path` must have the columns of the training rows, but {named(path)} lacks {shown(lacking[0])}; "
                f"{UnknownColumn(path, '', lacking[0], self.names).nearest()}"
            )
        elif lacking:
            problems.append(
                f"`data.path` must have the columns of the training rows, but {named(path)} lacks {listed(lacking)}; add them"
            )
        problems += [
            UnknownColumn(path, self.option, name, self.names) for name in self.keep if name not in self._places
        ]
        used = {*needed, *self.preprocessing.target_names, *self.keep, *self.others}
        problems += [
            f"`data.path` must have distinct column names, got {shown(name)} {count} times in {named(path)}; rename them"
            for name, count in Counter(self.names).items()
            if count > 1 and name in used
        ]
        if problems:
            raise DataError(map(str, problems))

    def _note_missing(self, column: Column) -> None:
        mask = column.missing
        if mask.any():
            found = self._missing.setdefault(column.name, _Missing())
            found.count += int(mask.sum())
            found.first += (self.rows + np.flatnonzero(mask)[: PLACES - len(found.first)]).tolist()

    def _note_unseen(self, encoding: CategoryEncoding, column: Column) -> None:
        assert isinstance(column, Categories)
        known = encoding.spellings
        unseen = [code for code, value in enumerate(column.values) if value not in known]
        if unseen:
            counts = np.bincount(column.codes[column.codes >= 0], minlength=len(column.values))
            found = self._unseen.setdefault(encoding.name, _Unseen())
            for code in unseen:
                found.add(column.values[code], int(counts[code]))

    @property
    def _markers(self) -> frozenset[str]:
        """Texts that stand for a missing value."""
        return frozenset((*MISSING, *self.policy.missing_values))

    @property
    def _refused(self) -> bool:
        """Whether a value so far is refused."""
        missing, unseen = (
            self.policy.missing != "mean" and self._missing,
            self.policy.unseen == "error" and self._unseen,
        )
        return bool(missing or unseen)

    def _problems(self) -> list[str]:
        """Return the problems with the values."""
        problems = []
        if self.policy.missing != "mean":
            problems += [self._missing_text(name, found) for name, found in islice(self._missing.items(), MOST_SHOWN)]
        if self.policy.unseen == "error":
            problems += [
                f"`predict.unseen`: column {shown(name)} of {named(self.source.path)} has values that the training rows did not "
                f"have: {unseen}; correct them, or use predict.unseen=other"
                for name, unseen in self._unseen.items()
            ]
        return problems

    def _missing_text(self, name: str, found: _Missing) -> str:
        more = f" and {found.count - PLACES:,} more" if found.count > PLACES else ""
        count = "1 missing value" if found.count == 1 else f"{found.count:,} missing values"
        return (
            f"`data.missing`: column {shown(name)} of {named(self.source.path)} has {count}, in "
            f"{', '.join(self.source.places(found.first))}{more}; fill them in, or use data.missing=mean for the mean of the "
            "training rows"
        )


@dataclass
class _Missing:
    """Missing values of a column."""

    count: int = 0
    first: list[int] = field(default_factory=list)
    """Numbers of the first rows, from 0."""


@dataclass
class _Unseen:
    """Values of a column that the training rows did not have."""

    counts: Counter[str] = field(default_factory=Counter)
    others: int = 0
    """Number of rows with values after the first thousand."""

    def add(self, value: str, count: int) -> None:
        """Count rows with a value."""
        if value in self.counts or len(self.counts) < MOST_UNSEEN:
            self.counts[value] += count
        else:
            self.others += count

    def __str__(self) -> str:
        shown_ones = self.counts.most_common(PLACES)
        others = sum(self.counts.values()) + self.others - sum(count for _, count in shown_ones)
        texts = [f"{shown(value)} ({count:,} {'row' if count == 1 else 'rows'})" for value, count in shown_ones]
        return ", ".join(texts) + (f" and others in {others:,} rows" if others else "")
