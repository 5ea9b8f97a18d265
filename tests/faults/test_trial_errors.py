"""An error of one trial ends that trial alone; the others end as if it had not happened."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import runner
from runner import cli
from runner.data import synthetic
from runner.runs.directory import RunDirectory
from runner.runs.hashes import Hashes
from runner.runs.saver import Saver
from runner.runs.sinks import jsonl
from runner.runs.sinks.jsonl import JsonLines
from runner.runs.sinks.tensorboard import TensorBoard
from runner.sweep import run as sweeps
from runner.sweep.launcher import ManifestLauncher
from runner.training import build
from runner.training.run_state import RunState
from runner.training.vmapped import VmappedExperiment

LINREG = [
    "+experiment=linreg",
    "device=cpu",
    "device.threads=1",
    "train.steps=20",
    "record.every_steps=5",
    "record.plots=false",
]
MORE = ["checkpoint.every_steps=10", "record.hash_every_steps=10", "train.eval_every_steps=5"]
HIT = 1
"""Number of the trial with the error, of three."""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(path: str) -> Any:
    return json.loads(Path(path).read_text())


def belongs_to_the_trial(thing: Any) -> bool:
    """Return whether a file, a sink or an argument is of the trial that has the error."""
    paths = [value for value in (thing, *getattr(thing, "__dict__", {}).values()) if isinstance(value, Path)]
    return any(str(HIT) in path.parts for path in paths)


def broken(real: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with a bug for one trial."""

    def call(*arguments: Any, **named: Any) -> Any:
        if any(map(belongs_to_the_trial, arguments)):
            raise TypeError("a mistake")
        return real(*arguments, **named)

    return call


PLACES: dict[str, tuple[Any, str]] = {
    "opening metrics.jsonl": (JsonLines, "open"),
    "starting TensorBoard": (TensorBoard, "start"),
    "writing a row": (JsonLines, "write"),
    "flushing rows": (TensorBoard, "flush"),
    "hashing": (Hashes, "write"),
    "saving": (Saver, "save"),
    "the answers": (jsonl, "each_row"),
}


@pytest.fixture(scope="module", params=[[], ["strategy.reduction=exact"]], ids=["vmapped", "one by one"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """Return the arguments of a sweep, and its directory without an error."""
    arguments, directory = [*LINREG, *MORE, *request.param, "seeds=3"], tmp_path_factory.mktemp("whole") / "sweep"
    runner.multirun(None, [*arguments, f"run_dir={directory}"])
    return arguments, directory


@pytest.mark.parametrize("place", PLACES)
def test_a_bug_in_the_records_of_one_trial(
    place: str, whole: tuple[list[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, undisturbed = whole
    where, name = PLACES[place]
    with monkeypatch.context() as patch:
        patch.setattr(where, name, broken(getattr(where, name)))
        runner.multirun(None, [*arguments, "run_dir=sweep"])
    members = read("sweep/sweep.json")["members"]
    assert [member["state"] for member in members] == ["finished", "failed", "finished"]
    assert members[HIT]["reason"] == "TypeError: a mistake"
    record = read(f"sweep/{HIT}/run.json")
    assert (record["status"], record["reason"]) == ("failed", "TypeError: a mistake")
    log = Path(f"sweep/{HIT}/run.log").read_text()
    assert "error: TypeError: a mistake\nTraceback (most recent call last):\n" in log
    for number in (0, 2):
        ended, expected = (read(f"{folder}/{number}/summary.json") for folder in ("sweep", undisturbed))
        assert ended["parameters_sha256"] == expected["parameters_sha256"]
        assert ended["metrics"] == expected["metrics"]


BUILDING: dict[str, tuple[Any, str]] = {
    "the data": (synthetic, "line"),
    "the start values": (build, "start_model"),
    "the parts": (build, "run_info"),
}


@pytest.mark.parametrize(
    ("place", "how"),
    [
        ("the data", "seeds=null"),
        ("the start values", "seeds=null"),
        ("the start values", "hydra/launcher=basic"),
        ("the parts", "strategy.reduction=exact"),
        ("the parts", "hydra/launcher=basic"),
    ],
)
def test_a_bug_while_one_trial_is_built(place: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, name = BUILDING[place]
    real = getattr(where, name)

    def broken(config: Any, *arguments: Any, **named: Any) -> Any:
        if getattr(config, "data", config).slope == HIT:
            raise TypeError("a mistake")
        return real(config, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(where, name, broken)
        cli.main(["-m", *LINREG, how, "data.slope=0,1,2", "run_dir=sweep"])
    members = read("sweep/sweep.json")["members"]
    assert [member["state"] for member in members] == ["finished", "failed", "finished"]
    assert members[HIT]["reason"] == "TypeError: a mistake"
    record = read(f"sweep/{HIT}/run.json")
    assert (record["status"], record["reason"], record["world_size"]) == ("failed", "TypeError: a mistake", 1)
    log = Path(f"sweep/{HIT}/run.log").read_text()
    assert "error: TypeError: a mistake\nTraceback (most recent call last):\n" in log
    assert cli.main(["-m", "resume=sweep"]) == 0
    assert {member["state"] for member in read("sweep/sweep.json")["members"]} == {"finished"}


def test_a_directory_that_cannot_be_made_ends_one_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    real = RunDirectory.create

    def create(name: str, run_dir: str | None, *arguments: Any, **named: Any) -> RunDirectory:
        if str(run_dir).endswith(f"/{HIT}"):
            raise OSError(28, "No space left on device", run_dir)
        return real(name, run_dir, *arguments, **named)

    monkeypatch.setattr(RunDirectory, "create", staticmethod(create))
    _, results = runner.multirun(None, [*LINREG, "seeds=3", "run_dir=sweep"])
    assert [member.state for member in results.members] == ["finished", "failed", "finished"]
    assert "the disk is full" in str(results.members[HIT].reason)


def test_a_bug_in_a_decision_ends_one_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    real, runs = RunState.update_early_stopping, list[RunState]()

    def decide(self: RunState, metrics: Any, step: int) -> None:
        if self not in runs:
            runs.append(self)
        if runs.index(self) == HIT:
            raise ZeroDivisionError("division by zero")
        real(self, metrics, step)

    monkeypatch.setattr(RunState, "update_early_stopping", decide)
    _, results = runner.multirun(None, [*LINREG, *MORE, "seeds=3", "run_dir=sweep"])
    assert [member.state for member in results.members] == ["finished", "failed", "finished"]
    assert results.members[HIT].reason == "ZeroDivisionError: division by zero"


def test_a_bug_in_the_outcome_of_one_lane_ends_one_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    real = VmappedExperiment.outcomes

    def outcomes(self: VmappedExperiment, lanes: Any) -> Any:
        if HIT in lanes:
            raise IndexError("too far")
        return real(self, lanes)

    monkeypatch.setattr(VmappedExperiment, "outcomes", outcomes)
    _, results = runner.multirun(None, [*LINREG, "seeds=3", "run_dir=sweep"])
    assert [member.state for member in results.members] == ["finished", "failed", "finished"]
    assert results.members[HIT].reason == "IndexError: too far"


def test_an_error_of_a_launcher_of_others_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Foreign:
        def launch(self, *_: Any) -> Any:
            raise ValueError("a setting\nof mine")

    monkeypatch.setattr(sweeps, "with_manifest", lambda launcher, directory: ManifestLauncher(Foreign(), directory))
    assert cli.main(["-m", *LINREG, "seed=0,1", "hydra/launcher=basic", "run_dir=sweep"]) == 1
    assert capsys.readouterr().err == (
        "error: Foreign could not run the trials: ValueError: a setting of mine; check its settings, hydra.launcher.*, "
        "or use hydra/launcher=vmap\n"
    )
    assert read("sweep/sweep.json")["status"] == "failed"


# ------------------------------------------------------------------------------------------------ metrics without a value


EARLY = ["train.early_stopping.patience=2", "train.eval_every_steps=5", "data.split.valid=1", "train.select=last"]


@pytest.mark.parametrize("key", ["train.early_stopping.metric", "checkpoint.metric"])
def test_r2_of_one_row_is_refused_before_training(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*LINREG, *EARLY, f"{key}=r2"]) == 2
    reason = f"`{key}` must not be r2 with one validation row, because it has no value there; use {key}=rmse"
    assert capsys.readouterr().err == f"error: {reason}\n"
    assert not Path("runs").exists()
    assert cli.main([*LINREG, *EARLY, f"{key}=rmse", "run_dir=run"]) == 0


def test_r2_of_equal_targets_is_refused_before_training(capsys: pytest.CaptureFixture[str]) -> None:
    Path("flat.csv").write_text("x,y\n" + "".join(f"{x},0.1\n" for x in range(9)))
    arguments = [
        "data=csv",
        "data.path=flat.csv",
        "data.target=y",
        "device=cpu",
        "train.steps=5",
        "checkpoint.metric=r2",
    ]
    assert cli.main([*arguments, "data.split.test=2"]) == 2
    assert "must not be r2 with 7 training rows whose targets are all equal" in capsys.readouterr().err


def test_only_the_trials_whose_metric_has_no_value_fail() -> None:
    swept = [*EARLY[:2], "data.split.valid=1,5", "train.early_stopping.metric=r2"]
    _, results = runner.multirun(None, [*LINREG, *swept, "run_dir=sweep"])
    assert [member.state for member in results.members] == ["failed", "finished"]
    assert "must not be r2 with one validation row" in str(results.members[0].reason)
