"""With `strategy.reduction=fast` the answer depends on the number of processes only by the rounding of sums."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from answers import UPDATES, difference, trained
from launching import rows, summary


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Runs on one process, for all updates."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("single"))
        return [path.resolve() for path in trained(1, [fast(i) for i in range(len(UPDATES))])]


LONG = range(0, len(UPDATES), 3)
"""Three of the updates, which run over 200 steps; for the others 40 steps are enough."""


def fast(number: int) -> list[str]:
    rule, update = UPDATES[number]
    return [f"optimizer={rule}", f"update={update}", "dtype=float64", f"train.steps={200 if number in LONG else 40}"]


STRATEGIES = [
    ("ddp", 2),
    pytest.param("ddp", 3, marks=pytest.mark.long),
    ("ddp", 4),
    ("fsdp", 2),
    pytest.param("fsdp", 3, marks=pytest.mark.long),
    ("tensor", 2),
    ("pipeline", 2),
    pytest.param("pipeline", 3, marks=pytest.mark.long),
]


@pytest.mark.parametrize(("strategy", "size"), STRATEGIES)
def test_fast_agrees_with_one_process(strategy: str, size: int, single: list[Path]) -> None:
    # The documented bounds: sums in another order over 200 steps in float64; the adaptive rules divide by small roots.
    numbers = range(len(UPDATES)) if size == 2 else LONG
    runs = trained(size, [[*fast(number), f"strategy={strategy}"] for number in numbers])
    for number, run in zip(numbers, runs, strict=True):
        (rule, update), other = UPDATES[number], single[number]
        bound = 1e-12 if rule in ("sgd", "momentum") else 1e-10
        assert difference(run, other) <= bound, (rule, update)
        for name, value in summary(other)["metrics"].items():
            assert summary(run)["metrics"][name] == pytest.approx(value, rel=1e-12), (rule, update, name)
        assert [row["step"] for row in rows(run)] == [row["step"] for row in rows(other)]
        for row, expected in zip(rows(run), rows(other), strict=True):
            assert row["train/loss"] == pytest.approx(expected["train/loss"], rel=1e-10)


def test_exact_is_close_to_fast_and_not_the_same(single: list[Path]) -> None:
    (run,) = trained(1, [[*fast(0), "strategy.reduction=exact"]])
    # Chunks are added in another order: rounding of float64 over 200 steps.
    assert 0 < difference(run, single[0]) < 1e-12


def test_a_batch_may_have_fewer_rows_than_there_are_processes(single: list[Path]) -> None:
    """Batches of 3 rows on 4 processes: one of them never has a row."""
    overrides = ["dtype=float64", "train.batch_size=3", "train.steps=50"]
    (one,) = trained(1, [overrides])
    (ddp, fsdp) = trained(4, [overrides, [*overrides, "strategy=fsdp"]])
    for run in (ddp, fsdp):
        assert difference(run, one) < 1e-12  # rounding, as above


def test_early_stopping_and_the_best_checkpoint_are_the_same_on_any_number_of_processes() -> None:
    """Both are decided from numbers that all processes share."""
    overrides = [
        "dtype=float64", "train.steps=400", "optimizer.lr=0.3", "optimizer=adam", "train.early_stopping.patience=3",
        "checkpoint.every_steps=40", "train.eval_every_steps=10",
    ]  # fmt: skip
    (one,), (three,) = trained(1, [overrides]), trained(3, [overrides])
    assert summary(one)["stopped_early"]
    assert summary(one)["steps"] == summary(three)["steps"]
    assert (one / "checkpoints/best").readlink() == (three / "checkpoints/best").readlink()


def test_only_rank_0_writes_records() -> None:
    (run,) = trained(3, [["train.steps=40", "strategy=ddp"]])
    assert sorted(path.name for path in Path("runs/same").iterdir()) == [run.name]
    record = json.loads((run / "run.json").read_text())
    assert (record["strategy"], record["world_size"], record["threads"]) == ("ddp", 3, 1)
    assert len(list(run.glob("events.out.tfevents.*"))) == 1
    assert (run / "run.log").read_text().count("step 40/40") == 1
    assert len(rows(run)) == 2
