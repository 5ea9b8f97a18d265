"""Measure training and sweeps on a GPU, against loops by hand and single runs in the same process: medians of interleaved rounds.

    python -m benchmarks.gpu bench|sweep [--seconds S] [--out FILE] [--device cpu] [--quick]

`bench` compares the steps of a run, with its rows, events and checkpoint, with a loop over tensors on the device that an expert
would write. `sweep` compares vmapped sweeps with the same trials one by one, of which only some are timed. Every figure is
printed at once, and appended to FILE as a line of JSON. A case that fails is recorded with its traceback, and the next one
starts. Cases for which no time is left are recorded as skipped. A case that FILE names already is left out, so the same
command continues after a crash. `docs/gpu_report.py` calls this and writes the page.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.figures import QUICK, Bench, Journal, Sizes, run_cases
from benchmarks.gpu_sweep import sweep_cases
from benchmarks.gpu_training import training_cases

CASES = {"bench": training_cases, "sweep": sweep_cases}
"""Part → its cases, the most important ones first."""


@dataclass(frozen=True)
class Options:
    """The command line."""

    part: str
    seconds: float = float("inf")
    out: Path | None = None
    device: str = "cuda"
    quick: bool = False


def options(arguments: Sequence[str]) -> Options:
    """Return the command line. Exits with 2 if it cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(CASES))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no case starts after this many seconds")
    parser.add_argument("--out", type=Path, help="file to which lines of JSON are appended")
    parser.add_argument("--device", default="cuda", help="torch's name of the device (cuda serves ROCm, too)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, only to see that everything can be measured")
    return Options(**vars(parser.parse_args(arguments)))


def main(arguments: Sequence[str]) -> int:
    """Measure one part. Return 0 if all its cases were tried, and 3 if a new process must go on."""
    chosen = options(arguments)
    bench = Bench(torch.device(chosen.device), QUICK if chosen.quick else Sizes(), time.monotonic() + chosen.seconds)
    journal = Journal(chosen.out)
    if not run_cases(CASES[chosen.part](bench), bench, journal):
        return 3
    journal.write("end", chosen.part, f"{chosen.part}: all cases were tried")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
