"""A module and rows that each process of a launch gives to `runner.run`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import launching
import numpy as np
import processes
import pytest
import torch
from torch import nn

import runner
from runner.errors import InputError, RemoteRankError
from runner.runs.hashes import parameters_sha256

OVERRIDES = ["device=cpu", "device.threads=1", "record.plots=false", "train.steps=6", "train.batch_size=8", "optimizer.lr=0.01"]  # fmt: skip
X = np.random.default_rng(0).normal(size=(24, 2))
Y = X @ [1.0, -2.0]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def trained(*overrides: str) -> str:
    """Train a network; return the SHA-256 of the parameters that it has then."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    runner.run(model=net, data=(X, Y), overrides=[*OVERRIDES, *overrides])
    return parameters_sha256({f"module.{name}": value for name, value in net.named_parameters()})


def test_the_module_of_every_process_has_the_answer_of_one() -> None:
    expected = trained("strategy.reduction=exact")
    assert processes.values(2, lambda rank: trained("strategy.reduction=exact")) == [expected, expected]


def test_the_module_of_every_process_is_whole_where_the_model_was_sharded() -> None:
    found = processes.values(2, lambda rank: trained("strategy=fsdp", "run_dir=run"))
    assert found == [launching.summary(Path("run"))["parameters_sha256"]] * 2


@pytest.mark.parametrize(
    ("shift", "seed", "what"),
    [(1.0, 0, "the content of `data`"), (0.0, 1, "the start values of the model")],
    ids=["rows", "values"],
)
def test_processes_that_give_something_else_are_refused(shift: float, seed: int, what: str) -> None:
    outcomes = processes.on(2, giving(shift, seed))
    assert [outcome.value for outcome in outcomes][1] == "RemoteRankError"
    assert outcomes[0].value.startswith(f"{what} must be the same on every process, got ")


def giving(shift: float, seed: int) -> Callable[[int], str]:
    """Return work of a process that differs from rank 0, and that returns the error."""

    def work(rank: int) -> str:
        torch.manual_seed(seed * rank)
        try:
            runner.run(model=nn.Linear(2, 1), data=(X, Y + shift * rank), overrides=OVERRIDES)
        except InputError as error:
            return str(error)
        except RemoteRankError as error:
            return type(error).__name__
        return ""

    return work
