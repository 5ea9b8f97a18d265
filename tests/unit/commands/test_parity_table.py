"""What a parity table says: verdicts, counts, the grid with its letters, the page, the JSON and the plot."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from runner.commands.parity.bounds import Bound
from runner.commands.parity.cells import Cell
from runner.commands.parity.plot import draw
from runner.commands.parity.table import Entry, Table, judged, markdown, text

BOUND = Bound("reordered", 20, 1e-12, 1e-10)
CELL = Cell("cpu", "float64", "ddp", "manual", "sgd")
MET = Entry(CELL, 2, ("python", "-m", "runner", "seed=1"), "met", (), BOUND, 3e-16, 2e-15, 0.004)
REASON = "`dtype` must not be float16 with `device`=cpu; use dtype=bfloat16"


def entry(cell: str, **changes: Any) -> Entry:
    return replace(MET, cell=Cell(*cell.split()), **changes)


def gap(cell: str, *reasons: str, verdict: Any = "cannot run") -> Entry:
    nothing = {"parameters": math.nan, "loss": math.nan, "seconds_per_step": math.nan}
    return entry(cell, verdict=verdict, reasons=reasons, bound=None, **nothing)


def table(*entries: Entry) -> Table:
    return Table(
        name="line",
        command=("python", "-m", "runner", "parity", "+experiment=line"),
        steps=100,
        processes=2,
        threads=1,
        torch="2.13.0",
        device_name="AMD EPYC",
        devices={"cpu": (), "cuda": ("`device=cuda` needs a CUDA build of torch",)},
        entries=entries,
    )


EVERYTHING = table(
    entry("cpu float64 single manual sgd", bound=Bound("equal", 100, 0.0, 0.0), parameters=0.0, loss=0.0),
    entry("cpu float64 single manual adam", verdict="missed", parameters=1e-11),
    entry("cpu float64 single optimizer sgd", verdict="missed", loss=1e-9),
    gap("cpu float64 single optimizer adam", "it ran | out of luck", verdict="failed"),
    entry("cpu float32 single manual sgd", bound=Bound("sampled", 20, 2.0, 3.0), verdict="no bound", parameters=0.5),
    gap("cpu float32 single manual adam", "too wide", REASON),
    gap("cpu float16 single manual sgd", REASON),
    gap("cpu float16 single manual adam", REASON),
    gap("cpu float16 ddp optimizer sgd", REASON),
    gap("cpu float16 ddp optimizer adam", "too wide"),
)


@pytest.mark.parametrize(
    ("parameters", "loss", "verdict"),
    [
        (0.0, 0.0, "met"), (1e-12, 1e-10, "met"), (2e-12, 0.0, "missed"), (0.0, 2e-10, "missed"), (math.nan, 0.0, "missed"),
        (0.0, math.inf, "missed"),
    ],
)  # fmt: skip
def test_a_bound_is_met_by_both_differences(parameters: float, loss: float, verdict: str) -> None:
    assert judged(parameters, loss, BOUND) == verdict


def test_a_bound_without_digits_is_not_met_but_can_be_missed() -> None:
    none = Bound("sampled", 20, 2.0, math.inf)
    assert judged(0.0, 0.0, none) == "no bound"
    assert judged(3.0, 0.0, none) == "missed"


def test_the_counts_and_the_cells_that_are_bad() -> None:
    assert EVERYTHING.headline() == "1 met, 2 missed, 1 failed, 1 no bound, 5 cannot run"
    assert table(MET).headline() == "1 met, 0 missed"
    assert EVERYTHING.complaints() == [
        "missed: device=cpu dtype=float64 strategy=single update=manual optimizer=adam: over 20 steps parameters off by 1.0e-11, bound 1.0e-12 (reordered)",
        "missed: device=cpu dtype=float64 strategy=single update=optimizer optimizer=sgd: over 20 steps loss off by 1.0e-09, bound 1.0e-10 (reordered)",
        "failed: device=cpu dtype=float64 strategy=single update=optimizer optimizer=adam: it ran | out of luck",
    ]


def test_the_grid_has_a_letter_for_each_reason_and_one_row_where_nothing_can_run() -> None:
    assert EVERYTHING.letters == {"it ran | out of luck": "a", "too wide": "b", REASON: "c"}
    assert text(EVERYTHING) == [
        "device  dtype    strategy  update     sgd                          adam",
        "cpu     float64  single    manual     equal                        missed: 1e-11>1e-12",
        "cpu     float64  single    optimizer  missed by loss: 3e-16≤1e-12  failed (a)",
        "cpu     float32  single    manual     5e-01, none                  (b, c)",
        "cpu     float16  all       all        (c)                          (b, c)",
    ]


def test_the_page_names_every_reason_bound_and_cell() -> None:
    page = markdown(EVERYTHING)
    assert "**1 met, 2 missed, 1 failed, 1 no bound, 5 cannot run.**" in page
    assert "| cpu | float16 | all | all | (c) | (b, c) |" in page
    assert f"* (c) {REASON}" in page
    assert "* (a) it ran \\| out of luck" in page
    assert "* `device=cuda` needs a CUDA build of torch" in page
    assert (
        "| cpu | float64 | single | manual | adam | 20 | 1e-11 | 1e-12 | 2e-15 | 1e-10 | 4.00 | **missed**, reordered |"
        in page
    )
    assert "bound 1.0e-12 (reordered); alone: `python -m runner seed=1`" in page
    assert "* **equal**: 0 units in the last place" in page
    assert "* **linear**" not in page  # no cell has that bound


def test_json_has_the_same_keys_for_every_cell() -> None:
    found = json.loads(json.dumps(EVERYTHING.plain))
    assert {frozenset(cell) for cell in found["cells"]} == {frozenset(found["cells"][0])}
    assert found["counts"] == {"met": 1, "missed": 2, "failed": 1, "no bound": 1, "cannot run": 5}
    assert found["devices"]["cuda"] == {"present": False, "reasons": ["`device=cuda` needs a CUDA build of torch"]}
    assert list(found["bounds"]) == ["equal", "reordered", "sampled"]
    assert found["cells"][1] == {
        "device": "cpu", "dtype": "float64", "strategy": "single", "update": "manual", "optimizer": "adam", "processes": 2,
        "verdict": "missed", "reasons": [], "bound": "reordered", "steps": 20, "parameters_difference": 1e-11,
        "parameters_bound": 1e-12, "loss_difference": 2e-15, "loss_bound": 1e-10, "seconds_per_step": 0.004,
        "command": "python -m runner seed=1",
    }  # fmt: skip
    assert found["cells"][5]["reasons"] == ["too wide", REASON]
    assert found["cells"][5]["parameters_difference"] is None


@pytest.mark.parametrize("shown", [EVERYTHING, table(MET), table(replace(MET, parameters=math.inf, verdict="missed"))])
def test_the_plot_is_drawn_whatever_became_of_the_cells(shown: Table) -> None:
    assert draw(shown).startswith(b"\x89PNG")
