"""Transforms of a column of numbers towards a normal shape: fitted on the training rows, the same for any rows after that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

NOISE = 1e-5
"""Standard deviation of the noise on the rows from which quantiles are taken, relative to that of the column."""

ROWS_PER_QUANTILE = 30
FEWEST_QUANTILES = 10
MOST_QUANTILES = 1000

EDGE = 1e-7
"""Probability that stands for 0, and 1 − EDGE for 1, so that the normal value of the smallest and largest row is finite."""

BEND = 3.0
"""Size at which the clip of `Robust` has bent a value to 1/√2 of itself, and the bound of all values."""


class Transform(Protocol):
    """A fitted transform of a column."""

    @property
    def kind(self) -> str:
        """Value of `data.numbers` that asks for it."""

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Return transformed values, float64 [rows], for finite values [rows]."""

    def state(self) -> Mapping[str, Any]:
        """Return what was fitted, as JSON."""


@dataclass(frozen=True)
class Quantile:
    """Ranks among the training rows as quantiles of the normal distribution.

    The same values as scikit-learn's `QuantileTransformer(output_distribution="normal")`: linear between the quantiles, the
    mean of both directions where several quantiles are equal, and ±5.2 outside.
    """

    quantiles: tuple[float, ...]
    """Quantiles of the training rows at equally spaced probabilities from 0 to 1, ascending."""

    kind = "quantile"

    @staticmethod
    def fit(values: np.ndarray, generator: torch.Generator) -> Quantile:
        """Return the transform fitted to finite values [rows].

        A little noise divides rows that are equal, and the number of quantiles follows the rows, as in Gorishniy et al.,
        "TabR: Tabular Deep Learning Meets Nearest Neighbors", ICLR 2024, appendix C.
        """
        rows = len(values)
        count = min(max(min(rows // ROWS_PER_QUANTILE, MOST_QUANTILES), FEWEST_QUANTILES), rows)
        noise = torch.randn(rows, generator=generator, dtype=torch.float64).numpy()
        noisy = values + NOISE * _deviation(values) * noise
        return Quantile(tuple(np.maximum.accumulate(np.quantile(noisy, np.linspace(0, 1, count))).tolist()))

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Return normal values, float64 [rows], for finite values [rows]."""
        quantiles, probabilities = np.array(self.quantiles), np.linspace(0, 1, len(self.quantiles))
        upwards = np.interp(values, quantiles, probabilities)
        downwards = -np.interp(-values, -quantiles[::-1], -probabilities[::-1])
        inside = np.clip((upwards + downwards) / 2, EDGE, 1 - EDGE)
        normal: np.ndarray = torch.special.ndtri(torch.from_numpy(inside)).numpy()
        return normal

    def state(self) -> Mapping[str, Any]:
        """Return what was fitted, as JSON."""
        return {"kind": self.kind, "quantiles": list(self.quantiles)}


@dataclass(frozen=True)
class Robust:
    """Distance from the median in interquartile ranges, bent smoothly so that no value is beyond ±3.

    Holzmüller, Grinsztajn and Steinwart, "Better by Default: Strong Pre-Tuned MLPs and Boosted Trees on Tabular Data",
    NeurIPS 2024, section 3: x → x / √(1 + (x/3)²).
    """

    median: float
    scale: float
    """Interquartile range of the training rows; half of their range where that is 0; 1 where both are."""

    kind = "robust"

    @staticmethod
    def fit(values: np.ndarray) -> Robust:
        """Return the transform fitted to finite values [rows]."""
        low, first, median, third, high = np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist()
        return Robust(median, (third - first) or (high - low) / 2 or 1.0)

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Return transformed values, float64 [rows], for finite values [rows]."""
        scaled = (values - self.median) / self.scale
        bent: np.ndarray = scaled / np.hypot(1, scaled / BEND)
        return bent

    def state(self) -> Mapping[str, Any]:
        """Return what was fitted, as JSON."""
        return {"kind": self.kind, "median": self.median, "scale": self.scale}


def of_state(state: Mapping[str, Any]) -> Transform:
    """Return the transform of a state."""
    fitted: Mapping[str, Callable[[], Transform]] = {
        Quantile.kind: lambda: Quantile(tuple(map(float, state["quantiles"]))),
        Robust.kind: lambda: Robust(float(state["median"]), float(state["scale"])),
    }
    return fitted[state["kind"]]()


def _deviation(values: np.ndarray) -> float:
    """Return the standard deviation, 1 where it is 0."""
    return float(values.std()) or 1.0
