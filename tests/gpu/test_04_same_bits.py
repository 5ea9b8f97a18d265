"""With `deterministic=true` a run can be repeated, stopped and resumed on the GPU without a changed bit."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import faults
import runner
from gpu.devices import (
    EVERYTHING,
    FULL_BATCH,
    GRAPHS,
    NETWORK,
    first_difference,
    needs_device,
    read_json,
    resume,
    rows,
    sha256,
    state,
    train,
)

pytestmark = needs_device

FIXED = "deterministic=true"
UPDATES = [(name, update) for name in ("sgd", "momentum", "adam", "adamw") for update in ("manual", "optimizer")]


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(("optimizer", "update"), UPDATES)
def test_a_run_repeats(optimizer: str, update: str, graph: str) -> None:
    overrides = (*EVERYTHING, FIXED, f"optimizer={optimizer}", f"update={update}", graph)
    assert first_difference(train("one", *overrides), train("two", *overrides)) is None


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_a_run_repeats_in_other_dtypes(dtype: str) -> None:
    overrides = (*EVERYTHING, FIXED, f"dtype={dtype}")
    assert first_difference(train("one", *overrides), train("two", *overrides)) is None


@pytest.mark.parametrize("overrides", [("optimizer=lm",), ("optimizer=lbfgs",), ("strategy.reduction=exact",)])
def test_other_methods_repeat(overrides: tuple[str, ...]) -> None:
    one, two = (train(name, *FULL_BATCH, FIXED, "train.steps=6", *overrides) for name in ("one", "two"))
    assert first_difference(one, two) is None


def test_another_seed_gives_other_bits() -> None:
    """The comparisons above would see a difference."""
    one, two = (train(f"seed_{seed}", *EVERYTHING, FIXED, f"seed={seed}") for seed in (0, 1))
    assert first_difference(one, two) is not None


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(("optimizer", "update"), UPDATES)
def test_a_stopped_run_is_resumed_in_the_middle_of_an_epoch(
    optimizer: str, update: str, graph: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal arrives at step 8, which is in the middle of an epoch of three steps, of an accumulation and of a schedule."""
    overrides = (*EVERYTHING, FIXED, f"optimizer={optimizer}", f"update={update}", graph)
    whole = train("whole", *overrides)
    with monkeypatch.context() as patched:
        fired = faults.at_row(patched, 8, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(runner.Interrupted):
            train("stopped", *overrides)
    assert fired == [8]
    stopped = Path("stopped")
    assert (read_json(stopped / "run.json")["status"], rows(stopped)[-1]["step"]) == ("interrupted", 8)
    assert first_difference(whole, resume(stopped)) is None


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(
    "overrides", [(*NETWORK, "update=manual", "optimizer=adam"), (*FULL_BATCH, "optimizer=lm", "train.steps=9")]
)
def test_a_killed_run_is_resumed_from_its_last_checkpoint(
    overrides: tuple[str, ...], graph: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything after step 5 is lost and repeated."""
    overrides = (*overrides, FIXED, graph)
    whole = train("whole", *overrides)
    with monkeypatch.context() as patched:
        fired = faults.at_row(patched, 8, _killed)
        with pytest.raises(_Killed):
            train("killed", *overrides)
    assert fired == [8]
    assert max(int(path.name[5:]) for path in Path("killed/checkpoints").glob("step_*")) == 5
    assert first_difference(whole, resume(Path("killed"))) is None


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_finished_run_is_resumed_for_more_steps(graph: str) -> None:
    overrides = (*NETWORK, FIXED, "model.dropout=0.2", "train.accumulate=2", "optimizer=momentum", graph)
    whole, part = train("whole", *overrides), train("part", *overrides, "train.steps=7")
    assert state(part)["model"].keys() == state(whole)["model"].keys()
    assert sha256(part) != sha256(whole)
    assert first_difference(whole, resume(part, "train.steps=20")) is None


@pytest.mark.parametrize("chunks", [1, 4])
def test_exact_reduction_is_resumed_without_a_changed_bit(chunks: int) -> None:
    overrides = (*NETWORK, FIXED, "model.dropout=0.2", "strategy.reduction=exact", f"strategy.chunks={chunks}")
    whole, again, part = (
        train(name, *overrides, f"train.steps={steps}") for name, steps in (("whole", 20), ("again", 20), ("part", 7))
    )
    assert first_difference(whole, again) is None
    assert first_difference(whole, resume(part, "train.steps=20")) is None


class _Killed(BaseException):
    """Stands for the end of the process: nothing of the run handles it."""


def _killed() -> None:
    raise _Killed
