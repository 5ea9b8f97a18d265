"""Compute the content of a run's plots: the predictions of the fitted model, in the units of the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from runner.runs import plots
from runner.runs.sinks.jsonl import read_rows
from runner.training.experiment import RunInfo
from runner.training.metrics import Evaluation

LINE_POINTS = 400
"""Points of the fitted curve."""


def draw(facts: RunInfo, evaluation: Evaluation, metrics: Path, levels: Mapping[str, float]) -> dict[str, bytes]:
    """Return the PNG files "fit", "loss" and "residuals".

    `evaluation` is that of the whole model, `metrics` the path of metrics.jsonl, `levels` known losses by name.
    """
    dataset, scaling = facts.dataset, facts.dataset.scaling
    parts = {}
    for name, rows in dataset.parts.items():
        features = rows.features.cpu().double() * scaling.feature_scale + scaling.feature_mean
        target = scaling.undo(rows.target.cpu().double()).flatten()
        parts[name] = (features.numpy(), target.numpy(), evaluation.predictions(name).numpy())
    content = plots.RunPlots(
        title=facts.config.name,
        feature_names=dataset.feature_names,
        target_name=dataset.target_name,
        parts=parts,
        line=_line(facts, evaluation, parts) if len(dataset.feature_names) == 1 else None,
        rows=read_rows(metrics),
        levels=levels,
    )
    return plots.draw(content)


def _line(facts: RunInfo, evaluation: Evaluation, parts: dict[str, Any]) -> Any:
    """Return x and y of the fitted curve over the range of all rows, [LINE_POINTS] each."""
    low = min(features.min() for features, _, _ in parts.values())
    high = max(features.max() for features, _, _ in parts.values())
    x = torch.linspace(float(low), float(high), LINE_POINTS, dtype=torch.float64).unsqueeze(1)
    like = facts.dataset.parts["train"].features
    prediction = evaluation.predict(facts.dataset.scaling.features(x).to(like))
    return x.flatten().numpy(), prediction.numpy()
