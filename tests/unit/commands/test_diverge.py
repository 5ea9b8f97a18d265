"""Two run directories held against each other: what is found first, on what evidence, and what is told of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faults
import pytest
import torch
from torch import Tensor

import runner
from runner import cli
from runner.commands.diverge.evidence import apart
from runner.runs import checkpoint

WORDS = [
    "name=parting", "data=line", "data.rows=12", "data.features=2", "model=linear", "train.steps=12", "update=manual",
    "optimizer.lr=1e-4", "record.plots=false", "device=cpu", "device.threads=1",
]  # fmt: skip
HASHED = ["record.every_steps=1", "record.hash_every_steps=1", "checkpoint.every_steps=4", "checkpoint.keep=null"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def run(directory: str, *words: str) -> Path:
    return runner.run(None, [*WORDS, *words, f"run_dir={directory}"]).directory


def changed(file: Path, step: int, change: Callable[[dict[str, Any]], object]) -> None:
    """Change one line of a file of rows."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        if row["step"] == step:
            change(row)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """The lines of `diverge A B`, which must answer with this exit code."""

    def tell(code: int, a: str = "A", b: str = "B") -> list[str]:
        capsys.readouterr()
        assert cli.main(["diverge", a, b]) == code
        out = capsys.readouterr()
        return (out.err if code == 2 else out.out).splitlines()

    return tell


Told = Callable[..., list[str]]


# ------------------------------------------------------------------------------------------------------------- the same


def test_the_same_run_twice_is_equal_by_all_evidence(told: Told) -> None:
    run("A", *HASHED)
    run("B", *HASHED)
    assert told(0) == [
        "A  A  finished, step 12",
        "B  B  finished, step 12",
        "",
        "asked for the same, on the same data and kind of machine",
        "",
        "hashes.jsonl       equal at 13 steps, 0 to 12",
        "metrics.jsonl      equal at 12 steps, 1 to 12",
        "checkpoints        equal at 3 steps, 4 to 12",
        "parameters_sha256  equal at step 12",
        "",
        "they are equal as far as both were recorded: parameters up to step 12 (hashes.jsonl, checkpoints, parameters_sha256), "
        "rows up to step 12 (metrics.jsonl)",
    ]


def test_another_number_of_steps_is_told_and_equal_as_far_as_both_go(told: Told) -> None:
    run("A", *HASHED)
    run("B", *HASHED, "train.steps=9")
    lines = told(0)
    assert lines[:2] == ["A  A  finished, step 12", "B  B  finished, step 9"]
    assert "train.steps  12  9" in lines
    assert "parameters_sha256  nothing that both have" in lines
    assert lines[-1] == (
        "they are equal as far as both were recorded: parameters up to step 9 (hashes.jsonl), rows up to step 9 (metrics.jsonl), "
        "parameters up to step 8 (checkpoints); A goes on to step 12"
    )


def test_another_way_to_the_same_bits_is_told_and_equal(told: Told) -> None:
    run("A", *HASHED)
    run("B", *HASHED, "update=optimizer")
    lines = told(0)
    assert "asked for, or run on, different things:" in lines
    assert "update  manual  optimizer" in lines


def test_a_killed_run_and_one_that_was_stopped_are_compared_as_far_as_they_are(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("A", *HASHED)
    with monkeypatch.context() as patch:
        faults.at_step(patch, 7, lambda: os.kill(os.getpid(), signal.SIGKILL))
        faults.in_child(lambda: run("B", *HASHED))
    with (Path("B") / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "train/lo')  # as a kill tears it
    lines = told(0)
    assert lines[1] == "B  B  running, step 6"
    assert lines[-1] == (
        "they are equal as far as both were recorded: parameters up to step 6 (hashes.jsonl), rows up to step 6 (metrics.jsonl), "
        "parameters up to step 4 (checkpoints); A goes on to step 12"
    )


def test_rows_alone_are_said_to_be_rows_alone(told: Told) -> None:
    run("A", "record.every_steps=1")
    run("B", "record.every_steps=1")
    for name in ("A", "B"):
        shutil.rmtree(Path(name) / "checkpoints")
        (Path(name) / "summary.json").unlink()
    assert told(0)[-1] == "they are equal as far as both were recorded: rows up to step 12 (metrics.jsonl)"


# ------------------------------------------------------------------------------------------------------------ different


def test_another_seed_differs_from_the_start(told: Told) -> None:
    run("A", *HASHED)
    run("B", *HASHED, "seed=1")
    lines = told(1)
    assert lines[3:6] == ["asked for, or run on, different things:", "      A  B", "seed  0  1"]
    assert "data_sha256" not in "\n".join(lines[3:6])
    assert lines[-1] == "they differ from the start, in hashes.jsonl: `bias`, `weight`"


def test_another_row_of_data_is_told_by_its_hash_and_at_the_first_loss(told: Told) -> None:
    table = ["x,y\n", *(f"{x},{2 * x}\n" for x in range(9))]
    words = [word for word in WORDS if not word.startswith("data")]
    for name, lines in (("A", table), ("B", [*table[:-1], "8,17\n"])):
        Path(f"{name}.csv").write_text("".join(lines))
        csv = ["data=csv", f"data.path={name}.csv", "data.target=y"]
        runner.run(None, [*words, *HASHED, *csv, f"run_dir={name}"])
    found = told(1)
    assert any(line.startswith("data_sha256") for line in found)
    assert found[-1].startswith("they differ first at step 1, in metrics.jsonl: `train/loss` is ")
    assert found[-1].endswith("; the parameters of step 0 are equal")


def test_the_exact_step_and_tensor(told: Told) -> None:
    run("A", *HASHED)
    shutil.copytree("A", "B")
    changed(Path("B/hashes.jsonl"), 7, lambda row: row["parameters"].update(weight="0" * 64))
    lines = told(1)
    assert "hashes.jsonl       differs at step 7: `weight`" in lines
    assert lines[-1] == "they differ first at step 7, in hashes.jsonl: `weight`; the parameters of step 6 are equal"


def test_the_loss_of_a_step_comes_before_its_update(told: Told) -> None:
    run("A", *HASHED)
    shutil.copytree("A", "B")
    changed(Path("B/hashes.jsonl"), 7, lambda row: row["parameters"].update(weight="0" * 64))
    changed(Path("B/metrics.jsonl"), 7, lambda row: row.update({"train/loss": 2.0, "samples_per_second": 1.0}))
    changed(Path("A/metrics.jsonl"), 7, lambda row: row.update({"train/loss": 1.0}))
    assert told(1)[-1] == (
        "they differ first at step 7, in metrics.jsonl: `train/loss` is 1.0 against 2.0 (relatively 0.5); "
        "the parameters of step 6 are equal"
    )


def test_hashes_that_are_rare_give_the_interval_and_the_way_to_the_step(told: Told) -> None:
    run("A", "record.hash_every_steps=5")
    run("B", "record.hash_every_steps=5", "optimizer.lr=2e-4")
    lines = told(1)
    assert lines[-4:] == [
        "they differ at step 5 at the latest, in hashes.jsonl: `bias`, `weight`; the parameters of step 0 are equal",
        "for the exact step, do both again with a hash at each step, and compare these:",
        "  python -m runner rerun A record.hash_every_steps=1",
        "  python -m runner rerun B record.hash_every_steps=1",
    ]


def test_without_hashes_the_rows_and_the_ends_speak(told: Told) -> None:
    run("A")
    run("B", "optimizer.lr=2e-4")
    lines = told(1)
    assert "hashes.jsonl       nothing that both have" in lines
    assert lines[-4].startswith("they differ at step 12 at the latest, in metrics.jsonl: `train/loss` is ")
    assert lines[-4].endswith("; no step is known to be equal")


def test_a_row_that_only_one_has(told: Told) -> None:
    run("A", *HASHED)
    shutil.copytree("A", "B")
    rows = Path("B/metrics.jsonl").read_text().splitlines(keepends=True)
    Path("B/metrics.jsonl").write_text("".join(rows[:4] + rows[5:]))
    assert "metrics.jsonl      differs at step 5: only A has its row" in told(1)


def test_a_row_that_is_there_twice(told: Told) -> None:
    run("A", *HASHED)
    shutil.copytree("A", "B")
    rows = Path("B/metrics.jsonl").read_text().splitlines(keepends=True)
    Path("B/metrics.jsonl").write_text("".join(rows[:4] + rows[3:]))
    assert "metrics.jsonl      differs at step 4: B has its row more than once" in told(1)


def test_rows_of_another_interval_are_no_difference(told: Told) -> None:
    run("A", "record.every_steps=2")
    run("B", "record.every_steps=3")
    assert "metrics.jsonl      equal at 2 steps, 6 to 12" in told(0)


def test_one_changed_bit_in_a_checkpoint_that_is_valid(told: Told) -> None:
    run("A", *HASHED)
    shutil.copytree("A", "B", symlinks=True)
    state = checkpoint.intact(Path("B/checkpoints/step_8"))
    assert isinstance(state, dict)
    state["model"]["weight"].view(torch.int32)[0, 1] ^= 1
    checkpoint.save(Path("B/checkpoints"), 8, state, best=False, keep=None)
    found = next(line for line in told(1) if line.startswith("checkpoints"))
    assert found.startswith("checkpoints        differs at step 8: `model/weight` by ")
    assert found.endswith(", 1 unit in the last place)")


def test_a_damaged_checkpoint_is_no_evidence(told: Told) -> None:
    run("A", *HASHED)
    shutil.copytree("A", "B", symlinks=True)
    (Path("B/checkpoints/step_8") / "state.pt").write_bytes(b"")
    assert "checkpoints        equal at 2 steps, 4 to 12" in told(0)


def test_other_tensors_are_told_by_name_and_shape(told: Told) -> None:
    run("A", *HASHED)
    run("B", *HASHED, "model.bias=false")
    assert "checkpoints        differs at step 4: only A has `model/bias`" in told(1)
    run("C", *HASHED, "data.features=3")
    assert "checkpoints        differs at step 4: `model/weight` is float32 [1, 2] against float32 [1, 3]" in told(
        1, b="C"
    )


def test_several_processes_are_told_to_be_started_again(told: Told) -> None:
    run("A", "record.hash_every_steps=5")
    run("B", "record.hash_every_steps=5", "optimizer.lr=2e-4")
    file = Path("B/run.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "world_size": 2, "torch": "2.0"}))
    lines = told(1)
    assert any(line.split() == ["world_size", "1", "2"] for line in lines)
    assert any(line.split() == ["torch", str(torch.__version__), "2.0"] for line in lines)
    again = "launch.processes=2 launch.nodes=1 launch.rdzv_endpoint=null record.hash_every_steps=1"
    assert lines[-1] == f"  python -m runner rerun B {again}"


# -------------------------------------------------------------------------------------------------------------- refused


def test_what_is_no_run_directory_is_refused_both_at_once(told: Told) -> None:
    Path("empty").mkdir()
    assert told(2, "nowhere", "empty") == [
        "error: `A` must be a run directory, got 'nowhere', which is not a directory; correct the path",
        "error: `B` must be a run directory, got 'empty', which has no config.yaml; give the directory of one run",
    ]


def test_nothing_in_common_is_no_equality(told: Told) -> None:
    run("A", "train.steps=3")
    run("B", "train.steps=4")
    assert told(2) == [
        "error: `A` and `B` must have recorded the same step at least once, but A and B have no row, hash or checkpoint of the "
        "same step; give them record.every_steps=1 or record.hash_every_steps=1"
    ]


def test_one_directory_is_too_few(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["diverge", "A"]) == 2
    assert "the following arguments are required: B" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------- units in the last place


@pytest.mark.parametrize(
    ("one", "other", "units"),
    [
        (torch.tensor([1.0]), torch.tensor([1.0 + 2**-23]), "1 unit"),
        (torch.tensor([1.0, 8.0]), torch.tensor([1.0, 8.0 + 3 * 2**-20]), "3 units"),
        (torch.tensor([1.0], dtype=torch.float64), torch.tensor([1.0 + 2**-50], dtype=torch.float64), "4 units"),
        (torch.tensor([0.0]), torch.tensor([2**-149]), "1 unit"),
        (torch.tensor([-1.0]), torch.tensor([1.0]), f"{2**24:.3g} units"),
    ],
)
def test_units_in_the_last_place(one: Tensor, other: Tensor, units: str) -> None:
    """Of the larger of the two: the distance to its neighbour further away from zero."""
    assert apart(one, other).endswith(f", {units} in the last place)")
