"""Measure what vmapped training gains: the time of a whole sweep, compared with the same trials one after another.

    python benchmarks/sweep.py [--rounds N] [--trials 8,64,512] [--threads 1,2]

A sweep is `python -m runner -m …` from its start to its end, with every file it writes. It is compared with `runner.run` in a
loop in one process, from its start to its end. Only some of many such trials are timed, and the others are assumed to last as
long. Both write the same files, without plots of a trial. Rounds are interleaved, times are medians, and ratios are taken
within a round: of elapsed time, and of processor time, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

TIMED = 24
"""Most trials that are timed one after another."""

SERIAL = """
import sys, time
import runner
began = time.perf_counter()
count, threads, *overrides = sys.argv[1:]
for seed in range(int(count)):
    runner.run(overrides=[*overrides, f"seed={seed}", "record.plots=false", f"device.threads={threads}"])
"""


@dataclass(frozen=True)
class Case:
    """A kind of trial: its name in the table, and the overrides of every trial."""

    name: str
    overrides: tuple[str, ...]

    def __str__(self) -> str:
        return self.name


CASES = (
    Case("linreg, 2,000 steps", ("+experiment=linreg",)),
    Case(
        "MLP 9-32-1, batch 64, 2,000 steps",
        (
            "data=line", "data.rows=1000", "data.features=9", "data.standardize=true", "model=mlp", "model.widths=[32]",
            "optimizer=adam", "optimizer.lr=1e-3", "train.batch_size=64", "train.steps=2000", "record.every_steps=200",
        ),
    ),
)  # fmt: skip


Times = tuple[float, float]
"""Elapsed seconds, and seconds of processor time."""


def vmapped(case: Case, trials: int, threads: int) -> Times:
    """Return the times of a sweep over `trials` seeds."""
    return _seconds(["-m", "runner", "-m", *case.overrides, f"seeds={trials}", f"device.threads={threads}"])


def one_by_one(case: Case, trials: int, threads: int) -> Times:
    """Return the times of the same trials one after another: start and first trial, and the others at the pace of some."""
    first = _seconds(["-c", SERIAL, "1", str(threads), *case.overrides])
    timed = min(trials, TIMED)
    some = _seconds(["-c", SERIAL, str(timed), str(threads), *case.overrides])
    clock, processor = (a + (b - a) / (timed - 1) * (trials - 1) for a, b in zip(first, some, strict=True))
    return clock, processor


def _seconds(arguments: list[str]) -> Times:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        began, used = time.perf_counter(), _processor_seconds()
        done = subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False, cwd=Path(folder)
        )
        times = time.perf_counter() - began, _processor_seconds() - used
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with exit code {done.returncode}\n{done.stderr[-3000:]}")
    return times


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def line(case: Case, trials: int, threads: int, rounds: int) -> str:
    """Return one row of the table."""
    measured = [(one_by_one(case, trials, threads), vmapped(case, trials, threads)) for _ in range(rounds)]
    serial = statistics.median(one[0] for one, _ in measured)
    at_once = statistics.median(many[0] for _, many in measured)
    ratios = [statistics.median(one[i] / many[i] for one, many in measured) for i in (0, 1)]
    each = statistics.median(many[1] for _, many in measured) / trials * 1000
    cells = [str(case), threads, f"{trials:,}", f"{serial:,.1f}", f"{at_once:,.1f}", f"{each:,.1f}"]
    return f"| {' | '.join(map(str, cells))} | {ratios[0]:,.1f} | {ratios[1]:,.1f} |"


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--trials", default="8,64,512")
    options.add_argument("--threads", default="1,2")
    options.add_argument("--cases", default="0,1")
    arguments = options.parse_args()
    print(
        "| trials of | threads | trials | one by one s | vmapped s | processor ms a trial | ratio | of processor time |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for case in map(int, arguments.cases.split(",")):
        for threads in map(int, arguments.threads.split(",")):
            for trials in map(int, arguments.trials.split(",")):
                print(line(CASES[case], trials, threads, arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
