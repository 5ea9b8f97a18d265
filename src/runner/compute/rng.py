"""Random numbers by address: a stream is a function of (seed, name, index), never of what was drawn before it.

Streams are on the CPU and are drawn in float64, then cast and moved, so that every device starts from equal numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def stream_seed(seed: int, name: str, index: int = 0) -> int:
    """Return the 63-bit seed of one stream."""
    # A hash, not a sum: seed 1 of one stream must differ from seed 0 of the next.
    digest = hashlib.sha256(f"{seed}/{name}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def stream(seed: int, name: str, index: int = 0) -> torch.Generator:
    """Return a new CPU generator for `name` ("init", "data", "noise", "split", "order", "dropout") and `index`."""
    return torch.Generator().manual_seed(stream_seed(seed, name, index))


def dropout_seeder(draws: bool, seed: int, device: torch.device) -> Callable[[int, int], None]:
    """Return a function (step, stream) that seeds torch's generator of the device before a forward pass.

    The random numbers of the pass are then a function of (seed, step, stream). `stream` is the number of the portion.
    For a model that draws no random numbers (`draws` False) the function does nothing.
    """
    if not draws:
        return lambda step, stream: None
    generator = default_generator(device)

    def seed_forward_pass(step: int, stream: int) -> None:
        generator.manual_seed(stream_seed(seed, f"dropout/{stream}", step))

    return seed_forward_pass


@contextmanager
def preserve_rng_state(draws: bool, device: torch.device) -> Iterator[None]:
    """Restore the state of torch's generator of the device at the end, when the model draws from it."""
    # A caller, such as a notebook, must not see its own random numbers change.
    generator = default_generator(device) if draws else None
    state = generator.get_state() if generator is not None else None
    try:
        yield
    finally:
        if generator is not None and state is not None:
            generator.set_state(state)


def default_generator(device: torch.device) -> torch.Generator:
    """Return torch's default generator of a device, from which dropout draws."""
    if device.type == "cpu":
        return torch.default_generator
    module: Any = getattr(torch, device.type)
    if device.type == "mps":
        generator: torch.Generator = module._get_default_mps_generator()
    else:
        module.init()
        generator = module.default_generators[device.index or 0]
    return generator
