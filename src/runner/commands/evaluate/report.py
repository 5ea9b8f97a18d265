"""The results of an evaluation: as lines for a reader, and as a document for programs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from runner.commands.evaluate.compared import Sample
from runner.commands.evaluate.groups import Groups
from runner.commands.evaluate.importance import Importance
from runner.config.documents import FORMAT
from runner.runs.plots import short
from runner.runs.sinks.reporter import aligned, cells, shown
from runner.training.predicting import Predictor
from runner.training.scores import Scores

LONGEST_LABEL = 40
"""Characters of a value of a column that are shown."""

MOST_SHOWN = 30
"""Largest number of features whose importance is shown; the document has all of them."""


def metrics(scores: Scores, groups: Groups | None, predictor: Predictor) -> Iterator[str]:
    """Yield the table of metrics: a line for each value of a column, and one for all rows; below each, those of several targets."""
    lines: list[list[str]] = []
    targets, names = predictor.target_names, shown(predictor.config.metrics)
    found = [] if groups is None else [(group.value, group.scores) for group in groups.sorted()]
    for value, own in found:
        lines += _lines("(missing)" if value is None else short(value, LONGEST_LABEL), own, targets, names)
    lines += _lines("all", scores, targets, names)
    corner = "" if groups is None else short(groups.column, LONGEST_LABEL)
    yield from aligned([corner, "rows", *names], lines)


def _lines(label: str, scores: Scores, targets: Sequence[str], names: Sequence[str]) -> Iterator[list[str]]:
    values = scores.metrics()
    yield [label, f"{scores.rows:,}", *cells(values, names)]
    for target in targets if len(targets) > 1 else ():
        yield [f"  → {target}", "", *cells(values, [f"{name}/{target}" for name in names])]


def shuffling(features: int, repeats: int, sample: Sample) -> str:
    """Return the line above the importance, which may take long."""
    drawn = len(sample.rows())
    of_these = f" of {sample.total:,}, drawn at random" if drawn < sample.total else ""
    return f"shuffled {features:,} feature{'s' * (features != 1)}, {repeats:,} times each, among {drawn:,} row{'s' * (drawn != 1)}{of_these}"


def importance(found: Sequence[Importance]) -> Iterator[str]:
    """Yield the table of importance, the largest first."""
    lines = []
    for each in sorted_by_mean(found)[:MOST_SHOWN]:
        mean = each.estimate
        lines.append(
            [short(each.feature, LONGEST_LABEL), *(f"{value:.5g}" for value in (mean.mean, mean.low, mean.high))]
        )
    yield from aligned(["feature", "rmse grows by", "95 % from", "to"], lines)
    if len(found) > MOST_SHOWN:
        yield f"and {len(found) - MOST_SHOWN:,} more features"


def sorted_by_mean(found: Sequence[Importance]) -> list[Importance]:
    """Return the features with the largest mean first, and last those whose predictions are not finite."""
    return sorted(found, key=lambda each: -each.estimate.mean if math.isfinite(each.estimate.mean) else math.inf)


def document(
    predictor: Predictor, path: str, scores: Scores, groups: Groups | None, found: Sequence[Importance]
) -> dict[str, Any]:
    """Return all numbers of an evaluation."""
    members = [{"run": member.source, "step": member.step} for member in predictor.members]
    entries: dict[str, Any] = {"format": FORMAT, "models": members, "input": path, **_entry(scores)}
    if groups is not None:
        entries["by"] = groups.column
        entries["groups"] = [{"value": group.value, **_entry(group.scores)} for group in groups.sorted()]
    if found:
        entries["importance"] = [_importance(each) for each in sorted_by_mean(found)]
    return entries


def _entry(scores: Scores) -> Mapping[str, Any]:
    return {"rows": scores.rows, "metrics": scores.metrics()}


def _importance(found: Importance) -> dict[str, Any]:
    mean = found.estimate
    return {
        "feature": found.feature, "mean": mean.mean, "low": mean.low, "high": mean.high, "values": list(found.values),
    }  # fmt: skip
