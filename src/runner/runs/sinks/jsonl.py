"""Rows as lines of strict JSON: the record that other programs read.

One object a line, in the order of the steps. JSON has no nan and no infinity: they stand as "nan", "inf" and "-inf".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.config import schema as c
from runner.errors import CheckpointError
from runner.runs.atomic import Appended, strict, write_atomic

_NOT_FINITE = {text: float(text) for text in ("nan", "inf", "-inf")}
_ENCODER = json.JSONEncoder(allow_nan=False)  # made once: building one takes longer than a row


class JsonLines:
    """A sink that appends to one file. A row reaches the operating system when it is written, the disk at `flush`.

    Held back, rows reach the operating system at `flush` only, and the file is not open meanwhile.
    """

    def __init__(self, path: Path, *, held: bool = False) -> None:
        self._path, self._held = path, held
        self._file: Appended | None = None

    def open(self, first_step: int) -> None:
        if self._path.exists():
            content = self._path.read_bytes()
            kept = b"".join(line + b"\n" for line in content.splitlines() if _step(line) < first_step)
            if kept != content:
                write_atomic(self._path, kept)
        self._file = Appended(self._path, held=self._held)

    def start(
        self, config: Mapping[str, Any], hyperparameters: Mapping[str, float | str | bool], metric_names: Sequence[str]
    ) -> None:
        """Nothing: the config has a file of its own."""

    def write(self, row: Mapping[str, Any]) -> None:
        try:
            line = _ENCODER.encode(row)
        except ValueError:  # a number is not finite; rare, so that the usual row is not looked through twice
            line = _ENCODER.encode(strict(row))
        assert self._file is not None
        self._file.write(line.encode() + b"\n")

    def flush(self) -> None:
        assert self._file is not None
        self._file.sync()

    def finish(self, summary: Mapping[str, Any], figures: Mapping[str, bytes]) -> None:
        """Nothing: the summary has a file of its own."""

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _step(line: bytes) -> float:
    """The step of a row; infinite for a line that is not a row, such as one that a kill tore."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return float("inf")


def build(config: c.JsonLines, directory: Path, held: bool) -> JsonLines:
    """The rows of a run directory."""
    return JsonLines(directory / "metrics.jsonl", held=held)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, with "nan", "inf" and "-inf" as the numbers that they stand for.

    A last line that was torn by a kill, or is just being written, is left out. Raises `CheckpointError` for any other
    line that is not a row, and `FileNotFoundError`.
    """
    *whole, _torn = path.read_bytes().split(b"\n")
    return [_row(line, f"line {number} of `{path}`") for number, line in enumerate(whole, start=1)]


def _row(line: bytes, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        start = line[:40].decode(errors="replace")
        raise CheckpointError(f"{place} must be a JSON object, but is {start!r}; restore the file or delete the line")
    return {name: _NOT_FINITE.get(value, value) if isinstance(value, str) else value for name, value in row.items()}
