"""Open files that somebody else may have put there: regular files only, up to a size, and no links where a run writes.

A FIFO would block for ever, a device may have no end, and a link in a stranger's run directory may lead to any file of the user.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

MIB = 2**20
_FLAGS = (
    os.O_CLOEXEC | os.O_NONBLOCK
)  # an exchanged file must not block either: the kind is checked again when it is open

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_to_read(path: Path, *, follow: bool = False) -> BinaryIO:
    """Open a regular file for reading; with `follow`, also through links. Raises OSError for anything else."""
    return _opened(path, os.O_RDONLY, follow)


def open_to_append(path: Path) -> BinaryIO:
    """Open a regular file for appending, and make it if it is missing. Raises OSError, also for a link."""
    return _opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, False)


def open_to_change(path: Path) -> BinaryIO:
    """Open an existing regular file for reading and writing. Raises OSError, also for a link."""
    return _opened(path, os.O_RDWR, False)


def read_bytes(path: Path, limit: int, *, follow: bool = False) -> bytes:
    """Return the content of a regular file of at most `limit` bytes. Raises OSError, which says what it is otherwise."""
    with open_to_read(path, follow=follow) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"it has more than {limit / MIB:g} MiB", str(path))
        return file.read(size)  # no more: it may grow, and files of /proc have a size of 0 and may have no end


def kind_of(path: Path) -> str | None:
    """Return what stands at a path, such as "a link" or "a FIFO"; None for a regular file, and where nothing does."""
    try:
        return _KINDS.get(stat.S_IFMT(os.lstat(path).st_mode))
    except (OSError, ValueError):
        return None


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder itself, and not a link to one."""
    return kind_of(path) == "a folder"


def make_folder(path: Path) -> None:
    """Make a folder unless it exists. Raises OSError, also where a link is in its place."""
    try:
        os.mkdir(path)
    except FileExistsError:
        if kind_of(path) == "a link":
            raise _refused(path, "a link") from None
        if not is_folder(path):
            raise


def _opened(path: Path, flags: int, follow: bool) -> BinaryIO:
    try:
        # Before it is opened: opening a device may have an effect already.
        _check(path, os.stat(path, follow_symlinks=follow).st_mode)
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    descriptor = os.open(path, flags | _FLAGS | (0 if follow else os.O_NOFOLLOW), 0o666)
    try:
        _check(path, os.fstat(descriptor).st_mode)
        mode = {os.O_RDONLY: "rb", os.O_RDWR: "r+b", os.O_WRONLY: "ab"}[flags & os.O_ACCMODE]
        file: Any = os.fdopen(descriptor, mode)
    except BaseException:
        os.close(descriptor)
        raise
    return file  # type: ignore[no-any-return]


def _check(path: Path, mode: int) -> None:
    """Raise OSError unless the mode is that of a regular file."""
    if not stat.S_ISREG(mode):
        raise _refused(path, _KINDS.get(stat.S_IFMT(mode), "a special file"))


def _refused(path: Path, kind: str) -> OSError:
    number = {"a folder": errno.EISDIR, "a link": errno.ELOOP}.get(kind, errno.ENXIO)
    return OSError(number, f"it is {kind}", str(path))
