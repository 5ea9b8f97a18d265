"""Records in a run directory that can be compared, whether the run is finished, running, stopped or killed."""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner.config.files import is_folder
from runner.config.resume import saved_values
from runner.errors import CheckpointError
from runner.runs.records import CHECKPOINTS, read_record, read_summary
from runner.runs.sinks.jsonl import each_line, each_row


@dataclass(frozen=True)
class RecordedRun:
    """Contents of a run directory. Of rows and hashes only the steps are kept, in the order of the file."""

    path: Path
    config: Mapping[str, Any]
    record: Mapping[str, Any]
    summary: Mapping[str, Any]
    row_steps: Sequence[int]
    hash_steps: Sequence[int]
    checkpoints: Mapping[int, Path]
    """Step -> directory."""

    @property
    def step(self) -> int:
        """Last step of which there is any record."""
        return max(
            (
                int(self.summary.get("steps", 0)),
                *(max(steps, default=0) for steps in (self.row_steps, self.hash_steps, self.checkpoints)),
            )
        )

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """Yield the rows of `metrics.jsonl`."""
        path = self.path / "metrics.jsonl"
        return each_row(path) if os.path.lexists(path) else iter(())

    def hashes(self) -> Iterator[Mapping[str, Any]]:
        """Yield the lines of `hashes.jsonl`, each with the hashes of its `parameters`. Raises `CheckpointError`."""
        path = self.path / "hashes.jsonl"
        for line in each_line(path) if os.path.lexists(path) else ():
            hashes = line.get("parameters")
            if not isinstance(hashes, dict) or not all(isinstance(value, str) for value in hashes.values()):
                raise CheckpointError(
                    f"{path} must have hashes by parameter at step {line['step']}, and has none; restore it"
                )
            yield line

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
    run = RecordedRun(
        path=folder,
        config=config,
        record=read_record(folder),
        summary=read_summary(folder) or {},
        row_steps=(),
        hash_steps=(),
        checkpoints=_checkpoints(folder / CHECKPOINTS),
    )
    return replace(run, row_steps=_steps(run.rows()), hash_steps=_steps(run.hashes()))


def _steps(lines: Iterable[Mapping[str, Any]]) -> Sequence[int]:
    return array("q", (line["step"] for line in lines))  # eight bytes each: there may be millions


def _checkpoints(folder: Path) -> dict[int, Path]:
    if not is_folder(folder):
        return {}
    return {int(path.name[5:]): path for path in folder.iterdir() if re.fullmatch(r"step_[0-9]{1,18}", path.name)}
