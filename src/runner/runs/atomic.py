"""Write files that are complete or absent, also after a kill of the process or a loss of power."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from runner.config.files import open_to_append

_SYNC_LATER: ContextVar[bool] = ContextVar("_SYNC_LATER", default=False)


@contextmanager
def synced_together() -> Iterator[None]:
    """Wait for the disk once at the end of the context, and not for each of thousands of small files.

    Other processes still see each file complete or absent. A loss of power before the end may lose files.
    """
    token = _SYNC_LATER.set(True)
    try:
        yield
    finally:
        _SYNC_LATER.reset(token)
    os.sync()


def sync(file: BinaryIO) -> None:
    """Wait until the disk has the content of an open file. Raises OSError."""
    file.flush()
    if not _SYNC_LATER.get():
        os.fsync(file.fileno())


class Appended:
    """A file that grows by appending. A link or a special file in its place is refused with OSError.

    With `held`, data stays in memory until `sync`, and the file is open only during `sync`: thousands of such files do
    not exceed the limit of open files.
    """

    def __init__(self, path: Path, *, held: bool) -> None:
        self._path = path
        self._file: BinaryIO | None = None if held else open_to_append(path)
        self._waiting: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Append data. It reaches the operating system at once, or with `held` at the next `sync`. Raises OSError."""
        if self._file is None:
            self._waiting.append(data)
        else:
            self._file.write(data)
            self._file.flush()

    def sync(self) -> None:
        """Wait until the disk has all data so far. Raises OSError."""
        if self._waiting:
            with open_to_append(self._path) as file:
                file.write(b"".join(self._waiting))
                sync(file)
            self._waiting.clear()
        elif self._file is not None:
            sync(self._file)

    def close(self) -> None:
        """Write the data that is held, and close the file. Raises OSError."""
        if self._file is not None:
            self._file.close()
        elif self._waiting:
            self.sync()


def write_atomic(path: Path, data: bytes | Iterable[bytes], *, temporary_name: str | None = None) -> None:
    """Replace the content of `path` by `data`, or by pieces of it that are made one by one. Readers see the old content or the new one, never a part.

    Raises OSError. The old file is then unchanged, and no temporary file is left; `remove_temporary_files` removes that of a
    killed process. The name of the temporary file starts with that of the file, or with `temporary_name`.
    """
    fresh = temporary(path.with_name(temporary_name or path.name))
    try:
        write_new(fresh, data)
        os.replace(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a value as strict JSON, atomically. nan and inf become the texts that `strict` returns. Raises OSError."""
    write_atomic(path, as_json(value).encode())


def as_json(value: Any) -> str:
    """Return a value as strict JSON. nan and inf become the texts that `strict` returns."""
    return _lines(strict(value), "") + "\n"


_JSON = json.JSONEncoder(allow_nan=False)


def _lines(value: Any, indent: str) -> str:
    """Return JSON with a line for each entry of a mapping and each mapping of a list."""
    # The indentation of the json module takes ten times as long.
    deeper = f"{indent}  "
    if isinstance(value, dict) and value:
        entries = (f"{deeper}{_JSON.encode(str(name))}: {_lines(item, deeper)}" for name, item in value.items())
        return "{\n" + ",\n".join(entries) + f"\n{indent}}}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(f"{deeper}{_JSON.encode(item)}" for item in value) + f"\n{indent}]"
    return _JSON.encode(value)


def as_yaml(values: Mapping[str, Any]) -> str:
    """Return plain values as YAML, in their order. PyYAML and OmegaConf read the same values from it."""
    return "".join(_entry(json.dumps({name: value})) for name, value in values.items())


@lru_cache(maxsize=1024)
def _entry(text: str) -> str:
    """Return an entry, given as JSON, as YAML."""
    # Cached: YAML is slow, and most entries of a thousand trials are equal.
    import yaml

    written: str = yaml.dump(json.loads(text), Dumper=_dumper(), sort_keys=False, allow_unicode=True)
    return written


@cache
def _dumper() -> Any:
    """Return PyYAML's dumper with OmegaConf's idea of a number."""
    import yaml

    # The C library, which is four times as fast, where PyYAML was built with it.
    base: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

    class Dumper(base):  # type: ignore[misc]
        pass

    def text(dumper: Any, value: str) -> Any:
        # 1e5 is a number for OmegaConf, and a text that needs no quotes for PyYAML.
        style = "'" if re.fullmatch(r"[-+.0-9_]+[eE][-+0-9_]+", value) else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return Dumper


def strict(value: Any) -> Any:
    """Return a copy with each float that JSON lacks, at any depth, as "nan", "inf" or "-inf", and tuples as lists."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if isinstance(value, Mapping):
        return {name: strict(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    return value


def temporary(path: Path) -> Path:
    """Return an unused name in the folder of `path`."""
    # From the system's random numbers: no seeded stream advances.
    return path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")


def remove_temporary_files(*folders: Path) -> None:
    """Remove the temporary files that a killed process left in these folders, as far as that is possible."""
    for folder in folders:
        with suppress(OSError):
            for file in folder.iterdir():
                if re.fullmatch(r".+\.tmp-[0-9a-f]{8}", file.name):
                    file.unlink()


def write_new(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write a new file from its content or pieces of it, and wait until the disk has it. Raises OSError, also where the file exists."""
    with open(path, "xb") as file:
        file.writelines([data] if isinstance(data, bytes) else data)
        sync(file)


def sync_folder(path: Path) -> None:
    """Wait until the disk has the names in a folder, such as after a rename. Raises OSError."""
    if _SYNC_LATER.get():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems lack this call for a folder: there the server orders the names.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def explain_os_error(error: OSError, path: Path) -> str:
    """Return one sentence on why `path` could not be written: the cause, the free space there, and the remedy."""
    if error.errno in (errno.ELOOP, errno.ENXIO) and error.filename:
        path = Path(error.filename)
    blocker = next((p for p in (path, *path.parents) if os.path.lexists(p) and not p.is_dir()), path)
    in_the_way = (f"`{blocker}` is a file where a folder must be", "move it away")
    not_allowed = ("this user may not write there", "change its permissions or choose another `run_dir`")
    known = {
        errno.ENOSPC: ("the disk is full", "free some space or choose another `run_dir`"),
        errno.EDQUOT: ("the disk quota is used up", "free some space or choose another `run_dir`"),
        errno.EFBIG: ("the file would be larger than is allowed", "raise the limit that `ulimit -f` shows"),
        errno.EROFS: ("the file system is read-only", "choose another `run_dir`"),
        errno.EACCES: not_allowed,
        errno.EPERM: not_allowed,
        errno.ENOTDIR: in_the_way,
        errno.EEXIST: in_the_way,
        errno.EISDIR: ("a folder of that name is in the way", "move it away"),
        errno.ELOOP: ("it is a link, and links are not followed", "remove it"),
        errno.ENXIO: ("it is not a regular file", "remove it"),
        errno.ENOENT: (f"the folder `{_missing(path)}` does not exist", "restore it or choose another `run_dir`"),
    }
    unknown = (error.strerror or str(error), "choose another `run_dir` if the disk cannot be repaired")
    cause, remedy = known.get(error.errno or 0, unknown)
    return f"`{path}` cannot be written: {cause} ({_free_space(path)}); {remedy}"


def _missing(path: Path) -> Path:
    """Return the highest folder above `path` that does not exist."""
    absent = [folder for folder in path.parents if not folder.exists()]
    return absent[-1] if absent else path.parent


def _free_space(path: Path) -> str:
    there = next((folder for folder in (path, *path.parents) if folder.exists()), path)
    with suppress(OSError):
        return f"{shutil.disk_usage(there).free / 2**20:,.1f} MiB are free"
    return "the free space is not known"
