"""CRC-32C, the checksum in TensorBoard's records, many bytes at a time.

TensorBoard's own goes through the bytes one by one in Python, which in a sweep takes longer than all the rest of its files.
What a byte does to the checksum depends on the bytes before it only by way of exclusive or, so each can be looked up by its
distance to the end of its block, and all of them combined at once.
"""

from __future__ import annotations

from functools import cache
from typing import Any

POLYNOMIAL = 0x82F63B78
"""Castagnoli's, its bits reversed (RFC 3720, 12.1)."""

BLOCK = 256
"""Bytes that are looked up at once."""


def masked_crc32c(data: bytes) -> int:
    """The checksum as it stands in a record: turned by 15 bits and shifted, so that records may hold records."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """As in RFC 3720."""
    import numpy as np

    (table, places), state = _table(), 0xFFFFFFFF
    for start in range(0, len(data), BLOCK):
        block = data[start : start + BLOCK]
        first = min(4, len(block))
        begun = (int.from_bytes(block[:first], "little") ^ state & 256**first - 1).to_bytes(first, "little")
        looked_up = table[places[-len(block) :] + np.frombuffer(begun + block[first:], np.uint8)]
        state = int(np.bitwise_xor.reduce(looked_up)) ^ state >> 8 * first
    return state ^ 0xFFFFFFFF


@cache
def _table() -> tuple[Any, Any]:
    """What is left of each byte after no zeros, after one, and so on [BLOCK · 256]; where the bytes of a block look there."""
    import numpy as np

    row = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        row = np.where(row & 1, row >> 1 ^ POLYNOMIAL, row >> 1).astype(np.uint32)
    rows = [row]
    while len(rows) < BLOCK:
        rows.append(row[rows[-1] & 0xFF] ^ rows[-1] >> 8)
    return np.concatenate(rows), np.arange(BLOCK - 1, -1, -1) * 256
