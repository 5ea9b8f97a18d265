"""Runs of a sweep that are vmapped on the GPU give what each gives alone, and sweeps leave the files that runs leave."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import runner
from gpu.devices import (
    CAPTURED,
    DEVICE,
    EAGER,
    FULL_BATCH,
    GRAPHS,
    NETWORK,
    QUICK,
    needs_device,
    read_json,
    rows,
    sha256,
    state,
)
from runner.commands.verify.sweep import BOUNDS
from runner.sweep.audit import difference

pytestmark = needs_device

FIXED = "deterministic=true"
LINE = (
    "+experiment=linreg",
    "train.steps=60",
    "record.every_steps=20",
    "record.hash_every_steps=20",
    "checkpoint.every_steps=30",
)
SWEEPS: Mapping[str, tuple[str, ...]] = {
    "line": (*LINE, "optimizer.lr=1e-5,5e-5,1e-4", "seed=0,1"),
    "line, float64": (*LINE, "dtype=float64", "update=optimizer", "optimizer.lr=1e-5,5e-5,1e-4", "seed=0,1"),
    "line, adam": (*LINE, "optimizer=adam", "update=optimizer", "optimizer.lr=1e-3,1e-2", "data.noise=1,5", "seed=0,1"),
    "network": (*NETWORK, "optimizer.lr=0.01,0.02", "seed=0,1,2"),
    "network, float64": (*NETWORK, "dtype=float64", "update=manual", "optimizer=adam", "optimizer.lr=0.01,0.02", "seed=0,1"),
    "network, clipped and accumulated": (
        *NETWORK, "optimizer=momentum", "train.clip_norm=0.05,1", "train.accumulate=3", "update=manual", "seed=0,1",
    ),
    "network, schedules": (
        *NETWORK, "optimizer=adamw", "schedule=cosine", "schedule.final_factor=0,0.5", "optimizer.lr=0.01,0.02", "update=manual",
    ),
    "network, steps": (
        *NETWORK, "schedule=step", "schedule.every_steps=4,9", "schedule.factor=0.5", "optimizer.lr=0.01,0.02", "optimizer=adam",
    ),
    "network, all rows": (*FULL_BATCH, "optimizer=sgd", "optimizer.lr=0.01,0.02", "seed=0,1"),
}  # fmt: skip
SOLVED: Mapping[str, tuple[str, ...]] = {
    "lstsq": (*LINE, "optimizer=lstsq", "dtype=float64", "seed=0,1,2"),
    "lm": (
        "+experiment=curve_fit", "model.expression=a*exp(-b*x)", "model.start={a: 1, b: 0.1}", "data.expression=2*exp(-0.2*x)",
        "data.noise=0.01", "optimizer=lm", "dtype=float64", "seed=0,1,2",
    ),
}  # fmt: skip


def swept(*overrides: str, together: bool = True) -> Path:
    """Run a sweep and return its directory; assert that its members were vmapped, all or none."""
    directory, results = runner.multirun(None, [*QUICK, *overrides, "run_dir=sweep"])
    records = [read_json(directory / str(member.number) / "run.json") for member in results.members]
    assert [record["lanes"] for record in records] == [len(records) if together else 1] * len(records)
    assert {record["device"] for record in records} == {DEVICE}
    return directory


def alone(directory: Path, number: int, *more: str) -> Path:
    """Train a member by itself and return the directory of its run."""
    (member,) = (m for m in read_json(directory / "sweep.json")["members"] if m["number"] == number)
    return runner.run(None, [*member["overrides"], *more, f"run_dir=alone-{number}"]).directory


def ends(directory: Path) -> Sequence[int]:
    """Return the numbers of the first and the last member."""
    numbers = [member["number"] for member in read_json(directory / "sweep.json")["members"]]
    return numbers[0], numbers[-1]


def slots(run: Path) -> set[tuple[str, str]]:
    """Return the names of the optimizer's state in the last checkpoint, each with its parameter."""
    return {(name, slot) for name, values in state(run)["optimizer"].items() for slot in values}


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("case", [*SWEEPS, *SOLVED])
def test_lanes_give_what_runs_alone_give(case: str, graph: str) -> None:
    """Within the bounds of `verify sweep`: a product of stacked matrices adds in another order."""
    directory = swept(*({**SWEEPS, **SOLVED}[case]), FIXED, graph)
    for number in ends(directory):
        member, single = directory / str(number), alone(directory, number)
        assert difference(single, member) <= BOUNDS[read_json(member / "run.json")["dtype"]]
        assert [row["step"] for row in rows(member)] == [row["step"] for row in rows(single)]
        assert slots(member) == slots(single)


@pytest.mark.parametrize(
    "case", ["line", "network", "network, clipped and accumulated", "network, schedules", "network, steps"]
)
def test_lanes_have_the_same_bits_captured_or_not(case: str) -> None:
    hashes = []
    for name, graph in (("eager", EAGER), ("captured", CAPTURED)):
        directory, results = runner.multirun(None, [*QUICK, *SWEEPS[case], FIXED, graph, f"run_dir={name}"])
        members = [directory / str(member.number) for member in results.members]
        assert {read_json(member / "run.json")["lanes"] for member in members} == {len(members)}
        hashes.append([(member / "hashes.jsonl").read_bytes() for member in members])
        assert len({sha256(member) for member in members}) == len(members)
    assert hashes[0] == hashes[1]


def diverged_at(reason: str) -> int:
    """Return the step that the reason of a divergence names."""
    found = re.match(r"training diverged at step (\d+)", reason)
    assert found is not None, reason
    return int(found[1])


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_diverging_lane_leaves_the_others_alone(graph: str) -> None:
    """The program is made smaller without them, and its steps are captured again."""
    overrides = (
        *LINE,
        "train.steps=200",
        "optimizer.lr=1e-5,5e-5,1e-4,1,10",
        "record.hash_every_steps=null",
        FIXED,
        graph,
    )
    directory = swept(*overrides)
    members = read_json(directory / "sweep.json")["members"]
    assert [member["state"] for member in members] == ["finished", "finished", "finished", "failed", "failed"]
    for member in members[3:]:
        with pytest.raises(runner.Diverged) as raised:
            alone(directory, member["number"])
        assert diverged_at(str(raised.value)) == diverged_at(member["reason"])
    for number in (0, 2):
        assert difference(alone(directory, number), directory / str(number)) <= BOUNDS["float32"]


def test_a_member_is_resumed_by_itself() -> None:
    directory = swept(*NETWORK, FIXED, "optimizer=adam", "optimizer.lr=0.01,0.02", "train.steps=10")
    longer = alone(directory, 1, "train.steps=20")
    resumed = runner.run(None, [f"resume={directory}/1", "train.steps=20"]).directory
    assert difference(longer, resumed) <= BOUNDS["float32"]


def test_what_cannot_be_vmapped_is_trained_one_by_one() -> None:
    directory = swept(*NETWORK, FIXED, "model.dropout=0.2", "seed=0,1", together=False)
    for number in ends(directory):
        assert sha256(alone(directory, number)) == sha256(directory / str(number))


def test_an_audit_repeats_members() -> None:
    directory = swept(*LINE, FIXED, "optimizer.lr=1e-5,5e-5,1e-4", "seed=0,1", "sweep.audit=2")
    audit = read_json(directory / "sweep.json")["audit"]
    assert len(audit["members"]) == 2
    assert audit["largest_difference"] <= BOUNDS["float32"]
