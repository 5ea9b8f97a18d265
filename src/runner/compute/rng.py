"""Random numbers by address: a stream is a function of (seed, name, index), never of what was drawn before it.

Streams live on the CPU and are drawn in float64, then cast and moved, so that every device starts from equal numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def address(seed: int, name: str, index: int = 0) -> int:
    """A 63-bit number for one stream. Hashed and not added: seed 1 of one stream must not meet seed 0 of the next."""
    digest = hashlib.sha256(f"{seed}/{name}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def stream(seed: int, name: str, index: int = 0) -> torch.Generator:
    """A CPU generator of its own for `name` ("init", "data", "noise", "split", "order", "dropout") and `index`."""
    return torch.Generator().manual_seed(address(seed, name, index))


def drawing(draws: bool, seed: int, device: torch.device) -> Callable[[int, int], None]:
    """What makes the random numbers of the forward pass a function of (seed, step, portion).

    It does nothing for a model that draws none.
    """
    if not draws:
        return lambda step, stream: None
    generator = generator_of(device)

    def draw(step: int, stream: int) -> None:
        generator.manual_seed(address(seed, f"dropout/{stream}", step))

    return draw


@contextmanager
def preserve_rng_state(draws: bool, device: torch.device) -> Iterator[None]:
    """Give torch's own generator back as it was: the random numbers of a caller, in a notebook, are the caller's."""
    generator = generator_of(device) if draws else None
    state = generator.get_state() if generator is not None else None
    try:
        yield
    finally:
        if generator is not None and state is not None:
            generator.set_state(state)


def generator_of(device: torch.device) -> torch.Generator:
    """Torch's own generator of a device, the one that dropout draws from."""
    if device.type == "cpu":
        return torch.default_generator
    module: Any = getattr(torch, device.type)
    if device.type == "mps":
        generator: torch.Generator = module._get_default_mps_generator()
    else:
        module.init()
        generator = module.default_generators[device.index or 0]
    return generator
