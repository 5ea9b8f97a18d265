"""Any content of the files that are read back, of a configuration and of a table: our own errors, and no hang."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.config import expression
from runner.config.compose import compose
from runner.config.documents import check_yaml, parse_json
from runner.config.files import make_folder, open_to_append, open_to_change, open_to_read, read_bytes
from runner.config.resume import saved_values
from runner.config.schema import plain
from runner.data.dialect import Form
from runner.data.tables import Columns, read_arrow, read_text
from runner.errors import InputError
from runner.runs.checkpoint_manifest import listed_sizes, manifest_of, mismatch, size_and_hash
from runner.runs.hashes import Hashes
from runner.runs.records import read_record, read_summary, read_sweep
from runner.runs.sinks.jsonl import JsonLines, each_line, each_row
from runner.runs.sinks.tensorboard import TensorBoard, _record

some = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)

NAMES = ["format", "status", "resumed", "overrides", "world_size", "steps", "metrics", "timing", "seconds", "members", "number",
         "state", "values", "task", "name", "step", "parameters_sha256", "train/loss"]  # fmt: skip
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["nan", "finished", "failed"])
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    LEAVES, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | st.text(), v, max_size=8)
)
CONTENT = (
    VALUES.map(lambda value: json.dumps(value).encode()) | st.binary() | st.text(alphabet='[]{}":,0e-9').map(str.encode)
)


RECORD: dict[str, Any] = {
    "format": 1, "status": "failed", "reason": "x", "resumed": 0, "pid": 1, "host": "a", "overrides": ["seed=1"], "world_size": 1,
    "threads": 1, "lanes": 1,
}  # fmt: skip
SUMMARY = {
    "format": 1, "steps": 4, "metrics": {"train/loss": 1.0, "test/r2": "nan"}, "parameters_sha256": "0", "timing": {"seconds": 1.0},
}  # fmt: skip
MEMBER = {"number": 0, "overrides": ["seed=0"], "values": {"seed": 0}, "state": "finished", "reason": None}
SAVED = plain(compose([]).config)
SWEEP = {"format": 1, "status": "running", "name": "a", "task": ["seed=0,1"], "swept": ["seed"], "members": [MEMBER]}


def places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the place of each value inside another one."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for name, item in inner for found in ((*place, name), *places(item, (*place, name)))]


def changed(record: dict[str, Any], place: tuple[Any, ...], value: Any) -> bytes:
    """Return a record as JSON with another value in one place."""
    record = json.loads(json.dumps(record))
    inner: Any = record
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    return json.dumps(record).encode()


def damaged(record: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """A record with any value in any place, or any content at all."""
    return st.builds(changed, st.just(record), st.sampled_from(places(record)), VALUES) | CONTENT


def problems(call: Callable[[], Any]) -> tuple[str, ...]:
    """Return the problems for which a reader refuses its input; none if it reads it. Any other error is raised."""
    try:
        call()
    except InputError as error:
        return error.problems
    return ()


def refusal(call: Callable[[], Any]) -> str | None:
    """Return the text of a ValueError; None if there is none."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("name", "read", "record"),
    [("run.json", read_record, RECORD), ("summary.json", read_summary, SUMMARY), ("sweep.json", read_sweep, SWEEP)],
)
@given(data=st.data())
@some
def test_records_of_any_content(
    name: str, read: Callable[[Path], Any], record: dict[str, Any], data: st.DataObject, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(json.dumps(record))
    assert problems(lambda: read(tmp_path)) == ()
    (tmp_path / name).write_bytes(data.draw(damaged(record)))
    assert all(problem.startswith(str(tmp_path / name)) for problem in problems(lambda: read(tmp_path)))


@given(content=st.lists(CONTENT, max_size=5).map(b"\n".join), step=st.integers(0, 9))
@some
def test_rows_of_any_content(content: bytes, step: int, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    for read in (each_row, each_line):
        assert all(str(path) in problem for problem in problems(lambda read=read: list(read(path))))  # type: ignore[misc]
    sink = JsonLines(path)
    sink.open(step)
    sink.close()
    assert all(json.loads(line)["step"] < step for line in path.read_bytes().splitlines())


@given(content=st.lists(CONTENT, max_size=5).map(b"\n".join), step=st.integers(0, 9))
@some
def test_hashes_of_any_content(content: bytes, step: int, tmp_path: Path) -> None:
    path = tmp_path / "hashes.jsonl"
    path.write_bytes(content)

    def resumed() -> None:
        hashes = Hashes(path)
        hashes.open(step)
        hashes.write(step, {"weight": torch.zeros(1)})
        hashes.close()

    assert all(str(path) in problem for problem in problems(resumed))


@given(content=st.binary() | st.binary().map(_record), step=st.integers(0, 9))
@some
def test_events_of_any_content(content: bytes, step: int, tmp_path: Path) -> None:
    path = tmp_path / "events.out.tfevents.1.host.1"
    path.write_bytes(content)
    sink = TensorBoard(tmp_path)
    sink.open(step)
    sink.close()
    assert not path.exists() or content.startswith(path.read_bytes())


@given(data=st.data())
@some
def test_manifests_of_any_content(data: st.DataObject) -> None:
    files = {"state.pt": size_and_hash(b"x")}
    manifest = json.loads(manifest_of(4, files))
    content = data.draw(damaged(manifest))
    assert mismatch(4, content, files)
    assert all(size >= 0 for size in listed_sizes(content).values())


@given(text=st.text(alphabet="ab:-[]{}&*!?<|>~#%@'\"$ \n\t01.e", max_size=200) | VALUES.map(yaml.safe_dump) | st.text())
@some
def test_yaml_of_any_content(text: str) -> None:
    assert refusal(lambda: check_yaml(text)) != ""


@given(text=st.text(alphabet="ab:-[]{}&*!?<|>~#'\"${} \n01.e", max_size=100) | VALUES.map(yaml.safe_dump))
@settings(some, max_examples=8)
def test_configurations_of_any_content(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.makedirs("mine/experiment", exist_ok=True)
    Path("mine/experiment/odd.yaml").write_bytes(f"# @package _global_\n{text}".encode(errors="replace"))
    assert "" not in problems(lambda: compose(["+experiment=odd"], "mine"))


@given(data=st.data())
@settings(some, max_examples=50)
def test_saved_configurations_of_any_content(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(SAVED))
    assert saved_values(str(tmp_path), "resume") == SAVED
    path.write_bytes(data.draw(damaged(SAVED)))
    assert all(problem.startswith(str(path)) for problem in problems(lambda: saved_values(str(tmp_path), "resume")))


@given(text=st.text(alphabet="xab01.+-*/^() ,e_", max_size=60) | st.text(max_size=30))
@some
def test_formulas_of_any_content(text: str) -> None:
    assert "" not in problems(lambda: expression.parse(text))


@given(content=st.text(alphabet='xy0,;\n\r\t" .e-', max_size=120).map(str.encode) | st.binary(max_size=80))
@some
def test_tables_of_any_content(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    assert "" not in problems(lambda: read_text(str(path), Columns("y"), Form()))


@given(content=st.binary() | st.text(alphabet="[]{}", max_size=300).map(str.encode))
@some
def test_json_of_any_content(content: bytes) -> None:
    assert refusal(lambda: parse_json(content)) != ""


# ------------------------------------------------------------------------------------------------------------- opening


@pytest.mark.parametrize("open_", [open_to_read, open_to_append, open_to_change])
@pytest.mark.parametrize("kind", ["a FIFO", "a folder", "a link", "a device"])
def test_only_regular_files_are_opened(open_: Callable[[Path], io.IOBase], kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a link":
        path.symlink_to(tmp_path / "other")
    else:
        path = Path("/dev/zero")
    with pytest.raises(OSError, match=f"it is {kind}") as caught:
        open_(path)
    assert caught.value.filename == str(path)
    assert not (tmp_path / "other").exists()


def test_a_link_is_followed_where_that_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    assert read_bytes(tmp_path / "link", 5, follow=True) == b"12345"
    with pytest.raises(OSError, match="it has more than") as caught:
        read_bytes(tmp_path / "link", 4, follow=True)
    assert caught.value.filename == str(tmp_path / "link")


@pytest.mark.skipif(not os.path.exists("/proc/self/pagemap"), reason="only Linux has such files")
@pytest.mark.parametrize("name", ["/proc/kmsg", "/proc/self/pagemap", "/proc/self/maps"])
def test_a_file_without_a_size_is_empty(name: str) -> None:
    """One waits for ever, and another one does not end."""
    if os.access(name, os.R_OK):
        assert read_bytes(Path(name), 100) == b""
        for read in (lambda: read_text(name, Columns("y"), Form()), lambda: read_arrow(name, Columns("y"))):
            (problem,) = problems(read)
            assert name in problem


def test_a_folder_is_not_made_through_a_link(tmp_path: Path) -> None:
    make_folder(tmp_path / "new")
    make_folder(tmp_path / "new")
    (tmp_path / "link").symlink_to("new")
    with pytest.raises(OSError, match="it is a link"):
        make_folder(tmp_path / "link")
