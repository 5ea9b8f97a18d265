"""Tables from files: which columns are read, what they are, and what is missing; anything unclear is refused with its place.

The shipped `diabetes.csv` is the unscaled diabetes data of Efron, Hastie, Johnstone and Tibshirani, "Least angle
regression", Annals of Statistics 32 (2004) 407-499: 442 patients, ten measurements, and the progression of the disease
a year later. The data are public; the values are the ones in scikit-learn (BSD-3).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import resources
from itertools import islice
from typing import Protocol

import numpy as np

from runner.config import schema as c
from runner.config import validation
from runner.data import files, findings
from runner.data.arrow_files import ArrowSource
from runner.data.diagnostics import MOST_SHOWN, PLACES, Problem, UnknownColumn, listed, named, raise_problems, shown
from runner.data.dialect import Form
from runner.data.kinds import Categories, Column, Numbers, Rules
from runner.data.progress import Report, unreported
from runner.data.split import PARTS
from runner.data.text_files import TextSource
from runner.errors import DataError

TEXT_SUFFIXES = tuple(
    f"{kind}{packed}" for kind in (".csv", ".tsv", ".txt") for packed in ("", ".gz", ".bz2", ".xz", ".zst")
)
ARROW_SUFFIXES = (".parquet", ".feather", ".arrow", ".ipc")

LEAST_ROWS = 2
"""Rows that a table must have."""


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of one source."""

    features: list[Column]
    """`data/dataset.py:build` takes them out one by one, so that no column is in memory in two forms for long."""
    targets: tuple[Numbers, ...]
    rows: np.ndarray
    """Number of each row in the source, from 0, int64 [rows]. It counts on through the files of parts that have their own."""
    count: int = 0
    """Number of rows in the source, those that are left out among them."""
    own_files: tuple[tuple[int, str], ...] = ()
    """Number in `rows` of the first row, and path, of each file that a part has of its own."""
    sigma: np.ndarray | None = None
    """Standard deviation of the target, float64 [rows]; None without `data.sigma`."""
    weight: np.ndarray | None = None
    """Weight of each row, float64 [rows]; None without `data.weight`."""
    given: np.ndarray | None = None
    """Place in `split.PARTS` of the part that a row is given, and 0 where the split decides, int8 [rows]; None without such rows."""
    groups: np.ndarray | None = None
    """Number of the group of each row, int64 [rows]; None without `data.split.group`."""
    sha256: str = ""
    """SHA-256 of the bytes of all files, unpacked, or of the content of tables in memory; empty for synthetic data."""
    notes: tuple[str, ...] = ()
    """How the source was read where that is not obvious, as phrases."""
    warnings: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    """Columns of the source that are neither targets nor features."""

    @property
    def target_names(self) -> tuple[str, ...]:
        """Names of the targets."""
        return tuple(target.name for target in self.targets)

    def place(self, row: int) -> str:
        """Return where a row, counted from 0, is: "row 5" of the source, or "row 5 of 'test.csv'" for a part's own file."""
        number = int(self.rows[row])
        own = next(((first, path) for first, path in reversed(self.own_files) if number >= first), None)
        return f"row {number + 1}" if own is None else f"row {number - own[0] + 1} of {named(own[1])}"


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read, and how."""

    target: str | tuple[str, ...]
    """One name, or several."""
    features: tuple[str, ...] | None = None
    """None means all columns that have no other role."""
    sigma: str | None = None
    weight: str | None = None
    part: str | None = None
    group: str | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    """New names → names in the source; all other names are new ones."""
    drop: tuple[str, ...] = ()
    categorical: tuple[str, ...] | None = None
    """None takes those whose cells are text."""
    missing: str = "error"
    missing_values: tuple[str, ...] = ()
    dates: str = "seconds"

    @staticmethod
    def of(config: c.TableConfig) -> Columns:
        """Return what a configuration says."""
        categorical = None if config.categorical == "auto" else config.categorical
        return Columns(
            config.target,
            config.features,
            config.sigma,
            config.weight,
            config.split.column,
            config.split.group,
            config.rename,
            config.drop,
            categorical,
            config.missing,
            config.missing_values,
            config.dates,
        )

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of all targets."""
        return (self.target,) if isinstance(self.target, str) else self.target

    @property
    def named(self) -> list[tuple[str, str]]:
        """Key and column of every role besides that of a feature."""
        others = (("data.sigma", self.sigma), ("data.weight", self.weight), ("data.split.column", self.part), ("data.split.group", self.group))  # fmt: skip
        return [
            *(("data.target", name) for name in self.targets),
            *((key, name) for key, name in others if name is not None),
        ]

    @property
    def roles(self) -> dict[str, str]:
        """Key by the column that it names, for the columns that are no features."""
        return {name: key for key, name in reversed(self.named)}

    @property
    def left_out(self) -> str:
        """Advice to leave out a feature."""
        return "add it to `data.drop`" if self.features is None else "remove it from `data.features`"

    @property
    def rules(self) -> Rules:
        """What kinds the columns must be."""
        texts = tuple(name for name in (self.part, self.group) if name is not None)
        return Rules(self.categorical, self.missing_values, tuple({*self.roles} - {*texts}), texts)


def from_csv(config: c.Csv, seed: int, report: Report) -> Table:
    """Return the table of `data=csv`; the seed is not used."""
    return _of_files(config, Columns.of(config), lambda path: _text_source(path, Form.of(config), report))


def from_parquet(config: c.Parquet, seed: int, report: Report) -> Table:
    """Return the table of `data=parquet`; the seed is not used."""
    return _of_files(config, Columns.of(config), lambda path: _arrow_source(path, report))


def from_memory(config: c.Memory, seed: int, report: Report) -> Table:
    """Raise `DataError`: the rows of `data=memory` are not in the configuration."""
    raise DataError(
        "`data` must not be memory, whose rows only Python code can give; use data=csv with a file of the rows"
    )


def of_openings(config: c.TableConfig, openings: Mapping[str, Opening]) -> Table:
    """Return the table that a configuration makes of the source of the training rows, "train", and of those of other parts."""
    return _complete(openings, Columns.of(config))


def of_source(config: c.TableConfig, source: Source, key: str) -> Table:
    """Return the table that a configuration makes of a source that is open already, which messages call by a key."""
    return of_openings(config, {"train": Opening(key, lambda: source)})


def from_diabetes(config: c.Diabetes, seed: int, report: Report) -> Table:
    """Return the table of `data=diabetes`; seed and report are not used."""
    return read_diabetes()


def read_text(path: str, columns: Columns, form: Form, report: Report = unreported) -> Table:
    """Return columns of text files. Raises `DataError` with every problem found; line numbers count from 1."""
    return _complete({"train": Opening("data.path", lambda: _text_source(path, form, report))}, columns)


def read_arrow(path: str, columns: Columns, report: Report = unreported) -> Table:
    """Return columns of Parquet, Feather or Arrow files.

    Raises `DataError` with every problem found, its row numbers counted from 1, or if pyarrow is not installed.
    """
    return _complete({"train": Opening("data.path", lambda: _arrow_source(path, report))}, columns)


def read_diabetes() -> Table:
    """Return the shipped diabetes data: 442 rows, ten features, target `progression`."""
    with resources.as_file(resources.files("runner.data").joinpath("diabetes.csv")) as path:
        return read_text(str(path), Columns("progression"), Form())


def _text_source(path: str, form: Form, report: Report) -> Source:
    return TextSource(path, files.find(path, TEXT_SUFFIXES, report), form)


def _arrow_source(path: str, report: Report) -> Source:
    return ArrowSource.of_files(path, files.find(path, ARROW_SUFFIXES, report))


class Source(Protocol):
    """Files of one table, opened."""

    @property
    def path(self) -> str:
        """What `data.path` says."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes of all files, unpacked; empty for a table in memory."""

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


@dataclass(frozen=True)
class Opening:
    """The source of a part's rows, which is opened when its turn comes."""

    key: str
    """What messages call it, such as `data.path`."""
    open: Callable[[], Source]


def _of_files(config: c.Csv | c.Parquet, columns: Columns, opened: Callable[[str], Source]) -> Table:
    """Return the table of the files of a configuration."""
    others = {part: Opening(f"data.{part}_path", partial(opened, path)) for part, path in config.own_paths.items()}
    return _complete({"train": Opening("data.path", partial(opened, config.path)), **others}, columns)


def _table(source: Source, columns: Columns) -> Table:
    """Return the table of a source."""
    table = _read(source, columns, columns.rules, least=LEAST_ROWS)
    if table.count < LEAST_ROWS:
        raise DataError(f"`data.path` must have at least two rows, got 1 in {named(source.path)}; add rows")
    warnings = (*table.warnings, *findings.warnings(table.features, table.targets, columns.left_out))
    return replace(table, notes=(*table.notes, *findings.notes(table.features)), warnings=warnings)


def _read(source: Source, columns: Columns, rules: Rules, least: int = 1) -> Table:
    """Return the columns of a source, without what there is to say of their values. `least` is the number of rows it needs."""
    names, problems = _renamed(source, columns.rename)
    wanted, others = _select_columns(source.path, names, columns)
    raise_problems(source.path, [*problems, *others], (), "")
    places = {name: place for place, name in enumerate(names)}
    read = source.read({name: places[name] for name in wanted}, rules)
    count, rows = len(read[columns.targets[0]].missing), _kept(source, columns, read, least)
    if rows is not None:
        for name in read:  # one by one, so that no more than one column is in memory twice
            read[name] = read[name].take(rows)
    targets = tuple(_numbers(read[name]) for name in columns.targets)
    return Table(
        features=[read[name] for name in wanted if name not in columns.roles],
        targets=targets,
        sigma=None if columns.sigma is None else _numbers(read[columns.sigma]).values,
        weight=None if columns.weight is None else _numbers(read[columns.weight]).values,
        given=None if columns.part is None else _given(source.path, _categories(read[columns.part])),
        groups=None if columns.group is None else _categories(read[columns.group]).codes.astype(np.int64),
        rows=np.arange(count) if rows is None else rows,
        count=count,
        sha256=source.sha256 or _content(read),
        notes=tuple(source.notes),
        warnings=(*source.warnings, *_dropped(rows)),
        unread=tuple(name for name in names if name not in read),
    )


def _content(columns: Mapping[str, Column]) -> str:
    """Return the SHA-256 of columns in memory: of their names and values, without rows that are left out."""
    digest = hashlib.sha256()
    for name, column in columns.items():
        values = column.values if isinstance(column, Categories) else column.kind
        digest.update(f"{name}\n{values}\n{len(column.missing)}\n".encode())
        digest.update(findings.cells(column).data)
    return digest.hexdigest()


def _complete(openings: Mapping[str, Opening], columns: Columns) -> Table:
    """Return the table of the source of the training rows, with the rows of the parts that have a source of their own after it.

    Problems with a source are those of its key.
    """
    whole, *others = openings.items()
    key = whole[1].key
    with _problems_of(key):
        table = _table(whole[1].open(), columns)
    sha256 = table.sha256
    for part, opening in others:
        with _problems_of(opening.key):
            source = opening.open()
            if table.given is not None and (table.given == PARTS.index(part)).any():
                raise DataError(
                    f"`data.path` must be null, because `data.split.column` says which rows are {part} rows, got "
                    f"{named(source.path)}; use data.path=null"
                )
            own = _own(source, columns, table)
        if own.sha256 == sha256:
            text = f"`{opening.key}` has the content of `{key}`, so its rows are no test of the model"
            own = replace(own, warnings=(*own.warnings, text))
        with _problems_of(opening.key):
            table = _joined(table, own, part, source.path)
    return _with_dates(table, columns.dates)


def _with_dates(table: Table, dates: str) -> Table:
    """Return a table whose dates are what `data.dates` says. The columns of the given one go into it."""
    features: list[Column] = []
    found = []
    for column in table.features:
        if not isinstance(column, Numbers) or column.kind != "date":
            features.append(column)
        elif dates == "seconds":
            features.append(column)
            found.append(column.name)
        else:
            parts = column.in_parts()
            features += parts
            found.append(f"{column.name} ({', '.join(part.kind for part in parts)})")
    note = (f"dates as {dates} {', '.join(found[:PLACES])}",) if found else ()
    return replace(table, features=features, notes=(*table.notes, *note))


@contextmanager
def _problems_of(key: str) -> Iterator[None]:
    """Name another key in the problems with the file of `data.path`."""
    try:
        yield
    except DataError as error:
        raise error.changed(lambda text: text.replace("data.path", key)) from None


def _own(source: Source, columns: Columns, table: Table) -> Table:
    """Return the rows of a part's own file, with the columns of the training rows, read as those are."""
    features = tuple(column.name for column in table.features)
    needed = replace(columns, features=features, part=None, group=None, drop=(), categorical=None)
    rename = {new: old for new, old in columns.rename.items() if new in (*features, *needed.roles)}
    needed = replace(needed, rename=rename)
    names, _ = _renamed(source, rename)
    lacking = [name for name in (*features, *needed.roles) if name not in names]
    if lacking:
        raise DataError(
            f"`data.path` must have the columns of the training rows, but {named(source.path)} lacks {listed(lacking)}; add them"
        )
    texts = tuple(column.name for column in table.features if isinstance(column, Categories))
    numbers = tuple(column.name for column in table.features if isinstance(column, Numbers) and column.kind == "number")
    return _read(source, needed, Rules(None, columns.missing_values, (*numbers, *needed.roles), texts))


def _joined(table: Table, own: Table, part: str, path: str) -> Table:
    """Return a table with the rows of a part's own file added at its end. The columns of the given one go into it."""
    others = []
    for place, more in enumerate(own.features):  # one by one, so that no more than one column is in memory twice
        column = table.features[place].followed_by(more)
        if column is None:
            others.append(more.name)
        else:
            table.features[place] = column
    if others:
        raise DataError(
            f"`data.path` must have the same kinds of columns as the training rows, but {listed(others)} of {named(path)} "
            "has other ones; write its cells in the same way"
        )
    targets = [target.followed_by(more) for target, more in zip(table.targets, own.targets, strict=True)]
    count, given = len(own.rows), np.zeros(len(table.rows), np.int8) if table.given is None else table.given
    return replace(
        table,
        targets=tuple(target for target in targets if target is not None),
        sigma=_appended(table.sigma, own.sigma),
        weight=_appended(table.weight, own.weight),
        given=np.concatenate([given, np.full(count, PARTS.index(part), np.int8)]),
        groups=None if table.groups is None else np.concatenate([table.groups, np.full(count, -1)]),
        rows=np.concatenate([table.rows, table.count + own.rows]),
        count=table.count + own.count,
        own_files=(*table.own_files, (table.count, path)),
        sha256=hashlib.sha256(f"{table.sha256}\n{part}\n{own.sha256}".encode()).hexdigest(),
        notes=(*table.notes, f"{part} rows of {named(path)}"),
        warnings=(*table.warnings, *own.warnings),
    )


def _appended(values: np.ndarray | None, more: np.ndarray | None) -> np.ndarray | None:
    return None if values is None or more is None else np.concatenate([values, more])


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
        if count > 1 and (name or name in (*(features or ()), *roles))  # those without a name may be left out together
    ]
    problems += [
        f"`data.features` must name each column once, got {shown(name)} {count} times; remove the duplicates"
        for name, count in Counter(features or ()).items()
        if count > 1
    ]
    if features is None and "" in chosen:
        problems.append(
            f"`data.path` must have names for its columns, but column {names.index('') + 1} of {named(path)} has none; give it one, "
            "or leave it out with \"data.drop=['']\""
        )
    problems += [
        f"`data.features` must not contain {_owner(key, columns)}{'' if key == 'data.target' else ','} {shown(name)}; remove it"
        for name, key in roles.items()
        if name in chosen
    ]
    problems += [
        f"`{key}` must not be {_owner(roles[name], columns)}, got {shown(name)}; name another column"
        for key, name in columns.named
        if roles[name] != key
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


def _owner(key: str, columns: Columns) -> str:
    """Return what a message calls the column of a key."""
    if key == "data.target":
        return "the target" if len(columns.targets) == 1 else "a target"
    return f"the column of `{key}`"


def _kept(source: Source, columns: Columns, read: Mapping[str, Column], least: int) -> np.ndarray | None:
    """Return the rows in which nothing is missing that must not be, or None for all of them.

    Raises `DataError` where `data.missing` does not allow that a value is missing. To drop rows is no advice where fewer than
    `least` are left.
    """
    gone = {name: mask for name, column in read.items() if (mask := column.missing).any()}
    if columns.missing == "mean":  # nothing is known of a row without a target or weight
        gone = {name: mask for name, mask in gone.items() if name in columns.roles}
    if not gone:
        return None
    empty = [_empty(source, columns, name) for name, mask in gone.items() if mask.all()]
    raise_problems(source.path, empty, (), "")
    rows: np.ndarray = np.flatnonzero(~np.logical_or.reduce(list(gone.values())))
    if columns.missing != "drop":
        # Places are looked up in the file, which takes long, and are needed for the first ones only.
        first = islice(gone.items(), MOST_SHOWN)
        problems = [_missing(source, columns, name, mask, len(rows) >= least) for name, mask in first]
        raise_problems(source.path, problems, (), "", len(gone) - len(problems))
    if len(rows) < min(least, len(next(iter(gone.values())))):
        found = "only one row" if len(rows) else "no row"
        raise DataError(
            f"`data.missing`=drop must leave rows, but {found} of {named(source.path)} has all values in {listed(list(gone))}; "
            "drop columns with `data.drop`, or use data.missing=mean"
        )
    return rows


def _empty(source: Source, columns: Columns, name: str) -> str:
    """Return the message for a column without any value."""
    key = columns.roles.get(name, "data.features")
    remedy = columns.left_out if key == "data.features" else "name another column"
    return f"`{key}` must have values, but column {shown(name)} of {named(source.path)} has none; {remedy}"


def _missing(source: Source, columns: Columns, name: str, mask: np.ndarray, droppable: bool) -> str:
    """Return the message for a column with missing values. `droppable` says whether rows are left without them."""
    places = source.places(np.flatnonzero(mask)[:PLACES].tolist())
    count, more = int(mask.sum()), f" and {int(mask.sum()) - PLACES:,} more" if mask.sum() > PLACES else ""
    policies = ["drop"] * droppable + ["mean"] * (name not in columns.roles)
    remedy = f"use {' or '.join(f'data.missing={policy}' for policy in policies)}" if policies else "fill them in"
    return (
        f"`data.missing`: column {shown(name)} of {named(source.path)} has {count:,} missing value{'' if count == 1 else 's'} ({count / len(mask):.1%}), in "
        f"{', '.join(places)}{more}; {remedy}"
    )


def _given(path: str, column: Categories) -> np.ndarray:
    """Return the place in `split.PARTS` of the part of each row. Raises `DataError` for other words, and without training rows."""
    words = {"train": PARTS.index("train"), "valid": PARTS.index("valid"), "test": PARTS.index("test")}
    present = [column.values[code] for code in np.unique(column.codes).tolist()]
    others = [value for value in present if value not in words]
    if others:
        raise DataError(
            f"`data.split.column` must have the words {', '.join(words)}, got {listed(others)} in column {shown(column.name)} of "
            f"{named(path)}; write one of them in each row"
        )
    if "train" not in present:
        raise DataError(
            f"`data.split.column` must leave rows for training, but column {shown(column.name)} of {named(path)} has only "
            f"{listed(present)}; write train in some rows"
        )
    given: np.ndarray = np.array([words.get(value, 0) for value in column.values], np.int8)[column.codes]
    return given


def _categories(column: Column) -> Categories:
    assert isinstance(column, Categories)  # `Rules.texts`
    return column


def _numbers(column: Column) -> Numbers:
    assert isinstance(column, Numbers)  # `Rules.numbers`
    return column


def _dropped(rows: np.ndarray | None) -> Iterator[str]:
    if rows is not None:
        kept = len(rows)
        yield f"`data.missing`=drop left out rows with a missing value; {kept:,} rows are left"
