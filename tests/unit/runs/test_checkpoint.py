"""Checkpoints under faults of the disk, kills, and files that somebody has manipulated."""

from __future__ import annotations

import builtins
import errno
import hashlib
import io
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.errors import CheckpointError, RunFailed
from runner.runs import checkpoint

State = dict[str, Any]


def state_of(step: int, scale: float = 1.0) -> State:
    return {"step": step, "weight": torch.arange(8.0) * scale + step, "history": [0.5] * 20}


def put(folder: Path, *steps: int, best: int | None = None) -> None:
    for step in steps:
        checkpoint.save(folder, step, state_of(step), best=step == best, keep=None)


def loaded(folder: Path) -> checkpoint.Loaded:
    found = checkpoint.load(folder)
    assert found is not None
    return found


def same(a: Any, b: Any) -> bool:
    """Return whether types and values are equal, tensors to the bit: nan equals nan, and 0.0 differs from -0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[name], b[name]) for name in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def damaged(folder: Path) -> set[str]:
    return {name for name in names(folder) if re.fullmatch(r"step_\d+", name) and checkpoint.verify(folder / name)}


def links(folder: Path) -> dict[str, str]:
    return {name: os.readlink(folder / name) for name in ("last", "best") if (folder / name).is_symlink()}


def manifest_of(step: int, data: bytes, **changes: Any) -> bytes:
    """Return a manifest, written independently by its documented format. `changes` replace its entries."""

    def written(value: Any) -> bytes:
        return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()

    body = {"step": step, "files": {"state.pt": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}}}
    body.update(changes)
    return written({**body, "sha256": hashlib.sha256(written(body)).hexdigest()})


def forge(path: Path, step: int, data: bytes, **changes: Any) -> None:
    """Make a checkpoint folder of any content with a correct manifest."""
    path.mkdir(parents=True)
    (path / "state.pt").write_bytes(data)
    (path / "manifest.json").write_bytes(manifest_of(step, data, **changes))


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def in_child(work: Callable[[], object]) -> int:
    """Return the exit code of a forked process that does `work`: 0 if it returned, 1 if it raised."""
    with warnings.catch_warnings():
        # Newer Pythons warn of a fork with threads. The child only saves on the CPU, and ends by os._exit.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ------------------------------------------------------------------------------------------------------- round trip


def test_a_nested_state_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    floats = [float("nan"), -0.0, float("inf"), 5e-324, 1 / 3]
    real = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    state: State = {
        "step": 7,
        "tensors": {str(dtype): torch.tensor(floats, dtype=dtype) for dtype in real},
        "others": [torch.tensor([2**62, -1]), torch.tensor([True, False]), torch.tensor([1 + 2j]), torch.empty(0, 3)],
        "scalar": torch.tensor(3, dtype=torch.uint8),
        "strided": torch.arange(6.0).reshape(2, 3).T,
        "plain": {"none": None, "text": "größe", "big": 2**80, "float": 0.1, "flag": True, "tuple": (1, ("a", 2.5))},
        "rng": torch.get_rng_state(),
        "random": random.Random(5).getstate(),
    }
    path = checkpoint.save(tmp_path / "checkpoints", 7, state, best=False, keep=None)
    found = loaded(tmp_path / "checkpoints")
    assert (found.step, found.path, found.skipped) == (7, path, ())
    assert same(found.state, state)


def test_the_layout_of_files_and_links(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    put(folder, 0, 5, best=0)
    assert names(folder) == ["best", "last", "step_0", "step_5"]
    assert links(folder) == {"last": "step_5", "best": "step_0"}
    assert names(folder / "step_5") == ["manifest.json", "state.pt"]
    data = (folder / "last" / "state.pt").read_bytes()
    assert (folder / "last" / "manifest.json").read_bytes() == manifest_of(5, data)
    assert same(torch.load(io.BytesIO(data), weights_only=True), state_of(5))


def test_a_moved_folder_still_loads(tmp_path: Path) -> None:
    put(tmp_path / "a", 5)
    os.rename(tmp_path / "a", tmp_path / "b")
    assert loaded(tmp_path / "b").path == tmp_path / "b" / "step_5"


def test_saving_draws_no_random_numbers(tmp_path: Path) -> None:
    before = torch.get_rng_state(), random.getstate()
    put(tmp_path / "c", 1)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


@pytest.mark.parametrize("value", [Path("x"), object], ids=["path", "class"])
def test_a_state_that_cannot_be_loaded_is_not_saved(value: Any, tmp_path: Path) -> None:
    put(tmp_path / "c", 1)
    with pytest.raises(ValueError, match=r"step 2 cannot be loaded again: state\.pt must hold only tensors and plain"):
        checkpoint.save(tmp_path / "c", 2, {"value": value}, best=False, keep=None)
    assert names(tmp_path / "c") == ["last", "step_1"]


def test_a_state_of_another_step_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"state\.pt is of step 3, but its folder of step 4"):
        checkpoint.save(tmp_path, 4, {"step": 3}, best=False, keep=None)
    assert names(tmp_path) == []


# ----------------------------------------------------------------------------------------------- which one is loaded


def test_without_any_checkpoint_load_returns_none(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path / "absent") is None
    (tmp_path / "step_5.txt").write_text("")
    (tmp_path / "step_05").mkdir()
    (tmp_path / "step_6.tmp-0123abcd").mkdir()
    assert checkpoint.load(tmp_path) is None


def test_last_comes_before_the_newest(tmp_path: Path) -> None:
    put(tmp_path, 9, 10, 5)
    assert loaded(tmp_path).step == 5
    os.unlink(tmp_path / "last")
    assert loaded(tmp_path).step == 10


def test_a_checkpoint_comes_before_a_temporary_of_its_step(tmp_path: Path) -> None:
    put(tmp_path, 4, 5)
    shutil.copytree(tmp_path / "step_5", tmp_path / "step_5.tmp-0123abcd")
    os.unlink(tmp_path / "last")
    assert loaded(tmp_path).path == tmp_path / "step_5"
    shutil.rmtree(tmp_path / "step_5")
    assert (loaded(tmp_path).step, loaded(tmp_path).path) == (5, tmp_path / "step_5.tmp-0123abcd")


@pytest.mark.parametrize("target", ["step_9", "../elsewhere/step_9"])
def test_a_dangling_last_falls_back_to_the_newest(target: str, tmp_path: Path) -> None:
    put(tmp_path, 1, 2)
    os.unlink(tmp_path / "last")
    os.symlink(target, tmp_path / "last")
    found = loaded(tmp_path)
    assert found.step == 2
    expected = (f"the checkpoint `{tmp_path / 'step_9'}` is not used: it does not exist",)
    assert found.skipped == (expected if target == "step_9" else ())


def test_a_missing_target_of_last_is_an_error(tmp_path: Path) -> None:
    os.symlink("step_9", tmp_path / "last")
    with pytest.raises(CheckpointError, match=r"step_9` is not used: it does not exist"):
        checkpoint.load(tmp_path)


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match=r"checkpoints` cannot be read \(Not a directory\)"):
        checkpoint.load(tmp_path / "checkpoints")


def test_if_all_are_damaged_each_is_named(tmp_path: Path) -> None:
    put(tmp_path, 1, 2)
    (tmp_path / "step_1" / "state.pt").write_bytes(b"")
    os.unlink(tmp_path / "step_2" / "manifest.json")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(tmp_path)
    first, second, advice = caught.value.problems
    assert first.endswith("step_2` is not used: manifest.json cannot be read (No such file or directory)")
    assert re.search(r"step_1` is not used: state\.pt has 0 bytes, but manifest\.json says \d+$", second)
    assert "has no intact checkpoint; restore one from a copy" in advice


# --------------------------------------------------------------------------------------- F21, F22: damaged and forged

DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "state.pt has 0 bytes"),
    "half": (lambda data: data[: len(data) // 2], "state.pt has "),
    "one byte short": (lambda data: data[:-1], "state.pt has "),
    "one byte long": (lambda data: data + b"\0", "state.pt has "),
    "zeros": (lambda data: bytes(len(data)), "state.pt does not match its SHA-256 in manifest.json"),
    "html": (lambda data: b"<!doctype html><title>502 Bad Gateway</title>", "state.pt has 45 bytes"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_state_is_named_and_the_one_before_used(kind: str, tmp_path: Path) -> None:
    put(tmp_path, 1, 2, 3)
    damage, text = DAMAGE[kind]
    file = tmp_path / "step_3" / "state.pt"
    file.write_bytes(damage(file.read_bytes()))
    found = loaded(tmp_path)
    assert same(found.state, state_of(2))
    assert len(found.skipped) == 1
    assert found.skipped[0].startswith(f"the checkpoint `{tmp_path / 'step_3'}` is not used: {text}")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "manifest.json cannot be read (No such file or directory)"),
        (b"", "manifest.json (0 bytes) is not JSON"),
        (b"\xff\xfe\xfd", "manifest.json (3 bytes) is not JSON"),
        (b"[" * 100_000, "manifest.json (100000 bytes) is not JSON"),
        (b"<html>", "manifest.json (6 bytes) is not JSON"),
        (b"[]\n", "manifest.json lacks a required entry"),
        (b"{}\n", "manifest.json lacks a required entry"),
        (b'{"sha256": "", "step": 3, "files": {"state.pt": 5}}\n', "manifest.json lacks a required entry"),
    ],
)
def test_a_damaged_manifest_is_named_and_the_one_before_used(content: bytes | None, text: str, tmp_path: Path) -> None:
    put(tmp_path, 2, 3)
    file = tmp_path / "step_3" / "manifest.json"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    found = loaded(tmp_path)
    assert found.step == 2
    assert found.skipped == (f"the checkpoint `{tmp_path / 'step_3'}` is not used: {text}",)


def test_a_file_outside_the_manifest_is_named_and_removed_by_the_next_save_of_its_step(tmp_path: Path) -> None:
    put(tmp_path, 2, 3)
    (tmp_path / "step_3" / "state.pt.orig").write_bytes(b"")
    found = loaded(tmp_path)
    text = "state.pt.orig is not in manifest.json; move it away"
    assert (found.step, found.skipped) == (2, (f"the checkpoint `{tmp_path / 'step_3'}` is not used: {text}",))
    put(tmp_path, 3)
    assert names(tmp_path / "step_3") == ["manifest.json", "state.pt"]
    assert (loaded(tmp_path).step, loaded(tmp_path).skipped) == (3, ())


def test_a_manifest_with_an_extra_space_is_refused(tmp_path: Path) -> None:
    put(tmp_path, 3)
    file = tmp_path / "step_3" / "manifest.json"
    file.write_bytes(file.read_bytes() + b" ")
    assert checkpoint.verify(tmp_path / "step_3") == "manifest.json is not in canonical form"


def test_a_checkpoint_renamed_to_another_step_is_refused(tmp_path: Path) -> None:
    put(tmp_path, 3)
    os.rename(tmp_path / "step_3", tmp_path / "step_4")
    assert checkpoint.verify(tmp_path / "step_4") == "manifest.json is of step 3, but its folder of step 4"


def test_correct_manifests_of_wrong_states_are_refused(tmp_path: Path) -> None:
    data = pickled({"step": 1, "a": torch.zeros(3)})
    forge(tmp_path / "step_1", 1, data)
    forge(tmp_path / "step_2", 2, data)
    forge(tmp_path / "step_3", 3, pickled([1, 2]))
    forge(tmp_path / "step_4", 4, pickled({"a": 1}), more=True)
    assert checkpoint.verify(tmp_path / "step_1") is None
    assert checkpoint.verify(tmp_path / "step_2") == "state.pt is of step 1, but its folder of step 2"
    assert checkpoint.verify(tmp_path / "step_3") == "state.pt must hold a dict, got a list"
    assert checkpoint.verify(tmp_path / "step_4") == "manifest.json is not in canonical form"


def test_verify_says_what_is_not_a_checkpoint(tmp_path: Path) -> None:
    put(tmp_path, 3)
    (tmp_path / "step_5").write_text("")
    assert checkpoint.verify(tmp_path / "step_3") is None
    assert checkpoint.verify(tmp_path / "step_4") == "it does not exist"
    assert checkpoint.verify(tmp_path / "step_5") == "it is not a folder"
    assert checkpoint.verify(tmp_path / "last") == "its name must be step_<n>"


@pytest.mark.parametrize("name", ["state.pt", "manifest.json"])
def test_every_flipped_bit_is_found(name: str, tmp_path: Path) -> None:
    put(tmp_path, 2, 3)
    file = tmp_path / "step_3" / name
    whole = file.read_bytes()
    draw = random.Random(20)
    positions = range(len(whole)) if name == "manifest.json" else draw.sample(range(len(whole)), 50)
    for position in positions:
        flipped = bytearray(whole)
        flipped[position] ^= 1 << draw.randrange(8)
        file.write_bytes(flipped)
        found = loaded(tmp_path)
        assert found.step == 2, position
        assert len(found.skipped) == 1
        assert f"`{tmp_path / 'step_3'}` is not used: {name} " in found.skipped[0]
    file.write_bytes(whole)
    assert loaded(tmp_path).step == 3


class Payload:
    """An object that runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("write", [pickled, pickle.dumps], ids=["torch", "pickle"])
def test_a_pickle_that_runs_a_command_is_refused(write: Callable[[Any], bytes], tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    put(tmp_path / "c", 1)
    forge(tmp_path / "c" / "step_2", 2, write({"step": 2, "weight": Payload(marker)}))
    os.unlink(tmp_path / "c" / "last")
    found = loaded(tmp_path / "c")
    assert found.step == 1
    assert "step_2` is not used: state.pt must hold only tensors and plain values, and is refused" in found.skipped[0]
    assert not marker.exists()
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()  # unpickling the payload does run the command


# ------------------------------------------------------------------------------------------------ keeping and deleting


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in range(1, 7):
        checkpoint.save(tmp_path, step, state_of(step), best=step == 2, keep=2)
    assert names(tmp_path) == ["best", "last", "step_2", "step_5", "step_6"]
    assert same(torch.load(tmp_path / "best" / "state.pt", weights_only=True), state_of(2))


def test_newest_is_by_number_and_the_target_of_last_stays(tmp_path: Path) -> None:
    put(tmp_path, 8, 9, 10, 100)
    checkpoint.save(tmp_path, 3, state_of(3), best=False, keep=2)
    assert names(tmp_path) == ["last", "step_10", "step_100", "step_3"]


def test_other_files_are_never_deleted(tmp_path: Path) -> None:
    for name in ("step_1.bak", "step_01", "notes.tmp-0123abcd"):
        (tmp_path / name).mkdir()
    checkpoint.save(tmp_path, 5, state_of(5), best=False, keep=1)
    assert names(tmp_path) == ["last", "notes.tmp-0123abcd", "step_01", "step_1.bak", "step_5"]


def test_temporaries_of_a_killed_run_are_deleted_by_the_next_save(tmp_path: Path) -> None:
    (tmp_path / "step_4.tmp-0123abcd").mkdir()
    (tmp_path / "step_4.tmp-0123abcd" / "state.pt").write_bytes(b"half")
    os.symlink("step_4", tmp_path / "last.tmp-0123abcd")
    os.symlink("step_4", tmp_path / "best.tmp-89abcdef")
    put(tmp_path, 5)
    assert names(tmp_path) == ["last", "step_5"]


def test_a_failed_deletion_is_repeated_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, 1, 2, 3, best=1)
    remove, calls = shutil.rmtree, 0

    def fails_once(path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError(errno.EBUSY, "busy")
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", fails_once)
    checkpoint.save(tmp_path, 4, state_of(4), best=False, keep=1)
    assert calls == 2
    left = set(names(tmp_path)) - {"best", "last", "step_1", "step_4"}
    assert len(left) == 1
    assert loaded(tmp_path).step == 4
    checkpoint.save(tmp_path, 5, state_of(5), best=False, keep=1)
    assert names(tmp_path) == ["best", "last", "step_1", "step_5"]
    assert checkpoint.verify(tmp_path / "step_1") is None


def test_a_folder_that_cannot_be_listed_does_not_stop_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, 1)

    def fail(path: Path) -> list[str]:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", fail)
        checkpoint.save(tmp_path, 2, state_of(2), best=False, keep=1)
    assert loaded(tmp_path).step == 2


# -------------------------------------------------------------------------------------------------- the same step again


def test_saving_the_same_state_again_only_moves_the_links(tmp_path: Path) -> None:
    put(tmp_path, 1, 2)
    before = (tmp_path / "step_1").stat()
    checkpoint.save(tmp_path, 1, state_of(1), best=True, keep=None)
    after = (tmp_path / "step_1").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert links(tmp_path) == {"last": "step_1", "best": "step_1"}


def test_another_state_of_the_same_step_replaces_it(tmp_path: Path) -> None:
    put(tmp_path, 1)
    other = state_of(1, scale=2)
    checkpoint.save(tmp_path, 1, other, best=False, keep=None)
    assert same(loaded(tmp_path).state, other)
    assert names(tmp_path) == ["last", "step_1"]


@pytest.mark.parametrize("part", ["state.pt", "manifest.json", "all"])
def test_a_damaged_checkpoint_of_the_same_step_is_replaced(part: str, tmp_path: Path) -> None:
    put(tmp_path, 1)
    if part == "all":
        shutil.rmtree(tmp_path / "step_1")
        (tmp_path / "step_1").write_text("a file now")
    else:
        (tmp_path / "step_1" / part).write_bytes(b"{}\n")
    put(tmp_path, 1)
    assert loaded(tmp_path).skipped == ()
    assert names(tmp_path) == ["last", "step_1"]


# ---------------------------------------------------------------------------------------------------- order on the disk


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to name what is flushed")
def test_each_file_and_name_is_synced_before_the_next_depends_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, 1)
    calls: list[str] = []

    def noted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def note(*args: Any, **kwargs: Any) -> Any:
            place = os.readlink(f"/proc/self/fd/{args[0]}") if name == "fsync" else str(args[-1])
            calls.append(f"{name} {Path(place).name.partition('-')[0]}")
            return call(*args, **kwargs)

        return note

    for name in ("fsync", "rename", "replace"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    monkeypatch.setattr(shutil, "rmtree", noted("rmtree", shutil.rmtree))
    checkpoint.save(tmp_path, 2, state_of(2), best=True, keep=1)
    here = f"fsync {tmp_path.name}"
    assert calls == [
        *("fsync state.pt", "fsync manifest.json", "fsync step_2.tmp", "rename step_2", here),
        *("replace last", "replace best", here),
        *("rename step_1.tmp", "rmtree step_1.tmp"),
    ]


# ------------------------------------------------------------------------------------------------- F17: killed at any call


class Countdown:
    """Ends the process at the k-th call that changes the disk, as a kill would."""

    def __init__(self, k: int) -> None:
        self.left = k

    def strike(self) -> bool:
        self.left -= 1
        return self.left == 0

    def before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if self.strike():
                os._exit(9)
            return call(*args, **kwargs)

        return counted

    def opened(self, path: Path, mode: str) -> io.FileIO:
        strike = self.strike

        class File(io.FileIO):
            def write(self, data: Any) -> int:
                if strike():
                    super().write(bytes(data)[: len(data) // 2])
                    os._exit(9)
                return super().write(data)

        return File(path, mode)

    def arm(self) -> None:
        for name in ("replace", "rename", "fsync", "symlink", "unlink", "mkdir", "rmdir"):
            setattr(os, name, self.before(getattr(os, name)))
        builtins.open = self.opened  # type: ignore[assignment]  # this is a child that ends by os._exit


def first(folder: Path) -> State | None:
    return None


def next_one(folder: Path) -> State | None:
    put(folder, 1, 2)
    return state_of(2)


def same_step(folder: Path) -> State | None:
    old = state_of(3, scale=2)
    checkpoint.save(folder, 3, old, best=True, keep=1)
    return old


def damaged_step(folder: Path) -> State | None:
    put(folder, 2, 3)
    (folder / "step_3" / "state.pt").write_bytes(b"")
    return state_of(2)


@pytest.mark.parametrize("prepare", [first, next_one, same_step, damaged_step])
def test_a_kill_at_any_call_leaves_the_old_or_the_new_state(
    prepare: Callable[[Path], State | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A kill loses nothing that was written, so no real sync is needed.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    new, outcomes = state_of(3), []
    code, k = 9, 0
    while code == 9:
        k += 1
        folder = tmp_path / str(k) / "checkpoints"
        folder.mkdir(parents=True)
        old = prepare(folder)
        before = damaged(folder)

        def killed(folder: Path = folder, k: int = k) -> None:
            Countdown(k).arm()
            checkpoint.save(folder, 3, new, best=True, keep=1)

        code = in_child(killed)
        found = checkpoint.load(folder)
        state = None if found is None else found.state
        assert same(state, old) or same(state, new), k
        assert damaged(folder) <= before, k  # no incomplete folder has the name of a checkpoint
        outcomes.append(same(state, new))
        checkpoint.save(folder, 4, state_of(4), best=True, keep=1)
        assert names(folder) == ["best", "last", "step_4"], k
    assert code == 0
    assert k > 12  # the save was interrupted
    assert outcomes == sorted(outcomes)  # once the new state is loaded it stays
    assert (outcomes[0], outcomes[-1]) == (False, True)


# --------------------------------------------------------------------------------------------- F19, F20: no place to write


def test_a_full_disk_is_explained_and_the_old_checkpoint_stays(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    put(folder, 1)
    big = {"step": 2, "weight": torch.zeros(100_000)}

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, resource.RLIM_INFINITY))
        try:
            checkpoint.save(folder, 2, big, best=True, keep=1)
        except RunFailed as error:
            (tmp_path / "message").write_text(str(error))
            os._exit(3)

    assert in_child(limited) == 3
    message = (tmp_path / "message").read_text()
    assert message.startswith(f"saving step 2 failed: `{folder / 'step_2'}` cannot be written: ")
    assert re.search(r"the file would be larger than is allowed \([0-9,.]+ MiB are free\); ", message)
    assert names(folder) == ["last", "step_1"]
    assert same(loaded(folder).state, state_of(1))
    checkpoint.save(folder, 2, big, best=True, keep=1)
    assert same(loaded(folder).state, big)


@pytest.mark.parametrize("call", ["mkdir", "fsync", "rename", "symlink", "replace"])
@pytest.mark.parametrize("step", [1, 2], ids=["same step", "next step"])
def test_a_failure_at_any_call_leaves_the_old_checkpoint(
    call: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, 1, best=1)

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(RunFailed, match=rf"saving step {step} failed: `.*`.*file system is read-only \(.*free\)"):
            checkpoint.save(tmp_path, step, state_of(step, scale=2), best=True, keep=1)
    assert links(tmp_path) == {"last": "step_1", "best": "step_1"}
    kept = {"best", "last", "step_1"}
    in_place = call in ("symlink", "replace")  # after the rename: the new one is complete, but not yet last
    assert [name for name in names(tmp_path) if name.startswith("last.")] == []
    assert {name for name in names(tmp_path) if ".tmp" not in name} - kept == (
        {"step_2"} if in_place and step == 2 else set()
    )
    assert checkpoint.verify(tmp_path / "step_1") is None
    assert same(loaded(tmp_path).state, state_of(1, scale=2 if in_place and step == 1 else 1))
    checkpoint.save(tmp_path, 3, state_of(3), best=True, keep=1)
    assert names(tmp_path) == ["best", "last", "step_3"]


def test_a_failed_second_rename_restores_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, 1)
    rename, calls = os.rename, 0

    def second_fails(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(RunFailed, match="Input/output error"):
        checkpoint.save(tmp_path, 1, state_of(1, scale=2), best=False, keep=None)
    assert names(tmp_path) == ["last", "step_1"]
    assert same(loaded(tmp_path).state, state_of(1))


def test_a_file_in_the_folders_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("mine")
    with pytest.raises(RunFailed, match=rf"`{tmp_path / 'checkpoints'}` is a file where a folder must be"):
        put(tmp_path / "checkpoints", 1)
    assert (tmp_path / "checkpoints").read_text() == "mine"


def test_a_folder_in_the_place_of_last_is_named(tmp_path: Path) -> None:
    (tmp_path / "last").mkdir()
    with pytest.raises(RunFailed, match=rf"`{tmp_path / 'last'}` cannot be written: a folder of that name"):
        put(tmp_path, 1)
    assert names(tmp_path) == ["last", "step_1"]


def test_a_removed_checkpoint_folder_is_created_again_and_a_removed_run_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.parent.mkdir()
    put(folder, 1)
    shutil.rmtree(folder)
    put(folder, 2)
    assert loaded(folder).step == 2
    shutil.rmtree(folder.parent)
    with pytest.raises(RunFailed, match=rf"the folder `{folder.parent}` does not exist"):
        put(folder, 3)
    assert not folder.parent.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into a read-only folder")
def test_a_folder_without_permission_is_explained(tmp_path: Path) -> None:
    put(tmp_path, 1)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(RunFailed, match="this user may not write there"):
            put(tmp_path, 2)
    finally:
        tmp_path.chmod(0o700)
    assert loaded(tmp_path).step == 1
