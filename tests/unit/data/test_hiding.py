"""Hidden categories of training rows: their number, and what they depend on."""

from __future__ import annotations

import pytest
import torch

from runner.compute.batch import Batch
from runner.data.dataset import ResidentRows
from runner.data.hiding import HidingRows
from runner.data.stacked import StackedRows

ROWS = 20_000


def rows(count: int = ROWS, kind: type[ResidentRows | StackedRows] = ResidentRows) -> ResidentRows | StackedRows:
    codes = 1 + torch.arange(2 * count).reshape(count, 2) % 7
    return kind(Batch(torch.zeros(count, 1), torch.zeros(count, 1), categories=codes), torch.arange(count))


def hidden(found: HidingRows, epoch: int) -> torch.Tensor:
    found.begin(epoch)
    codes = found.all.categories
    assert codes is not None
    return codes == 0


def test_one_in_a_hundred_is_hidden_and_the_others_are_as_they_were() -> None:
    """40,000 codes with probability 0.01: 400, with a standard deviation of 20."""
    given = rows()
    found = HidingRows(given, [0])
    mask = hidden(found, 1)
    assert abs(int(mask.sum()) - 400) < 100
    before, after = given.all.categories, found.all.categories
    assert before is not None
    assert after is not None
    assert bool((before > 0).all())
    assert torch.equal(after, before.masked_fill(mask, 0))


def test_other_seeds_epochs_and_columns_hide_others() -> None:
    found = HidingRows(rows(), [0])
    masks = [*hidden(found, 1).T, *hidden(found, 2).T, *hidden(HidingRows(rows(), [1]), 1).T]
    masks = [mask.clone() for mask in masks]
    common = [int((one & other).sum()) for place, one in enumerate(masks) for other in masks[:place]]
    assert max(common) < 20  # of 200, where 2 are expected
    # An epoch is the same whenever it comes.
    assert torch.equal(hidden(found, 1), torch.stack(masks[:2], 1))


@pytest.mark.parametrize("seeds", [[3], [3, 3], [3, 4, 3]])
def test_rows_are_taken_from_the_present_epoch(seeds: list[int]) -> None:
    """Row numbers are shared by the lanes or each lane's own; a slice that was taken before is of the present epoch too."""
    found = HidingRows(rows(500, StackedRows), seeds)
    some = found.take(slice(100, 300)).categories
    alone = [hidden(HidingRows(rows(500), [seed]), 2) for seed in seeds]
    found.begin(2)
    assert some is not None
    chosen = torch.tensor([7, 400, 250])
    taken = found.take(chosen).categories
    assert taken is not None
    own = torch.stack([chosen + lane for lane in range(len(seeds))])
    for lane, mask in enumerate(alone):
        several = len({*seeds}) > 1
        assert torch.equal((some[lane] if several else some) == 0, mask[100:300])
        assert torch.equal((taken[lane] if several else taken) == 0, mask[chosen])
        if several:
            mine = found.take(own).categories
            assert mine is not None
            assert torch.equal(mine[lane] == 0, mask[own[lane]])
