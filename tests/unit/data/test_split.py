"""Every row is in exactly one part of the requested size, and an empty part is refused."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runner.compute.rng import stream
from runner.config import schema as c
from runner.data.split import split
from runner.errors import DataError

Order = Literal["sequential", "random"]


def _split(rows: int, test: float, valid: float, order: Order = "random", seed: int = 0) -> dict[str, list[int]]:
    parts = split(c.Split(test=test, valid=valid, order=order), rows, stream(seed, "split"))
    assert all(part.dtype == torch.int64 for part in parts.values())
    return {name: part.tolist() for name, part in parts.items()}


def _problems(rows: int, test: float, valid: float) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        _split(rows, test, valid)
    return caught.value.problems


shares = st.one_of(st.integers(0, 60), st.floats(0, 1, exclude_max=True))


@given(rows=st.integers(1, 120), test=shares, valid=shares, order=st.sampled_from(["sequential", "random"]))
def test_each_row_is_in_one_part_or_the_split_is_refused(rows: int, test: float, valid: float, order: Order) -> None:
    shares = {"test": test, "valid": valid}
    requested = {part: share if isinstance(share, int) else round(share * rows) for part, share in shares.items()}
    if sum(requested.values()) >= rows or any(share > 0 and requested[part] == 0 for part, share in shares.items()):
        assert _problems(rows, test, valid)
        return
    parts = _split(rows, test, valid, order)
    assert sorted(parts["train"] + parts["valid"] + parts["test"]) == list(range(rows))
    assert {part: len(parts[part]) for part in requested} == requested


def test_sequential_takes_train_valid_and_test_in_the_order_of_the_rows() -> None:
    assert _split(10, 0.2, 3, "sequential") == {"train": [0, 1, 2, 3, 4], "valid": [5, 6, 7], "test": [8, 9]}


def test_an_integer_is_rows_and_a_fraction_is_rounded_to_the_nearest_row() -> None:
    parts = _split(442, 0.2, 1)
    assert (len(parts["test"]), len(parts["valid"]), len(parts["train"])) == (88, 1, 353)  # 0.2·442 = 88.4
    assert len(_split(448, 0.2, 0)["test"]) == 90  # 89.6


@pytest.mark.parametrize("none", [0, 0.0])
def test_without_held_out_rows_all_rows_are_for_training(none: float) -> None:
    parts = _split(5, none, none)
    assert sorted(parts["train"]) == [0, 1, 2, 3, 4]
    assert parts["valid"] == parts["test"] == []


def test_a_random_split_depends_only_on_the_generator() -> None:
    before = torch.get_rng_state()
    first = _split(50, 10, 10, seed=1)
    torch.rand(3)
    assert _split(50, 10, 10, seed=1) == first
    assert _split(50, 10, 10, seed=2) != first
    assert first["train"] == sorted(first["train"]) != list(range(30))  # drawn, then sorted
    torch.set_rng_state(before)
    _split(50, 10, 10)
    assert torch.equal(torch.get_rng_state(), before)


def test_test_rows_are_unchanged_when_only_valid_changes() -> None:
    assert _split(50, 10, 5)["test"] == _split(50, 10, 20)["test"]


def test_a_fraction_of_no_row_is_refused() -> None:
    assert _problems(4, 0.1, 0.05) == (
        "`data.split.test` must select at least one row, got 0.1 of 4 rows; use a larger value, or 0 for no test rows",
        "`data.split.valid` must select at least one row, got 0.05 of 4 rows; use a larger value, or 0 for no valid rows",
    )


@pytest.mark.parametrize(("test", "valid"), [(6, 4), (0.6, 0.4), (20, 0)])
def test_a_split_without_training_rows_is_refused(test: float, valid: float) -> None:
    counts = [share if isinstance(share, int) else round(share * 10) for share in (test, valid)]
    assert _problems(10, test, valid) == (
        f"`data.split.test` and `data.split.valid` must leave rows for training, got {counts[0]} and {counts[1]} of 10; "
        "use smaller values",
    )


def test_both_kinds_of_problem_are_reported_at_once() -> None:
    assert [problem.split(" must ")[0] for problem in _problems(3, 3, 0.1)] == [
        "`data.split.valid`",
        "`data.split.test` and `data.split.valid`",
    ]
