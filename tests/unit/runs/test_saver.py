"""Saving by one process, also in the background. Several processes are in tests/distributed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import UserDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.compute.processes import SingleProcess
from runner.errors import RunFailed
from runner.runs import checkpoint
from runner.runs.saver import Saver

FIXED = {"config": {"seed": 1}}


def saver(folder: Path, asynchronous: bool, keep: int | None = None) -> Saver:
    return Saver(folder, FIXED, keep, SingleProcess(), sharded=False, asynchronous=asynchronous, timeout_seconds=60)


def state_of(step: int) -> dict[str, Any]:
    return {
        "model": {"weight": torch.full((3,), float(step))},
        "optimizer": {"weight": {"exp_avg": torch.full((3,), step / 2), "old_steps": [torch.ones(1) * step, (step,)]}},
        "best": {"value": None},
    }


def loaded(folder: Path) -> checkpoint.Loaded:
    found = checkpoint.load(folder)
    assert found is not None
    return found


class Gate:
    """Delays the writing until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened, self.begun = threading.Event(), threading.Event()
        self.events: list[str] = []
        self._save = checkpoint.save
        monkeypatch.setattr(checkpoint, "save", self._held)

    def _held(self, folder: Path, step: int, state: dict[str, Any], *, best: bool, keep: int | None) -> Path:
        self.begun.set()
        assert self.opened.wait(20)
        path = self._save(folder, step, state, best=best, keep=keep)
        self.events.append(f"wrote {step}")
        return path


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.opened.set()


@pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
def test_a_state_is_saved_with_the_fixed_values(asynchronous: bool, tmp_path: Path) -> None:
    made = saver(tmp_path / "c", asynchronous, keep=1)
    for step in (1, 2, 3):
        made.save(step, state_of(step), best=step == 1)
    made.close()
    found = loaded(tmp_path / "c")
    assert list(found.state) == ["format", "step", "model", "optimizer", "best", "config"]
    assert str(found.state) == str({"format": 1, "step": 3, **state_of(3), **FIXED})
    assert sorted(os.listdir(tmp_path / "c")) == ["best", "last", "step_1", "step_3"]


def test_a_background_save_writes_the_values_at_the_call(gate: Gate, tmp_path: Path) -> None:
    made, state = saver(tmp_path / "c", asynchronous=True), state_of(1)
    made.save(1, state, best=False)
    state["model"]["weight"].fill_(7)
    state["optimizer"]["weight"]["exp_avg"].fill_(7)
    state["optimizer"]["weight"]["old_steps"][0].fill_(7)
    state["optimizer"]["weight"]["old_steps"].append(7)
    state["best"]["value"] = 7.0
    made.check()  # does not wait
    assert gate.events == []
    gate.opened.set()
    made.close()
    assert str(loaded(tmp_path / "c").state) == str({"format": 1, "step": 1, **state_of(1), **FIXED})


def test_a_second_save_waits_for_the_first(gate: Gate, tmp_path: Path) -> None:
    made = saver(tmp_path / "c", asynchronous=True)
    made.save(1, state_of(1), best=False)

    class Live(UserDict[str, Any]):
        """A state that records when its values are read."""

        def __iter__(self) -> Iterator[str]:
            gate.events.append("read")
            return super().__iter__()

    second = threading.Thread(target=made.save, args=(2, Live(state_of(2)), False))
    second.start()
    gate.opened.set()
    second.join()
    made.close()
    assert gate.events == ["wrote 1", "read", "wrote 2"]


def test_closing_waits_and_leaves_no_thread(gate: Gate, tmp_path: Path) -> None:
    made = saver(tmp_path / "c", asynchronous=True)
    made.save(1, state_of(1), best=False)
    assert gate.begun.wait(20)
    writing = threading.active_count()
    closing = threading.Thread(target=made.close)
    closing.start()
    assert gate.events == []
    gate.opened.set()
    closing.join()
    assert threading.active_count() == writing - 1
    assert gate.events == ["wrote 1"]


def check_until_it_ends(made: Saver) -> None:
    while True:  # raises nothing while the state is being written
        made.check()


CALLS: dict[str, Callable[[Saver], None]] = {
    "check": check_until_it_ends,
    "save": lambda made: made.save(2, state_of(2), best=False),
    "close": lambda made: made.close(),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_background_failure_is_raised_once_by_the_next_call(call: str, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.write_text("mine")
    made = saver(folder, asynchronous=True)
    made.save(1, state_of(1), best=False)
    with pytest.raises(RunFailed, match=rf"^saving step 1 failed: `{folder / 'step_1'}` cannot be written: "):
        CALLS[call](made)
    folder.unlink()
    made.check()
    if call != "close":
        made.save(3, state_of(3), best=False)
        made.close()
        assert loaded(folder).step == 3
    made.close()


def test_a_failure_of_a_synchronous_save_is_raised_by_it(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("mine")
    made = saver(tmp_path / "c", asynchronous=False)
    with pytest.raises(RunFailed, match="saving step 1 failed: "):
        made.save(1, state_of(1), best=False)
    made.check()
    made.close()


def test_a_bug_keeps_its_type(tmp_path: Path) -> None:
    made = saver(tmp_path / "c", asynchronous=True)
    made.save(1, {**state_of(1), "where": tmp_path}, best=False)
    with pytest.raises(ValueError, match="the state of step 1 cannot be loaded again"):
        made.close()


ENDING = """
import pathlib, sys
sys.path.insert(0, sys.argv[2])
from test_saver import checkpoint, saver, state_of

save = checkpoint.save
checkpoint.save = lambda *a, **b: sys.stdin.readline() and save(*a, **b)
saver(pathlib.Path(sys.argv[1]), asynchronous=True).save(1, state_of(1), best=True)
print("the end", flush=True)
"""


def test_a_process_that_ends_waits_for_a_background_save(tmp_path: Path) -> None:
    command: list[str | Path] = [sys.executable, "-c", ENDING, tmp_path / "c", Path(__file__).parent]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "the end\n"
        assert not (tmp_path / "c").exists()
        process.communicate("now\n", timeout=60)
    assert process.returncode == 0
    assert loaded(tmp_path / "c").step == 1
