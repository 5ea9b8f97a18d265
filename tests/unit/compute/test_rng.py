"""Streams are functions of (seed, name, index), and no two of them have the same seed."""

from __future__ import annotations

import torch

from runner.compute.rng import stream, stream_seed

NAMES = ("init", "data", "noise", "split", "order", "dropout")


def test_stream_seeds_never_change() -> None:
    # SHA-256 of "0/init/0" and of "4294967295/order/1000", computed separately: a change would change the numbers of every run.
    assert stream_seed(0, "init") == stream_seed(0, "init", 0) == 1_391_976_149_099_393_129
    assert stream_seed(2**32 - 1, "order", 1000) == 4_170_042_730_167_042_948


def test_stream_seeds_differ_between_seeds_names_and_indices() -> None:
    seeds = [stream_seed(seed, name, index) for seed in range(20) for name in NAMES for index in range(20)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= number < 2**63 for number in seeds)


def test_a_stream_is_the_same_whatever_was_drawn_before() -> None:
    first = torch.rand(5, generator=stream(1, "init", 2))
    torch.rand(7, generator=stream(1, "init", 1))
    torch.rand(3)
    assert torch.equal(torch.rand(5, generator=stream(1, "init", 2)), first)
    assert not torch.equal(torch.rand(5, generator=stream(1, "init", 3)), first)


def test_drawing_from_a_stream_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    torch.rand(3, generator=stream(0, "data"))
    assert torch.equal(torch.get_rng_state(), before)
    assert stream(0, "data").device == torch.device("cpu")
