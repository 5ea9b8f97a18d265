"""A run that is resumed on another number of processes, or with another strategy, ends like one that never stopped."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from answers import EXPERIMENT, difference
from launching import rows, summary

import faults
import runner
from runner.compute.processes import consensus
from runner.training.objective import BatchObjective

RESUMABLE = [*EXPERIMENT, "train.steps=60", "checkpoint.every_steps=7", "launch.timeout_seconds=20"]
EXACT = [*RESUMABLE, "strategy.reduction=exact", "model.dropout=0.2", "schedule=cosine"]


UPDATES = {"adam": ["optimizer=adam", "update=optimizer"], "momentum": ["optimizer=momentum", "update=manual"]}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def at_step(step: int, action: Callable[[int], object], work: Callable[[int], Any]) -> Callable[[int], Any]:
    """Return `work` in which `action(rank)` is called at the start of a step."""

    def faulty(rank: int) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            faults.at_step(patch, step, lambda: action(rank))
            return work(rank)

    return faulty


def run_in_sequence(*runs: Sequence[str]) -> Callable[[int], list[str]]:
    """Return work that does several runs in sequence."""

    def work(rank: int) -> list[str]:
        torch.set_num_threads(1)
        return [str(runner.run(None, list(overrides)).directory) for overrides in runs]

    return work


def run_all(size: int, runs: Sequence[Sequence[str]]) -> list[Path]:
    """Do several runs in sequence on the same processes, and return their directories."""
    (paths, *_) = processes.values(size, run_in_sequence(*runs))
    return [Path(path) for path in paths]


def run_one(overrides: Sequence[str], size: int) -> Path:
    """Do one run and return its directory."""
    return run_all(size, [overrides])[0]


def kill(rank: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("rule", "update"), [("momentum", "manual"), pytest.param("adam", "optimizer", marks=pytest.mark.long)]
)
def test_killed_on_4_then_resumed_and_killed_on_2_then_finished_on_1(rule: str, update: str) -> None:
    overrides = [*EXACT, f"optimizer={rule}", f"update={update}"]
    whole = run_one([*overrides, "run_dir=whole"], 1)
    for size, step, attempt in ((4, 23, [*overrides, "run_dir=run"]), (2, 45, ["resume=run"])):
        outcomes = processes.on(size, at_step(step, kill, run_in_sequence(attempt)))
        assert [outcome.code for outcome in outcomes] == [-signal.SIGKILL] * size
    assert run_one(["resume=run"], 1) == Path("run")
    run = Path("run")
    assert summary(run)["parameters_sha256"] == summary(whole)["parameters_sha256"]
    assert summary(run)["metrics"] == summary(whole)["metrics"]
    assert rows(run) == rows(whole)
    assert (run / "checkpoints/best").readlink() == (whole / "checkpoints/best").readlink()
    record = json.loads((run / "run.json").read_text())
    assert (record["resumed"], record["world_size"], record["strategy"]) == (2, 1, "single")


CHANGES = [("ddp", 2, "fsdp", 3), ("fsdp", 3, "ddp", 2), ("fsdp", 2, "single", 1), ("single", 1, "fsdp", 2), ("fsdp", 2, "fsdp", 4), ("tensor", 2, "pipeline", 3), ("pipeline", 3, "tensor", 2)]  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [*CHANGES[::2], *(pytest.param(change, marks=pytest.mark.long) for change in CHANGES[1::2])],
    ids=lambda change: "{}-{} to {}-{}".format(*change),
)
def test_a_run_can_be_resumed_with_another_strategy(change: tuple[str, int, str, int], whole: dict[str, Path]) -> None:
    first, first_size, second, second_size = change
    overrides = [*RESUMABLE, "dtype=float64", "train.steps=20", f"strategy={first}"]
    run_all(first_size, [[*overrides, *UPDATES[rule], f"run_dir={rule}"] for rule in UPDATES])
    runs = run_all(second_size, [[f"resume={rule}", f"strategy={second}", "train.steps=40"] for rule in UPDATES])
    for rule, run in zip(UPDATES, runs, strict=True):
        # As without a stop: sums in another order over 40 steps in float64.
        assert difference(run, whole[rule]) < 1e-10, rule
        assert [row["step"] for row in rows(run)] == [row["step"] for row in rows(whole[rule])], rule


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs on one process that were never stopped, by rule."""
    folder = tmp_path_factory.mktemp("whole")
    runs = [
        [*RESUMABLE, "dtype=float64", "train.steps=40", *UPDATES[rule], f"run_dir={folder / rule}"] for rule in UPDATES
    ]
    return dict(zip(UPDATES, run_all(1, runs), strict=True))


@pytest.mark.parametrize(("strategy", "size"), [("ddp", 2), ("fsdp", 2)])
def test_the_same_number_of_processes_resumes_with_the_same_bits(
    strategy: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F03: also with the fast reduction."""
    # A short run may end before the next exchange of signals.
    monkeypatch.setattr(consensus, "POLL_SECONDS", 1e-3)
    overrides = [*RESUMABLE, f"strategy={strategy}", "optimizer=adamw"]
    whole = run_one([*overrides, "run_dir=whole"], size)
    outcomes = processes.on(size, at_step(31, stop, run_in_sequence([*overrides, "run_dir=run"])))
    assert [outcome.code for outcome in outcomes] == [1] * size  # Interrupted is an exception here
    assert "the state is saved (SIGTERM)" in outcomes[0].printed
    assert "resume=run" in outcomes[0].printed
    record = json.loads(Path("run/run.json").read_text())
    assert record["status"] == "interrupted"
    run = run_one(["resume=run", f"strategy={strategy}"], size)
    assert summary(run)["parameters_sha256"] == summary(whole)["parameters_sha256"]
    assert rows(run) == rows(whole)


def stop(rank: int) -> None:
    """Send a signal to one process only."""
    if rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_to_one_process_stops_all_at_the_same_step() -> None:
    def work(rank: int) -> int:
        torch.set_num_threads(1)
        seen: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            real = BatchObjective.at

            def at(self: BatchObjective, step: int) -> BatchObjective:
                seen.append(step)
                return real(self, step)

            patch.setattr(BatchObjective, "at", at)
            with pytest.raises(runner.RunnerError):
                runner.run(None, [*RESUMABLE, "train.steps=100000", "run_dir=run"])
        return seen[-1]

    last = processes.values(3, at_step(20, stop, work))
    assert len(set(last)) == 1
    assert Path("run/checkpoints/last").readlink() == Path(f"step_{last[0]}")


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(["strategy=ddp"], marks=pytest.mark.long),
        ["strategy=fsdp"],
        pytest.param(["strategy.reduction=exact"], marks=pytest.mark.long),
    ],
)
def test_async_saving_changes_nothing(overrides: list[str]) -> None:
    one = run_one([*RESUMABLE, *overrides, "run_dir=one"], 2)
    other = run_one([*RESUMABLE, *overrides, "run_dir=other", "checkpoint.async_save=true"], 2)
    assert summary(one)["parameters_sha256"] == summary(other)["parameters_sha256"]
    assert rows(one) == rows(other)
    names = sorted(path.name for path in (one / "checkpoints").iterdir())
    assert sorted(path.name for path in (other / "checkpoints").iterdir()) == names
    for name in names:
        if name.startswith("step_"):
            assert same(saved_state(one, name), saved_state(other, name))


def saved_state(run: Path, name: str) -> Any:
    """Return the state of one checkpoint, without its configuration."""
    from runner.runs import checkpoint

    state = checkpoint.intact(run / "checkpoints" / name)
    assert isinstance(state, dict)
    return {part: state[part] for part in ("step", "model", "optimizer", "best")}


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, tensors in every element."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other)
