"""A file is complete or absent, and an error says where and why, and how much space is free."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.runs.atomic import explain_os_error, strict, sync_folder, temporary, write_atomic, write_json, write_new

INF = float("inf")
NAN = float("nan")


def failing(code: int) -> Callable[..., Any]:
    def fail(*args: object, **kwargs: object) -> Any:
        raise OSError(code, os.strerror(code))

    return fail


def test_a_file_is_created_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_atomic(path, b"old, and longer than the new one")
    write_atomic(path, b"new\x00\xff")
    assert path.read_bytes() == b"new\x00\xff"
    assert os.listdir(tmp_path) == ["run.json"]


def test_a_file_has_the_permissions_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "run.json", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "run.json").stat().st_mode) == 0o640


def test_the_file_is_synced_before_it_is_renamed_and_its_folder_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    replace, fsync = os.replace, os.fsync

    def note_replace(a: Path, b: Path) -> None:
        calls.append("replace")
        replace(a, b)

    def note_fsync(descriptor: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    monkeypatch.setattr(os, "replace", note_replace)
    monkeypatch.setattr(os, "fsync", note_fsync)
    write_atomic(tmp_path / "run.json", b"x")
    assert calls == ["file", "replace", "folder"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_no_temporary_one(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.json"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, call, failing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["run.json"]


def test_an_interrupt_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "run.json", b"new")
    assert os.listdir(tmp_path) == []


def test_write_new_does_not_overwrite(tmp_path: Path) -> None:
    write_new(tmp_path / "a", b"first")
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first"


def test_temporary_names_are_in_the_same_folder_and_unique(tmp_path: Path) -> None:
    names = {temporary(tmp_path / "last") for _ in range(20)}
    assert len(names) == 20
    assert all(name.parent == tmp_path and re.fullmatch(r"last\.tmp-[0-9a-f]{8}", name.name) for name in names)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_a_folder_is_accepted(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(code))
    sync_folder(tmp_path)


def test_a_folder_that_cannot_be_synced_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        sync_folder(tmp_path)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (NAN, "nan"),
        (INF, "inf"),
        (-INF, "-inf"),
        (-0.0, -0.0),
        (5e-324, 5e-324),
        (True, True),
        (None, None),
        (2**70, 2**70),
        ("nan", "nan"),
        ({"a": {"b": [1, (NAN, {"c": -INF})]}}, {"a": {"b": [1, ["nan", {"c": "-inf"}]]}}),
    ],
)
def test_strict_changes_only_values_that_json_lacks(value: object, plain: object) -> None:
    assert repr(strict(value)) == repr(plain)


def test_strict_does_not_change_its_argument() -> None:
    value = {"a": [NAN]}
    strict(value)
    assert value["a"][0] != value["a"][0]


def test_json_is_strict_indented_and_exact(tmp_path: Path) -> None:
    value = {"loss": [NAN, 0.1 + 0.2, 1e-310], "größe": "é\ud800"}
    write_json(tmp_path / "summary.json", value)
    text = (tmp_path / "summary.json").read_text("ascii")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    read = json.loads(text, parse_constant=refuse)
    assert read == {"loss": ["nan", 0.1 + 0.2, 1e-310], "größe": "é\ud800"}
    assert text.startswith('{\n  "loss": ["nan", 0.30000000000000004, 1e-310],\n  "gr')
    assert text.endswith("}\n")


def test_json_has_a_line_for_each_entry(tmp_path: Path) -> None:
    value = {"b": {"c": 1, "d": {}}, "e": [{"f": [1, 2]}, {"f": []}], "g": [[1], [2]], "h": []}
    write_json(tmp_path / "a.json", value)
    assert (tmp_path / "a.json").read_text().splitlines() == [
        "{", '  "b": {', '    "c": 1,', '    "d": {}', "  },", '  "e": [', '    {"f": [1, 2]},', '    {"f": []}', "  ],",
        '  "g": [[1], [2]],', '  "h": []', "}",
    ]  # fmt: skip


def test_a_value_that_is_not_json_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(tmp_path / "a.json", {"path": tmp_path})
    assert (tmp_path / "a.json").read_text() == "1\n"


@pytest.mark.parametrize(
    ("code", "cause", "remedy"),
    [
        (errno.ENOSPC, "the disk is full", "free some space"),
        (errno.EDQUOT, "quota is used up", "free some space"),
        (errno.EFBIG, "larger than is allowed", "`ulimit -f`"),
        (errno.EROFS, "file system is read-only", "`run_dir`"),
        (errno.EACCES, "may not write there", "permissions"),
        (errno.EPERM, "may not write there", "permissions"),
        (errno.EISDIR, "a folder of that name is in the way", "move it away"),
        (errno.EIO, "Input/output error", "`run_dir`"),
    ],
)
def test_an_error_is_explained_with_cause_space_and_remedy(
    code: int, cause: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=3 * 2**20 + 2**19)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    sentence = explain_os_error(OSError(code, os.strerror(code)), tmp_path / "run.json")
    assert sentence.startswith(f"`{tmp_path / 'run.json'}` cannot be written: ")
    assert cause in sentence.partition(" (3.5 MiB are free); ")[0]
    assert remedy in sentence.partition(" (3.5 MiB are free); ")[2]
    assert "\n" not in sentence


def test_a_file_where_a_folder_must_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    path = tmp_path / "runs" / "linreg" / "run.json"
    with pytest.raises(NotADirectoryError) as caught:
        write_atomic(path, b"x")
    sentence = explain_os_error(caught.value, path)
    assert f"`{tmp_path / 'runs'}` is a file where a folder must be" in sentence
    assert "MiB are free" in sentence


def test_the_highest_missing_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "linreg" / "run.json"
    with pytest.raises(FileNotFoundError) as caught:
        write_atomic(path, b"x")
    assert f"the folder `{tmp_path / 'runs'}` does not exist (" in explain_os_error(caught.value, path)


def test_an_error_without_a_number_and_an_unknown_free_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", failing(errno.EIO))
    sentence = explain_os_error(OSError("the bus fell over"), tmp_path)
    assert "cannot be written: the bus fell over (the free space is not known); " in sentence
