"""Write rows as lines of strict JSON, for other programs, and read them.

Each line is one object, in the order of the steps. nan and infinity, which JSON lacks, are "nan", "inf" and "-inf".
"""

from __future__ import annotations

import errno
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.config import schema as c
from runner.config.files import MIB, open_to_read
from runner.config.validation import cut, shown
from runner.errors import CheckpointError
from runner.runs.atomic import Appended, strict, write_atomic

MAX_LINE_BYTES = 4 * MIB
"""Longest line. Lines are read one at a time: a file may have any number of them."""

_NOT_FINITE = {text: float(text) for text in ("nan", "inf", "-inf")}
_ENCODER = json.JSONEncoder(allow_nan=False)  # made once: it takes longer than encoding a row


class JsonLines:
    """A sink that appends rows to one file.

    A row reaches the operating system in `write`, and the disk in `flush`. With `held`, it reaches both in `flush`, and
    the file is not open in between.
    """

    def __init__(self, path: Path, *, held: bool = False) -> None:
        self._path, self._held = path, held
        self._file: Appended | None = None

    def open(self, first_step: int) -> None:
        """Drop rows from `first_step` on, and a line that a kill cut off."""
        lines = _lines(self._path) if os.path.lexists(self._path) else ()
        if not all(line.endswith(b"\n") and _step(line) < first_step for line in lines):
            kept = (line for line in _lines(self._path) if _step(line) < first_step)
            write_atomic(self._path, (line if line.endswith(b"\n") else line + b"\n" for line in kept))
        self._file = Appended(self._path, held=self._held)

    def start(
        self, config: Mapping[str, Any], hyperparameters: Mapping[str, float | str | bool], metric_names: Sequence[str]
    ) -> None:
        """Do nothing: the config is in config.yaml."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row as a line."""
        try:
            line = _ENCODER.encode(row)
        except ValueError:  # a number is not finite, which is rare: other rows are not searched for it
            line = _ENCODER.encode(strict(row))
        assert self._file is not None
        self._file.write(line.encode() + b"\n")

    def flush(self) -> None:
        """Wait until the disk has all rows so far."""
        assert self._file is not None
        self._file.sync()

    def finish(self, summary: Mapping[str, Any], figures: Mapping[str, bytes]) -> None:
        """Do nothing: the result is in summary.json."""

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _step(line: bytes) -> float:
    """Return the step of a row; infinity for a line that is not a row, such as one that a kill cut off."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
        return float("inf")


def build(config: c.JsonLines, directory: Path, held: bool) -> JsonLines:
    """Return the sink of a run directory's metrics.jsonl."""
    return JsonLines(directory / "metrics.jsonl", held=held)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return all rows of a `metrics.jsonl` at once, as `each_row` yields them."""
    return list(each_row(path))


def each_row(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a `metrics.jsonl`, with "nan", "inf" and "-inf" as numbers.

    A last line without its end is left out: a kill cut it off, or it is being written. Raises `CheckpointError` for any
    other line that is not a row, and for anything but a regular file; and `FileNotFoundError`.
    """
    for number, row in enumerate(each_line(path), start=1):
        _refuse_other_values(row, f"line {number} of `{path}`")
        yield row


def refuse_odd_lines(path: Path, last: int, *, numbers: bool) -> None:
    """Raise `CheckpointError` for a file that cannot be read, and for an odd line of a step up to `last`.

    A resumed run keeps these lines. With `numbers`, they must be numbers alone.
    """
    if os.path.lexists(path):
        for number, line in enumerate(_lines(path), start=1):
            if _step(line) <= last:
                place = f"line {number} of `{path}`"
                row = _row(line, place)
                if numbers:
                    _refuse_other_values(row, place)


def each_line(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a file as `each_row` does, with values of any type besides `step`."""
    for number, line in enumerate(_lines(path), start=1):
        if line.endswith(b"\n"):
            yield _row(line, f"line {number} of `{path}`")


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file with their ends. Raises `CheckpointError` if it cannot be read, and `FileNotFoundError`."""
    try:
        with open_to_read(path) as file:
            for number in itertools.count(1):
                line = file.readline(MAX_LINE_BYTES + 1)
                if len(line) > MAX_LINE_BYTES:
                    raise OSError(errno.EFBIG, f"it has more than {MAX_LINE_BYTES / MIB:g} MiB in line {number}")
                if not line:
                    return
                yield line
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(
            f"{path} must be rows of metrics, but cannot be read ({error.strerror}); restore it"
        ) from None


def _refuse_other_values(row: Mapping[str, Any], place: str) -> None:
    for name, value in row.items():
        if type(value) not in (int, float, bool):
            raise CheckpointError(
                f"{place} must have numbers alone, got {shown(value)} for `{cut(name)}`; restore the file or delete the line"
            )


def _row(line: bytes, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    start = line[:40].decode(errors="replace").rstrip("\n")
    if not isinstance(row, dict):
        raise CheckpointError(f"{place} must be a JSON object, got {start!r}; restore the file or delete the line")
    if type(row.get("step")) is not int or not 0 <= row["step"] < 2**63:
        raise CheckpointError(
            f"{place} must have a `step` of at least 0, got {start!r}; restore the file or delete the line"
        )
    return {name: _NOT_FINITE.get(value, value) if isinstance(value, str) else value for name, value in row.items()}
