"""A run that goes on, on another number of processes and another strategy, ends as one that was never stopped."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faults
import processes
import pytest
import torch
from answers import EXPERIMENT, difference
from launching import rows, summary

import runner
from runner.compute.processes import consensus
from runner.training.objective import BatchObjective

RESUMABLE = [*EXPERIMENT, "train.steps=60", "checkpoint.every_steps=7", "launch.timeout_seconds=20"]
EXACT = [*RESUMABLE, "strategy.reduction=exact", "model.dropout=0.2", "schedule=cosine"]


UPDATES = {"adam": ["optimizer=adam", "update=optimizer"], "momentum": ["optimizer=momentum", "update=manual"]}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def at_step(step: int, happen: Callable[[int], object], work: Callable[[int], Any]) -> Callable[[int], Any]:
    """`work` in which `happen(rank)` is called when a process turns to a step."""

    def faulty(rank: int) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            faults.at_step(patch, step, lambda: happen(rank))
            return work(rank)

    return faulty


def run_in_sequence(*runs: Sequence[str]) -> Callable[[int], list[str]]:
    """Several runs, one after the other."""

    def work(rank: int) -> list[str]:
        torch.set_num_threads(1)
        return [str(runner.run(None, list(words)).directory) for words in runs]

    return work


def run_all(size: int, runs: Sequence[Sequence[str]]) -> list[Path]:
    (paths, *_) = processes.values(size, run_in_sequence(*runs))
    return [Path(path) for path in paths]


def run_one(words: Sequence[str], size: int) -> Path:
    return run_all(size, [words])[0]


def kill(rank: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("rule", "update"), [("momentum", "manual"), ("adam", "optimizer")])
def test_killed_on_4_gone_on_with_2_and_killed_and_ended_by_1(rule: str, update: str) -> None:
    words = [*EXACT, f"optimizer={rule}", f"update={update}"]
    whole = run_one([*words, "run_dir=whole"], 1)
    for size, step, more in ((4, 23, words), (2, 45, ["resume=run"])):
        given = [*more, "run_dir=run"] if more is words else more
        outcomes = processes.on(size, at_step(step, kill, run_in_sequence(given)))
        assert [outcome.code for outcome in outcomes] == [-signal.SIGKILL] * size
    assert run_one(["resume=run"], 1) == Path("run")
    run = Path("run")
    assert summary(run)["parameters_sha256"] == summary(whole)["parameters_sha256"]
    assert summary(run)["metrics"] == summary(whole)["metrics"]
    assert rows(run) == rows(whole)
    assert (run / "checkpoints/best").readlink() == (whole / "checkpoints/best").readlink()
    record = json.loads((run / "run.json").read_text())
    assert (record["resumed"], record["world_size"], record["strategy"]) == (2, 1, "single")


WAYS = [("ddp", 2, "fsdp", 3), ("fsdp", 3, "ddp", 2), ("fsdp", 2, "single", 1), ("single", 1, "fsdp", 2), ("fsdp", 2, "fsdp", 4), ("tensor", 2, "pipeline", 3), ("pipeline", 3, "tensor", 2)]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "{}-{} to {}-{}".format(*way))
def test_another_strategy_goes_on(way: tuple[str, int, str, int], whole: dict[str, Path]) -> None:
    first, size, then, other = way
    words = [*RESUMABLE, "dtype=float64", "train.steps=20", f"strategy={first}"]
    run_all(size, [[*words, *UPDATES[rule], f"run_dir={rule}"] for rule in UPDATES])
    runs = run_all(other, [[f"resume={rule}", f"strategy={then}", "train.steps=40"] for rule in UPDATES])
    for rule, run in zip(UPDATES, runs, strict=True):
        # As without a stop: sums in another order over 40 steps of float64.
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
def test_the_same_processes_go_on_to_the_bit(strategy: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """F03: the same number of processes; the reduction is the fast one."""
    # A short run may be over before the next question whether to stop.
    monkeypatch.setattr(consensus, "POLL_SECONDS", 1e-3)
    words = [*RESUMABLE, f"strategy={strategy}", "optimizer=adamw"]
    whole = run_one([*words, "run_dir=whole"], size)
    outcomes = processes.on(size, at_step(31, stop, run_in_sequence([*words, "run_dir=run"])))
    assert [outcome.code for outcome in outcomes] == [1] * size  # Interrupted is an exception here
    assert "the state is saved (SIGTERM)" in outcomes[0].printed
    assert "resume=run" in outcomes[0].printed
    record = json.loads(Path("run/run.json").read_text())
    assert record["status"] == "interrupted"
    run = run_one(["resume=run", f"strategy={strategy}"], size)
    assert summary(run)["parameters_sha256"] == summary(whole)["parameters_sha256"]
    assert rows(run) == rows(whole)


def stop(rank: int) -> None:
    """A signal that reaches one process only."""
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


@pytest.mark.parametrize("words", [["strategy=ddp"], ["strategy=fsdp"], ["strategy.reduction=exact"]])
def test_saving_beside_the_training_changes_nothing(words: list[str]) -> None:
    one = run_one([*RESUMABLE, *words, "run_dir=one"], 2)
    other = run_one([*RESUMABLE, *words, "run_dir=other", "checkpoint.async_save=true"], 2)
    assert summary(one)["parameters_sha256"] == summary(other)["parameters_sha256"]
    assert rows(one) == rows(other)
    names = sorted(path.name for path in (one / "checkpoints").iterdir())
    assert sorted(path.name for path in (other / "checkpoints").iterdir()) == names
    for name in names:
        if name.startswith("step_"):
            assert same(runner_state(one, name), runner_state(other, name))


def runner_state(run: Path, name: str) -> Any:
    from runner.runs import checkpoint

    found = checkpoint.intact(run / "checkpoints" / name)
    assert isinstance(found, dict)
    return {part: found[part] for part in ("step", "model", "optimizer", "best")}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other)
