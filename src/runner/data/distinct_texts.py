"""A column of text, block after block, as the places of its cells among the distinct texts."""

from __future__ import annotations

from typing import Any

import numpy as np

from runner.data.memory import Growing
from runner.data.texts import ArrowTexts, Texts


class DistinctTexts:
    """Cells of text. Those of pyarrow stay its own until all are known: as Python's strings they take ten times the memory."""

    def __init__(self, expected: int) -> None:
        """Expect so many cells; there may be more."""
        self._codes = Growing(expected, np.int32)
        self._places: dict[str, int] = {}
        """Places of texts as long as no cells are pyarrow's."""
        self._blocks: list[Any] = []
        """Texts of pyarrow, distinct in each block; the places of a block follow those of the block before."""
        self._count = 0
        """Number of texts of all blocks."""

    def add(self, texts: Texts) -> None:
        """Add cells."""
        if isinstance(texts, ArrowTexts):
            if self._places:
                self._add_block(self._places)
                self._places = {}
            places, distinct = texts.distinct
            self._codes.extend(places + self._count)
            self._append(distinct)
        elif self._blocks:
            own: dict[str, int] = {}
            codes = texts.encode(own)
            self._codes.extend(np.where(codes < 0, codes, codes + self._count))
            self._add_block(own)
        else:
            self._codes.extend(texts.encode(self._places))

    def encoded(self) -> tuple[np.ndarray, list[str]]:
        """Return the place of each cell, int32 [rows], or -1 for a missing value, and the distinct texts."""
        codes, texts = self._codes.array, list(self._places)
        if not self._blocks:
            return codes, texts
        import pyarrow as pa

        chunks = pa.chunked_array(self._blocks).dictionary_encode().chunks
        places = [chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False) for chunk in chunks]
        return np.concatenate([*places, [-1]]).astype(np.int32)[codes], chunks[-1].dictionary.to_pylist()

    def _add_block(self, places: dict[str, int]) -> None:
        import pyarrow as pa

        self._append(pa.array(list(places), pa.string()))

    def _append(self, distinct: Any) -> None:
        import pyarrow as pa

        self._blocks.append(distinct.cast(pa.large_string()))  # all together may be beyond 2 GiB
        self._count += len(distinct)
