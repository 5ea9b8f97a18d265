"""A sharded run that an older version left behind: gone on with on two processes, on one, and done again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import older
import processes
import pytest
import torch

from runner import cli


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def answers(*words: str) -> Callable[[int], int]:
    """The command line on one of several processes."""

    def work(rank: int) -> int:
        torch.set_num_threads(1)
        return cli.main(list(words))

    return work


def done(words: Sequence[str], size: int) -> None:
    assert processes.values(size, answers(*words)) == [0] * size


def test_it_goes_on_on_as_many_processes(tmp_path: Path) -> None:
    run = older.copied("fsdp", tmp_path)
    done([f"resume={run}"], 2)
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["resumed"], record["strategy"]) == ("finished", 1, "fsdp")
    assert (run / "checkpoints/last/.metadata").is_file()
    older.check_end(run, older.expected()["ends"]["fsdp"])


def test_it_goes_on_on_one_process(tmp_path: Path) -> None:
    run = older.copied("fsdp", tmp_path)
    done([f"resume={run}", "strategy=single", "launch.processes=1"], 1)
    told = older.expected()["ends"]["fsdp"]["metrics"]
    metrics = older.end(run)["metrics"]
    for name, value in told.items():  # sums over the rows in another order, in float32
        assert abs(metrics[name] - value) <= older.FLOAT32 * max(abs(value), 1e-3), name


def test_it_is_done_again(tmp_path: Path) -> None:
    run = older.copied("fsdp", tmp_path)
    done(["rerun", str(run), "run_dir=again"], 2)
    older.check_end(Path("again"), older.expected()["ends"]["fsdp"])
    assert cli.main(["diverge", str(run), "again"]) == 0 or not older.is_same_machine()
