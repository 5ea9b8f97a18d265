"""Fits that do not converge: their run is finished with every file, its exit code is 1, and it can be resumed with more steps."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runner
from runner import cli
from runner.optim import standard_errors
from runner.optim.least_squares import LstsqSolver

COMMON = ["device=cpu", "device.threads=1", "dtype=float64", "data=curve", "data.expression=3*exp(-0.7*x) + 1", "data.stop=5", "data.rows=40"]  # fmt: skip
FIT = [*COMMON, "model=formula", "model.expression=a*exp(-b*x) + d", "optimizer=lm"]
FLAT = ["model.start={a: 1, b: 1000, d: 0}", "data.start=1"]
SENTENCE = "the parameters are still changing (relative offset "


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(path: str) -> Any:
    return json.loads(Path(path).read_text())


def test_the_run_is_finished_and_complete_and_its_exit_code_is_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*FIT, "train.steps=2", "run_dir=run"]) == 1
    record, summary = read("run/run.json"), read("run/summary.json")
    assert (record["status"], "reason" in record) == ("finished", False)
    assert record["ended"] is not None
    assert (summary["steps"], summary["converged"]) == (2, False)
    assert summary["not_converged_because"].startswith(SENTENCE)
    assert sorted(path.name for path in Path("run/plots").iterdir()) == ["fit.png", "loss.png", "residuals.png"]
    assert Path("run/checkpoints/last").resolve().name == "step_2"
    printed = capsys.readouterr()
    assert f"\nfit      not converged after 2 steps: {SENTENCE}" in printed.out
    assert printed.out.count("; train longer\n") == 1
    assert printed.err == ""


def test_a_converged_fit_and_a_gradient_method_end_with_0() -> None:
    assert cli.main([*FIT, "record.plots=false", "run_dir=lm"]) == 0
    assert cli.main([*COMMON, "optimizer=lstsq", "record.plots=false", "run_dir=lstsq"]) == 0
    assert cli.main([*COMMON, "optimizer=sgd", "train.steps=2", "record.plots=false", "run_dir=sgd"]) == 0
    assert [read(f"{name}/summary.json")["converged"] for name in ("lm", "lstsq", "sgd")] == [True, True, False]


def test_a_call_from_python_returns_the_run() -> None:
    run = runner.run(None, [*FIT, "train.steps=2", "record.plots=false"])
    assert (run.summary["converged"], run.exit_code) == (False, 1)
    assert runner.run(None, [*FIT, "record.plots=false"]).exit_code == 0


def test_more_steps_continue_it(capsys: pytest.CaptureFixture[str]) -> None:
    whole = runner.run(None, [*FIT, "record.plots=false"])
    assert cli.main([*FIT, "train.steps=2", "record.plots=false", "run_dir=run"]) == 1
    capsys.readouterr()
    assert cli.main(["resume=run"]) == 1
    reason = read("run/summary.json")["not_converged_because"]
    assert capsys.readouterr().out == (
        f"run is finished at step 2; there is nothing left to do (for more steps: train.steps=…); the fit has not converged: {reason}\n"
    )
    assert cli.main(["resume=run", "train.steps=1000"]) == 0
    assert read("run/summary.json")["parameters_sha256"] == whole.summary["parameters_sha256"]


def test_a_flat_start_is_blamed_on_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*FIT, *FLAT, "record.plots=false", "run_dir=run"]) == 1
    out = capsys.readouterr().out
    assert "; start from other values than a=1, b=1000, d=0 with model.start\n" in out
    assert "the data do not" not in out
    assert "settled" not in out


@pytest.mark.parametrize("launcher", [[], ["hydra/launcher=pool"], ["hydra/launcher=basic"]])
def test_a_sweep_has_a_column_and_exit_code_0(launcher: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-m", *FIT, *launcher, "train.steps=2,100", "record.plots=false", "run_dir=sweep"]) == 0
    with Path("sweep/results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["state"], row["train.steps"], row["converged"]) for row in rows] == [
        ("finished", "2", "false"),
        ("finished", "100", "true"),
    ]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    (heading,) = [line for line in lines if line[:2] == ["train.steps", "n"]]
    place = heading.index("converged")
    assert {line[0]: line[place] for line in lines if line[:1] in (["2"], ["100"])} == {"2": "0", "100": "1"}
    assert read("sweep/sweep.json")["status"] == "finished"


def test_a_vmapped_sweep_has_it_for_every_trial() -> None:
    _, results = runner.multirun(None, [*FIT, "train.steps=4", "optimizer.radius=1e-6,1"])
    assert [member.converged for member in results.members] == [False, False]
    _, results = runner.multirun(None, [*FIT, "optimizer.radius=0.1,1"])
    assert [member.converged for member in results.members] == [True, True]


def test_it_can_be_verified(capsys: pytest.CaptureFixture[str]) -> None:
    runner.run(None, [*FIT, "train.steps=2", "record.plots=false", "run_dir=run"])
    capsys.readouterr()
    assert cli.main(["verify", "rerun", "run"]) == 0
    assert capsys.readouterr().out.endswith("same: the repeated run has the same parameters_sha256 as run\n")


def test_processes_end_with_1_and_leave_a_finished_run() -> None:
    command = [sys.executable, "-m", "runner", *FIT, "launch.processes=2", "train.steps=2", "run_dir=run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert f"\nfit      not converged after 2 steps: {SENTENCE}" in done.stdout
    assert (read("run/run.json")["status"], read("run/summary.json")["converged"]) == ("finished", False)
    assert (Path("run/plots") / "fit.png").exists()


# ------------------------------------------------------------------------------ fits too large to be factored once more


@pytest.fixture
def _wide() -> None:
    """A table of 40 rows and 1,200 features."""
    drawn = np.random.default_rng(5).normal(size=(40, 1201))
    names = ",".join([*(f"x{i}" for i in range(1200)), "y"])
    np.savetxt("t.csv", drawn, delimiter=",", header=names, comments="")


WIDE = ["device=cpu", "device.threads=1", "dtype=float64", "data=csv", "data.path=t.csv", "data.target=y", "record.plots=false"]  # fmt: skip


@pytest.mark.usefixtures("_wide")
def test_a_large_linear_fit_has_converged(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*WIDE, "optimizer=lstsq", "run_dir=run"]) == 0
    assert read("run/summary.json")["converged"] is True
    assert "\nfit      converged after 2 steps; the rows leave no degrees of freedom\n" in capsys.readouterr().out


@pytest.mark.usefixtures("_wide")
def test_a_refinement_that_does_not_settle_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = LstsqSolver.step

    def disturbed(self: Any, objective: Any, lr: Any) -> Any:
        loss = step(self, objective, lr)
        self._write(self._rows() * 1.001)
        return loss

    monkeypatch.setattr(LstsqSolver, "step", disturbed)
    assert cli.main([*WIDE, "optimizer=lstsq", "run_dir=run"]) == 1
    reason = (
        "no further step finds better parameters, but by their derivatives they are not at a minimum (relative offset "
    )
    assert read("run/summary.json")["not_converged_because"].startswith(reason)
    assert f"\nfit      not converged after 2 steps: {reason}" in capsys.readouterr().out


@pytest.mark.usefixtures("_wide")
def test_a_large_network_has_converged_once_more_steps_find_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    network = [*WIDE, "model=mlp", "model.widths=[1]", "optimizer=lm"]  # 1,203 parameters
    assert cli.main([*network, "train.steps=1", "run_dir=run"]) == 1
    assert read("run/summary.json")["not_converged_because"].startswith(SENTENCE)
    assert cli.main(["resume=run", "train.steps=200"]) == 0
    assert read("run/summary.json")["converged"] is True


@pytest.mark.usefixtures("_wide")
def test_large_fits_of_a_sweep_are_judged_one_by_one() -> None:
    network = [*WIDE, "model=mlp", "model.widths=[1]", "optimizer=lm", "seed=0,1", "train.steps=1"]
    assert cli.main(["-m", *network, "run_dir=sweep"]) == 0
    assert [read(f"sweep/{trial}/summary.json")["converged"] for trial in range(2)] == [False, False]


BOUNDED = ["model=formula", "model.expression=a*x0 + b*x1 + d", "model.bounds={a: [5, null]}", "optimizer=lm"]
WEIGHTED = ["data.weight=x2", "optimizer=lstsq", "data.features=[x0, x1, x3]"]
TWO_TARGETS = ["data.target=[y, x9]", "data.features=[x0, x1, x3]", "data.standardize=true", "optimizer=lstsq"]


@pytest.mark.parametrize("fit", [BOUNDED, WEIGHTED, TWO_TARGETS], ids=["bounded", "weighted", "two targets"])
def test_a_fit_that_counts_as_large_has_the_same_numbers(fit: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = np.abs(np.random.default_rng(5).normal(size=(40, 11)))
    names = ",".join([*(f"x{i}" for i in range(10)), "y"])
    np.savetxt("t.csv", drawn, delimiter=",", header=names, comments="")
    small = runner.run(None, [*WIDE, *fit]).summary
    monkeypatch.setattr(standard_errors, "MOST_NUMBERS", 0)
    large = runner.run(None, [*WIDE, *fit]).summary
    assert large["converged"] is True
    assert "standard_errors" in small.keys() - large.keys()
    assert large["degrees_of_freedom"] == small["degrees_of_freedom"]
    # Sums of 40 squares in another order.
    for name in small.keys() & {"residual_standard_deviation", "chi_square"}:
        assert large[name] == pytest.approx(small[name], rel=1e-13)
