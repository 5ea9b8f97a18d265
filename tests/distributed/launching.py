"""Real launchers for tests: torchrun and `launch.processes`, the command line below them, and what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faulty
from faulty import Fault

from runner.runs.sinks.jsonl import read_rows

# Everything that has a memory: shuffled batches with a smaller last one (46 rows in batches of 16), dropout, accumulation,
# clipping, a schedule; a checkpoint every 4 steps and a row at each. By hand: torch's optimizers take a second to import.
WORDS = (
    "name=all", "data=line", "data.rows=58", "data.features=3", "data.standardize=true", "data.split.valid=12",
    "model=mlp", "model.widths=[8]", "model.dropout=0.2", "schedule=cosine", "train.steps=30", "train.batch_size=16",
    "train.accumulate=2", "train.clip_norm=1.0", "train.eval_every_steps=10", "update=manual", "optimizer=adam", "optimizer.lr=0.01",
    "record.every_steps=1", "record.plots=false", "checkpoint.every_steps=4", "device=cpu",
)  # fmt: skip
EXACT = (*WORDS, "strategy.reduction=exact", "strategy.chunks=4")

SECONDS = 90.0
"""Longest life of a launcher; two processes that start twice take ten on two idle cores."""

STANDALONE = ("--standalone", "--local-addr=localhost")
"""torchrun on this host, whatever its name stands for."""

TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
RUNNER = (sys.executable, "-m", "runner")


class Launched:
    """A launcher and its workers, in a folder of their own; the environment tells them from all other processes."""

    def __init__(self, command: Sequence[str], folder: Path, faults: Sequence[Fault] = (), rows: bool = False) -> None:
        self.folder = folder
        for name in ("site", "faults", "rows"):
            (folder / name).mkdir(parents=True)
        (folder / "site" / "sitecustomize.py").write_text("import faulty\n")
        given = os.environ.get("PYTHONPATH")
        paths = [str(folder / "site"), str(Path(faulty.__file__).parent), *([given] if given else [])]
        told = faulty.environment(list(faults), folder / "faults", folder / "rows" if rows else None)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), faulty.VARIABLE: told}
        with (folder / "out.txt").open("w") as out, (folder / "err.txt").open("w") as err:
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=err)

    def wait(self, seconds: float = SECONDS) -> int:
        """The exit code of the launcher."""
        return self.process.wait(seconds)

    @property
    def out(self) -> str:
        return (self.folder / "out.txt").read_text()

    @property
    def err(self) -> str:
        return (self.folder / "err.txt").read_text()

    @property
    def errors(self) -> list[str]:
        """What the user is told, by whichever process."""
        return errors(self.err)

    @property
    def faults(self) -> list[str]:
        return faulty.happened(self.folder / "faults")

    def living(self) -> list[int]:
        """Process ids of the launcher and all that it started, as far as they live."""
        mark = str(self.folder / "faults").encode()
        return [int(process.name) for process in Path("/proc").glob("[0-9]*") if mark in _environment(process)]

    def end(self) -> None:
        """Whatever still lives must not outlive the test."""
        for pid in self.living():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()


def _environment(process: Path) -> bytes:
    """Nothing for a process that has ended or is not ours."""
    try:
        return (process / "environ").read_bytes()
    except OSError:
        return b""


@contextmanager
def launched(
    command: Sequence[str], folder: Path, faults: Sequence[Fault] = (), rows: bool = False
) -> Iterator[Launched]:
    """Start a launcher in a new folder; at the end nothing of it lives."""
    started = Launched(command, folder, faults, rows)
    try:
        yield started
    finally:
        started.end()


def torchrun(*words: str, options: Sequence[str] = STANDALONE, size: int = 2) -> list[str]:
    """The command line of torchrun for the runner."""
    return [*TORCHRUN, *options, f"--nproc-per-node={size}", "-m", "runner", *words]


def runner_launch(*words: str, size: int = 2) -> list[str]:
    """The command line that starts its processes itself."""
    return [*RUNNER, *words, f"launch.processes={size}"]


def errors(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("error:")]


def until(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Wait for a condition; gives how long that took, and fails when it takes longer than it may."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"{what}: not within {seconds:g} seconds"
        time.sleep(0.02)
    return time.monotonic() - began


def record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found


def summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


def rows(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "samples_per_second"} for row in read_rows(run / "metrics.jsonl")]


def assert_same(one: Path, other: Path) -> None:
    """Parameters to the bit, every metric and every row, once."""
    assert summary(one)["parameters_sha256"] == summary(other)["parameters_sha256"]
    assert summary(one)["metrics"] == summary(other)["metrics"]
    assert rows(one) == rows(other)
