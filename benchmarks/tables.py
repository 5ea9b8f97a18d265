"""Seconds and memory of reading a table of text, and of making it rows, beside pyarrow's own reader of the same file.

    python benchmarks/tables.py --rows 10000,100000,1000000

The table has 20 columns: 12 floats, 3 integers, text of 5, 50 and 2,000 values, a truth value, and a float of which 5 % are
missing. The rows are of float32, standardized, without the text of 2,000 values: 74 numbers each. Every figure is of a process of
its own, on one thread, and counts processor time. Memory is the peak of the process above what it had after all imports.
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


def measure(what: str, path: Path) -> None:
    """Read the file in this process. Print processor seconds, the peak of memory and the memory of the result in mebibytes."""
    import pyarrow.compute
    import pyarrow.csv
    import torch

    from runner.config.compose import compose
    from runner.data import dataset
    from runner.data.dialect import Form
    from runner.data.tables import Columns, read_text

    torch.set_num_threads(1)
    config = compose(["data=csv", f"data.path={path}", "data.target=f0", "data.missing=mean", "data.drop=[c2000]", "data.standardize=true", "data.split.test=0.2"]).config  # fmt: skip
    before, started, size = peak(), time.process_time(), 0
    if what == "pyarrow":
        size = pyarrow.csv.read_csv(path, read_options=pyarrow.csv.ReadOptions(use_threads=False)).nbytes
    elif what == "table":
        assert len(read_text(str(path), Columns("f0", missing="mean"), Form()).features) == 19
    else:
        parts = dataset.build(config.data, 0, torch.float32, torch.device("cpu")).parts.values()
        size = sum(values.nbytes for rows in parts for values in rows.all if values is not None)
    print(time.process_time() - started, (peak() - before) / MEBIBYTE, size / MEBIBYTE)


def peak() -> int:
    """Return the largest memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="10000,100000,1000000")
    parser.add_argument(
        "--rounds", type=int, default=3, help="processes for each figure, of which the least is printed"
    )
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "PATH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure[0], Path(arguments.measure[1]))
        return
    print(
        "| rows | file, MiB | table, s | pyarrow, s | ratio | table, MiB | pyarrow, MiB | rows, s | peak, MiB | of rows, MiB | allowed, MiB |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "table.csv")
        for count in map(int, arguments.rows.split(",")):
            write(path, count)
            table, pyarrow, rows = (_measured(what, path, arguments.rounds) for what in ("table", "pyarrow", "rows"))
            print(
                f"| {count:,} | {path.stat().st_size / MEBIBYTE:,.1f} | {table[0]:.2f} | {pyarrow[0]:.2f} | {table[0] / pyarrow[0]:.1f} | "
                f"{table[1]:,.0f} | {pyarrow[1]:,.0f} | {rows[0]:.2f} | {rows[1]:,.0f} | {rows[2]:,.0f} | {2 * rows[2] + 300:,.0f} |",
                flush=True,
            )


def _measured(what: str, path: Path, rounds: int) -> list[float]:
    """Return the least processor time and the least memory of some processes, and the memory of the result."""
    command = [sys.executable, __file__, "--measure", what, str(path)]
    runs = [subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() for _ in range(rounds)]
    return [min(map(float, values)) for values in zip(*runs, strict=True)]


if __name__ == "__main__":
    main()
