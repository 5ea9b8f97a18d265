"""Every dtype, optimizer and update on the GPU against float64 on the CPU, within the bounds of the `parity` command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from gpu.devices import DEVICE, EAGER, EITHER, GRAPHS, REHEARSAL, SETTINGS, needs_device, read_json, state, train
from gpu.test_01_start_values import CPU
from runner.commands.parity.bounds import FIRST_STEPS, Bound
from runner.commands.parity.cells import read_request
from runner.commands.parity.measure import measure
from runner.commands.parity.rounding import Rounding, relative_difference
from runner.commands.parity.table import ParityTable, judge, text
from runner.config.compose import compose
from runner.runs.sinks.jsonl import read_rows

pytestmark = needs_device

WIDE = "float64,float32,bfloat16"
LINE = ("+experiment=linreg", "data.rows=50")
MLP = ("+experiment=mlp", "data.rows=90", "model.widths=[8,6]", "train.batch_size=16")
CELLS = {
    "line": (*LINE, f"dtype={WIDE}"),
    "line, exact": (*LINE, f"dtype={WIDE}", "strategy.reduction=exact", "strategy.chunks=4", "optimizer=sgd,adam,lm"),
    "line, standardized": (*LINE, "data.standardize=true", f"dtype={WIDE}", "optimizer=sgd,momentum", "optimizer.lr=0.1"),
    "network": (*MLP, f"dtype={WIDE}", "optimizer=sgd,momentum,adam,adamw", "optimizer.lr=0.01"),
    "network, all rows": (*MLP, "train.batch_size=null", "dtype=float64,float32", "optimizer=lbfgs,lm"),
    "network, exact": (*MLP, f"dtype={WIDE}", "strategy.reduction=exact", "optimizer=momentum,adamw", "optimizer.lr=0.01"),
    "network, accumulated and clipped": (
        *MLP, f"dtype={WIDE}", "train.accumulate=3", "train.clip_norm=0.5", "schedule=cosine", "optimizer=sgd,adam", "optimizer.lr=0.01",
    ),
    "formula": ("+experiment=curve_fit", f"dtype={WIDE}", "optimizer=sgd,lstsq,lm"),
}  # fmt: skip
HALF = {
    # eps must not underflow in float16.
    "line": (*LINE, "data.standardize=true", "optimizer=sgd,momentum", "optimizer.lr=0.1"),
    "network": (*MLP, "optimizer=sgd,momentum", "optimizer.lr=0.01"),
    "network, adaptive": (*MLP, "optimizer=adam,adamw", "optimizer.eps=1e-4", "optimizer.lr=0.01"),
}


LEAST_MET = {
    "line": 32,
    "line, exact": 16,
    "line, standardized": 12,
    "network": 24,
    "network, all rows": 6,
    "network, exact": 12,
    "network, accumulated and clipped": 12,
    "formula": 12,
}
"""Cells that can run and whose bound leaves a digit."""


def measured(overrides: Sequence[str]) -> ParityTable:
    """Measure all cells of one process on the device under test."""
    request = read_request([*overrides, f"device={DEVICE}", "strategy=single"], None)
    folder = Path("cells")
    folder.mkdir()
    return measure(request, FIRST_STEPS + 4, ["parity", *overrides], folder, lambda text: None)


def assert_met(table: ParityTable, least: int) -> None:
    """Assert that no cell missed its bound or failed, and that at least so many were compared within a real bound."""
    shown = "\n".join(text(table))
    assert table.complaints() == [], shown
    assert table.counts["met"] >= least, shown


@pytest.mark.parametrize("cells", CELLS)
def test_cells_meet_their_bounds(cells: str) -> None:
    """Steps are captured as CUDA graphs where that is possible."""
    assert_met(measured([*CELLS[cells], EITHER]), least=LEAST_MET[cells])


@pytest.mark.parametrize("cells", ["line", "network"])
def test_cells_with_eager_steps_meet_their_bounds(cells: str) -> None:
    assert_met(measured([*CELLS[cells], EAGER, "optimizer=sgd,momentum,adam,adamw"]), least=24)


@pytest.mark.skipif(REHEARSAL, reason="a run on the CPU does not take float16")
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("cells", HALF)
def test_float16_meets_its_bounds(cells: str, graph: str) -> None:
    table = measured([*HALF[cells], "dtype=float16", graph])
    assert table.complaints() == [], "\n".join(text(table))
    assert table.counts["met"] + table.counts["no bound"] == 4, table.headline()


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(("optimizer", "update"), [("sgd", "manual"), ("momentum", "optimizer"), ("adam", "optimizer")])
@pytest.mark.parametrize("amp", ["bfloat16", "float16"])
def test_mixed_precision_rounds_no_more_than_its_dtype(amp: str, optimizer: str, update: str, graph: str) -> None:
    """The bound is that of a whole training in the dtype: mixed precision keeps the parameters in float32."""
    overrides: tuple[str, ...] = (*MLP, f"optimizer={optimizer}", f"update={update}", "optimizer.lr=0.01", graph)
    length = ("train.epochs=null", f"train.steps={FIRST_STEPS}", "train.batch_size=null", "train.eval_every_steps=null")
    overrides = (*overrides, *length, "record.every_steps=1")
    run = train("mixed", *overrides, f"amp={amp}")
    exact = train("exact", *overrides, "dtype=float64", "device=cpu")
    reference = compose([*overrides, *SETTINGS, "dtype=float64", "device=cpu", "strategy=single"], None).config
    limit = Bound("sampled", FIRST_STEPS, *Rounding(reference, CPU).sampled(amp, "highest", FIRST_STEPS))
    parameters = relative_difference(state(run)["model"], state(exact)["model"])
    losses = [[row["train/loss"] for row in read_rows(path / "metrics.jsonl")] for path in (run, exact)]
    loss = max(abs(one - other) for one, other in zip(*losses, strict=True)) / max(losses[1])
    figures = f"parameters {parameters:.1e} ≤ {limit.parameters:.1e}, losses {loss:.1e} ≤ {limit.loss:.1e}"
    assert read_rows(run / "metrics.jsonl")[-1].get("skipped_steps", 0) == 0, "a skipped step cannot be compared"
    assert judge(parameters, loss, limit) == "met", figures
    assert read_json(run / "run.json")["dtype"] == "float32"


def test_tf32_and_full_precision_differ_by_their_roundings_only() -> None:
    """A request of its own: the bound of `matmul_precision=high` is that of TF32's eleven bits."""
    table = measured([*MLP, "dtype=float32", "optimizer=sgd,adam", "optimizer.lr=0.01", "device.matmul_precision=high"])
    assert_met(table, least=4)
