"""Figures with their bars, the cases that measure them within a time, and the file in which everything is noted."""

from __future__ import annotations

import contextlib
import gc
import json
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Bar:
    """Limit that a figure must not fall below, or with `at_least=False` must not exceed."""

    limit: float
    at_least: bool = True

    def __str__(self) -> str:
        return f"{'at least' if self.at_least else 'at most'} {self.limit:g}"

    def met(self, value: float) -> bool:
        """Whether a value meets the bar; nan never does."""
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(frozen=True)
class Figure:
    """One measured number. `note` has the numbers behind a ratio."""

    name: str
    value: float
    unit: str
    bar: Bar | None = None
    note: str = ""

    def record(self) -> dict[str, Any]:
        """Return the entries of the figure's line in the file."""
        bar, met = (None, None) if self.bar is None else (str(self.bar), self.bar.met(self.value))
        return {"value": self.value, "unit": self.unit, "bar": bar, "met": met, "note": self.note}

    def __str__(self) -> str:
        verdict = "" if self.bar is None else f"  {self.bar}: {'met' if self.bar.met(self.value) else 'MISSED'}"
        return f"{self.name}: {self.value:.4g} {self.unit}{verdict}  ({self.note})"


@dataclass(frozen=True)
class Case:
    """Something to measure, under a name that no other case has. It is skipped if less than `seconds` are left."""

    name: str
    measure: Callable[[], Iterable[Figure]]
    seconds: float = 0.0


class Journal:
    """Prints what happens, and appends it to a file line by line, so that a killed process loses nothing."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        lines = file.read_text(encoding="utf-8").splitlines() if file is not None and file.exists() else []
        self.begun = {record["name"] for record in map(json.loads, lines) if record["kind"] == "started"}
        """Cases that an earlier process has begun."""

    def write(self, kind: str, name: str, text: str, **values: Any) -> None:
        """Print a text, and append a line with these values."""
        print(text, flush=True)
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"kind": kind, "name": name, **values}) + "\n")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured."""

    rounds: int = 3
    linreg_steps: int = 5_000
    mlp_steps: int = 3_000
    mlp_rows: int = 50_000
    wide: int = 1024
    wide_batch: int = 4096
    wide_steps: int = 1_000
    hand_steps: int = 500
    """Steps of the loop by hand in one round; a step of it always costs the same."""
    trials: tuple[int, ...] = (1024, 64, 4096)
    """Sizes of sweeps, the most important one first."""
    trial_steps: int = 2_000
    singles: int = 4
    """Runs that are timed one by one, after a first one that is not counted."""


QUICK = Sizes(
    rounds=1, linreg_steps=20, mlp_steps=20, mlp_rows=500, wide=8, wide_batch=64, wide_steps=20, hand_steps=5,
    trials=(8, 2), trial_steps=20, singles=1,
)  # fmt: skip
"""Sizes that only show that everything can be measured."""


@dataclass(frozen=True)
class Bench:
    """The device, how much is measured, and the time by which all of it must have ended (`time.monotonic`)."""

    device: torch.device
    sizes: Sizes
    ends: float = float("inf")

    @property
    def module(self) -> Any:
        """The torch module of the device, such as `torch.cuda`, which also serves ROCm."""
        return torch.get_device_module(self.device)

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.ends - time.monotonic()

    def rounds(self) -> Iterator[int]:
        """Yield the numbers of the rounds: at least one, and no further one when the time is over."""
        for number in range(self.sizes.rounds):
            if number == 0 or self.left() > 0:
                yield number

    def overrides(self, graph: str = "auto") -> list[str]:
        """Return the overrides that choose the device, and whether its steps are captured as a CUDA graph."""
        if self.device.type == "cpu":
            return ["device=cpu", "device.threads=1"]
        return ["device=auto", "device.threads=1", f"train.cuda_graph={graph}"]

    def seconds(self, work: Callable[[], Any]) -> float:
        """Return the seconds of some work, until the device has done it."""
        self.module.synchronize()
        began = time.perf_counter()
        work()
        self.module.synchronize()
        return time.perf_counter() - began

    def free(self) -> None:
        """Free the memory of earlier cases."""
        gc.collect()
        if hasattr(self.module, "empty_cache"):
            self.module.empty_cache()


def run_cases(cases: Iterable[Case], bench: Bench, journal: Journal) -> bool:
    """Measure every case that was not begun before, while there is time. Return whether all were tried.

    They are not when a case has left the device unusable: a new process must go on.
    """
    for case in cases:
        if case.name in journal.begun:
            continue
        if bench.left() <= case.seconds:
            journal.write("skipped", case.name, f"skipped: {case.name}: no time left", reason="no time left")
            continue
        journal.write("started", case.name, f"… {case.name}")
        try:
            for figure in case.measure():
                journal.write("figure", figure.name, str(figure), **figure.record())
        except Exception:
            text = traceback.format_exc()
            journal.write("failure", case.name, f"FAILED: {case.name}\n{text}", detail=text)
            if not usable(bench.device):
                return False
        with contextlib.suppress(Exception):
            bench.free()
    return True


def usable(device: torch.device) -> bool:
    """Whether the device still computes: after some errors, every further call in the process fails."""
    try:
        return torch.ones(2, device=device).sum().item() == 2
    except Exception:
        return False
