"""One experiment on any number of processes: its runs, and how far their answers lie apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import processes
import torch
from torch import Tensor

import runner
from runner.runs import checkpoint

# 37 training rows in batches of 16: the last one has 5, which leaves some of 8 processes with a row and some with none.
EXPERIMENT = [
    "name=same", "data=line", "data.rows=58", "data.features=3", "data.standardize=true", "data.split.valid=12", "data.split.test=9",
    "model=mlp", "model.widths=[8,6]", "train.batch_size=16", "train.eval_every_steps=20", "optimizer.lr=0.01",
    "train.clip_norm=1", "record.plots=false", "record.every_steps=20", "device=cpu",
]  # fmt: skip
UPDATES = [(rule, update) for rule in ("sgd", "momentum", "adam", "adamw") for update in ("manual", "optimizer")]


def trained(size: int, runs: Sequence[Sequence[str]]) -> list[Path]:
    """The directories of several runs, one after the other on the same processes."""

    def work(rank: int) -> list[str]:
        torch.set_num_threads(1)
        return [str(runner.run(None, _whole(words)).directory) for words in runs]

    everywhere = processes.values(size, work)
    assert everywhere == [everywhere[0]] * size  # every process knows where the records are
    return [Path(path) for path in everywhere[0]]


def _whole(words: Sequence[str]) -> list[str]:
    """The words of a run; those of the network are left out where another model is asked for."""
    other = any(word.startswith("model=") for word in words)
    return [word for word in EXPERIMENT if not (other and word.startswith("model"))] + list(words)


def difference(one: Path, other: Path) -> float:
    """Between the parameters that two runs end with: largest difference over largest magnitude, of the tensor where that is
    largest.
    """
    mine, theirs = _parameters(one), _parameters(other)
    return max(float((mine[name] - value).abs().max() / value.abs().max()) for name, value in theirs.items())


def _parameters(run: Path) -> dict[str, Tensor]:
    loaded: Any = checkpoint.load(run / "checkpoints")
    assert loaded is not None
    parameters: dict[str, Tensor] = loaded.state["model"]
    return parameters
