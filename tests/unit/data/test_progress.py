"""Reading that takes long is reported, first after three seconds."""

from __future__ import annotations

import itertools
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import runner
from runner.compute import signals
from runner.data import cells, progress
from runner.data.dialect import Form
from runner.data.tables import Columns, read_arrow, read_text

ROWS = "x,y\n" + "".join(f"{i},{i % 7}.5\n" for i in range(12))


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text(ROWS, encoding="utf-8")


def test_reports_come_after_3_6_12_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    lines: list[str] = []
    reading = progress.Progress("t.csv", lines.append)
    for count in range(1, 30):
        reading.at(f"{count} rows")
    assert lines == [f"reading 't.csv' has taken {seconds} s so far, {seconds} rows" for seconds in (3, 6, 12, 24)]


@pytest.mark.parametrize("large", [2**30, 0], ids=["Python's reader", "pyarrow's reader"])
def test_text_is_reported_while_it_is_checked_and_read(monkeypatch: pytest.MonkeyPatch, large: int) -> None:
    monkeypatch.setattr(signals, "FIRST_REPORT_SECONDS", 0.0)
    monkeypatch.setattr(cells, "LARGE", large)
    lines: list[str] = []
    read_text("t.csv", Columns("y"), Form(), lines.append)
    beginning = "reading 't.csv' has taken 0 s so far, "
    checked = ["the lines of 0 MiB checked"] if large == 0 else []
    found = list(dict.fromkeys(line.removeprefix(beginning) for line in lines))
    assert found == ["0 MiB checked", *checked, "12 of about 14 rows"]


def test_columns_of_parquet_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "FIRST_REPORT_SECONDS", 0.0)
    pq.write_table(pa.table({"x": [1, 2, 3], "y": [0.5, 1.5, 1.0]}), "t.parquet")
    lines: list[str] = []
    read_arrow("t.parquet", Columns("y"), lines.append)
    assert [line.partition("so far, ")[2] for line in lines[-2:]] == ["1 of 2 columns", "2 of 2 columns"]


@pytest.mark.parametrize("sweep", [False, True])
def test_a_run_and_a_sweep_print_the_reports(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], sweep: bool
) -> None:
    monkeypatch.setattr(signals, "FIRST_REPORT_SECONDS", 0.0)
    arguments = ["data=csv", "data.path=t.csv", "data.target=y", "train.steps=1", "record.plots=false", "device=cpu"]
    line = "note: reading 't.csv' has taken 0 s so far, 12 of about 14 rows\n"
    if sweep:
        runner.multirun(None, [*arguments, "optimizer.lr=1e-5,1e-4"])
    else:
        assert line in (runner.run(None, arguments).directory / "run.log").read_text()
    assert capsys.readouterr().out.count(line) == 1
