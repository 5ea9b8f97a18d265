from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runner.runs.sinks import reporter
from runner.runs.sinks.reporter import Reporter, print_errors

SUMMARY = {
    "status": "finished",
    "metrics": {"train/loss": 0.5, "train/rmse": 0.25, "test/loss": 1.0, "test/rmse": 2.0},
    "parameters": {"weight": [[1.5, 2.0]], "bias": [3.0]},
}


def row(step: int, **values: Any) -> dict[str, Any]:
    return {"step": step, "train/loss": 2.0, "optimum/loss": 1.0, "lr": 0.1, "train/mae": 9.0, **values}


def reported(path: Path, *, quiet: bool) -> list[str]:
    """Report a run of 200 rows; return the lines of its run.log."""
    found = Reporter(quiet=quiet)
    found.warn("before there is a directory")
    found.attach(path / "run.log")
    found.begin(0, 200, 200)
    found.open(0)
    found.start({}, {}, [])
    for step in range(1, 201):
        found.write(row(step))
    found.flush()
    found.finish(SUMMARY, {})
    found.close()
    found.close()
    return (path / "run.log").read_text(encoding="utf-8").splitlines()


def test_a_pipe_gets_about_fifty_rows_and_the_log_has_the_same_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = reported(tmp_path, quiet=False)
    assert lines == capsys.readouterr().out.splitlines()
    assert lines[0] == "note: before there is a directory"
    rows = [line for line in lines if line.startswith("step")]
    assert [int(text[4:].split("/")[0]) for text in rows] == [1, *range(4, 201, 4)]  # the first one at once
    assert rows[1].startswith("step   4/200  train/loss 2  lr 0.1  ")
    assert rows[1].endswith("steps/s")
    table = [line.rstrip() for line in lines[-5:]]
    assert table == [
        "       loss  rmse",
        "train  0.5   0.25",
        "test   1     2",
        "weight = 1.5, 2",
        "bias = 3",
    ]


def test_a_quiet_reporter_prints_nothing_and_logs_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = reported(tmp_path, quiet=True)
    assert capsys.readouterr().out == ""
    assert lines[:2] == ["note: before there is a directory", "step   1/200  train/loss 2  lr 0.1"]
    assert len(lines) == 1 + 200 + 4
    assert lines[-4:] == ["train  loss 0.5  rmse 0.25", "test   loss 1  rmse 2", "weight = 1.5, 2", "bias = 3"]


@pytest.mark.parametrize("quiet", [False, True])
def test_a_failure_is_logged_and_not_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str], quiet: bool) -> None:
    found = Reporter(quiet=quiet)
    found.attach(tmp_path / "run.log")
    found.fail("out of luck")
    found.finish({"status": "failed", "metrics": {}, "steps": 0}, {})
    found.close()
    assert capsys.readouterr().out == ""
    assert (tmp_path / "run.log").read_text() == "error: out of luck\n"
    print_errors(["a", "b"], rank=1)
    assert capsys.readouterr().err == "error: rank 1: a\nerror: rank 1: b\n"


def test_a_log_is_continued_and_a_quiet_one_is_open_only_while_it_is_written(tmp_path: Path) -> None:
    for quiet in (False, True):
        found = Reporter(quiet=quiet)
        found.attach(tmp_path / "run.log")
        found.begin(0, 3, 3)
        found.write(row(1))
        size = (tmp_path / "run.log").stat().st_size if (tmp_path / "run.log").exists() else 0
        found.flush()
        assert ((tmp_path / "run.log").stat().st_size > size) == quiet
        found.close()
    assert len((tmp_path / "run.log").read_text().splitlines()) == 2


def test_a_terminal_has_a_progress_line_and_its_log_every_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr(reporter, "REFRESH_SECONDS", 0.0)
    lines = reported(tmp_path, quiet=False)
    assert sum(line.startswith("step") for line in lines) == 200
    out = capsys.readouterr().out
    assert "step   3/200  train/loss 2" in out  # only in the progress line
    assert "weight = 1.5, 2" in out


def test_many_fitted_values_are_not_printed() -> None:
    assert reporter.lines_of({"metrics": {}, "parameters": {"weight": [1.0] * 21}}) == []
    assert len(reporter.lines_of({"metrics": {}, "parameters": {"weight": [1.0] * 20}})) == 1


def test_in_a_notebook_the_table_is_printed_once_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class ZMQInteractiveShell:
        """The class by which rich recognizes a notebook."""

    monkeypatch.setattr("builtins.get_ipython", ZMQInteractiveShell, raising=False)
    reporter = Reporter()
    reporter.attach(tmp_path / "run.log")
    reporter.finish({"status": "finished", "metrics": {"train/loss": 0.25}}, {})
    reporter.close()
    table = "       loss\ntrain  0.25\n"
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == table.splitlines()
    assert [line.rstrip() for line in (tmp_path / "run.log").read_text().splitlines()] == table.splitlines()


def test_a_note_with_a_long_word_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    Reporter().warn(f"`seed` is given twice; the last one counts: {'9' * 1000}")
    assert capsys.readouterr().out == f"note: `seed` is given twice; the last one counts: {'9' * 200}…{'9' * 60}\n"
