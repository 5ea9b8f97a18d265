"""Addressed batches: each row once per epoch, independent of earlier calls."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runner.data.batches import EpochBatches

CPU = torch.device("cpu")

rows_and_size = st.tuples(st.integers(1, 40), st.one_of(st.none(), st.integers(1, 50)))


def _numbers(batches: EpochBatches, step: int, rows: int) -> list[int]:
    chosen = batches.at(step)
    numbers = torch.arange(rows)[chosen]
    return [int(number) for number in numbers]


@given(shape=rows_and_size, seed=st.integers(0, 2**32 - 1), epoch=st.integers(1, 1000))
def test_each_row_occurs_once_per_epoch(shape: tuple[int, int | None], seed: int, epoch: int) -> None:
    rows, size = shape
    batches = EpochBatches(rows, size, seed, CPU)
    first = (epoch - 1) * batches.per_epoch + 1
    steps = range(first, first + batches.per_epoch)
    taken = [_numbers(batches, step, rows) for step in steps]
    assert sorted(number for batch in taken for number in batch) == list(range(rows))
    assert [len(batch) for batch in taken] == [batches.size(step) for step in steps]
    assert {batches.epoch(step) for step in steps} == {epoch}
    largest = min(size or rows, rows)
    assert [len(batch) for batch in taken[:-1]] == [largest] * (len(taken) - 1)
    assert 1 <= len(taken[-1]) <= largest


@given(shape=rows_and_size, seed=st.integers(0, 2**32 - 1), history=st.lists(st.integers(1, 300), max_size=6))
def test_a_batch_depends_only_on_seed_and_step(shape: tuple[int, int | None], seed: int, history: list[int]) -> None:
    rows, size = shape
    used, fresh = EpochBatches(rows, size, seed, CPU), EpochBatches(rows, size, seed, CPU)
    for step in history:
        used.at(step)
    torch.rand(1)
    assert _numbers(used, 77, rows) == _numbers(fresh, 77, rows)


@given(shape=rows_and_size, first=st.integers(1, 200), steps=st.integers(0, 100))
def test_rows_between_is_the_sum_of_sizes(shape: tuple[int, int | None], first: int, steps: int) -> None:
    batches = EpochBatches(*shape, 0, CPU)
    last = first + steps - 1
    assert batches.rows_between(first, last) == sum(batches.size(step) for step in range(first, last + 1))


@pytest.mark.parametrize("size", [None, 10, 11])
def test_a_full_batch_is_all_rows_in_their_original_order(size: int | None) -> None:
    batches = EpochBatches(10, size, 0, CPU)
    assert batches.at(1) == batches.at(9) == slice(None)
    assert batches.per_epoch == 1
    assert batches.epoch(9) == 9


def test_epochs_and_seeds_have_different_orders() -> None:
    batches, other = EpochBatches(30, 15, 0, CPU), EpochBatches(30, 15, 1, CPU)
    # Each equal pair would happen by chance once in 30!/15! draws.
    assert _numbers(batches, 1, 30) != _numbers(batches, 3, 30)
    assert _numbers(batches, 1, 30) != _numbers(other, 1, 30)
    assert _numbers(batches, 1, 30) != sorted(_numbers(batches, 1, 30))


def test_the_global_generator_is_not_used() -> None:
    before = torch.get_rng_state()
    EpochBatches(30, 7, 0, CPU).at(8)
    assert torch.equal(torch.get_rng_state(), before)
