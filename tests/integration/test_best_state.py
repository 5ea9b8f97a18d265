"""The best state is that of the best evaluation, whenever checkpoints are due, and survives kills and sweeps to the bit."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import faults
import runner
from runner.runs.hashes import parameters_sha256
from runner.runs.sinks.jsonl import read_rows

# Its validation loss is smallest at step 42, between the checkpoints of steps 40 and 60.
BEST = 42
RUN = [
    "name=best", "data=line", "data.rows=40", "data.features=3", "data.noise=2", "data.standardize=true", "data.split.valid=12",
    "model=mlp", "model.widths=[16]", "optimizer=adam", "optimizer.lr=0.05", "train.steps=60", "train.batch_size=8",
    "train.eval_every_steps=3", "checkpoint.every_steps=20", "record.every_steps=30", "record.hash_every_steps=1",
    "record.plots=false", "device=cpu", "device.threads=1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def evaluations(run: Path, metric: str = "valid/loss") -> dict[int, float]:
    return {row["step"]: row[metric] for row in read_rows(run / "metrics.jsonl") if metric in row}


def state(run: Path, name: str = "best") -> dict[str, Any]:
    found: dict[str, Any] = torch.load(run / "checkpoints" / name / "state.pt", weights_only=True)
    return found


def sha256(run: Path, name: str = "best") -> str:
    return parameters_sha256(state(run, name)["model"])


def rolling(run: Path) -> list[str]:
    """Return the rolling hash of each step from 0 on."""
    return [json.loads(line)["rolling"] for line in (run / "hashes.jsonl").read_text().splitlines()]


def steps(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").iterdir() if not path.is_symlink()}


def test_the_best_state_is_that_of_the_best_evaluation() -> None:
    run = runner.run(None, [*RUN, "run_dir=run"]).directory
    found = evaluations(run)
    assert min(found, key=lambda step: found[step]) == BEST
    assert (os.readlink(run / "checkpoints/best"), os.readlink(run / "checkpoints/last")) == ("step_42", "step_60")
    assert steps(run) == {"step_40", "step_42", "step_60"}
    saved = state(run)
    assert (saved["step"], saved["best"]["step"], saved["best"]["value"]) == (BEST, BEST, found[BEST])
    hashes = rolling(run)
    assert hashlib.sha256((hashes[BEST - 1] + sha256(run)).encode()).hexdigest() == hashes[BEST]


def test_the_best_state_is_a_checkpoint_like_any_other() -> None:
    """A run goes on from it as it did before."""
    run = runner.run(None, [*RUN, "run_dir=run"])
    for name in ("last", "step_60"):
        path = run.directory / "checkpoints" / name
        path.unlink() if path.is_symlink() else (path / "state.pt").unlink()
    again = runner.run(None, ["resume=run"])
    assert again.summary["parameters_sha256"] == run.summary["parameters_sha256"]
    assert os.readlink("run/checkpoints/best") == "step_42"


@pytest.mark.parametrize("metric", ["r2", "mae"])
def test_the_metric_of_early_stopping_says_what_is_best(metric: str) -> None:
    run = runner.run(None, [*RUN, f"train.early_stopping.metric={metric}", "run_dir=run"]).directory
    found = evaluations(run, f"valid/{metric}")
    best = (max if metric == "r2" else min)(found, key=lambda step: found[step])
    assert os.readlink(run / "checkpoints/best") == f"step_{best}"


def test_evaluations_and_not_checkpoints_say_what_is_best() -> None:
    """Without evaluations before the end, the last state is the best."""
    run = runner.run(None, [*RUN, "train.eval_every_steps=null", "checkpoint.every_steps=1", "run_dir=run"])
    assert os.readlink(run.directory / "checkpoints/best") == "step_60"


def test_the_end_is_an_evaluation() -> None:
    run = runner.run(None, [*RUN, "train.steps=7", "train.eval_every_steps=5", "run_dir=run"])
    assert evaluations(run.directory)[5] > run.summary["metrics"]["valid/loss"]
    assert os.readlink(run.directory / "checkpoints/best") == "step_7"


def test_a_run_without_a_finite_evaluation_has_no_best_state(monkeypatch: pytest.MonkeyPatch) -> None:
    real = runner.training.metrics.Evaluation.metrics

    def metrics(self: Any, part: str) -> Any:
        return [{**lane, "loss": math.nan} for lane in real(self, part)]

    monkeypatch.setattr(runner.training.metrics.Evaluation, "metrics", metrics)
    run = runner.run(None, [*RUN, "train.steps=7", "run_dir=run"]).directory
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"last", "step_7"}


# ---------------------------------------------------------------------------------------------------- kills and signals


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return runner.run(None, [*RUN, "run_dir=whole"]).directory


def assert_same_best(one: Path, other: Path) -> None:
    assert os.readlink(one / "checkpoints/best") == os.readlink(other / "checkpoints/best")
    assert sha256(one) == sha256(other)
    assert state(one)["best"] == state(other)["best"]
    assert sha256(one, "last") == sha256(other, "last")


@pytest.mark.parametrize("step", [BEST - 1, BEST, BEST + 1, 59])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_best_state_survives_a_kill(step: int, number: int, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        faults.at_step(patch, step, lambda: os.kill(os.getpid(), number))
        faults.in_child(lambda: runner.run(None, [*RUN, "run_dir=killed"]))
    runner.run(None, ["resume=killed"])
    assert_same_best(whole, Path("killed"))


@pytest.mark.parametrize("step", ["step_42", "step_60"])
def test_the_best_state_survives_a_kill_while_it_is_saved(
    step: str, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best state is saved before the checkpoint that is due, which then is the last one."""
    from runner.runs import checkpoint

    real = checkpoint.draft

    def draft(folder: Path, number: int) -> Path:
        if f"step_{number}" == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(folder, number)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "draft", draft)
        assert os.WTERMSIG(faults.in_child(lambda: runner.run(None, [*RUN, "run_dir=killed"]))) == signal.SIGKILL
    assert os.readlink("killed/checkpoints/last") == {"step_42": "step_40", "step_60": "step_42"}[step]
    runner.run(None, ["resume=killed"])
    assert_same_best(whole, Path("killed"))


def test_a_run_that_diverges_keeps_its_best_state() -> None:
    """The best evaluation is at step 3; the learning rate then lets the loss grow until it is not finite."""
    linear = ["data=line", "data.rows=20", "data.split.valid=5", "optimizer.lr=1", "train.steps=2000", "device=cpu"]
    options = ["train.eval_every_steps=3", "record.plots=false", "run_dir=run"]
    with pytest.raises(runner.RunFailed):
        runner.run(None, [*linear, *options])
    found = evaluations(Path("run"))
    best = min(found, key=lambda step: found[step])
    assert os.readlink("run/checkpoints/best") == f"step_{best}"
    assert os.readlink("run/checkpoints/last") != f"step_{best}"


# ---------------------------------------------------------------------------------------------------------------- sweeps


def test_each_lane_of_a_sweep_keeps_its_own_best_state() -> None:
    """Lanes end at different steps, so that the program becomes smaller in between."""
    patience = "train.early_stopping.patience=1,3,5,7"
    directory, _ = runner.multirun(None, [*RUN, patience, "optimizer.lr=0.05,0.02", "run_dir=sweep"])
    best = set()
    for member in sorted(directory.glob("[0-9]*")):
        found = evaluations(member)
        name = os.readlink(member / "checkpoints/best")
        assert name == f"step_{min(found, key=lambda step: found[step])}"
        best.add(name)
        hashes, step = rolling(member), int(name.removeprefix("step_"))
        assert hashlib.sha256((hashes[step - 1] + sha256(member)).encode()).hexdigest() == hashes[step]
    assert len(best) > 1
