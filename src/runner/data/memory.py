"""Memory of columns that the system has back at once when a column is no longer used."""

from __future__ import annotations

from mmap import mmap

import numpy as np

LARGE = 2**20
"""Bytes from which a column has pages of its own; the system has room for some ten thousand of such columns."""


def allocate(count: int) -> mmap | bytearray:
    """Return memory of at least so many bytes, at least eight. What is never written takes no memory.

    malloc keeps what is below 32 MiB, in pieces that fit the next column only by chance.
    """
    return mmap(-1, count) if count >= LARGE else bytearray(max(count, 8))


class Growing:
    """An array that is filled from its beginning. Memory of a part that is never filled is never used."""

    def __init__(self, size: int, dtype: type) -> None:
        self._array: np.ndarray = np.frombuffer(allocate(size * np.dtype(dtype).itemsize), dtype)
        self._filled = 0

    def extend(self, values: np.ndarray) -> None:
        """Add values at the end."""
        end = self._filled + len(values)
        if end > len(self._array):
            self._array = np.concatenate([self.array, np.empty(end, self._array.dtype)])
        self._array[self._filled : end] = values
        self._filled = end

    @property
    def array(self) -> np.ndarray:
        """The values that were added."""
        return self._array[: self._filled]
