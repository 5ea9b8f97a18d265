"""A sweep from its words to its end: what is refused before anything starts, what survives a signal or a kill, what it leaves."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import runner
from runner import cli
from runner.record.jsonl import read_rows

SMALL = ["data=line", "data.rows=30", "data.standardize=true", "device=cpu", "train.steps=20", "optimizer.lr=0.1"]
LONG = [
    "data=line", "data.rows=30", "data.standardize=true", "device=cpu", "model=mlp", "model.widths=[4]", "train.batch_size=8",
    "train.steps=1500", "checkpoint.every_steps=100", "record.every_steps=100", "optimizer.lr=0.01,0.02", "seed=range(0,4)",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def manifest(directory: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(directory) / "sweep.json").read_text())
    return found


def states(directory: str) -> list[str]:
    return [member["state"] for member in manifest(directory)["members"]]


def answer(run: Path) -> tuple[str, Any, list[dict[str, Any]]]:
    """Hash, metrics and rows of a run."""
    summary = json.loads((run / "summary.json").read_text())
    rows = [{k: v for k, v in row.items() if k != "samples_per_second"} for row in read_rows(run / "metrics.jsonl")]
    return summary["parameters_sha256"], summary["metrics"], rows


# ---------------------------------------------------------------------------------------------- refused before it starts


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["optimizer.lrr=1,2"], "`optimizer.lrr` is not a key; did you mean `optimizer.lr`?"),
        ([f"optimizer.lr={','.join(['0.1'] * 3 + ['-1'])}", "seed=1,2"], "trial 2 and 1 more: `optimizer.lr` must be a finite number of at least 0"),
        (["seed=range(0,5)", "data.seed=range(0,5)", "sweep.max_trials=20"], "`sweep.max_trials` must be at least the number of trials, but is 20 where these values make 5 x 5 = 25"),
        (["optimizer.lr=interval(0,1)"], "`optimizer.lr` must be a list of values for a grid, but is interval(0,1)"),
        (["seed=1,2", "seeds=4"], "`seeds` is short for a range of `seed`, which is swept as well; leave one of them out"),
        (["seeds=0"], "`seeds` must be an integer of at least 1, but is 0"),
        (["strategy=fsdp", "seed=1,2"], "`strategy`=fsdp must have at least 2 processes"),
        (["resume=nowhere"], "`resume` must be a sweep directory with -m, but 'nowhere' has no sweep.json"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused_whole(
    words: Sequence[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = list(words) if words[0].startswith("resume") else [*SMALL[:-1], *words]
    assert cli.main(["-m", *given]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(Path().glob("runs/*/*"))


def test_trial_317_of_512_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    rates = [f"{1 + i}e-3" for i in range(512)]
    rates[317] = "-3"
    assert cli.main(["-m", *SMALL[:-1], f"optimizer.lr={','.join(rates)}"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert line.startswith("error: trial 317: `optimizer.lr` must be a finite number of at least 0")


# --------------------------------------------------------------------------------------------------------- what it leaves


def test_results_seeds_and_audit() -> None:
    directory, results = runner.multirun(
        None, [*SMALL[:-1], "optimizer.lr=0.1,1e30", "seeds=3", "sweep.audit=2", "run_dir=s"]
    )
    assert [member.values for member in results.members] == [
        {"optimizer.lr": lr, "seed": seed} for lr in (0.1, 1e30) for seed in range(3)
    ]
    assert states("s") == ["finished"] * 3 + ["failed"] * 3
    assert "training diverged at step" in manifest("s")["members"][3]["reason"]
    with (directory / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    for number in range(3):
        summary = json.loads((directory / str(number) / "summary.json").read_text())
        assert float(rows[number]["train/rmse"]) == summary["metrics"]["train/rmse"]
        alone = runner.run(None, [*SMALL[:-1], "optimizer.lr=0.1", f"seed={number}", "record.plots=false"])
        assert alone.summary["parameters_sha256"] == summary["parameters_sha256"]
    assert manifest("s")["audit"]["largest_difference"] == 0.0
    assert len(manifest("s")["audit"]["members"]) == 2
    assert (directory / "plots" / "optimizer.lr.png").is_file()


def test_trials_are_split_where_memory_ends(capsys: pytest.CaptureFixture[str]) -> None:
    directory, results = runner.multirun(None, [*SMALL, "seeds=6", "sweep.memory_gib=1e-5", "run_dir=s"])
    lanes = [json.loads((directory / str(n) / "run.json").read_text())["lanes"] for n in range(6)]
    assert 1 < max(lanes) < 6
    assert all(member.state == "finished" for member in results.members)


def test_what_must_be_trained_alone_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    runner.multirun(None, [*SMALL, "model=mlp", "model.dropout=0.5", "seeds=2", "run_dir=s"])
    told = capsys.readouterr().out
    assert "trial 0 and others like it are trained alone: dropout draws from one stream" in told
    assert states("s") == ["finished", "finished"]


# ------------------------------------------------------------------------------------------------------ stopped and killed


def started(run_dir: str) -> subprocess.Popen[str]:
    """A sweep in a process of its own, that has saved a checkpoint of every trial."""
    command = [sys.executable, "-m", "runner", "-m", *LONG, f"run_dir={run_dir}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 60
    while not (Path(run_dir) / "7" / "checkpoints" / "last").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
    return process


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep that nothing disturbed."""
    directory = tmp_path_factory.mktemp("sweep") / "whole"
    return runner.multirun(None, [*LONG, f"run_dir={directory}"])[0]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_sweep_goes_on_as_if_it_had_never_stopped(number: signal.Signals, code: int, whole: Path) -> None:
    process = started("stopped")
    process.send_signal(number)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == code, told
    if number == signal.SIGINT:
        assert "go on with: python -m runner -m resume=stopped" in told
        assert manifest("stopped")["status"] == "interrupted"
        assert states("stopped") == ["interrupted"] * 8
    assert cli.main(["-m", "resume=stopped"]) == 0
    assert states("stopped") == ["finished"] * 8
    for trial in range(8):
        assert answer(Path("stopped") / str(trial)) == answer(whole / str(trial))
        assert json.loads((Path("stopped") / str(trial) / "run.json").read_text())["resumed"] == 1


def test_only_what_is_missing_or_failed_is_run_again() -> None:
    words = [*SMALL[:-1], "optimizer.lr=0.1,0.2,1e30", "run_dir=s"]
    runner.multirun(None, words)
    before = {n: (Path("s") / str(n) / "run.json").read_text() for n in range(3)}
    found = manifest("s")
    found["members"][1]["state"] = "running"  # as after a kill between its files and the manifest
    (Path("s") / "sweep.json").write_text(json.dumps(found))
    assert cli.main(["-m", "resume=s"]) == 1
    after = {n: (Path("s") / str(n) / "run.json").read_text() for n in range(3)}
    assert [after[n] == before[n] for n in range(3)] == [True, True, False]
    assert states("s") == ["finished", "finished", "failed"]


def test_two_at_once_and_other_words_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    from runner.directory import lock, unlock

    runner.multirun(None, [*SMALL, "seeds=2", "run_dir=s"])
    held = lock(Path("s"))
    assert cli.main(["-m", "resume=s"]) == 2
    assert "s must not be in use, but another process is writing to it" in capsys.readouterr().err
    unlock(held)
    assert cli.main(["-m", "resume=s", "seed=3"]) == 2
    assert "`seed` cannot be changed when a sweep is resumed" in capsys.readouterr().err
    assert cli.main(["-m", "resume=s/0"]) == 2
    assert "'s/0' has no sweep.json" in capsys.readouterr().err
    assert cli.main(["-m", *SMALL, "seeds=2", "run_dir=s"]) == 2
    assert "`run_dir` must be" in capsys.readouterr().err
