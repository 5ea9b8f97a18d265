"""Every row is in exactly one part of the requested size, and an empty part is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from runner.compute.rng import stream
from runner.config.compose import compose
from runner.data.split import PARTS, split
from runner.errors import DataError

NONE = compose(["data=line"]).config.data.split
ORDERS = st.sampled_from(["sequential", "random"])


def _split(
    target: Any, seed: int = 0, given: list[int] | None = None, groups: Any = None, **keys: Any
) -> dict[str, list[int]]:
    """Return the rows of each part. `target` are the values, or the number of rows."""
    values = np.zeros(target) if isinstance(target, int) else np.asarray(target, float)
    parts = split(
        replace(NONE, **keys),
        values,
        stream(seed, "split"),
        None if given is None else np.array(given, np.int8),
        None if groups is None else np.array(groups, np.int64),
    )
    assert tuple(parts) == PARTS
    assert all(part.dtype == torch.int64 for part in parts.values())
    assert sorted(row for rows in parts.values() for row in rows.tolist()) == list(range(len(values)))
    return {name: part.tolist() for name, part in parts.items()}


def _problems(target: Any, **keys: Any) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        _split(target, **keys)
    return caught.value.problems


shares = st.one_of(st.integers(0, 60), st.floats(0, 1, exclude_max=True))


@given(rows=st.integers(1, 120), test=shares, valid=shares, calibrate=shares, order=ORDERS)
def test_each_row_is_in_one_part_of_its_size_or_the_split_is_refused(
    rows: int, test: float, valid: float, calibrate: float, order: str
) -> None:
    shares: dict[str, Any] = {"test": test, "valid": valid, "calibrate": calibrate}
    requested = {part: share if isinstance(share, int) else round(share * rows) for part, share in shares.items()}
    if sum(requested.values()) >= rows or any(share > 0 and requested[part] == 0 for part, share in shares.items()):
        assert _problems(rows, **shares, order=order)
        return
    parts = _split(rows, **shares, order=order)
    assert {part: len(parts[part]) for part in requested} == requested


def test_sequential_takes_train_valid_calibrate_and_test_in_the_order_of_the_rows() -> None:
    assert _split(10, test=0.2, valid=3, calibrate=1, order="sequential") == {
        "train": [0, 1, 2, 3], "valid": [4, 5, 6], "calibrate": [7], "test": [8, 9],
    }  # fmt: skip


def test_an_integer_is_rows_and_a_fraction_is_rounded_to_the_nearest_row() -> None:
    parts = _split(442, test=0.2, valid=1)
    assert (len(parts["test"]), len(parts["valid"]), len(parts["train"])) == (88, 1, 353)  # 0.2·442 = 88.4
    assert len(_split(448, test=0.2)["test"]) == 90  # 89.6


@pytest.mark.parametrize("none", [0, 0.0])
def test_without_held_out_rows_all_rows_are_for_training(none: float) -> None:
    parts = _split(5, test=none, valid=none)
    assert parts == {"train": [0, 1, 2, 3, 4], "valid": [], "calibrate": [], "test": []}


def test_a_random_split_depends_only_on_the_generator() -> None:
    before = torch.get_rng_state()
    first = _split(50, test=10, valid=10, seed=1)
    torch.rand(3)
    assert _split(50, test=10, valid=10, seed=1) == first
    assert _split(50, test=10, valid=10, seed=2) != first
    assert first["train"] == sorted(first["train"]) != list(range(30))  # drawn, then sorted
    torch.set_rng_state(before)
    _split(50, test=10, valid=10)
    assert torch.equal(torch.get_rng_state(), before)


def test_test_rows_are_unchanged_when_only_the_other_parts_change() -> None:
    rows = _split(50, test=10, valid=5)["test"]
    assert _split(50, test=10, valid=20, calibrate=5)["test"] == rows
    assert _split(50, test=10, folds=4, fold=2)["test"] == rows


def test_a_fraction_of_no_row_is_refused() -> None:
    assert _problems(4, test=0.1, valid=0.05) == (
        "`data.split.test` must select at least one row, got 0.1 of 4 rows; use a larger value, or 0 for no test rows",
        "`data.split.valid` must select at least one row, got 0.05 of 4 rows; use a larger value, or 0 for no valid rows",
    )


@pytest.mark.parametrize(("test", "valid"), [(6, 4), (0.6, 0.4)])
def test_a_split_without_training_rows_is_refused(test: float, valid: float) -> None:
    assert _problems(10, test=test, valid=valid) == (
        "`data.split.test` and `data.split.valid` must leave rows for training, got 6 and 4 of 10; use smaller values",
    )


def test_both_kinds_of_problem_are_reported_at_once() -> None:
    assert _problems(3, calibrate=3, valid=0.1) == (
        "`data.split.valid` must select at least one row, got 0.1 of 3 rows; use a larger value, or 0 for no valid rows",
        "`data.split.calibrate` must leave rows for training, got 3 of 3; use smaller values",
    )


# --------------------------------------------------------------------------------------------------------------- folds


@given(rows=st.integers(2, 60), folds=st.integers(2, 9), test=st.integers(0, 5), order=ORDERS)
def test_each_row_that_is_not_held_out_is_in_one_fold(rows: int, folds: int, test: int, order: str) -> None:
    assume(rows - test >= folds)
    members = [_split(rows, folds=folds, fold=fold, test=test, order=order) for fold in range(1, folds + 1)]
    assert len({tuple(member["test"]) for member in members}) == 1
    held = set(members[0]["test"])
    assert sorted(row for member in members for row in member["valid"]) == [r for r in range(rows) if r not in held]
    # As scikit-learn's KFold: the first folds have one row more.
    each, more = divmod(rows - test, folds)
    assert [len(member["valid"]) for member in members] == [each + (fold < more) for fold in range(folds)]


def test_folds_of_a_sequential_split_are_stretches_of_rows() -> None:
    folds = [_split(7, folds=3, fold=fold, test=1, order="sequential")["valid"] for fold in (1, 2, 3)]
    assert folds == [[0, 1], [2, 3], [4, 5]]


@given(sizes=st.lists(st.integers(1, 9), min_size=3, max_size=30), folds=st.integers(2, 3), seed=st.integers(0, 3))
def test_folds_of_groups_keep_groups_whole_and_are_about_as_large_as_each_other(
    sizes: list[int], folds: int, seed: int
) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    members = [
        _split(len(groups), seed=seed, groups=groups, folds=folds, fold=fold)["valid"] for fold in range(1, folds + 1)
    ]
    assert sorted(row for member in members for row in member) == list(range(len(groups)))
    found = [set(groups[member].tolist()) for member in members]
    assert sum(map(len, found)) == len(sizes)
    # The last group that joins the largest fold was put there because it had the fewest rows.
    largest = max(members, key=len)
    smallest_group = min(sizes[group] for group in groups[largest])
    assert len(largest) - smallest_group <= min(map(len, members))


def test_folds_need_a_choice_and_enough_rows_and_groups() -> None:
    assert _problems(5, folds=5) == (
        "`data.split.fold` must be one of the folds, 1 to 5, for a single run, got null; add -m for a sweep over all of them",
    )
    assert _problems(5, test=1, folds=5, fold=1) == (
        "`data.split.folds` must be at most the number of rows to divide, 4, got 5; use fewer folds",
    )
    assert _problems(6, groups=[0, 0, 1, 1, 2, 2], folds=4, fold=1) == (
        "`data.split.folds` must be at most the number of groups to divide, 3, got 4; use fewer folds",
    )


# -------------------------------------------------------------------------------------------------------------- groups


@given(
    sizes=st.lists(st.integers(1, 12), min_size=12, max_size=40),
    order=ORDERS,
    seed=st.integers(0, 5),
    shuffled=st.booleans(),
)
def test_groups_stay_whole_and_parts_are_within_a_group_of_their_size(
    sizes: list[int], order: str, seed: int, shuffled: bool
) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    if shuffled:
        groups = np.random.default_rng(0).permutation(groups)
    rows, largest = len(groups), max(sizes)
    shares: dict[str, Any] = {"test": 0.2, "valid": 0.15, "calibrate": 0.1}
    assume(rows * 0.55 > 4 * largest)  # so that no part runs out of groups
    parts = _split(rows, seed=seed, groups=groups, order=order, **shares)
    assert sum(len(set(groups[part].tolist())) for part in parts.values()) == len(sizes)
    for part, share in shares.items():
        assert 0 < abs(len(parts[part]) - round(share * rows)) + 1 <= largest + 1
        assert parts[part]


def test_groups_are_taken_in_the_order_of_their_first_rows_when_the_split_is_sequential() -> None:
    groups = [7, 3, 7, 3, 5, 5, 9, 9]
    parts = _split(8, groups=groups, order="sequential", test=2, valid=2)
    assert parts == {"train": [0, 1, 2, 3], "valid": [4, 5], "calibrate": [], "test": [6, 7]}


def test_names_of_groups_do_not_matter_but_their_order() -> None:
    groups = [4, 4, 8, 8, 8, 9, 11, 11]
    assert _split(8, groups=groups, test=2, valid=1) == _split(8, groups=[0, 0, 1, 1, 1, 2, 3, 3], test=2, valid=1)


@pytest.mark.parametrize("seed", range(5))
def test_every_part_has_a_group_as_long_as_there_are_enough(seed: int) -> None:
    parts = _split(100, seed=seed, groups=[0] * 98 + [1, 2], test=0.2, valid=0.1)
    assert all(parts[part] for part in ("train", "valid", "test"))


def test_fewer_groups_than_parts_are_refused() -> None:
    assert _problems(6, groups=[0, 0, 0, 1, 1, 1], test=2, valid=1) == (
        "`data.split.group` must have a group for each of valid, test, train, got 2 in all; name another column, or leave out a part",
    )


# -------------------------------------------------------------------------------------------------------------- strata


@given(
    target=st.lists(st.floats(-1e6, 1e6), min_size=20, max_size=200, unique=True),
    bins=st.integers(2, 10),
    seed=st.integers(0, 3),
)
def test_every_part_has_its_share_of_every_bin_of_the_target(target: list[float], bins: int, seed: int) -> None:
    parts = _split(target, seed=seed, stratify=bins, test=0.25, valid=0.25)
    rank = np.argsort(np.argsort(target))
    bin_of_row = np.searchsorted([len(target) * i // bins for i in range(1, bins)], rank, side="right")
    sizes = np.bincount(bin_of_row, minlength=bins)
    for rows in (parts["train"], parts["valid"], parts["test"]):
        counts = np.bincount(bin_of_row[rows], minlength=bins)
        assert np.abs(counts - len(rows) / len(target) * sizes).max() <= 2


@given(target=st.lists(st.floats(-10, 10), min_size=40, max_size=90, unique=True), folds=st.integers(2, 5))
def test_every_fold_has_its_share_of_every_bin_of_the_target(target: list[float], folds: int) -> None:
    upper = np.asarray(target) >= np.sort(target)[len(target) // 2]
    for fold in range(1, folds + 1):
        rows = _split(target, stratify=2, folds=folds, fold=fold)["valid"]
        assert abs(upper[rows].sum() - len(rows) / 2) <= 1.5


def test_equal_targets_are_one_bin_and_true_is_ten_bins() -> None:
    target = [0.0] * 50 + [1.0] * 50
    parts = _split(target, stratify=4, test=0.2)
    assert sum(row >= 50 for row in parts["test"]) == 10
    values = np.random.default_rng(0).normal(size=100)
    assert _split(values, stratify=True, test=0.2) == _split(values, stratify=10, test=0.2)
    deciles = np.argsort(np.argsort(values)) // 10
    assert np.bincount(deciles[_split(values, stratify=True, test=0.2)["test"]]).tolist() == [2] * 10


def test_rows_of_a_bin_are_drawn_at_random() -> None:
    target = list(range(20))
    drawn = {tuple(_split(target, seed=seed, stratify=2, test=2)["test"]) for seed in range(40)}
    assert len(drawn) > 20
    assert all(sum(row >= 10 for row in rows) == 1 for rows in drawn)


def test_more_bins_than_rows_are_refused() -> None:
    assert _problems([1.0, 2.0, 3.0], stratify=4, test=1) == (
        "`data.split.stratify` must be at most the number of rows, 3, got 4; use fewer bins",
    )


# --------------------------------------------------------------------------------------------- parts that the table gives


def test_rows_with_a_given_part_keep_it_and_the_others_are_split() -> None:
    parts = _split(10, given=[0, 3, 0, 3, 0, 0, 0, 0, 0, 0], valid=0.25, order="sequential")
    assert parts == {"train": [0, 2, 4, 5, 6, 7], "valid": [8, 9], "calibrate": [], "test": [1, 3]}
    folds = [_split(10, given=[0, 3] * 5, folds=5, fold=fold, order="sequential")["valid"] for fold in range(1, 6)]
    assert folds == [[0], [2], [4], [6], [8]]


def test_groups_and_bins_are_those_of_the_rows_that_are_split() -> None:
    parts = _split(6, given=[0, 0, 3, 3, 0, 0], groups=[1, 2, 1, 2, 1, 2], valid=2, order="sequential")
    assert parts == {"train": [0, 4], "valid": [1, 5], "calibrate": [], "test": [2, 3]}


def test_a_share_of_a_part_that_the_table_gives_is_refused() -> None:
    assert _problems(6, given=[0, 1, 3, 0, 0, 0], valid=1, test=0.5) == (
        "`data.split.test` must be 0, because `data.split.column` says which rows are test rows, got 0.5; use data.split.test=0",
        "`data.split.valid` must be 0, because `data.split.column` says which rows are valid rows, got 1; use data.split.valid=0",
    )
    assert _problems(6, given=[0, 1, 0, 0, 0, 0], folds=2, fold=1) == (
        "`data.split.folds` must be null, because `data.split.column` says which rows are valid rows, got 2; use data.split.folds=null",
    )
