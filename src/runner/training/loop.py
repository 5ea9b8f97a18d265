"""The training loop: step, record, evaluate, save, stop. It uses protocols only, and no device, dtype, strategy or optimizer by name.

A program trains one run, or several runs as its lanes: lane i of every computed tensor belongs to one run. Each run has
a `RunState` with its decisions, sinks and checkpoints. A single run is a program with one lane.

No step waits for the device. Losses stay on the device until they are read, many steps at once. When one of them is not
finite, the last good state is restored and replayed up to the step before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor

from runner.compute.processes import Stop
from runner.compute.signals import Abandoned, watched
from runner.data.base import Batches
from runner.errors import Interrupted
from runner.optim.base import Optimizer
from runner.training.divergence import Divergence
from runner.training.failures import error_of
from runner.training.metrics import Evaluation
from runner.training.objective import BatchObjective
from runner.training.run_state import Calendar, RunState
from runner.training.step import Step

MIN_ACTIVE_SHARE = 0.75
"""Share of lanes in training below which the ended lanes are removed from the program."""


class Program(Protocol):
    """The parts that compute training steps, for one run or for several runs in as many lanes.

    Captured states are plain dictionaries of values and tensors. Only `capture` and `restore` know the form of a whole
    state; `lane_state` gives the part of one lane in the form of a single run's state, which is what checkpoints hold.
    """

    @property
    def lanes(self) -> int:
        """Number of runs in this program."""

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer of all lanes."""

    @property
    def objective(self) -> BatchObjective:
        """The function that the optimizer minimizes: loss and gradients of a step's batch."""

    @property
    def evaluation(self) -> Evaluation:
        """Metrics of a part of the data, one dictionary per lane."""

    @property
    def step(self) -> Step:
        """Takes a training step of all lanes."""

    def capture(self) -> dict[str, Any]:
        """Return everything the next step depends on. The tensors are the live ones: copy them before the next step."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `capture` returned."""

    def lane_state(self, state: Mapping[str, Any], lane: int) -> dict[str, Any]:
        """Return the part of a captured state that belongs to a lane, in the form of a single run's state."""

    def select_lanes(self, lanes: Sequence[int], state: Mapping[str, Any]) -> Program:
        """Return a program of some of the lanes, in order, restored to a captured state of this program.

        A program with one lane restores itself and returns itself.
        """

    def total(self, shares: Tensor) -> Tensor:
        """Return the losses [steps, lanes] of whole batches from this process's shares [steps, lanes] of them.

        Every process must call it.
        """

    def finite_lanes(self) -> Sequence[bool]:
        """Return for each lane whether its parameters and buffers are finite on every process.

        Every process must call it.
        """

    def extra_columns(self) -> Sequence[Mapping[str, float]]:
        """Return for each lane the columns of its next row besides step, epoch, losses, metrics and learning rate."""

    def parameters(self) -> Sequence[Mapping[str, Tensor]]:
        """Return for each lane its whole parameters by name. Every process must call it."""

    def outcomes(self, lanes: Sequence[int]) -> Sequence[Any]:
        """Return the results of the runs in these lanes, in order. Every process must call it."""

    def load_models(self, states: Mapping[int, Mapping[str, Any]]) -> None:
        """Load parameters and buffers of single runs' states into lanes whose training has ended."""


@dataclass
class Loop:
    """The training of one program. `runs` are in the order of the program's lanes."""

    program: Program
    runs: Sequence[RunState]
    batches: Batches
    calendar: Calendar
    watched: str
    """The part of the data that decisions are based on."""
    stop: Stop
    saving: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Context in which the states of several runs are saved at once."""
    report: Callable[[str], None] | None = None
    """Reports the progress of steps that may take long. Such a step is abandoned after a signal; None if steps are short."""
    step: int = 0
    """Number of updates so far."""
    seconds: float = 0.0
    """Seconds of training so far, those before a resume included."""
    _active: dict[int, RunState] = field(default_factory=dict, init=False)
    """Lane → run, of the runs in training."""
    _unread_losses: list[Tensor] = field(default_factory=list, init=False)
    _metrics_cache: tuple[Any, int, Sequence[dict[str, float]]] = field(default=(None, -1, ()), init=False)
    """Program, step and metrics of the newest evaluation of the watched part."""

    def run(self) -> None:
        """Train every run to its end. Each then has an `outcome` or a `failure`; one that has failed already is left out.

        An error in what belongs to one of several runs ends that run. Raises `Interrupted` after a signal; the states are
        saved first.
        """
        self._first_step = self._good_step = self.step
        self._good_state = copy_state(self.program.capture())
        self._row_step, self._row_time = self.step, time.perf_counter()
        self._clock = time.perf_counter()
        self._active = {lane: run for lane, run in enumerate(self.runs) if run.failure is None}
        self._write_hashes()
        self._end([lane for lane, run in self._active.items() if run.ended_early])
        while self._active and self.step < self.calendar.last:
            try:
                self._advance(self.calendar.next_due(self.step))
            except Abandoned as error:
                self._interrupt(error.signal_number, self._good_state)
            if self._read_losses():
                self._do_due()
            signal_number = self.stop.requested(self.step)
            if signal_number is not None and self._active and self.step < self.calendar.last:
                self._interrupt(signal_number, self.program.capture())
        self._end(list(self._active))

    def _advance(self, until: int) -> None:
        """Take training steps to step `until`, to a signal or to convergence. Losses stay on the device."""
        step, unread, requested = self.step, self._unread_losses, self.stop.requested
        take_step, optimizer = self.program.step, self.program.optimizer
        long = self.report is not None
        while step < until and requested(step) is None:
            step += 1
            unread.append(self._take_long_step(step) if long else take_step(step))
            if optimizer.settled or long:  # after a long step, the good state is that before the next one
                break
        self.step = step

    def _take_long_step(self, step: int) -> Tensor:
        """Take a step that is reported and abandoned. Raises `Abandoned`."""

        def report(seconds: float) -> None:
            assert self.report is not None
            self.report(f"step {step} has been computing for {seconds:.0f} s")

        return watched(partial(self.program.step, step), lambda: self.stop.requested(self.step), report)

    def _read_losses(self) -> bool:
        """Read the unread losses at once and end every run that diverged.

        Return whether losses were read and any run is still in training.
        """
        steps = len(self._unread_losses)
        if not steps:
            return False
        # [steps, 1 or 2, lanes]: losses, and norms of the gradients where they are measured.
        values = torch.stack(self._unread_losses).reshape(steps, -1, self.program.lanes)
        self._unread_losses.clear()
        # Each process has its share of the losses; norms are of the whole gradients already.
        losses = self.program.total(values[:, 0].clone())
        finite = torch.cat((losses.unsqueeze(1), values[:, 1:]), dim=1).isfinite().all(1)
        diverged = self._find_diverged(losses, finite)
        if diverged:
            self._rewind_diverged(diverged)
        last = losses[-1].tolist()

        def note(lane: int, run: RunState) -> None:
            run.loss = run.last_finite_loss = last[lane]
            run.saver.check()

        self._for_each(self._active, note)
        self._good_step, self._good_state = self.step, copy_state(self.program.capture())
        return bool(self._active)

    def _find_diverged(self, losses: Tensor, finite: Tensor) -> dict[int, Divergence]:
        """Return the diverged lanes, from the losses [steps, lanes] since the previous reading.

        `finite` [steps, lanes] says where loss and norm are finite. A lane whose losses are finite has diverged at the
        last step if its parameters are not finite now.
        """
        finite_losses, finite_parameters = finite.all(0).tolist(), self.program.finite_lanes()
        diverged = {}
        for lane in self._active:
            if finite_losses[lane] and finite_parameters[lane]:
                continue
            last = losses.shape[0] - 1 if finite_losses[lane] else int((~finite[:, lane]).nonzero()[0])
            diverged[lane] = Divergence(self._good_step + 1 + last, losses[: last + 1, lane].tolist())
        return diverged

    def _do_due(self) -> None:
        """Evaluate, write rows and hashes, save states and end runs, as far as each is due at this step."""
        step, calendar = self.step, self.calendar
        if calendar.evaluation_due(step):
            metrics = self._watched_metrics(self.program, step)
            self._for_each(self._active, lambda lane, run: run.update_early_stopping(metrics[lane], step))
        converged = [lane for lane in self.program.optimizer.settled if lane in self._active]
        for run in self._runs_in(converged).values():
            run.settled = run.stopped_early = True
        due = calendar.row_due(step) or step == calendar.last
        self._write_rows(self._active if due else self._runs_in(converged))
        self._write_hashes()
        ended = [lane for lane, run in self._active.items() if run.ended_early]
        evaluated = calendar.evaluation_due(step) or step == calendar.last
        self._keep_best(self._active if evaluated else self._runs_in(ended))
        self._save(self.program, step, self._active if calendar.checkpoint_due(step) else self._runs_in(ended))
        self._end(ended)
        self._count_seconds()
        self._remove_ended_lanes()

    def _runs_in(self, lanes: Sequence[int]) -> dict[int, RunState]:
        return {lane: self._active[lane] for lane in lanes if lane in self._active}

    def _for_each(self, runs: Mapping[int, RunState], work: Callable[[int, RunState], object]) -> dict[int, RunState]:
        """Call `work` with lane and run of each of these runs, and return those for which it succeeds.

        An error ends the run that it is of: one of several by its `failure`, a single one by being raised.
        """
        succeeded = dict(runs)
        for lane, run in runs.items():
            error = error_of(partial(work, lane, run))
            if error is None:
                continue
            if len(self.runs) == 1:
                raise error
            del succeeded[lane]
            run.failure = run.failure or error
            self._active = {at: other for at, other in self._active.items() if other is not run}
        return succeeded

    def _count_seconds(self) -> None:
        """Add the time since the previous call to the seconds of training."""
        now = time.perf_counter()
        self.seconds += now - self._clock
        self._clock = now

    def _watched_metrics(self, program: Program, step: int) -> Sequence[dict[str, float]]:
        """Return the metrics of the watched part for each lane, evaluated once per program and step."""
        if self._metrics_cache[0] is not program or self._metrics_cache[1] != step:
            self._metrics_cache = (program, step, program.evaluation.metrics(self.watched))
        return self._metrics_cache[2]

    def _write_rows(self, runs: Mapping[int, RunState]) -> None:
        if not runs:
            return
        now, extra_columns = time.perf_counter(), self.program.extra_columns()
        samples = self.batches.rows_between(self._row_step + 1, self.step)
        pace = samples / max(now - self._row_time, 1e-9)
        evaluated = self.calendar.evaluation_due(self.step)
        metrics = self._watched_metrics(self.program, self.step) if evaluated else None

        def write(lane: int, run: RunState) -> None:
            row = {
                "step": self.step,
                "epoch": self.batches.epoch(self.step),
                "train/loss": run.loss,
                **({} if metrics is None else self._metric_columns(metrics[lane])),
                **run.lr_column(self.step),
                **extra_columns[lane],
                "samples_per_second": pace,
            }
            run.write(row)
            run.pruned = run.should_prune(row)

        self._for_each(runs, write)
        self._row_step, self._row_time = self.step, now

    def _write_hashes(self) -> None:
        if not self.calendar.hash_due(self.step):
            return
        parameters = self.program.parameters()
        self._for_each(self._active, lambda lane, run: run.write_hashes(self.step, parameters[lane]))

    def _metric_columns(self, metrics: Mapping[str, float]) -> dict[str, float]:
        # "train/loss" of a row is the loss of its batch.
        return {
            f"{self.watched}/{name}": value
            for name, value in metrics.items()
            if (self.watched, name) != ("train", "loss")
        }

    def _keep_best(self, runs: Mapping[int, RunState]) -> None:
        """Keep a copy of the state of each run whose evaluation at this step is its best so far.

        The end of a run is an evaluation wherever it is.
        """
        if not runs:
            return
        metrics, better = self._watched_metrics(self.program, self.step), dict[int, RunState]()

        def judge(lane: int, run: RunState) -> None:
            if run.best.update(metrics[lane][run.best.metric], self.step):
                better[lane] = run

        def keep(lane: int, run: RunState) -> None:
            state = copy_state(self.program.lane_state(captured, lane))
            run.best_state = {**state, **run.decisions(), "seconds": self.seconds}

        self._for_each(runs, judge)
        if better:
            self._count_seconds()
            captured = self.program.capture()
            self._for_each(better, keep)

    def _save(
        self, program: Program, step: int, runs: Mapping[int, RunState], state: Mapping[str, Any] | None = None
    ) -> None:
        """Save the states of some lanes at this step: a captured one or the present one. Rows up to it are flushed first."""
        if not runs:
            return

        with self.saving():
            flushed = self._for_each(runs, lambda _, run: run.flush())
            self._count_seconds()
            captured = program.capture() if state is None else state
            seconds = {"seconds": self.seconds}
            self._for_each(flushed, lambda lane, run: run.save(step, {**program.lane_state(captured, lane), **seconds}))

    def _end(self, lanes: Sequence[int]) -> None:
        """End the runs in these lanes with their outcomes."""
        runs = self._runs_in(lanes)
        if not runs:
            return
        last = self._outcomes(runs)
        for lane, outcome in last.items():
            runs[lane].end(self.step, outcome)
        earlier = {lane: runs[lane] for lane in last if runs[lane].selects_earlier}
        self.program.load_models({lane: run.best_state for lane, run in earlier.items() if run.best_state is not None})
        for lane, outcome in self._outcomes(earlier).items():
            earlier[lane].select_best(outcome)
        for run in runs.values():
            run.best_state = None  # it is saved
        self._active = {lane: run for lane, run in self._active.items() if lane not in runs}

    def _outcomes(self, runs: Mapping[int, RunState]) -> dict[int, Any]:
        """Return the outcomes of runs by lane, without those where that is an error, which ends the run that it is of."""
        if not runs:
            return {}
        try:
            return dict(zip(runs, self.program.outcomes(list(runs)), strict=True))
        except Exception:
            if len(self.runs) == 1:
                raise
        found = dict[int, Any]()
        self._for_each(runs, lambda lane, run: found.update({lane: self.program.outcomes([lane])[0]}))
        return found

    def _remove_ended_lanes(self) -> None:
        """Remove the lanes of ended runs from the program, once they are many."""
        kept = list(self._active)
        if kept and len(kept) < MIN_ACTIVE_SHARE * self.program.lanes:
            self.program = self.program.select_lanes(kept, self.program.capture())
            self._active = dict(enumerate(self._active.values()))
            self._good_state = copy_state(self.program.capture())

    def _interrupt(self, signal_number: int, state: Mapping[str, Any]) -> NoReturn:
        unsaved = {lane: run for lane, run in self._active.items() if run.saved_step != self.step}
        self._save(self.program, self.step, unsaved, state)
        for run in self._active.values():
            run.step = self.step
        raise Interrupted(signal_number, f"stopped after step {self.step}; the state is saved")

    # ------------------------------------------------------------------------------------------------------ divergence

    def _rewind_diverged(self, diverged: Mapping[int, Divergence]) -> None:
        """Replay the diverged lanes from the last good state, and end each at the parameters before its failed update.

        `diverged` is keyed by the lanes of the program; the replay is a program of these lanes only.
        """
        replay = self.program.select_lanes(list(diverged), self._good_state)
        waiting = dict(enumerate(diverged))  # lane of the replay → lane of the program
        step = self._good_step
        while waiting:
            reached = {i: lane for i, lane in waiting.items() if diverged[lane].step == step + 1}
            self._end_diverged(replay, step, reached, diverged)
            waiting = {i: lane for i, lane in waiting.items() if lane in self._active}
            if not waiting:
                break
            before = copy_state(replay.capture())
            replay.step(step + 1)
            finite = replay.finite_lanes()
            # The parameters of these lanes broke before their loss or norm showed it.
            broken = {i: lane for i, lane in waiting.items() if not finite[i]}
            if broken:
                after = copy_state(replay.capture())
                replay.restore(before)
                self._end_diverged(replay, step, broken, diverged)
                waiting = {i: lane for i, lane in waiting.items() if i not in broken}
                if waiting:
                    replay.restore(after)
            step += 1

    def _end_diverged(
        self, replay: Program, step: int, lanes: Mapping[int, int], diverged: Mapping[int, Divergence]
    ) -> None:
        """End diverged runs, and save their last good parameters, which are those of `step` in the replay.

        `lanes` maps lanes of the replay to lanes of the program.
        """
        if not lanes:
            return
        nonfinite = replay.objective.nonfinite(step + 1)

        def fail(i: int, run: RunState) -> None:
            divergence = diverged[lanes[i]]
            epoch = self.batches.epoch(divergence.step)
            run.fail(divergence, epoch, step, self._first_step, nonfinite[i])

        failed = self._for_each({i: self._active.pop(lane) for i, lane in lanes.items()}, fail)
        self._save(replay, step, {i: run for i, run in failed.items() if step > 0 and step != run.saved_step})


def copy_state(value: Any) -> Any:
    """Return a deep copy of plain values and tensors. The tensors stay on their device."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {name: copy_state(item) for name, item in value.items()}
    return [copy_state(item) for item in value] if isinstance(value, (list, tuple)) else value
