"""The one judgement of whether a least-squares fit has converged, and the sentence for a fit that has not.

Every tensor has a leading lane axis; a single run is one lane.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from runner.config import constraints
from runner.config import schema as c
from runner.optim.linearised import Linearised

CONVERGED = 1e-6
"""Largest relative offset of a converged fit.

The relative offset is the length of the residuals' projection on the column space of the Jacobian, over the length of the
residuals: Bates and Watts, "A Relative Offset Orthogonality Convergence Criterion for Nonlinear Least Squares", Technometrics
23 (1981). Parameters then differ from the optimum by about this fraction of their standard errors.
"""

BLURRED = 0.1
"""Largest relative offset of a converged fit that rounding explains.

Parameters then differ from the optimum by a tenth of their standard errors, and the loss by one per cent.
"""

DRAWS = 8
"""Number of parameter sets near those of a fit, and of sets anywhere, at which its rank is compared."""

NAMED = 5
"""Largest number of parameters that a sentence names."""

NEGLIGIBLE = 1e-6
"""A parameter is undetermined if a larger share of it than this is outside of the directions that the Jacobian determines."""


NOT_FINITE = "the residuals or their derivatives are not finite"
"""Why a fit has not converged that cannot be judged."""


@dataclass(frozen=True)
class Verdict:
    """The verdict on the convergence of one fit."""

    config: c.Config
    cause: str
    """Why the fit has not converged; empty if it has."""
    offset: float
    """Relative offset. It is the cause where it is above `CONVERGED` and `cause` is empty; else 0."""
    linear: bool
    """Whether the model is linear in its parameters; known where the offset is the cause."""
    undetermined: tuple[str, ...] = ()
    """Parameters that can change without changing any prediction."""

    @property
    def converged(self) -> bool:
        """Whether the fit has converged."""
        return not (self.cause or self.offset)

    def reason(self, settled: bool) -> str:
        """Return why the fit has not converged, with a remedy; "" if it has.

        `settled` says that the optimizer has stopped, because it found no better parameters.
        """
        if self.converged:
            return ""
        start = f"start from other values{self._given_start()} with {self.config.model.start_key}"
        if self.cause:
            return f"{self.cause}; {start}"
        threshold = f"(relative offset {self.offset:.1g}, threshold {CONVERGED:g})"
        if settled:
            remedies = ["use data.standardize=true"] if self.config.may_standardize else []
            remedies += (
                [] if self.linear or self.config.optimizer.linear_only else [start]
            )  # such a model has one minimum
            wider = constraints.advised(self.config, "dtype", "float64") if self.config.dtype == "float32" else None
            remedies += [f"use {wider}"] if wider else []
            advice = f"; {_alternatives(remedies)}" if remedies else ""
            return f"no further step finds better parameters, but by their derivatives they are not at a minimum {threshold}{advice}"
        return f"the parameters are still changing {threshold}; {_alternatives(self._quicker())}"

    def _given_start(self) -> str:
        """Return the start values that are given, as " than a=1, b=500"; the first ones of many."""
        given = [f"{name}={value:g}" for name, value in self.config.model.start_values.items()]
        more = ", …" if len(given) > NAMED else ""
        return f" than {', '.join(given[:NAMED])}{more}" if given else ""

    def _quicker(self) -> list[str]:
        """Return what brings a fit nearer to the optimum, as far as its configuration allows it."""
        remedies = ["train longer"]
        if not self.config.optimizer.least_squares:
            remedies += ["use data.standardize=true"] if self.config.may_standardize else []
            solved = self.linear and not self.config.model.limits
            solver: c.OptimizerConfig = (
                c.Lstsq(name="lstsq", weight_decay=0.0) if solved else c.Lm(name="lm", radius=1.0)
            )
            if not constraints.problems(replace(self.config, optimizer=solver)):
                remedies.append(f"use optimizer={solver.name}")
        return remedies


@dataclass(frozen=True)
class Evidence:
    """Facts from which the verdicts on several vmapped fits follow."""

    problem: Linearised
    """The least-squares problem at the parameters of each fit, penalty included."""
    length: Tensor
    """Lengths [lanes] of the residuals."""
    rounding: Tensor
    """Offset [lanes] that rounding may leave in a converged fit, by `rounding_left`."""
    finite: Sequence[bool]
    """Whether all residuals and derivatives of each fit are finite."""
    names: Sequence[Sequence[str]]
    """For each fit the names of its reported parameters."""
    unscaling: Callable[[int], Tensor | None]
    """Returns the matrix [reported, n] from the parameters of a lane to the reported ones; None if they are the same."""
    linear: Callable[[], bool]
    """Returns whether the model is linear in its parameters."""
    ranks: Callable[[int], Tensor]
    """Returns the ranks [sets] of the Jacobian of a lane at parameters other than those of its fit, as far as it is finite."""


def judge(evidence: Evidence, configs: Sequence[c.Config]) -> list[Verdict]:
    """Return the verdict on each fit.

    A fit has converged at a relative offset up to `CONVERGED`, or as low as rounding allows. If the Jacobian does not determine
    all parameters there, it must not do so elsewhere either: otherwise the fit has run into a flat region, or started in one.
    """
    problem = evidence.problem
    near = (problem.offset <= CONVERGED * evidence.length + evidence.rounding).tolist()
    full_rank = problem.determined.all(1).tolist()
    offsets, ranks = (problem.offset / evidence.length).tolist(), problem.determined.sum(1).tolist()
    verdicts = []
    for lane, config in enumerate(configs):
        cause, undetermined = "", tuple[str, ...]()
        if not evidence.finite[lane]:
            cause = NOT_FINITE
        elif not full_rank[lane] and config.model.identifiable:
            undetermined = _undetermined(evidence, lane)
            flat = not evidence.linear() and bool((evidence.ranks(lane) > ranks[lane]).any())
            cause = f"near these values {free(undetermined)}" if flat else ""
        offset = 0.0 if cause or near[lane] else offsets[lane]
        linear = bool(offset) and evidence.linear()
        verdicts.append(Verdict(config, cause, offset, linear, undetermined))
    return verdicts


def rounding_left(rounding: Tensor, eps: float, length: Tensor, target: Tensor) -> Tensor:
    """Return the offset [lanes] that rounding may leave in a converged fit; lengths of residuals and targets are [lanes].

    Terms that nearly cancel, such as powers of a year, may leave rounding as large as the residuals. They are then not those
    of the optimum, unless they are negligible beside the target, as in an exact fit.
    """
    return torch.minimum(rounding, torch.maximum(BLURRED * length, math.sqrt(eps) * target))


def other_values(fitted: Tensor) -> Tensor:
    """Return parameters [sets, n] at which the rank of a Jacobian is compared with that at the fitted ones [n].

    Half of them are near the fitted ones, half anywhere.
    """
    generator = torch.Generator().manual_seed(0)
    near, anywhere = torch.randn(2, DRAWS, len(fitted), generator=generator, dtype=torch.float64).to(fitted)
    sizes = 10 ** torch.linspace(-3, 3, DRAWS).unsqueeze(1).to(fitted)
    return torch.cat((fitted * (1 + near / 2), anywhere * sizes))


def free(names: Sequence[str]) -> str:
    """Return the sentence that says that parameters are undetermined."""
    shown = [*names[:NAMED], f"{len(names) - NAMED:,} more"] if len(names) > NAMED else list(names)
    together = " together" if len(names) > 1 else ""
    return f"{_joined(shown, 'and')} can change{together} without changing any prediction"


def _undetermined(evidence: Evidence, lane: int) -> tuple[str, ...]:
    """Return the names of the reported parameters that change along directions which the Jacobian does not determine."""
    problem, unscaling = evidence.problem, evidence.unscaling(lane)
    known = torch.where(problem.determined[lane].unsqueeze(1), problem.directions[lane], 0.0)
    outside = torch.eye(known.shape[1]).to(known) - known.mT @ known
    # Each reported parameter as a vector in the scaled parameters, and the part of it outside of the known directions.
    reported = torch.diag(1 / problem.scale[lane])
    reported = reported if unscaling is None else unscaling.to(reported) @ reported
    reported = reported / reported.abs().amax(1, keepdim=True)  # squares of numbers in tiny units would be 0
    shares = (reported @ outside).norm(dim=1) / reported.norm(dim=1)
    return tuple(name for name, share in zip(evidence.names[lane], shares.tolist(), strict=False) if share > NEGLIGIBLE)


def _alternatives(texts: Sequence[str]) -> str:
    return _joined(texts, "or")


def _joined(texts: Sequence[str], word: str) -> str:
    *others, last = texts
    return f"{', '.join(others)} {word} {last}" if others else last
