"""A sharded run of an older version: resumed on two processes, resumed on one, and repeated."""

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


def command(*arguments: str) -> Callable[[int], int]:
    """Return work that runs the command line on one of several processes."""

    def work(rank: int) -> int:
        torch.set_num_threads(1)
        return cli.main(list(arguments))

    return work


def run_command(arguments: Sequence[str], size: int) -> None:
    """Run the command line on several processes, which must succeed."""
    assert processes.values(size, command(*arguments)) == [0] * size


def test_it_resumes_on_the_same_number_of_processes(tmp_path: Path) -> None:
    run = older.copied("fsdp", tmp_path)
    run_command([f"resume={run}"], 2)
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["resumed"], record["strategy"]) == ("finished", 1, "fsdp")
    assert (run / "checkpoints/last/.metadata").is_file()
    older.agrees(run, older.expected()["ends"]["fsdp"])


def test_it_resumes_on_one_process(tmp_path: Path) -> None:
    run = older.copied("fsdp", tmp_path)
    run_command([f"resume={run}", "strategy=single", "launch.processes=1"], 1)
    expected = older.expected()["ends"]["fsdp"]["metrics"]
    metrics = older.end(run)["metrics"]
    for name, value in expected.items():  # sums over the rows in another order, in float32
        assert abs(metrics[name] - value) <= older.FLOAT32 * max(abs(value), 1e-3), name


def test_it_can_be_repeated(tmp_path: Path) -> None:
    run = older.copied("fsdp", tmp_path)
    run_command(["rerun", str(run), "run_dir=again"], 2)
    older.agrees(Path("again"), older.expected()["ends"]["fsdp"])
    assert cli.main(["diverge", str(run), "again"]) == 0 or not older.here()
