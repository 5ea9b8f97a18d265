"""Real launchers for tests: torchrun and `launch.processes`, with their output and the records of their runs."""

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

# Everything with a state: shuffled batches with a smaller last one (46 rows in batches of 16), dropout, accumulation,
# clipping, a schedule; a checkpoint every 4 steps and a row at each. Manual updates, because importing torch's optimizers
# takes a second.
OVERRIDES = (
    "name=all", "data=line", "data.rows=58", "data.features=3", "data.standardize=true", "data.split.valid=12",
    "model=mlp", "model.widths=[8]", "model.dropout=0.2", "schedule=cosine", "train.steps=30", "train.batch_size=16",
    "train.accumulate=2", "train.clip_norm=1.0", "train.eval_every_steps=10", "update=manual", "optimizer=adam", "optimizer.lr=0.01",
    "record.every_steps=1", "record.plots=false", "checkpoint.every_steps=4", "device=cpu",
)  # fmt: skip
EXACT = (*OVERRIDES, "strategy.reduction=exact", "strategy.chunks=4")

SECONDS = 90.0
"""Longest run time of a launcher; two processes that start twice take ten seconds on two idle cores."""

STANDALONE = ("--standalone", "--local-addr=localhost")
"""Options for torchrun on this host, whatever the host's name resolves to."""

TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
RUNNER = (sys.executable, "-m", "runner")


class Launched:
    """A launcher and its workers in a folder of their own; a variable in their environment identifies them."""

    def __init__(self, command: Sequence[str], folder: Path, faults: Sequence[Fault] = (), rows: bool = False) -> None:
        self.folder = folder
        for name in ("site", "faults", "rows"):
            (folder / name).mkdir(parents=True)
        (folder / "site" / "sitecustomize.py").write_text("import faulty\n")
        present = os.environ.get("PYTHONPATH")
        paths = [str(folder / "site"), str(Path(faulty.__file__).parent), *([present] if present else [])]
        instructions = faulty.environment(list(faults), folder / "faults", folder / "rows" if rows else None)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), faulty.VARIABLE: instructions}
        with (folder / "out.txt").open("w") as out, (folder / "err.txt").open("w") as err:
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=err)

    def wait(self, seconds: float = SECONDS) -> int:
        """Wait for the launcher and return its exit code."""
        return self.process.wait(seconds)

    @property
    def out(self) -> str:
        """Standard output of all processes."""
        return (self.folder / "out.txt").read_text()

    @property
    def err(self) -> str:
        """Standard error of all processes."""
        return (self.folder / "err.txt").read_text()

    @property
    def errors(self) -> list[str]:
        """Error messages of all processes."""
        return errors(self.err)

    @property
    def faults(self) -> list[str]:
        """Faults that happened, as `faulty.happened` returns them."""
        return faulty.happened(self.folder / "faults")

    def running_pids(self) -> list[int]:
        """Return the process ids of the launcher and its workers that are still running."""
        mark = str(self.folder / "faults").encode()
        return [int(process.name) for process in Path("/proc").glob("[0-9]*") if mark in _environment(process)]

    def end(self) -> None:
        """Kill all processes that are still running."""
        for pid in self.running_pids():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()


def _environment(process: Path) -> bytes:
    """Return the environment of a process; empty for one that has ended or belongs to another user."""
    try:
        return (process / "environ").read_bytes()
    except OSError:
        return b""


@contextmanager
def launched(
    command: Sequence[str], folder: Path, faults: Sequence[Fault] = (), rows: bool = False
) -> Iterator[Launched]:
    """Start a launcher in a new folder; all its processes are killed at the end."""
    started = Launched(command, folder, faults, rows)
    try:
        yield started
    finally:
        started.end()


def torchrun(*overrides: str, options: Sequence[str] = STANDALONE, size: int = 2) -> list[str]:
    """Return the command that runs the runner under torchrun."""
    return [*TORCHRUN, *options, f"--nproc-per-node={size}", "-m", "runner", *overrides]


def runner_launch(*overrides: str, size: int = 2) -> list[str]:
    """Return the command with which the runner starts its own processes."""
    return [*RUNNER, *overrides, f"launch.processes={size}"]


def errors(printed: str) -> list[str]:
    """Return the error lines of printed text."""
    return [line for line in printed.splitlines() if line.startswith("error:")]


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Wait for a condition and return the seconds that it took; fails after `seconds`."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"{what}: not within {seconds:g} seconds"
        time.sleep(0.02)
    return time.monotonic() - began


def record(run: Path) -> dict[str, Any]:
    """Return run.json of a run."""
    values: dict[str, Any] = json.loads((run / "run.json").read_text())
    return values


def summary(run: Path) -> dict[str, Any]:
    """Return summary.json of a run."""
    values: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return values


def rows(run: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl without the speed, which differs from run to run."""
    return [{k: v for k, v in row.items() if k != "samples_per_second"} for row in read_rows(run / "metrics.jsonl")]


def assert_same(one: Path, other: Path) -> None:
    """Compare two runs: the bits of the parameters, every metric and every row."""
    assert summary(one)["parameters_sha256"] == summary(other)["parameters_sha256"]
    assert summary(one)["metrics"] == summary(other)["metrics"]
    assert rows(one) == rows(other)
