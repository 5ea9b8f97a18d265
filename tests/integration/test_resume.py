"""A run that was stopped, killed or extended, and resumed, ends as one that was never stopped."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import faults
import runner
from runner.runs.sinks.jsonl import read_rows
from runner.training.metrics import Evaluation

# Everything with a state: shuffled batches with a smaller last one (46 rows in batches of 16), dropout, accumulation,
# clipping, a schedule, and early stopping that counts but does not stop the run.
EVERYTHING = [
    "name=all", "data=line", "data.rows=58", "data.features=3", "data.standardize=true", "data.split.valid=12",
    "model=mlp", "model.widths=[8]", "model.dropout=0.2", "schedule=cosine", "train.steps=30", "train.batch_size=16",
    "train.accumulate=2", "train.clip_norm=1.0", "train.eval_every_steps=10", "train.early_stopping.patience=100",
    "record.every_steps=7", "record.plots=false", "checkpoint.every_steps=4", "device=cpu", "device.threads=1",
]  # fmt: skip
PER_EPOCH = 3
UPDATES = [("sgd", "manual"), ("sgd", "optimizer"), ("momentum", "manual"), ("momentum", "optimizer"), ("adam", "manual"), ("adam", "optimizer"), ("adamw", "manual"), ("adamw", "optimizer"), ("lbfgs", "optimizer")]  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def choice(optimizer: str, update: str) -> list[str]:
    clipped = optimizer != "lbfgs"
    allowed = [override for override in EVERYTHING if clipped or not override.startswith("train.clip")]
    return [*allowed, f"optimizer={optimizer}", f"update={update}", "optimizer.lr=0.01"]


def rows(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "samples_per_second"} for row in read_rows(run / "metrics.jsonl")]


def events(run: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = EventAccumulator(str(run))
    accumulator.Reload()
    tags = [tag for tag in accumulator.Tags()["scalars"] if tag != "samples_per_second"]
    return {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in tags}


def assert_same(one: Path, other: Path) -> None:
    """Assert equal parameters to the bit, rows, events and best checkpoints."""
    first, second = (json.loads((run / "summary.json").read_text()) for run in (one, other))
    assert first["parameters_sha256"] == second["parameters_sha256"]
    assert first["metrics"] == second["metrics"]
    assert rows(one) == rows(other)
    assert events(one) == events(other)
    assert os.readlink(one / "checkpoints/best") == os.readlink(other / "checkpoints/best")


def stopped(overrides: Sequence[str], step: int, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGTERM) -> Path:
    """Run until a signal arrives at `step`. Returns the directory of the run."""
    with monkeypatch.context() as patch:
        fired = faults.at_step(patch, step, lambda: os.kill(os.getpid(), number))
        with pytest.raises(runner.Interrupted) as stop:
            runner.run(None, [*overrides, "run_dir=stopped"])
    assert fired == [step]
    assert stop.value.exit_code == 128 + number
    assert f"stopped after step {step}; the state is saved" in str(stop.value)
    record = json.loads(Path("stopped/run.json").read_text())
    assert record["status"] == "interrupted"
    assert record["reason"] == str(stop.value)
    return Path("stopped")


@pytest.mark.parametrize(("optimizer", "update"), UPDATES)
def test_every_optimizer_resumes_to_the_bit(optimizer: str, update: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = runner.run(None, [*choice(optimizer, update), "run_dir=whole"])
    run = stopped(choice(optimizer, update), 17, monkeypatch)
    runner.run(None, [f"resume={run}"])
    assert_same(whole.directory, run)
    assert json.loads((run / "run.json").read_text())["resumed"] == 1


@pytest.mark.parametrize("step", [1, PER_EPOCH - 1, PER_EPOCH, PER_EPOCH + 1, 10, 29])
def test_a_run_is_stopped_at_any_step(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step, the last batch of an epoch and its neighbours, a step with an evaluation, and the last step but one."""
    whole = runner.run(None, [*choice("adam", "optimizer"), "run_dir=whole"])
    run = stopped(choice("adam", "optimizer"), step, monkeypatch, signal.SIGINT)
    runner.run(None, [f"resume={run}"])
    assert_same(whole.directory, run)


def test_a_run_is_stopped_several_times(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = runner.run(None, [*choice("adamw", "manual"), "run_dir=whole"])
    run = stopped(choice("adamw", "manual"), 5, monkeypatch)
    for step in (6, 13, 14, 27):
        with monkeypatch.context() as patch:
            faults.at_step(patch, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
            with pytest.raises(runner.Interrupted):
                runner.run(None, [f"resume={run}"])
    runner.run(None, [f"resume={run}"])
    assert_same(whole.directory, run)
    assert json.loads((run / "run.json").read_text())["resumed"] == 5


@pytest.mark.parametrize("step", [1, 4, 5, 16, 30])
def test_a_run_is_killed(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL loses the steps since the last checkpoint; before the first checkpoint, the run starts again."""
    overrides = choice("momentum", "optimizer")
    whole = runner.run(None, [*overrides, "run_dir=whole"])
    with monkeypatch.context() as patch:
        faults.at_step(patch, step, lambda: os.kill(os.getpid(), signal.SIGKILL))
        assert os.WTERMSIG(faults.in_child(lambda: runner.run(None, [*overrides, "run_dir=killed"]))) == signal.SIGKILL
    run = Path("killed")
    assert json.loads((run / "run.json").read_text())["status"] == "running"
    runner.run(None, [f"resume={run}"])
    assert_same(whole.directory, run)


def test_a_run_is_killed_during_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = choice("adam", "optimizer")
    whole = runner.run(None, [*overrides, "run_dir=whole"])

    def die(self: Evaluation, part: str) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "metrics", die)
        assert os.WTERMSIG(faults.in_child(lambda: runner.run(None, [*overrides, "run_dir=killed"]))) == signal.SIGKILL
    runner.run(None, ["resume=killed"])
    assert_same(whole.directory, Path("killed"))


def test_a_finished_run_is_extended() -> None:
    """23 steps, then 30, end as 30 at once, if the schedule does not depend on the number of steps."""
    overrides = [override for override in choice("adam", "optimizer") if override != "schedule=cosine"]
    whole = runner.run(None, [*overrides, "run_dir=whole"])
    runner.run(None, [*overrides, "train.steps=23", "run_dir=extended"])
    runner.run(None, ["resume=extended", "train.steps=30"])
    assert_same(whole.directory, Path("extended"))
    assert "steps: 30" in Path("extended/config.yaml").read_text()


def test_a_finished_run_has_nothing_left_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    first = runner.run(None, [*choice("sgd", "manual"), "run_dir=done"])
    before = {path: path.read_bytes() for path in Path("done").rglob("*") if path.is_file()}
    again = runner.run(None, ["resume=done"])
    assert "done is finished at step 30; there is nothing left to do" in capsys.readouterr().out
    assert again.summary == first.summary
    assert before == {path: path.read_bytes() for path in Path("done").rglob("*") if path.is_file()}


def test_a_new_number_of_steps_with_a_cosine_schedule_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    runner.run(None, [*choice("sgd", "manual"), "run_dir=done"])
    runner.run(None, ["resume=done", "train.steps=33"])
    assert "a new number of steps changes the cosine schedule" in capsys.readouterr().out


def test_overrides_that_would_be_another_experiment_are_refused() -> None:
    runner.run(None, [*choice("sgd", "manual"), "run_dir=done"])
    with pytest.raises(runner.ConfigError) as refused:
        runner.run(None, ["resume=done", "optimizer.lr=0.5", "model=linear", "train.steps=40"])
    assert [problem.split(" when ")[0] for problem in refused.value.problems] == [
        "`model` must not change",
        "`optimizer.lr` must not change",
    ]


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("dropout: 0.2", "dropout: 0.3", "`model.dropout` must be 0.2 as in step_30, got 0.3"),
        ("seed: 0", "seed: 1", "`seed` must be 0 as in step_30, got 1"),
        ("dtype: float32", "dtype: float64", "`dtype` must be float32 as in step_30, got float64"),
        ("- 8", "- 9", "`model.widths` must be [8] as in step_30, got [9]"),
    ],
)
def test_a_checkpoint_of_another_experiment_is_refused(old: str, new: str, key: str) -> None:
    runner.run(None, [*choice("sgd", "manual"), "run_dir=done"])
    config = Path("done/config.yaml")
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new, 1))
    with pytest.raises(runner.CheckpointError) as refused:
        runner.run(None, ["resume=done", "train.steps=40"])
    assert key in str(refused.value)
    assert json.loads(Path("done/run.json").read_text())["status"] == "finished"


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = runner.run(None, [*choice("adam", "optimizer"), "run_dir=whole"])
    run = stopped(choice("adam", "optimizer"), 17, monkeypatch)
    state = run / "checkpoints/step_17/state.pt"
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.write_bytes(data)
    runner.run(None, [f"resume={run}"])
    assert "step_17` is not used: state.pt does not match its SHA-256" in capsys.readouterr().out
    assert_same(whole.directory, run)


def test_a_directory_in_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    run, process = stopped(choice("sgd", "manual"), 5, monkeypatch), os.getpid()

    def other() -> None:
        with pytest.raises(
            runner.CheckpointError,
            match=f"stopped must not be in use, but process {process} on .* is writing to it",
        ):
            runner.run(None, [f"resume={run}"])
        os._exit(0)

    refused: list[int] = []
    faults.at_step(monkeypatch, 9, lambda: refused.append(faults.in_child(other)))
    runner.run(None, [f"resume={run}"])
    assert refused == [0]


@pytest.mark.parametrize(
    ("prepare", "text"),
    [
        (lambda: None, "`resume` must be a run directory, got 'gone', which is not a directory"),
        (lambda: Path("gone").mkdir(), "got 'gone', which has no config.yaml"),
        (lambda: Path("gone").write_text(""), "got 'gone', which is not a directory"),
    ],
)
def test_a_missing_run_cannot_be_resumed(prepare: Any, text: str) -> None:
    prepare()
    with pytest.raises(runner.CheckpointError) as refused:
        runner.run(None, ["resume=gone"])
    assert text in str(refused.value)


def test_the_state_is_plain_and_complete() -> None:
    run = runner.run(None, [*choice("adam", "optimizer"), "run_dir=done"]).directory
    state = torch.load(run / "checkpoints/last/state.pt", weights_only=True)
    assert state["step"] == 30
    assert {"model", "optimizer", "scaler", "early_stopping", "best", "config", "scaling"} <= state.keys()
    assert set(state["optimizer"]) == set(state["model"])
    kept = {"step_24", "step_28", "step_30", os.readlink(run / "checkpoints/best")}  # the newest three, and the best
    assert {path.name for path in (run / "checkpoints").iterdir()} == kept | {"best", "last"}


def test_a_run_is_killed_between_the_last_checkpoint_and_the_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 30 has a row only because it is the last step; a resumed run must keep it."""
    overrides = choice("adam", "manual")
    whole = runner.run(None, [*overrides, "run_dir=whole"])

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr("runner.training.run_state.parameters_sha256", die)
        assert os.WTERMSIG(faults.in_child(lambda: runner.run(None, [*overrides, "run_dir=killed"]))) == signal.SIGKILL
    assert not Path("killed/summary.json").exists()
    runner.run(None, ["resume=killed"])
    assert_same(whole.directory, Path("killed"))
