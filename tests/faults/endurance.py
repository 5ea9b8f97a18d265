"""A long run, a large sweep and random kills: what they leave, and whether that is what it should be.

    python tests/faults/endurance.py [steps|trials|kills|sweep-kills] [--steps N] [--trials N] [--kills N] [--seed N]

`steps` trains one run and fits a line to its memory over time. `trials` counts what a vmapped sweep leaves. `kills` ends the
process of a run with SIGKILL at random times, resumes it until it finishes, and compares what it leaves with an undisturbed
run; `sweep-kills` does so for a vmapped sweep. Each command is a process of its own, on one thread. Exit code 1 for a difference.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leftovers import differences, left_by_run, left_by_sweep

from runner.runs.sinks.jsonl import read_rows

MIB = 2**20
QUICK = ["device=cpu", "device.threads=1"]
SETTLED = 0.2, 0.95
"""Part of a run in which its memory is fitted: before, everything is loaded and allocated once; after, plots are drawn."""
RUN = [
    "+experiment=mlp", "model.dropout=0.1", "train.epochs=200", "record.every_steps=20", "record.hash_every_steps=20",
    "checkpoint.every_steps=100",
]  # fmt: skip
SWEEP = ["-m", *RUN, "model.widths=[16]", "optimizer.lr=1e-3,3e-3", "seeds=4", "record.plots=true"]


def main() -> int:
    """Print the tables that are asked for, all without an argument. Returns the exit code."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("table", nargs="?", choices=["steps", "trials", "kills", "sweep-kills"])
    options.add_argument("--steps", type=int, default=3_000_000)
    options.add_argument("--trials", type=int, default=4096)
    options.add_argument("--kills", type=int, help="default: 30 of a run, 10 of a sweep")
    options.add_argument("--seed", type=int, default=0, help="of the times of the kills")
    given = options.parse_args()
    times = random.Random(given.seed)
    tables: dict[str, Callable[[], bool]] = {
        "steps": lambda: long_run(given.steps),
        "trials": lambda: large_sweep(given.trials),
        "kills": lambda: killed(RUN, left_by_run, given.kills or 30, times),
        "sweep-kills": lambda: killed(SWEEP, left_by_sweep, given.kills or 10, times),
    }
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        passed = [tables[name]() for name in ([given.table] if given.table else tables)]
    return 0 if all(passed) else 1


def show(*lines: str) -> None:
    """Print lines at once."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def start(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start the runner in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "runner", *arguments, *([] if _resumes(arguments) else QUICK)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


def _resumes(arguments: Sequence[str]) -> bool:
    return any(argument.startswith("resume=") for argument in arguments)


# ------------------------------------------------------------------------------------------------------------- lengths


@dataclass(frozen=True)
class Usage:
    """What a process used: its seconds, its largest memory in MiB, and pairs of seconds and MiB, one about every half second."""

    seconds: float
    peak: float
    memory: list[tuple[float, float]]


def watched(arguments: Sequence[str]) -> Usage:
    """Run a command to its end. Raises SystemExit if it fails."""
    began, samples = time.monotonic(), []
    process = start(arguments)
    statistics, page = Path(f"/proc/{process.pid}/statm"), os.sysconf("SC_PAGE_SIZE")
    while True:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            break
        samples.append((time.monotonic() - began, int(statistics.read_text().split()[1]) * page / MIB))
        time.sleep(0.5)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.stderr is not None
    errors = process.stderr.read().decode()
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with exit code {process.returncode}\n{errors}")
    return Usage(time.monotonic() - began, usage.ru_maxrss / 1024, samples)


def slope(pairs: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the least-squares line through pairs of x and y."""
    mean_x, mean_y = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
    return float(sum((x - mean_x) * (y - mean_y) for x, y in pairs) / sum((x - mean_x) ** 2 for x, _ in pairs))


def files(directory: Path) -> list[Path]:
    """Return every file below a directory, without links."""
    return sorted(path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())


def long_run(steps: int) -> bool:
    """Train linreg for many steps. Print the slope of its memory, and the size of each file."""
    every = max(1, steps // 3000)
    used = watched(["+experiment=linreg", f"train.steps={steps}", f"record.every_steps={every}", "run_dir=long"])
    settled = [
        (x / used.seconds * steps / 1e6, y) for x, y in used.memory if SETTLED[0] <= x / used.seconds <= SETTLED[1]
    ]
    show(
        "| steps | seconds | peak MiB | MiB at 20 % | MiB at 95 % | MiB per 10^6 steps |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
        f"| {steps:,} | {used.seconds:,.0f} | {used.peak:,.0f} | {settled[0][1]:,.1f} | {settled[-1][1]:,.1f} | {slope(settled):+.2f} |",
        "",
        f"| file (record.every_steps={every}) | bytes |",
        "| --- | ---: |",
        *(f"| {path.relative_to('long')} | {path.stat().st_size:,} |" for path in files(Path("long"))),
    )
    return len(read_rows(Path("long/metrics.jsonl"))) >= steps // every


def large_sweep(trials: int) -> bool:
    """Train a vmapped sweep over seeds. Print what it used and left."""
    used = watched(["-m", "+experiment=linreg", f"seeds={trials}", "run_dir=large"])
    left = files(Path("large"))
    size = sum(path.stat().st_size for path in left)
    finished = len((Path("large") / "results.csv").read_text().splitlines()) - 1
    show(
        "| trials | in results.csv | files | MiB | files a trial | KiB a trial | seconds | peak MiB |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        f"| {trials:,} | {finished:,} | {len(left):,} | {size / MIB:,.1f} | {len(left) / trials:.1f} | {size / trials / 1024:.1f} "
        f"| {used.seconds:,.0f} | {used.peak:,.0f} |",
    )
    return finished == trials


# --------------------------------------------------------------------------------------------------------------- kills


def killed(command: list[str], left_by: Callable[[Path], dict[str, Any]], kills: int, times: random.Random) -> bool:
    """Kill processes at random times, resume until finished, and print what differs from an undisturbed run or sweep."""
    began = time.monotonic()
    watched([*command, "run_dir=whole"])
    seconds, expected = time.monotonic() - began, left_by(Path("whole"))
    show("| number | killed after seconds | last row at step | differences |", "| ---: | --- | --- | --- |")
    made = equal = number = 0
    while made < kills:
        directory = Path(f"killed_{number}")
        after: list[str] = []
        rows: list[str] = []
        # Three kills of the same run at most, so that there are many runs to compare.
        while made < kills and len(after) < 3 and (waited := kill(command, directory, times.uniform(0, seconds))):
            after.append(f"{waited:.1f}")
            rows.append(str(last_row(directory)))
            made += 1
        if not after:  # it ended before its time, and says nothing
            shutil.rmtree(directory)
            continue
        finish(command, directory)
        wrong = differences(left_by(directory), expected)
        equal += not wrong
        number += 1
        show(f"| {number} | {', '.join(after)} | {', '.join(rows)} | {'; '.join(wrong) or 'none'} |")
    show("", f"{made} kills of {number}, {equal} of them equal to the undisturbed one of {seconds:.1f} s")
    return equal == number


def again(command: Sequence[str], directory: Path) -> list[str]:
    """Return the arguments that start a run or a sweep, or resume it where it has begun."""
    sweeps = command[0] == "-m"
    if not (directory / ("sweep.json" if sweeps else "run.json")).exists():
        return [*command, f"run_dir={directory}"]
    return [*(["-m"] if sweeps else []), f"resume={directory}"]


def kill(command: Sequence[str], directory: Path, seconds: float) -> float:
    """Start or resume, and kill the process after some seconds. Returns them; 0 if it has ended before."""
    process = start(again(command, directory))
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return seconds
    return 0.0


def finish(command: Sequence[str], directory: Path) -> None:
    """Resume what was killed until it has ended. Raises SystemExit if it fails."""
    watched(again(command, directory))


def last_row(directory: Path) -> int | str:
    """Return the step of the last row of a run, or of the run of a sweep that is furthest; "none" without rows."""
    found = [*directory.glob("metrics.jsonl"), *directory.glob("*/metrics.jsonl")]
    steps = [row["step"] for path in found for row in read_rows(path)[-1:]]
    return max(steps, default="none")


if __name__ == "__main__":
    raise SystemExit(main())
