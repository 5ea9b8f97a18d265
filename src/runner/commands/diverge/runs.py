"""What a run directory holds that another one can be held against: of a run that has finished, still runs, or was killed."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.config.resume import saved_values
from runner.runs.directory import read_record
from runner.runs.sinks.jsonl import read_rows
from runner.training.recorder import CHECKPOINTS


@dataclass(frozen=True)
class Recorded:
    """A run as it stands in its directory. What is read by step is step → what was recorded there."""

    path: Path
    config: Mapping[str, Any]
    record: Mapping[str, Any]
    summary: Mapping[str, Any]
    rows: Mapping[int, Mapping[str, Any]]
    repeated: Collection[int]
    """Steps that have more than one row, as none should."""
    hashes: Mapping[int, Mapping[str, str]]
    """Hashes of tensors by name."""
    checkpoints: Mapping[int, Path]

    @property
    def step(self) -> int:
        """The last step that anything tells of."""
        return max(
            [*self.rows, *self.hashes, *self.checkpoints, int(self.summary.get("steps", 0))],
            default=0,
        )

    @property
    def status(self) -> str:
        return str(self.record.get("status"))

    def again(self, *words: str) -> list[str]:
        """The words that do the run again, on as many processes."""
        size = int(self.record.get("world_size", 1))
        several = [f"launch.processes={size}", "launch.nodes=1", "launch.rdzv_endpoint=null"] if size > 1 else []
        return ["rerun", str(self.path), *several, *words]


def read(path: str, word: str) -> Recorded:
    """The run in a directory. Raises `CheckpointError`, naming `word`, where there is none."""
    config, folder = saved_values(path, word), Path(path)
    rows = _rows(folder / "metrics.jsonl")
    steps = [int(row["step"]) for row in rows]
    return Recorded(
        path=folder,
        config=config,
        record=read_record(folder),
        summary=_summary(folder / "summary.json"),
        rows=dict(zip(steps, rows, strict=True)),
        repeated=[step for step, count in Counter(steps).items() if count > 1],
        hashes={int(row["step"]): row["parameters"] for row in _rows(folder / "hashes.jsonl")},
        checkpoints=_checkpoints(folder / CHECKPOINTS),
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    return read_rows(path) if path.exists() else []


def _summary(path: Path) -> dict[str, Any]:
    """That of a run that has finished; nothing where it has not."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _checkpoints(folder: Path) -> dict[int, Path]:
    if not folder.is_dir():
        return {}
    return {int(path.name[5:]): path for path in folder.iterdir() if re.fullmatch(r"step_[0-9]+", path.name)}
