"""A text file: looked at once from end to end for its SHA-256 and its encoding, then read as UTF-8 as often as needed."""

from __future__ import annotations

import codecs
import io
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO, cast

import numpy as np

from runner.config.files import MIB
from runner.data.diagnostics import named, shown
from runner.data.files import CHUNK_BYTES, File
from runner.errors import DataError

_UTF8_MARK = codecs.BOM_UTF8
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_NOT_IN_WINDOWS = bytes((0x81, 0x8D, 0x8F, 0x90, 0x9D))

LONGEST_LINE = 2**20
"""Bytes of a line that pyarrow may divide. It reads blocks of this size, up to 32 of them ahead."""


@dataclass(frozen=True)
class Text:
    """A text file whose bytes are known to be text."""

    file: File
    encoding: str
    size: int
    """Bytes, unpacked."""
    lines: int
    """Number of lines, if all end alike."""
    notes: tuple[str, ...] = ()
    """What was detected and is not the default, as phrases."""

    @property
    def path(self) -> str:
        """The path of the file."""
        return self.file.path

    def open(self) -> BinaryIO:
        """Return the text as UTF-8 without a byte order mark."""
        stream = self.file.open()
        if self.encoding != "utf-8":
            return cast("BinaryIO", io.BufferedReader(_Recoded(stream, self.encoding), CHUNK_BYTES))
        if cast("io.BufferedReader", stream).peek(3).startswith(_UTF8_MARK):
            stream.read(len(_UTF8_MARK))
        return stream

    def beginning(self, size: int) -> bytes:
        """Return up to so many bytes of the text as UTF-8."""
        with self.open() as stream:
            return stream.read(size)


class _Recoded(io.RawIOBase):
    """A stream in another encoding, as UTF-8."""

    def __init__(self, stream: BinaryIO, encoding: str) -> None:
        self._stream, self._decoder, self._ready = stream, codecs.getincrementaldecoder(encoding)(), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            chunk = self._stream.read(CHUNK_BYTES)
            self._ready = self._decoder.decode(chunk, not chunk).encode()
            if not chunk:
                break
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Decoding:
    """Whether bytes are text in an encoding."""

    def __init__(self, encoding: str) -> None:
        self.size = 0
        self.binary = False
        self.windows = True
        """Whether all bytes since the fault are characters in Windows' encoding."""
        self.fault: tuple[int, int] | None = None
        """Place and value of the first byte that is not in the encoding."""
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._may_be_no_text = encoding != "utf-8"
        self._ends = {b"\n": 0, b"\r": 0}

    def add(self, chunk: bytes) -> None:
        """Look at the next bytes; none at the end."""
        if self.fault is None:
            try:
                decoded = self._decoder.decode(chunk, not chunk)
                self.binary = self.binary or "\0" in decoded
                if self._may_be_no_text:
                    decoded.encode()  # halves of characters, as UTF-7 can spell them, are none
            except UnicodeDecodeError as error:  # its bytes may begin with some of the chunk before
                place = self.size + len(chunk) - len(error.object) + error.start
                self.fault = place, error.object[error.start]
            except UnicodeError:  # some codecs say no place
                self.fault = self.size, chunk[0] if chunk else 0
        if self.fault is not None:
            self.binary = self.binary or b"\0" in chunk
            self.windows = self.windows and not any(byte in chunk for byte in _NOT_IN_WINDOWS)
        self.size += len(chunk)
        for end in self._ends:
            self._ends[end] += chunk.count(end)

    @property
    def lines(self) -> int:
        """Number of lines, if all end alike."""
        return max(self._ends.values()) + 1


def examine(file: File, encoding: str | None, digest: Any) -> Text:
    """Return the text of a file, in an encoding or in the one that its bytes show, and add its bytes to a digest.

    Without an encoding it is UTF-16 after its byte order mark, else UTF-8, else Windows' superset of Latin-1, else Latin-1.
    Raises `DataError` for bytes that are no text in it.
    """
    chosen = _known(encoding or _marked(file) or "utf-8")
    decoding = _Decoding(chosen)
    for chunk in chain(file.chunks(), [b""]):
        digest.update(chunk)
        decoding.add(chunk)
        if decoding.binary:
            raise DataError(f"`data.path` must be text, but {named(file.path)} is UTF-16 or binary; save it as UTF-8")
    if decoding.fault is None:
        return Text(
            file,
            chosen,
            decoding.size,
            decoding.lines,
            () if encoding or chosen == "utf-8" else (f"encoding {chosen}",),
        )
    if encoding is None and chosen == "utf-8":
        # Five bytes are no character in Windows' encoding, and every byte is one in Latin-1.
        found = "cp1252" if decoding.windows else "latin-1"
        return Text(file, found, decoding.size, decoding.lines, (f"encoding {found}",))
    place, byte = decoding.fault
    raise DataError(
        f"`data.encoding` must fit {named(file.path)}, but line {_line(file, place)} has the byte 0x{byte:02x}, which is not in {chosen}; "
        "use another encoding"
    )


def _line(file: File, place: int) -> int:
    line = 1
    for chunk in file.chunks():
        line += chunk.count(b"\n", 0, max(place, 0))
        place -= len(chunk)
    return line


def divided_alike(text: Text, delimiter: str) -> bool:
    """Return whether every reader divides a text into the same cells.

    They differ on quotes inside a field, on quotes that are never closed, and on blank lines between rows.
    """
    quotes, ends_blank, rest = 0, False, b"\n"  # as at the end of a line before the first one
    with text.open() as stream:
        size = 0
        while chunk := stream.read(CHUNK_BYTES):
            size += len(chunk)
            text.file.progress.at(f"the lines of {size / MIB:,.0f} MiB checked")
            data = rest + chunk
            end = data.rfind(b"\n")
            lines, rest = data[: end + 1], data[end:]
            body = lines.rstrip(b"\r\n")
            if ends_blank and (body or rest.strip(b"\r\n")):
                return False
            ends_blank = _has_blank_line(lines[len(body) :])
            if len(rest) > LONGEST_LINE or (body and _has_blank_line(body)) or not _quoted_well(lines, delimiter):
                return False
            quotes += chunk.count(b'"') if b'"' in chunk else 0
    last = rest.rstrip(b"\r\n")
    blank = _has_blank_line(last) or (ends_blank and last)
    return quotes % 2 == 0 and not blank and _quoted_well(rest + b"\n", delimiter)


def _has_blank_line(lines: bytes) -> bool:
    return b"\n\n" in lines or (b"\r" in lines and (b"\n\r" in lines or b"\r\r" in lines))


def _quoted_well(lines: bytes, delimiter: str) -> bool:
    """Return whether every quote in complete lines stands at an end of its field, single, or as an empty field."""
    if b'"' not in lines:
        return True
    signs = np.frombuffer(lines, np.uint8)
    quotes = np.flatnonzero(signs == ord('"'))
    first = quotes[signs[quotes - 1] != ord('"')]
    last = quotes[signs[quotes + 1] != ord('"')]
    ends = np.isin(np.arange(256), [*delimiter.encode(), *b"\r\n"])
    before, after = ends[signs[first - 1]], ends[signs[last + 1]]
    single = last == first
    empty = (last == first + 1) & before & after
    return bool(np.all((single & (before != after)) | empty))


def _known(encoding: str) -> str:
    try:
        name = codecs.lookup(encoding).name
        "".encode(name)
    except (LookupError, UnicodeError):
        raise DataError(
            f"`data.encoding` must be the name of a text encoding, got {shown(encoding)}; use utf-8 or cp1252"
        ) from None
    return "utf-8" if name == "utf-8-sig" else name


def _marked(file: File) -> str | None:
    beginning = next(file.chunks(), b"")
    return "utf-16" if beginning.startswith(_UTF16_MARKS) else None
