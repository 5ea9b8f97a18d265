"""The checksum of TensorBoard's records."""

from __future__ import annotations

import random

import pytest
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow

from runner.runs.sinks.crc32c import BLOCK, crc32c, masked_crc32c


@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
    ],
)
def test_known_checksums(data: bytes, checksum: int) -> None:
    """Values of RFC 3720, B.4, and the usual check value of catalogues of checksums."""
    assert crc32c(data) == checksum


@pytest.mark.parametrize(
    "length", [*range(9), *(blocks * BLOCK + more for blocks in (1, 2, 7) for more in range(-5, 6))]
)
def test_the_masked_checksum_equals_that_of_tensorboard(length: int) -> None:
    data = random.Random(length).randbytes(length)
    assert masked_crc32c(data) == pywrap_tensorflow.masked_crc32c(data)
