"""A run that was started on the CPU is continued on the GPU, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from gpu.devices import (
    DEVICE,
    FULL_BATCH,
    GRAPHS,
    NETWORK,
    SETTINGS,
    needs_device,
    read_json,
    resume,
    rows,
    state,
    train,
)
from gpu.test_01_start_values import CPU
from runner.commands.parity.rounding import Rounding, relative_difference
from runner.config.compose import compose
from runner.runs.sinks.jsonl import read_rows

pytestmark = needs_device


@dataclass(frozen=True)
class Method:
    """A run that changes its device after its `first` of `steps` steps."""

    overrides: tuple[str, ...]
    first: int = 7  # in the middle of an epoch
    steps: int = 20


BATCHES = (*NETWORK, "train.accumulate=2", "train.clip_norm=1")
DECAY = (
    "name=decay", "data=curve", "data.expression=2*exp(-0.7*x)", "data.rows=40", "data.stop=4", "data.noise=0.05",
    "model=formula", "model.expression=a*exp(-b*x)", "model.start={a: 1, b: 0.2}", "record.every_steps=1",
)  # fmt: skip
METHODS: Mapping[str, Method] = {
    **{
        f"{name}, {update}": Method((*BATCHES, f"optimizer={name}", f"update={update}"))
        for name in ("sgd", "momentum", "adam", "adamw")
        for update in ("manual", "optimizer")
    },
    "exact": Method((*BATCHES, "strategy.reduction=exact")),
    "lbfgs": Method((*FULL_BATCH, "optimizer=lbfgs", "optimizer.max_iter=2"), first=3, steps=8),
    "lm": Method((*DECAY, "optimizer=lm"), first=2, steps=5),
}


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("case", METHODS)
def test_a_run_continues_on_another_device(case: str, graph: str) -> None:
    """The bound is what rounding in float64 may change, sampled as for the `parity` command."""
    method = METHODS[case]
    overrides = (*method.overrides, "dtype=float64", "record.hash_every_steps=1", graph)
    length, part = f"train.steps={method.steps}", f"train.steps={method.first}"
    whole = train("whole", *overrides, length, "device=cpu")
    limit, _ = Rounding(_reference(*overrides, length), CPU).sampled("float64", "highest", method.steps)
    assert limit < 1e-4, "the bound must promise digits"
    for name, first, second in (("there", "cpu", DEVICE), ("back", DEVICE, "cpu")):
        run = train(name, *overrides, part, f"device={first}")
        resumed = resume(run, length, f"device={second}")
        assert read_json(resumed / "run.json")["device"] == second
        assert [row["step"] for row in rows(resumed)] == [row["step"] for row in rows(whole)]
        if first == "cpu":
            assert _hashes(resumed)[: method.first + 1] == _hashes(whole)[: method.first + 1]
        assert_close(state(resumed), state(whole), limit)


def assert_close(one: Mapping[str, Any], other: Mapping[str, Any], limit: float) -> None:
    """Assert that two states have equal names, shapes and types, and parameters within a relative bound."""
    assert relative_difference(one["model"], other["model"]) <= limit
    for values in (one, other):
        assert all(value.device.type == "cpu" for value in values["model"].values())
    assert _kinds(one["optimizer"]) == _kinds(other["optimizer"])


def _kinds(value: Any) -> Any:
    """Return a state with every tensor replaced by its shape and dtype, and every number by its type."""
    if isinstance(value, Mapping):
        return {name: _kinds(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_kinds(item) for item in value]
    return (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else type(value)


def _hashes(run: Path) -> list[dict[str, Any]]:
    return read_rows(run / "hashes.jsonl")


def _reference(*overrides: str) -> Any:
    return compose([*SETTINGS, *overrides, "device=cpu", "strategy=single"], None).config


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_narrower_dtypes_continue_on_another_device(dtype: str) -> None:
    """Their checkpoints keep the dtype, to the bit, on the way to the GPU and back."""
    overrides = (*NETWORK, f"dtype={dtype}", "optimizer=adam", "update=manual", "train.steps=6")
    run = train("run", *overrides, "device=cpu")
    before = state(run)["model"]
    resumed = resume(run, "train.steps=7", f"device={DEVICE}")
    (line,) = [line for line in _hashes(resumed) if line["step"] == 6]
    assert line == _hashes(train("again", *overrides, "device=cpu"))[6]
    after = state(resumed)["model"]
    assert {name: value.dtype for name, value in after.items()} == {n: v.dtype for n, v in before.items()}
    assert any(not after[name].equal(value) for name, value in before.items())
