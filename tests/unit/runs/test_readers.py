"""Any content of the files that are read back, of a configuration and of a table: our own errors, and no hang."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.config import expression
from runner.config.compose import compose
from runner.config.documents import check_yaml, parse_json
from runner.config.files import make_folder, open_to_append, open_to_change, open_to_read, read_bytes
from runner.data.dialect import Form
from runner.data.tables import Columns, read_text
from runner.errors import InputError
from runner.runs.records import read_record, read_summary, read_sweep
from runner.runs.sinks.jsonl import JsonLines, read_lines, read_rows

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
    ("name", "read"), [("run.json", read_record), ("summary.json", read_summary), ("sweep.json", read_sweep)]
)
@given(content=CONTENT)
@some
def test_records_of_any_content(name: str, read: Callable[[Path], Any], content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert all(problem.startswith(str(tmp_path / name)) for problem in problems(lambda: read(tmp_path)))


@given(content=st.lists(CONTENT, max_size=5).map(b"\n".join), step=st.integers(0, 9))
@some
def test_rows_of_any_content(content: bytes, step: int, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    for read in (read_rows, read_lines):
        assert all(str(path) in problem for problem in problems(lambda read=read: read(path)))  # type: ignore[misc]
    sink = JsonLines(path)
    sink.open(step)
    sink.close()
    assert all(json.loads(line)["step"] < step for line in path.read_bytes().splitlines())


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


def test_a_folder_is_not_made_through_a_link(tmp_path: Path) -> None:
    make_folder(tmp_path / "new")
    make_folder(tmp_path / "new")
    (tmp_path / "link").symlink_to("new")
    with pytest.raises(OSError, match="it is a link"):
        make_folder(tmp_path / "link")
