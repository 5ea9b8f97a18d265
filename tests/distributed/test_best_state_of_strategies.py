"""The best state of a run on several processes is that of the best evaluation, also after a kill."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from launching import rows, summary

import faults
import runner
from runner.runs import checkpoint
from runner.runs.hashes import parameters_sha256

# Its validation loss is smallest between the checkpoints of steps 20 and 40.
RUN = [
    "name=best", "data=line", "data.rows=40", "data.features=4", "data.noise=2", "data.standardize=true", "data.split.valid=12",
    "model=mlp", "model.widths=[16]", "optimizer=adam", "optimizer.lr=0.1", "train.steps=50", "train.batch_size=8",
    "train.eval_every_steps=3", "checkpoint.every_steps=20", "record.every_steps=30", "record.hash_every_steps=1",
    "record.plots=false", "train.select=best", "device=cpu", "device.threads=1", "launch.timeout_seconds=20",
]  # fmt: skip
STRATEGIES = {
    "ddp": ["strategy=ddp"],
    "exact": ["strategy.reduction=exact"],
    "fsdp": ["strategy=fsdp"],
    "tensor": ["strategy=tensor"],
    "pipeline": ["strategy=pipeline"],
    "async": ["strategy=fsdp", "checkpoint.async_save=true"],
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def working(*arguments: Sequence[str], kill_at: int | None = None) -> Callable[[int], Any]:
    """Return work that does runs in sequence, and is killed at a step."""

    def work(rank: int) -> None:
        torch.set_num_threads(1)
        with pytest.MonkeyPatch.context() as patch:
            if kill_at is not None:
                faults.at_step(patch, kill_at, lambda: os.kill(os.getpid(), signal.SIGKILL))
            for overrides in arguments:
                runner.run(None, list(overrides))

    return work


def best(run: str) -> tuple[str, str]:
    """Return name and hash of the best state."""
    path = Path(run, "checkpoints", os.readlink(Path(run, "checkpoints/best")))
    state = checkpoint.intact(path)
    assert not isinstance(state, str), state
    return path.name, parameters_sha256(state["model"])


@pytest.mark.parametrize(
    "strategy",
    ["ddp", "fsdp", "pipeline", *(pytest.param(name, marks=pytest.mark.long) for name in ("exact", "tensor", "async"))],
)
def test_the_best_state_is_the_same_after_a_kill(strategy: str) -> None:
    overrides = [*RUN, *STRATEGIES[strategy]]
    processes.on(2, working([*overrides, "run_dir=killed"], kill_at=48))
    processes.values(2, working(["resume=killed"], [*overrides, "run_dir=whole"]))
    found = {row["step"]: row["valid/loss"] for row in rows(Path("whole")) if "valid/loss" in row}
    step = min(found, key=lambda step: found[step])
    assert 20 < step < 40
    name, sha256 = best("whole")
    assert (name, sha256) == best("killed")
    assert name == f"step_{step}"
    selected = summary(Path("whole"))["selected"]
    assert (selected["step"], selected["parameters_sha256"]) == (step, sha256)
    assert selected["metrics"]["valid/loss"] == found[step]
    assert selected == summary(Path("killed"))["selected"]
    lines = [json.loads(line) for line in Path("whole/hashes.jsonl").read_text().splitlines()]
    assert hashlib.sha256((lines[step - 1]["rolling"] + sha256).encode()).hexdigest() == lines[step]["rolling"]
