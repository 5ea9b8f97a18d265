"""Trials that were trained side by side, once more alone: how far apart are the parameters?"""

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
    """Numbers of the trials, and the largest difference over the largest magnitude of any tensor of their parameters."""

    members: tuple[int, ...]
    largest_difference: float


def audit(manifest: Manifest, count: int) -> Audit | None:
    """Train some finished trials again, drawn at random by the sweep's directory; None where there is none to compare."""
    chosen = drawn(manifest, count)
    if not chosen:
        return None
    largest = 0.0
    for number in chosen:
        words = manifest.members[number]["overrides"]
        (trial,) = plan([words], number, manifest)
        largest = max(largest, _alone(trial, manifest.member_directory(number)))
    return Audit(tuple(chosen), largest)


def drawn(manifest: Manifest, count: int) -> list[int]:
    """Numbers of so many finished trials, or of all there are; the same ones whenever this sweep is asked."""
    finished = [number for number, member in sorted(manifest.members.items()) if member["state"] == "finished"]
    return sorted(random.Random(manifest.directory.name).sample(finished, min(count, len(finished))))


def _alone(trial: Trial, directory: Path) -> float:
    """How far the trial is, trained alone, from what it left."""
    from runner.config.compose import Composed
    from runner.training.run import execute

    with tempfile.TemporaryDirectory() as folder:
        again = Path(folder) / "alone"
        config = replace(trial.config, run_dir=str(again))
        execute(lambda earlier: Composed(config, trial.words), ["python", "-m", "runner"], quiet=True)
        return difference(again, directory)


def difference(alone: Path, other: Path) -> float:
    """The largest difference over the largest magnitude of any tensor of the parameters of two runs, by the first one's."""
    one, two = _parameters(alone), _parameters(other)
    return max(float((one[n] - two[n]).abs().max() / one[n].abs().max().clamp_min(1e-300)) for n in one)


def _parameters(directory: Path) -> dict[str, Any]:
    from runner.runs import checkpoint
    from runner.training.recorder import CHECKPOINTS

    loaded = checkpoint.load(directory / CHECKPOINTS)
    assert loaded is not None
    return {name: value.double() for name, value in loaded.state["model"].items()}
