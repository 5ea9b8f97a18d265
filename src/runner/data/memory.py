"""Memory of columns that the system has back at once when a column is no longer used."""

from __future__ import annotations

from mmap import mmap

LARGE = 2**20
"""Bytes from which a column has pages of its own; the system has room for some ten thousand of such columns."""


def allocate(count: int) -> mmap | bytearray:
    """Return memory of at least so many bytes, at least eight. What is never written takes no memory.

    malloc keeps what is below 32 MiB, in pieces that fit the next column only by chance.
    """
    return mmap(-1, count) if count >= LARGE else bytearray(max(count, 8))
