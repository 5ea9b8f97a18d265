"""Least-squares solvers: steps computed from the residuals r and their Jacobian J, for a loss that is the mean of r².

Both solvers use the rows only through the triangular factor of [J, r, y], so a step is the same on one process and on many.
Every tensor has a leading lane axis; a single run is one lane.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from runner.compute.bounds import Bounds
from runner.config import schema as c
from runner.optim.active_set import step_within, times
from runner.optim.base import Objective, State
from runner.optim.linearised import Linearised, ShortestSteps, lengths
from runner.optim.qr import penalised, without_columns
from runner.optim.saddle import step_away

SOLVES = 2
"""Number of steps of `lstsq`: the solution, and one step of iterative refinement.

Higham, "Accuracy and Stability of Numerical Algorithms" (2002), section 20.5.
"""

TRIALS = 20
"""Maximum number of trial steps from one linearisation, each at most half as long as the previous one."""

ACCEPTED = 1e-4
"""Fraction of the predicted reduction that a step must achieve to be accepted (Moré, 1978)."""

SETTLED = 1e-9
"""Relative offset (`Linearised.offset` over the length of the residuals) below which `lm` has converged."""


class _LeastSquares:
    """Common part of the solvers: parameters as one row per lane, and the lanes that have converged."""

    def __init__(self, parameters: Mapping[str, Tensor], lanes: int | None) -> None:
        self._names, self._tensors = list(parameters), list(parameters.values())
        self._lanes = lanes or 1
        self._ended = [False] * self._lanes
        self.settled: Sequence[int] = ()
        self.rate_type: torch.dtype | None = None

    def _rows(self) -> Tensor:
        """Return a copy of the parameters, [lanes, n]."""
        return torch.cat([tensor.detach().reshape(self._lanes, -1) for tensor in self._tensors], 1)

    def _write(self, rows: Tensor) -> None:
        with torch.no_grad():
            for tensor, part in zip(self._tensors, self._parts(rows), strict=True):
                tensor.copy_(part)

    def _parts(self, rows: Tensor) -> list[Tensor]:
        parts = torch.split(rows, [tensor.numel() // self._lanes for tensor in self._tensors], dim=1)
        return [part.reshape(tensor.shape) for part, tensor in zip(parts, self._tensors, strict=True)]

    def _settle(self, ended: Sequence[bool]) -> None:
        before = self._ended
        self.settled = [lane for lane in range(self._lanes) if ended[lane] and not before[lane]]
        self._ended = [now or then for now, then in zip(ended, before, strict=True)]


class LstsqSolver(_LeastSquares):
    """Solution of a linear least-squares problem by QR; the shortest one if several are equally good.

    As in the update rules, weight_decay/2·‖p‖² is added to the loss.
    """

    def __init__(self, configs: Sequence[c.Lstsq], parameters: Mapping[str, Tensor], lanes: int | None) -> None:
        super().__init__(parameters, lanes)
        self._weight_decay = [config.weight_decay for config in configs]
        self._count = torch.zeros((), dtype=torch.float32)
        self._solved: tuple[Tensor, Linearised, ShortestSteps] | None = None
        """The newest Jacobian with its decomposition and shortest steps, which the next step uses if the Jacobian is the same."""

    def step(self, objective: Objective, lr: Any) -> Tensor:
        """Write the solution into the parameters; return this process's share of the loss [] or [lanes] before it."""
        share = objective.mean_square() if not float(self._count) else None
        if share is not None:  # from zero: start values far larger than the solution would leave their rounding in it
            self._write(torch.zeros_like(self._rows()))
        linearisation = objective.residuals()
        rows = self._rows().to(linearisation.factor)
        n = rows.shape[1]
        factor = _with_lanes(linearisation.factor)[:, : linearisation.rows, : n + 1]
        factor = penalised(factor, rows, torch.tensor(self._weight_decay).to(rows), linearisation.rows)
        jacobian = factor[:, :n, :n]
        if self._solved is None or not torch.equal(jacobian, self._solved[0]):
            model = Linearised.from_triangle(jacobian, factor[:, :n, n], lengths(jacobian), linearisation.rows)
            self._solved = jacobian, model, model.shortest_steps()
        _, model, steps = self._solved
        model = model.with_residuals(factor[:, :n, n])
        self._write(rows + steps.of(model))
        self._count = self._count + 1
        self._settle([float(self._count) >= SOLVES] * self._lanes)
        return linearisation.share if share is None else share

    def state_dict(self) -> State:
        """Return the number of steps taken."""
        return {name: {"step": self._count} for name in self._names}

    def load_state_dict(self, state: State) -> None:
        """Restore the number of steps taken."""
        saved = state.get(self._names[0], {})
        self._count = saved["step"].clone() if "step" in saved else torch.zeros((), dtype=torch.float32)


@dataclass(frozen=True)
class _Trial:
    """A trial step of vmapped runs, and what the linearised problem expects of it."""

    step: Tensor
    """Step [lanes, n] of the parameters."""
    length: Tensor
    """Its scaled length [lanes]."""
    linear: Tensor
    """‖J·δ‖² [lanes]."""
    damped: Tensor
    """−δᵀJᵀr − ‖J·δ‖² [lanes], which is damping·‖δ‖² for a step that no bound cuts: Moré (1978), section 4."""
    cut: Tensor
    """Mask [lanes] of the steps that a bound cuts."""

    @property
    def predicted(self) -> Tensor:
        """Predicted reduction [lanes] of the sum of squares, −2·δᵀJᵀr − ‖J·δ‖²."""
        return self.linear + 2 * self.damped


@dataclass(frozen=True)
class _Problem:
    """The linearised problem of `lm` at the present parameters, whose steps `trial` gives."""

    matrix: Tensor
    """J [lanes, n, n]."""
    residuals: Tensor
    """r [lanes, n]."""
    room: Bounds
    """Bounds of a step, [lanes, n]."""
    held: Tensor
    """Mask [lanes, n] of the entries at a bound that descent would leave."""
    scale: Tensor
    """Scale [lanes, n] of the trust region: the largest lengths of the columns of J so far."""
    present: Linearised
    """The problem of the entries that are not held, in the scale of the present J, in which rank and convergence are decided."""
    model: Linearised
    """The same in the scale of the trust region. Columns that became short look like rounding in it."""
    full: Tensor
    """Gauss–Newton step [lanes, n] in the basis of `model`."""

    @staticmethod
    def at(origin: Tensor, factor: Tensor, rows: int, bounds: Bounds, largest: Tensor | None) -> _Problem:
        """Return the problem for parameters [lanes, n], the factor of so many rows of [J, r, y], and the largest scale of earlier steps."""
        n = origin.shape[1]
        matrix, residuals = factor[:, :n, :n], factor[:, :n, n]
        held = bounds.active(origin, times(matrix.mT, residuals))
        free = without_columns(factor[:, :n, : n + 1], held)
        scale = lengths(matrix)
        present = model = _linearised(free, scale, held, rows)
        if largest is not None:
            scale = torch.maximum(scale, largest)
            model = _linearised(free, scale, held, rows)
        room = Bounds(bounds.low - origin, bounds.high - origin)
        return _Problem(matrix, residuals, room, held, scale, present, model, model.step_of(present))

    def trial(self, radius: Tensor, waiting: Tensor) -> _Trial:
        """Return the best step within a trust region of this radius [lanes], or within the bounds for its damping."""
        model = self.model
        along, damping = model.bounded(radius, self.full)
        step = model.unscaled(along).masked_fill(self.held, 0.0)
        linear = (model.values * along).square().sum(1)
        damped = damping * along.square().sum(1)
        cut = waiting & (self.room.project(step) != step).any(1)
        if not bool(cut.any()):
            return _Trial(step, along.norm(dim=1), linear, damped, cut)
        scale = torch.where(damping.unsqueeze(1) > 0, self.scale, lengths(self.matrix))
        within = step_within(self.matrix, self.residuals, scale, damping, self.room, rows=model.rows)
        change = times(self.matrix, within)
        squares = change.square().sum(1)
        return _Trial(
            torch.where(cut.unsqueeze(1), within, step),
            torch.where(cut, (self.scale * within).norm(dim=1), along.norm(dim=1)),
            torch.where(cut, squares, linear),
            torch.where(cut, -(change * self.residuals).sum(1) - squares, damped),
            cut,
        )


class LevenbergMarquardt(_LeastSquares):
    """Levenberg–Marquardt: Gauss–Newton steps, damped so that they stay within a trust region.

    Marquardt, "An Algorithm for Least-Squares Estimation of Nonlinear Parameters", J. SIAM 11 (1963). Scaling and trust
    region follow Moré, "The Levenberg–Marquardt Algorithm: Implementation and Theory", Lecture Notes in Mathematics 630
    (1978). Near the optimum the sum of squares is too rounded to compare two points. A step is then accepted as long as it
    makes the residuals more nearly orthogonal to the columns of the Jacobian. A fit that would end where the Jacobian does not
    determine every parameter first tries to leave that point as a saddle.

    A step that would leave the bounds is replaced by the best damped step within them: Kanzow, Yamashita and Fukushima,
    "Levenberg–Marquardt methods with strong local convergence properties for solving nonlinear equations with convex
    constraints", J. Comput. Appl. Math. 172 (2004). Entries at a bound that descent would leave are held: they have no part in
    rank and convergence.
    """

    def __init__(
        self, configs: Sequence[c.Lm], parameters: Mapping[str, Tensor], lanes: int | None, bounds: Bounds | None
    ) -> None:
        super().__init__(parameters, lanes)
        unbounded = torch.full_like(self._rows()[0], torch.inf)
        self._bounds = bounds or Bounds(-unbounded, unbounded)
        self._first = [config.radius for config in configs]
        self._slots: dict[str, Tensor] = {}

    def step(self, objective: Objective, lr: Any) -> Tensor:
        """Take one accepted step, or none; return this process's share of the loss [] or [lanes] before it."""
        linearisation = objective.residuals()
        factor = _with_lanes(linearisation.factor)
        origin = self._rows().to(factor)
        n, bounds = origin.shape[1], self._bounds.to(factor)
        problem = _Problem.at(origin, factor, linearisation.rows, bounds, self._slots.get("scale"))
        scale = problem.scale
        length, size = (factor[:, :, column].norm(dim=1) for column in (n, n + 1))  # lengths of r and y
        radius, last_offset = self._trust_region(scale * origin, problem.full)
        eps = torch.finfo(self._tensors[0].dtype).eps
        # Relative change of the sum of squares that rounding of the predictions may cause.
        noise = 8 * torch.finfo(factor.dtype).eps * (1 + size / length)
        offset = problem.present.offset
        ended = (offset <= SETTLED * length + 4 * eps * size) | (offset > 0.9 * last_offset)
        waiting = ~(ended | torch.tensor(self._ended, device=ended.device))
        taken, last_offset = origin, torch.full_like(length, torch.inf)
        for _ in range(TRIALS):
            if not bool(waiting.any()):
                break
            trial = problem.trial(radius, waiting)
            point = torch.where(waiting.unsqueeze(1), bounds.project(origin + trial.step), taken)
            gain = self._gain_at(point, length, objective)
            predicted = trial.predicted / length.square()
            rounded = (predicted <= noise) & (gain.abs() <= noise)
            good = rounded | (gain >= ACCEPTED * predicted.abs())
            radius = torch.where(waiting & ~rounded, _radius(radius, trial, gain, length.square()), radius)
            taken = torch.where((waiting & good).unsqueeze(1), point, taken)
            last_offset = torch.where(waiting & rounded, offset, last_offset)
            stuck = waiting & ~good & (radius <= eps * (scale * origin).norm(dim=1))
            ended, waiting = ended | stuck, waiting & ~good & ~stuck
        saddle = ended & ~torch.tensor(self._ended, device=ended.device) & ~problem.present.determined.all(1)
        if bool(saddle.any()):

            def gain_at(step: Tensor) -> Tensor:
                point = torch.where(saddle.unsqueeze(1), bounds.project(origin + step), taken)
                return self._gain_at(point, length, objective)

            away, found = step_away(problem.present, origin, gain_at, noise.clamp(min=ACCEPTED))
            left = saddle & found
            taken = torch.where(left.unsqueeze(1), bounds.project(origin + away), taken)
            ended = ended & ~left
            radius = torch.where(left, torch.maximum(radius, (scale * away).norm(dim=1)), radius)
        self._write(taken)
        self._slots = {"scale": scale, "radius": _spread(radius, n), "offset": _spread(last_offset, n)}
        self._settle(ended.tolist())
        return linearisation.share

    def _gain_at(self, point: Tensor, length: Tensor, objective: Objective) -> Tensor:
        """Write parameters [lanes, n] and return their gain [lanes] over residuals of this length; −1 if one is not finite.

        A number of float64 may be infinite as a parameter, at which the loss may be finite.
        """
        self._write(point)
        gain = _gain(length, objective.squares().reshape(-1).sqrt())
        return torch.where(self._rows().isfinite().all(1), gain, -1.0)

    def _trust_region(self, scaled: Tensor, full: Tensor) -> tuple[Tensor, Tensor]:
        """Return radius and last offset [lanes] after the previous step, or those of a first step.

        `scaled` [lanes, n] are the scaled parameters, `full` [lanes, n] is the Gauss–Newton step.
        """
        if self._slots:
            return self._slots["radius"][:, 0], self._slots["offset"][:, 0]
        start, first = scaled.norm(dim=1), torch.tensor(self._first).to(scaled)
        radius = torch.minimum(first * torch.where(start > 0, start, 1.0), full.norm(dim=1))
        return radius, torch.full_like(radius, torch.inf)

    def state_dict(self) -> State:
        """Return column scale, trust-region radius and last offset for every entry of each parameter."""
        slots = {slot: self._parts(rows) for slot, rows in self._slots.items()}
        return {name: {slot: parts[i] for slot, parts in slots.items()} for i, name in enumerate(self._names)}

    def load_state_dict(self, state: State) -> None:
        """Restore the slots, on the device of the parameters."""
        device = self._tensors[0].device
        self._slots = {
            slot: torch.cat([state[name][slot].reshape(self._lanes, -1) for name in self._names], 1).to(
                device, copy=True
            )
            for slot in state.get(self._names[0], {})
        }


def lstsq(config: c.Lstsq, parameters: Mapping[str, Tensor], lanes: Sequence[c.Lstsq] | None = None) -> LstsqSolver:
    """Return the solver of one run, or of vmapped runs if `lanes` has their configurations."""
    return LstsqSolver(lanes or [config], parameters, None if lanes is None else len(lanes))


def lm(
    config: c.Lm, parameters: Mapping[str, Tensor], lanes: Sequence[c.Lm] | None = None, bounds: Bounds | None = None
) -> LevenbergMarquardt:
    """Return the solver of one run, or of vmapped runs if `lanes` has their configurations."""
    return LevenbergMarquardt(lanes or [config], parameters, None if lanes is None else len(lanes), bounds)


def _linearised(free: Tensor, scale: Tensor, held: Tensor, rows: int) -> Linearised:
    """Return the problem of a factor [lanes, …, n + 1] of so many rows of [J, r], whose held columns are unit vectors."""
    n = scale.shape[1]
    return Linearised.from_triangle(free[:, :n, :n], free[:, :n, n], torch.where(held, 1.0, scale), rows)


def _with_lanes(factor: Tensor) -> Tensor:
    return factor.reshape(-1, *factor.shape[-2:])


def _spread(values: Tensor, n: int) -> Tensor:
    """Return one value per lane [lanes], repeated for every parameter entry [lanes, n], as slots are stored."""
    return values.unsqueeze(1).repeat(1, n)


def _gain(before: Tensor, after: Tensor) -> Tensor:
    """Return the relative decrease [lanes] of the sum of squares, given its roots; −1 if it rose 100-fold or is not finite."""
    gain = 1 - (after / before).square()
    return torch.where(after < 10 * before, gain, -1.0)


def _radius(radius: Tensor, trial: _Trial, gain: Tensor, squares: Tensor) -> Tensor:
    """Return the radius [lanes] after a trial step, for the sum of squares [lanes] before it; Moré (1978), section 7.

    It shrinks if the gain was at most a quarter of the predicted reduction.
    """
    linear, damped, step = trial.linear / squares, trial.damped / squares, trial.length
    slope, ratio = linear + damped, gain / (linear + 2 * damped)
    shrink = torch.where(gain >= 0, 0.5, 0.5 * slope / (slope - 0.5 * gain))
    shrink = torch.where((gain <= -1) | (shrink < 0.1), 0.1, shrink)
    shorter = shrink * torch.minimum(radius, 10 * step)
    longer = torch.where((damped == 0) | (ratio >= 0.75), 2 * step, radius)
    # Where a bound cuts the step, it was not the radius that kept it short.
    longer = torch.where(trial.cut, torch.maximum(longer, radius), longer)
    return torch.where(ratio <= 0.25, shorter, longer)
