"""The heart: the answer does not depend on the number of processes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from torch import Tensor

import runner
from runner import checkpoint
from runner.record.jsonl import read_rows

# 37 training rows in batches of 16: the last one has 5, which leaves some of 8 processes with a row and some with none.
EXPERIMENT = [
    "name=same", "data=line", "data.rows=58", "data.features=3", "data.standardize=true", "data.split.valid=12", "data.split.test=9",
    "model=mlp", "model.widths=[8,6]", "train.batch_size=16", "train.eval_every_steps=20", "optimizer.lr=0.01",
    "train.clip_norm=1", "record.plots=false", "record.every_steps=20", "device=cpu",
]  # fmt: skip
UPDATES = [(rule, update) for rule in ("sgd", "momentum", "adam", "adamw") for update in ("manual", "optimizer")]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def trained(size: int, runs: Sequence[Sequence[str]]) -> list[Path]:
    """The directories of several runs, one after the other on the same processes."""

    def work(rank: int) -> list[str]:
        torch.set_num_threads(1)
        return [str(runner.run(None, whole(words)).directory) for words in runs]

    everywhere = processes.values(size, work)
    assert everywhere == [everywhere[0]] * size  # every process knows where the records are
    return [Path(path) for path in everywhere[0]]


def whole(words: Sequence[str]) -> list[str]:
    """The words of a run; those of the network are left out where another model is asked for."""
    other = any(word.startswith("model=") for word in words)
    return [word for word in EXPERIMENT if not (other and word.startswith("model"))] + list(words)


def summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


def rows(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "samples_per_second"} for row in read_rows(run / "metrics.jsonl")]


def state(run: Path) -> dict[str, Any]:
    loaded = checkpoint.load(run / "checkpoints")
    assert loaded is not None
    return loaded.state


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest difference over largest magnitude, of the tensor where that is largest."""
    return max(float((one[name] - value).abs().max() / value.abs().max()) for name, value in other.items())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The runs of `fast` on one process, for all updates."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("alone"))
        return [path.resolve() for path in trained(1, [fast(i) for i in range(len(UPDATES))])]


LONG = range(0, len(UPDATES), 3)
"""Three of the updates, over 200 steps; what another rule does is seen in its first steps."""


def fast(number: int) -> list[str]:
    rule, update = UPDATES[number]
    return [f"optimizer={rule}", f"update={update}", "dtype=float64", f"train.steps={200 if number in LONG else 40}"]


SHARING = [
    ("ddp", 2),
    ("ddp", 3),
    ("ddp", 4),
    ("fsdp", 2),
    ("fsdp", 3),
    ("tensor", 2),
    ("pipeline", 2),
    ("pipeline", 3),
]


@pytest.mark.parametrize(("strategy", "size"), SHARING)
def test_fast_agrees_with_one_process(strategy: str, size: int, alone: list[Path]) -> None:
    # The bars of the promise: sums in another order, over 200 steps of float64; the adaptive rules divide by small roots.
    numbers = range(len(UPDATES)) if size == 2 else LONG
    runs = trained(size, [[*fast(number), f"strategy={strategy}"] for number in numbers])
    for number, run in zip(numbers, runs, strict=True):
        (rule, update), other = UPDATES[number], alone[number]
        bar = 1e-12 if rule in ("sgd", "momentum") else 1e-10
        assert difference(state(run)["model"], state(other)["model"]) <= bar, (rule, update)
        for name, value in summary(other)["metrics"].items():
            assert summary(run)["metrics"][name] == pytest.approx(value, rel=1e-12), (rule, update, name)
        assert [row["step"] for row in rows(run)] == [row["step"] for row in rows(other)]
        for mine, theirs in zip(rows(run), rows(other), strict=True):
            assert mine["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-10)


def exact(rule: str, update: str, dtype: str) -> list[str]:
    words = ["strategy.reduction=exact", "model.dropout=0.2", "train.steps=24"]
    return [*words, f"optimizer={rule}", f"update={update}", f"dtype={dtype}"]


def test_exact_has_the_same_bits_on_1_2_4_and_8_processes() -> None:
    """Shuffled, with a smaller last batch, clipping and dropout; the rows of the record are equal to the bit too."""
    runs = [exact(*update, dtype) for update in UPDATES for dtype in ("float32", "float64")]
    one = trained(1, runs)
    hashes = [summary(run)["parameters_sha256"] for run in one]
    assert len(set(hashes)) >= len(UPDATES)  # four rules in two types: the hash does tell runs apart
    for size, some in ((2, slice(None)), (4, slice(None, None, 3)), (8, slice(1, None, 5))):
        split = trained(size, runs[some])
        assert [summary(run)["parameters_sha256"] for run in split] == hashes[some]
        assert [summary(run)["metrics"] for run in split] == [summary(run)["metrics"] for run in one[some]]
        assert [rows(run) for run in split] == [rows(run) for run in one[some]]


@pytest.mark.parametrize(
    "words",
    [
        ["strategy.chunks=2", "train.batch_size=null"],
        ["strategy.chunks=16", "train.accumulate=2", "train.batch_size=37"],
        ["strategy.chunks=4", "optimizer=lbfgs", "train.clip_norm=null", "train.batch_size=null", "train.steps=5"],
        ["strategy.chunks=2", "amp=bfloat16", "train.check_gradients=true"],
        ["strategy.chunks=2", "model=formula", "model.expression=a*x1+b*tanh(c*x2)+d", "data.standardize=false", "optimizer.lr=1e-5"],
    ],
    ids=["full batch", "accumulate", "lbfgs", "amp", "formula"],
)  # fmt: skip
def test_exact_with_whatever_else_a_step_does(words: list[str]) -> None:
    runs = [["strategy.reduction=exact", "train.steps=20", *words]]
    (one,), (two,) = trained(1, runs), trained(2, runs)
    assert summary(one)["parameters_sha256"] == summary(two)["parameters_sha256"]
    assert rows(one) == rows(two)


def test_exact_is_close_to_fast_and_not_the_same(alone: list[Path]) -> None:
    words = ["strategy.reduction=exact"]
    (run,) = trained(1, [[*fast(0), *words]])
    # Chunks are sums in another order: rounding of float64 over 200 steps.
    assert 0 < difference(state(run)["model"], state(alone[0])["model"]) < 1e-12


def test_more_processes_than_rows_of_a_batch_is_no_trouble(alone: list[Path]) -> None:
    """Batches of 3 rows on 4 processes: one of them has never anything to compute."""
    words = ["dtype=float64", "train.batch_size=3", "train.steps=50"]
    (one,) = trained(1, [words])
    (ddp, fsdp) = trained(4, [words, [*words, "strategy=fsdp"]])
    for run in (ddp, fsdp):
        assert difference(state(run)["model"], state(one)["model"]) < 1e-12  # rounding, as above


def test_who_sees_a_thousand_steps_decides_the_same() -> None:
    """Early stopping and the best checkpoint follow from numbers that all processes share."""
    words = [
        "dtype=float64", "train.steps=400", "optimizer.lr=0.3", "optimizer=adam", "train.early_stopping.patience=3",
        "checkpoint.every_steps=40", "train.eval_every_steps=10",
    ]  # fmt: skip
    (one,), (three,) = trained(1, [words]), trained(3, [words])
    assert summary(one)["stopped_early"]
    assert summary(one)["steps"] == summary(three)["steps"]
    assert (one / "checkpoints/best").readlink() == (three / "checkpoints/best").readlink()


def test_records_are_kept_once() -> None:
    (run,) = trained(3, [["train.steps=40", "strategy=ddp"]])
    assert sorted(path.name for path in Path("runs/same").iterdir()) == [run.name]
    record = json.loads((run / "run.json").read_text())
    assert (record["strategy"], record["world_size"], record["threads"]) == ("ddp", 3, 1)
    assert len(list(run.glob("events.out.tfevents.*"))) == 1
    assert (run / "run.log").read_text().count("step 40/40") == 1
    assert len(rows(run)) == 2
