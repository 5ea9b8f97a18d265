"""The contract of `runner.runs.sinks.base.Sink`, for every sink."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.config.schema import SinkConfig
from runner.runs.sinks.base import Row, Sink
from runner.runs.sinks.reporter import Reporter

Build = Callable[[Path, bool], Sink]


def built(name: str) -> Build:
    """Return the function that builds a sink of `record.sinks`."""
    kind = SinkConfig.choices[name]
    return lambda directory, held: kind(name=name).build(directory, held)


def reporter(directory: Path, held: bool) -> Sink:
    """Return the reporter of a run, which is quiet for one of many."""
    found = Reporter(quiet=held)
    found.attach(directory / "run.log")
    found.begin(0, 100, 100)
    return found


SINKS: dict[str, Build] = {**{name: built(name) for name in SinkConfig.choices}, "reporter": reporter}


@pytest.fixture(params=SINKS)
def build(request: pytest.FixtureRequest) -> Build:
    return SINKS[request.param]


@pytest.fixture(params=[False, True], ids=["one run", "held"])
def held(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def content(directory: Path) -> int:
    """Return the number of bytes in a directory."""
    return sum(file.stat().st_size for file in directory.iterdir())


def row(step: int) -> Row:
    return {"step": step, "train/loss": math.nan, "valid/loss": math.inf, "lr": 0.5}


@pytest.mark.parametrize("status", ["finished", "failed"])
def test_a_whole_run(build: Build, held: bool, status: str, tmp_path: Path) -> None:
    sink = build(tmp_path, held)
    sink.open(0)
    sink.start({"name": "x", "train": {"steps": 100}}, {"lr": 0.5, "model": "mlp", "flag": True}, ["valid/rmse"])
    for step in range(1, 101):
        sink.write(row(step))
    sink.flush()
    metrics = {"valid/rmse": 1.0} if status == "finished" else {}
    sink.finish({"status": status, "steps": 100 if metrics else 0, "metrics": metrics}, {})
    sink.close()
    sink.close()
    assert content(tmp_path) > 0


def test_rows_are_in_files_after_a_flush(build: Build, held: bool, tmp_path: Path) -> None:
    sink = build(tmp_path, held)
    sink.open(0)
    sink.start({}, {}, [])
    sink.flush()
    sizes = [content(tmp_path)]
    for step in (1, 2):
        sink.write(row(step))
        sink.flush()
        sizes.append(content(tmp_path))
    assert sizes == sorted(set(sizes))
    sink.close()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to list open files")
def test_a_held_sink_has_no_file_open(build: Build, tmp_path: Path) -> None:
    sink = build(tmp_path, True)
    sink.open(0)
    sink.write(row(1))
    sink.flush()
    sink.write(row(2))
    targets = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert not [target for target in targets if target.startswith(str(tmp_path))]
    sink.close()


def test_a_second_attempt_continues(build: Build, held: bool, tmp_path: Path) -> None:
    for first_step in (0, 3):
        sink = build(tmp_path, held)
        sink.open(first_step)
        sink.start({}, {"lr": 0.5}, [])
        for step in range(first_step, 5):
            sink.write(row(step))
        sink.close()
    assert content(tmp_path) > 0


def test_a_sink_that_was_not_opened_can_be_closed(build: Build, held: bool, tmp_path: Path) -> None:
    build(tmp_path, held).close()
