"""The files of a table: found by name, folder or pattern, and opened as a stream of unpacked bytes."""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from runner.compute import sizes
from runner.config.files import MIB, open_to_read
from runner.data.diagnostics import listed, named
from runner.data.progress import Progress, Report, unreported
from runner.errors import DataError

CHUNK_BYTES = 2**20
"""Bytes that are read at once."""

_PACKED: dict[bytes, Callable[[Any], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}  # fmt: skip
_ZSTD = b"\x28\xb5\x2f\xfd"
_WILD = "*?["


@dataclass(frozen=True)
class File:
    """A regular file, as it was when it was found."""

    path: str
    size: int
    modified: int
    """Nanoseconds."""
    progress: Progress

    @staticmethod
    def of(path: Path, progress: Progress) -> File:
        """Return a file. Raises `DataError` if it cannot be read, or is too large for the memory."""
        try:
            status = path.stat()
        except OSError as error:
            raise _unreadable(str(path), f"cannot be read ({error.strerror})") from None
        value = f"got {named(str(path))} of {status.st_size / sizes.GIB:,.1f} GiB"
        # A number takes about as many bytes in a file as in memory.
        problem = sizes.unfit(status.st_size, "`data.path`", value, "use a smaller file")
        if problem is not None:
            raise DataError(problem)
        return File(str(path), status.st_size, status.st_mtime_ns, progress)

    def open(self) -> BinaryIO:
        """Return the bytes of the file, unpacked if the first ones say that it is packed."""
        if self.size == 0:
            return cast(
                "BinaryIO", io.BufferedReader(io.BytesIO())
            )  # files of /proc have this size, and may have no end
        try:
            source = cast("io.BufferedReader", open_to_read(Path(self.path), follow=True))
        except OSError as error:
            raise _unreadable(self.path, f"cannot be read ({error.strerror})") from None
        try:
            unpacked = _unpacked(self.path, source)
        except DataError:
            source.close()
            raise
        if unpacked is None:
            return source
        return cast("BinaryIO", io.BufferedReader(_Owner(unpacked, source), CHUNK_BYTES))

    def chunks(self) -> Iterator[bytes]:
        """Yield all unpacked bytes. Raises `DataError` if they cannot be read or unpacked."""
        size = 0
        with self.open() as stream:
            try:
                while chunk := stream.read(CHUNK_BYTES):
                    size += len(chunk)
                    self.progress.at(f"{size / MIB:,.0f} MiB checked")
                    yield chunk
            except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
                raise DataError(
                    f"`data.path` must be a complete file, but {named(self.path)} cannot be unpacked ({error}); copy or "
                    "pack it again"
                ) from None

    def require_unchanged(self) -> None:
        """Raise `DataError` if the file is no longer the one that was found: it is read more than once."""
        try:
            status = Path(self.path).stat()
            same = (status.st_size, status.st_mtime_ns) == (self.size, self.modified)
        except OSError:
            same = False
        if not same:
            raise DataError(
                f"`data.path` must hold still, but {named(self.path)} changed while it was read; wait until it is written"
            )


class _Owner(io.RawIOBase):
    """An unpacked stream that closes the packed one with it."""

    def __init__(self, stream: Any, source: BinaryIO) -> None:
        self._stream, self._source = stream, source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        self._source.close()
        super().close()


def find(path: str, suffixes: tuple[str, ...], report: Report = unreported) -> list[File]:
    """Return the files that `data.path` stands for, in the order of their names: one file, a folder's, or a pattern's.

    Of a folder they are the files with one of the suffixes. Raises `DataError` when there is none, or one cannot be read.
    """
    file = Path(path)
    try:
        if file.is_dir():
            files = sorted(entry for entry in file.iterdir() if entry.name.lower().endswith(suffixes))
            if not files:
                *others, last = [suffix for suffix in suffixes if suffix.count(".") == 1]
                raise DataError(
                    f"`data.path` must be a file or a folder of files, but {named(path)} has none that ends with "
                    f"{', '.join(others)} or {last}; give the path of a file"
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
        progress = Progress(path, report)
        return [File.of(entry, progress) for entry in files]
    if bad != [file]:
        raise DataError(
            f"`data.path` must match regular files, but {listed([str(entry) for entry in bad])} is none; correct the pattern"
        )
    raise _unreadable(path, "is not a regular file" if file.exists() else "does not exist")


def _unpacked(path: str, source: io.BufferedReader) -> Any:
    """Return the stream of unpacked bytes, or None if the first ones do not say that the file is packed."""
    beginning = source.peek(len(_ZSTD))
    if beginning.startswith(_ZSTD):
        return _zstd(path, source)
    return next((unpack(source) for sign, unpack in _PACKED.items() if beginning.startswith(sign)), None)


def _zstd(path: str, source: BinaryIO) -> Any:
    try:
        import pyarrow as pa
    except ImportError:
        raise DataError(
            '`data.path` of a file packed with zstd needs pyarrow, which is not installed; pip install "runner[tables]", '
            f"or unpack {named(path)}"
        ) from None
    return pa.CompressedInputStream(pa.PythonFile(source), "zstd")


def _unreadable(path: str, fault: str) -> DataError:
    return DataError(
        f"`data.path` must be a readable file, but {named(path)} {fault}; give its path with data.path=PATH, relative to the working directory"
    )
