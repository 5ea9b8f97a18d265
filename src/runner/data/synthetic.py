"""Synthetic data, generated in float64 on the CPU."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from runner.compute.rng import stream
from runner.config import schema as c
from runner.config.expression import parse
from runner.data.kinds import Numbers
from runner.data.progress import Report, unreported
from runner.data.tables import Table
from runner.errors import DataError


def line(config: c.Line, seed: int, report: Report = unreported) -> Table:
    """Return the table of `data=line`: y = slope·Σx + intercept + noise."""
    names = ["x"] if config.features == 1 else [f"x{i + 1}" for i in range(config.features)]
    features = _features(config, len(names), seed)
    target = features.sum(1) * config.slope + config.intercept
    return _table(config, seed, names, features, target)


def curve(config: c.Curve, seed: int, report: Report = unreported) -> Table:
    """Return the table of `data=curve`: y = expression(columns) + noise.

    Raises `DataError` if the expression is not finite in some row.
    """
    expression = parse(config.expression)
    features = _features(config, len(expression.names), seed)
    target = expression(dict(zip(expression.names, features.unbind(1), strict=True)))
    bad = (~target.isfinite()).nonzero().flatten().tolist()
    if bad:
        row = dict(zip(expression.names, features[bad[0]].tolist(), strict=True))
        at = ", ".join(f"{name}={value:g}" for name, value in row.items())
        raise DataError(
            f"`data.expression` must be finite on the whole range, but {config.expression!r} is not at {at}; "
            "change data.start and data.stop"
        )
    return _table(config, seed, list(expression.names), features, target)


def _features(config: c.Line | c.Curve, columns: int, seed: int) -> Tensor:
    """Return features [rows, columns]: one column evenly spaced with both ends, several drawn uniformly from the range."""
    if columns == 1:
        return torch.linspace(config.start, config.stop, config.rows, dtype=torch.float64).unsqueeze(1)
    drawn = torch.rand(config.rows, columns, dtype=torch.float64, generator=stream(seed, "data"))
    return config.start + (config.stop - config.start) * drawn


def _table(config: c.Line | c.Curve, seed: int, names: list[str], features: Tensor, target: Tensor) -> Table:
    draw = torch.randn if config.noise_distribution == "normal" else torch.rand
    target = target + config.noise * draw(config.rows, dtype=torch.float64, generator=stream(seed, "noise"))
    _require_finite(config, target)
    return Table(
        features=[Numbers(name, column) for name, column in zip(names, features.T.numpy(), strict=True)],
        targets=(Numbers("y", np.asarray(target.numpy())),),
        rows=np.arange(config.rows),
    )


def _require_finite(config: c.Line | c.Curve, target: Tensor) -> None:
    bad = (~target.isfinite()).nonzero().flatten()
    if len(bad):
        row = int(bad[0])
        raise DataError(
            f"`data`={config.name} must give numbers up to 1.8e308, the largest float64, but the target of row {row + 1} is "
            f"{float(target[row])}; make {' or '.join(f'`{key}`' for key in config.target_keys)} smaller"
        )
