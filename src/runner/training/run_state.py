"""The state of one run during training: its decisions, its sinks and its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from runner.errors import Diverged
from runner.runs.checkpoint import Loaded
from runner.runs.hashes import Hashes, parameters_sha256
from runner.runs.sinks.base import Writer
from runner.training.divergence import Divergence, Nonfinite, sentence
from runner.training.metrics import Best

MAX_UNREAD_STEPS = 1_000
"""Largest number of steps whose losses are unread: bounds the steps that a divergence makes the loop replay."""


@dataclass(frozen=True)
class Calendar:
    """The steps at which rows, evaluations, checkpoints and hashes are due."""

    last: int
    record_every: int
    evaluate_every: int | None
    checkpoint_every: int | None
    hash_every: int | None = None

    def row_due(self, step: int) -> bool:
        """Whether a row is due at this step, wherever the run ends. The last step has a row in any case."""
        return step % self.record_every == 0 or self.evaluation_due(step)

    def evaluation_due(self, step: int) -> bool:
        """Whether the watched part is evaluated at this step."""
        return self.evaluate_every is not None and step % self.evaluate_every == 0

    def hash_due(self, step: int) -> bool:
        """Whether the parameters are hashed after this step; step 0 means the start values."""
        return self.hash_every is not None and step % self.hash_every == 0

    def checkpoint_due(self, step: int) -> bool:
        """Whether the state is saved after this step; the last step always is."""
        return step == self.last or (
            self.checkpoint_every is not None and step > 0 and step % self.checkpoint_every == 0
        )

    def next_due(self, step: int) -> int:
        """Return the first step after `step` at which anything is due, or the losses must be read."""
        every = (self.record_every, self.evaluate_every, self.checkpoint_every, self.hash_every, MAX_UNREAD_STEPS)
        return min(self.last, *(step - step % n + n for n in every if n is not None))


@dataclass(frozen=True)
class Result:
    """Metrics and hash of the state of a step."""

    step: int
    metrics: Mapping[str, float]
    """Values by name, such as "valid/rmse", of every part and metric."""
    parameters_sha256: str


class Saver(Protocol):
    """Where the states of a run go, such as `runner.runs.saver.Saver`."""

    def save(
        self, step: int, state: Mapping[str, Any], best: bool, *, first: tuple[int, Mapping[str, Any]] | None = None
    ) -> None:
        """Save the state of a step, and before it the best state, `first`, with its step, if that is another one."""

    def check(self) -> None:
        """Raise the error of an earlier save, if there is one."""


class NullSaver:
    """A saver of a run that leaves no checkpoints."""

    def save(
        self, step: int, state: Mapping[str, Any], best: bool, *, first: tuple[int, Mapping[str, Any]] | None = None
    ) -> None:
        """Do nothing."""

    def check(self) -> None:
        """Do nothing."""


@dataclass
class RunState:
    """One run of a program: what is decided, written and saved for this run only.

    After training, a run has either `outcome`, `last` and `selected`, or a `failure`.
    """

    lr: Callable[[int], float | None]
    """Step → learning rate; None for an optimizer without one."""
    early: Best
    """Best value of the early-stopping metric."""
    patience: int | None
    best: Best
    """Best value of the metric that selects the best state."""
    sinks: Sequence[Writer]
    saver: Saver
    best_state: Mapping[str, Any] | None = None
    """Copy of the best state; None before the first evaluation, and while only the checkpoint of that step has it."""
    hashes: Hashes | None = None
    reports_best: bool = False
    """Whether the best state is selected at the end, and not the last one."""
    may_standardize: bool = False
    """Whether data.standardize=true is a change that the configuration allows, so that it can be advised."""
    should_prune: Callable[[Mapping[str, Any]], bool] = lambda row: False
    """Row → whether the run is pruned after it."""
    step: int = 0
    """Number of updates when the run ended, a diverged one included."""
    saved_step: int = -1
    """Step of the newest checkpoint; -1 without one."""
    stopped_early: bool = False
    settled: bool = False
    """Whether the run stopped early because its optimizer converged: no further step improves the parameters."""
    pruned: bool = False
    failure: Exception | None = None
    outcome: Any = None
    """The outcome of the selected state."""
    last: Result | None = None
    selected: Result | None = None
    """Result of the reported state: `last` if the last state is reported."""
    loss: float = math.nan
    """Loss of the newest step that was read."""
    last_finite_loss: float = math.nan

    def decisions(self) -> dict[str, Any]:
        """Return the decisions that a checkpoint keeps."""
        return {
            "early_stopping": self.early.state_dict(),
            "best": self.best.state_dict(),
            "stopped_early": self.stopped_early,
            "settled": self.settled,
        }

    def resume(self, loaded: Loaded) -> None:
        """Resume from the decisions of a checkpoint."""
        state = loaded.state
        self.saved_step, self.best_state = loaded.step, loaded.best
        self.early.load_state_dict(state["early_stopping"])
        self.best.load_state_dict(state["best"])
        # Checkpoints of older versions have no "settled".
        self.stopped_early, self.settled = state["stopped_early"], state.get("settled", False)

    def update_early_stopping(self, metrics: Mapping[str, float], step: int) -> None:
        """Count the evaluation of a step, and stop early when the patience is used up."""
        self.early.update(metrics[self.early.metric], step)
        self.stopped_early = self.patience is not None and self.early.waited >= self.patience

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Save the state of a step, and before it the best state if that is newer than the previous checkpoint."""
        best, first = self.best.step, None
        if self.best_state is not None and best is not None and self.saved_step < best < step:
            first = (best, self.best_state)
        self.saver.save(step, {**state, **self.decisions()}, best == step, first=first)
        self.saved_step = step

    def end(self, step: int, outcome: Any) -> None:
        """End the run at this step, with the outcome of its last state."""
        self.step, self.outcome = step, outcome
        self.last = self.selected = Result(step, outcome.metrics, parameters_sha256(outcome.parameters))

    @property
    def selects_earlier(self) -> bool:
        """Whether the state of a step before the last is selected."""
        return self.reports_best and self.best_state is not None and self.best.step not in (None, self.step)

    def select_best(self, outcome: Any) -> None:
        """Select the best state, which has this outcome."""
        assert self.best.step is not None
        self.outcome = outcome
        self.selected = Result(self.best.step, outcome.metrics, parameters_sha256(outcome.parameters))

    @property
    def ended_early(self) -> bool:
        """Whether the run ends before the last step, by early stopping, convergence or pruning."""
        return self.stopped_early or self.pruned

    def lr_column(self, step: int) -> dict[str, float]:
        """Return the row's column with the learning rate of a step; empty for an optimizer without one."""
        lr = self.lr(step)
        return {} if lr is None else {"lr": lr}

    def write(self, row: Mapping[str, Any]) -> None:
        """Write a row to every sink."""
        for sink in self.sinks:
            sink.write(row)

    def write_hashes(self, step: int, parameters: Mapping[str, Tensor]) -> None:
        """Write the hashes of the parameters after `step` updates, if this run keeps them."""
        if self.hashes is not None:
            self.hashes.write(step, parameters)

    def flush(self) -> None:
        """Flush sinks and hashes: every row so far survives a loss of power afterwards."""
        for journal in (*self.sinks, self.hashes):
            if journal is not None:
                journal.flush()

    def fail(self, divergence: Divergence, epoch: int, restored: int, first_step: int, nonfinite: Nonfinite) -> None:
        """End the run as diverged: set `failure`, and write a last row with the loss that ended it.

        `restored` is the step whose parameters are restored, and `first_step` the step at which training started or
        was resumed. `nonfinite` says what is not finite at these parameters.
        """
        losses = divergence.losses
        self.last_finite_loss = next((x for x in reversed(losses) if math.isfinite(x)), self.last_finite_loss)
        loss, lr = losses[-1], self.lr(divergence.step)
        history = (
            f"the last finite loss was {self.last_finite_loss:.6g}"
            if math.isfinite(self.last_finite_loss)
            else f"no loss since step {first_step} was finite"
        )
        self.step = divergence.step
        may_standardize = self.may_standardize
        self.failure = Diverged(
            sentence(divergence, nonfinite, restored=restored, lr=lr, history=history, may_standardize=may_standardize)
        )
        # The curves show the loss that ended the run.
        self.write({"step": divergence.step, "epoch": epoch, "train/loss": loss, **self.lr_column(divergence.step)})
