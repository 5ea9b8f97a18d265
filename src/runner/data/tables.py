"""Tables of numbers from files, read strictly: a file is taken as it stands, or refused with the place and the cure.

The shipped `diabetes.csv` is the unscaled diabetes data of Efron, Hastie, Johnstone and Tibshirani, "Least angle
regression", Annals of Statistics 32 (2004) 407-499: 442 patients, ten measurements, and the progression of the disease
a year later. The data are public; the values are those that scikit-learn (BSD-3) ships.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from runner.config import schema as c
from runner.data.diagnostics import (
    EXACT_INTEGER,
    Fault,
    absent,
    cut,
    listed,
    misreading,
    refuse,
    refuse_odd_header,
    refuse_other_formats,
    type_problem,
    whole_column,
    wrong_count,
)
from runner.errors import DataError

_SIGNIFICANT_BITS = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}
_LARGEST = {
    "bfloat16": (2 - 2**-7) * 2.0**127,
    "float16": 65504.0,
    "float32": (2 - 2**-23) * 2.0**127,
    "float64": (2 - 2**-52) * 2.0**1023,
}
_STRANGE = re.compile(r"[^0-9+\-.eE ]")


@dataclass(frozen=True, eq=False)
class Table:
    """The numbers of a file: features float64 [rows, columns], target float64 [rows]; `sha256` is that of its bytes.

    `integer_columns` names the columns, target included, whose every value is an integer that float64 holds exactly.
    """

    features: np.ndarray
    target: np.ndarray
    feature_names: tuple[str, ...]
    target_name: str
    integer_columns: frozenset[str]
    sha256: str
    warnings: tuple[str, ...]


def from_csv(config: c.Csv, seed: int) -> Table:
    """The table of `data=csv`; nothing in it is drawn."""
    return read_csv(config.path, config.target, config.features)


def from_parquet(config: c.Parquet, seed: int) -> Table:
    """The table of `data=parquet`; nothing in it is drawn."""
    return read_parquet(config.path, config.target, config.features)


def from_diabetes(config: c.Diabetes, seed: int) -> Table:
    """The table of `data=diabetes`; nothing in it is drawn."""
    return read_diabetes()


def read_csv(path: str, target: str, features: tuple[str, ...] | None) -> Table:
    """Numeric columns of a comma-separated UTF-8 file with a header; features of None are all columns but the target.

    Only the columns wanted need hold numbers. Lines in errors count from 1, the header included.

    Raises DataError with every problem found.
    """
    return _csv_table(path, _contents(path), target, features)


def read_diabetes() -> Table:
    """The shipped diabetes data: 442 rows, ten features, target `progression`."""
    name = "diabetes.csv"
    return _csv_table(name, resources.files("runner.data").joinpath(name).read_bytes(), "progression", None)


def read_parquet(path: str, target: str, features: tuple[str, ...] | None) -> Table:
    """Integer and floating-point columns of a Parquet file; features of None are all columns but the target.

    Rows in errors count from 1.

    Raises DataError with every problem found, or where pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError('`data=parquet` needs pyarrow, but it is missing; pip install "runner[tables]"') from None
    data = _contents(path)
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        schema = file.schema_arrow
        wanted, problems = _wanted(path, schema.names, target, features)
        problems += [p for name in wanted if (p := type_problem(path, name, schema.field(name).type, pa.types))]
        refuse(path, problems, (), "row")
        arrow = file.read(columns=wanted)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise DataError(
            f"`data.path` must be a whole Parquet file, but {path!r} cannot be read as one ({reason}); "
            "for comma-separated text use data=csv"
        ) from None
    _refuse_no_rows(path, arrow.num_rows)
    found = {name: _arrow_values(name, arrow.column(name)) for name in wanted}
    refuse(path, (), [fault for _, faults in found.values() for fault in faults], "row")
    return _table(data, target, {name: values for name, (values, _) in found.items()})


def refuse_lossy(table: Table, dtype_name: str) -> None:
    """Refuses a table whose integers `dtype_name` would round, or whose values it would turn into inf.

    Raises DataError with one sentence a column: its first such row (from 1, the header not counted) and value, and a
    dtype that holds the column.
    """
    problems = []
    columns = zip((*table.feature_names, table.target_name), (*table.features.T, table.target), strict=True)
    for name, values in columns:
        integer = name in table.integer_columns
        lost = _lost(values, dtype_name, integer)
        if lost.any():
            row = int(lost.argmax())
            value = f"the integer {values[row]:.0f} exactly" if integer else repr(float(values[row]))
            holds = next((d for d in ("float32", "float64") if not _lost(values, d, integer).any()), "float64")
            problems.append(
                f"`dtype` must hold column {cut(name)}, but {dtype_name} does not hold {value} in its row {row + 1}; "
                f"use dtype={holds}"
            )
    if problems:
        raise DataError(problems)


def _lost(values: np.ndarray, dtype_name: str, integer: bool) -> np.ndarray:
    """Which values [rows] overflow or, as integers, need more significant bits than the dtype has."""
    lost: np.ndarray = np.abs(values) > _LARGEST[dtype_name]
    if integer:
        mantissa = np.ldexp(np.frexp(values)[0], _SIGNIFICANT_BITS[dtype_name])
        lost |= mantissa != np.trunc(mantissa)
    return lost


def _contents(path: str) -> bytes:
    file = Path(path)
    try:
        if file.is_file():
            return file.read_bytes()
        fault = "is a folder" if file.is_dir() else "is not a plain file" if file.exists() else "does not exist"
    except OSError as error:
        fault = f"cannot be read ({error.strerror})"
    raise DataError(f"`data.path` must be a readable file, but {path!r} {fault}; give it from the working directory")


def _csv_table(path: str, data: bytes, target: str, features: tuple[str, ...] | None) -> Table:
    refuse_other_formats(path, data)
    records = _records(path, data)
    _, header = next(records, (0, None))
    if header is None:
        raise DataError(f"`data.path` must have a header and rows, but {path!r} is empty; fill it")
    refuse_odd_header(path, header)
    wanted, problems = _wanted(path, header, target, features)
    cells: list[str] = []  # of the rows as long as the header, row after row: one list is quicker than one a row
    lines: list[int] = []
    faults: list[Fault] = []
    for line, row in records:
        if len(row) == len(header):
            cells += row
            lines.append(line)
        else:
            faults.append(wrong_count(line, row, len(header)))
    _refuse_no_rows(path, len(lines) + len(faults))
    columns: dict[str, np.ndarray] = {}
    for name in wanted:
        columns[name], found = _values(name, cells[header.index(name) :: len(header)], lines)
        faults += found
    refuse(path, problems, faults, "line")
    return _table(data, target, columns)


def _records(path: str, data: bytes) -> Iterator[tuple[int, list[str]]]:
    """Every record with the number of its last line; blank lines at the end are left out."""
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(data.rstrip()), "utf-8-sig", newline=""), strict=True)
    try:
        for record in reader:
            yield reader.line_num, record
    except csv.Error as error:
        raise DataError(
            f"`data.path` must be comma-separated text, but {path!r} cannot be split at line {reader.line_num} "
            f"({error}); close every quote, and double those inside a field"
        ) from None


def _refuse_no_rows(path: str, rows: int) -> None:
    if rows == 0:
        raise DataError(f"`data.path` must have rows of numbers, but {path!r} has a header and 0 rows; add rows")


def _wanted(
    path: str, names: Sequence[str], target: str, features: tuple[str, ...] | None
) -> tuple[list[str], list[str]]:
    """The columns to read, the target last; where their names are wrong, none of them and what is wrong."""
    chosen = [name for name in names if name != target] if features is None else list(features)
    problems = [
        f"`data.path` must be a file of distinct column names, but {path!r} has {cut(name)} {count} times; rename them"
        for name, count in Counter(names).items()
        if count > 1
    ]
    problems += [
        f"`data.features` must name a column once, but has {cut(name)} {count} times; leave the others out"
        for name, count in Counter(features or ()).items()
        if count > 1
    ]
    if features is None and "" in chosen:
        problems.append(f"`data.features` must be given, because column {names.index('') + 1} of {path!r} has no name")
    if target in chosen:
        problems.append(f"`data.features` must not hold the target {cut(target)}, but does; leave it out")
    if not chosen:
        problems.append(f"`data.features` must name at least one column, but {path!r} is left with none; name one")
    asked = {**dict.fromkeys(features or (), "data.features"), target: "data.target"}
    problems += [absent(path, key, name, names) for name, key in asked.items() if name not in names]
    return ([], problems) if problems else ([*chosen, target], [])


def _values(name: str, cells: list[str], lines: list[int]) -> tuple[np.ndarray, list[Fault]]:
    """A column's values [rows], or the cells that are not finite numbers which float64 holds."""
    if not _STRANGE.search("".join(cells)):
        try:
            values = np.fromiter(map(float, cells), np.float64, len(cells))
            if np.all(np.abs(values) < EXACT_INTEGER):
                return values, []
        except ValueError:
            pass  # the search below finds the place
    faults = [Fault(line, name, cell) for line, cell in zip(lines, cells, strict=True) if misreading(cell)]
    if faults:
        return np.empty(0), whole_column(faults, len(cells))
    return np.fromiter(map(float, cells), np.float64, len(cells)), []


def _arrow_values(name: str, column: Any) -> tuple[np.ndarray, list[Fault]]:
    """The same of a Parquet column."""
    values = column.to_numpy()  # nulls become nan
    bad = ~np.isfinite(values)
    if not np.issubdtype(values.dtype, np.floating):
        bad = (values > EXACT_INTEGER) | (values < -EXACT_INTEGER)
    faults = [Fault(int(row) + 1, name, str(column[int(row)].as_py())) for row in np.flatnonzero(bad)]
    return values.astype(np.float64), whole_column(faults, len(values))


def _table(data: bytes, target: str, columns: Mapping[str, np.ndarray]) -> Table:
    names = tuple(name for name in columns if name != target)
    features = np.column_stack([columns[name] for name in names])
    return Table(
        features=features,
        target=columns[target],
        feature_names=names,
        target_name=target,
        integer_columns=frozenset(name for name, values in columns.items() if _all_integers(values)),
        sha256=hashlib.sha256(data).hexdigest(),
        warnings=tuple(_warnings(names, features, target, columns[target])),
    )


def _all_integers(values: np.ndarray) -> bool:
    # Beyond 2**53 every float64 is an integer: there it is a large measurement, not a count or an identifier.
    return bool(np.all((values == np.trunc(values)) & (np.abs(values) <= EXACT_INTEGER)))


def _warnings(names: tuple[str, ...], features: np.ndarray, target: str, values: np.ndarray) -> Iterator[str]:
    rows = len(values)
    if constant := [name for name, column in zip(names, features.T, strict=True) if np.all(column == column[0])]:
        yield f"`data.features`: every row has the same value in {listed(constant)}, which explains nothing"
    if np.all(values == values[0]):
        yield f"`data.target`: {cut(target)} is {float(values[0])!r} in every row, so r2 is undefined"
    if rows < len(names) + 1:
        yield f"`data.path`: there are {rows} rows for {len(names)} features, so many models fit them exactly"
