"""Out of memory on the GPU: an error that says what to make smaller, and nothing that was saved is lost."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import faults
import runner
from gpu.devices import EAGER, EITHER, QUICK, first_difference, needs_gpu, read_json, resume, rows, train
from runner.runs import checkpoint

pytestmark = needs_gpu

MIB = 2**20
WIDE = (
    "name=wide", "data=curve", "data.expression=sin(x)", "model=mlp", "model.widths=[256]", "optimizer.lr=1e-3", "deterministic=true",
    "record.every_steps=1", "record.hash_every_steps=1", "checkpoint.every_steps=2", "checkpoint.keep=null", "train.steps=8",
)  # fmt: skip
"""A row needs 1 KiB for the hidden units of a forward pass, and as much for each copy of them."""


@contextmanager
def limited(mebibytes: float) -> Iterator[None]:
    """Let this process use so much more memory of the GPU than it does now."""
    limit(mebibytes)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def limit(mebibytes: float) -> None:
    """Give unused memory back to the GPU, and limit how much more this process may use."""
    gc.collect()
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_reserved() + mebibytes * MIB
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(0).total_memory)


def test_a_model_that_does_not_fit_is_refused_before_anything_is_written() -> None:
    """36 million parameters need 144 MB in float32."""
    with limited(100), pytest.raises(runner.ConfigError) as raised:
        train("run", *WIDE, "model.widths=[6000,6000]", "data.rows=100")
    assert raised.value.exit_code == 2
    assert "make `data.rows`, `data.features` or `model.widths` smaller" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not Path("run").exists()


def test_a_batch_that_does_not_fit_fails_and_the_advice_helps() -> None:
    """800,000 rows need 0.8 GB; a sixteenth of them does not."""
    overrides = (*WIDE, "data.rows=800000", "train.steps=2", EAGER)
    with limited(400), pytest.raises(runner.RunFailed) as raised:
        train("whole", *overrides)
    assert raised.value.exit_code == 1
    assert str(raised.value).startswith("out of memory with `train.batch_size`=all rows; make it smaller")
    assert "train.accumulate" in str(raised.value)
    record = read_json(Path("whole/run.json"))
    assert record["status"] == "failed"
    assert "out of memory" in record["reason"]
    with limited(400):
        parts = train("parts", *overrides, "train.accumulate=16")
        small = train("small", *overrides, "train.batch_size=50000")
    assert [read_json(run / "run.json")["status"] for run in (parts, small)] == ["finished", "finished"]


def test_nothing_is_lost_when_memory_runs_out_in_the_middle_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that another program takes is imitated by a limit, after the row of step 5."""
    overrides = (*WIDE, "data.rows=40000", EAGER)
    whole = train("whole", *overrides)
    with monkeypatch.context() as patched:
        fired = faults.at_row(patched, 5, lambda: limit(4))
        try:
            with pytest.raises(runner.RunFailed, match="out of memory with `train"):
                train("run", *overrides)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    run = Path("run")
    assert fired == [5]
    assert read_json(run / "run.json")["status"] == "failed"
    assert [row["step"] for row in rows(run)] == [1, 2, 3, 4, 5]
    saved = sorted(path.name for path in (run / "checkpoints").glob("step_*"))
    assert saved == ["step_2", "step_4"]
    assert [checkpoint.verify(run / "checkpoints" / name) for name in saved] == [None, None]
    assert first_difference(whole, resume(run)) is None


def test_a_graph_that_does_not_fit_leaves_the_run_eager() -> None:
    """A graph has memory of its own beside that of the eager steps before it."""
    overrides = (*WIDE, "data.rows=100000")
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    eager = train("eager", *overrides, EAGER)
    needed = (torch.cuda.max_memory_reserved() - before) / MIB
    with limited(1.3 * needed):
        either = train("either", *overrides, EITHER)
    assert (
        "note: the run is slower than it could be: its training step cannot be captured"
        in (either / "run.log").read_text()
    )
    assert first_difference(eager, either) is None


def test_lanes_that_do_not_fit_together_are_trained_one_by_one() -> None:
    """A sweep estimates the free memory of the GPU, which a limit does not change."""
    lanes = ("seed=0,1,2,3", "data.rows=100000", "train.steps=2", EAGER)
    with limited(1000):
        directory, results = runner.multirun(None, [*QUICK, *WIDE, *lanes, "run_dir=sweep"])
    members = [directory / str(member.number) for member in results.members]
    assert len(members) == 4
    assert [read_json(member / "run.json")["status"] for member in members] == ["finished"] * 4
