"""The state of a run in a checkpoint: its parts, checked before anything uses them.

The SHA-256 sums of a manifest reveal damage. They do not prove who wrote the file, because anybody can compute them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from runner.config.documents import check_size, faults
from runner.config.parts import key
from runner.config.validation import shown
from runner.errors import CheckpointError
from runner.runs import checkpoint
from runner.runs.checkpoint import STATE, Loaded
from runner.runs.records import CHECKPOINTS, read_record

MAX_VALUES = 1_000_000
"""Most values of a state besides the numbers of its tensors."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """The best value of a metric."""

    metric: str | None = key("its name", before=None)
    value: float | None = key("the best value")
    step: int | None = key("its step", at_least=0, before=None)
    waited: int = key("evaluations since", at_least=0)


@dataclass(frozen=True, kw_only=True)
class State:
    """The plain values of a state. The rest are tensors by name."""

    format: int = key("version of the state's form", at_least=1, before=1)
    data_sha256: str = key("SHA-256 of the data")
    seconds: float = key("time of training", unit="seconds", at_least=0)
    stopped_early: bool = key("whether the run has stopped early")
    settled: bool = key("whether the optimizer has converged", before=False)
    early_stopping: Score = field()
    best: Score = field()


def exists(run: Path) -> bool:
    """Return whether a run has a checkpoint, intact or not."""
    return bool(checkpoint.candidates(run / CHECKPOINTS))


def load(folder: Path, *, best: bool = False) -> Loaded | None:
    """Return the newest usable checkpoint of a run, as `checkpoint.load` does.

    With `best`, that is one whose best state can be used too, and it is in the result.
    """
    states = dict[int | None, dict[str, Any]]()

    def unusable(state: Mapping[str, Any]) -> str | None:
        wrong = fault(state)
        step = None if wrong or not best else state["best"].get("step")
        if step is not None and step != state.get("step"):
            found = intact(folder / f"step_{step}")
            if isinstance(found, str):
                return f"its best state, step_{step}, without which only train.select=last resumes it, is not intact: {found}"
            states[step] = found
        return wrong

    loaded = checkpoint.load(folder, unusable)
    if loaded is None or not best:
        return loaded
    return replace(loaded, best={loaded.step: loaded.state, **states}.get(loaded.state["best"].get("step")))


def data_sha256(run: Path) -> str | None:
    """Return the SHA-256 of the data that a run was trained on; None if neither its record nor a checkpoint has it."""
    with suppress(CheckpointError):
        if (recorded := read_record(run)["data_sha256"]) is not None:
            return str(recorded)
    with suppress(CheckpointError):  # an older run
        if (loaded := load(run / CHECKPOINTS)) is not None:
            return str(loaded.state["data_sha256"])
    return None


def intact(path: Path) -> dict[str, Any] | str:
    """Return the state of a checkpoint; or a text that says what is wrong with it."""
    state = checkpoint.intact(path)
    return state if isinstance(state, str) else fault(state) or state


def fault(state: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the parts of a state, in one sentence; None if nothing is."""
    try:
        check_size(state, MAX_VALUES)
    except ValueError as error:
        return f"{STATE} cannot be used: {error}"
    parts = [_part_fault(state, part) for part in ("model", "optimizer", "scaler", "config", "scaling")]
    problems = [*filter(None, parts), *faults(State, state)]
    return f"{STATE}: {'; '.join(problems)}" if problems else None


def _part_fault(state: Mapping[str, Any], part: str) -> str | None:
    value = state.get(part)
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return f"`{part}` must have values by name, got {shown(value)}"
    if part == "model" and not all(isinstance(tensor, Tensor) for tensor in value.values()):
        return "`model` must have tensors alone"
    if part == "optimizer" and not all(isinstance(slots, Mapping) for slots in value.values()):
        return "`optimizer` must have values by parameter"
    return None
