"""One experiment on any number of processes: its runs, and the difference between their parameters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import processes
import torch
from torch import Tensor

import runner
from runner.runs import checkpoint

# 37 training rows in batches of 16: the last batch has 5 rows, so that some of 8 processes have a row and some none.
EXPERIMENT = [
    "name=same", "data=line", "data.rows=58", "data.features=3", "data.standardize=true", "data.split.valid=12", "data.split.test=9",
    "model=mlp", "model.widths=[8,6]", "train.batch_size=16", "train.eval_every_steps=20", "optimizer.lr=0.01",
    "train.clip_norm=1", "record.plots=false", "record.every_steps=20", "device=cpu",
]  # fmt: skip
UPDATES = [(rule, update) for rule in ("sgd", "momentum", "adam", "adamw") for update in ("manual", "optimizer")]


def trained(size: int, runs: Sequence[Sequence[str]]) -> list[Path]:
    """Do several runs in sequence on the same processes, and return their directories."""

    complete = [_complete(overrides) for overrides in runs]

    def work(rank: int) -> list[str]:
        torch.set_num_threads(1)
        return [str(runner.run(None, overrides).directory) for overrides in complete]

    processes.merge(complete)
    everywhere = processes.values(size, work)
    assert everywhere == [everywhere[0]] * size  # every process knows the run directories
    return [Path(path) for path in everywhere[0]]


def _complete(overrides: Sequence[str]) -> list[str]:
    """Return the overrides of a run; those of the network or of the line are left out when another model or source is requested."""
    others = tuple(group for group in ("model", "data") if any(o.startswith(f"{group}=") for o in overrides))
    return [override for override in EXPERIMENT if not override.startswith(others)] + list(overrides)


def difference(one: Path, other: Path) -> float:
    """Return the largest difference between the final parameters of two runs, relative to each tensor's largest magnitude."""
    first, second = _parameters(one), _parameters(other)
    return max(float((first[name] - value).abs().max() / value.abs().max()) for name, value in second.items())


def _parameters(run: Path) -> dict[str, Tensor]:
    """Return the parameters of a run's last checkpoint."""
    loaded: Any = checkpoint.load(run / "checkpoints")
    assert loaded is not None
    parameters: dict[str, Tensor] = loaded.state["model"]
    return parameters
