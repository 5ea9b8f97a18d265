"""One process of a run is killed, fails or hangs: the others soon end with the reason, or restart to the same answer."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import faulty
import processes
import pytest
from faulty import Fault
from launching import (
    EXACT,
    OVERRIDES,
    STANDALONE,
    assert_same,
    errors,
    launched,
    record,
    rows,
    runner_launch,
    torchrun,
    wait_until,
)
from processes import Outcome

import runner
from runner import cli
from runner.compute.processes import watchdog
from runner.training.objective import BatchObjective

TIMEOUT = 5.0
"""Longest seconds for which processes wait for each other; a step takes milliseconds, the start of a run a second."""

GRACE = 2.0
"""Longest seconds for a process to end by itself after another one failed."""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(watchdog, "GRACE_SECONDS", GRACE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one process without faults, with the rows of its steps."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "rows").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchObjective, "at", BatchObjective.at)
        faulty.note_rows(folder / "rows")
        return runner.run(None, [*EXACT, f"run_dir={folder / 'run'}"]).directory


def run_with_fault(fault: Fault, overrides: Sequence[str] = EXACT, size: int = 2) -> list[Outcome]:
    """Run the command line on several processes, one of which has a fault."""
    Path("faults").mkdir()
    outcomes = processes.on(size, lambda rank: _faulty_command(fault, overrides))
    assert len(faulty.happened(Path("faults"))) == 1
    return outcomes


def run_with_faults(faults: Sequence[Fault]) -> list[list[Outcome]]:
    """Do the same for several faults at once, in pairs of processes, which spend most of their time waiting."""
    ports = [processes.free_port() for _ in faults]
    for i in range(len(faults)):
        Path(str(i), "faults").mkdir(parents=True)

    def work(rank: int) -> None:
        pair, rank = divmod(rank, 2)
        environment = {
            "RANK": rank,
            "WORLD_SIZE": 2,
            "LOCAL_RANK": rank,
            "LOCAL_WORLD_SIZE": 2,
            "MASTER_PORT": ports[pair],
        }
        os.environ.update({name: str(number) for name, number in environment.items()})
        os.chdir(str(pair))
        _faulty_command(faults[pair], EXACT)

    outcomes = processes.on(2 * len(faults), work)
    assert [len(faulty.happened(Path(str(i), "faults"))) for i in range(len(faults))] == [1] * len(faults)
    return [outcomes[2 * i : 2 * i + 2] for i in range(len(faults))]


def _faulty_command(fault: Fault, overrides: Sequence[str]) -> None:
    """Run the command line with a fault in a forked process."""
    faulty.inject([fault], Path("faults").resolve())
    try:
        sys.exit(cli.main([*overrides, "run_dir=run", f"launch.timeout_seconds={TIMEOUT}"]))
    finally:
        # A stopped process cannot end: the other one kills it, as a launcher would.
        for stopped in Path("faults").glob("stop-*"):
            os.kill(int(stopped.read_text()), signal.SIGKILL)


def user_errors(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the error messages of all processes."""
    return [line for outcome in outcomes for line in errors(outcome.printed)]


def assert_failed(reason: str, run: Path = Path("run")) -> None:
    """Check that run.json has the reason of the failure and that the last checkpoint is that of step 4."""
    assert (record(run)["status"], record(run)["reason"]) == ("failed", reason)
    assert (run / "checkpoints/last").readlink() == Path("step_4")


def trained_rows(folder: Path, attempt: int) -> dict[int, list[float]]:
    """Return step → sorted targets on which all processes of an attempt trained."""
    by_step: dict[int, list[float]] = {}
    for file in folder.glob(f"{attempt}-*.jsonl"):
        for line in file.read_text().splitlines():
            step, targets = json.loads(line)
            by_step[step] = sorted([*by_step.get(step, []), *targets])
    return by_step


# --------------------------------------------------------------------------------------------------------- restarts


def test_after_a_kill_the_processes_restart_and_the_run_ends_with_the_same_bits(whole: Path, tmp_path: Path) -> None:
    """They resume the same directory from the checkpoint of step 4, and train on the same rows as without a fault."""
    command = torchrun(*EXACT, "run_dir=run", options=(*STANDALONE, "--max-restarts=3"))
    with launched(command, tmp_path / "t", [Fault("kill", rank=1, step=7)], rows=True) as run:
        assert run.wait() == 0, run.err
        assert run.running_pids() == []
    assert run.faults == ["kill-1-7-0"]
    assert_same(run.folder / "run", whole)
    assert [row["step"] for row in rows(run.folder / "run")] == list(range(1, 31))
    run_json = record(run.folder / "run")
    assert (run_json["status"], run_json["resumed"], run_json["world_size"]) == ("finished", 1, 2)
    undisturbed, again = trained_rows(whole.parent / "rows", 0), trained_rows(run.folder / "rows", 1)
    assert again == {step: undisturbed[step] for step in range(5, 31)}


@pytest.mark.long
def test_launch_processes_restarts_up_to_max_restarts_and_the_run_can_be_resumed(whole: Path, tmp_path: Path) -> None:
    """Rank 0 is killed at step 7; the second attempt resumes from step 4, and rank 1 is killed at step 13."""
    faults = [Fault("kill", rank=0, step=7), Fault("kill", rank=1, step=13)]
    command = runner_launch(*EXACT, "run_dir=run", "launch.max_restarts=1")
    with launched(command, tmp_path / "l", faults) as run:
        assert run.wait() == 1
        assert run.running_pids() == []
    assert run.faults == ["kill-0-7-0", "kill-1-13-0"]
    assert run.errors == [
        "error: rank 0 was lost at step 7; all processes restart",
        "error: rank 1 was lost at step 13; continue with resume=…",
        "error: rank 1 was killed by SIGKILL, in the last of 2 attempts",
    ]
    assert "Traceback" not in run.err
    run_json = record(run.folder / "run")
    assert (run_json["status"], run_json["resumed"]) == ("failed", 1)
    assert (run.folder / "run/checkpoints/last").readlink() == Path("step_12")
    runner.run(None, [f"resume={run.folder / 'run'}", "launch.processes=1"])
    assert_same(run.folder / "run", whole)


def test_launch_processes_records_that_rank_0_was_killed(whole: Path, tmp_path: Path) -> None:
    command = runner_launch(*EXACT, "run_dir=run")
    with launched(command, tmp_path / "l", [Fault("kill", rank=0, step=7)]) as run:
        assert run.wait() == 1
    assert "error: rank 0 was killed by SIGKILL" in run.errors
    assert_failed("rank 0 was killed by SIGKILL", run.folder / "run")
    runner.run(None, [f"resume={run.folder / 'run'}", "launch.processes=1"])
    assert_same(run.folder / "run", whole)
    assert "reason" not in record(run.folder / "run")


# ------------------------------------------------------------------------------------------------ one process fails


def test_a_killed_process_is_named_by_the_remaining_one() -> None:
    outcomes = run_with_fault(Fault("kill", rank=1, step=7))
    assert [outcome.code for outcome in outcomes] == [1, -9]
    assert user_errors(outcomes) == ["error: rank 1 was lost at step 7; continue with resume=…"]
    assert_failed("rank 1 was lost at step 7; continue with resume=…")


@pytest.mark.parametrize("rank", [1, 3])
def test_only_the_killed_one_of_four_processes_is_named(rank: int) -> None:
    """In gloo's ring one of the others sees no error: it waits for a neighbour that has already given up."""
    outcomes = run_with_fault(Fault("kill", rank, step=7), size=4)
    assert [outcome.code for outcome in outcomes] == [-9 if i == rank else 1 for i in range(4)]
    assert user_errors(outcomes) == [f"error: rank {rank} was lost at step 7; continue with resume=…"]
    assert_failed(f"rank {rank} was lost at step 7; continue with resume=…")


def test_without_rank_0_the_others_end_too() -> None:
    """No process is left to write run.json. Rank 0 also hosts the store here, so the others cannot find out who is missing."""
    outcomes = run_with_fault(Fault("kill", rank=0, step=7))
    assert [outcome.code for outcome in outcomes] == [-9, 1]
    assert user_errors(outcomes) == ["error: the launcher or rank 0 exited at step 7; continue with resume=…"]
    assert "Traceback" not in outcomes[1].printed
    assert record(Path("run"))["status"] == "running"


@pytest.mark.parametrize("rank", [0, 1])
def test_an_exception_on_one_process_is_reported(rank: int) -> None:
    """Only that process prints the traceback."""
    outcomes = run_with_fault(Fault("raise", rank, step=7), OVERRIDES, size=3)
    assert [outcome.code for outcome in outcomes] == [1, 1, 1]
    assert user_errors(outcomes) == [f"error: rank {rank}: ValueError: a fault"]
    assert ["Traceback" in outcome.printed for outcome in outcomes] == [rank == 0, rank == 1, False]
    assert_failed("ValueError: a fault" if rank == 0 else "rank 1: ValueError: a fault")


def test_out_of_memory_on_one_process_ends_all_with_advice() -> None:
    outcomes = run_with_fault(Fault("memory", rank=1, step=7))
    assert [outcome.code for outcome in outcomes] == [1, 1]
    reason = (
        "rank 1: out of memory with `train.batch_size`=16; make it smaller, or cut batches with train.accumulate "
        "(can't allocate memory)"
    )
    assert user_errors(outcomes) == [f"error: {reason}"]
    assert_failed(reason)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_exits_with_0_fails_the_run(rank: int) -> None:
    """After `sys.exit(0)` in the middle of a run its launcher would consider the run finished."""
    outcomes = run_with_fault(Fault("exit", rank, step=7))
    assert outcomes[1 - rank].code == 1
    assert user_errors(outcomes) == [f"error: rank {rank}: SystemExit: 0"]
    assert_failed("SystemExit: 0" if rank == 0 else "rank 1: SystemExit: 0")


def test_a_second_signal_to_one_process_ends_all_at_once() -> None:
    """The others must not wait for it as long as for a slow process."""
    outcomes = run_with_fault(Fault("second signal", rank=1, step=7))
    assert [outcome.code for outcome in outcomes] == [143, 143]
    message = "stopped at once by a second signal; the last checkpoint is intact (SIGTERM)"
    assert outcomes[1].printed.splitlines()[-1] == message
    assert "Traceback" not in outcomes[0].printed
    assert_failed(f"rank 1: {message}")


@pytest.mark.parametrize("overrides", [OVERRIDES, EXACT], ids=["fast", "exact"])
def test_nan_on_one_process_stops_all_at_the_same_step_for_the_same_reason(overrides: Sequence[str]) -> None:
    outcomes = run_with_fault(Fault("nan", rank=1, step=7), overrides)
    assert [outcome.code for outcome in outcomes] == [1, 1]
    (line,) = user_errors(outcomes)
    assert line.startswith("error: training diverged at step 7: the loss became nan")
    assert "the parameters of step 6 are restored" in line
    assert record(Path("run"))["reason"] == line.removeprefix("error: ")
    assert [(row["step"], row["train/loss"]) for row in rows(Path("run"))][-1][0] == 7
    assert Path("run/checkpoints/last").readlink() == Path("step_6")


# ----------------------------------------------------------------------------------------- one process does not answer


def test_processes_that_do_not_answer_are_named_with_their_step() -> None:
    """Two processes sleep, one is stopped, and one runs an all-reduce that the other does not."""
    faults = [Fault("hang", 0, 7), Fault("hang", 1, 7), Fault("stop", 1, 7), Fault("collective", 1, 7)]
    for i, outcomes in enumerate(run_with_faults(faults)):
        stopped = faults[i].kind == "stop"
        assert [outcome.code for outcome in outcomes] == [1, -9 if stopped else 1]
        who = "the connection between the processes" if faults[i].kind == "collective" else f"rank {faults[i].rank}"
        reason = f"{who} did not answer within {TIMEOUT:g} seconds at step 7; continue with resume=…"
        assert user_errors(outcomes) == [f"error: {reason}"]
        assert_failed(reason, Path(str(i), "run"))


def test_a_slow_process_is_no_fault(whole: Path) -> None:
    """The process is slow for less than the timeout of the others."""
    outcomes = run_with_fault(Fault("slow", rank=1, step=7))
    assert [outcome.code for outcome in outcomes] == [0, 0]
    assert user_errors(outcomes) == []
    assert_same(Path("run"), whole)


# -------------------------------------------------------------------------------------------------------- the launcher


def test_sigterm_to_torchrun_saves_once_and_one_process_can_resume(whole: Path, tmp_path: Path) -> None:
    with launched(torchrun(*EXACT, "run_dir=run"), tmp_path / "t", [Fault("terminate launcher", 1, 13)]) as run:
        assert run.wait() == 1  # torchrun's exit code for any signal
        assert run.running_pids() == []
    assert run.faults == ["terminate launcher-1-13-0"]
    _interrupted_once(run.folder / "run")
    runner.run(None, [f"resume={run.folder / 'run'}"])
    assert_same(run.folder / "run", whole)


def test_sigterm_to_launch_processes_is_143_and_four_processes_can_resume(whole: Path, tmp_path: Path) -> None:
    command = runner_launch(*EXACT, "run_dir=run")
    with launched(command, tmp_path / "l", [Fault("terminate launcher", 0, 13)]) as run:
        assert run.wait() == 143
        assert run.running_pids() == []
    assert run.faults == ["terminate launcher-0-13-0"]
    assert "Traceback" not in run.err
    path = _interrupted_once(run.folder / "run")
    codes = processes.values(4, lambda rank: cli.main([f"resume={path}"]))
    assert codes == [0] * 4
    assert_same(path, whole)
    assert record(path)["world_size"] == 4


def _interrupted_once(run: Path) -> Path:
    """Check that all processes stopped after one step from 13 on, and that its state is the last checkpoint."""
    run_json = record(run)
    assert run_json["status"] == "interrupted"
    step = int(run_json["reason"].removeprefix("stopped after step ").partition(";")[0])
    assert run_json["reason"] == f"stopped after step {step}; the state is saved (SIGTERM)"
    assert 13 <= step < 30
    assert (run / "checkpoints/last").readlink() == Path(f"step_{step}")
    assert (run / "run.log").read_text().count("stopped after step") == 1
    return run


def test_without_their_launcher_the_processes_save_and_end(tmp_path: Path) -> None:
    """SIGKILL to the launcher of a run that would take hours; the saved state can be resumed."""
    endless = [o for o in EXACT if not o.startswith(("train.steps", "schedule", "record.every", "checkpoint.every"))]
    overrides = [*endless, "train.steps=1000000", "record.every_steps=1000", "run_dir=run"]
    with launched(runner_launch(*overrides), tmp_path / "l", [Fault("kill launcher", 1, 13)]) as run:
        assert run.wait() == -9
        wait_until(lambda: run.running_pids() == [], seconds=10, what="the processes without a launcher")
    run_json = record(run.folder / "run")
    assert run_json["status"] == "interrupted", (run_json["reason"], run.err)
    step = int((run.folder / "run/checkpoints/last").readlink().name.removeprefix("step_"))
    assert step >= 13
    assert run_json["reason"] == f"stopped after step {step}; the state is saved (SIGTERM)"
    more_steps = f"train.steps={step + 5}"
    runner.run(None, [f"resume={run.folder / 'run'}", more_steps, "launch.processes=1"])
    assert_same(run.folder / "run", runner.run(None, [*overrides, more_steps, "run_dir=whole"]).directory)
