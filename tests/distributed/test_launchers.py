"""Launches of several processes: an error is reported once, leaves nothing behind, and ends all processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import processes
import pytest
from launching import EXACT, OVERRIDES, STANDALONE, assert_same, errors, launched, runner_launch, torchrun
from processes import Outcome

import runner
from runner import cli
from runner.compute.processes import ProcessGroup, group, rendezvous, watchdog
from runner.compute.processes.watchdog import FailureChannel
from runner.runs.directory import RunDirectory

SMALL = ("data=line", "device=cpu", "train.steps=2", "record.plots=false")
MISSING = ("data=csv", "data.path=nowhere.csv", "data.target=y", "run_dir=run")
NO_FILE = "error: `data.path` must be a readable file, but 'nowhere.csv' does not exist; give its path with data.path=PATH, relative to the working directory"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(watchdog, "GRACE_SECONDS", 1.0)


def run_command(size: int, arguments: Sequence[str]) -> list[Outcome]:
    """Run the command line on several processes and return their outcomes."""
    return processes.on(size, lambda rank: sys.exit(cli.main(arguments)))


def user_errors(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """Return the error messages of each process."""
    return [errors(outcome.printed) for outcome in outcomes]


# ---------------------------------------------------------------------------------------------------- real launchers


def test_two_launches_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    whole = runner.run(None, [*EXACT, "run_dir=whole"]).directory
    command = runner_launch(*EXACT, "run_dir=run")
    with launched(command, tmp_path / "one") as one, launched(command, tmp_path / "other") as other:
        for run in (one, other):
            assert run.wait() == 0, run.err
            assert run.errors == []
            assert_same(run.folder / "run", whole)
            assert run.running_pids() == []


@pytest.mark.parametrize("restarts", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_fit_that_has_not_converged_ends_every_launcher_with_1(tmp_path: Path, restarts: int) -> None:
    """A launcher restarts its processes after that exit code. They end at once: the run is finished."""
    fit = ("data=curve", "model=formula", "model.expression=a*sin(b*x)", "optimizer=lm", "train.steps=1")
    run = (*fit, "device=cpu", "record.plots=false", "run_dir=run")
    ours = runner_launch(*run, f"launch.max_restarts={restarts}")
    theirs = torchrun(*run, options=(*STANDALONE, f"--max-restarts={restarts}"))
    with launched(ours, tmp_path / "ours") as one, launched(theirs, tmp_path / "theirs") as other:
        for done in (one, other):
            assert done.wait() == 1
            assert done.errors == []
            assert (done.out.count("not converged after 1 step"), done.out.count("nothing left to do")) == (1, 0)
            record = json.loads((done.folder / "run" / "run.json").read_text())
            summary = json.loads((done.folder / "run" / "summary.json").read_text())
            assert (record["status"], record["ended"] is None, summary["converged"]) == ("finished", False, False)


def test_an_input_error_is_reported_once_by_all_processes_of_a_launcher(tmp_path: Path) -> None:
    """`launch.processes` returns the exit code of the run; torchrun always returns 1."""
    ours, theirs = runner_launch(*MISSING), torchrun(*MISSING)
    with launched(ours, tmp_path / "ours") as one, launched(theirs, tmp_path / "theirs") as other:
        assert (one.wait(), other.wait()) == (2, 1)
        for run in (one, other):
            assert run.errors == [NO_FILE]
            assert run.running_pids() == []
            assert not (run.folder / "run").exists()
        assert one.err == f"{NO_FILE}\n"
        assert one.out == ""


# ----------------------------------------------------------------------------------------- input errors, reported once

BAD = {
    "chunks": (3, [*EXACT], "`strategy.chunks` must be divisible by the number of processes, 3, with `strategy.reduction`=exact, got 4; start 1, 2, 4, … processes, or use strategy.reduction=fast"),
    "rows": (3, [*SMALL, "data.rows=2"], "the number of processes must not be above the number of rows, 2, got 3; start fewer processes"),
    "single": (2, [*SMALL, "strategy=single"], "`strategy` must be ddp, fsdp, tensor or pipeline on 2 processes, got single, which is one process; use strategy=auto, or start one process"),
    "fsdp": (1, [*SMALL, "strategy=fsdp"], "`strategy`=fsdp must have at least 2 processes to shard the model over, got 1; start more with launch.processes=2 or torchrun --nproc-per-node 2, or use strategy=single"),
    "file": (2, [*SMALL, "data=csv", "data.path=nowhere.csv", "data.target=y"], NO_FILE.removeprefix("error: ")),
    "key": (2, [*SMALL, "model.depth=3"], "`model.depth` is not a key; see docs/config.md for the list of keys"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_only_rank_0_reports_an_input_error(case: str) -> None:
    size, overrides, sentence = BAD[case]
    outcomes = run_command(size, [*overrides, "run_dir=run"])
    assert [outcome.code for outcome in outcomes] == [2] * size
    assert user_errors(outcomes) == [[f"error: {sentence}"]] + [[]] * (size - 1)
    assert list(Path().iterdir()) == []


def test_all_problems_are_reported_at_once() -> None:
    outcomes = run_command(2, [*SMALL, "model.depth=3", "train.steps=0", "run_dir=run"])
    assert [outcome.code for outcome in outcomes] == [2, 2]
    assert [len(lines) for lines in user_errors(outcomes)] == [2, 0]


def test_a_run_that_another_process_is_writing_is_not_changed() -> None:
    runner.run(None, [*SMALL, "run_dir=run"])
    before = Path("run/run.json").read_bytes()
    writing = RunDirectory.reopen(Path("run"))
    outcomes = run_command(2, ["resume=run", "train.steps=4"])
    writing.close()
    assert [outcome.code for outcome in outcomes] == [2, 2]
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    sentence = f"error: run must not be in use, but {holder} is writing to it; wait for it to end, or start a new run"
    assert user_errors(outcomes) == [[sentence], []]
    assert Path("run/run.json").read_bytes() == before


def test_processes_with_different_data_are_refused() -> None:
    """Each process has a folder of its own, and the relative path is the same."""
    for rank in range(3):
        Path(str(rank)).mkdir()
        rows = "".join(f"{x},{2 * x}\n" for x in range(6 + rank // 2))
        Path(str(rank), "d.csv").write_text(f"x,y\n{rows}")
    run = Path("run").resolve()

    def work(rank: int) -> None:
        os.chdir(str(rank))
        sys.exit(cli.main([*SMALL, "data=csv", "data.path=d.csv", "data.target=y", f"run_dir={run}"]))

    outcomes = processes.on(3, work)
    assert [outcome.code for outcome in outcomes] == [2, 2, 2]
    lines = user_errors(outcomes)
    assert lines[1:] == [[], []]
    (line,) = lines[0]
    assert line.startswith("error: the content of `data.path` must be the same on every process, got ")
    assert line.endswith(" on rank 2; make them equal")
    assert not run.exists()


def test_a_file_that_is_missing_on_one_process_is_reported_with_its_rank() -> None:
    for rank in range(2):
        Path(str(rank)).mkdir()
    Path("0/d.csv").write_text("x,y\n1,2\n2,4\n3,6\n")
    run = Path("run").resolve()

    def work(rank: int) -> None:
        os.chdir(str(rank))
        sys.exit(cli.main([*SMALL, "data=csv", "data.path=d.csv", "data.target=y", f"run_dir={run}"]))

    outcomes = processes.on(2, work)
    assert [outcome.code for outcome in outcomes] == [2, 2]
    sentence = "rank 1: `data.path` must be a readable file, but 'd.csv' does not exist; give its path with data.path=PATH, relative to the working directory"
    assert user_errors(outcomes) == [[f"error: {sentence}"], []]
    assert not run.exists()


def test_an_impossible_number_of_processes_is_refused_before_the_launch(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert cli.main([*EXACT, "launch.processes=3", "run_dir=run"]) == 2
    assert errors(capfd.readouterr().err) == [f"error: {BAD['chunks'][2]}"]
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], [*OVERRIDES, "--cfg", "job"]], ids=["help", "version", "cfg"]
)
def test_only_rank_0_prints_information(arguments: list[str]) -> None:
    first, second = run_command(2, arguments)
    assert (first.code, second.code) == (0, 0)
    assert first.printed != ""
    assert second.printed == ""


# ------------------------------------------------------------------------------------------- failures before training


def kill_on_call(killed: int, owner: type, method: str) -> list[Outcome]:
    """Run the command line on two processes, one of which is killed when it calls a method."""
    assert hasattr(owner, method)

    def work(rank: int) -> None:
        if rank == killed:
            setattr(owner, method, lambda *arguments: os.kill(os.getpid(), signal.SIGKILL))
        sys.exit(cli.main([*SMALL, "run_dir=run", "launch.timeout_seconds=3"]))

    return processes.on(2, work)


@pytest.mark.parametrize(
    ("method", "event"), [("connect", "did not answer within 3 seconds"), ("run_on_all_ranks", "was lost")]
)
def test_a_process_that_is_killed_before_training_is_named(method: str, event: str) -> None:
    outcomes = kill_on_call(1, ProcessGroup, method)
    assert [outcome.code for outcome in outcomes] == [1, -signal.SIGKILL]
    assert user_errors(outcomes) == [[f"error: rank 1 {event} before training began; start again"], []]
    assert "Traceback" not in outcomes[0].printed
    assert not Path("run").exists()


def test_a_process_that_is_slow_to_join_does_not_wait_for_the_store_of_a_killed_rank_0() -> None:
    """All connections are open before rank 0 hears that everyone is here: one more could not be opened without it."""

    def work(rank: int) -> None:
        if rank == 0:
            ProcessGroup.send_config = lambda *plan: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
        else:
            setattr(group, "FailureChannel", once_alone)  # noqa: B010
        sys.exit(cli.main([*SMALL, "run_dir=run", "launch.timeout_seconds=3"]))

    def once_alone(joined: rendezvous.Rendezvous) -> FailureChannel:
        address = (joined.environment.address, joined.environment.port)

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(address) == 0

        assert rendezvous.poll(lambda: not listens(), 20)
        return FailureChannel(joined)

    outcomes = processes.on(2, work)
    assert [outcome.code for outcome in outcomes] == [-signal.SIGKILL, 1]
    (line,) = errors(outcomes[1].printed)
    assert line.startswith("error: the launcher or rank 0 exited")


@pytest.mark.parametrize("method", ["send_config", "connect"])
def test_without_rank_0_the_others_end_before_training(method: str) -> None:
    outcomes = kill_on_call(0, ProcessGroup, method)
    assert [outcome.code for outcome in outcomes] == [-signal.SIGKILL, 1]
    (line,) = errors(outcomes[1].printed)
    assert line.startswith("error: the launcher or rank 0 exited")
    assert "Traceback" not in outcomes[1].printed


# --------------------------------------------------------------------------------------------------- the rendezvous


def test_a_port_in_use_is_reported() -> None:
    """Without torchrun rank 0 hosts the store, here on a port where another program listens."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]

        def work(rank: int) -> None:
            os.environ["WORLD_SIZE"] = "2"
            sys.exit(cli.main([*SMALL, "run_dir=run"]))

        (outcome,) = processes.on(1, work, seconds=10, port=port)
    assert outcome.code == 1
    (line,) = errors(outcome.printed)
    assert f"must be an address where the processes can meet, but 127.0.0.1:{port} cannot be opened" in line
    assert "Traceback" not in outcome.printed
    assert not Path("run").exists()


def test_an_address_without_a_store_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "CONNECT_SECONDS", 1.0)
    port = processes.free_port()

    def work(rank: int) -> None:
        os.environ.update(RANK="1", WORLD_SIZE="2")
        sys.exit(cli.main([*SMALL, "run_dir=run"]))

    (outcome,) = processes.on(1, work, seconds=10, port=port)
    assert outcome.code == 1
    (line,) = errors(outcome.printed)
    assert f"must be an address where the processes can meet, but 127.0.0.1:{port} cannot be reached" in line


def test_processes_wait_only_briefly_for_a_launcher_that_has_exited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its store exists before its processes: they need not wait as long as for the store of rank 0."""
    monkeypatch.setattr(rendezvous, "LAUNCHER_SECONDS", 1.0)

    def work(rank: int) -> None:
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        sys.exit(cli.main([*SMALL, "run_dir=run"]))

    for outcome in processes.on(2, work, seconds=20):
        assert outcome.code == 1
        (line,) = errors(outcome.printed)
        assert line.endswith("; check that the launcher is running, or give its address with --local-addr")
        assert "Traceback" not in outcome.printed


def test_processes_do_not_wait_forever_for_one_that_does_not_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "JOIN_SECONDS", 1.0)

    def work(rank: int) -> None:
        os.environ["WORLD_SIZE"] = "2"
        sys.exit(cli.main([*SMALL, "run_dir=run"]))

    (outcome,) = processes.on(1, work, seconds=10)
    assert outcome.code == 1
    (line,) = errors(outcome.printed)
    assert line.startswith("error: not all processes joined within 1 seconds at 127.0.0.1:")
    assert not Path("run").exists()
