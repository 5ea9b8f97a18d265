"""Faults for tests: something happens at a step, and the test can ask whether it did."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from runner.training.objective import BatchObjective
from runner.training.run_state import RunState


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, happen: Callable[[], object]) -> list[int]:
    """Call `happen` when the loop turns to `step`, before its gradients; the list that is given back grows when it fires."""
    fired: list[int] = []
    real = BatchObjective.at

    def at(self: BatchObjective, number: int) -> BatchObjective:
        if number == step and not fired:
            fired.append(number)
            happen()
        return real(self, number)

    monkeypatch.setattr(BatchObjective, "at", at)
    return fired


def in_child(work: Callable[[], object]) -> int:
    """The wait status of a forked process that does `work`: what it prints is dropped, and it never returns here."""
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        try:
            work()
        finally:
            os._exit(70)
    return os.waitpid(child, 0)[1]


def only_run(folder: Path) -> Path:
    """The one run directory below a folder of runs."""
    (path,) = [p for p in folder.iterdir() if not p.name.startswith(".")]
    return path


def at_row(monkeypatch: pytest.MonkeyPatch, step: int, happen: Callable[[], object]) -> list[int]:
    """Call `happen` when the row of `step` was written; the list that is given back grows when it fires."""
    fired: list[int] = []
    real = RunState.write

    def write(self: RunState, row: Mapping[str, Any]) -> None:
        real(self, row)
        if row["step"] == step and not fired:
            fired.append(step)
            happen()

    monkeypatch.setattr(RunState, "write", write)
    return fired
