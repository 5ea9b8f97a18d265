"""The best state is that of the best evaluation, whenever checkpoints are due, and survives kills and sweeps to the bit.

It is what a run reports with early stopping, or with `train.select=best`.
"""

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


def test_an_older_metric_of_checkpoints_is_that_of_the_link_alone() -> None:
    """Runs of older versions may name one. It does not choose what is reported."""
    named = [*RUN, "checkpoint.metric=mae", "run_dir=run"]
    found = runner.run(None, [*named, "train.early_stopping.patience=9", "train.select=last"]).summary
    assert os.readlink("run/checkpoints/best") == "step_51"
    assert found["selected"]["step"] == found["steps"] == 60
    again = runner.run(None, ["resume=run", "checkpoint.metric=null", "train.select=best"]).summary
    assert again["selected"]["step"] == 60  # the best loss is not known any more


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


# ------------------------------------------------------------------------------------------------------- what is reported


@pytest.fixture
def stopped_at_best() -> dict[str, Any]:
    """A run that ends at the best step of the others: its last state is their best one."""
    return runner.run(None, [*RUN, f"train.steps={BEST}", "run_dir=stopped"]).summary


def test_the_best_state_is_reported(stopped_at_best: dict[str, Any]) -> None:
    last = runner.run(None, [*RUN, "run_dir=last"]).summary
    best = runner.run(None, [*RUN, "train.select=best", "run_dir=best"]).summary
    assert (best["steps"], best["metrics"], best["parameters_sha256"]) == (
        60,
        last["metrics"],
        last["parameters_sha256"],
    )
    assert best["selected"] == {name: stopped_at_best["selected"][name] for name in best["selected"]}
    assert best["selected"]["step"] == BEST
    assert best["selected"]["metrics"]["valid/loss"] == min(evaluations(Path("best")).values())
    assert best["parameters"] == stopped_at_best["parameters"] != last["parameters"]
    assert Path("best/residuals.csv").read_bytes() == Path("stopped/residuals.csv").read_bytes()


def test_the_last_state_is_reported_without_early_stopping() -> None:
    found = runner.run(None, [*RUN, "run_dir=run"]).summary
    last = {"step": found["steps"], "metrics": found["metrics"], "parameters_sha256": found["parameters_sha256"]}
    assert found["selected"] == last
    assert found["selected"]["parameters_sha256"] == sha256(Path("run"), "last")


@pytest.mark.parametrize(("select", "step"), [("auto", 30), ("best", 30), ("last", 36)])
def test_early_stopping_reports_the_best_state(select: str, step: int) -> None:
    expected = runner.run(None, [*RUN, f"train.steps={step}", "run_dir=expected"]).summary
    found = runner.run(None, [*RUN, "train.early_stopping.patience=2", f"train.select={select}", "run_dir=run"]).summary
    assert (found["steps"], found["stopped_early"], found["selected"]["step"]) == (36, True, step)
    assert (found["selected"], found["parameters"]) == (expected["selected"], expected["parameters"])


def test_a_least_change_delays_the_stop_and_not_the_choice() -> None:
    """Early stopping does not count small improvements; the best state follows every one."""
    options = ["train.early_stopping.patience=3", "train.early_stopping.min_delta=0.1", "run_dir=run"]
    found = runner.run(None, [*RUN, *options]).summary
    values = evaluations(Path("run"))
    assert found["stopped_early"]
    assert found["selected"]["step"] == min(values, key=lambda step: values[step])
    assert found["selected"]["metrics"]["valid/loss"] == min(values.values())


def test_the_console_says_which_state_it_reports(capsys: pytest.CaptureFixture[str]) -> None:
    runner.run(None, [*RUN, "train.select=best", "run_dir=best"])
    out = capsys.readouterr().out
    assert "\nstep 42  loss " in out
    assert "\nselected step 42, the best by valid/loss: 0.00559366; the last step, 60, has 0.00727443\n" in out
    runner.run(None, [*RUN, "train.steps=42", "train.select=best", "run_dir=end"])
    out = capsys.readouterr().out
    assert "\n       loss " in out
    assert "\nselected step 42, the last, which is the best by valid/loss\n" in out


def test_a_clearly_better_state_than_the_last_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    line = (
        "best     step 42 is clearly better than the last: valid/loss 0.00559366 instead of 0.00727443; "
        "resume this run with train.select=best to report that one"
    )
    runner.run(None, [*RUN, "run_dir=run"])
    assert line in capsys.readouterr().out.splitlines()
    runner.run(None, ["resume=run", "train.select=best"])  # what it advises
    assert "clearly better" not in capsys.readouterr().out
    assert summary(Path("run"))["selected"]["step"] == BEST


@pytest.mark.parametrize("metric", ["r2", "rmse"])
def test_of_small_differences_none_is_named(metric: str, capsys: pytest.CaptureFixture[str]) -> None:
    """At step 48 the loss is 8 % above that of step 42, and r2 is 0.9967 instead of 0.9970."""
    runner.run(None, [*RUN, f"train.early_stopping.metric={metric}", "train.steps=48"])
    assert "clearly better" not in capsys.readouterr().out


def test_of_an_exact_fit_no_state_is_clearly_better(capsys: pytest.CaptureFixture[str]) -> None:
    """Rounding errors alone may differ by any factor."""
    exact = [
        "data=line",
        "data.features=3",
        "data.noise=0",
        "data.rows=50",
        "data.standardize=true",
        "train.batch_size=20",
    ]
    options = ["optimizer.lr=0.5", "train.steps=100", "train.eval_every_steps=1", "record.plots=false", "device=cpu"]
    values = evaluations(runner.run(None, [*exact, *options]).directory, "train/rmse")
    assert values[100] > 1.1 * min(values.values())
    assert "clearly better" not in capsys.readouterr().out


def test_selecting_another_state_of_a_finished_run_reports_it(whole: Path) -> None:
    run = runner.run(None, [*RUN, "run_dir=run"])
    again = runner.run(None, ["resume=run", "train.select=best"]).summary
    expected = summary(whole)
    assert {**again, "timing": None} == {**expected, "timing": None}
    assert Path("run/residuals.csv").read_bytes() == (whole / "residuals.csv").read_bytes()
    back = runner.run(None, ["resume=run", "train.select=last"]).summary
    assert {**back, "timing": None} == {**run.summary, "timing": None}


def test_a_lost_best_state_is_needed_only_where_it_is_reported(whole: Path) -> None:
    Path("whole/summary.json").unlink()
    (Path("whole/checkpoints/step_42") / "state.pt").write_bytes(b"")
    with pytest.raises(runner.CheckpointError) as refused:
        runner.run(None, ["resume=whole"])
    assert (
        "the checkpoint `whole/checkpoints/step_60` is not used: its best state, step_42, without which only train.select=last "
        "resumes it, is not intact: state.pt has 0 bytes, but manifest.json says "
    ) in str(refused.value)
    found = runner.run(None, ["resume=whole", "train.select=last"]).summary
    assert found["selected"]["parameters_sha256"] == sha256(Path("whole"), "last")


# ---------------------------------------------------------------------------------------------------- kills and signals


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return runner.run(None, [*RUN, "train.select=best", "run_dir=whole"]).directory


def summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


def assert_same_best(one: Path, other: Path) -> None:
    assert summary(one)["selected"] == summary(other)["selected"]
    assert os.readlink(one / "checkpoints/best") == os.readlink(other / "checkpoints/best")
    assert sha256(one) == sha256(other)
    assert state(one)["best"] == state(other)["best"]
    assert sha256(one, "last") == sha256(other, "last")


@pytest.mark.parametrize("step", [BEST - 1, BEST, BEST + 1, 59])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_best_state_survives_a_kill(step: int, number: int, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        faults.at_step(patch, step, lambda: os.kill(os.getpid(), number))
        faults.in_child(lambda: runner.run(None, [*RUN, "train.select=best", "run_dir=killed"]))
    runner.run(None, ["resume=killed"])
    assert_same_best(whole, Path("killed"))


@pytest.mark.parametrize("step", ["step_42", "step_60"])
@pytest.mark.parametrize("asynchronous", ["false", "true"])
def test_the_best_state_survives_a_kill_while_it_is_saved(
    asynchronous: str, step: str, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best state is saved before the checkpoint that is due, which then is the last one."""
    from runner.runs import checkpoint

    real, options = checkpoint.draft, [*RUN, "train.select=best", f"checkpoint.async_save={asynchronous}"]

    def draft(folder: Path, number: int) -> Path:
        if f"step_{number}" == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(folder, number)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "draft", draft)
        assert os.WTERMSIG(faults.in_child(lambda: runner.run(None, [*options, "run_dir=killed"]))) == signal.SIGKILL
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


def test_a_sweep_compares_the_selected_states(whole: Path) -> None:
    """A trial that is part of a program reports what it reports alone, up to rounding."""
    directory, results = runner.multirun(None, [*RUN, "train.select=last,best", "seed=0,1", "run_dir=sweep"])
    found = [summary(directory / str(number)) for number in range(4)]
    assert [member.metrics for member in results.members] == [each["selected"]["metrics"] for each in found]
    assert json.loads((directory / "0/run.json").read_text())["lanes"] == 4
    assert [each["selected"]["step"] for each in found[:1] + found[2:3]] == [60, BEST]
    assert found[0]["parameters_sha256"] == found[2]["parameters_sha256"]
    alone = summary(whole)
    assert found[2]["parameters"]["0.bias"] == pytest.approx(alone["parameters"]["0.bias"], rel=1e-4)  # float32
    assert found[2]["selected"]["metrics"]["valid/rmse"] < found[0]["selected"]["metrics"]["valid/rmse"]
    table = (directory / "results.csv").read_text()
    assert all(repr(each["selected"]["metrics"]["valid/loss"]) in table for each in found)


def test_a_killed_sweep_selects_the_same_states(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = [*RUN, "train.early_stopping.patience=2,6", "optimizer.lr=0.05,0.02"]
    whole, _ = runner.multirun(None, [*sweep, "run_dir=undisturbed"])
    with monkeypatch.context() as patch:
        faults.at_step(patch, 47, lambda: os.kill(os.getpid(), signal.SIGKILL))
        faults.in_child(lambda: runner.multirun(None, [*sweep, "run_dir=killed"]))
    runner.multirun(None, ["resume=killed"])
    for number in map(str, range(4)):
        one, other = (summary(run / number)["selected"] for run in (whole, Path("killed")))
        assert one["step"] == other["step"] == state(Path("killed", number))["step"]
        assert one["parameters_sha256"] == other["parameters_sha256"] == sha256(Path("killed", number))
        # The resumed program has fewer lanes, which may add float32 numbers in another order.
        assert one["metrics"] == pytest.approx(other["metrics"], rel=1e-5)
