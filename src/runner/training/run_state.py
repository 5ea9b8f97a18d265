"""One run of those that are trained: what is decided, written and kept for it alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.errors import Diverged
from runner.runs.hashes import Hashes
from runner.runs.saver import Saver
from runner.runs.sinks.base import Writer
from runner.training.metrics import Best

LOOK_STEPS = 1_000
"""Most steps between two looks at the losses: bounds what a late finding has to replay."""


@dataclass(frozen=True)
class Calendar:
    """What is due at which step."""

    last: int
    record_every: int
    evaluate_every: int | None
    checkpoint_every: int | None
    hash_every: int | None = None

    def row(self, step: int) -> bool:
        """Whether a row is due whatever the last step is."""
        return step % self.record_every == 0 or self.evaluation(step)

    def evaluation(self, step: int) -> bool:
        return self.evaluate_every is not None and step % self.evaluate_every == 0

    def hashes(self, step: int) -> bool:
        return self.hash_every is not None and step % self.hash_every == 0

    def checkpoint(self, step: int) -> bool:
        return step == self.last or (
            self.checkpoint_every is not None and step > 0 and step % self.checkpoint_every == 0
        )

    def next_look(self, step: int) -> int:
        """The first step after `step` at which anything is due."""
        every = (self.record_every, self.evaluate_every, self.checkpoint_every, self.hash_every, LOOK_STEPS)
        return min(self.last, *(step - step % n + n for n in every if n is not None))


@dataclass(frozen=True)
class Divergence:
    """How a run diverged: the update that it happened at, and the losses since the last look up to it."""

    step: int
    losses: Sequence[float]


@dataclass
class RunState:
    """One run of those that are trained: what is decided, written and kept for it alone."""

    lr: Callable[[int], float | None]
    early: Best
    patience: int | None
    best: Best
    sinks: Sequence[Writer]
    saver: Saver
    hashes: Hashes | None = None
    cut: Callable[[Mapping[str, Any]], bool] = lambda row: False
    """Whether a row is reason enough to end this run: it is not worth its time."""
    step: int = 0
    """Updates that are done, once the run has ended; the failing one included."""
    saved_step: int = -1
    stopped_early: bool = False
    settled: bool = False
    """Whether it stopped early since no further step finds better parameters."""
    pruned: bool = False
    failure: Diverged | None = None
    outcome: Any = None
    loss: float = math.nan
    last_finite: float = math.nan

    def decisions(self) -> dict[str, Any]:
        return {
            "early_stopping": self.early.state_dict(),
            "best": self.best.state_dict(),
            "stopped_early": self.stopped_early,
            "settled": self.settled,
        }

    def load_decisions(self, state: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint says was decided."""
        self.early.load_state_dict(state["early_stopping"])
        self.best.load_state_dict(state["best"])
        self.stopped_early, self.settled = state["stopped_early"], state.get("settled", False)

    def consider(self, metrics: Mapping[str, float]) -> None:
        """Decide whether to stop early."""
        self.early.update(metrics[self.early.metric])
        self.stopped_early = self.patience is not None and self.early.waited >= self.patience

    @property
    def over(self) -> bool:
        return self.stopped_early or self.pruned

    def rate(self, step: int) -> dict[str, float]:
        """The learning rate of a step as part of its row; nothing for an optimizer that has none."""
        lr = self.lr(step)
        return {} if lr is None else {"lr": lr}

    def write(self, row: Mapping[str, Any]) -> None:
        for sink in self.sinks:
            sink.write(row)

    def flush(self) -> None:
        """All that was written is safe after it."""
        for journal in (*self.sinks, self.hashes):
            if journal is not None:
                journal.flush()

    def fail(self, fall: Divergence, epoch: int, restored: int, since: int, blamed: Sequence[int]) -> None:
        """The run diverged: it is told why, and has a last row with the loss that ended it, so that curves show it.

        The parameters are those of step `restored` again; training, or its going on, began at step `since`; `blamed` are
        rows of the data that have no finite prediction by themselves.
        """
        self.last_finite = next((x for x in reversed(fall.losses) if math.isfinite(x)), self.last_finite)
        loss, lr = fall.losses[-1], self.lr(fall.step)
        what = f"the loss became {loss:g}" if not math.isfinite(loss) else "a gradient or a parameter became nan or inf"
        rate = "" if lr is None else f" with lr={lr:g}"
        finite = (
            f"the last finite loss was {self.last_finite:.6g}"
            if math.isfinite(self.last_finite)
            else f"no loss since step {since} was finite"
        )
        self.step = fall.step
        self.failure = Diverged(
            f"training diverged at step {fall.step}: {what}{rate}, {finite}; "
            f"the parameters of step {restored} are restored. {_advice(blamed, lr)}"
        )
        self.write({"step": fall.step, "epoch": epoch, "train/loss": loss, **self.rate(fall.step)})


def _advice(rows: Sequence[int], lr: float | None) -> str:
    """What to do: rows that alone have no finite prediction, else the learning rate, or the start where there is none."""
    change = "start from other values" if lr is None else "make optimizer.lr smaller"
    if not rows:
        return f"{change.capitalize()}, or standardize the data with data.standardize=true"
    named = ", ".join(str(row + 1) for row in rows[:5])
    return f"{len(rows)} rows of its batch have no finite prediction, such as row {named} of the data: take them out, mend the model, or {change}"
