"""Bounds that the cells of a parity table must meet, and the reason for each.

A bound limits the largest difference in a tensor relative to its largest magnitude. One limit is for the largest of these
over all parameters, another for the losses of all steps taken as one tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runner.commands.parity.rounding import Rounding
from runner.config.schema import Config

FIRST_STEPS = 20
"""Number of steps compared if training may amplify a rounding error from step to step."""

PROMISED_STEPS = 200
"""Number of steps over which several processes promise the answer of one."""

PROMISED = {"sgd": 1e-12, "momentum": 1e-12, "adam": 1e-10, "adamw": 1e-10}
"""Optimizer -> largest float64 difference between two orders of the same operations."""

ROUNDED_ALIKE = ("sgd", "momentum")
"""Rules that torch's CPU kernels and the manual update round alike: the same operations in the same order."""

REASONS = {
    "equal": (
        "0 units in the last place: the same operations on the same numbers in the same order. For sgd and momentum torch.optim "
        "rounds as the manual update does, with one product and one sum per number"
    ),
    "reordered": (
        "1e-12 for sgd and momentum, 1e-10 for adam and adamw, over at most 200 steps: the same float64 arithmetic in another order. "
        "torch's fused Adam uses another order of products and quotients, several processes add the sums of their portions of a batch, "
        "and the adaptive rules divide by a small root, which amplifies the last bit"
    ),
    "linear": (
        "for a model that is linear in its parameters, with mse, all rows in every step, and sgd or momentum. The error of a step is at "
        "most 2u|p| + lr·γ·(2/n)·|X|ᵀ(|X||p| + |y|), with γ = k·u/(1 − k·u) for the k roundings of a step. Every later step multiplies that "
        "error by 1 − lr·λ along the eigenvector of (2/n)·XᵀX with eigenvalue λ (with momentum by a 2 × 2 matrix). The sum over all "
        "steps is the bound: the forward error of a stationary iteration (Higham, Accuracy and Stability of Numerical Algorithms, 2nd "
        "ed., 2002, chapters 3 and 17). If this worst case leaves no digit, as it may in 16 bits, the bound is sampled"
    ),
    "sampled": (
        "over the first 20 steps, ten times the largest effect of rounding errors drawn at random. The reference is trained four more "
        "times in float64, with relative errors of the size of the dtype's rounding in data and start values, and in the parameters at every "
        "evaluation and after every step (Monte Carlo arithmetic: Parker, UCLA CSD-970002, 1997; the error of an evaluation that adds n "
        "numbers is √n roundings: Higham and Mary, SIAM J. Sci. Comput. 41, 2019). Ten times, because four draws do not find the worst case"
    ),
}
"""Kind of bound -> its reason."""


@dataclass(frozen=True)
class Bound:
    """Largest allowed differences of a cell over the first `steps` steps; `REASONS` has the reason for each `kind`.

    If both are 1 or more, the bound promises nothing, because rounding may leave no digit.
    """

    kind: str
    steps: int
    parameters: float
    loss: float

    @property
    def holds_digits(self) -> bool:
        """Whether the bound promises at least one digit."""
        return min(self.parameters, self.loss) < 1


def bound(config: Config, reference: Config, steps: int, rounding: Rounding) -> Bound:
    """Return the bound of a run of `config` against a run of `reference`.

    `reference` has the same optimizer, in float64 on one process of the CPU. `rounding` gives the effect of rounding on it.
    """
    optimizer: str = config.optimizer.name
    same_update = config.update == reference.update
    if config.dtype == "float64" and config.device.name == "cpu":
        # reduction=exact adds in the same order on any number of processes.
        same_order = config.strategy.name == "single" or config.strategy.reduction == "exact"
        if same_order and (same_update or optimizer in ROUNDED_ALIKE):
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
