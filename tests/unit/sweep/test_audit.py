"""The audit of a sweep: which trials are repeated, and how large the difference is."""

from __future__ import annotations

from pathlib import Path

import pytest

import runner
from runner.runs import checkpoint
from runner.sweep.audit import audit
from runner.sweep.manifest import Manifest

OVERRIDES = ["+experiment=linreg", "device=cpu", "device.threads=1", "train.steps=9", "dtype=float64"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def swept(*overrides: str) -> Manifest:
    return Manifest.read(runner.multirun(None, [*OVERRIDES, *overrides, "run_dir=sweep"])[0])


def test_vmapped_trials_equal_single_runs() -> None:
    manifest = swept("optimizer.lr=1e-5,1e-4", "seeds=2")
    found = audit(manifest, 9)
    assert found is not None
    assert found.members == (0, 1, 2, 3)
    assert found.largest_difference <= 1e-12


def test_one_wrong_number_is_found() -> None:
    """Its difference is relative to the largest magnitude of its tensor."""
    manifest = swept("seeds=3")
    folder = Path("sweep/1/checkpoints")
    loaded = checkpoint.load(folder)
    assert loaded is not None
    weight = loaded.state["model"]["weight"]
    loaded.state["model"]["weight"] = weight * (1 + 1e-3)
    checkpoint.save(folder, loaded.step, loaded.state, best=True, keep=1)
    found = audit(manifest, 3)
    assert found is not None
    assert found.largest_difference == pytest.approx(1e-3, rel=1e-6)


def test_finished_trials_are_drawn_by_the_name_of_the_directory() -> None:
    manifest = swept("optimizer.lr=1e-5,1e30", "seeds=6")
    first, again = audit(manifest, 3), audit(manifest, 3)
    assert first is not None
    assert again is not None
    assert first.members == again.members
    assert len(set(first.members)) == 3
    assert set(first.members) < set(range(6))  # the others have diverged


def test_nothing_is_trained_if_nothing_can_be_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = swept("optimizer.lr=1e30", "seeds=2")
    monkeypatch.setattr("runner.training.run.execute", None)
    assert audit(manifest, 3) is None
    manifest.mark([0], "finished")
    assert audit(manifest, 0) is None
