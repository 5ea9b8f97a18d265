"""Learning rate as a pure function of the step: the only arithmetic that is done on `optimizer.lr`."""

from __future__ import annotations

import math
from collections.abc import Callable

from runner.config import schema as c

Schedule = Callable[[int], float | None]
"""step (from 1) → learning rate; None for an optimizer that has none."""


def build(config: c.ScheduleConfig, lr: float | None, steps: int) -> Schedule:
    """The schedule that was chosen, for a run of `steps` steps that starts from `lr`."""
    if lr is None:
        return lambda step: None
    schedule: Schedule = config.build(lr, steps)
    return schedule


def constant(config: c.Constant, lr: float, steps: int) -> Schedule:
    """Return `lr` at every step."""
    return lambda step: lr


def step(config: c.Step, lr: float, steps: int) -> Schedule:
    """Multiply by a factor every so many steps."""
    every, factor = config.every_steps, config.factor
    return lambda step: lr * factor ** ((step - 1) // every)


def cosine(config: c.Cosine, lr: float, steps: int) -> Schedule:
    """Fall along half a cosine."""
    final = config.final_factor
    return lambda step: lr * half_cosine((step - 1) / max(1, steps - 1), final)


def warmup_cosine(config: c.WarmupCosine, lr: float, steps: int) -> Schedule:
    """Rise along a line, then fall along half a cosine."""
    rise, final = config.warmup_steps, config.final_factor

    def schedule(step: int) -> float:
        if step <= rise:
            return lr * step / rise
        return lr * half_cosine((step - rise) / (steps - rise), final)

    return schedule


def half_cosine(progress: float, final: float) -> float:
    """1 at progress 0, `final` at progress 1."""
    return final + (1 - final) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
