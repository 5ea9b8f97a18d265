"""Tables from files: which columns are read, what they are, and what is missing; anything unclear is refused with its place.

The shipped `diabetes.csv` is the unscaled diabetes data of Efron, Hastie, Johnstone and Tibshirani, "Least angle
regression", Annals of Statistics 32 (2004) 407-499: 442 patients, ten measurements, and the progression of the disease
a year later. The data are public; the values are the ones in scikit-learn (BSD-3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import islice
from typing import Protocol

import numpy as np

from runner.config import schema as c
from runner.config import validation
from runner.data import files
from runner.data.arrow_files import ArrowSource
from runner.data.diagnostics import MOST_SHOWN, Problem, UnknownColumn, listed, named, raise_problems, shown
from runner.data.dialect import Form
from runner.data.kinds import Categories, Column, Numbers, Rules
from runner.data.progress import Report, unreported
from runner.data.text_files import TextSource
from runner.errors import DataError

TEXT_SUFFIXES = tuple(
    f"{kind}{packed}" for kind in (".csv", ".tsv", ".txt") for packed in ("", ".gz", ".bz2", ".xz", ".zst")
)
ARROW_SUFFIXES = (".parquet", ".feather", ".arrow", ".ipc")

PLACES = 5
"""Number of rows or names that a message lists."""

COMPARED_ROWS = 1000
"""Number of rows by which columns that may be equal are found."""

NUMBERED_ROWS = 50
"""Number of rows from which a column of consecutive integers is taken for a numbering of the rows."""


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of one source."""

    features: list[Column]
    """`data/dataset.py:build` takes them out one by one, so that no column is in memory in two forms for long."""
    target: Numbers
    rows: np.ndarray
    """Number of each row in the source, from 0, int64 [rows]."""
    sigma: np.ndarray | None = None
    """Standard deviation of the target, float64 [rows]; None without `data.sigma`."""
    weight: np.ndarray | None = None
    """Weight of each row, float64 [rows]; None without `data.weight`."""
    sha256: str = ""
    """SHA-256 of the bytes of all files, unpacked; empty for synthetic data."""
    notes: tuple[str, ...] = ()
    """How the source was read where that is not obvious, as phrases."""
    warnings: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    """Columns of the source that are neither target nor features."""

    def row_number(self, row: int) -> int:
        """Return the number in the source, from 1, of a row counted from 0."""
        return int(self.rows[row]) + 1


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read, and how."""

    target: str
    features: tuple[str, ...] | None = None
    """None means all columns that have no other role."""
    sigma: str | None = None
    weight: str | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    """New names → names in the source; all other names are new ones."""
    drop: tuple[str, ...] = ()
    categorical: tuple[str, ...] | None = None
    """None takes those whose cells are text."""
    missing: str = "error"
    missing_values: tuple[str, ...] = ()

    @staticmethod
    def of(config: c.Csv | c.Parquet) -> Columns:
        """Return what a configuration says."""
        categorical = None if config.categorical == "auto" else config.categorical
        return Columns(
            config.target,
            config.features,
            config.sigma,
            config.weight,
            config.rename,
            config.drop,
            categorical,
            config.missing,
            config.missing_values,
        )

    @property
    def weighting(self) -> dict[str, str]:
        """Column by the key that weights the rows by it."""
        pairs = (("data.sigma", self.sigma), ("data.weight", self.weight))
        return {key: name for key, name in pairs if name is not None}

    @property
    def roles(self) -> dict[str, str]:
        """Key by the column that it names, for the columns that are no features."""
        return {name: key for key, name in self.weighting.items()} | {self.target: "data.target"}


def from_csv(config: c.Csv, seed: int, report: Report) -> Table:
    """Return the table of `data=csv`; the seed is not used."""
    return read_text(config.path, Columns.of(config), Form.of(config), report)


def from_parquet(config: c.Parquet, seed: int, report: Report) -> Table:
    """Return the table of `data=parquet`; the seed is not used."""
    return read_arrow(config.path, Columns.of(config), report)


def from_diabetes(config: c.Diabetes, seed: int, report: Report) -> Table:
    """Return the table of `data=diabetes`; seed and report are not used."""
    return read_diabetes()


def read_text(path: str, columns: Columns, form: Form, report: Report = unreported) -> Table:
    """Return columns of text files. Raises `DataError` with every problem found; line numbers count from 1."""
    return _table(TextSource(path, files.find(path, TEXT_SUFFIXES, report), form), columns)


def read_arrow(path: str, columns: Columns, report: Report = unreported) -> Table:
    """Return columns of Parquet, Feather or Arrow files.

    Raises `DataError` with every problem found, its row numbers counted from 1, or if pyarrow is not installed.
    """
    return _table(ArrowSource(path, files.find(path, ARROW_SUFFIXES, report)), columns)


def read_diabetes() -> Table:
    """Return the shipped diabetes data: 442 rows, ten features, target `progression`."""
    with resources.as_file(resources.files("runner.data").joinpath("diabetes.csv")) as path:
        return read_text(str(path), Columns("progression"), Form())


class Source(Protocol):
    """Files of one table, opened."""

    @property
    def path(self) -> str:
        """What `data.path` says."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes of all files, unpacked."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the columns."""

    @property
    def notes(self) -> Sequence[str]:
        """What was detected, as phrases."""

    @property
    def warnings(self) -> Sequence[str]:
        """What the user should know of the columns that were read."""

    def read(self, places: Mapping[str, int], rules: Rules) -> dict[str, Column]:
        """Return columns, all of the same length, by their new name and their place among `names`. Raises `DataError` for cells that cannot be used."""

    def places(self, rows: Sequence[int]) -> list[str]:
        """Return where some rows, from 0 and in ascending order, stand, such as "line 3"."""


def _table(source: Source, columns: Columns) -> Table:
    """Return the table of a source."""
    names, problems = _renamed(source, columns.rename)
    wanted, others = _select_columns(source.path, names, columns)
    raise_problems(source.path, [*problems, *others], (), "")
    places = {name: place for place, name in enumerate(names)}
    read = source.read(
        {name: places[name] for name in wanted},
        Rules(columns.categorical, columns.missing_values, tuple(columns.roles)),
    )
    rows = _kept(source, columns, read)
    if len(next(iter(read.values())).missing if rows is None else rows) < 2:
        raise DataError(f"`data.path` must have at least two rows, got 1 in {named(source.path)}; add rows")
    if rows is not None:
        for name in read:  # one by one, so that no more than one column is in memory twice
            read[name] = read[name].take(rows)
    features = [read[name] for name in wanted if name not in columns.roles]
    target = _numbers(read[columns.target])
    return Table(
        features=features,
        target=target,
        sigma=None if columns.sigma is None else _numbers(read[columns.sigma]).values,
        weight=None if columns.weight is None else _numbers(read[columns.weight]).values,
        rows=np.arange(len(target.values)) if rows is None else rows,
        sha256=source.sha256,
        notes=(*source.notes, *_notes(features)),
        warnings=(*source.warnings, *_dropped(read, rows), *_warnings(features, target)),
        unread=tuple(name for name in names if name not in read),
    )


def _renamed(source: Source, rename: Mapping[str, str]) -> tuple[list[str], list[Problem]]:
    """Return the names of all columns after `data.rename`, and its problems. What cannot be renamed keeps its name."""
    names = [validation.normalized(name) for name in source.names]
    problems: list[Problem] = [
        UnknownColumn(source.path, f"data.rename.{new}", old, names) for new, old in rename.items() if old not in names
    ]
    taken = set(names) - set(rename.values())
    problems += [
        f"`data.rename` must give {shown(old)} a name of its own, but {named(source.path)} has another column {shown(new)}; use another name"
        for new, old in rename.items()
        if new in taken
    ]
    new_names = {old: new for new, old in rename.items() if new not in taken}
    return [new_names.get(name, name) for name in names], problems


def _select_columns(path: str, names: Sequence[str], columns: Columns) -> tuple[list[str], list[Problem]]:
    """Return the columns to read, features first, and no problems; or no columns and all problems with their names."""
    features, roles, rename = columns.features, columns.roles, columns.rename
    without = {*roles, *columns.drop}
    chosen = [name for name in names if name not in without] if features is None else list(features)
    problems: list[Problem] = [
        f"`data.path` must have distinct column names, got {shown(name)} {count} times in {named(path)}; rename them"
        for name, count in Counter(names).items()
        if count > 1
    ]
    problems += [
        f"`data.features` must name each column once, got {shown(name)} {count} times; remove the duplicates"
        for name, count in Counter(features or ()).items()
        if count > 1
    ]
    if features is None and "" in chosen:
        problems.append(
            f"`data.features` must be set, because column {names.index('') + 1} of {named(path)} has no name"
        )
    problems += [
        f"`data.features` must not contain {'the target' if key == 'data.target' else f'the column of `{key}`,'} {shown(name)}; "
        "remove it"
        for name, key in roles.items()
        if name in chosen
    ]
    problems += [
        f"`{key}` must not be the target, got {shown(name)}; name another column"
        for key, name in columns.weighting.items()
        if name == columns.target
    ]
    problems += [
        f"`data.drop` must not contain {shown(name)}, the column of `{key}`; remove it from one of them"
        for name, key in {**dict.fromkeys(features or (), "data.features"), **roles}.items()
        if name in columns.drop
    ]
    problems += [
        f"`data.categorical` must not contain {shown(name)}, the column of `{key}`; remove it"
        for name, key in roles.items()
        if name in (columns.categorical or ())
    ]
    if not chosen:
        problems.append(f"`data.features` must name at least one column, got none of {named(path)}; name one")
    requested = {**dict.fromkeys(features or (), "data.features"), **dict.fromkeys(columns.drop, "data.drop"), **dict.fromkeys(columns.categorical or (), "data.categorical"), **roles}  # fmt: skip
    present = {*names, *rename}
    new_names = {old: new for new, old in rename.items()}
    problems += [
        f"`{key}` must use the new name of {shown(name)}; write {shown(new_names[name])}, as in `data.rename`"
        if name in new_names
        else UnknownColumn(path, key, name, names)
        for name, key in requested.items()
        if name not in present
    ]
    return ([], problems) if problems else ([*chosen, *roles], [])


def _kept(source: Source, columns: Columns, read: Mapping[str, Column]) -> np.ndarray | None:
    """Return the rows in which nothing is missing that must not be, or None for all of them.

    Raises `DataError` where `data.missing` does not allow that a value is missing.
    """
    gone = {name: mask for name, column in read.items() if (mask := column.missing).any()}
    if columns.missing == "mean":  # nothing is known of a row without a target or weight
        gone = {name: mask for name, mask in gone.items() if name in columns.roles}
    if not gone:
        return None
    if columns.missing != "drop":
        # Places are looked up in the file, which takes long, and are needed for the first ones only.
        problems = [_missing(source, columns, name, mask) for name, mask in islice(gone.items(), MOST_SHOWN)]
        raise_problems(source.path, problems, (), "", len(gone) - len(problems))
    rows: np.ndarray = np.flatnonzero(~np.logical_or.reduce(list(gone.values())))
    if not len(rows):
        raise DataError(
            f"`data.missing`=drop must leave rows, but every row of {named(source.path)} misses a value in "
            f"{listed(list(gone))}; drop columns with `data.drop`, or use data.missing=mean"
        )
    return rows


def _missing(source: Source, columns: Columns, name: str, mask: np.ndarray) -> str:
    places = source.places(np.flatnonzero(mask)[:PLACES].tolist())
    count, more = int(mask.sum()), f" and {int(mask.sum()) - PLACES:,} more" if mask.sum() > PLACES else ""
    remedy = "data.missing=drop" if name in columns.roles else "data.missing=drop or data.missing=mean"
    return (
        f"`data.missing`: column {shown(name)} of {named(source.path)} has {count:,} missing value{'' if count == 1 else 's'} ({count / len(mask):.1%}), in "
        f"{', '.join(places)}{more}; use {remedy}"
    )


def _numbers(column: Column) -> Numbers:
    assert isinstance(column, Numbers)  # `Rules.numbers`
    return column


def _notes(features: Sequence[Column]) -> Iterator[str]:
    categories = [f"{column.name} ({len(column.values)})" for column in features if isinstance(column, Categories)]
    if categories:
        yield f"categories {', '.join(categories[:PLACES])}{', …' if len(categories) > PLACES else ''}"
    dates = [column.name for column in features if isinstance(column, Numbers) and column.kind == "date"]
    if dates:
        yield f"dates as seconds {', '.join(dates[:PLACES])}"


def _dropped(read: Mapping[str, Column], rows: np.ndarray | None) -> Iterator[str]:
    if rows is not None:
        kept = len(rows)
        yield f"`data.missing`=drop left out rows with a missing value; {kept:,} rows are left"


def _warnings(features: Sequence[Column], target: Numbers) -> Iterator[str]:
    rows = len(target.values)
    if constant := [column.name for column in features if _is_constant(column)]:
        yield f"`data.features`: every row has the same value in {listed(constant)}, which explains nothing"
    if equal := _equal_columns(features):
        yield f"`data.features`: {' and '.join(map(listed, equal[:PLACES]))} are equal in every row; add all but one to `data.drop`"
    if np.all(target.values == target.values[0]):
        yield f"`data.target`: {shown(target.name)} is {float(target.values[0])!r} in every row, so r2 is undefined"
    if rows < len(features) + 1:
        yield f"`data.path`: there are {rows} rows for {len(features)} features, so many models fit exactly"
    numbered = [column.name for column in features if isinstance(column, Numbers) and _is_numbering(column)]
    if numbered and len(features) > 1:
        yield f"`data.features`: {listed(numbered)} numbers the rows, as identifiers do; add it to `data.drop` if it is one"


def _is_constant(column: Column) -> bool:
    values = column.values if isinstance(column, Numbers) else column.codes
    return bool(np.all(values == values[0]))


def _equal_columns(features: Sequence[Column]) -> list[list[str]]:
    """Return the names of the columns of numbers that are equal in every row, group by group."""
    alike: dict[bytes, list[list[Numbers]]] = {}
    for column in features:
        if isinstance(column, Numbers) and not _is_constant(column):
            groups = alike.setdefault(column.values[:COMPARED_ROWS].tobytes(), [])
            own = next((group for group in groups if np.array_equal(group[0].values, column.values, True)), None)
            if own is None:
                groups.append([column])
            else:
                own.append(column)
    groups = [group for found in alike.values() for group in found]
    return [[column.name for column in group] for group in groups if len(group) > 1]


def _is_numbering(column: Numbers) -> bool:
    """Return whether a column has consecutive integers, each once."""
    values, count = column.values, len(column.values)
    if count < NUMBERED_ROWS or not column.integers or values.max() - values.min() != count - 1:
        return False
    return len(np.unique(values)) == count
