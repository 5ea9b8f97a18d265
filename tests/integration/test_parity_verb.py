"""`runner parity` end to end: output files, exit codes, and faults in the program that it must find."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from runner import cli
from runner.commands.parity import measure, runs
from runner.commands.parity.runs import ParityRun, run_in_group, run_plan
from runner.config.compose import compose
from runner.config.schema import plain
from runner.errors import ConfigError, Diverged, Interrupted, ProcessLost, RemoteRankError
from runner.optim import rules, torch_optim

LINE = ["parity", "+experiment=linreg", "strategy=single", "--steps", "4", "--out", "out"]
DOUBLE = [*LINE, "dtype=float64"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def table_json() -> Any:
    return json.loads(Path("out/parity.json").read_text(encoding="utf-8"))


def cells() -> dict[str, Any]:
    return {f"{c['dtype']} {c['strategy']} {c['update']} {c['optimizer']}": c for c in table_json()["cells"]}


def verdicts() -> dict[str, str]:
    return {name: cell["verdict"] for name, cell in cells().items()}


# ------------------------------------------------------------------------------------------------------------- exit code 0


def test_both_updates_on_one_process_in_three_dtypes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*LINE, "optimizer=sgd,adam", "device=cpu"]) == 0
    by_name = {name: cell for name, cell in cells().items() if cell["dtype"] != "float16"}
    assert len(by_name) == 12
    assert {cell["verdict"] for cell in by_name.values()} == {"met"}
    assert {name: cell["bound"] for name, cell in by_name.items() if cell["optimizer"] == "adam"} == {
        "float64 single manual adam": "equal", "float64 single optimizer adam": "reordered",
        "float32 single manual adam": "sampled", "float32 single optimizer adam": "sampled",
        "bfloat16 single manual adam": "sampled", "bfloat16 single optimizer adam": "sampled",
    }  # fmt: skip
    # Manual and torch.optim give the same bits; in float32 they are not those of float64.
    assert by_name["float64 single optimizer sgd"]["parameters_difference"] == 0
    assert by_name["float64 single optimizer sgd"]["loss_difference"] == 0
    assert (
        0
        < by_name["float32 single manual sgd"]["parameters_difference"]
        < by_name["float32 single manual sgd"]["parameters_bound"]
    )
    assert all(cell["seconds_per_step"] > 0 and cell["steps"] == 4 for cell in by_name.values())
    assert {path.name for path in Path("out").iterdir()} == {"parity.md", "parity.json", "parity.png"}
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["parity   12 met, 0 missed, 4 cannot run", "written  out/parity.md, parity.json, parity.png"]
    assert any(line.startswith("cpu     float16   all       all") for line in lines)
    assert any(line.startswith("(a) `dtype` must not be float16 with `device`=cpu") for line in lines)


def test_the_default_directory_is_among_the_runs_of_the_experiment() -> None:
    assert cli.main([*DOUBLE[:-3], "dtype=float64", "optimizer=sgd", "update=manual"]) == 0
    (directory,) = Path("runs/linreg").iterdir()
    assert directory.name.startswith("parity_")
    table = json.loads((directory / "parity.json").read_text(encoding="utf-8"))
    assert (table["experiment"], table["steps"], table["threads"]) == ("linreg", 4, 1)


def test_a_table_compares_no_more_steps_than_the_experiment_has() -> None:
    arguments = ["parity", "+experiment=curve_fit", "strategy=single", "dtype=float64", "optimizer=sgd", "device=cpu"]
    assert cli.main([*arguments, "--out", "out"]) == 0
    assert table_json()["steps"] == 30
    assert {cell["steps"] for cell in table_json()["cells"]} == {30}


def test_an_optimizer_without_a_manual_update_is_compared_with_itself_in_float64() -> None:
    assert cli.main([*DOUBLE, "optimizer=lbfgs", "device=cpu"]) == 0
    assert verdicts() == {"float64 single manual lbfgs": "cannot run", "float64 single optimizer lbfgs": "met"}
    (reason,) = cells()["float64 single manual lbfgs"]["reasons"]
    assert reason.startswith("`update` must be optimizer with `optimizer`=lbfgs")


# --------------------------------------------------------------------------------------------------------- faults it finds


def test_a_slightly_wrong_rule_is_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def step(
        self: rules.SgdRule, params: Sequence[Tensor], grads: Sequence[Tensor], state: Any, lr: Tensor
    ) -> tuple[list[Tensor], Any]:
        return [p - lr * g * (1 + 1e-6) for p, g in zip(params, grads, strict=True)], state

    monkeypatch.setattr(rules.SgdRule, "step", step)
    assert cli.main([*DOUBLE, "optimizer=sgd,momentum", "device=cpu"]) == 1
    assert verdicts() == {
        "float64 single manual sgd": "met", "float64 single manual momentum": "met",
        "float64 single optimizer sgd": "missed", "float64 single optimizer momentum": "met",
    }  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    complaint = next(i for i, line in enumerate(lines) if line.startswith("missed: device=cpu dtype=float64"))
    assert complaint < next(i for i, line in enumerate(lines) if line.startswith("device  dtype"))


def test_an_adam_with_a_slightly_smaller_beta1_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = rules.AdamRule.step

    def step(self: rules.AdamRule, *given: Any) -> Any:
        return original(replace(self, beta1=self.beta1 * (1 - 1e-4)), *given)

    monkeypatch.setattr(rules.AdamRule, "step", step)
    assert cli.main([*DOUBLE, "optimizer=adam", "device=cpu", "update=optimizer"]) == 1
    assert verdicts() == {"float64 single optimizer adam": "missed"}


def test_a_run_with_other_bits_each_time_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    step, calls = rules.SgdRule.step, iter(range(100))

    def drifting(self: rules.SgdRule, *given: Any) -> Any:
        params, state = step(self, *given)
        return [p * (1 + 1e-15 * next(calls)) for p in params], state

    monkeypatch.setattr(rules.SgdRule, "step", drifting)
    assert cli.main([*DOUBLE, "optimizer=sgd", "device=cpu", "update=manual"]) == 1
    assert verdicts() == {"float64 single manual sgd": "missed"}


def test_a_failed_cell_is_reported_with_the_state_of_its_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, *given: Any) -> Any:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(torch_optim.TorchOptimizer, "step", broken)
    assert cli.main([*DOUBLE, "optimizer=sgd", "device=cpu"]) == 1
    assert verdicts() == {"float64 single manual sgd": "met", "float64 single optimizer sgd": "failed"}
    assert cells()["float64 single optimizer sgd"]["reasons"] == [
        "RuntimeError: no such kernel (its reference finished)"
    ]


def test_a_diverged_reference_is_reported() -> None:
    assert cli.main([*LINE[:3], *DOUBLE[5:], "optimizer=sgd", "device=cpu", "optimizer.lr=1e30", "--steps", "30"]) == 1
    for cell in cells().values():
        assert cell["verdict"] == "failed"
        (reason,) = cell["reasons"]
        assert reason.startswith("training diverged at step")
        assert "(its reference did not: training diverged at step" in reason


# --------------------------------------------------------------------------------------------------------------- exit code 2


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["+experiment=nothing"], "`experiment` must be one of"),
        (["+experiment=linreg", "--steps", "0"], "`--steps` must be an integer of at least 1, got 0"),
        (["+experiment=linreg", "--steps", "few"], "the options cannot be read"),
        (["+experiment=linreg", "--out", "."], "`--out` must be a directory that does not exist yet, got '.'"),
        (["+experiment=linreg", "optimizer=sgd", "device=cuda"], "`device=cuda` needs a CUDA build of torch"),
        (["+experiment=linreg", "optimizer=sgd", "dtype=float16", "device=cpu"], "`dtype` must not be float16"),
        (["data=csv", "data.path=none.csv", "data.target=y", "optimizer=sgd", "device=cpu"], "`data.path`"),
    ],
)
def test_bad_input_is_refused(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "device=cuda" in arguments and torch.version.cuda is not None:
        pytest.skip("torch is a CUDA build")
    assert cli.main(["parity", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert problem in error
    assert not list(Path().iterdir())


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["parity", "--help"]) == 0
    assert capsys.readouterr().out.startswith("python -m runner parity +experiment=NAME")


# ------------------------------------------------------------------------------------------------------ several processes


def test_cells_of_several_processes_share_one_group() -> None:
    arguments = [
        *DOUBLE[:2],
        *DOUBLE[3:],
        "strategy=single,ddp,tensor",
        "optimizer=sgd,adam",
        "update=manual",
        "device=cpu",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "runner", *arguments], capture_output=True, text=True, check=False, timeout=90
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 runs on one process, 4 on 2" in done.stdout
    assert verdicts() == {
        "float64 single manual sgd": "met", "float64 single manual adam": "met",
        "float64 ddp manual sgd": "met", "float64 ddp manual adam": "met",
        "float64 tensor manual sgd": "cannot run", "float64 tensor manual adam": "cannot run",
    }  # fmt: skip
    (reason,) = cells()["float64 tensor manual sgd"]["reasons"]  # found by the processes, which continue after it
    assert reason.startswith("the inputs of `model`=linear must be divisible by the 2 processes")


@pytest.fixture
def three(tmp_path: Path) -> list[ParityRun]:
    config = compose(["data=line", "device=cpu", "launch.processes=2"], None).config
    return [ParityRun(tmp_path / str(number), config) for number in range(3)]


def test_a_cell_that_ends_its_processes_has_failed_and_the_others_continue(
    three: list[ParityRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def launch(config: Any, arguments: Sequence[str], module: str) -> int:
        folders = [entry["folder"] for entry in json.loads(Path(arguments[0]).read_text())["runs"]]
        started.append([Path(folder).name for folder in folders])
        if len(started) == 1:
            three[0].end(None)
            return 1
        if len(started) == 2:
            return 1
        three[2].end(None)
        return 0

    monkeypatch.setattr(runs, "launch", launch)
    lines: list[str] = []
    run_in_group(three, three[0].folder.parent, lines.append)
    assert started == [["0", "1", "2"], ["1", "2"], ["2"]]
    assert [run.outcome for run in three] == [
        ("finished", ()),
        ("failed", ("its processes ended with exit code 1",)),
        ("finished", ()),
    ]
    assert lines == ["the processes ended early; starting new ones for the remaining cells"] * 2


@pytest.mark.parametrize(
    ("error", "continues"),
    [(Diverged("nan"), True), (ConfigError("no"), True), (RemoteRankError("rank 0: nan", 1), True), (RemoteRankError("stopped", 143), False),
     (ProcessLost("rank 1 was lost"), False), (RuntimeError("no kernel"), False)],
)  # fmt: skip
def test_processes_continue_after_an_error_that_all_of_them_know(
    three: list[ParityRun], monkeypatch: pytest.MonkeyPatch, error: Exception, continues: bool
) -> None:
    plan = three[0].folder.parent / "plan.json"
    plan.write_text(json.dumps({"runs": [{"folder": str(run.folder), "config": plain(run.config)} for run in three]}))
    monkeypatch.setattr(runs, "attempt", lambda run: error)
    with nullcontext() if continues else pytest.raises(type(error)):
        run_plan(plan, 0)
    assert [run.ended for run in three] == [True, continues, continues]


def test_a_signal_to_the_processes_stops_the_table(three: list[ParityRun], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "launch", lambda *given: 128 + signal.SIGTERM)
    with pytest.raises(Interrupted) as raised:
        run_in_group(three, three[0].folder.parent, print)
    assert raised.value.exit_code == 143


def test_a_signal_stops_the_table_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = rules.SgdRule.step

    def stopped(self: rules.SgdRule, *given: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return step(self, *given)

    monkeypatch.setattr(rules.SgdRule, "step", stopped)
    assert cli.main([*DOUBLE, "optimizer=sgd", "device=cpu", "update=manual"]) == 130
    assert capsys.readouterr().err == "stopped; nothing was written (SIGINT)\n"
    assert not list(Path().iterdir())


def test_a_signal_between_two_trainings_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def stopped(*given: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(measure, "read_result", stopped)
    assert cli.main([*DOUBLE, "optimizer=sgd", "device=cpu", "update=manual"]) == 143
    assert capsys.readouterr().err == "stopped; nothing was written (SIGTERM)\n"
    assert list(tmp_path.glob("parity_*")) == []
