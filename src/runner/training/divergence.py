"""Why a run cannot go on after an update whose loss, derivatives or parameters are not finite, as one sentence with a remedy.

There are three causes, each with a sentence of its own: the start values, an infinite derivative of a formula, and divergence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

NAMED = 5
"""Largest number of rows, and of parameters, that a sentence names."""


@dataclass(frozen=True)
class Nonfinite:
    """Values of a batch that are not finite, at the parameters before the failed update. Rows are row numbers of the data, from 0."""

    predictions: Sequence[int] = ()
    """Rows without a finite prediction; empty if all rows are: then the parameters are the cause."""
    derivatives: Sequence[int] = ()
    """Rows whose prediction is finite and whose derivative by `parameter` is not."""
    parameter: str = ""
    derivative: float = math.nan
    """The derivative in the first of these rows."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Parameters of a formula by name; empty for other models."""


@dataclass(frozen=True)
class Divergence:
    """The update at which a run diverged, and its losses from the previous reading up to that update."""

    step: int
    losses: Sequence[float]


def sentence(
    divergence: Divergence,
    nonfinite: Nonfinite,
    *,
    restored: int,
    lr: float | None,
    history: str,
    may_standardize: bool,
) -> str:
    """Return why the run has ended.

    `restored` is the step whose parameters are restored, and `history` says what the last finite loss was.
    """
    loss = divergence.losses[-1]
    if nonfinite.derivatives:
        return _derivative(nonfinite, restored)
    if divergence.step == 1 and not math.isfinite(loss):
        return _start(nonfinite, loss, may_standardize)
    event = f"the loss became {loss:g}" if not math.isfinite(loss) else "a gradient or a parameter became nan or inf"
    rate = "" if lr is None else f" with lr={lr:g}"
    change = "start from other values" if lr is None else "make optimizer.lr smaller"
    if nonfinite.predictions:
        advice = f"{_rows(nonfinite)}: {_remove(nonfinite.predictions)}, fix the model, or {change}"
    else:
        advice = change.capitalize() + (
            ", or standardize the data with data.standardize=true" if may_standardize else ""
        )
    return (
        f"training diverged at step {divergence.step}: {event}{rate}, {history}; "
        f"the parameters of step {restored} are restored. {advice}"
    )


def _start(nonfinite: Nonfinite, loss: float, may_standardize: bool) -> str:
    """Return the sentence for a loss that is not finite before the first update."""
    rows = f": {_rows(nonfinite)}" if nonfinite.predictions else ""
    remove = f", change the formula, or {_remove(nonfinite.predictions)}" if nonfinite.predictions else ""
    if nonfinite.values:
        values = _values(nonfinite)
        return (
            f"`model.start` must give a finite loss, got {loss:g} with {values}{rows}; start from other values{remove}"
        )
    advice = _remove(nonfinite.predictions) if nonfinite.predictions else "remove rows with extreme values"
    standardize = ", or standardize the data with data.standardize=true" if may_standardize else ""
    return f"the loss is {loss:g} before the first update{rows}; {advice}{standardize}"


def _derivative(nonfinite: Nonfinite, restored: int) -> str:
    """Return the sentence for a derivative of a formula that is not finite although its prediction is."""
    first, *others = nonfinite.derivatives
    more = f" and {len(others):,} more" if others else ""
    remove = _remove(nonfinite.derivatives)
    found = f"{nonfinite.derivative:g} by {nonfinite.parameter} in row {first + 1}{more} of the data with {_values(nonfinite)}"
    if restored == 0:
        return f"`model.start` must give finite derivatives, got {found}; start from other values, or {remove}"
    return (
        f"the derivatives must be finite at step {restored + 1}, got {found}; "
        f"the parameters of step {restored} are restored. Start from other values with model.start, or {remove}"
    )


def _remove(rows: Sequence[int]) -> str:
    return "remove these rows" if len(rows) > 1 else "remove this row"


def _rows(nonfinite: Nonfinite) -> str:
    if len(nonfinite.predictions) == 1:
        return f"row {nonfinite.predictions[0] + 1} of the data has no finite prediction"
    numbers = ", ".join(str(row + 1) for row in nonfinite.predictions[:NAMED])
    return (
        f"{len(nonfinite.predictions)} rows of its batch have no finite prediction, such as row {numbers} of the data"
    )


def _values(nonfinite: Nonfinite) -> str:
    """Return the parameters as text, the one with the derivative first."""
    values = dict(nonfinite.values)
    ordered = {nonfinite.parameter: values.pop(nonfinite.parameter), **values} if nonfinite.parameter else values
    shown = [f"{name}={value:.6g}" for name, value in ordered.items()]
    return ", ".join(shown[:NAMED] + ["…"] * (len(shown) > NAMED))
