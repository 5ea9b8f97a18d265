"""The bytes of table files: found by name, folder or pattern, unpacked, bounded in size."""

from __future__ import annotations

import bz2
import glob
import gzip
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path

from runner.compute import sizes
from runner.data.diagnostics import listed, named
from runner.errors import DataError

MEMORY_FACTOR = 3
"""Bytes of memory for each byte of a file at least: its content, its text, and its cells."""

_PACKED: dict[bytes, Callable[[bytes], bytes]] = {b"\x1f\x8b": gzip.decompress, b"BZh": bz2.decompress, b"\xfd7zXZ": lzma.decompress}  # fmt: skip
_ZSTD = b"\x28\xb5\x2f\xfd"
_WILD = "*?["


def find(path: str, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files that `data.path` stands for, in the order of their names: one file, a folder's, or a pattern's.

    Of a folder they are the files with one of the suffixes. Raises `DataError` when there is none, or one cannot be read.
    """
    file = Path(path)
    try:
        if file.is_dir():
            files = sorted(entry for entry in file.iterdir() if entry.name.lower().endswith(suffixes))
            if not files:
                raise DataError(
                    f"`data.path` must be a file or a folder of files, but {named(path)} has none that ends with "
                    f"{' or '.join(suffixes)}; give the path of a file"
                )
        elif not file.exists() and any(sign in path for sign in _WILD):
            files = sorted(Path(name) for name in glob.glob(path))
            if not files:
                raise DataError(
                    f"`data.path` must match a file, but nothing has the form {named(path)}; correct the pattern"
                )
        else:
            files = [file]
        bad = [entry for entry in files if not entry.is_file()]
    except OSError as error:
        raise _unreadable(path, f"cannot be read ({error.strerror})") from None
    if not bad:
        return files
    if bad != [file]:
        raise DataError(
            f"`data.path` must match regular files, but {listed([str(entry) for entry in bad])} is none; correct the pattern"
        )
    raise _unreadable(path, "is not a regular file" if file.exists() else "does not exist")


def contents(file: Path) -> bytes:
    """Return the bytes of a file, unpacked if its first bytes say that it is packed.

    Raises `DataError` if it cannot be read or unpacked, or is too large for the memory.
    """
    try:
        _refuse_large(file, file.stat().st_size)
        data = file.read_bytes()
    except OSError as error:
        raise _unreadable(str(file), f"cannot be read ({error.strerror})") from None
    try:
        for beginning, unpack in _PACKED.items():
            if data.startswith(beginning):
                return unpack(data)
        if data.startswith(_ZSTD):
            return _zstd(file, data)
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        raise DataError(
            f"`data.path` must be a complete file, but {named(str(file))} cannot be unpacked ({error}); copy or pack it again"
        ) from None
    return data


def _zstd(file: Path, data: bytes) -> bytes:
    try:
        import pyarrow as pa
    except ImportError:
        raise DataError(
            f'`data.path` of a file packed with zstd needs pyarrow, but it is not installed; pip install "runner[tables]" '
            f"or unpack {named(str(file))}"
        ) from None
    with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
        unpacked: bytes = stream.read()
    return unpacked


def _refuse_large(file: Path, size: int) -> None:
    value = f"got {named(str(file))} of {size / sizes.GIB:,.1f} GiB"
    problem = sizes.unfit(size * MEMORY_FACTOR, "`data.path`", value, "use a smaller file")
    if problem is not None:
        raise DataError(problem)


def _unreadable(path: str, fault: str) -> DataError:
    return DataError(
        f"`data.path` must be a readable file, but {named(path)} {fault}; give a path relative to the working directory"
    )
