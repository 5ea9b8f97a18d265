"""Numeric tables from files, read strictly: a file is read without any repair, or refused with place and remedy.

The shipped `diabetes.csv` is the unscaled diabetes data of Efron, Hastie, Johnstone and Tibshirani, "Least angle
regression", Annals of Statistics 32 (2004) 407-499: 442 patients, ten measurements, and the progression of the disease
a year later. The data are public; the values are the ones in scikit-learn (BSD-3).
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from runner.compute import sizes
from runner.config import schema as c
from runner.config import validation
from runner.config.files import MIB, open_to_read
from runner.data.diagnostics import (
    EXACT_INTEGER,
    Fault,
    Problem,
    UnknownColumn,
    column_type_problem,
    field_count_fault,
    listed,
    merge_column_faults,
    named,
    number_problem,
    raise_problems,
    refuse_binary,
    refuse_odd_header,
    refuse_other_encodings,
    refuse_other_formats,
    shown,
)
from runner.errors import DataError

_MEMORY_FACTOR = 3
"""Bytes of memory for each byte of a file at least: its content, its text, and its cells as text."""
_NOT_IN_NUMBERS = re.compile(r"[^0-9+\-.eE ]")


@dataclass(frozen=True, eq=False)
class Table:
    """Numbers of one source."""

    features: np.ndarray
    """Features, float64 [rows, columns]."""
    target: np.ndarray
    """Target, float64 [rows]."""
    feature_names: tuple[str, ...]
    target_name: str
    integer_columns: frozenset[str]
    """Columns, target included, in which every value is an integer that float64 represents exactly."""
    sha256: str
    """SHA-256 of the file's bytes; empty for synthetic data."""
    warnings: tuple[str, ...]
    unread: tuple[str, ...] = ()
    """Columns of the file that are neither target nor features."""
    sigma: np.ndarray | None = None
    """Standard deviation of the target, float64 [rows]; None without `data.sigma`."""
    weight: np.ndarray | None = None
    """Weight of each row, float64 [rows]; None without `data.weight`."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read."""

    target: str
    features: tuple[str, ...] | None = None
    """None means all columns that have no other role."""
    sigma: str | None = None
    weight: str | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    """New names → names in the file; all other names are new ones."""

    @property
    def weighting(self) -> dict[str, str]:
        """Column by the key that weights the rows by it."""
        return {
            key: name for key, name in (("data.sigma", self.sigma), ("data.weight", self.weight)) if name is not None
        }

    @property
    def roles(self) -> dict[str, str]:
        """Key by the column that it names, for the columns that are no features."""
        return {name: key for key, name in self.weighting.items()} | {self.target: "data.target"}


def from_csv(config: c.Csv, seed: int) -> Table:
    """Return the table of `data=csv`; the seed is not used."""
    return read_csv(config.path, _columns(config))


def from_parquet(config: c.Parquet, seed: int) -> Table:
    """Return the table of `data=parquet`; the seed is not used."""
    return read_parquet(config.path, _columns(config))


def from_diabetes(config: c.Diabetes, seed: int) -> Table:
    """Return the table of `data=diabetes`; the seed is not used."""
    return read_diabetes()


def _columns(config: c.Csv | c.Parquet) -> Columns:
    return Columns(config.target, config.features, config.sigma, config.weight, config.rename)


def read_csv(path: str, columns: Columns) -> Table:
    """Return the numeric columns of a comma-separated UTF-8 file with a header.

    Columns that are not requested may hold text. Raises `DataError` with every problem found; its line numbers count from 1
    and include the header.
    """
    return _csv_table(path, _contents(path, text=True), columns)


def read_diabetes() -> Table:
    """Return the shipped diabetes data: 442 rows, ten features, target `progression`."""
    name = "diabetes.csv"
    return _csv_table(name, resources.files("runner.data").joinpath(name).read_bytes(), Columns("progression"))


def read_parquet(path: str, columns: Columns) -> Table:
    """Return integer and floating-point columns of a Parquet file.

    Raises `DataError` with every problem found, its row numbers counted from 1, or if pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError('`data=parquet` needs pyarrow, which is not installed; pip install "runner[tables]"') from None
    data = _contents(path, text=False)
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        schema = file.schema_arrow
        positions, wanted, problems = _select_columns(path, schema.names, columns)
        stored = {name: schema.field(positions[name]) for name in wanted}
        problems += [p for name, f in stored.items() if (p := column_type_problem(path, name, f.type, pa.types))]
        raise_problems(path, problems, (), "row")
        arrow = file.read(columns=[field.name for field in stored.values()])
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise DataError(
            f"`data.path` must be a complete Parquet file, but {named(path)} cannot be read ({reason}); "
            "use data=csv for comma-separated text"
        ) from None
    _refuse_no_rows(path, arrow.num_rows)
    read = {name: _arrow_values(name, arrow.column(field.name)) for name, field in stored.items()}
    raise_problems(path, (), [fault for _, faults in read.values() for fault in faults], "row")
    return _table(data, columns, {name: values for name, (values, _) in read.items()}, positions)


def _contents(path: str, *, text: bool) -> bytes:
    """Return the bytes of a file. Raises `DataError` if it cannot be read, is no text as it should be, or is too large."""
    file = Path(path)
    try:
        if file.is_file():
            with open_to_read(file, follow=True) as opened:
                size = os.fstat(opened.fileno()).st_size
                _refuse_large(path, size)
                if text:
                    _refuse_other_formats(path, opened, size)
                return opened.read(size)  # no more: files of /proc have a size of 0 and may have no end
        fault = "is a folder" if file.is_dir() else "is not a regular file" if file.exists() else "does not exist"
    except OSError as error:
        fault = f"cannot be read ({error.strerror})"
    raise DataError(
        f"`data.path` must be a readable file, but {named(path)} {fault}; give a path relative to the working directory"
    )


def _refuse_large(path: str, size: int) -> None:
    value = f"got {named(path)} of {size / sizes.GIB:,.1f} GiB"
    problem = sizes.unfit(size * _MEMORY_FACTOR, "`data.path`", value, "use a smaller file")
    if problem is not None:
        raise DataError(problem)


def _refuse_other_formats(path: str, file: BinaryIO, size: int) -> None:
    """Raise `DataError` for a file that is not text before all of it is in memory: a hole in a file may be long."""
    refuse_other_formats(path, file.read(min(16, size)))
    for start in range(0, size, MIB):
        file.seek(start)
        refuse_binary(path, file.read(min(MIB, size - start)))
    file.seek(0)


def _csv_table(path: str, data: bytes, columns: Columns) -> Table:
    refuse_other_encodings(path, data)
    records = _records(path, data)
    _, header = next(records, (0, None))
    if header is None:
        raise DataError(f"`data.path` must have a header and rows, but {named(path)} is empty; use another file")
    refuse_odd_header(path, header)
    positions, wanted, problems = _select_columns(path, header, columns)
    cells: list[str] = []  # row after row, of rows as long as the header: one flat list is faster than one per row
    lines: list[int] = []
    faults: list[Fault] = []
    for line, row in records:
        if len(row) == len(header):
            cells += row
            lines.append(line)
        else:
            faults.append(field_count_fault(line, row, len(header)))
    _refuse_no_rows(path, len(lines) + len(faults))
    read: dict[str, np.ndarray] = {}
    for name in wanted:
        read[name], cell_faults = _values(name, cells[positions[name] :: len(header)], lines)
        faults += cell_faults
    raise_problems(path, problems, faults, "line")
    return _table(data, columns, read, positions)


def _records(path: str, data: bytes) -> Iterator[tuple[int, list[str]]]:
    """Yield every record with the number of its last line; blank lines at the end are skipped."""
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(data.rstrip()), "utf-8-sig", newline=""), strict=True)
    try:
        for record in reader:
            yield reader.line_num, record
    except csv.Error as error:
        raise DataError(
            f"`data.path` must be comma-separated text, but {named(path)} cannot be parsed at line {reader.line_num} "
            f"({error}); close every quote, and double quotes inside a field"
        ) from None


def _refuse_no_rows(path: str, rows: int) -> None:
    if rows == 0:
        raise DataError(f"`data.path` must have rows of numbers, got a header and 0 rows in {named(path)}; add rows")


def _select_columns(
    path: str, header: Sequence[str], columns: Columns
) -> tuple[dict[str, int], list[str], list[Problem]]:
    """Return the position of every column by name, the names to read, features first, and all problems.

    With problems, no column is to be read.
    """
    names, problems = _renamed(path, header, columns.rename)
    features, roles, rename = columns.features, columns.roles, columns.rename
    chosen = [name for name in names if name not in roles] if features is None else list(features)
    problems += [
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
        f"`data.features` must not contain {'the target' if key == 'data.target' else f'the column of `{key}`,'} {shown(name)}; remove it"
        for name, key in roles.items()
        if name in chosen
    ]
    problems += [
        f"`{key}` must not be the target, got {shown(name)}; name another column"
        for key, name in columns.weighting.items()
        if name == columns.target
    ]
    if not chosen:
        problems.append(f"`data.features` must name at least one column, got none of {named(path)}; name one")
    requested = {**dict.fromkeys(features or (), "data.features"), **roles}
    present = {*names, *rename}
    absent = {name: key for name, key in requested.items() if name not in present}
    new_names = {old: new for new, old in rename.items()}
    problems += [
        f"`{key}` must use the new name of {shown(name)}; write {shown(new_names[name])}, as in `data.rename`"
        if name in new_names
        else UnknownColumn(path, key, name, names)
        for name, key in absent.items()
    ]
    positions = {name: position for position, name in enumerate(names)}
    return positions, [] if problems else [*chosen, *roles], problems


def _renamed(path: str, header: Sequence[str], rename: Mapping[str, str]) -> tuple[list[str], list[Problem]]:
    """Return the names of all columns after `data.rename`, and its problems. What cannot be renamed keeps its name."""
    names = [validation.normalized(name) for name in header]
    problems: list[Problem] = [
        UnknownColumn(path, f"data.rename.{new}", old, names) for new, old in rename.items() if old not in names
    ]
    taken = set(names) - set(rename.values())
    problems += [
        f"`data.rename` must give {shown(old)} a name of its own, but {named(path)} has another column {shown(new)}; use another name"
        for new, old in rename.items()
        if new in taken
    ]
    new_names = {old: new for new, old in rename.items() if new not in taken}
    return [new_names.get(name, name) for name in names], problems


def _values(name: str, cells: list[str], lines: list[int]) -> tuple[np.ndarray, list[Fault]]:
    """Return the values [rows] of a column, or the cells that are not finite numbers representable in float64."""
    if not _NOT_IN_NUMBERS.search("".join(cells)):
        try:
            values = np.fromiter(map(float, cells), np.float64, len(cells))
            if np.all(np.abs(values) < EXACT_INTEGER):
                return values, []
        except ValueError:
            pass  # the search below finds the cell
    faults = [Fault(line, name, cell) for line, cell in zip(lines, cells, strict=True) if number_problem(cell)]
    if faults:
        return np.empty(0), merge_column_faults(faults, len(cells))
    return np.fromiter(map(float, cells), np.float64, len(cells)), []


def _arrow_values(name: str, column: Any) -> tuple[np.ndarray, list[Fault]]:
    """Return the values [rows] of a Parquet column and its unusable cells."""
    values = column.to_numpy()  # nulls become nan
    bad = ~np.isfinite(values)
    if not np.issubdtype(values.dtype, np.floating):
        bad = (values > EXACT_INTEGER) | (values < -EXACT_INTEGER)
    faults = [Fault(int(row) + 1, name, str(column[int(row)].as_py())) for row in np.flatnonzero(bad)]
    return values.astype(np.float64), merge_column_faults(faults, len(values))


def _table(data: bytes, columns: Columns, read: Mapping[str, np.ndarray], names_of_all: Iterable[str]) -> Table:
    """Return the table of the columns that were read, of all columns of a file by name."""
    names, target = tuple(name for name in read if name not in columns.roles), columns.target
    features = np.column_stack([read[name] for name in names])
    return Table(
        features=features,
        target=read[target],
        sigma=None if columns.sigma is None else read[columns.sigma],
        weight=None if columns.weight is None else read[columns.weight],
        feature_names=names,
        target_name=target,
        integer_columns=frozenset(name for name in (*names, target) if _all_integers(read[name])),
        sha256=hashlib.sha256(data).hexdigest(),
        warnings=tuple(_warnings(names, features, target, read[target])),
        unread=tuple(name for name in names_of_all if name not in read),
    )


def _all_integers(values: np.ndarray) -> bool:
    # Beyond 2**53 every float64 is an integer, so such a value is a large measurement, not a count or an identifier.
    return bool(np.all((values == np.trunc(values)) & (np.abs(values) <= EXACT_INTEGER)))


def _warnings(names: tuple[str, ...], features: np.ndarray, target: str, values: np.ndarray) -> Iterator[str]:
    rows = len(values)
    if constant := [name for name, column in zip(names, features.T, strict=True) if np.all(column == column[0])]:
        yield f"`data.features`: every row has the same value in {listed(constant)}, which explains nothing"
    if np.all(values == values[0]):
        yield f"`data.target`: {shown(target)} is {float(values[0])!r} in every row, so r2 is undefined"
    if rows < len(names) + 1:
        yield f"`data.path`: there are {rows} rows for {len(names)} features, so many models fit exactly"
