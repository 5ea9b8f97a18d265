"""Audit of a sweep: vmapped trials are trained again one at a time, and their parameters are compared."""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner.sweep.manifest import Manifest
from runner.sweep.trials import Trial, plan


@dataclass(frozen=True)
class Audit:
    """Numbers of the repeated trials, and the largest relative difference as `difference` measures it."""

    members: tuple[int, ...]
    largest_difference: float


def audit(manifest: Manifest, count: int) -> Audit | None:
    """Repeat up to `count` finished trials, drawn at random, one at a time. Return None if there is none to compare."""
    chosen = draw_finished(manifest, count)
    if not chosen:
        return None
    largest = 0.0
    for number in chosen:
        overrides = manifest.members[number]["overrides"]
        (trial,) = plan([overrides], number, manifest)
        largest = max(largest, _repeat(trial, manifest.member_directory(number)))
    return Audit(tuple(chosen), largest)


def draw_finished(manifest: Manifest, count: int) -> list[int]:
    """Draw the numbers of `count` finished trials, or of all if there are fewer. The same sweep gives the same draw."""
    finished = [number for number, member in sorted(manifest.members.items()) if member["state"] == "finished"]
    return sorted(random.Random(manifest.directory.name).sample(finished, min(count, len(finished))))


def _repeat(trial: Trial, directory: Path) -> float:
    """Train the trial by itself. Return the difference of its parameters to those in `directory`."""
    from runner.config.compose import Composed
    from runner.training.run import execute

    with tempfile.TemporaryDirectory() as folder:
        repeated = Path(folder) / "alone"
        config = replace(trial.config, run_dir=str(repeated))
        execute(lambda earlier: Composed(config, trial.overrides), ["python", "-m", "runner"], quiet=True)
        return difference(repeated, directory)


def difference(first: Path, second: Path) -> float:
    """Return the largest difference of the parameters of two runs.

    The difference of a tensor is relative to the largest magnitude of its elements in the first run.
    """
    one, two = _parameters(first), _parameters(second)
    return max(float((one[n] - two[n]).abs().max() / one[n].abs().max().clamp_min(1e-300)) for n in one)


def _parameters(directory: Path) -> dict[str, Any]:
    from runner.runs import saved_state
    from runner.runs.records import CHECKPOINTS

    loaded = saved_state.load(directory / CHECKPOINTS)
    assert loaded is not None
    return {name: value.double() for name, value in loaded.state["model"].items()}
