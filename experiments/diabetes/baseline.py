"""The closed-form linear fit on the rows that `+experiment=diabetes` trains on: what a network has to beat.

python experiments/diabetes/baseline.py [key=value …]     the same overrides as for the run, such as seed=3
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
    """Part → rmse, mae and r2 in the units of the file. Raises the runner's own errors for what it cannot read."""
    config = compose(["+experiment=diabetes", *overrides]).config
    dataset = data.build(config.data, config.seed, torch.float64, torch.device("cpu"))
    train = dataset.parts["train"]
    # "gelsd" also answers where columns depend on each other: the shortest of the best fits.
    weight = torch.linalg.lstsq(_with_constant(train.features), train.target, driver="gelsd").solution
    undo = dataset.scaling.undo
    return {
        part: _metrics(undo(_with_constant(rows.features) @ weight), undo(rows.target))
        for part, rows in dataset.parts.items()
    }


def _with_constant(features: Tensor) -> Tensor:
    """Features [rows, columns] → [rows, columns + 1], the last one 1."""
    return torch.cat([features, features.new_ones(len(features), 1)], dim=1)


def _metrics(prediction: Tensor, truth: Tensor) -> dict[str, float]:
    """Of predictions and targets, each [rows, 1]."""
    error = prediction - truth
    spread = (truth - truth.mean()).square().sum()
    return {
        "rmse": float(error.square().mean().sqrt()),
        "mae": float(error.abs().mean()),
        "r2": float(1 - error.square().sum() / spread),
    }


def main() -> int:
    """Print a line for each part."""
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
