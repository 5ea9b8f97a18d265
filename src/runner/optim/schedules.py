"""Learning rate as a pure function of the step. This is the only arithmetic on `optimizer.lr`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from runner.compute.transfer import upload
from runner.config import schema as c

Schedule = Callable[[int], float | None]
"""Function from the step, counted from 1, to the learning rate; None for an optimizer without one."""


def build(config: c.ScheduleConfig, lr: float | None, steps: int) -> Schedule:
    """Return the configured schedule of a run of `steps` steps with base learning rate `lr`."""
    if lr is None:
        return lambda step: None
    schedule: Schedule = config.build(lr, steps)
    return schedule


def constant(config: c.Constant, lr: float, steps: int) -> Schedule:
    """Return the schedule that is `lr` at every step."""
    return lambda step: lr


def step(config: c.Step, lr: float, steps: int) -> Schedule:
    """Return the schedule that multiplies `lr` by `factor` after every `every_steps` steps."""
    every, factor = config.every_steps, config.factor
    return lambda step: lr * factor ** ((step - 1) // every)


def cosine(config: c.Cosine, lr: float, steps: int) -> Schedule:
    """Return the schedule that falls along half a cosine from `lr` to `final_factor`·lr at the last step."""
    final = config.final_factor
    return lambda step: lr * half_cosine((step - 1) / max(1, steps - 1), final)


def warmup_cosine(config: c.WarmupCosine, lr: float, steps: int) -> Schedule:
    """Return the schedule that rises linearly to `lr` in `warmup_steps` steps, then falls along half a cosine."""
    rise, final = config.warmup_steps, config.final_factor

    def schedule(step: int) -> float:
        if step <= rise:
            return lr * step / rise
        return lr * half_cosine((step - rise) / (steps - rise), final)

    return schedule


def half_cosine(progress: float, final: float) -> float:
    """Return a factor that falls along half a cosine from 1 at progress 0 to `final` at progress 1 and beyond."""
    return final + (1 - final) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


WINDOW = 256
"""Number of steps whose learning rates are copied to the device at once."""


class DeviceRates:
    """Learning rates as tensors on the device: 0-d for one run, [lanes, 1] for several. No step waits for their copy."""

    def __init__(
        self, schedules: Sequence[Schedule], dtype: torch.dtype, device: torch.device, lanes: Tensor | None = None
    ) -> None:
        """`lanes` [lanes] has for each of several runs the index of its schedule; without it there is one schedule."""
        self._schedules, self._dtype, self._device = schedules, dtype, device
        self._lanes = None if lanes is None else lanes.to(device)
        self._window = -1
        self._rates: Sequence[Tensor] = ()

    def __call__(self, step: int) -> Tensor:
        """Return the learning rates of a step, from 1."""
        window, index = divmod(step - 1, WINDOW)
        if window != self._window:
            self._window, self._rates = window, self._copied(range(window * WINDOW + 1, (window + 1) * WINDOW + 1))
        return self._rates[index]

    def _copied(self, steps: Sequence[int]) -> Sequence[Tensor]:
        values = [[schedule(step) for schedule in self._schedules] for step in steps]
        rates = upload(torch.tensor(values, dtype=torch.float64).to(self._dtype), self._device)
        if self._lanes is None:
            return rates[:, 0].unbind()
        return rates.index_select(1, self._lanes).unsqueeze(2).unbind()
