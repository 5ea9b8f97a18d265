"""`model.init_from` on two processes: every strategy starts from the other run, and another run starts from its result."""

from __future__ import annotations

from pathlib import Path

import processes
import pytest
import torch
from launching import summary

import runner

RUN = [
    "data=line", "data.seed=0", "data.rows=40", "data.features=4", "data.standardize=true", "model=mlp", "model.widths=[16]", "dtype=float64",
    "optimizer=sgd", "train.steps=1", "record.plots=false", "device=cpu", "device.threads=1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_strategy_starts_from_a_run_and_is_started_from() -> None:
    """Without steps of any length, all results are the first one."""
    still, names = [*RUN, "optimizer.lr=0"], ("ddp", "fsdp", "tensor", "pipeline")
    runner.run(None, [*RUN, "optimizer.lr=0.1", "run_dir=source"])

    def work(rank: int) -> None:
        torch.set_num_threads(1)
        for name in names:
            runner.run(None, [*still, f"strategy={name}", "seed=1", "model.init_from=source", f"run_dir={name}"])

    processes.values(2, work)
    runner.run(None, [*still, "seed=2", "model.init_from=fsdp", "run_dir=last"])
    found = {run: summary(Path(run))["parameters_sha256"] for run in ("source", *names, "last")}
    assert len({*found.values()}) == 1, found
