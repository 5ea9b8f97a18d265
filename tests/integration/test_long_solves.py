"""Steps that take long: reported, abandoned after a signal, and the same as short ones."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

import runner
from runner.compute import signals
from runner.optim.least_squares import LevenbergMarquardt
from runner.training import experiment

FIT = [
    "data=curve", "data.noise=0.05", "model=formula", "model.expression=a*exp(-b*x)+d", "optimizer=lm", "dtype=float64",
    "device=cpu", "device.threads=1", "record.plots=false",
]  # fmt: skip


def sha256(directory: Path) -> str:
    text: str = json.loads((directory / "summary.json").read_text())["parameters_sha256"]
    return text


@pytest.fixture
def _long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every step of a solver counts as long."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiment, "LONG_WORK", 0)


@pytest.mark.usefixtures("_long")
@pytest.mark.parametrize("fit", [FIT, ["+experiment=linreg", "optimizer=lstsq", "dtype=float64", *FIT[-3:]]])
def test_long_steps_have_the_bits_of_short_ones(fit: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    long = runner.run(None, fit)
    monkeypatch.setattr(experiment, "LONG_WORK", 2**31)
    assert sha256(long.directory) == sha256(runner.run(None, fit).directory)


@pytest.mark.usefixtures("_long")
def test_a_long_step_is_abandoned_after_a_signal_and_repeated_when_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = runner.run(None, [*FIT, "run_dir=whole"])
    step, taken, over = LevenbergMarquardt.step, iter(range(100)), threading.Event()

    def stopped(*arguments: Any) -> Any:
        loss = step(*arguments)
        if next(taken) == 2:  # in the third step, after it has changed the parameters
            os.kill(os.getpid(), signal.SIGTERM)
            over.wait()
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(LevenbergMarquardt, "step", stopped)
        with pytest.raises(runner.Interrupted, match="stopped after step 2; the state is saved"):
            runner.run(None, [*FIT, "run_dir=stopped"])
        assert signals.has_abandoned_work()
        over.set()
    stopped_run = tmp_path / "stopped"
    assert json.loads((stopped_run / "run.json").read_text())["status"] == "interrupted"
    assert (stopped_run / "checkpoints" / "last").resolve().name == "step_2"
    runner.run(None, ["resume=stopped"])
    assert sha256(stopped_run) == sha256(whole.directory)


@pytest.mark.usefixtures("_long")
def test_a_long_step_is_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(signals, "FIRST_REPORT_SECONDS", 0.0)
    monkeypatch.setattr(signals, "POLL_SECONDS", 1e-6)
    runner.run(None, FIT)
    assert "note: step 1 has been computing for 0 s\n" in capsys.readouterr().out


@pytest.mark.usefixtures("_long")
def test_an_error_in_a_long_step_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(LevenbergMarquardt, "step", fail)
    with pytest.raises(runner.RunFailed, match=r"out of memory .* \(no room\)"):
        runner.run(None, FIT)
