"""amp=float16: steps whose gradients overflow are skipped and counted, and the count survives a resume."""

from __future__ import annotations

import math

import pytest

from gpu.devices import FULL_BATCH, NETWORK, first_difference, needs_device, resume, rows, state, train

pytestmark = needs_device

# Features up to 100 and a first scale of 65536: the first scaled gradients are beyond float16's 65504.
OVERFLOWS = (
    "+experiment=linreg", "amp=float16", "deterministic=true", "train.steps=30", "record.every_steps=1", "record.hash_every_steps=1",
    "checkpoint.every_steps=1", "checkpoint.keep=null",
)  # fmt: skip
UPDATES = [(name, update) for name in ("sgd", "adam") for update in ("manual", "optimizer")]


@pytest.mark.parametrize(("optimizer", "update"), UPDATES)
def test_skipped_steps_are_counted_and_change_nothing(optimizer: str, update: str) -> None:
    run = train("run", *OVERFLOWS, f"optimizer={optimizer}", f"update={update}", "optimizer.lr=1e-5")
    counts = [row["skipped_steps"] for row in rows(run)]
    assert counts[0] == 1, "the first scale must overflow"
    assert 1 < counts[-1] < 30
    assert counts == sorted(counts)
    assert state(run)["scaler"]["skipped_steps"] == counts[-1]
    assert state(run)["scaler"]["scale"] == 65536 / 2 ** counts[-1]
    assert all(value.isfinite().all() for value in state(run)["model"].values())
    assert all(math.isfinite(row["train/loss"]) for row in rows(run))
    losses = [row["train/loss"] for row in rows(run)]
    assert len(set(losses[: counts[-1] + 1])) == 1, "a skipped step leaves the parameters as they were"
    assert losses[-1] != losses[0]


@pytest.mark.parametrize("steps", [3, 12])
@pytest.mark.parametrize(("optimizer", "update"), UPDATES)
def test_the_count_and_the_scale_are_resumed(optimizer: str, update: str, steps: int) -> None:
    """At step 3 the scale is still too large; at step 12 it is not."""
    overrides = (*OVERFLOWS, f"optimizer={optimizer}", f"update={update}", "optimizer.lr=1e-5")
    whole, part = train("whole", *overrides), train("part", *overrides, f"train.steps={steps}")
    resumed = resume(part, "train.steps=30")
    assert first_difference(whole, resumed) is None
    assert state(resumed)["scaler"] == state(whole)["scaler"]


def test_a_network_trains_with_dropout_clipping_and_accumulation() -> None:
    overrides = (
        *NETWORK,
        "amp=float16",
        "deterministic=true",
        "model.dropout=0.2",
        "train.accumulate=2",
        "train.clip_norm=1",
    )
    one, two = train("one", *overrides, "train.steps=30"), train("two", *overrides, "train.steps=11")
    assert first_difference(one, resume(two, "train.steps=30")) is None
    assert rows(one)[-1]["skipped_steps"] < 10


def test_clipping_ignores_a_skipped_step() -> None:
    """The norm of an overflow is not finite, which must not count as a divergence."""
    run = train("run", *OVERFLOWS, "train.clip_norm=1", "train.check_gradients=true", "optimizer.lr=1e-5")
    assert 0 < rows(run)[-1]["skipped_steps"] < 30


def test_mixed_precision_keeps_parameters_in_float32() -> None:
    run = train("run", *FULL_BATCH, "amp=float16", "optimizer.lr=0.01", "train.steps=3")
    assert {str(value.dtype) for value in state(run)["model"].values()} == {"torch.float32"}
