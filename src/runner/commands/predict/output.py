"""Files of predictions: text or Parquet, written beside their place and renamed when they are complete."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from runner.commands import result_file
from runner.data.tables import ARROW_SUFFIXES
from runner.errors import ConfigError
from runner.runs.atomic import sync, sync_folder, temporary, write_atomic

Columns = Mapping[str, Any]
"""Columns of some rows: floats of numpy, or cells as they stood in the input, a list of texts or an array of pyarrow."""


def refuse(path: str, inputs: str, *, force: bool) -> list[str]:
    """Return the problem with the path of an output, before anything is read; none if there is no problem."""
    if path.endswith(ARROW_SUFFIXES[1:]):
        return [
            f"`--output` must be a text file or a Parquet file, got {path!r}; end it with .csv or .parquet",
        ]
    return result_file.refuse(path, inputs, force=force)


def write(path: str, blocks: Iterator[Columns]) -> None:
    """Write blocks of columns to a file, or to standard output. Raises ConfigError and RunFailed; no half file is left."""
    with result_file.explained(path):
        if path == result_file.STANDARD:
            for piece in _text(blocks):
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        elif path.endswith(ARROW_SUFFIXES[0]):
            _write_parquet(Path(path), blocks)
        else:
            write_atomic(Path(path), _text(blocks))


def _text(blocks: Iterator[Columns]) -> Iterator[bytes]:
    """Yield a header and the rows as lines of text."""
    header = True
    for columns in blocks:
        if header:
            yield _lines([list(columns)])
            header = False
        rows = zip(*map(_texts, columns.values()), strict=True)
        if all(isinstance(cells, np.ndarray) for cells in columns.values()):
            yield "".join([f"{','.join(row)}\n" for row in rows]).encode()  # numbers need no quotes
        else:
            yield _lines(rows)


def _lines(rows: Any) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _texts(cells: Any) -> Sequence[Any]:
    """Return cells as texts. Numbers have the digits that they need to be read back as the same ones."""
    if isinstance(cells, np.ndarray):
        texts: list[str] = cells.astype(str).tolist()
        return texts
    if isinstance(cells, list):
        return cells
    import pyarrow as pa
    import pyarrow.compute as pc

    with suppress(pa.ArrowNotImplementedError):
        cells = pc.cast(cells, pa.string())
    return ["" if cell is None else cell for cell in cells.to_pylist()]


def _write_parquet(path: Path, blocks: Iterator[Columns]) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ConfigError(
            f'`--output` {str(path)!r} needs pyarrow, which is not installed; pip install "runner[tables]", or write a .csv file'
        ) from None
    fresh = temporary(path)
    try:
        with open(fresh, "xb") as file:
            writer: Any = None
            for columns in blocks:
                table = pa.table(dict(columns))
                writer = writer or pq.ParquetWriter(file, table.schema)
                writer.write_table(table.cast(writer.schema))
            writer.close()
            sync(file)
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
