"""With `strategy.reduction=exact` a run ends with the same bits on any number of processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from answers import UPDATES, trained
from launching import rows, summary


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def exact(rule: str, update: str, dtype: str) -> list[str]:
    common = ["strategy.reduction=exact", "model.dropout=0.2", "train.steps=24"]
    return [*common, f"optimizer={rule}", f"update={update}", f"dtype={dtype}"]


@pytest.mark.parametrize(
    "sizes",
    [{2: slice(None), 4: slice(None, None, 3)}, pytest.param({8: slice(1, None, 5)}, marks=pytest.mark.long)],
    ids=["2 and 4", "8"],
)
def test_exact_has_the_same_bits_on_1_2_4_and_8_processes(sizes: dict[int, slice]) -> None:
    """With shuffling, a smaller last batch, clipping and dropout; the rows of metrics.jsonl are equal too."""
    runs = [exact(*update, dtype) for update in UPDATES for dtype in ("float32", "float64")]
    one = trained(1, runs)
    hashes = [summary(run)["parameters_sha256"] for run in one]
    assert len(set(hashes)) >= len(UPDATES)  # four rules in two types: different runs have different hashes
    for size, some in sizes.items():
        split = trained(size, runs[some])
        assert [summary(run)["parameters_sha256"] for run in split] == hashes[some]
        assert [summary(run)["metrics"] for run in split] == [summary(run)["metrics"] for run in one[some]]
        assert [rows(run) for run in split] == [rows(run) for run in one[some]]


@pytest.mark.parametrize(
    "overrides",
    [
        ["strategy.chunks=2", "train.batch_size=null"],
        ["strategy.chunks=16", "train.accumulate=2", "train.batch_size=37"],
        ["strategy.chunks=4", "optimizer=lbfgs", "train.clip_norm=null", "train.batch_size=null", "train.steps=5"],
        ["strategy.chunks=2", "amp=bfloat16", "train.check_gradients=true"],
        ["strategy.chunks=2", "model=formula", "model.expression=a*x1+b*tanh(c*x2)+d", "data.standardize=false", "optimizer.lr=1e-5"],
    ],
    ids=["full batch", "accumulate", "lbfgs", "amp", "formula"],
)  # fmt: skip
def test_exact_with_other_parts_of_a_step(overrides: list[str]) -> None:
    runs = [["strategy.reduction=exact", "train.steps=20", *overrides]]
    (one,), (two,) = trained(1, runs), trained(2, runs)
    assert summary(one)["parameters_sha256"] == summary(two)["parameters_sha256"]
    assert rows(one) == rows(two)


def test_exact_with_weighted_rows(tmp_path: Path) -> None:
    """Some rows have no weight."""
    lines = [f"{i / 10},{i % 7 / 10 + 0.1},{(i * i) % 13},{i % 3}" for i in range(46)]
    (tmp_path / "t.csv").write_text("\n".join(["x,s,y,w", *lines]) + "\n")
    table = [
        "data=csv",
        "data.path=t.csv",
        "data.target=y",
        "data.features=[x]",
        "data.split.valid=6",
        "train.steps=20",
    ]
    exact = [*table, "strategy.reduction=exact", "strategy.chunks=4"]
    runs = [
        [*exact, "data.sigma=s"],
        [*exact, "data.weight=w", "loss=huber", "update=manual", "optimizer=momentum"],
    ]
    one = trained(1, runs)
    for size in (2, 4):
        for run, other in zip(one, trained(size, runs), strict=True):
            assert summary(run)["parameters_sha256"] == summary(other)["parameters_sha256"]
            assert summary(run)["metrics"] == summary(other)["metrics"]
            assert rows(run) == rows(other)


def test_the_calibration_of_the_best_state_has_the_same_bits() -> None:
    run = ["strategy.reduction=exact", "data.split.calibrate=9", "train.steps=20", "train.select=best"]
    run += ["train.eval_every_steps=3", "optimizer=adam", "optimizer.lr=0.3"]
    (one,), (two,) = trained(1, [run]), trained(2, [run])
    assert (one / "calibration.json").read_bytes() == (two / "calibration.json").read_bytes()
    assert summary(two)["selected"]["step"] < 20
