"""Checkpoints that survive a kill at any moment and are never believed unread.

    checkpoints/step_<n>/state.pt         torch.save of plain values and tensors
    checkpoints/step_<n>/*.distcp         the tensors, where each process holds a part of them; `.metadata` says which
    checkpoints/step_<n>/manifest.json    step, size and SHA-256 of every other file, and the manifest's own SHA-256
    checkpoints/last, checkpoints/best    relative symlinks

A checkpoint is written beside its place under a temporary name and renamed when the disk has it. Older ones are deleted
only after `last` points at the new one. torch.load itself does not notice a flipped bit: the SHA-256 does.
"""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from runner.errors import CheckpointError, RunFailed
from runner.runs.atomic import explain_os_error, sync_folder, temporary, write_new
from runner.runs.checkpoint_manifest import MANIFEST, Files, manifest_of, measured, measured_file, mismatch

STATE = "state.pt"
STEP = re.compile(r"step_(0|[1-9][0-9]*)")
TEMPORARY = re.compile(r"(?:step_(0|[1-9][0-9]*)|last|best)\.tmp-[0-9a-f]{8}")


@dataclass(frozen=True)
class Loaded:
    """An intact checkpoint, and a sentence on each damaged one that was passed over to reach it."""

    step: int
    state: dict[str, Any]
    path: Path
    skipped: tuple[str, ...]


def save(folder: Path, step: int, state: dict[str, Any], *, best: bool, keep: int | None) -> Path:
    """Save `state` as `folder`/step_<step>, point `last` at it (and `best`, if it is), delete what is not kept.

    `keep` is the number of newest checkpoints that stay besides those of `last` and `best`; None keeps all. What cannot
    be deleted now is tried again at the next save. Raises RunFailed when the state cannot be written: the older
    checkpoints and the link to them are then as they were. Raises ValueError for a state that `load` would refuse.
    """
    data = _serialised(step, state)
    target = folder / f"step_{step}"
    if not _holds(target, step, data):
        fresh = draft(folder, step)
        with _removed_on_failure(fresh), _explained(target, step):
            _complete(fresh, target, data, {})
    return _release(target, best, keep)


def draft(folder: Path, step: int) -> Path:
    """A new folder beside the place of a checkpoint, for shards; `publish` makes it one. Raises RunFailed."""
    target = folder / f"step_{step}"
    with _explained(target, step):
        if not folder.is_dir():
            os.mkdir(folder)
            sync_folder(folder.parent)
        fresh = temporary(target)
        os.mkdir(fresh)
        return fresh


def publish(fresh: Path, state: dict[str, Any], *, best: bool, keep: int | None) -> Path:
    """Make the checkpoint of a draft that has its shards: `save` of all that is not in them, with the same errors."""
    step, target = _step_of(fresh.name), fresh.with_suffix("")
    with _removed_on_failure(fresh), _explained(target, step):
        _complete(fresh, target, _serialised(step, state), _readable(fresh, step))
    return _release(target, best, keep)


def load(folder: Path) -> Loaded | None:
    """The checkpoint that `last` points at if it is intact, else the newest intact one; None if there never was one.

    Raises CheckpointError, with a sentence on each, when there are checkpoints and none of them is intact.
    """
    skipped: list[str] = []
    for path in _candidates(folder):
        found = intact(path)
        if not isinstance(found, str):
            return Loaded(_step_of(path.name), found, path, tuple(skipped))
        if STEP.fullmatch(path.name):  # an incomplete temporary is a killed save, not a damaged checkpoint
            skipped.append(f"the checkpoint `{path}` is not used: {found}")
    if not skipped:
        return None
    advice = f"`{folder}` has no intact checkpoint; restore one from a copy, or start again in a new run directory"
    raise CheckpointError([*skipped, advice])


def verify(path: Path) -> str | None:
    """What is wrong with the checkpoint `path`, a folder named step_<n>, in words; None when it is intact."""
    found = intact(path)
    return found if isinstance(found, str) else None


# ---------------------------------------------------------------------------------------------------------- writing


def _serialised(step: int, state: dict[str, Any]) -> bytes:
    """The content of state.pt. Read back at once, so that nothing is published that `load` would refuse later.

    Once for all states of the same make: it takes longer than the writing.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    make = _make(state)
    if make not in _READABLE:
        found = _unpickled(step, data)
        if isinstance(found, str):
            raise ValueError(f"the state of step {step} cannot be loaded again: {found}")
        _READABLE.add(make)
    return data


_READABLE: set[Any] = set()
"""Makes of states that were read back."""


def _make(value: Any) -> Any:
    """Of what types a state is made: states of the same make are read alike."""
    if isinstance(value, dict):
        return tuple((name, _make(item)) for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return (type(value), *map(_make, value))
    return (type(value), value.dtype) if isinstance(value, torch.Tensor) else type(value)


@contextmanager
def _explained(path: Path, step: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunFailed(f"saving step {step} failed: {explain_os_error(error, path)}") from error


def _holds(target: Path, step: int, data: bytes) -> bool:
    try:
        alone = {*os.listdir(target)} == {STATE, MANIFEST}
        found = [(target / name).read_bytes() for name in (STATE, MANIFEST)]
    except OSError:
        return False
    return alone and found == [data, manifest_of(step, {STATE: measured(data)})]


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
    write_new(fresh / MANIFEST, manifest_of(_step_of(target.name), {STATE: measured(data), **shards}))
    sync_folder(fresh)
    _put(fresh, target)


def _readable(fresh: Path, step: int) -> Files:
    """The shards of a draft; `load` would not refuse them."""
    from runner.runs import checkpoint_shards

    files = _others(fresh)
    found = checkpoint_shards.described(fresh, files)
    if isinstance(found, str):
        raise ValueError(f"the shards of step {step} cannot be loaded again: {found}")
    return files


def _put(fresh: Path, target: Path) -> None:
    """Rename `fresh` to `target`. What stands there already goes aside, where `load` finds it and `_tidy` deletes it."""
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
    fresh = temporary(link)
    try:
        os.symlink(name, fresh)
        os.replace(fresh, link)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def _release(target: Path, best: bool, keep: int | None) -> Path:
    """Point the links at a checkpoint that is in its place, and delete what is not kept."""
    folder, step = target.parent, _step_of(target.name)
    with _explained(target, step):
        sync_folder(folder)
    for name in ("last", "best") if best else ("last",):
        with _explained(folder / name, step):
            _point(folder / name, target.name)
    with _explained(folder, step):
        sync_folder(folder)  # before the deletions: they must not reach the disk ahead of the links
    _tidy(folder, keep)
    return target


def _tidy(folder: Path, keep: int | None) -> None:
    """Delete left-over temporaries and the checkpoints that are not kept. A failure is no reason to stop training."""
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
            aside = temporary(path)  # so that no half-deleted folder bears a checkpoint's name
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
    """The name step_<n> that a link holds, also when nothing is there; None when it holds no such name."""
    name = os.readlink(link) if link.is_symlink() else ""
    return name if STEP.fullmatch(name) else None


def _candidates(folder: Path) -> list[Path]:
    """Where a state may be, in the order of trust: the target of `last`, then all by step, newest first.

    Temporaries of a killed save come after the checkpoint of their step: one of them may be the only whole copy, when the
    kill came while a checkpoint was being replaced.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        advice = "it must be a folder of checkpoints; restore it from a copy or start again in a new run directory"
        raise CheckpointError(f"`{folder}` cannot be read ({error.strerror}): {advice}") from error
    steps = [name for name in names if STEP.fullmatch(name)]
    aside = [name for name in names if (match := TEMPORARY.fullmatch(name)) and match[1]]
    last = [name for name in [_target(folder / "last")] if name is not None]
    ordered = last + sorted(steps + aside, key=lambda name: (-_step_of(name), name in aside))
    return [folder / name for name in dict.fromkeys(ordered)]


def intact(path: Path) -> dict[str, Any] | str:
    """The state of a checkpoint, a folder named step_<n>; or what is wrong with it, in words."""
    if STEP.match(path.name) is None:
        return "its name must be step_<n>"
    if not path.is_dir():
        return "it is not a folder" if os.path.lexists(path) else "it is not there"
    try:
        manifest, data = (path / MANIFEST).read_bytes(), (path / STATE).read_bytes()
        files = {STATE: measured(data), **_others(path)}
    except OSError as error:
        return f"{Path(error.filename).name} cannot be read ({error.strerror})"
    step = _step_of(path.name)
    return mismatch(step, manifest, files) or _read(path, data, files)


def _others(path: Path) -> Files:
    """All files of a checkpoint besides state and manifest."""
    return {name: measured_file(path / name) for name in sorted({*os.listdir(path)} - {STATE, MANIFEST})}


def _read(path: Path, data: bytes, files: Files) -> dict[str, Any] | str:
    """The state, with the tensors that are in shards put in whole."""
    state = _unpickled(_step_of(path.name), data)
    if isinstance(state, str) or len(files) == 1:
        return state
    from runner.runs import checkpoint_shards

    return checkpoint_shards.read(path, files, state)


def _unpickled(step: int, data: bytes) -> dict[str, Any] | str:
    try:
        state = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:  # torch has a dozen kinds, and its text advises weights_only=False
        return f"{STATE} must hold tensors and plain values alone and is refused ({type(error).__name__})"
    if not isinstance(state, dict):
        return f"{STATE} must hold a dict, but holds a {type(state).__name__}"
    if state.get("step", step) != step:
        return f"{STATE} is of step {state['step']}, but the folder of step {step}"
    return state
