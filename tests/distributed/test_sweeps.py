"""Sweeps on several processes: rank 0 leads, each trial runs once, and its answer is that of one process."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from faulty import Fault
from launching import errors, launched, runner_launch
from processes import Outcome

import runner
from runner import cli
from runner.compute.processes import watchdog
from runner.training import report

TRIALS = (
    "data=line", "data.rows=40", "data.standardize=true", "model=mlp", "model.widths=[4]", "device=cpu", "dtype=float64",
    "train.steps=20", "train.batch_size=16", "record.every_steps=10", "optimizer.lr=0.1,0.01,1e30", "seed=range(0,3)",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.optim.SGD([torch.zeros(1)])  # imports torch's compiler, once, before the processes are forked


def run_command(size: int, arguments: Sequence[str]) -> list[Outcome]:
    """Run the command line on several processes and return their outcomes."""
    return processes.on(size, lambda rank: sys.exit(cli.main(arguments)))


def signal_at(step: int | None, number: signal.Signals) -> None:
    """Send this process a signal at a step of its training; never for None."""
    from runner.training.objective import BatchObjective

    real = BatchObjective.at

    def at(self: BatchObjective, at_step: int) -> BatchObjective:
        if at_step == step:
            os.kill(os.getpid(), number)
        return real(self, at_step)

    setattr(BatchObjective, "at", at)  # noqa: B010


def trial_results(directory: Path) -> list[tuple[str, Any, Any]]:
    """Return (state, hash of the parameters, reason) of every trial."""
    members = json.loads((directory / "sweep.json").read_text())["members"]
    assert [member["number"] for member in members] == list(range(9))
    results = []
    for member in members:
        path = directory / str(member["number"]) / "summary.json"
        summary = json.loads(path.read_text()) if path.exists() else {}
        results.append((member["state"], summary.get("parameters_sha256"), member["reason"]))
    return results


def test_trials_are_distributed_and_each_has_the_answer_of_one_process() -> None:
    directory, results = runner.multirun(None, [*TRIALS, "run_dir=one"])
    assert [member.state for member in results.members] == ["finished"] * 6 + ["failed"] * 3
    outcomes = run_command(2, ["-m", *TRIALS, "run_dir=two"])
    assert [outcome.code for outcome in outcomes] == [1, 0], outcomes  # trials failed, as they do on one process
    assert trial_results(Path("two")) == trial_results(directory)
    lanes = [json.loads((Path("two") / str(n) / "run.json").read_text())["lanes"] for n in range(9)]
    assert sorted(lanes) == [4, 4, 4, 4, 5, 5, 5, 5, 5]
    assert (Path("two") / "results.csv").read_text().count("\n") == 10
    assert "9 trials, 3 failed" in outcomes[0].printed
    assert errors(outcomes[0].printed) == errors(outcomes[1].printed) == []


def test_a_script_that_calls_multirun_has_the_results_on_every_process() -> None:
    overrides = [*TRIALS[:-2], "optimizer.lr=0.1,0.01", "run_dir=sweep"]

    def work(rank: int) -> tuple[str, list[tuple[str, Any]]]:
        directory, results = runner.multirun(None, overrides)
        return str(directory), [(member.state, member.parameters_sha256) for member in results.members]

    first, second = processes.values(2, work)
    assert first == second
    assert first[0] == "sweep"
    _, alone = runner.multirun(None, [*overrides[:-1], "run_dir=one"])
    assert first[1] == [("finished", member.parameters_sha256) for member in alone.members]


def test_a_sweep_that_fails_in_a_script_raises_on_every_process() -> None:
    def work(rank: int) -> str:
        try:
            runner.multirun(None, [*TRIALS, "train.clip_norm=1,-1"])
        except runner.RunnerError as error:
            return f"{type(error).__name__}: {error}"
        return "no error"

    first, second = processes.values(2, work)
    assert first.startswith("ConfigError: trial 1 and 8 more: `train.clip_norm` must be")
    assert second == "RemoteRankError: rank 0 ended the sweep without results"


def test_an_explicit_strategy_trains_each_trial_on_all_processes() -> None:
    overrides = [*TRIALS, "strategy.reduction=exact", "strategy.chunks=2"]
    directory, _ = runner.multirun(None, [*overrides, "run_dir=one"])
    outcomes = run_command(2, ["-m", *overrides, "strategy=ddp", "run_dir=two"])
    assert [outcome.code for outcome in outcomes] == [1, 0], outcomes
    assert trial_results(Path("two")) == trial_results(directory)
    sizes = {json.loads((Path("two") / str(n) / "run.json").read_text())["world_size"] for n in range(9)}
    assert sizes == {2}


@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_a_bug_in_the_records_of_one_trial_ends_that_trial_alone(
    strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = report.summary

    def summary(info: Any, *given: Any) -> Any:
        if str(info.config.run_dir) == "sweep/0":
            raise TypeError("a mistake")
        return real(info, *given)

    monkeypatch.setattr(report, "summary", summary)
    outcomes = run_command(2, ["-m", *TRIALS[:-2], "seed=range(0,3)", f"strategy={strategy}", "run_dir=sweep"])
    assert [outcome.code for outcome in outcomes] == [1, 0], outcomes
    members = json.loads(Path("sweep/sweep.json").read_text())["members"]
    assert [member["state"] for member in members] == ["failed", "finished", "finished"]
    assert members[0]["reason"] == "TypeError: a mistake"
    assert 'raise TypeError("a mistake")' in Path("sweep/0/run.log").read_text()


LONG = (
    *TRIALS[:-4],
    "train.steps=100000",
    "train.batch_size=null",
    "optimizer.lr=0.1,0.01,0.02,0.03",
    "launch.timeout_seconds=3",
)


@pytest.mark.parametrize("receiver", [0, 1])
def test_a_signal_to_one_process_stops_the_trials_of_all(receiver: int) -> None:
    """Rank 0 writes that the sweep was interrupted, and no process waits for another."""

    def work(rank: int) -> None:
        signal_at(7 if rank == receiver else None, signal.SIGTERM)
        sys.exit(cli.main(["-m", *LONG, "run_dir=sweep"]))

    outcomes = processes.on(2, work, seconds=30)
    assert [outcome.code for outcome in outcomes] == [143, 0], outcomes
    assert "the state is saved (SIGTERM)" in outcomes[0].printed
    assert "Traceback" not in outcomes[0].printed + outcomes[1].printed
    manifest = json.loads(Path("sweep/sweep.json").read_text())
    assert (manifest["status"], [m["state"] for m in manifest["members"]]) == ("interrupted", ["interrupted"] * 4)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGSTOP, marks=pytest.mark.long), signal.SIGKILL])
def test_a_process_that_does_not_answer_ends_the_sweep_with_its_name(number: signal.Signals) -> None:
    """Rank 0 ends its own trials first. Without a launcher, only silence shows that a process was killed."""
    short = [word.replace("100000", "200") for word in LONG]

    def work(rank: int) -> None:
        signal_at(7 if rank == 1 else None, number)
        Path(f"{rank}.pid").write_text(str(os.getpid()))
        code = cli.main(["-m", *short, "run_dir=sweep"])
        if number == signal.SIGSTOP:
            os.kill(int(Path("1.pid").read_text()), signal.SIGKILL)
        sys.exit(code)

    outcomes = processes.on(2, work)
    assert [outcome.code for outcome in outcomes] == [1, -signal.SIGKILL], outcomes
    assert errors(outcomes[0].printed) == ["error: rank 1 did not answer within 3 seconds; continue with resume=…"]
    manifest = json.loads(Path("sweep/sweep.json").read_text())
    assert (manifest["status"], [m["state"] for m in manifest["members"][::2]]) == ("failed", ["finished"] * 2)


def test_after_a_signal_no_process_waits_for_one_that_was_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher sends SIGTERM to the others when one was killed, and reports that one itself."""
    monkeypatch.setattr(watchdog, "GRACE_SECONDS", 1.0)

    def work(rank: int) -> None:
        signal_at(7, signal.SIGKILL if rank else signal.SIGTERM)
        sys.exit(cli.main(["-m", *LONG, "launch.timeout_seconds=600", "run_dir=sweep"]))

    outcomes = processes.on(2, work, seconds=30)
    assert [outcome.code for outcome in outcomes] == [143, -signal.SIGKILL]
    assert "the state is saved (SIGTERM)" in outcomes[0].printed
    assert json.loads(Path("sweep/sweep.json").read_text())["status"] == "interrupted"


def test_an_invalid_trial_is_reported_once_and_nothing_is_left() -> None:
    outcomes = run_command(2, ["-m", *TRIALS, "train.clip_norm=1,-1", "run_dir=two"])
    assert [outcome.code for outcome in outcomes] == [2, 0], outcomes
    message = "`train.clip_norm` must be a finite number above 0 or null, got -1"
    assert [line.partition(": ")[2] for line in errors(outcomes[0].printed)] == [f"trial 1 and 8 more: {message}"]
    assert errors(outcomes[1].printed) == []
    assert not Path("two").exists()


def test_a_sweep_starts_its_own_processes(tmp_path: Path) -> None:
    arguments = ["-m", *TRIALS[:-2], "optimizer.lr=0.1,0.01", "run_dir=run"]
    with launched(runner_launch(*arguments), tmp_path / "one") as sweep:
        assert sweep.wait() == 0, sweep.err
        assert sweep.errors == []
        assert "2 trials" in sweep.out
        assert sweep.running_pids() == []
    manifest = json.loads((tmp_path / "one" / "run" / "sweep.json").read_text())
    assert [member["state"] for member in manifest["members"]] == ["finished", "finished"]


@pytest.mark.long
def test_the_launcher_records_that_rank_0_of_a_sweep_was_killed(tmp_path: Path) -> None:
    arguments = [*TRIALS[:-2], "optimizer.lr=0.1,0.01,0.02"]
    with launched(runner_launch("-m", *arguments, "run_dir=run"), tmp_path / "l", [Fault("kill", 0, 7)]) as sweep:
        assert sweep.wait() == 1
    assert sweep.errors == ["error: rank 0 was killed by SIGKILL"]  # the other one was stopped by the launcher
    folder, reason = tmp_path / "l" / "run", "rank 0 was killed by SIGKILL"
    manifest = json.loads((folder / "sweep.json").read_text())
    assert (manifest["status"], manifest["reason"]) == ("failed", reason)
    assert manifest["ended"] is not None
    first, *_ = manifest["members"]
    assert (first["state"], first["reason"]) == ("failed", reason)
    for member in manifest["members"]:
        record = folder / str(member["number"]) / "run.json"
        state = json.loads(record.read_text())["status"] if record.exists() else "waiting"
        assert state == member["state"] != "running"
    assert cli.main(["-m", f"resume={folder}", "launch.processes=1"]) == 2  # which trials there are must not change
    with launched(runner_launch("-m", f"resume={folder}")[:-1], tmp_path / "again") as sweep:
        assert sweep.wait() == 0, sweep.err
    manifest = json.loads((folder / "sweep.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["reason"] is None
    assert {member["state"] for member in manifest["members"]} == {"finished"}
