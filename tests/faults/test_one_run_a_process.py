"""A second run in the same process is refused at once; later runs, and runs in other processes, are not."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import runner
from runner.cli import main
from runner.errors import ConfigError, RunnerError
from runner.runs.sinks.jsonl import JsonLines

QUICK = ["device=cpu", "record.plots=false", "record.sinks=[jsonl]", "train.steps=2", "optimizer.lr=1e-4"]
MESSAGE = (
    "this process must run one thing at a time, but a run is active in it; wait until it ends, or use another process"
)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def during(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """Calls a function when a run writes its first row, as a user's callback would."""

    def install(call: Callable[[], Any]) -> None:
        write = JsonLines.write
        called: list[bool] = []

        def calling(self: JsonLines, row: Any) -> None:
            if not called:
                called.append(True)
                call()
            write(self, row)

        monkeypatch.setattr(JsonLines, "write", calling)

    return install


SECOND = {
    "run": lambda: runner.run(None, QUICK),
    "multirun": lambda: runner.multirun(None, [*QUICK, "seeds=2"]),
}


@pytest.mark.parametrize("second", SECOND.values(), ids=SECOND)
@pytest.mark.parametrize("first", SECOND.values(), ids=SECOND)
@pytest.mark.parametrize("in_thread", [False, True], ids=["callback", "thread"])
def test_a_second_run_is_refused(
    first: Callable[[], Any], second: Callable[[], Any], in_thread: bool, during: Callable[[Callable[[], Any]], None]
) -> None:
    messages = []

    def refused() -> None:
        with pytest.raises(RunnerError) as error:
            second()
        messages.append(str(error.value))

    def call() -> None:
        if in_thread:
            thread = threading.Thread(target=refused)
            thread.start()
            thread.join()
        else:
            refused()

    during(call)
    first()
    assert messages == [MESSAGE]
    assert len(list(Path().rglob("run.json"))) == (1 if first is SECOND["run"] else 2)


@pytest.mark.parametrize("arguments", [QUICK, ["-m", *QUICK, "seeds=2"], ["verify", "rerun", "runs"], ["doctor"]])
def test_a_second_command_is_refused(
    arguments: list[str], during: Callable[[Callable[[], Any]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    during(lambda: codes.append(main(arguments)))
    runner.run(None, QUICK)
    assert codes == [1]
    assert capsys.readouterr().err == f"error: {MESSAGE}\n"


def test_a_run_that_ended_in_any_way_is_over(during: Callable[[Callable[[], Any]], None]) -> None:
    def crash() -> None:
        raise ZeroDivisionError

    with pytest.raises(ConfigError):
        runner.run(None, ["seed=-1"])
    during(crash)
    with pytest.raises(ZeroDivisionError):
        runner.run(None, QUICK)
    assert runner.run(None, QUICK).summary["steps"] == 2
    assert main(QUICK) == 0


def _run_in(directory: str) -> None:
    runner.run(None, [*QUICK, f"run_dir={directory}"])


def test_a_forked_process_may_run_meanwhile(during: Callable[[Callable[[], Any]], None]) -> None:
    codes = []

    def fork() -> None:
        process = multiprocessing.get_context("fork").Process(target=_run_in, args=("forked",))
        process.start()
        process.join(60)
        codes.append(process.exitcode)

    during(fork)
    runner.run(None, QUICK)
    assert codes == [0]
    assert Path("forked/summary.json").is_file()
