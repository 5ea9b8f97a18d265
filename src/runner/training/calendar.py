"""What is due at which step of a training."""

from __future__ import annotations

from dataclasses import dataclass

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
