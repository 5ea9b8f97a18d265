"""The loop: step, record, evaluate, save, stop. It knows protocols only: no device, dtype, strategy or optimizer by name.

Nothing in a step waits for the device. The losses of the steps since the last look are kept where they are computed; at
a look they are read together, and when one is not finite the last good state is restored and replayed to the step before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from runner.errors import Diverged, Interrupted
from runner.evaluation import Best, Evaluation
from runner.objective import Objective
from runner.sharding import local

LOOK_STEPS = 1_000
"""Most steps between two looks at the losses: bounds what a late finding has to replay."""


class Optimizer(Protocol):
    """One update of the parameters."""

    def step(self, objective: Objective, lr: float) -> Tensor: ...


class State(Protocol):
    """All that the next step depends on, as plain values and tensors."""

    def capture(self) -> dict[str, Any]: ...
    def restore(self, state: Mapping[str, Any]) -> None: ...


class Sink(Protocol):
    """Where rows go."""

    def write(self, row: Mapping[str, Any]) -> None: ...
    def flush(self) -> None: ...


class Stop(Protocol):
    """Whether a signal asked the run to stop: the same answer on every process at the same step."""

    def requested(self, step: int) -> int | None: ...


class Strategy(Protocol):
    """Where the findings of several processes meet."""

    def total(self, shares: Tensor) -> Tensor: ...
    def any(self, flag: bool) -> bool: ...


class Saver(Protocol):
    """Where states go."""

    def save(self, step: int, state: dict[str, Any], best: bool) -> None: ...
    def check(self) -> None: ...


class Batches(Protocol):
    """The address book of batches."""

    def epoch(self, step: int) -> int: ...
    def rows_between(self, first: int, last: int) -> int: ...


@dataclass(frozen=True)
class Calendar:
    """What is due at which step."""

    last: int
    record_every: int
    evaluate_every: int | None
    checkpoint_every: int | None

    def row(self, step: int) -> bool:
        """Whether a row is due whatever the last step is."""
        return step % self.record_every == 0 or self.evaluation(step)

    def evaluation(self, step: int) -> bool:
        return self.evaluate_every is not None and step % self.evaluate_every == 0

    def checkpoint(self, step: int) -> bool:
        return step == self.last or (
            self.checkpoint_every is not None and step > 0 and step % self.checkpoint_every == 0
        )

    def next_look(self, step: int) -> int:
        """The first step after `step` at which anything is due."""
        every = [
            n for n in (self.record_every, self.evaluate_every, self.checkpoint_every, LOOK_STEPS) if n is not None
        ]
        return min(self.last, *(step - step % n + n for n in every))


@dataclass
class Loop:
    """One training run. `step` is the number of updates that are done."""

    optimizer: Optimizer
    objective: Objective
    schedule: Callable[[int], float]
    batches: Batches
    calendar: Calendar
    state: State
    evaluation: Evaluation
    watched: str
    early: Best
    patience: int | None
    best: Best
    sinks: Sequence[Sink]
    saver: Saver
    strategy: Strategy
    details: Callable[[], Mapping[str, float]]
    stop: Stop
    step: int = 0
    stopped_early: bool = False
    seconds: float = 0.0
    saved_step: int = -1
    _watched_step: int = field(default=-1, init=False)
    _metrics: dict[str, float] = field(default_factory=dict, init=False)
    _pending: list[Tensor] = field(default_factory=list, init=False)
    _last_finite: float = field(default=math.nan, init=False)

    def run(self) -> None:
        """Train to the last step. Raises `Diverged` and `Interrupted`, with the state saved."""
        self._first_step = self._good_step = self.step
        self._good = _copy(self.state.capture())
        self._row_step, self._row_time = self.step, time.perf_counter()
        self._clock = time.perf_counter()
        while self.step < self.calendar.last and not self.stopped_early:
            self._advance(self.calendar.next_look(self.step))
            if self._look():
                self._due()
            signal_number = self.stop.requested(self.step)
            if signal_number is not None and self.step < self.calendar.last:
                self._interrupt(signal_number)

    def _advance(self, until: int) -> None:
        """The training steps themselves, to `until` or to a signal. Losses stay on the device."""
        step, pending, objective, requested = self.step, self._pending, self.objective, self.stop.requested
        optimizer_step, schedule = self.optimizer.step, self.schedule
        while step < until and requested(step) is None:
            step += 1
            loss = optimizer_step(objective.at(step), schedule(step))
            pending.append(loss)
            if objective.norm is not None:
                pending[-1] = torch.stack((loss, objective.norm.to(loss.dtype)))
        self.step = step

    def _look(self) -> bool:
        """Read the losses of the steps since the last look, once, and make sure that all is finite; False: there are none."""
        steps = len(self._pending)
        if not steps:
            return False
        looked = torch.stack(self._pending).reshape(steps, -1)
        self._pending.clear()
        # Each process has its share of the losses; norms are those of the whole gradients already.
        looked = torch.cat((self.strategy.total(looked[:, 0].clone()).unsqueeze(1), looked[:, 1:]), dim=1)
        bad = (~looked.isfinite().all(1)).nonzero().flatten().tolist()
        losses = looked[:, 0].tolist()
        if bad:
            self._last_finite = next((x for x in reversed(losses[: bad[0] + 1]) if math.isfinite(x)), self._last_finite)
            self._diverged(self._good_step + 1 + bad[0], losses[bad[0]])
        self._last_finite = losses[-1]
        if not self._finite():
            self._diverged(self.step, losses[-1])
        self.saver.check()
        self._loss = losses[-1]
        self._good_step, self._good = self.step, _copy(self.state.capture())
        return True

    def _due(self) -> None:
        step, calendar = self.step, self.calendar
        measured = self._evaluate() if calendar.evaluation(step) else {}
        if calendar.row(step) or step == calendar.last or self.stopped_early:
            self._write(self._loss, measured)
        if calendar.checkpoint(step) or self.stopped_early:
            self.checkpoint()
        self._spend()

    def _spend(self) -> None:
        """Count the time since the last call as time of training, whatever it went into."""
        now = time.perf_counter()
        self.seconds += now - self._clock
        self._clock = now

    def _evaluate(self) -> dict[str, float]:
        """Metrics of the watched part, and the decision to stop early."""
        metrics = self._watch()
        self.early.update(metrics[self.early.metric])
        self.stopped_early = self.patience is not None and self.early.waited >= self.patience
        return {
            f"{self.watched}/{name}": value
            for name, value in metrics.items()
            if (self.watched, name) != ("train", "loss")
        }

    def _watch(self) -> dict[str, float]:
        if self._watched_step != self.step:
            self._metrics, self._watched_step = self.evaluation.metrics(self.watched), self.step
        return self._metrics

    def _write(self, loss: float, measured: Mapping[str, float]) -> None:
        now = time.perf_counter()
        rows = self.batches.rows_between(self._row_step + 1, self.step)
        row = {
            "step": self.step,
            "epoch": self.batches.epoch(self.step),
            "train/loss": loss,
            **measured,
            "lr": self.schedule(self.step),
            **self.details(),
            "samples_per_second": rows / max(now - self._row_time, 1e-9),
        }
        for sink in self.sinks:
            sink.write(row)
        self._row_step, self._row_time = self.step, now

    def checkpoint(self) -> None:
        """Save the state of this step, after the rows up to it are safe."""
        for sink in self.sinks:
            sink.flush()
        self._spend()
        # A checkpoint that only a signal asked for must not be the best one: the run that is never stopped has none there.
        due = self.calendar.checkpoint(self.step) or self.stopped_early
        best = due and self.best.update(self._watch()[self.best.metric])
        self.saver.save(self.step, {**self.state.capture(), **self._decisions()}, best)
        self.saved_step = self.step

    def _decisions(self) -> dict[str, Any]:
        return {
            "early_stopping": self.early.state_dict(),
            "best": self.best.state_dict(),
            "stopped_early": self.stopped_early,
            "seconds": self.seconds,
        }

    def load_decisions(self, state: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint says was decided."""
        self.early.load_state_dict(state["early_stopping"])
        self.best.load_state_dict(state["best"])
        self.stopped_early, self.seconds = state["stopped_early"], state["seconds"]

    def _interrupt(self, signal_number: int) -> None:
        if self.step != self.saved_step:
            self.checkpoint()
        raise Interrupted(signal_number, f"stopped after step {self.step}; the state is saved")

    def _finite(self) -> bool:
        """Whether no process has a parameter or buffer that is nan or inf."""
        return not self.strategy.any(not _finite(self.state.capture()["model"]))

    def _diverged(self, step: int, loss: float) -> None:
        """Go back to the parameters before the update of `step`, say what is known, and end the run."""
        self.state.restore(self._good)
        self.step = self._good_step
        while self.step < step - 1:
            before = _copy(self.state.capture())
            self.optimizer.step(self.objective.at(self.step + 1), self.schedule(self.step + 1))
            if not self._finite():
                self.state.restore(before)
                break
            self.step += 1
        text = self._obituary(step, loss)
        self._write_failure(step, loss)
        if self.step > 0 and self.step != self.saved_step:
            self.checkpoint()
        raise Diverged(text)

    def _write_failure(self, step: int, loss: float) -> None:
        """A last row with the loss that ended the run, so that curves show it."""
        row = {"step": step, "epoch": self.batches.epoch(step), "train/loss": loss, "lr": self.schedule(step)}
        for sink in self.sinks:
            sink.write(row)

    def _obituary(self, step: int, loss: float) -> str:
        lr = self.schedule(step)
        what = f"the loss became {loss:g}" if not math.isfinite(loss) else "a gradient or a parameter became nan or inf"
        finite = (
            f"the last finite loss was {self._last_finite:.6g}"
            if math.isfinite(self._last_finite)
            else f"no loss since step {self._first_step} was finite"
        )
        return (
            f"training diverged at step {step}: {what} with lr={lr:g}, {finite}; "
            f"the parameters of step {self.step} are restored. {self._blame(step)}"
        )

    def _blame(self, step: int) -> str:
        """What to do: rows that alone have no finite prediction, else the learning rate."""
        rows = self.objective.without_value(step)
        if not rows:
            return "Make optimizer.lr smaller, or standardize the data with data.standardize=true"
        named = ", ".join(str(row + 1) for row in rows[:5])
        return f"{len(rows)} rows of its batch have no finite prediction, such as row {named} of the data: take them out, mend the model, or make optimizer.lr smaller"


def _copy(value: Any) -> Any:
    """A deep copy of plain values whose tensors stay on their device."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {name: _copy(item) for name, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, (list, tuple)) else value


def _finite(tensors: Mapping[str, Tensor]) -> bool:
    parts = [local(tensor.detach()) for tensor in tensors.values()]
    floating = [part.abs().max() for part in parts if part.is_floating_point() and part.numel()]
    return bool(torch.stack(floating).isfinite().all()) if floating else True
