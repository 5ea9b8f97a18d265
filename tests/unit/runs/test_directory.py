"""The run directory: complete or absent, locked by one process, and released when that process ends."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from runner.errors import CheckpointError, ConfigError
from runner.runs.directory import RunDirectory, git, now

YAML = "name: linreg\n"


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # git sets them for a hook that runs the tests
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))


def _create(run_dir: str | None = "run", **record: Any) -> RunDirectory:
    return RunDirectory.create("linreg", run_dir, YAML, record)


def _record(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((path / "run.json").read_text())
    return record


def _refusal(run_dir: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        _create(run_dir)
    return caught.value.problems


def test_a_new_directory_is_complete() -> None:
    run = _create(None, seed=3)
    assert re.fullmatch(r"runs/linreg/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_[0-9a-f]{6}", str(run.path))
    assert sorted(os.listdir(run.path)) == ["config.yaml", "run.json"]
    assert os.listdir(run.path.parent) == [run.path.name]
    assert (run.path / "config.yaml").read_text() == YAML
    started = _record(run.path).pop("started")
    assert _record(run.path) == run.record == {
        "format": 1, "status": "running", "started": started, "ended": None, "resumed": 0, "pid": os.getpid(),
        "host": socket.gethostname(), "seed": 3,
    }  # fmt: skip
    run.close()


def test_runs_started_in_the_same_second_have_different_directories() -> None:
    runs = [_create(None) for _ in range(5)]
    assert len({run.path for run in runs}) == 5
    for run in runs:
        run.close()


def test_times_are_utc_in_iso_8601() -> None:
    written = now()
    assert written.endswith("Z")
    age = datetime.now(timezone.utc) - datetime.fromisoformat(written.replace("Z", "+00:00"))
    assert timedelta(0) <= age < timedelta(minutes=1)


def test_run_dir_may_be_an_empty_folder_or_a_new_one_below_others(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for run_dir in ("empty", "a/b/c"):
        run = _create(run_dir)
        assert run.path == Path(run_dir)
        assert (run.path / "run.json").is_file()
        run.close()


def test_a_run_dir_that_holds_a_run_is_refused_and_stays_as_it_is() -> None:
    run = _create()
    run.close()
    before = (run.path / "run.json").read_bytes()
    assert _refusal("run") == (
        "`run_dir` must be a new directory, but run holds a run; use another one, or resume it with resume=run",
    )
    assert (run.path / "run.json").read_bytes() == before
    assert os.listdir() == ["run"]


def test_a_run_dir_that_holds_anything_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert _refusal("mine") == (
        "`run_dir` must be an empty or a new directory, got mine: Directory not empty; use another one",
    )
    assert os.listdir("mine") == ["notes.txt"]
    assert os.listdir() == ["mine"]


def test_a_run_dir_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (problem,) = _refusal("file/run")
    assert problem.startswith("`run_dir` must be an empty or a new directory, got file/run: ")
    assert os.listdir() == ["file"]


def test_nothing_is_left_when_the_record_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, value: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("runner.runs.directory.write_json", full)
    (problem,) = _refusal("run")
    assert problem.endswith("got run: No space left on device; use another one")
    assert os.listdir(tmp_path) == []


def test_an_open_directory_is_refused_and_its_process_named() -> None:
    run = _create()
    with pytest.raises(CheckpointError) as caught:
        RunDirectory.reopen(run.path)
    assert caught.value.problems == (
        f"run must not be in use, but process {os.getpid()} on {socket.gethostname()} is writing to it; "
        "wait for it to end, or start a new run",
    )
    run.close()
    again = RunDirectory.reopen(run.path)
    assert again.record.items() >= run.record.items()
    again.close()


def _run_in_another_process() -> subprocess.Popen[str]:
    """Return a process that has the directory `run` open until it is killed."""
    code = (
        "import sys\nfrom runner.runs.directory import RunDirectory\n"
        "run = RunDirectory.create('linreg', 'run', '', {})\nprint('open', flush=True)\nsys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "open\n"
    return child


def test_the_lock_of_a_killed_process_is_released() -> None:
    with _run_in_another_process() as child:
        try:
            with pytest.raises(CheckpointError, match=f"process {child.pid} on "):
                RunDirectory.reopen(Path("run"))
        finally:
            child.kill()
    run = RunDirectory.reopen(Path("run"))
    assert run.record["pid"] == child.pid
    run.resumed()
    assert _record(run.path)["pid"] == os.getpid()
    run.close()


@pytest.mark.parametrize("content", [None, "", "{", "\x00\xff"])
def test_a_record_that_cannot_be_read_is_named(content: str | None, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    if content is not None:
        (tmp_path / "run" / "run.json").write_text(content)
    with pytest.raises(CheckpointError) as caught:
        RunDirectory.reopen(Path("run"))
    (problem,) = caught.value.problems
    assert problem.startswith("run/run.json must be the record of a run, but cannot be read (")
    assert problem.endswith("); restore it")


def test_the_record_is_updated_in_place() -> None:
    run = _create(seed=3)
    run.update(status="finished", ended=now())
    record = _record(run.path)
    assert record == run.record
    assert (record["status"], record["seed"]) == ("finished", 3)
    assert sorted(os.listdir(run.path)) == ["config.yaml", "run.json"]
    run.close()


def test_each_resumption_is_counted_and_clears_the_end() -> None:
    run = _create()
    run.update(status="failed", ended=now(), reason="the loss is nan")
    run.close()
    for times in (1, 2):
        again = RunDirectory.reopen(run.path)
        again.resumed(device="cpu")
        again.close()
        record = _record(run.path)
        assert (record["resumed"], record["status"], record["ended"], record["device"]) == (
            times,
            "running",
            None,
            "cpu",
        )
        assert "reason" not in record
        assert record["started"] == run.record["started"]


def test_outside_a_checkout_git_is_null() -> None:
    assert git() == {"git_commit": None, "git_dirty": None}


def test_without_git_it_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git() == {"git_commit": None, "git_dirty": None}


def test_git_returns_the_commit_and_whether_tracked_files_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(variable, os.devnull)

    def command(*words: str) -> str:
        who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        return subprocess.run(["git", *who, *words], check=True, capture_output=True, text=True).stdout.strip()

    tracked = tmp_path / "tracked"
    tracked.write_text("one")
    command("init")
    command("add", "tracked")
    command("commit", "-m", "first")
    (tmp_path / "new").write_text("not tracked")
    assert git() == {"git_commit": command("rev-parse", "HEAD"), "git_dirty": False}
    tracked.write_text("another")
    assert git() == {"git_commit": command("rev-parse", "HEAD"), "git_dirty": True}
