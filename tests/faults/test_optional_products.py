"""Plots, images and printed results cannot cost a result: their failure is a warning on the console and in run.log."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import faults
import runner
from runner import cli
from runner.runs import plots
from runner.runs.sinks.tensorboard import TensorBoard
from runner.sweep import plots as sweep_plots
from runner.training import report
from runner.training.step import EagerStep

RUN = ["+experiment=linreg", "device=cpu", "device.threads=1", "train.steps=5"]
INCOMPLETE = "note: the results are complete, but not"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def read(path: str) -> Any:
    return json.loads(Path(path).read_text())


def warnings_of_finished_run() -> list[str]:
    """Check that a run has finished with its result, and return its warnings."""
    record, summary = read("run/run.json"), read("run/summary.json")
    assert (record["status"], record["ended"] is None, summary["steps"]) == ("finished", False, 5)
    lines = Path("run/run.log").read_text().splitlines()
    assert "look     tensorboard --logdir ." in lines
    return [line for line in lines if line.startswith(INCOMPLETE)]


# ----------------------------------------------------------------------------------------------------- the environment


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nope", "TkAgg", "module://nope"])
def test_no_mplbackend_changes_a_run_or_a_plot(backend: str) -> None:
    runner.run(None, [*RUN, "run_dir=whole"])
    command = [sys.executable, "-m", "runner", *RUN, "run_dir=run"]
    Path("matplotlibrc").write_text("font.size: 30\nsavefig.dpi: 10\nsavefig.bbox: tight\nlines.linewidth: 9\n")
    process = subprocess.run(
        command, env={**os.environ, "MPLBACKEND": backend}, capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert warnings_of_finished_run() == []
    files = {path.name: path.read_bytes() for path in Path("run/plots").iterdir()}
    assert files == {path.name: path.read_bytes() for path in Path("whole/plots").iterdir()}
    assert set(files) == {"fit.png", "loss.png", "residuals.png"}


@pytest.mark.parametrize(
    ("kind", "place"),
    [("Latin-1", "here"), ("Latin-1", "MPLCONFIGDIR"), ("a FIFO", "here"), ("a device", "MATPLOTLIBRC")],
)
def test_no_matplotlibrc_costs_a_plot(kind: str, place: str) -> None:
    Path("folder").mkdir()
    file = Path("matplotlibrc" if place == "here" else "folder/matplotlibrc")
    if kind == "Latin-1":
        file.write_bytes(b"font.size: 30  # gr\xf6\xdfer\n")
    elif kind == "a FIFO":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero")
    command = [sys.executable, "-m", "runner", *RUN, "run_dir=run"]
    environment = {**os.environ, "MPLCONFIGDIR": str(Path("cache").absolute())} | (
        {} if place == "here" else {place: str(Path("folder").absolute())}
    )
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0
    assert "Traceback" not in process.stderr
    assert warnings_of_finished_run() == []
    assert {path.name for path in Path("run/plots").iterdir()} == {"fit.png", "loss.png", "residuals.png"}


def test_settings_of_the_user_hold_after_a_plot() -> None:
    Path("matplotlibrc").write_text("font.size: 30\n")
    script = f"import runner; runner.run(None, {[*RUN, 'run_dir=run']!r}); import matplotlib; print(matplotlib.rcParams['font.size'])"
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert process.stdout.splitlines()[-1] == "30.0"


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize("sweep", [[], ["seeds=2"]], ids=["run", "sweep"])
def test_a_warning_of_python_in_training_is_in_the_log(sweep: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    real = EagerStep.__call__

    def step(self: EagerStep, number: int) -> Any:
        if number == 2:
            warnings.warn("slower than\nit could be", RuntimeWarning, stacklevel=1)
        return real(self, number)

    monkeypatch.setattr(EagerStep, "__call__", step)
    assert cli.main([*RUN, *sweep, "run_dir=run"]) == 0
    for log in ("run/0/run.log", "run/1/run.log") if sweep else ("run/run.log",):
        assert Path(log).read_text().count("note: slower than it could be\n") == 1


# -------------------------------------------------------------------------------------------------------- what can fail


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


FAILURES: dict[str, tuple[Any, str, Exception, str]] = {
    "no memory for a plot": (report, "plot", MemoryError(), "plots: MemoryError"),
    "a font is missing": (plots, "png", ValueError("no font"), "plots: ValueError: no font"),
    "two lines": (plots, "draw", RuntimeError("one\n  two"), "plots: RuntimeError: one two"),
    "a graphics library is missing": (plots, "page", ImportError("libpng"), "plots: ImportError: libpng"),
    "an image": (TensorBoard, "finish", KeyError("x"), "the end of TensorBoard: KeyError: 'x'"),
    "closing a file": (TensorBoard, "close", TypeError("x"), "the end of TensorBoard: TypeError: x"),
    "a sentence": (report, "explanation", TypeError("x"), "what is printed: TypeError: x"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_after_the_result_is_one_warning(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where, function, error, text = FAILURES[name]
    monkeypatch.setattr(where, function, raising(error))
    assert cli.main([*RUN, "run_dir=run"]) == 0
    printed = capsys.readouterr()
    assert [line for line in printed.out.splitlines() if line.startswith(INCOMPLETE)] == [f"{INCOMPLETE} {text}"]
    assert printed.err == ""
    record = read("run/run.json")
    assert (record["status"], record["ended"] is None, read("run/summary.json")["steps"]) == ("finished", False, 5)
    assert f"{INCOMPLETE} {text}\n" in Path("run/run.log").read_text()


def test_a_file_in_the_place_of_the_plots(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    faults.at_step(monkeypatch, 5, lambda: Path("run/plots").write_text("mine"))
    assert cli.main([*RUN, "run_dir=run"]) == 0
    (warning,) = warnings_of_finished_run()
    assert warning.startswith(f"{INCOMPLETE} plots: `run/plots` cannot be written: `run/plots` is a file")
    assert Path("run/plots").read_text() == "mine"


def test_files_that_may_not_be_as_large_as_a_plot() -> None:
    """The limit on the size of a file is a real error of the operating system, as a full disk is."""

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))
        os._exit(cli.main([*RUN, "run_dir=run"]))

    assert os.waitstatus_to_exitcode(faults.in_child(work)) == 0
    warnings = warnings_of_finished_run()
    assert warnings[0].startswith(f"{INCOMPLETE} plots: `run/plots` cannot be written")
    assert "the file would be larger than is allowed" in warnings[0]
    assert list(Path("run/plots").iterdir()) == []


def test_a_full_disk_for_the_summary_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "run/summary.json")
    monkeypatch.setattr("runner.training.recorder.write_json", raising(full))
    assert cli.main([*RUN, "run_dir=run"]) == 1
    assert read("run/run.json")["status"] == "failed"
    assert read("run/run.json")["reason"].startswith("`run/summary.json` cannot be written: the disk is full")


# -------------------------------------------------------------------------------------------------------------- sweeps


@pytest.fixture(params=["draw", "write"])
def _no_sweep_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sweep_plots if request.param == "draw" else plots, request.param, raising(MemoryError("little"))
    )


@pytest.mark.usefixtures("_no_sweep_plots")
def test_the_plots_of_a_sweep_cannot_cost_its_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-m", *RUN, "optimizer.lr=1e-5,1e-4", "run_dir=sweep"]) == 0
    assert f"{INCOMPLETE} plots: MemoryError: little\n" in capsys.readouterr().out
    assert read("sweep/sweep.json")["status"] == "finished"
    assert Path("sweep/results.csv").read_text().count("\n") == 3
