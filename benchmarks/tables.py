"""Seconds and memory of reading a table of text, beside pyarrow's own reader of the same file.

    python benchmarks/tables.py --rows 10000,100000,1000000

The table has 20 columns: 12 floats, 3 integers, text of 5, 50 and 2,000 values, a truth value, and a float of which 5 % are
missing. Every figure is of a process of its own, on one thread, and counts processor time. Memory is the peak of the process
above what it had after all imports.
"""

from __future__ import annotations

import argparse
import csv
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

MEBIBYTE = 2**20


def write(path: Path, rows: int) -> None:
    """Write the table."""
    random = np.random.default_rng(0)
    names = [*(f"f{i}" for i in range(12)), *(f"i{i}" for i in range(3)), "c5", "c50", "c2000", "b", "m"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for first in range(0, rows, 10_000):
            size = min(10_000, rows - first)
            floats = np.char.mod("%.6f", random.standard_normal((size, 13)))
            floats[random.random(size) < 0.05, 12] = ""
            integers = random.integers(0, 1000, (size, 3)).astype(str)
            texts = [
                np.char.mod(f"value %0{digits}d", random.integers(0, n, size))
                for n, digits in ((5, 1), (50, 2), (2000, 4))
            ]
            truth = np.where(random.random(size) < 0.5, "true", "false")
            writer.writerows(np.column_stack([floats[:, :12], integers, *texts, truth, floats[:, 12]]).tolist())


def measure(reader: str, path: Path) -> None:
    """Read the file in this process, and print processor seconds and mebibytes."""
    import pyarrow.compute
    import pyarrow.csv

    from runner.data.dialect import Form
    from runner.data.tables import Columns, read_text

    before, started = _peak(), time.process_time()
    if reader == "pyarrow":
        table = pyarrow.csv.read_csv(path, read_options=pyarrow.csv.ReadOptions(use_threads=False))
        assert table.num_columns == 20
    else:
        assert len(read_text(str(path), Columns("f0", missing="mean"), Form()).features) == 19
    print(time.process_time() - started, (_peak() - before) / MEBIBYTE)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="10000,100000,1000000")
    parser.add_argument("--measure", nargs=2, metavar=("READER", "PATH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure[0], Path(arguments.measure[1]))
        return
    print(
        "| rows | file, MiB | runner, s | pyarrow, s | ratio | runner, MiB | pyarrow, MiB |\n|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "table.csv")
        for rows in map(int, arguments.rows.split(",")):
            write(path, rows)
            ours, theirs = (_measured(reader, path) for reader in ("runner", "pyarrow"))
            print(
                f"| {rows:,} | {path.stat().st_size / MEBIBYTE:.1f} | {ours[0]:.2f} | {theirs[0]:.2f} | {ours[0] / theirs[0]:.1f} | "
                f"{ours[1]:.0f} | {theirs[1]:.0f} |"
            )


def _measured(reader: str, path: Path) -> tuple[float, float]:
    """Return the least processor time and the least memory of three processes."""
    command = [sys.executable, __file__, "--measure", reader, str(path)]
    runs = [subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() for _ in range(3)]
    return min(float(seconds) for seconds, _ in runs), min(float(memory) for _, memory in runs)


if __name__ == "__main__":
    main()
