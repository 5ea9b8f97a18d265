"""The loop: step, record, evaluate, save, stop. It knows protocols only: no device, dtype, strategy or optimizer by name.

It trains one run, or several side by side as the lanes of one program: what is computed has a value a lane, what is decided
and written has a `RunState` a run. One run alone is the program of one lane.

Nothing in a step waits for the device. The losses of the steps since the last look are kept where they are computed; at
a look they are read together, and when one is not finite the last good state is restored and replayed to the step before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from runner.compute.processes import Stop
from runner.data.base import Batches
from runner.errors import Interrupted
from runner.optim.base import Optimizer
from runner.training.metrics import Evaluation
from runner.training.objective import BatchObjective
from runner.training.run_state import Calendar, Divergence, RunState

SPARSE = 0.75
"""Share of lanes that still train below which the others are taken out of the program."""


class Program(Protocol):
    """The parts that take the steps: of one run, or of several in as many lanes."""

    @property
    def lanes(self) -> int: ...
    @property
    def optimizer(self) -> Optimizer: ...
    @property
    def objective(self) -> BatchObjective: ...
    @property
    def evaluation(self) -> Evaluation: ...
    @property
    def schedule(self) -> Callable[[int], Any]:
        """Step → learning rate as the optimizer takes it."""

    def capture(self) -> dict[str, Any]:
        """All that the next step depends on, as plain values and tensors; the live ones."""

    def restore(self, state: Mapping[str, Any]) -> None: ...
    def lane_state(self, state: Mapping[str, Any], lane: int) -> dict[str, Any]:
        """What of a captured state belongs to a lane, as a run alone would have captured it."""

    def narrowed(self, lanes: Sequence[int], state: Mapping[str, Any]) -> Program:
        """A program of some of the lanes, in a captured state; the program itself, restored, where it has one lane."""

    def total(self, shares: Tensor) -> Tensor:
        """Losses [steps, lanes] of whole batches from this process's shares of them."""

    def finite(self) -> Sequence[bool]:
        """For each lane whether no process has a parameter or buffer in it that is nan or inf."""

    def details(self) -> Sequence[Mapping[str, float]]:
        """For each lane what its row tells besides losses."""

    def parameters(self) -> Sequence[Mapping[str, Tensor]]:
        """For each lane its parameters by name, gathered from all processes: every one of them must ask."""

    def outcomes(self, lanes: Sequence[int]) -> Sequence[Any]:
        """What the runs in these lanes have learnt."""


@dataclass
class Loop:
    """One training. `step` is the number of updates that are done; `members` are in the order of the program's lanes."""

    program: Program
    members: Sequence[RunState]
    batches: Batches
    calendar: Calendar
    watched: str
    stop: Stop
    saving: Callable[[], AbstractContextManager[Any]] = nullcontext
    """What the states of all members are written in."""
    step: int = 0
    seconds: float = 0.0
    _training: dict[int, RunState] = field(default_factory=dict, init=False)
    _pending: list[Tensor] = field(default_factory=list, init=False)
    _watched: tuple[Any, int, Sequence[dict[str, float]]] = field(default=(None, -1, ()), init=False)

    def run(self) -> None:
        """Train every member to its end: it has an `outcome` then, or a `failure`. Raises `Interrupted`, the states saved."""
        self._first_step = self._good_step = self.step
        self._good = copied(self.program.capture())
        self._row_step, self._row_time = self.step, time.perf_counter()
        self._clock = time.perf_counter()
        self._training = dict(enumerate(self.members))
        self._hash()
        self._end([lane for lane, member in self._training.items() if member.over])
        while self._training and self.step < self.calendar.last:
            self._advance(self.calendar.next_look(self.step))
            if self._look():
                self._due()
            signal_number = self.stop.requested(self.step)
            if signal_number is not None and self._training and self.step < self.calendar.last:
                self._interrupt(signal_number)
        self._end(list(self._training))

    def _advance(self, until: int) -> None:
        """The training steps themselves, to `until` or to a signal. Losses stay on the device."""
        step, pending, program, requested = self.step, self._pending, self.program, self.stop.requested
        objective, optimizer_step, schedule = program.objective, program.optimizer.step, program.schedule
        while step < until and requested(step) is None:
            step += 1
            loss = optimizer_step(objective.at(step), schedule(step))
            pending.append(loss)
            if objective.norm is not None:
                pending[-1] = torch.stack((loss, objective.norm.reshape(loss.shape).to(loss.dtype)))
            if program.optimizer.settled:
                break
        self.step = step

    def _look(self) -> bool:
        """Read the losses of the steps since the last look, once, and bury what is not finite; False: none is left, or none came."""
        steps = len(self._pending)
        if not steps:
            return False
        looked = torch.stack(self._pending).reshape(steps, -1, self.program.lanes)
        self._pending.clear()
        # Each process has its share of the losses; norms are those of the whole gradients already.
        losses = self.program.total(looked[:, 0].clone())
        good = torch.cat((losses.unsqueeze(1), looked[:, 1:]), dim=1).isfinite().all(1)
        fallen = self._fallen(losses, good.all(0).tolist(), good)
        if fallen:
            self._rewind_diverged(fallen)
        for lane, loss in enumerate(losses[-1].tolist()):
            if (member := self._training.get(lane)) is not None:
                member.loss = member.last_finite = loss
                member.saver.check()
        self._good_step, self._good = self.step, copied(self.program.capture())
        return bool(self._training)

    def _fallen(self, losses: Tensor, good: Sequence[bool], when: Tensor) -> dict[int, Divergence]:
        finite, fallen = self.program.finite(), {}
        for lane in self._training:
            if good[lane] and finite[lane]:
                continue
            last = losses.shape[0] - 1 if good[lane] else int((~when[:, lane]).nonzero()[0])
            fallen[lane] = Divergence(self._good_step + 1 + last, losses[: last + 1, lane].tolist())
        return fallen

    def _due(self) -> None:
        step, calendar = self.step, self.calendar
        if calendar.evaluation(step):
            for lane, member in self._training.items():
                member.consider(self._watch(self.program, step)[lane])
        settled = [lane for lane in self.program.optimizer.settled if lane in self._training]
        for member in self._of(settled).values():
            member.settled = member.stopped_early = True
        due = calendar.row(step) or step == calendar.last
        self._rows(self._training if due else self._of(settled))
        self._hash()
        over = [lane for lane, member in self._training.items() if member.over]
        self._save(self.program, step, self._training if calendar.checkpoint(step) else self._of(over))
        self._end(over)
        self._spend()
        self._compact()

    def _of(self, lanes: Sequence[int]) -> dict[int, RunState]:
        return {lane: self._training[lane] for lane in lanes}

    def _spend(self) -> None:
        """Count the time since the last call as time of training, whatever it went into."""
        now = time.perf_counter()
        self.seconds += now - self._clock
        self._clock = now

    def _watch(self, program: Program, step: int) -> Sequence[dict[str, float]]:
        """Metrics of the watched part, a dict a lane."""
        if self._watched[0] is not program or self._watched[1] != step:
            self._watched = (program, step, program.evaluation.metrics(self.watched))
        return self._watched[2]

    def _rows(self, members: Mapping[int, RunState]) -> None:
        if not members:
            return
        now, details = time.perf_counter(), self.program.details()
        rows = self.batches.rows_between(self._row_step + 1, self.step)
        pace = rows / max(now - self._row_time, 1e-9)
        measured = self._watch(self.program, self.step) if self.calendar.evaluation(self.step) else None
        for lane, member in members.items():
            row = {
                "step": self.step,
                "epoch": self.batches.epoch(self.step),
                "train/loss": member.loss,
                **({} if measured is None else self._named(measured[lane])),
                **member.rate(self.step),
                **details[lane],
                "samples_per_second": pace,
            }
            member.write(row)
            member.pruned = member.cut(row)
        self._row_step, self._row_time = self.step, now

    def _hash(self) -> None:
        if not self.calendar.hashes(self.step):
            return
        parameters = self.program.parameters()
        for lane, member in self._training.items():
            if member.hashes is not None:
                member.hashes.write(self.step, parameters[lane])

    def _named(self, metrics: Mapping[str, float]) -> dict[str, float]:
        return {
            f"{self.watched}/{name}": value
            for name, value in metrics.items()
            if (self.watched, name) != ("train", "loss")
        }

    def _save(self, program: Program, step: int, members: Mapping[int, RunState]) -> None:
        """Save the states of some lanes at this step, after their rows up to it are safe."""
        if not members:
            return
        with self.saving():
            for member in members.values():
                member.flush()
            self._spend()
            state = program.capture()
            for lane, member in members.items():
                # What only a signal asked for must not be the best one: the run that is never stopped has none there.
                due = self.calendar.checkpoint(step) or member.over
                best = due and member.best.update(self._watch(program, step)[lane][member.best.metric])
                own = {**program.lane_state(state, lane), **member.decisions(), "seconds": self.seconds}
                member.saver.save(step, own, best)
                member.saved_step = step

    def _end(self, lanes: Sequence[int]) -> None:
        """The runs in these lanes are done."""
        if not lanes:
            return
        for lane, outcome in zip(lanes, self.program.outcomes(lanes), strict=True):
            member = self._training.pop(lane)
            member.outcome, member.step = outcome, self.step

    def _compact(self) -> None:
        """Take lanes out that train no longer, once there are many."""
        kept = list(self._training)
        if kept and len(kept) < SPARSE * self.program.lanes:
            self.program = self.program.narrowed(kept, self.program.capture())
            self._training = dict(enumerate(self._training.values()))
            self._good = copied(self.program.capture())

    def _interrupt(self, signal_number: int) -> None:
        self._save(
            self.program, self.step, {lane: m for lane, m in self._training.items() if m.saved_step != self.step}
        )
        for member in self._training.values():
            member.step = self.step
        raise Interrupted(signal_number, f"stopped after step {self.step}; the state is saved")

    # ------------------------------------------------------------------------------------------------------ divergence

    def _rewind_diverged(self, fallen: Mapping[int, Divergence]) -> None:
        """Go back to the parameters before the update at which each of these lanes fell, say what is known, and end it."""
        replay = self.program.narrowed(list(fallen), self._good)
        waiting = dict(enumerate(fallen))
        step = self._good_step
        while waiting:
            self._end_fallen(
                replay, step, {i: lane for i, lane in waiting.items() if fallen[lane].step == step + 1}, fallen
            )
            waiting = {i: lane for i, lane in waiting.items() if lane in self._training}
            if not waiting:
                break
            before = copied(replay.capture())
            replay.optimizer.step(replay.objective.at(step + 1), replay.schedule(step + 1))
            finite = replay.finite()
            broken = {i: lane for i, lane in waiting.items() if not finite[i]}
            if broken:
                after = copied(replay.capture())
                replay.restore(before)
                self._end_fallen(replay, step, broken, fallen)
                waiting = {i: lane for i, lane in waiting.items() if i not in broken}
                if waiting:
                    replay.restore(after)
            step += 1

    def _end_fallen(
        self, replay: Program, step: int, lanes: Mapping[int, int], fallen: Mapping[int, Divergence]
    ) -> None:
        """End runs whose last good parameters, those of `step`, are in lanes of the replay; `lanes` says where they trained."""
        blamed = {at: replay.objective.without_value(at) for at in {fallen[lane].step for lane in lanes.values()}}
        members = {}
        for i, lane in lanes.items():
            fall, member = fallen[lane], self._training.pop(lane)
            member.fail(fall, self.batches.epoch(fall.step), step, self._first_step, blamed[fall.step][i])
            if step > 0 and step != member.saved_step:
                members[i] = member
        self._save(replay, step, members)


def copied(value: Any) -> Any:
    """A deep copy of plain values whose tensors stay on their device."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {name: copied(item) for name, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, (list, tuple)) else value
