"""`record.hash_every_steps`: the lines of hashes.jsonl, also after a kill, in a sweep and on several processes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import processes
import pytest
import torch

import faults
import runner
from runner.runs import checkpoint
from runner.runs.hashes import parameters_sha256

# Shuffled batches, dropout and a schedule: all state that a resumed run must restore.
WORDS = [
    "name=hashed", "data=line", "data.rows=46", "data.features=3", "model=mlp", "model.widths=[4]", "model.dropout=0.2",
    "schedule=cosine", "train.steps=12", "train.batch_size=16", "optimizer=adam", "optimizer.lr=0.01", "update=manual",
    "record.every_steps=5", "record.plots=false", "device=cpu", "device.threads=1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def run(directory: str, *words: str) -> Path:
    return runner.run(None, [*WORDS, *words, f"run_dir={directory}"]).directory


def lines(directory: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (directory / "hashes.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_no_hashes_by_default() -> None:
    assert not (run("plain") / "hashes.jsonl").exists()


def test_a_line_has_the_hashes_of_the_parameters_of_its_step() -> None:
    directory = run("hashed", "record.hash_every_steps=3", "checkpoint.every_steps=3", "checkpoint.keep=null")
    found = lines(directory)
    assert [line["step"] for line in found] == [0, 3, 6, 9, 12]
    rolling = found[0]["rolling"]
    for line in found[1:]:
        state = checkpoint.intact(directory / f"checkpoints/step_{line['step']}")
        assert isinstance(state, dict)
        model = state["model"]
        assert line["parameters"] == {name: parameters_sha256({name: model[name]}) for name in sorted(model)}
        rolling = hashlib.sha256((rolling + parameters_sha256(model)).encode()).hexdigest()
        assert line["rolling"] == rolling


def test_the_initial_parameters_are_step_0_and_only_whole_intervals_are_written() -> None:
    ten, four = lines(run("ten", "record.hash_every_steps=10")), lines(run("four", "record.hash_every_steps=4"))
    assert [line["step"] for line in ten] == [0, 10]
    assert [line["step"] for line in four] == [0, 4, 8, 12]
    assert ten[0] == four[0]


def test_hashing_changes_neither_the_parameters_nor_the_configuration_hash() -> None:
    plain, hashed = run("plain"), run("hashed", "record.hash_every_steps=1")
    for file, key in (("summary.json", "parameters_sha256"), ("run.json", "config_hash")):
        one, other = (json.loads((directory / file).read_text())[key] for directory in (plain, hashed))
        assert one == other


@pytest.mark.parametrize("step", [2, 7, 8, 12])
def test_a_killed_and_resumed_run_has_every_line_once(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["record.hash_every_steps=2", "checkpoint.every_steps=4"]
    whole = run("whole", *words)
    with monkeypatch.context() as patch:
        faults.at_step(patch, step, lambda: os.kill(os.getpid(), signal.SIGKILL))
        assert os.WTERMSIG(faults.in_child(lambda: run("killed", *words))) == signal.SIGKILL
    assert lines(Path("killed"))[-1]["step"] == (step - 1) // 2 * 2  # written during the training
    runner.run(None, ["resume=killed"])
    assert (Path("killed") / "hashes.jsonl").read_bytes() == (whole / "hashes.jsonl").read_bytes()


def test_lines_of_repeated_steps_are_dropped_even_if_hashing_is_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        faults.at_step(patch, 7, lambda: os.kill(os.getpid(), signal.SIGKILL))
        faults.in_child(lambda: run("killed", "record.hash_every_steps=1", "checkpoint.every_steps=4"))
    assert [line["step"] for line in lines(Path("killed"))] == [*range(7)]
    runner.run(None, ["resume=killed", "record.hash_every_steps=null"])
    assert [line["step"] for line in lines(Path("killed"))] == [*range(4)]


def test_an_extended_run_continues_the_rolling_hash() -> None:
    words = ["schedule=constant", "record.hash_every_steps=2"]
    whole, short = run("whole", *words, "train.steps=12"), run("short", *words, "train.steps=7")
    runner.run(None, [f"resume={short}", "train.steps=12"])
    assert (short / "hashes.jsonl").read_bytes() == (whole / "hashes.jsonl").read_bytes()


def test_a_run_that_diverges_has_the_lines_up_to_its_last_good_step() -> None:
    with pytest.raises(runner.Diverged, match="training diverged at step 2"):
        run("diverged", "optimizer=sgd", "optimizer.lr=1e30", "record.hash_every_steps=1")
    assert [line["step"] for line in lines(Path("diverged"))] == [0, 1]


def test_each_trial_of_a_sweep_has_its_own_hashes() -> None:
    words = ["model.dropout=0", "record.hash_every_steps=4", "dtype=float64"]
    directory, _ = runner.multirun(None, [*WORDS, *words, "seed=3,4", "run_dir=sweep"])
    assert json.loads((directory / "1/run.json").read_text())["lanes"] == 2
    alone = lines(run("alone", *words, "seed=4"))
    member, other = lines(directory / "1"), lines(directory / "0")
    assert [line["step"] for line in member] == [line["step"] for line in alone]
    assert member[0] == alone[0] != other[0]  # equal at the start; vmapped sums differ by rounding
    assert member[-1]["rolling"] != other[-1]["rolling"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "pipeline"])
def test_several_processes_hash_the_whole_parameters(strategy: str) -> None:
    words = [*WORDS, "model.dropout=0", "record.hash_every_steps=6", f"strategy={strategy}", "run_dir=several"]

    def work(rank: int) -> None:
        torch.set_num_threads(1)
        runner.run(None, words)

    processes.values(2, work)
    found, alone = lines(Path("several")), lines(run("alone", "model.dropout=0", "record.hash_every_steps=6"))
    assert [line["step"] for line in found] == [0, 6, 12]
    assert found[0] == alone[0]
    state = checkpoint.intact(Path("several/checkpoints/step_12"))
    assert isinstance(state, dict)
    assert found[-1]["parameters"] == {n: parameters_sha256({n: t}) for n, t in sorted(state["model"].items())}
