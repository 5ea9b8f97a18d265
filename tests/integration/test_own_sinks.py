"""Entries of `record.sinks` that are classes from a package of the user's own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from my_lab import sinks

import runner
from runner import cli

QUICK = [
    "device=cpu", "device.threads=1", "data.rows=20", "record.plots=false", "record.residuals=false", "record.baselines=[]",
    "train.steps=10", "record.every_steps=1", "checkpoint.every_steps=5", "optimizer.lr=1e-3",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RUNNER_TRUST", "my_lab")


def own(name: str) -> str:
    return f"record.sinks=[jsonl, my_lab.sinks:{name}]"


def calls(run: Path) -> list[list[Any]]:
    found: list[list[Any]] = json.loads((run / "notebook.json").read_text())
    return found


def test_a_sink_gets_every_row_and_a_resumed_run_sends_those_after_its_checkpoint_again() -> None:
    run = runner.run(None, [*QUICK, own("Notebook"), "train.steps=5"])
    first = [["start", "run"], *(["write", step] for step in range(1, 6)), ["flush", None], ["finish", ["finished", 5]]]
    assert calls(run.directory) == first
    assert [row["step"] for row in run.rows] == [1, 2, 3, 4, 5]
    assert [*json.loads((run.directory / "run.json").read_text())["code"]] == ["my_lab.sinks:Notebook"]
    runner.run(None, [f"resume={run.directory}", "train.steps=6"])
    assert calls(run.directory) == [
        *first,
        ["start", "run"],
        ["write", 6],
        ["flush", None],
        ["finish", ["finished", 6]],
    ]


def test_every_trial_of_a_sweep_has_its_own() -> None:
    directory, _ = runner.multirun(None, [*QUICK, own("Notebook"), "seeds=2"])
    for trial in ("0", "1"):
        assert calls(directory / trial)[-1] == ["finish", ["finished", 10]]


def test_an_error_ends_the_run_which_goes_on_from_its_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*QUICK, own("Offline"), "run_dir=r"]) == 1
    message = capsys.readouterr().err
    assert f"`record.sinks`=my_lab.sinks:Offline: write failed in {sinks.__file__}, line " in message
    assert (
        ", in write: ConnectionError: no network; correct it, or leave it out of `record.sinks`, and resume" in message
    )
    record = json.loads(Path("r/run.json").read_text())
    assert record["status"] == "failed"
    assert "no network" in record["reason"]
    assert Path("r/checkpoints/last").resolve().name == "step_5"
    resumed = runner.run(None, ["resume=r", "record.sinks=[jsonl]"])
    whole = runner.run(None, [*QUICK, "record.sinks=[jsonl]"])
    assert resumed.summary["parameters_sha256"] == whole.summary["parameters_sha256"]
    assert [row["step"] for row in resumed.rows] == [*range(1, 11)]


def test_an_error_of_one_trial_ends_that_trial_alone() -> None:
    _, results = runner.multirun(None, [*QUICK, "record.sinks=[jsonl],[jsonl, my_lab.sinks:Offline]"])
    assert [member.state for member in results.members] == ["finished", "failed"]


def test_an_error_at_the_end_is_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*QUICK, own("Late"), "run_dir=r"]) == 0
    printed = capsys.readouterr().out
    assert (
        "the results are complete, but not the end of UsersSink: `record.sinks`=my_lab.sinks:Late: finish failed"
        in printed
    )
    assert ", in finish: ValueError: too late" in printed
    assert json.loads(Path("r/run.json").read_text())["status"] == "finished"


def test_an_error_at_the_start_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*QUICK, own("NoStart")]) == 1
    assert ", in start: KeyError: 'token'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            "my_lab.sinks:Half",
            "must be a class with start, write, flush and finish, got one without start, finish; add",
        ),
        ("my_lab.sinks:Needy", "must be built without arguments, but requires url, token; give it a default, or read"),
        ("my_lab.sinks:Broken", ", in __init__: RuntimeError: no token"),
        ("my_lab.sinks:Notebok", "did you mean my_lab.sinks:Notebook?"),
        ("my_lab.sinks.Notebook", "got 'my_lab.sinks.Notebook'; write my_lab.sinks:Notebook"),
        ("my_lab.sinks:Late, my_lab.sinks:Late", "`record.sinks` must not repeat an entry"),
        ("jsonlines", "`record.sinks` must be a list of jsonl, tensorboard, got jsonlines; did you mean jsonl?"),
    ],
)
def test_what_is_no_sink_is_refused_and_leaves_no_run(entries: str, message: str) -> None:
    with pytest.raises(runner.ConfigError, match=re.escape(message)):
        runner.run(None, [*QUICK, f"record.sinks=[jsonl, {entries}]"])
    assert not Path("runs").exists()


def test_the_package_must_be_trusted_also_by_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    run = runner.run(None, [*QUICK, own("Notebook"), "train.steps=1"])
    monkeypatch.delenv("RUNNER_TRUST")
    for arguments in ([*QUICK, own("Notebook")], [f"resume={run.directory}", "train.steps=2"]):
        with pytest.raises(runner.ConfigError, match="would be run; add --trust my_lab"):
            runner.run(None, arguments)
    assert runner.load(run.directory)
