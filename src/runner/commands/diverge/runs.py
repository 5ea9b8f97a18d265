"""Records in a run directory that can be compared, whether the run is finished, running, stopped or killed."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.config.files import is_folder
from runner.config.resume import saved_values
from runner.errors import CheckpointError
from runner.runs.records import read_record, read_summary
from runner.runs.sinks.jsonl import read_lines, read_rows
from runner.training.recorder import CHECKPOINTS


@dataclass(frozen=True)
class RecordedRun:
    """Contents of a run directory. `rows`, `hashes` and `checkpoints` map a step to what was recorded there."""

    path: Path
    config: Mapping[str, Any]
    record: Mapping[str, Any]
    summary: Mapping[str, Any]
    rows: Mapping[int, Mapping[str, Any]]
    repeated: Collection[int]
    """Steps with more than one row. No step should have more than one."""
    hashes: Mapping[int, Mapping[str, str]]
    """Step -> tensor name -> SHA-256."""
    checkpoints: Mapping[int, Path]

    @property
    def step(self) -> int:
        """Last step of which there is any record."""
        return max(
            [*self.rows, *self.hashes, *self.checkpoints, int(self.summary.get("steps", 0))],
            default=0,
        )

    @property
    def status(self) -> str:
        """Status in `run.json`, such as finished or running."""
        return str(self.record.get("status"))

    def rerun_arguments(self, *overrides: str) -> list[str]:
        """Return the command-line arguments that repeat the run on the same number of processes."""
        size = int(self.record.get("world_size", 1))
        several = [f"launch.processes={size}", "launch.nodes=1", "launch.rdzv_endpoint=null"] if size > 1 else []
        return ["rerun", str(self.path), *several, *overrides]


def read_run(path: str, name: str) -> RecordedRun:
    """Read the run in a directory. Raises `CheckpointError`, which calls the argument `name`, if there is none."""
    config, folder = saved_values(path, name), Path(path)
    rows = _rows(folder / "metrics.jsonl")
    steps = [int(row["step"]) for row in rows]
    return RecordedRun(
        path=folder,
        config=config,
        record=read_record(folder),
        summary=read_summary(folder) or {},
        rows=dict(zip(steps, rows, strict=True)),
        repeated=[step for step, count in Counter(steps).items() if count > 1],
        hashes={
            int(row["step"]): _hashes(row, folder / "hashes.jsonl") for row in _hash_lines(folder / "hashes.jsonl")
        },
        checkpoints=_checkpoints(folder / CHECKPOINTS),
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    return read_rows(path) if os.path.lexists(path) else []


def _hash_lines(path: Path) -> list[dict[str, Any]]:
    return read_lines(path) if os.path.lexists(path) else []


def _hashes(row: Mapping[str, Any], path: Path) -> Mapping[str, str]:
    """Return the hashes of a row by parameter. Raises `CheckpointError` if there are none."""
    hashes = row.get("parameters")
    if not isinstance(hashes, dict) or not all(isinstance(value, str) for value in hashes.values()):
        raise CheckpointError(f"{path} must have hashes by parameter at step {row['step']}, and has none; restore it")
    return hashes


def _checkpoints(folder: Path) -> dict[int, Path]:
    if not is_folder(folder):
        return {}
    return {int(path.name[5:]): path for path in folder.iterdir() if re.fullmatch(r"step_[0-9]{1,18}", path.name)}
