"""Coverage of the intervals of predictions for three kinds of noise: `python -m benchmarks.coverage`, a few seconds.

Each share is the mean over 200 tables with 100 rows of calibration and 2,000 new rows each, and its standard error. The model is a
straight line through data that are not straight, fitted to 100 other rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from runner.data.scaling import Scaling
from runner.training.intervals import Calibration, Intervals

TABLES, TRAIN, CALIBRATE, NEW = 200, 100, 100, 2000
LEVELS = (0.5, 0.8, 0.9, 0.95)


def _normal(x: Tensor, draw: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=draw, dtype=torch.float64)


def _chi(x: Tensor, draw: torch.Generator) -> Tensor:
    return torch.stack([_normal(x, draw) for _ in range(2)]).square().mean(0).sqrt()


NOISES: Mapping[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "normal": _normal,
    "heavy tails (Student's t, 2 degrees of freedom)": lambda x, draw: _normal(x, draw) / _chi(x, draw),
    "deviation that grows tenfold with x": lambda x, draw: _normal(x, draw) * (0.2 + 1.8 * x),
}


def shares(noise: Callable[[Tensor, torch.Generator], Tensor]) -> Tensor:
    """Return the shares of new targets in their intervals [tables, levels]."""
    draw, one = torch.Generator().manual_seed(0), torch.ones(1, dtype=torch.float64)
    scaling, found = Scaling(one, one, 0 * one, one, False), []
    for _ in range(TABLES):
        x = torch.rand(TRAIN + CALIBRATE + NEW, 1, generator=draw, dtype=torch.float64)
        y = torch.sin(4 * x) + noise(x, draw)
        design = torch.cat((x, torch.ones_like(x)), 1)
        prediction = design @ torch.linalg.lstsq(design[:TRAIN], y[:TRAIN]).solution
        target, new = y[TRAIN : TRAIN + CALIBRATE], y[TRAIN + CALIBRATE :]
        known, predicted = prediction[TRAIN : TRAIN + CALIBRATE], prediction[TRAIN + CALIBRATE :]
        calibration = Calibration(target, known, one)
        row = []
        for level in LEVELS:
            low, high = Intervals([calibration], scaling, level, "interval").around(predicted.unsqueeze(0))
            row.append(((low <= new) & (new <= high)).double().mean())
        found.append(torch.stack(row))
    return torch.stack(found)


def main() -> None:
    """Print the table in Markdown."""
    print(f"| noise | {' | '.join(f'{level:.0%}' for level in LEVELS)} |")
    print(f"| --- |{' ---: |' * len(LEVELS)}")
    for name, noise in NOISES.items():
        values = shares(noise)
        mean, error = 100 * values.mean(0), 100 * values.std(0) / TABLES**0.5
        cells = [f"{a:.1f} ± {b:.1f}" for a, b in zip(mean.tolist(), error.tolist(), strict=True)]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
