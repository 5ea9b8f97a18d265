"""What a cell of a parity table must meet, and why: the one list of bounds.

A bound is on the largest difference over the largest magnitude of a tensor, the largest of all parameters, and on the same
of the losses of all steps taken as one tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runner.commands.parity.rounding import Rounding
from runner.config.schema import Config

FIRST_STEPS = 20
"""Steps that are compared where training may multiply a rounding error from step to step."""

PROMISED_STEPS = 200
"""Steps for which the answer of one process is promised on several."""

PROMISED = {"sgd": 1e-12, "momentum": 1e-12, "adam": 1e-10, "adamw": 1e-10}
"""Optimizer → largest difference in float64 between two orders of the same operations."""

ROUNDED_ALIKE = ("sgd", "momentum")
"""Rules that torch's CPU kernels and ours round alike: the same products and sums of the same numbers, in the same order."""

REASONS = {
    "equal": (
        "0 units in the last place: the same operations on the same numbers in the same order. Under sgd and momentum torch.optim "
        "rounds as the update by hand does, one product and one sum a number"
    ),
    "reordered": (
        "1e-12 for sgd and momentum, 1e-10 for adam and adamw, over at most 200 steps: the same float64 arithmetic in another order. "
        "torch's fused Adam multiplies and divides in an order of its own, processes add up what each has of a batch, and the adaptive "
        "rules divide by a small root, which makes more of a last bit"
    ),
    "linear": (
        "for a model that is linear in its parameters, under mse, all rows in every step, by sgd or momentum. A step is wrong by at most "
        "2u|p| + lr·γ·(2/n)·|X|ᵀ(|X||p| + |y|), with γ = k·u/(1 − k·u) for the k roundings on the way, and every later step multiplies that "
        "error by 1 − lr·λ along the eigenvector of (2/n)·XᵀX whose eigenvalue is λ (with momentum by a 2 × 2 matrix). The sum over all "
        "steps is the bound: the forward error of a stationary iteration (Higham, Accuracy and Stability of Numerical Algorithms, 2nd "
        "ed., 2002, chapters 3 and 17). Where this worst case leaves no digit, as it may in 16 bits, the bound is a sampled one"
    ),
    "sampled": (
        "over the first 20 steps, ten times the largest effect of rounding errors that are drawn at random: the reference is trained "
        "four times more in float64, with relative errors of the type's size in data and start values, in the parameters at every "
        "evaluation and after every step (Monte Carlo arithmetic: Parker, UCLA CSD-970002, 1997; an evaluation that adds n numbers errs "
        "by √n roundings: Higham and Mary, SIAM J. Sci. Comput. 41, 2019). Ten times, since four draws do not find the worst"
    ),
}
"""Kind of bound → its reason, in a sentence or two."""


@dataclass(frozen=True)
class Bound:
    """The largest differences that a cell may have over the first `steps` steps; `kind` has the reason in `REASONS`.

    Where both are 1 or more it promises nothing: rounding may leave no digit.
    """

    kind: str
    steps: int
    parameters: float
    loss: float

    @property
    def holds_digits(self) -> bool:
        """Whether it promises anything."""
        return min(self.parameters, self.loss) < 1


def bound(config: Config, reference: Config, steps: int, rounding: Rounding) -> Bound:
    """What the run of `config` must meet against that of `reference`, the same optimizer in float64 on one process of the CPU.

    `rounding` tells what rounding does to the reference, where that must be known.
    """
    optimizer: str = config.optimizer.name
    as_reference = config.update == reference.update
    if config.dtype == "float64" and config.device.name == "cpu":
        # reduction=exact adds in the same order on any number of processes.
        alone = config.strategy.name == "single" or config.strategy.reduction == "exact"
        if alone and (as_reference or optimizer in ROUNDED_ALIKE):
            return Bound("equal", steps, 0.0, 0.0)
        if optimizer in PROMISED:
            return Bound("reordered", min(steps, PROMISED_STEPS), PROMISED[optimizer], PROMISED[optimizer])
    return _rounded(config, steps, rounding)


def _rounded(config: Config, steps: int, rounding: Rounding) -> Bound:
    precision: Any = config.device.matmul_precision
    few = min(steps, FIRST_STEPS)
    if rounding.linear is not None:
        worst = Bound("linear", steps, *rounding.linear.effect(config.dtype, precision, steps))
        if worst.holds_digits:
            return worst
    return Bound("sampled", few, *rounding.sampled(config.dtype, precision, few))
