"""Closed-form linear fit on the training rows of `+experiment=diabetes`, as the baseline of a network.

python experiments/diabetes/baseline.py [key=value …]     with the overrides of the run, such as seed=3
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from runner.config.compose import compose
from runner.data import dataset as data
from runner.errors import RunnerError


def fit(overrides: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """Return rmse, mae and r2 by part, in the units of the file. Raises `RunnerError` if the data cannot be read."""
    config = compose(["+experiment=diabetes", *overrides]).config
    dataset = data.build(config.data, config.seed, torch.float64, torch.device("cpu"))
    train = dataset.parts["train"]
    # "gelsd" also solves problems with linearly dependent columns: it returns the shortest of the best fits.
    weight = torch.linalg.lstsq(_with_constant(train.all.numbers), train.all.target, driver="gelsd").solution
    undo = dataset.scaling.undo
    return {
        part: _metrics(undo(_with_constant(rows.all.numbers) @ weight), undo(rows.all.target))
        for part, rows in dataset.parts.items()
    }


def _with_constant(features: Tensor) -> Tensor:
    """Return features [rows, columns] with a column of ones appended, [rows, columns + 1]."""
    return torch.cat([features, features.new_ones(len(features), 1)], dim=1)


def _metrics(prediction: Tensor, truth: Tensor) -> dict[str, float]:
    """Return the metrics of predictions and targets, each [rows, 1]."""
    error = prediction - truth
    spread = (truth - truth.mean()).square().sum()
    return {
        "rmse": float(error.square().mean().sqrt()),
        "mae": float(error.abs().mean()),
        "r2": float(1 - error.square().sum() / spread),
    }


def main() -> int:
    """Print one line per part and return the exit code."""
    try:
        measured = fit(sys.argv[1:])
    except RunnerError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    for part, metrics in measured.items():
        sys.stdout.write(f"{part:5}  " + "  ".join(f"{name} {value:.6g}" for name, value in metrics.items()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
