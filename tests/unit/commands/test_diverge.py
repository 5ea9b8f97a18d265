"""Comparison of two run directories: the first difference, the evidence for it, and the report."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import faults
import runner
from runner import cli
from runner.commands.diverge.evidence import describe_difference
from runner.runs import checkpoint

OVERRIDES = [
    "name=parting", "data=line", "data.rows=12", "data.features=2", "model=linear", "train.steps=12", "update=manual",
    "optimizer.lr=1e-4", "record.plots=false", "device=cpu", "device.threads=1",
]  # fmt: skip
HASHED = ["record.every_steps=1", "record.hash_every_steps=1", "checkpoint.every_steps=4", "checkpoint.keep=null"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def run(directory: str, *overrides: str) -> Path:
    return runner.run(None, [*OVERRIDES, *overrides, f"run_dir={directory}"]).directory


def changed(file: Path, step: int, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the row of one step in a file."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        if row["step"] == step:
            change(row)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def diverge(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Run `diverge A B`, check its exit code and return the lines that it prints."""

    def lines(code: int, a: str = "A", b: str = "B") -> list[str]:
        capsys.readouterr()
        assert cli.main(["diverge", a, b]) == code
        out = capsys.readouterr()
        return (out.err if code == 2 else out.out).splitlines()

    return lines


Diverge = Callable[..., list[str]]


# ------------------------------------------------------------------------------------------------------------- equal runs


def test_two_equal_runs_are_equal_in_every_record(diverge: Diverge) -> None:
    run("A", *HASHED)
    run("B", *HASHED)
    assert diverge(0) == [
        "A  A  finished, step 12",
        "B  B  finished, step 12",
        "",
        "same configuration, data and kind of machine",
        "",
        "hashes.jsonl       equal at 13 steps, 0 to 12",
        "metrics.jsonl      equal at 12 steps, 1 to 12",
        "checkpoints        equal at 3 steps, 4 to 12",
        "parameters_sha256  equal at step 12",
        "",
        "they are equal as far as both were recorded: parameters up to step 12 (hashes.jsonl, checkpoints, parameters_sha256), "
        "rows up to step 12 (metrics.jsonl)",
    ]


def test_runs_of_different_length_are_equal_as_far_as_both_go(diverge: Diverge) -> None:
    run("A", *HASHED)
    run("B", *HASHED, "train.steps=9")
    lines = diverge(0)
    assert lines[:2] == ["A  A  finished, step 12", "B  B  finished, step 9"]
    assert "train.steps  12  9" in lines
    assert "parameters_sha256  no step in common" in lines
    assert lines[-1] == (
        "they are equal as far as both were recorded: parameters up to step 9 (hashes.jsonl), rows up to step 9 (metrics.jsonl), "
        "parameters up to step 8 (checkpoints); A continues to step 12"
    )


def test_a_changed_key_that_moves_no_bits_is_reported_and_the_runs_are_equal(diverge: Diverge) -> None:
    run("A", *HASHED)
    run("B", *HASHED, "update=optimizer")
    lines = diverge(0)
    assert "differences in configuration, data or machine:" in lines
    assert "update  manual  optimizer" in lines


def test_a_killed_run_is_compared_as_far_as_it_was_recorded(diverge: Diverge, monkeypatch: pytest.MonkeyPatch) -> None:
    run("A", *HASHED)
    with monkeypatch.context() as patch:
        faults.at_step(patch, 7, lambda: os.kill(os.getpid(), signal.SIGKILL))
        faults.in_child(lambda: run("B", *HASHED))
    with (Path("B") / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "train/lo')  # the last row is torn by the kill
    lines = diverge(0)
    assert lines[1] == "B  B  running, step 6"
    assert lines[-1] == (
        "they are equal as far as both were recorded: parameters up to step 6 (hashes.jsonl), rows up to step 6 (metrics.jsonl), "
        "parameters up to step 4 (checkpoints); A continues to step 12"
    )


def test_equal_rows_alone_are_not_reported_as_equal_parameters(diverge: Diverge) -> None:
    run("A", "record.every_steps=1")
    run("B", "record.every_steps=1")
    for name in ("A", "B"):
        shutil.rmtree(Path(name) / "checkpoints")
        (Path(name) / "summary.json").unlink()
    assert diverge(0)[-1] == "they are equal as far as both were recorded: rows up to step 12 (metrics.jsonl)"


# ------------------------------------------------------------------------------------------------------------ different runs


def test_another_seed_differs_from_the_start(diverge: Diverge) -> None:
    run("A", *HASHED)
    run("B", *HASHED, "seed=1")
    lines = diverge(1)
    assert lines[3:6] == ["differences in configuration, data or machine:", "      A  B", "seed  0  1"]
    assert "data_sha256" not in "\n".join(lines[3:6])
    assert lines[-1] == "they differ from the start, in hashes.jsonl: `bias`, `weight`"


def test_changed_data_is_reported_by_its_hash_and_at_the_first_loss(diverge: Diverge) -> None:
    table = ["x,y\n", *(f"{x},{2 * x}\n" for x in range(9))]
    overrides = [override for override in OVERRIDES if not override.startswith("data")]
    for name, rows in (("A", table), ("B", [*table[:-1], "8,17\n"])):
        Path(f"{name}.csv").write_text("".join(rows))
        csv = ["data=csv", f"data.path={name}.csv", "data.target=y"]
        runner.run(None, [*overrides, *HASHED, *csv, f"run_dir={name}"])
    lines = diverge(1)
    assert any(line.startswith("data_sha256") for line in lines)
    assert lines[-1].startswith("they differ first at step 1, in metrics.jsonl: `train/loss` is ")
    assert lines[-1].endswith("; the parameters of step 0 are equal")


def test_hashes_give_the_exact_step_and_tensor(diverge: Diverge) -> None:
    run("A", *HASHED)
    shutil.copytree("A", "B")
    changed(Path("B/hashes.jsonl"), 7, lambda row: row["parameters"].update(weight="0" * 64))
    lines = diverge(1)
    assert "hashes.jsonl       differs at step 7: `weight`" in lines
    assert lines[-1] == "they differ first at step 7, in hashes.jsonl: `weight`; the parameters of step 6 are equal"


def test_the_loss_of_a_step_comes_before_its_update(diverge: Diverge) -> None:
    run("A", *HASHED)
    shutil.copytree("A", "B")
    changed(Path("B/hashes.jsonl"), 7, lambda row: row["parameters"].update(weight="0" * 64))
    changed(Path("B/metrics.jsonl"), 7, lambda row: row.update({"train/loss": 2.0, "samples_per_second": 1.0}))
    changed(Path("A/metrics.jsonl"), 7, lambda row: row.update({"train/loss": 1.0}))
    assert diverge(1)[-1] == (
        "they differ first at step 7, in metrics.jsonl: `train/loss` is 1.0 in A, 2.0 in B (relative difference 0.5); "
        "the parameters of step 6 are equal"
    )


def test_sparse_hashes_give_an_interval_and_the_commands_that_find_the_step(diverge: Diverge) -> None:
    run("A", "record.hash_every_steps=5")
    run("B", "record.hash_every_steps=5", "optimizer.lr=2e-4")
    lines = diverge(1)
    assert lines[-4:] == [
        "they differ at step 5 or earlier, in hashes.jsonl: `bias`, `weight`; the parameters of step 0 are equal",
        "to find the exact step, repeat both with a hash at each step and compare the new runs:",
        "  python -m runner rerun A record.hash_every_steps=1",
        "  python -m runner rerun B record.hash_every_steps=1",
    ]


def test_without_hashes_rows_and_final_hashes_are_compared(diverge: Diverge) -> None:
    run("A")
    run("B", "optimizer.lr=2e-4")
    lines = diverge(1)
    assert "hashes.jsonl       no step in common" in lines
    assert lines[-4].startswith("they differ at step 12 or earlier, in metrics.jsonl: `train/loss` is ")
    assert lines[-4].endswith("; no step is known to be equal")


def test_a_missing_row_is_a_difference(diverge: Diverge) -> None:
    run("A", *HASHED)
    shutil.copytree("A", "B")
    rows = Path("B/metrics.jsonl").read_text().splitlines(keepends=True)
    Path("B/metrics.jsonl").write_text("".join(rows[:4] + rows[5:]))
    assert "metrics.jsonl      differs at step 5: only A has a row" in diverge(1)


def test_a_repeated_row_is_a_difference(diverge: Diverge) -> None:
    run("A", *HASHED)
    shutil.copytree("A", "B")
    rows = Path("B/metrics.jsonl").read_text().splitlines(keepends=True)
    Path("B/metrics.jsonl").write_text("".join(rows[:4] + rows[3:]))
    assert "metrics.jsonl      differs at step 4: B has more than one row" in diverge(1)


def test_another_row_interval_is_no_difference(diverge: Diverge) -> None:
    run("A", "record.every_steps=2")
    run("B", "record.every_steps=3")
    assert "metrics.jsonl      equal at 2 steps, 6 to 12" in diverge(0)


def test_one_changed_bit_in_a_valid_checkpoint_is_found(diverge: Diverge) -> None:
    run("A", *HASHED)
    shutil.copytree("A", "B", symlinks=True)
    state = checkpoint.intact(Path("B/checkpoints/step_8"))
    assert isinstance(state, dict)
    state["model"]["weight"].view(torch.int32)[0, 1] ^= 1
    checkpoint.save(Path("B/checkpoints"), 8, state, best=False, keep=None)
    line = next(line for line in diverge(1) if line.startswith("checkpoints"))
    assert line.startswith("checkpoints        differs at step 8: `model/weight` by at most ")
    assert line.endswith(", 1 unit in the last place)")


def test_a_damaged_checkpoint_is_ignored(diverge: Diverge) -> None:
    run("A", *HASHED)
    shutil.copytree("A", "B", symlinks=True)
    (Path("B/checkpoints/step_8") / "state.pt").write_bytes(b"")
    assert "checkpoints        equal at 2 steps, 4 to 12" in diverge(0)


def test_tensors_of_other_names_or_shapes_are_reported(diverge: Diverge) -> None:
    run("A", *HASHED)
    run("B", *HASHED, "model.bias=false")
    assert "checkpoints        differs at step 4: only A has `model/bias`" in diverge(1)
    run("C", *HASHED, "data.features=3")
    assert (
        "checkpoints        differs at step 4: `model/weight` is float32 [1, 2] in A, float32 [1, 3] in B"
        in diverge(1, b="C")
    )


def test_the_rerun_command_starts_the_same_number_of_processes(diverge: Diverge) -> None:
    run("A", "record.hash_every_steps=5")
    run("B", "record.hash_every_steps=5", "optimizer.lr=2e-4")
    file = Path("B/run.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "world_size": 2, "torch": "2.0"}))
    lines = diverge(1)
    assert any(line.split() == ["world_size", "1", "2"] for line in lines)
    assert any(line.split() == ["torch", str(torch.__version__), "2.0"] for line in lines)
    again = "launch.processes=2 launch.nodes=1 launch.rdzv_endpoint=null record.hash_every_steps=1"
    assert lines[-1] == f"  python -m runner rerun B {again}"


# -------------------------------------------------------------------------------------------------------------- refused


def test_both_paths_that_are_no_run_directory_are_refused_at_once(diverge: Diverge) -> None:
    Path("empty").mkdir()
    assert diverge(2, "nowhere", "empty") == [
        "error: `A` must be a run directory, got 'nowhere', which is not a directory; correct the path",
        "error: `B` must be a run directory, got 'empty', which has no config.yaml; give the directory of one run",
    ]


def test_runs_without_a_common_step_are_refused(diverge: Diverge) -> None:
    run("A", "train.steps=3")
    run("B", "train.steps=4")
    assert diverge(2) == [
        "error: `A` and `B` must have recorded at least one step in common, got A and B without a row, hash or checkpoint "
        "of the same step; run them with record.every_steps=1 or record.hash_every_steps=1"
    ]


def test_one_directory_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
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
    """A unit is the distance from the larger of the two numbers to its neighbour further from zero."""
    assert describe_difference(one, other).endswith(f", {units} in the last place)")
