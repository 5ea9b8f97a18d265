"""The pool launcher: the environment of each process, the order of the trials, and their outcomes."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import optuna
import pytest
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf
from optuna.storages.journal import JournalFileBackend

from runner.cli import main
from runner.compute.devices import TorchBuild
from runner.config.hydra_adapter import CONF
from runner.errors import ConfigError, Interrupted, RunFailed
from runner.runs.directory import lock, unlock
from runner.sweep.process_pool import Outcome, Pool, PoolOptions, slots, visible_gpus

CUDA = TorchBuild("2.13.0+cu130", cuda="13.0", hip=None)
ROCM = TorchBuild("2.13.0+rocm7.1", cuda=None, hip="7.1")
CPU = TorchBuild("2.13.0+cpu", cuda=None, hip=None)
LINREG = ["+experiment=linreg", "train.steps=20", "record.plots=false"]


def options(**changes: Any) -> dict[str, Any]:
    """Return the options in conf, with changes."""
    values = cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.load(CONF / "hydra/launcher/pool.yaml")))
    del values["_target_"]
    return values | changes


def test_every_option_has_a_value_and_a_meaning() -> None:
    assert set(options()) == {field.name for field in dataclasses.fields(PoolOptions)}


# The slots.


def plan(build: TorchBuild, visible: int, environ: dict[str, str], **changes: Any) -> list[dict[str, str]]:
    return slots(PoolOptions(**options(**changes)), environ, build, visible, cores=8)


@pytest.mark.parametrize(
    ("build", "visible", "environ", "devices", "masks"),
    [
        (CUDA, 2, {}, None, [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]),
        (CUDA, 2, {"CUDA_VISIBLE_DEVICES": "3,5"}, None, [{"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": "5"}]),
        (CUDA, 1, {"CUDA_VISIBLE_DEVICES": "GPU-8f,GPU-91"}, None, [{"CUDA_VISIBLE_DEVICES": "GPU-8f"}]),
        (CUDA, 2, {"CUDA_VISIBLE_DEVICES": "3,5"}, (0, 2), [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "2"}]),
        (CUDA, 1, {}, ("GPU-8f",), [{"CUDA_VISIBLE_DEVICES": "GPU-8f"}]),
        (CUDA, 1, {"HIP_VISIBLE_DEVICES": "4"}, None, [{"CUDA_VISIBLE_DEVICES": "0"}]),
        (ROCM, 2, {}, None, [{"HIP_VISIBLE_DEVICES": "0"}, {"HIP_VISIBLE_DEVICES": "1"}]),
        (ROCM, 1, {"CUDA_VISIBLE_DEVICES": "3"}, None, [{"HIP_VISIBLE_DEVICES": "3"}]),
        (ROCM, 1, {"HIP_VISIBLE_DEVICES": "2", "CUDA_VISIBLE_DEVICES": "3"}, None, [{"HIP_VISIBLE_DEVICES": "2"}]),
        (ROCM, 2, {"ROCR_VISIBLE_DEVICES": "4,6"}, None, [
            {"ROCR_VISIBLE_DEVICES": "4,6", "HIP_VISIBLE_DEVICES": "0"},
            {"ROCR_VISIBLE_DEVICES": "4,6", "HIP_VISIBLE_DEVICES": "1"},
        ]),
        # Without a GPU there is one device, the CPU, and no mask is changed.
        (CUDA, 0, {"CUDA_VISIBLE_DEVICES": "-1"}, None, [{"CUDA_VISIBLE_DEVICES": "-1"}]),
        (CPU, 0, {}, None, [{}]),
        (CPU, 0, {"CUDA_VISIBLE_DEVICES": "0,1"}, None, [{"CUDA_VISIBLE_DEVICES": "0,1"}]),
    ],
)  # fmt: skip
def test_each_slot_sees_one_gpu(
    build: TorchBuild, visible: int, environ: dict[str, str], devices: Any, masks: list[dict[str, str]]
) -> None:
    found = plan(build, visible, {"HOME": "/home/me", **environ}, devices=devices)
    threads = str(8 // len(masks))
    assert found == [{"HOME": "/home/me", "OMP_NUM_THREADS": threads, **mask} for mask in masks]


def test_consecutive_slots_are_on_different_devices() -> None:
    found = plan(CUDA, 2, {}, per_device=2)
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in found] == ["0", "1", "0", "1"]


@pytest.mark.parametrize(("per_device", "threads"), [(1, "8"), (2, "4"), (3, "2"), (20, "1")])
def test_the_slots_share_the_cores(per_device: int, threads: str) -> None:
    assert plan(CPU, 0, {}, per_device=per_device) == [{"OMP_NUM_THREADS": threads}] * per_device


def test_the_threads_of_the_user_are_kept() -> None:
    assert plan(CPU, 0, {"OMP_NUM_THREADS": "3"}, per_device=2) == [{"OMP_NUM_THREADS": "3"}] * 2


@pytest.mark.parametrize(
    ("build", "visible", "devices", "problem"),
    [
        (CPU, 0, (0, 1), "must be null without a GPU, got [0, 1], and torch 2.13.0+cpu is a CPU-only build; set per_device instead"),
        (CUDA, 4, (), "must name GPUs, each once, all by ordinal or all by UUID, got []; correct it, or give null"),
        (CUDA, 4, (1, 1), "must name GPUs, each once, all by ordinal or all by UUID, got [1, 1]; correct it, or give null"),
        (CUDA, 4, (1, "GPU-8f"), "must name GPUs, each once, all by ordinal or all by UUID, got [1, GPU-8f]; correct it, or give null"),
        (CUDA, 1, (0, 7), "must name GPUs of this machine, got [0, 7], of which torch finds 1; correct it, or give null"),
    ],
)  # fmt: skip
def test_unusable_gpus_are_refused(build: TorchBuild, visible: int, devices: Any, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(build, visible, {}, devices=devices)
    assert caught.value.problems == (f"`hydra.launcher.devices` {problem}",)


def test_bad_options_and_a_chosen_gpu_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Pool(options(per_device=0, devices=[-1])).launch([["a=1", "device.visible=[0]"]], 0, tmp_path)
    assert caught.value.problems == (
        "`hydra.launcher.devices` must be a list, each item an integer of at least 0 or a string, or null, got [-1]",
        "`hydra.launcher.per_device` must be an integer from 1 to 1024, got 0",
        "`device.visible` must be left to hydra/launcher=pool, which gives every trial its GPU, got a value; "
        "name the GPUs with hydra.launcher.devices",
    )
    assert not list(tmp_path.iterdir())


# The queue, with children that follow their arguments and log them.

CHILD = """\
#!{python} -S
import json, os, signal, sys, time
given = dict(argument.partition("=")[::2] for argument in sys.argv if "=" in argument)
place = given.get("run_dir", given.get("resume")).strip("'")
number = place.rpartition("/")[2]
with open({log!r}, "a") as log:
    log.write(json.dumps([int(number), sys.argv[1:], os.environ.get("SLOT"), os.getpgrp()]) + "\\n")
caught = []
def catch(signal_number, frame):
    caught.append(signal_number)
    if given.get("again") and len(caught) == 1:
        os.kill(os.getppid(), signal.SIGINT)
for signal_number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(signal_number, catch)
if "open" in given:
    open(given["open"], "w").close()
if "read" in given:
    open(given["read"]).close()
if "kill" in given:
    os.kill(os.getpid(), int(given["kill"]))
while len(caught) < int(given.get("signals", 0)):
    signal.pause()
if caught:
    time.sleep(float(given.get("linger", 0)))
    with open({log!r} + number, "w") as log:
        json.dump(caught, log)
    sys.exit(128 + caught[0])
sys.stderr.write(given.get("say", "").replace("|", "\\n"))
if "exit" not in given or "begun" in given:
    os.makedirs(place, exist_ok=True)
    with open(place + "/summary.json", "w") as file:
        metrics = {{"train/loss": float(number), "valid/rmse": "nan"}}
        rest = {{"steps": 1, "parameters_sha256": "", "timing": {{"seconds": 1.0}}}}
        json.dump({{"metrics": metrics, **rest}}, file)
    with open(place + "/run.json", "w") as file:
        json.dump({{"status": "failed" if "exit" in given else "finished"}}, file)
sys.exit(int(given.get("exit", 0)))
"""


class Children:
    """A pool whose interpreter is a script, and the log of its children."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log, self.sweep = folder / "log", folder / "sweep"
        self.sweep.mkdir()
        self.script = folder / "python"
        self.script.write_text(CHILD.format(python=sys.executable, log=str(self.log)))
        self.script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(self.script))
        self.ended: list[Outcome] = []
        self.folder = folder

    def pool(self, count: int) -> Pool:
        pool = Pool(options())
        pool.slots = [{**os.environ, "SLOT": str(k)} for k in range(count)]
        return pool

    def launch(self, jobs: Sequence[Sequence[str]], count: int = 2, first: int = 0) -> list[JobReturn]:
        return self.pool(count).launch(jobs, first, self.sweep, self.ended.append)

    def fifo(self, name: str) -> str:
        os.mkfifo(self.folder / name)
        return str(self.folder / name)

    @property
    def notes(self) -> dict[int, list[Any]]:
        """Number → arguments, slot and process group of every child, in the order in which they started."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        assert len({number for number, *_ in lines}) == len(lines), "run twice"
        return {number: note for number, *note in lines}

    def caught(self, number: int) -> list[int]:
        """Return the signals that a child received."""
        return cast("list[int]", json.loads(Path(f"{self.log}{number}").read_text()))


@pytest.fixture
def children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Children:
    return Children(tmp_path, monkeypatch)


def test_results_come_in_the_order_of_the_jobs(children: Children) -> None:
    returns = children.launch([["a=1"], ["b='x, y'"], ["exit=1", "say=error: no"], ["c=3"]], first=10)
    assert [returned.status is JobStatus.COMPLETED for returned in returns] == [True, True, False, True]
    assert [returned.overrides for returned in returns] == [
        ("a=1",),
        ("b='x, y'",),
        ("exit=1", "say=error: no"),
        ("c=3",),
    ]
    assert [returned.working_dir for returned in returns] == [str(children.sweep / str(n)) for n in (10, 11, 12, 13)]
    assert returns[3].return_value["train/loss"] == 13.0
    assert returns[3].return_value["valid/rmse"] != returns[3].return_value["valid/rmse"]  # nan is a text in JSON
    assert children.notes[11][0] == ["-m", "runner", "b='x, y'", f"run_dir={children.sweep}/11"]
    assert sorted(outcome.number for outcome in children.ended) == [10, 11, 12, 13]


def test_a_free_slot_takes_the_next_trial(children: Children) -> None:
    """Trial 0 ends only after trial 4 has started: in batches of two it never would."""
    meeting = children.fifo("meeting")
    returns = children.launch([[f"read={meeting}"], ["a=1"], ["a=2"], ["a=3"], [f"open={meeting}"]])
    assert all(returned.status is JobStatus.COMPLETED for returned in returns)
    on = {number: slot for number, (_, slot, _) in children.notes.items()}
    assert {on[1], on[2], on[3], on[4]} == {"0", "1"} - {on[0]}


def test_a_finished_trial_is_not_run_again_and_a_started_one_is_resumed(children: Children) -> None:
    children.launch([["a=0"], ["exit=1", "begun=1"], ["exit=2"]])
    children.log.unlink()
    returns = children.launch([["a=0"], ["a=1"], ["a=2"]])
    assert children.notes[1][0] == ["-m", "runner", f"resume='{children.sweep}/1'"]
    assert children.notes[2][0] == ["-m", "runner", "a=2", f"run_dir={children.sweep}/2"]
    assert set(children.notes) == {1, 2}
    assert [returned.return_value["train/loss"] for returned in returns] == [0.0, 1.0, 2.0]


def test_the_launcher_waits_for_a_trial_that_a_killed_sweep_left_running(children: Children) -> None:
    """Trial 1 is locked until trial 0 has ended; by then its files say that it has finished."""
    directory = children.sweep / "1"
    directory.mkdir()
    held = lock(directory)

    def ended(outcome: Outcome) -> None:
        children.ended.append(outcome)
        if outcome.number == 0:
            (directory / "run.json").write_text('{"status": "finished"}')
            (directory / "summary.json").write_text(
                json.dumps(
                    {"metrics": {"train/loss": 5}, "steps": 1, "parameters_sha256": "", "timing": {"seconds": 1}}
                )
            )
            unlock(held)

    returns = children.pool(2).launch([["a=0"], ["a=1"]], 0, children.sweep, ended)
    assert returns[1].return_value == {"train/loss": 5.0}
    assert [outcome.number for outcome in children.ended] == [0, 1]
    assert set(children.notes) == {0}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["exit=1", "say=note: hm|error: training diverged at step 7|"], "training diverged at step 7"),
        (["exit=1", "say=Traceback|  File|KeyError: 'x'|"], "KeyError: 'x'"),
        (["exit=3"], "its process ended with exit code 3 and no message"),
        ([f"kill={signal.SIGKILL:d}"], "its process was killed by SIGKILL, as the kernel does when memory is short"),
        ([f"kill={signal.SIGSEGV:d}"], "its process was killed by SIGSEGV"),
    ],
)
def test_the_reason_of_a_failed_trial_while_the_others_continue(
    arguments: list[str], reason: str, children: Children
) -> None:
    failed, other = children.launch([arguments, ["a=1"]])
    assert other.return_value["train/loss"] == 1.0
    assert failed.status is JobStatus.FAILED
    with pytest.raises(RunFailed) as caught:
        assert failed.return_value
    assert str(caught.value) == reason
    assert Outcome(0, "failed", reason=reason) in children.ended
    assert not (children.sweep / "0").exists()


def test_an_input_that_a_trial_refuses_is_refused_as_such(children: Children) -> None:
    refused, other = children.launch([["exit=2", "say=error: `a` is not a key|error: `b` is not a key|"], ["a=1"]])
    assert other.return_value["train/loss"] == 1.0
    with pytest.raises(ConfigError) as caught:
        assert refused.return_value
    assert caught.value.problems == ("`a` is not a key", "`b` is not a key")
    assert [outcome.reason for outcome in children.ended if outcome.number == 0] == [
        "`a` is not a key; `b` is not a key"
    ]


def test_a_traceback_is_kept_in_the_run_directory(children: Children) -> None:
    children.launch([["exit=1", "begun=1", "say=Traceback|KeyError: 'x'|"]])
    assert (children.sweep / "0/stderr.log").read_text() == "Traceback\nKeyError: 'x'\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_every_trial_once_and_no_other_starts(number: int, children: Children) -> None:
    """It is sent when trial 1 has ended, which is after trial 0 has started to wait for it."""
    meeting = children.fifo("meeting")
    pool = children.pool(2)

    def ended(outcome: Outcome) -> None:
        children.ended.append(outcome)
        if outcome.number == 1:
            os.kill(os.getpid(), number)

    jobs = [[f"open={meeting}", "signals=1", "linger=0.35"], [f"read={meeting}"], ["signals=1"], ["a=3"], ["a=4"]]
    with pytest.raises(Interrupted) as caught:
        pool.launch(jobs, 0, children.sweep, ended)
    assert caught.value.exit_code == 128 + number
    assert str(caught.value).startswith("stopped after 1 of 5 trials; the others are saved")
    # Trial 0 runs for three more ticks, in which it gets no second signal, nor the terminal's own.
    assert children.caught(0) == [number]
    assert children.notes[0][2] != os.getpgrp()
    assert [outcome.state for outcome in children.ended] == ["finished", *["interrupted"] * (len(children.ended) - 1)]
    assert not {3, 4} & set(children.notes)


def test_a_second_signal_is_passed_on(children: Children) -> None:
    meeting = children.fifo("meeting")

    def ended(outcome: Outcome) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="at once by a second signal"):
        children.pool(2).launch(
            [[f"open={meeting}", "signals=2", "again=1"], [f"read={meeting}"]], 0, children.sweep, ended
        )
    assert children.caught(0) == [signal.SIGINT, signal.SIGINT]


def test_an_exception_in_the_launcher_stops_all_trials(children: Children) -> None:
    meeting = children.fifo("meeting")

    def ended(outcome: Outcome) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        children.pool(2).launch([[f"open={meeting}", "signals=1"], [f"read={meeting}"]], 0, children.sweep, ended)
    assert children.caught(0) == [signal.SIGTERM]


def test_groups_of_the_user_reach_the_trials(children: Children) -> None:
    launcher = Plugins.instance().instantiate_launcher(
        cast("HydraContext", None), cast("Any", None), hydra_config(children.sweep, searchpath=["runner://my conf"])
    )
    launcher.launch([["a=1"]], 0)
    assert children.notes[0][0][:4] == ["-m", "runner", "--config-dir", "my conf"]


@pytest.mark.parametrize(
    ("build", "devices", "script", "expected"),
    [
        (CUDA, None, "echo 4", 4),
        (CUDA, (1, 2), 'echo "$CUDA_VISIBLE_DEVICES" | tr -d ,', 12),
        (ROCM, (3,), 'echo "$HIP_VISIBLE_DEVICES"', 3),
        (CUDA, None, "echo no driver; exit 1", 0),
        (CPU, None, "echo 4", 0),
    ],
)
def test_gpus_are_counted_in_a_separate_process(
    build: TorchBuild, devices: Any, script: str, expected: int, children: Children
) -> None:
    children.script.write_text(f"#!/bin/sh\n{script}\n")
    assert visible_gpus(devices, os.environ, build) == expected


# Real trials, through Hydra's plugins.


def hydra_config(directory: Path, searchpath: Sequence[str] = ()) -> DictConfig:
    launcher = OmegaConf.load(CONF / "hydra/launcher/pool.yaml")
    launcher.per_device = 2
    hydra = {"launcher": launcher, "sweep": {"dir": str(directory)}, "searchpath": list(searchpath)}
    return OmegaConf.create({"hydra": hydra})


def record(directory: Path) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads((directory / "run.json").read_text()))


def test_real_trials(tmp_path: Path) -> None:
    sweep = tmp_path / "a,b 'c'"
    sweep.mkdir()
    launcher = Plugins.instance().instantiate_launcher(
        cast("HydraContext", None), cast("Any", None), hydra_config(sweep)
    )
    jobs = [[*LINREG, f"optimizer.lr={lr}"] for lr in ("1", "1e-4", "2e-4")]
    first = launcher.launch(jobs, 0)
    assert [returned.status is JobStatus.COMPLETED for returned in first] == [False, True, True]
    with pytest.raises(RunFailed, match="training diverged at step 7: the loss became inf with lr=1"):
        assert first[0].return_value
    records = [record(sweep / str(number)) for number in range(3)]
    assert [found["status"] for found in records] == ["failed", "finished", "finished"]
    assert [found["threads"] for found in records] == [1] * 3
    for number in (1, 2):
        summary = json.loads((sweep / str(number) / "summary.json").read_text())
        assert first[number].return_value == summary["metrics"]
    again = launcher.launch(jobs, 0)
    assert [returned.return_value for returned in again[1:]] == [returned.return_value for returned in first[1:]]
    assert [record(sweep / str(number))["resumed"] for number in range(3)] == [1, 0, 0]


def test_a_search_over_real_trials(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sweep = tmp_path / "sweep"
    arguments = [
        "hydra/sweeper=optuna",
        "hydra/launcher=pool",
        "hydra.sweeper.n_trials=2",
        "hydra.launcher.per_device=2",
    ]
    lr = "optimizer.lr=tag(log, interval(1e-7,1e-4))"
    assert main(["-m", *LINREG, lr, *arguments, f"run_dir={sweep}"]) == 0, capfd.readouterr().err
    manifest = json.loads((sweep / "sweep.json").read_text())
    assert [member["state"] for member in manifest["members"]] == ["finished"] * 2
    assert (manifest["metric"], manifest["directions"]) == ("train/rmse", ["minimize"])
    rmse = [json.loads((sweep / n / "summary.json").read_text())["metrics"]["train/rmse"] for n in "01"]
    assert rmse[0] != rmse[1]
    backend = JournalFileBackend(str(sweep / "optuna.log"))
    study = optuna.load_study(study_name="sweep", storage=optuna.storages.JournalStorage(backend))
    assert [trial.value for trial in study.trials] == rmse
    assert [member["values"] for member in manifest["members"]] == [trial.params for trial in study.trials]
