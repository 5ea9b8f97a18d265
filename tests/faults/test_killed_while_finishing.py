"""SIGKILL at every write between the last step of a run or a sweep and its end: resumed, it leaves what an undisturbed one leaves."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from leftovers import differences, events, left_by_run, left_by_sweep

import faults
from runner import cli
from runner.runs.atomic import Appended
from runner.runs.sinks.tensorboard import TensorBoard
from runner.training import report
from runner.training.recorder import RunRecorder

QUICK = ["device=cpu", "device.threads=1"]
RUN = ["+experiment=linreg", *QUICK, "train.steps=12", "record.every_steps=5", "record.hash_every_steps=4"]
SWEEP = ["-m", *RUN, "optimizer.lr=1e-5,1e-4", "seeds=2", "record.plots=true"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def writes(patch: pytest.MonkeyPatch, happen: Callable[[], object]) -> None:
    """Call `happen` before each operation that changes a file or a folder."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("os.rename", "os.symlink", "os.mkdir", "os.remove") or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ):
            happen()

    sys.addaudithook(hook)  # stays for the rest of the process, which is a child of the test
    for name in ("write", "sync"):
        real = getattr(Appended, name)
        patch.setattr(Appended, name, lambda *given, _real=real: (happen(), _real(*given))[1])


def until_finished(patch: pytest.MonkeyPatch, happen: Callable[[], object]) -> None:
    """Call `happen` before each write after the last step of the first run that ends."""
    armed: list[bool] = []
    real = RunRecorder.finish

    def finish(*given: Any) -> Any:
        armed.append(True)
        return real(*given)

    patch.setattr(RunRecorder, "finish", finish)
    writes(patch, lambda: armed and happen())


def count_writes(arguments: Sequence[str]) -> int:
    """Return the number of writes of the finishing sequence."""
    counter = os.open("counter", os.O_RDWR | os.O_CREAT | os.O_APPEND)

    def work() -> None:
        with pytest.MonkeyPatch.context() as patch:
            until_finished(patch, lambda: os.write(counter, b"."))
            os._exit(cli.main(arguments))

    assert os.waitstatus_to_exitcode(faults.in_child(work)) == 0
    return os.fstat(counter).st_size


def kill_at(number: int, arguments: Sequence[str]) -> None:
    """Run the command line in a process that is killed before write `number` of the finishing sequence."""
    left = [number]

    def happen() -> None:
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1

    def work() -> None:
        with pytest.MonkeyPatch.context() as patch:
            until_finished(patch, happen)
            cli.main(arguments)

    assert os.WTERMSIG(faults.in_child(work)) == signal.SIGKILL


def quietly(arguments: Sequence[str]) -> int:
    return os.waitstatus_to_exitcode(faults.in_child(lambda: os._exit(cli.main(arguments))))


# --------------------------------------------------------------------------------------------------------------- kills


def chosen(count: int, every: int) -> range:
    """Return the writes at which the process is killed: all with EVERY_WRITE=1, which takes minutes."""
    return range(0, count, 1 if "EVERY_WRITE" in os.environ else every)


def test_a_run_killed_at_any_write_of_its_end() -> None:
    assert quietly([*RUN, "run_dir=whole"]) == 0
    expected = left_by_run(Path("whole"))
    count = count_writes([*RUN, "run_dir=counted"])
    assert count >= 20
    assert left_by_run(Path("counted")) == expected
    wrong = {}
    for number in chosen(count, 7):
        directory = Path(f"run_{number}")
        kill_at(number, [*RUN, f"run_dir={directory}"])
        assert quietly([f"resume={directory}"]) == 0
        wrong[number] = differences(left_by_run(directory), expected)
    assert {number: names for number, names in wrong.items() if names} == {}


@pytest.mark.parametrize(
    ("arguments", "left_by"), [(RUN, left_by_run), (SWEEP, left_by_sweep)], ids=["a run", "a sweep"]
)
def test_killed_before_its_first_event(arguments: list[str], left_by: Callable[[Path], dict[str, Any]]) -> None:
    resume = ["-m"] if arguments is SWEEP else []
    assert quietly([*arguments, "run_dir=whole"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TensorBoard, "start", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        assert os.WTERMSIG(faults.in_child(lambda: cli.main([*arguments, "run_dir=killed"]))) == signal.SIGKILL
    assert quietly([*resume, "resume=killed"]) == 0
    assert differences(left_by(Path("killed")), left_by(Path("whole"))) == []


def test_a_result_outlives_a_kill_in_the_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "plot", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    assert os.WTERMSIG(faults.in_child(lambda: cli.main([*RUN, "run_dir=run"]))) == signal.SIGKILL
    assert json.loads(Path("run/summary.json").read_text())["steps"] == 12
    record = json.loads(Path("run/run.json").read_text())
    assert (record["status"], record["ended"]) == ("finished", None)


def test_a_resumed_run_without_tensorboard_leaves_no_event_of_a_repeated_step() -> None:
    def die(patch: pytest.MonkeyPatch) -> None:
        faults.at_step(patch, 12, lambda: os.kill(os.getpid(), signal.SIGKILL))

    arguments = [*RUN, "checkpoint.every_steps=5", "record.every_steps=1", "run_dir=run"]
    with pytest.MonkeyPatch.context() as patch:
        die(patch)
        assert os.WTERMSIG(faults.in_child(lambda: cli.main(arguments))) == signal.SIGKILL
    assert max(step for step, _, _ in events(Path("run"))) == 11
    assert quietly(["resume=run", "record.sinks=[jsonl]"]) == 0
    assert max(step for step, _, _ in events(Path("run"))) == 10
    assert len(list(Path("run").glob("events.*"))) == 1


def test_a_sweep_killed_at_any_write_of_its_end() -> None:
    assert quietly([*SWEEP, "run_dir=whole"]) == 0
    expected = left_by_sweep(Path("whole"))
    count = count_writes([*SWEEP, "run_dir=counted"])
    assert left_by_sweep(Path("counted")) == expected
    wrong = {}
    for number in chosen(count, 60):
        directory = Path(f"sweep_{number}")
        kill_at(number, [*SWEEP, f"run_dir={directory}"])
        assert quietly(["-m", f"resume={directory}"]) == 0
        wrong[number] = differences(left_by_sweep(directory), expected)
    assert {number: names for number, names in wrong.items() if names} == {}


def test_the_pool_records_that_a_trial_was_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel kills its process at a limit of its CPU time."""
    real = subprocess.Popen

    def limited(command: list[str], **options: Any) -> Any:
        if any(word.endswith("sweep/1") for word in command):
            options["preexec_fn"] = lambda: resource.setrlimit(resource.RLIMIT_CPU, (3, 3))
            command = [*command, "train.steps=100000000"]
        return real(command, **options)

    monkeypatch.setattr(subprocess, "Popen", limited)
    assert cli.main(["-m", *RUN, "seeds=2", "hydra/launcher=pool", "run_dir=sweep"]) == 1
    record = json.loads(Path("sweep/1/run.json").read_text())
    assert record["status"] == "failed"
    assert record["reason"].startswith("its process was killed by SIGKILL")
