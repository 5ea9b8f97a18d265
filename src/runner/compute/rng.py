"""Random numbers by address: a stream is a function of (seed, name, index), never of what was drawn before it.

Streams live on the CPU and are drawn in float64, then cast and moved, so that every device starts from equal numbers.
"""

from __future__ import annotations

import hashlib

import torch


def address(seed: int, name: str, index: int = 0) -> int:
    """A 63-bit number for one stream. Hashed and not added: seed 1 of one stream must not meet seed 0 of the next."""
    digest = hashlib.sha256(f"{seed}/{name}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def stream(seed: int, name: str, index: int = 0) -> torch.Generator:
    """A CPU generator of its own for `name` ("init", "data", "noise", "split", "order", "dropout") and `index`."""
    return torch.Generator().manual_seed(address(seed, name, index))
