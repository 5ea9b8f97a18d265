"""Vmapped runs end as each of them does by itself: sweeps through the public API, compared with `runner.run`.

The single runs do their updates by torch.optim where `update=optimizer`, so that half of the cases are compared with
arithmetic that is not ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import runner
from runner.runs import checkpoint
from runner.runs.sinks.jsonl import read_rows

QUICK = ["device=cpu", "device.threads=1", "record.plots=false"]
TOLERANCE = {"float64": 1e-12, "float32": 1e-4}
"""Largest difference over largest magnitude that the project promises after 200 steps."""

# Over all cases each optimizer, update, model, loss, schedule and kind of batches is combined with the others, and every
# key that may differ between lanes differs in some case. 60 rows in batches of 16 are three batches, and one of 12.
CASES = {
    "sgd manual linear mse constant full": [
        "optimizer=sgd", "update=manual", "model=linear", "data=line", "data.features=2", "loss=mse",
        "optimizer.lr=1e-3,1e-2", "optimizer.weight_decay=0,0.1", "train.clip_norm=0.5,50", "data.noise=0,2",
    ],
    "sgd optimizer polynomial huber step small": [
        "optimizer=sgd", "update=optimizer", "model=polynomial", "model.degree=3", "data=curve", "data.expression=sin(x)",
        "loss=huber", "loss.delta=0.5", "train.batch_size=16", "schedule=step", "schedule.every_steps=30,70",
        "schedule.factor=0.5,0.9", "optimizer.lr=1e-2,5e-2", "optimizer.weight_decay=1e-3", "seed=0,1",
    ],
    "momentum manual mlp mae cosine small accumulated": [
        "optimizer=momentum", "update=manual", "model=mlp", "model.widths=[8,4]", "model.activation=tanh", "data=curve",
        "data.expression=x*x", "loss=mae", "train.batch_size=16", "train.accumulate=3", "schedule=cosine",
        "schedule.final_factor=0,0.3", "optimizer.lr=1e-3,1e-2", "optimizer.momentum=0,0.9", "seed=0,1",
    ],
    "momentum optimizer formula mse warmup full accumulated": [
        "optimizer=momentum", "update=optimizer", "model=formula", "model.expression=a*sin(b*x)+c", "model.init=uniform",
        "model.start.a=0.5,1", "data=curve", "data.expression=1.5*sin(x)+0.3", "loss=mse", "train.accumulate=2",
        "schedule=warmup_cosine", "schedule.warmup_steps=5,50", "schedule.final_factor=0.1", "optimizer.lr=1e-2",
        "optimizer.weight_decay=0,1e-2", "seed=0,1",
    ],
    "adam manual formula huber step small": [
        "optimizer=adam", "update=manual", "model=formula", "model.expression=a*exp(-b*x)", "data=curve", "loss=huber",
        "data.expression=2*exp(-0.5*x)", "loss.delta=0.2", "train.batch_size=16", "schedule=step", "schedule.factor=0.5",
        "schedule.every_steps=40", "optimizer.lr=5e-2", "optimizer.betas=[0.9,0.999],[0.5,0.9]",
        "optimizer.eps=1e-8,1e-3", "optimizer.weight_decay=0,1e-2", "seed=0,1",
    ],
    "adam optimizer mlp mse warmup small accumulated": [
        "optimizer=adam", "update=optimizer", "model=mlp", "model.widths=[8]", "model.activation=gelu", "data=line",
        "data.features=3", "data.standardize=true", "loss=mse", "train.batch_size=16", "train.accumulate=2",
        "schedule=warmup_cosine", "schedule.warmup_steps=20", "schedule.final_factor=0,0.5", "optimizer.lr=1e-2",
        "optimizer.betas=[0.9,0.999],[0.5,0.9]", "train.clip_norm=0.1,10", "seed=0,1",
    ],
    "adamw manual polynomial mae cosine full": [
        "optimizer=adamw", "update=manual", "model=polynomial", "model.degree=2", "data=line", "data.features=2", "loss=mae",
        "schedule=cosine", "schedule.final_factor=0.2", "optimizer.lr=1e-3,1e-2", "optimizer.weight_decay=0,0.1",
        "optimizer.eps=1e-8,1e-4", "data.seed=3,4",
    ],
    "adamw optimizer linear huber constant small accumulated": [
        "optimizer=adamw", "update=optimizer", "model=linear", "data=line", "data.features=2", "data.log_target=true",
        "data.noise_distribution=uniform", "data.intercept=9", "loss=huber", "loss.delta=1.5", "train.batch_size=16",
        "train.accumulate=3", "optimizer.lr=1e-2", "optimizer.betas=[0.9,0.999],[0.8,0.95]",
        "optimizer.weight_decay=1e-2,0.3", "data.slope=1,-2", "seed=0,1",
    ],
}  # fmt: skip
ALL = [
    "name=lanes", "data.rows=72", "data.start=-1", "data.stop=1", "data.split.test=6", "data.split.valid=6",
    "train.steps=200", "train.eval_every_steps=50", "record.every_steps=20", "checkpoint.every_steps=80", "checkpoint.keep=null",
]  # fmt: skip
COMPARED = {"float64": 3, "float32": 2}
"""Number of members of each program that are also trained by themselves."""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def swept(overrides: Sequence[str], *, programs: int = 1) -> Path:
    """Run a sweep that is trained as `programs` programs of equal width. Returns its directory."""
    directory, results = runner.multirun(None, [*QUICK, *overrides, "run_dir=together"])
    lanes = [read_json(directory / str(member.number) / "run.json")["lanes"] for member in results.members]
    assert lanes == [len(lanes) // programs] * len(lanes), "they were not vmapped"
    return directory


def single(directory: Path, number: int, *overrides: str) -> Path:
    """Run a member by itself, to its end or to its divergence. Returns the directory of the run."""
    (member,) = (m for m in read_json(directory / "sweep.json")["members"] if m["number"] == number)
    path = Path(f"single-{number}{'-'.join(('', *overrides))}")
    with contextlib.suppress(runner.Diverged):
        runner.run(None, [*member["overrides"], *overrides, f"run_dir='{path}'"])
    assert read_json(path / "run.json")["lanes"] == 1
    return path


def drawn(numbers: range, count: int) -> list[int]:
    """Return the first and the last number, and some between."""
    first, *between, last = numbers
    return [first, *random.Random(first).sample(between, count - 2), last]


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def rows(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "samples_per_second"} for row in read_rows(run / "metrics.jsonl")]


def state(run: Path, name: str) -> Any:
    return torch.load(run / "checkpoints" / name / "state.pt", weights_only=True)


def relative_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference over the largest magnitude."""
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    difference, magnitude = float((one - other).abs().max()), float(one.abs().max())
    return difference / magnitude if difference else 0.0


def assert_same_numbers(one: Mapping[str, float], other: Mapping[str, float], tolerance: float) -> None:
    """Assert equal names, and numbers within the tolerance: an absolute one near zero, where sums of larger numbers cancel."""
    assert one.keys() == other.keys()
    for name in one:
        assert float(other[name]) == pytest.approx(float(one[name]), rel=tolerance, abs=tolerance, nan_ok=True), name


def assert_same_run(solo: Path, member: Path, tolerance: float) -> None:
    """Assert that two runs left the same files, with numbers within the tolerance."""
    assert saved(solo) == saved(member)
    for name in ("last", "best"):
        if (solo / "checkpoints" / name).exists():
            assert os.readlink(solo / "checkpoints" / name) == os.readlink(member / "checkpoints" / name)
    for path in (solo / "checkpoints").glob("step_*"):
        assert checkpoint.verify(member / "checkpoints" / path.name) is None
        assert_same_state(state(solo, path.name), state(member, path.name), tolerance)
    first, second = rows(solo), rows(member)
    assert [(row["step"], row["epoch"], row["lr"]) for row in first] == [
        (r["step"], r["epoch"], r["lr"]) for r in second
    ]
    for one, other in zip(first, second, strict=True):
        assert_same_numbers(one, other, tolerance)
    one, other = read_json(solo / "run.json"), read_json(member / "run.json")
    for name in ("status", "config_hash", "seed", "dtype", "strategy", "device", "world_size", "threads", "resumed"):
        assert one[name] == other[name], name
    assert one.get("reason") == other.get("reason")
    one, other = (yaml.safe_load((run / "config.yaml").read_text()) for run in (solo, member))
    assert one == {**other, "run_dir": one["run_dir"]}
    if (solo / "summary.json").exists() or (member / "summary.json").exists():
        assert_same_summary(read_json(solo / "summary.json"), read_json(member / "summary.json"), tolerance)


def saved(run: Path) -> set[str]:
    """Return the names of the checkpoints. A run that diverges at its first step has none."""
    return {path.name for path in (run / "checkpoints").glob("*")}


def assert_same_state(solo: Any, member: Any, tolerance: float) -> None:
    """Assert equal names, shapes and types of parameters and optimizer state, with values within the tolerance."""
    assert solo.keys() == member.keys()
    assert solo["model"].keys() == member["model"].keys()
    for name, tensor in solo["model"].items():
        assert relative_difference(tensor, member["model"][name]) <= tolerance, name
    assert slots(solo) == slots(member)
    for name, values_by_slot in solo["optimizer"].items():
        for slot, value in values_by_slot.items():
            assert relative_difference(value, member["optimizer"][name][slot]) <= tolerance, (name, slot)
    for name in ("stopped_early", "data_sha256"):
        assert solo[name] == member[name]
    for name in ("best", "early_stopping"):
        assert solo[name]["waited"] == member[name]["waited"]
        values = solo[name]["value"], member[name]["value"]
        assert values == (None, None) or values[0] == pytest.approx(values[1], rel=tolerance)
    assert solo["scaling"].keys() == member["scaling"].keys()


def slots(saved: Any) -> set[tuple[str, str]]:
    return {(name, slot) for name, values in saved["optimizer"].items() for slot in values}


def assert_same_summary(solo: Any, member: Any, tolerance: float) -> None:
    assert (solo["steps"], solo["stopped_early"]) == (member["steps"], member["stopped_early"])
    assert_same_numbers(solo["metrics"], member["metrics"], tolerance)
    assert solo["parameters"].keys() == member["parameters"].keys()
    for name, values in solo["parameters"].items():
        one, other = (torch.tensor(summary["parameters"][name], dtype=torch.float64) for summary in (solo, member))
        assert relative_difference(one, other) <= tolerance, name
        assert torch.tensor(values).shape == other.shape


@pytest.mark.parametrize("case", CASES)
def test_a_vmapped_run_ends_as_the_single_run(case: str) -> None:
    directory = swept(["dtype=float64,float32", *ALL, *CASES[case]], programs=2)
    half = len(read_json(directory / "sweep.json")["members"]) // 2
    for dtype, numbers in (("float64", range(half)), ("float32", range(half, 2 * half))):
        for number in drawn(numbers, COMPARED[dtype]):
            assert_same_run(single(directory, number), directory / str(number), TOLERANCE[dtype])


# ------------------------------------------------------------------------------------------ lanes that end at other steps

NETWORK = [
    "name=lanes", "data=curve", "data.expression=sin(x)", "data.rows=72", "data.start=-3", "data.stop=3",
    "data.split.test=6", "data.split.valid=6", "model=mlp", "model.widths=[8]", "train.batch_size=16", "record.every_steps=7",
]  # fmt: skip


def test_each_lane_stops_early_by_itself() -> None:
    """The program is made smaller twice, when lanes have ended."""
    directory = swept(
        [
            *NETWORK, "dtype=float64", "optimizer=adam", "optimizer.lr=0,1e-4,3e-2", "train.steps=200",
            "train.eval_every_steps=5", "train.early_stopping.patience=2,6", "train.early_stopping.min_delta=1e-3",
            "checkpoint.every_steps=40",
        ]
    )  # fmt: skip
    members = range(6)
    for number in members:
        assert_same_run(single(directory, number), directory / str(number), TOLERANCE["float64"])
    summaries = [read_json(directory / str(number) / "summary.json") for number in members]
    assert len({summary["steps"] for summary in summaries}) >= 3
    assert {summary["stopped_early"] for summary in summaries} == {True, False}


@pytest.mark.parametrize(
    "overrides",
    [
        ["dtype=float64", "optimizer=sgd", "update=manual", "optimizer.lr=1e-3,0.3,3,1e3,1e10"],
        [
            "dtype=float64",
            "optimizer=momentum",
            "update=optimizer",
            "optimizer.momentum=0.9",
            "optimizer.lr=1e-3,5,1e10",
        ],
        ["dtype=float32", "optimizer=adam", "update=optimizer", "optimizer.lr=1e-3,1e30", "seed=0,1"],
        [
            "dtype=float64",
            "optimizer=sgd",
            "update=optimizer",
            "train.clip_norm=1e150",
            "optimizer.lr=1e-3,3,1e10",
            "seed=0,1",
        ],
        ["dtype=float64", "optimizer=sgd", "train.check_gradients=true", "optimizer.lr=1e-3,3,1e10"],
    ],
    ids=" ".join,
)
def test_a_vmapped_run_diverges_as_the_single_run(overrides: Sequence[str]) -> None:
    """It ends at the same step, with the same message, last row and restored parameters; the other lanes continue."""
    directory = swept(
        [
            "name=lanes", "data=line", "data.features=2", "data.rows=50", "data.start=-1", "data.stop=1", "data.split.test=5", "loss=mse",
            "train.batch_size=20", "train.steps=300", "record.every_steps=90", "checkpoint.every_steps=40", *overrides,
        ]
    )  # fmt: skip
    found = read_json(directory / "sweep.json")["members"]
    tolerance = TOLERANCE[overrides[0].removeprefix("dtype=")]
    for member in found:
        assert_same_run(single(directory, member["number"]), directory / str(member["number"]), tolerance)
        assert member["reason"] == read_json(directory / str(member["number"]) / "run.json").get("reason")
    states = [member["state"] for member in found]
    assert set(states) == {"finished", "failed"}
    assert all(str(member["reason"]).startswith("training diverged at step ") for member in found if member["reason"])
    failed = [member for member in found if member["state"] == "failed"]
    ends = {rows(directory / str(member["number"]))[-1]["step"] for member in failed}
    assert len(ends) >= len({member["values"]["optimizer.lr"] for member in failed}), (
        "each learning rate diverges at its own step"
    )


def test_a_lane_diverges_just_after_others_left_the_program() -> None:
    """Two of four stop early at step 15. One of the others diverges at step 16, and its lane has changed."""
    directory = swept(
        [
            "name=lanes", "data=line", "data.features=2", "data.rows=50", "data.start=-1", "data.stop=1", "data.split.valid=5",
            "dtype=float64", "optimizer=sgd", "optimizer.lr=0,1e10", "train.steps=40", "train.batch_size=20",
            "train.eval_every_steps=5", "train.early_stopping.patience=2,1000",
        ]
    )  # fmt: skip
    for number in range(4):
        assert_same_run(single(directory, number), directory / str(number), TOLERANCE["float64"])
    assert [rows(directory / str(number))[-1]["step"] for number in range(4)] == [15, 40, 15, 16]


def test_rows_without_a_finite_prediction_are_named_for_each_lane() -> None:
    """Seeds differ, so that each lane diverges at a batch of other rows."""
    directory = swept(
        [
            "name=lanes", "data=line", "data.start=-2", "data.stop=40", "data.rows=40", "model=formula", "dtype=float64",
            "model.expression=a*log(x)+b", "train.batch_size=8", "train.steps=9", "seed=0,1,2,3",
        ]
    )  # fmt: skip
    reasons = set()
    for number in range(4):
        assert_same_run(single(directory, number), directory / str(number), TOLERANCE["float64"])
        reasons.add(read_json(directory / str(number) / "run.json")["reason"])
    assert len(reasons) == 4
    # One row of a batch is named, or the first of several.
    assert all("no finite prediction" in reason and "row " in reason for reason in reasons)


# -------------------------------------------------------------------------------------------------- after the sweep


@pytest.mark.parametrize(("optimizer", "update"), [("momentum", "manual"), ("adamw", "optimizer")])
def test_a_member_is_resumed_by_itself(optimizer: str, update: str) -> None:
    overrides = [
        *NETWORK,
        "dtype=float64",
        f"optimizer={optimizer}",
        f"update={update}",
        "optimizer.lr=1e-3,1e-2",
        "seed=0,1",
    ]
    directory = swept([*overrides, "train.steps=60", "train.eval_every_steps=30"])
    longer = single(directory, 3, "train.steps=100")
    runner.run(None, ["resume=together/3", "train.steps=100"])
    assert read_json(directory / "3/run.json")["resumed"] == 1
    assert_same_state(state(longer, "last"), state(directory / "3", "last"), TOLERANCE["float64"])
    # Both runs evaluate at step 60, so both have its row.
    assert [row["step"] for row in rows(directory / "3")] == sorted({60, *(row["step"] for row in rows(longer))})
    first, second = (read_json(run / "summary.json") for run in (longer, directory / "3"))
    assert_same_summary(first, second, TOLERANCE["float64"])


def test_tensorboard_shows_a_vmapped_run_as_the_single_run() -> None:
    directory = swept(
        [*NETWORK, "dtype=float64", "train.steps=40", "train.eval_every_steps=20", "optimizer.lr=1e-3,1e-2", "seed=0,1"]
    )
    for number in range(4):
        one, other = events(single(directory, number)), events(directory / str(number))
        assert one.keys() == other.keys()
        for tag, values in one.items():
            assert [step for step, _ in values] == [step for step, _ in other[tag]]
            # TensorBoard keeps float32: a rounding may change the last bit.
            assert [v for _, v in values] == pytest.approx([v for _, v in other[tag]], rel=2e-7)


def events(run: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = EventAccumulator(str(run))
    accumulator.Reload()
    tags = [tag for tag in accumulator.Tags()["scalars"] if tag != "samples_per_second"]
    return {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in tags}
