"""The plots of an evaluation: those of a run, for the rows of the input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from runner.commands.evaluate.compared import Compared
from runner.config.schema import Config
from runner.data.encoding import NumberEncoding
from runner.data.kinds import Numbers
from runner.runs.plots import LINE_POINTS, MOST_PLOTTED, RunPlots, draw_targets
from runner.training.predicting import Predictor

PART = "input"
"""Name of the rows in the legend."""


def draw(predictor: Predictor, rows: Compared, total: int) -> dict[str, bytes]:
    """Return PNG files by name: "fit" and "residuals", with several targets "fit_1", "residuals_1", … of the first ones.

    `rows` are a sample of `total` rows.
    """
    single = _single(predictor)
    x = np.empty((len(rows), 0)) if single is None else single.filled(_numbers(rows, single))[:, None]
    line = None if single is None else _line(predictor, single, x[:, 0])
    return draw_targets(
        RunPlots(
            title=predictor.config.name,
            feature_names=[] if single is None else [single.name],
            target_name=target,
            parts={PART: (x, rows.target[:, number].numpy(), rows.prediction[:, number].numpy())},
            totals={PART: total},
            line=None if line is None else (line[0], line[1][:, number]),
            errors=_deviations(predictor.config, rows, number),
            rows=(),
        )
        for number, target in enumerate(predictor.target_names[:MOST_PLOTTED])
    )


def _single(predictor: Predictor) -> NumberEncoding | None:
    """Return the only feature, if there is one and it is a number, or a date as a whole."""
    first, *others = predictor.preprocessing.encoding.columns
    return first if isinstance(first, NumberEncoding) and first.name == first.column and not others else None


def _numbers(rows: Compared, feature: NumberEncoding) -> Numbers:
    column = rows.features[feature.name]
    assert isinstance(column, Numbers)
    return column


def _line(predictor: Predictor, feature: NumberEncoding, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return x [points] over the range of the rows, and the predictions [points, targets]."""
    points = np.linspace(x.min(), x.max(), LINE_POINTS)
    columns = {feature.name: Numbers(feature.name, points, feature.kind)}
    return points, predictor.of_columns(columns).values.numpy()


def _deviations(config: Config, rows: Compared, number: int) -> Mapping[str, Any]:
    """Return the standard deviations [rows] of a target in the units of the file, if the input has their column."""
    if rows.weight is None or getattr(config.data, "sigma", None) is None:
        return {}
    # That of a logarithm is relative.
    factor = rows.target[:, number] if config.data.log_target else torch.ones(())
    return {PART: (factor / rows.weight.sqrt()).numpy()}
