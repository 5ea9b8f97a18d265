import json
import math
import os
import re
import tracemalloc
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.errors import CheckpointError
from runner.runs.sinks.jsonl import JsonLines, each_row, read_rows


def write(path: Path, first_step: int, steps: range) -> None:
    sink = JsonLines(path)
    sink.open(first_step)
    sink.start({}, {}, [])
    for step in steps:
        sink.write({"step": step, "train/loss": 1 / (first_step + 1)})
    sink.finish({"status": "finished", "steps": steps.stop, "metrics": {}}, {})
    sink.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_a_row_is_a_line_with_its_keys_in_order(path: Path) -> None:
    sink = JsonLines(path)
    sink.open(0)
    sink.write({"step": 1, "train/loss": 0.1, "lr": 1e-3})
    sink.write({"step": 2, "train/loss": 2.5e-7, "lr": 1e-3})
    sink.close()
    assert (
        path.read_text()
        == '{"step": 1, "train/loss": 0.1, "lr": 0.001}\n{"step": 2, "train/loss": 2.5e-07, "lr": 0.001}\n'
    )


def test_numbers_that_are_not_finite_are_strict_json_and_read_back(path: Path) -> None:
    sink = JsonLines(path)
    sink.open(0)
    sink.write({"step": 1, "a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.5})
    sink.close()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(path.read_text(), parse_constant=refuse) == {
        "step": 1,
        "a": "nan",
        "b": "inf",
        "c": "-inf",
        "d": 1.5,
    }
    (row,) = read_rows(path)
    assert math.isnan(row.pop("a"))
    assert row == {"step": 1, "b": math.inf, "c": -math.inf, "d": 1.5}


def test_every_float_is_read_back_to_the_bit(path: Path) -> None:
    numbers = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0]
    sink = JsonLines(path)
    sink.open(0)
    for step, number in enumerate(numbers):
        sink.write({"step": step, "x": number})
    sink.close()
    assert [row["x"].hex() for row in read_rows(path)] == [number.hex() for number in numbers]


def test_a_row_can_be_read_before_anything_is_flushed(path: Path) -> None:
    sink = JsonLines(path)
    sink.open(0)
    sink.write({"step": 1})
    assert read_rows(path) == [{"step": 1}]
    sink.close()


def test_flush_syncs_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    sink = JsonLines(path)
    sink.open(0)
    sink.write({"step": 1})
    assert synced == []
    sink.flush()
    assert synced == [path.stat().st_ino]
    sink.close()


@pytest.mark.parametrize(("first_step", "kept"), [(0, 0), (1, 1), (7, 7), (10, 10), (25, 10)])
def test_rows_of_a_killed_attempt_are_dropped_from_the_first_step_on(path: Path, first_step: int, kept: int) -> None:
    write(path, 0, range(10))
    write(path, first_step, range(first_step, 30))
    assert [row["step"] for row in read_rows(path)] == [*range(kept), *range(first_step, 30)]
    assert [row["train/loss"] for row in read_rows(path)] == [1.0] * kept + [1 / (first_step + 1)] * (30 - first_step)


@pytest.mark.parametrize(
    "incomplete", [b"{", b'{"step": 10', b'{"step": 10, "train/loss": 0.', b"\0\0\0\0", b"\xff", b'{"step": nu']
)
def test_an_incomplete_last_line_is_dropped(path: Path, incomplete: bytes) -> None:
    write(path, 0, range(10))
    path.write_bytes(path.read_bytes() + incomplete)
    assert [row["step"] for row in read_rows(path)] == [*range(10)]
    write(path, 10, range(10, 12))
    assert [row["step"] for row in read_rows(path)] == [*range(12)]
    assert path.read_bytes().count(b"\n") == 12


def test_a_complete_last_line_without_a_newline_is_kept(path: Path) -> None:
    path.write_bytes(b'{"step": 1}\n{"step": 2}')
    write(path, 3, range(3, 4))
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3]


def test_a_file_with_nothing_to_drop_is_appended_to(path: Path) -> None:
    write(path, 0, range(3))
    before = path.stat().st_ino
    write(path, 3, range(3, 5))
    assert path.stat().st_ino == before
    write(path, 4, range(4, 5))
    assert path.stat().st_ino != before  # a rewritten copy was renamed


def test_a_damaged_line_is_named(path: Path) -> None:
    path.write_bytes(b'{"step": 1}\n{"ste\n[3]\n')
    with pytest.raises(CheckpointError) as caught:
        read_rows(path)
    assert str(caught.value) == (
        f"line 2 of `{path}` must be a JSON object, got '{{\"ste'; restore the file or delete the line"
    )
    path.write_bytes(b'{"step": 1}\n[3]\n')
    with pytest.raises(CheckpointError, match=r"line 2 of .* must be a JSON object, got '\[3\]'"):
        read_rows(path)


def test_a_sink_that_was_never_opened_can_be_closed(path: Path) -> None:
    JsonLines(path).close()
    assert not path.exists()


def test_memory_does_not_grow_with_the_file(path: Path) -> None:
    row = b'{"step": %d, "train/loss": 0.1, "valid/loss": 0.2}\n'
    path.write_bytes(b"".join(row % step for step in range(100_000)))
    size = path.stat().st_size

    def largest(work: Callable[[], object]) -> int:
        tracemalloc.start()
        work()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    assert largest(lambda: write(path, 100_000, range(0))) < size / 10
    assert largest(lambda: write(path, 99_990, range(0))) < size / 10
    assert sum(row["step"] for row in each_row(path)) == sum(range(99_990))
    assert largest(lambda: deque(each_row(path), maxlen=1)) < size / 10


def test_a_line_without_an_end_is_refused(path: Path) -> None:
    path.write_bytes(b'{"step": 1}\n')
    os.truncate(path, 2**33)
    reason = f"{path} must be rows of metrics, but cannot be read (it has more than 4 MiB in line 2); restore it"
    for read in (lambda: read_rows(path), lambda: JsonLines(path).open(1)):
        with pytest.raises(CheckpointError, match=re.escape(reason)):
            read()
    assert path.stat().st_size == 2**33
