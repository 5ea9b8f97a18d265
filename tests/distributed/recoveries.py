"""Recoveries that take minutes and are not part of the suite: python -m pytest tests/distributed/recoveries.py"""

from __future__ import annotations

from pathlib import Path

import pytest
from faulty import Fault
from launching import EXACT, STANDALONE, assert_same, launched, record, runner_launch, torchrun, wait_until

import runner


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one process without faults."""
    return runner.run(None, [*EXACT, f"run_dir={tmp_path_factory.mktemp('whole') / 'run'}"]).directory


@pytest.mark.parametrize("number", range(10))
def test_ten_of_ten_recover(number: int, whole: Path, tmp_path: Path) -> None:
    """New workers that read the addresses of dead ones would hang or fail, but not every time."""
    fault = Fault("kill", rank=number % 2, step=5 + 2 * number)
    command = torchrun(*EXACT, "run_dir=run", options=(*STANDALONE, "--max-restarts=3"))
    with launched(command, tmp_path / "t", [fault]) as run:
        assert run.wait() == 0, run.err
        assert run.running_pids() == []
    assert len(run.faults) == 1
    assert record(run.folder / "run")["resumed"] == 1
    assert_same(run.folder / "run", whole)


def test_torchrun_kills_a_stopped_worker(tmp_path: Path) -> None:
    """It sends SIGTERM, which a stopped process does not receive, and SIGKILL half a minute later."""
    command = torchrun(*EXACT, "run_dir=run", "launch.timeout_seconds=5")
    with launched(command, tmp_path / "t", [Fault("stop", rank=1, step=7)]) as run:
        assert run.wait() == 1
        wait_until(lambda: run.running_pids() == [], seconds=10, what="the stopped worker")
    assert run.faults == ["stop-1-7-0"]
    reason = "rank 1 did not answer within 5 seconds at step 7; continue with resume=…"
    assert run.errors == [f"error: {reason}"]
    assert record(run.folder / "run")["reason"] == reason


def test_launch_processes_records_that_rank_0_was_stopped(tmp_path: Path) -> None:
    command = runner_launch(*EXACT, "run_dir=run", "launch.timeout_seconds=5")
    with launched(command, tmp_path / "l", [Fault("stop", rank=0, step=7)]) as run:
        assert run.wait() == 1
        wait_until(lambda: run.running_pids() == [], seconds=10, what="the stopped worker")
    reason = "rank 0 did not answer within 5 seconds at step 7; continue with resume=…"
    assert run.errors == [f"error: {reason}"]
    assert (record(run.folder / "run")["status"], record(run.folder / "run")["reason"]) == ("failed", reason)
