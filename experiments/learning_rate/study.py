"""Largest stable learning rate of `linreg`: computed from its rows and measured by training.

python experiments/learning_rate/study.py [--run-dir DIR]     512 rates x 8 seeds in one sweep
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import runner
from runner.config.compose import compose
from runner.data import dataset
from runner.errors import RunnerError
from runner.runs.atomic import write_atomic
from runner.runs.sinks.jsonl import read_rows
from runner.sweep.plots import draw
from runner.sweep.results import Member, Results

EXPERIMENT = "linreg"
RATE = "optimizer.lr"
OVERRIDES = (f"{RATE}=range(3.606e-4,3.67768e-4,1.4e-8)", "seeds=8", "dtype=float64")


@dataclass(frozen=True)
class Found:
    """Measured limits; nan if there is none."""

    stable: float
    """Largest rate up to which no trial diverged."""
    unstable: float
    """Smallest rate from which on every trial diverged."""


def limit() -> float:
    """Return 2/λmax of the loss, whose Hessian is 2·AᵀA/rows for features A with a column of ones.

    Gradient descent multiplies the error along the eigenvector of curvature λ by 1 − lr·λ at every step.
    """
    config = compose([f"+experiment={EXPERIMENT}"]).config
    x = dataset.build(config.data, config.seed, torch.float64, torch.device("cpu")).parts["train"].all.numbers
    a = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
    return 2 / float(torch.linalg.eigvalsh(2 * a.T @ a / len(a))[-1])


def find(directory: Path, results: Results) -> Found:
    """Return the learning rates between which training starts to diverge."""
    by_rate: dict[float, list[bool]] = {}
    for member in results.members:
        by_rate.setdefault(member.values[RATE], []).append(_diverged(directory, member))
    rates = sorted(by_rate)
    first = next((i for i, rate in enumerate(rates) if any(by_rate[rate])), len(rates))
    last = next((i for i in reversed(range(len(rates))) if not all(by_rate[rates[i]])), -1)
    padded = [float("nan"), *rates, float("nan")]
    return Found(stable=padded[first], unstable=padded[last + 2])


def _diverged(directory: Path, member: Member) -> bool:
    """Return whether the final loss is above that of the first row, or the run failed."""
    if member.state != "finished":
        return True
    first = read_rows(directory / str(member.number) / "metrics.jsonl")[0]
    return member.metrics["train/loss"] > float(first["train/loss"])


def plot(results: Results) -> bytes:
    """Return a PNG of the final loss by learning rate, with the predicted limit."""
    predicted = limit()
    return draw(replace(results, metric="train/loss"), {RATE: [(predicted, f"2/λmax = {predicted:.5g}")]})[RATE]


def main() -> int:
    """Train, compare, plot, and return the exit code."""
    parser = argparse.ArgumentParser(description="Compute and measure the largest stable learning rate of linreg.")
    parser.add_argument("--run-dir", help="directory of the sweep; default runs/linreg/sweep_<stamp>")
    run_dir = parser.parse_args().run_dir
    try:
        directory, results = runner.multirun(EXPERIMENT, [*OVERRIDES, *([f"run_dir='{run_dir}'"] if run_dir else [])])
    except RunnerError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    png, found = plot(results), find(directory, results)
    for path in (directory / "plots" / f"{RATE}.png", Path(__file__).with_name("limit.png")):
        write_atomic(path, png)
    sys.stdout.write(
        f"predicted  2/λmax = {limit():.8g}\n"
        f"measured   no seed diverged up to {found.stable:.8g}, every seed from {found.unstable:.8g} on\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
