"""Save and load checkpoints. A kill at any moment leaves an intact one, and damage is detected.

    checkpoints/step_<n>/state.pt         torch.save of plain values and tensors
    checkpoints/step_<n>/*.distcp         the tensors of a sharded state; `.metadata` lists the shards
    checkpoints/step_<n>/manifest.json    step, size and SHA-256 of every other file, and the manifest's own SHA-256
    checkpoints/last, checkpoints/best    relative symlinks

A checkpoint is written to a temporary folder, `step_<n>.tmp-<hex>`, and renamed once the disk has all its files. Then
`last` is pointed at it, and only then are older ones deleted. torch.load does not notice a flipped bit; the SHA-256
does.

`save` does all of this for a state that one process holds. For a sharded state, `draft` makes the temporary folder,
each process writes its shards into it (`checkpoint_shards.write`), and `publish` adds the rest and makes it a
checkpoint.
"""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from runner.config.files import is_folder, kind_of, make_folder, read_bytes
from runner.errors import CheckpointError, RunFailed
from runner.runs.atomic import explain_os_error, sync_folder, temporary, write_new
from runner.runs.checkpoint_manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    Files,
    listed_sizes,
    manifest_of,
    mismatch,
    size_and_hash,
    size_and_hash_of,
    size_of,
)

STATE = "state.pt"
Fault: TypeAlias = Callable[[Mapping[str, Any]], str | None]
"""State → what is wrong with it, or None."""

STEP = re.compile(r"step_(0|[1-9][0-9]*)")
TEMPORARY = re.compile(r"(?:step_(0|[1-9][0-9]*)|last|best)\.tmp-[0-9a-f]{8}")


@dataclass(frozen=True)
class Loaded:
    """An intact checkpoint: its step, state and folder. `skipped` has a sentence for each damaged one before it.

    `best` is the state of the best evaluation up to it, where that was asked for.
    """

    step: int
    state: dict[str, Any]
    path: Path
    skipped: tuple[str, ...]
    best: dict[str, Any] | None = None


def save(folder: Path, step: int, state: dict[str, Any], *, best: bool, keep: int | None) -> Path:
    """Save `state` as `folder`/step_<step>, point `last` at it, and `best` if it is. Delete those that are not kept.

    `keep` is the number of newest checkpoints that stay in addition to `last` and `best`; None keeps all. What cannot
    be deleted is deleted at a later save. Raises RunFailed if the state cannot be written; the older checkpoints and
    the links are then unchanged. Raises ValueError for a state that `load` would refuse.
    """
    data = _serialised(step, state)
    target = folder / f"step_{step}"
    if not _holds(target, step, data):
        fresh = draft(folder, step)
        with _removed_on_failure(fresh), _explained(target, step):
            _complete(fresh, target, data, {})
    return _release(target, best, keep)


def draft(folder: Path, step: int) -> Path:
    """Make and return a temporary folder for the shards of a checkpoint; `publish` completes it. Raises RunFailed."""
    target = folder / f"step_{step}"
    with _explained(target, step):
        if not is_folder(folder):
            make_folder(folder)
            sync_folder(folder.parent)
        fresh = temporary(target)
        os.mkdir(fresh)
        return fresh


def publish(fresh: Path, state: dict[str, Any], *, best: bool, keep: int | None) -> Path:
    """Make a draft with its shards a checkpoint: add `state`, the rest of the state, and go on as in `save`."""
    step, target = _step_of(fresh.name), fresh.with_suffix("")
    with _removed_on_failure(fresh), _explained(target, step):
        _complete(fresh, target, _serialised(step, state), _readable(fresh, step))
    return _release(target, best, keep)


def load(folder: Path, fault: Fault = lambda state: None) -> Loaded | None:
    """Load the checkpoint of `last` if it is intact, else the newest intact one; None if there never was one.

    `fault` may find something wrong with a state: that checkpoint is not used either. Raises CheckpointError, with a sentence for each checkpoint, if none of them is intact.
    """
    skipped: list[str] = []
    for path in candidates(folder):
        state = intact(path)
        state = state if isinstance(state, str) else fault(state) or state
        if not isinstance(state, str):
            return Loaded(_step_of(path.name), state, path, tuple(skipped))
        if STEP.fullmatch(path.name):  # an incomplete temporary is a killed save, not a damaged checkpoint
            skipped.append(f"the checkpoint `{path}` is not used: {state}")
    if not skipped:
        return None
    advice = f"`{folder}` has no intact checkpoint; restore one from a copy, or start again in a new run directory"
    raise CheckpointError([*skipped, advice])


def verify(path: Path) -> str | None:
    """Return what is wrong with the checkpoint `path`, a folder named step_<n>; None if it is intact."""
    state = intact(path)
    return state if isinstance(state, str) else None


# ---------------------------------------------------------------------------------------------------------- writing


def _serialised(step: int, state: dict[str, Any]) -> bytes:
    """Return the content of state.pt. Raises ValueError for a state that `load` would refuse."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    structure = _structure(state)
    if structure not in _READABLE:  # reading takes longer than writing, so it is tried once for each structure
        again = _unpickled(step, data)
        if isinstance(again, str):
            raise ValueError(f"the state of step {step} cannot be loaded again: {again}")
        _READABLE.add(structure)
    return data


_READABLE: set[Any] = set()
"""Structures of states that were read back."""


def _structure(value: Any) -> Any:
    """Return names and types of a state: states of the same structure can be read if one of them can."""
    if isinstance(value, dict):
        return tuple((name, _structure(item)) for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return (type(value), *map(_structure, value))
    return (type(value), value.dtype) if isinstance(value, torch.Tensor) else type(value)


@contextmanager
def _explained(path: Path, step: int) -> Iterator[None]:
    """Raise an OSError inside the context as RunFailed, with its cause and remedy."""
    try:
        yield
    except OSError as error:
        raise RunFailed(f"saving step {step} failed: {explain_os_error(error, path)}") from error


def _holds(target: Path, step: int, data: bytes) -> bool:
    """Return whether the checkpoint exists already, with this state and no other file."""
    try:
        complete = {*os.listdir(target)} == {STATE, MANIFEST}
        expected = {STATE: data, MANIFEST: manifest_of(step, {STATE: size_and_hash(data)})}
        return complete and all(read_bytes(target / name, len(text)) == text for name, text in expected.items())
    except OSError:
        return False


@contextmanager
def _removed_on_failure(fresh: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _complete(fresh: Path, target: Path, data: bytes, shards: Files) -> None:
    """Add state and manifest to a draft and rename it."""
    write_new(fresh / STATE, data)
    write_new(fresh / MANIFEST, manifest_of(_step_of(target.name), {STATE: size_and_hash(data), **shards}))
    sync_folder(fresh)
    _put(fresh, target)


def _readable(fresh: Path, step: int) -> Files:
    """Return the shards of a draft. Raises ValueError for those that `load` would refuse."""
    from runner.runs import checkpoint_shards

    files = _others(fresh)
    metadata = checkpoint_shards.read_metadata(fresh, files)
    if isinstance(metadata, str):
        raise ValueError(f"the shards of step {step} cannot be loaded again: {metadata}")
    return files


def _put(fresh: Path, target: Path) -> None:
    """Rename `fresh` to `target`. An older one gets a temporary name, which `load` can read and `_tidy` deletes."""
    if not os.path.lexists(target):
        os.rename(fresh, target)
        return
    aside = temporary(target)
    os.rename(target, aside)
    try:
        os.rename(fresh, target)
    except BaseException:
        os.rename(aside, target)
        raise


def _point(link: Path, name: str) -> None:
    """Point a symlink at a name, atomically."""
    fresh = temporary(link)
    try:
        os.symlink(name, fresh)
        os.replace(fresh, link)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def _release(target: Path, best: bool, keep: int | None) -> Path:
    """Point the links at a checkpoint that has its final name, and delete those that are not kept."""
    folder, step = target.parent, _step_of(target.name)
    with _explained(target, step):
        sync_folder(folder)
    for name in ("last", "best") if best else ("last",):
        with _explained(folder / name, step):
            _point(folder / name, target.name)
    with _explained(folder, step):
        sync_folder(folder)  # before the deletions, which must not reach the disk before the links
    _tidy(folder, keep)
    return target


def _tidy(folder: Path, keep: int | None) -> None:
    """Delete left-over temporaries and the checkpoints that are not kept. A failure does not stop the training."""
    with suppress(OSError):
        names = os.listdir(folder)
        newest = sorted(filter(STEP.fullmatch, names), key=_step_of, reverse=True)[:keep]
        kept = {*newest, _target(folder / "last"), _target(folder / "best")}
        for name in names:
            if TEMPORARY.fullmatch(name) or (STEP.fullmatch(name) and name not in kept):
                _delete(folder / name)


def _delete(path: Path) -> None:
    with suppress(OSError):
        if STEP.fullmatch(path.name):
            aside = temporary(path)  # no half-deleted folder has the name of a checkpoint
            os.rename(path, aside)
            path = aside
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


# ---------------------------------------------------------------------------------------------------------- reading


def _step_of(name: str) -> int:
    match = STEP.match(name)
    assert match is not None
    return int(match[1])


def _target(link: Path) -> str | None:
    """Return the name step_<n> that a link points at, even if it does not exist; None for any other target."""
    name = os.readlink(link) if link.is_symlink() else ""
    return name if STEP.fullmatch(name) else None


def linked_step(folder: Path, name: str) -> int | None:
    """Return the step of the checkpoint that `last` or `best` points at; None without such a link."""
    target = _target(folder / name)
    return None if target is None else _step_of(target)


def candidates(folder: Path) -> list[Path]:
    """Return the folders that may hold a state, the best first: the target of `last`, then all others, newest first.

    Temporaries of a killed save come after the checkpoint of their step. One of them is the only complete copy if the
    kill came while a checkpoint was being replaced.
    """
    try:
        if kind_of(folder) == "a link":
            raise OSError(errno.ELOOP, "it is a link")
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        advice = "it must be a folder of checkpoints; restore it from a copy or start again in a new run directory"
        raise CheckpointError(f"`{folder}` cannot be read ({error.strerror}): {advice}") from error
    steps = [name for name in names if STEP.fullmatch(name)]
    temporaries = [name for name in names if (match := TEMPORARY.fullmatch(name)) and match[1]]
    last = [name for name in [_target(folder / "last")] if name is not None]
    ordered = last + sorted(steps + temporaries, key=lambda name: (-_step_of(name), name in temporaries))
    return [folder / name for name in dict.fromkeys(ordered)]


def intact(path: Path) -> dict[str, Any] | str:
    """Return the state of a checkpoint, a folder named step_<n>; or a text that says what is wrong with it."""
    if STEP.match(path.name) is None:
        return "its name must be step_<n>"
    if not is_folder(path):
        return "it is not a folder" if os.path.lexists(path) else "it does not exist"
    try:
        manifest = read_bytes(path / MANIFEST, MAX_MANIFEST_BYTES)
        sizes = listed_sizes(manifest)
        state_size = sizes.get(STATE, 0)
        data = read_bytes(path / STATE, state_size) if size_of(path / STATE) == state_size <= physical_memory() else b""
        files = {**_others(path, sizes), STATE: (size_of(path / STATE), size_and_hash(data)[1])}
    except OSError as error:
        return f"{Path(error.filename).name} cannot be read ({error.strerror})"
    step = _step_of(path.name)
    return mismatch(step, manifest, files) or _read(path, data, files)


def _others(path: Path, sizes: Mapping[str, int] | None = None) -> Files:
    """Return all files of a checkpoint except state and manifest.

    Those of another size than in `sizes` are not read: they are wrong already, and may be larger than any disk.
    """
    names = sorted({*os.listdir(path)} - {STATE, MANIFEST})
    return {
        name: size_and_hash_of(path / name)
        if sizes is None or size_of(path / name) == sizes.get(name)
        else (size_of(path / name), "")
        for name in names
    }


def physical_memory() -> int:
    """Return the bytes of memory of this machine: a larger state cannot be one that it has saved or can load."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _read(path: Path, data: bytes, files: Files) -> dict[str, Any] | str:
    """Return the state, with the whole tensors of its shards; or a text that says what is wrong with it."""
    state = _unpickled(_step_of(path.name), data)
    if isinstance(state, str) or len(files) == 1:
        return state
    from runner.runs import checkpoint_shards

    return checkpoint_shards.read(path, files, state)


def _unpickled(step: int, data: bytes) -> dict[str, Any] | str:
    """Return the content of state.pt; or a text that says what is wrong with it."""
    if not _stored(data):
        return f"{STATE} must hold its tensors as torch.save stores them, without compression"
    try:
        state = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:  # of a dozen types; torch's text advises weights_only=False
        return f"{STATE} must hold only tensors and plain values, and is refused ({type(error).__name__})"
    if not isinstance(state, dict):
        return f"{STATE} must hold a dict, got a {type(state).__name__}"
    if state.get("step", step) != step:
        return f"{STATE} is of step {state['step']}, but its folder of step {step}"
    return state


def _stored(data: bytes) -> bool:
    """Return whether the entries of a zip file are together no larger than it is: a compressed one may fill the memory."""
    try:
        entries = zipfile.ZipFile(io.BytesIO(data)).infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        return True  # torch.load names the fault
    return sum(entry.file_size for entry in entries) <= len(data)
