"""Seconds and memory of `predict` on a table of text, beside reading the same columns and a bare forward pass of as many rows.

    python -m benchmarks.predictions --rows 1000,100000,1000000

The table is that of `benchmarks/tables.py` without its text of 2,000 values, and the model an `mlp` of two layers of 64 that was
trained on 10,000 rows of it. Every figure is of a process of its own, on one thread, and counts processor time; the three of a
round run one after the other. Memory is the peak of the process above what it had after all imports.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.tables import MEBIBYTE, peak, write

OVERRIDES = [
    "data=csv", "data.target=f0", "data.missing=mean", "data.drop=[c2000]", "data.standardize=true", "model=mlp", "model.widths=[64,64]",
    "train.steps=100", "train.batch_size=256", "optimizer=adam", "device=cpu", "device.threads=1", "record.plots=false",
    "record.residuals=false", "record.baselines=[]",
]  # fmt: skip


def measure(what: str, run: str, path: Path, rows: int) -> None:
    """Predict, read, or only pass rows forward in this process. Print processor seconds and the peak of memory in mebibytes."""
    import torch

    from runner.commands.predict import output
    from runner.data.new_rows import NewRows, Policy, open_files
    from runner.sweep.trained import open_models
    from runner.training.metrics import CHUNK_ROWS
    from runner.training.predicting import Predictor

    torch.set_num_threads(1)
    predictor = Predictor(open_models(run))
    before, started = peak(), time.process_time()
    if what == "forward":
        width = len(predictor.preprocessing.encoding.names)
        with torch.no_grad():
            for first in range(0, rows, CHUNK_ROWS):
                predictor.model(torch.zeros(min(CHUNK_ROWS, rows - first), width))
    else:
        found = NewRows(
            open_files(str(path), predictor.config.data), predictor.preprocessing, Policy.of(predictor.config)
        )
        if what == "reading":
            assert sum(len(block) for block in found.blocks()) == rows
        else:
            blocks = (
                {"prediction": predictor.of_columns(block.columns).values[:, 0].float().numpy()}
                for block in found.blocks()
            )
            output.write(str(path.with_suffix(".out")), blocks)
    print(time.process_time() - started, (peak() - before) / MEBIBYTE)


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1000,10000,100000,1000000")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of each figure the least is printed")
    options = parser.parse_args()
    print("| rows | predict, s | rows/s | reading, s | forward, s | (reading + forward) : predict | memory, MiB |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        trained, run = Path(folder, "trained.csv"), Path(folder, "run")
        write(trained, 10_000)
        command = [sys.executable, "-m", "runner", *OVERRIDES, f"data.path={trained}", f"run_dir={run}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for rows in map(int, options.rows.split(",")):
            path = Path(folder, f"{rows}.csv")
            write(path, rows)
            least = dict[str, tuple[float, float]]()
            for _ in range(options.rounds):
                for what in ("predict", "reading", "forward"):
                    seconds, memory = _measured(what, run, path, rows)
                    least[what] = min(least.get(what, (seconds, memory)), (seconds, memory))
            (predict, memory), (reading, _), (forward, _) = (least[what] for what in ("predict", "reading", "forward"))
            print(
                f"| {rows:,} | {predict:.3f} | {rows / predict:,.0f} | {reading:.3f} | {forward:.3f} | {(reading + forward) / predict:.2f} | {memory:.0f} |"
            )
            path.unlink()


def _measured(what: str, run: Path, path: Path, rows: int) -> tuple[float, float]:
    command = [sys.executable, "-m", __spec__.name, "--measure", what, str(run), str(path), str(rows)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(printed[0]), float(printed[1])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2], sys.argv[3], Path(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
