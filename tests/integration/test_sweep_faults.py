"""Sweeps that are stopped, killed, refused or damaged: nothing is lost, run twice, or left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.core.plugins import Plugins

import faults
import runner
from runner import cli
from runner.runs import checkpoint
from runner.runs.directory import lock, unlock
from runner.runs.sinks.jsonl import read_rows
from runner.sweep.reporter import ManifestReporter
from runner.training.recorder import RunRecorder

QUICK = ["device=cpu", "device.threads=1"]
SIX = ["+experiment=linreg", *QUICK, "optimizer.lr=1e-5,1e-4", "seeds=3", "train.steps=40", "record.every_steps=7"]
"""Six trials of one program."""

TWO_PROGRAMS = ["+experiment=linreg", *QUICK, "train.steps=20,40", "seeds=2", "record.every_steps=7"]
"""Trials 0 and 1 end at step 20; then 2 and 3 start."""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def read(path: Path | str) -> Any:
    return json.loads(Path(path).read_text())


def sweep(*arguments: str) -> int:
    """Return the exit code of `python -m runner -m`."""
    return cli.main(["-m", *arguments])


def states(directory: str = "sweep") -> list[str]:
    return [member["state"] for member in read(f"{directory}/sweep.json")["members"]]


def records(directory: str = "sweep") -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in Path(directory).glob("*/run.json")}


def answers(directory: str) -> dict[str, tuple[str, list[dict[str, Any]]]]:
    """Return for every trial the hash of its parameters, and its rows."""
    return {
        path.parent.name: (
            read(path)["parameters_sha256"],
            [
                {k: v for k, v in row.items() if k != "samples_per_second"}
                for row in read_rows(path.with_name("metrics.jsonl"))
            ],
        )
        for path in Path(directory).glob("*/summary.json")
    }


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, *arguments: str, number: int = signal.SIGINT) -> None:
    """Run a sweep that gets a signal at a step."""
    with monkeypatch.context() as patch:
        fired = faults.at_step(patch, step, lambda: os.kill(os.getpid(), number))
        assert sweep(*arguments, "run_dir=sweep") == 128 + number
    assert fired == [step]


def killed(arguments: Sequence[str], arm: Callable[[pytest.MonkeyPatch], object]) -> None:
    """Run a sweep in a process that is killed at the point that `arm` sets."""
    with pytest.MonkeyPatch.context() as patch:
        arm(patch)
        status = faults.in_child(lambda: sweep(*arguments, "run_dir=sweep"))
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# ------------------------------------------------------------------------------------------------------------- stopped


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_every_trial_and_all_are_resumed(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(*SIX, "run_dir=whole") == 0
    stop_at(17, monkeypatch, *SIX, number=number)
    printed = capsys.readouterr()
    assert printed.err == f"stopped after step 17; the state is saved ({signal.Signals(number).name})\n"
    assert "resume with: python -m runner -m resume=sweep\n" in printed.out
    manifest = read("sweep/sweep.json")
    assert (manifest["status"], states()) == ("interrupted", ["interrupted"] * 6)
    for lane in range(6):
        record, loaded = read(f"sweep/{lane}/run.json"), checkpoint.load(Path(f"sweep/{lane}/checkpoints"))
        assert record["status"] == "interrupted"
        assert loaded is not None
        assert loaded.step == 17
    assert sweep("resume=sweep") == 0
    assert answers("sweep") == answers("whole")
    assert {record["resumed"] for record in (read(f"sweep/{lane}/run.json") for lane in range(6))} == {1}
    assert (states(), read("sweep/sweep.json")["resumed"]) == (["finished"] * 6, 1)


def test_finished_trials_are_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sweep(*TWO_PROGRAMS, "run_dir=whole") == 0
    stop_at(30, monkeypatch, *TWO_PROGRAMS)
    assert states() == ["finished", "finished", "interrupted", "interrupted"]
    before = records()
    assert sweep("resume=sweep") == 0
    assert answers("sweep") == answers("whole")
    after = records()
    assert [before[lane] == after[lane] for lane in "0123"] == [True, True, False, False]
    assert sweep("resume=sweep") == 0
    assert records() == after, "a finished sweep has nothing left to do"


def test_trials_that_had_not_started_start_on_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sweep(*TWO_PROGRAMS, "run_dir=whole") == 0
    stop_at(10, monkeypatch, *TWO_PROGRAMS)
    assert states() == ["interrupted", "interrupted", "waiting", "waiting"]
    assert not Path("sweep/2").exists()
    assert sweep("resume=sweep") == 0
    assert answers("sweep") == answers("whole")


def test_a_sweep_is_stopped_several_times(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sweep(*SIX, "run_dir=whole") == 0
    stop_at(5, monkeypatch, *SIX)
    for step in (6, 14, 39):
        with monkeypatch.context() as patch:
            faults.at_step(patch, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
            assert sweep("resume=sweep") == 143
    assert sweep("resume=sweep") == 0
    assert answers("sweep") == answers("whole")


def test_a_signal_ends_the_launcher_of_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes an exception for a failed trial, and would start the next one."""
    arguments = [*TWO_PROGRAMS, "hydra/launcher=basic"]
    assert sweep(*arguments, "run_dir=whole") == 0
    stop_at(30, monkeypatch, *arguments)
    assert states() == ["finished", "finished", "interrupted", "waiting"]
    before = records()
    assert sweep("resume=sweep") == 0
    assert answers("sweep") == answers("whole")
    assert [before[lane] == records()[lane] for lane in "01"] == [True, True]


def test_a_signal_before_any_trial_starts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("runner.sweep.launcher.plan", lambda *_: signal.raise_signal(signal.SIGINT))
        assert sweep(*SIX, "run_dir=sweep") == 130
    printed = capsys.readouterr()
    assert printed.err == "stopped; what was saved is kept (SIGINT)\n"
    assert "resume with: python -m runner -m resume=sweep\n" in printed.out
    assert sweep("resume=sweep") == 0
    assert states() == ["finished"] * 6


def test_sigterm_ends_other_launchers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Between trials, or while their processes work, only the sweep handles it."""
    launcher = Plugins.instance().class_name_to_class["hydra._internal.core_plugins.basic_launcher.BasicLauncher"]
    with monkeypatch.context() as patch:
        patch.setattr(launcher, "launch", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
        assert sweep(*SIX, "hydra/launcher=basic", "run_dir=sweep") == 143
    assert capsys.readouterr().err == "stopped; what was saved is kept (SIGTERM)\n"
    assert (read("sweep/sweep.json")["status"], states()) == ("interrupted", ["waiting"] * 6)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_process_ends_with_the_code_of_the_signal(number: int, code: int) -> None:
    """Another process gets a real signal once it trains."""
    arguments = ["+experiment=linreg", *QUICK, "train.steps=100000000", "seeds=4", "run_dir=sweep"]
    command = [sys.executable, "-u", "-m", "runner", "-m", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while "vmapped" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == code
    assert "resume with: python -m runner -m resume=sweep" in out
    assert "the state is saved" in err
    assert states() == ["interrupted"] * 4


# -------------------------------------------------------------------------------------------------------------- killed


@pytest.mark.parametrize("every", ["null", "10"])
def test_killed_during_training(every: str) -> None:
    """At most the steps since the last checkpoint are lost. Without a checkpoint all trials start again."""
    arguments = [*SIX, f"checkpoint.every_steps={every}"]
    assert sweep(*arguments, "run_dir=whole") == 0
    killed(arguments, lambda patch: faults.at_step(patch, 25, die))
    assert read("sweep/sweep.json")["status"] == "running"
    steps = {loaded.step if (loaded := checkpoint.load(p)) else 0 for p in Path("sweep").glob("*/checkpoints")}
    assert steps <= {0 if every == "null" else 20}
    assert sweep("resume=sweep") == 0
    assert answers("sweep") == answers("whole")


def test_killed_before_any_trial_starts() -> None:
    assert sweep(*SIX, "run_dir=whole") == 0
    killed(SIX, lambda patch: patch.setattr(ManifestReporter, "began", die))
    assert states() == ["waiting"] * 6
    assert sweep("resume=sweep") == 0
    assert answers("sweep") == answers("whole")


def test_killed_between_the_files_of_a_program_and_the_manifest() -> None:
    killed(SIX, lambda patch: patch.setattr(ManifestReporter, "ended", die))
    assert states() == ["running"] * 6
    before = records()
    assert sweep("resume=sweep") == 0
    assert states() == ["finished"] * 6
    assert records() == before, "run again, though its files exist"


def test_killed_when_some_trials_of_a_program_have_their_files() -> None:
    assert sweep(*SIX, "run_dir=whole") == 0
    finish, finished = RunRecorder.finish, []

    def third_time(self: RunRecorder, *arguments: Any) -> Any:
        finished.append(self)
        return die() if len(finished) == 3 else finish(self, *arguments)

    killed(SIX, lambda patch: patch.setattr(RunRecorder, "finish", third_time))
    before = records()
    assert sorted(read(f"sweep/{lane}/run.json")["status"] for lane in range(6)) == ["finished"] * 2 + ["running"] * 4
    assert sweep("resume=sweep") == 0
    assert answers("sweep") == answers("whole")
    untouched = [lane for lane, content in records().items() if content == before[lane]]
    assert len(untouched) == 2


def test_a_full_disk_ends_the_sweep_with_an_error() -> None:
    import resource

    def full() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    def work() -> None:
        patch = pytest.MonkeyPatch()
        faults.at_step(patch, 27, full)
        os._exit(sweep(*SIX, "checkpoint.every_steps=10", "run_dir=sweep"))

    assert os.waitstatus_to_exitcode(faults.in_child(work)) == 1
    for lane in range(6):
        loaded = checkpoint.load(Path(f"sweep/{lane}/checkpoints"))
        assert loaded is not None
        assert loaded.step == 20
    assert sweep("resume=sweep") == 0
    assert sweep(*SIX, "checkpoint.every_steps=10", "run_dir=whole") == 0
    assert answers("sweep") == answers("whole")


# ------------------------------------------------------------------------------------------------------------- damaged


def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a sweep of six trials with checkpoints of steps 10 and 17."""
    stop_at(17, monkeypatch, *SIX, "checkpoint.every_steps=10", "checkpoint.keep=null")


def test_a_damaged_checkpoint_costs_only_its_trial_some_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(*SIX, "checkpoint.every_steps=10", "run_dir=whole") == 0
    interrupted(monkeypatch)
    Path("sweep/3/checkpoints/step_17/state.pt").write_bytes(b"damaged")
    assert sweep("resume=sweep") == 0
    assert answers("sweep") == answers("whole")
    assert "the checkpoint `sweep/3/checkpoints/step_17` is not used: " in Path("sweep/3/run.log").read_text()


def test_a_trial_without_an_intact_checkpoint_fails_and_the_others_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(monkeypatch)
    for path in Path("sweep/3/checkpoints").glob("step_*/state.pt"):
        path.write_bytes(b"damaged")
    assert sweep("resume=sweep") == 1
    assert states() == ["finished"] * 3 + ["failed"] + ["finished"] * 2
    reason = read("sweep/sweep.json")["members"][3]["reason"]
    assert "`sweep/3/checkpoints` has no intact checkpoint; restore one from a copy" in reason
    shutil.rmtree("sweep/3")
    assert sweep("resume=sweep") == 0
    assert states() == ["finished"] * 6


def test_a_trial_whose_results_are_lost_is_run_again() -> None:
    assert sweep(*SIX, "run_dir=sweep") == 0
    whole, before = answers("sweep"), records()
    shutil.rmtree("sweep/2")
    Path("sweep/4/summary.json").unlink()
    assert sweep("resume=sweep") == 0
    assert answers("sweep") == whole
    assert {lane for lane, content in records().items() if content != before[lane]} == {"2", "4"}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"members": 3}', '{"members": [{}]}'])
def test_an_unreadable_manifest_is_refused(content: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("sweep").mkdir()
    Path("sweep/sweep.json").write_text(content)
    assert sweep("resume=sweep") == 2
    what = " must be the manifest of a sweep, but cannot be read" if len(content) < 3 else ": `name` is missing"
    assert capsys.readouterr().err.startswith(f"error: sweep/sweep.json{what}")
    assert Path("sweep/sweep.json").read_text() == content


# ------------------------------------------------------------------------------------------------------------- refused


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Check that a refused sweep leaves everything as it was, also an older run of the same name."""
    Path("runs/linreg/older").mkdir(parents=True)
    Path("runs/linreg/older/note").write_text("mine")
    before = tree()
    yield
    assert tree() == before


def tree() -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}


RATES = [f"{1 + i}e-6" for i in range(256)]


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["optimizer.lrr=1,2"], ["`optimizer.lrr` is not a key; did you mean `optimizer.lr`?"]),
        (["optimiser=sgd,adam"], ["`optimiser` is not a key; did you mean `optimizer`?"]),
        (["optimizer=sgd,adamm"], ["trial 1: `optimizer` must be one of adam, adamw, custom, lbfgs, lm, lstsq, momentum, sgd, got 'adamm'; did you mean adam?"]),
        ([f"optimizer.lr={','.join([*RATES[:158], '-1', *RATES[159:]])}", "seed=0,1"], ["trial 316 and 1 more: `optimizer.lr` must be a finite number from 0 to 1e+38, got -1"]),
        ([f"optimizer.lr={','.join(RATES)}", "data.noise=1,-2"], ["trial 1 and 255 more: `data.noise` must be a finite number of at least 0, got -2"]),
        (["optimizer.lr=-1,-2", "data.noise=-3"], ["`data.noise` must be a finite number of at least 0, got -3", "`optimizer.lr` must be a finite number from 0 to 1e+38, got -1"]),
        (["train.steps=10,0", "seed=range(0,2000)"], ["trial 2000 and 1999 more: `train.steps` must be an integer of at least 1 or null, got 0"]),
        (["seed=range(0,5)", "optimizer.lr=1,2,3", "sweep.max_trials=14"], ["`sweep.max_trials` must be at least the number of trials (5 x 3 = 15), got 14; give fewer values, or sweep.max_trials=15"]),
        (["seeds=1000000000000"], ["`sweep.max_trials` must be at least the number of trials (1,000,000,000,000), got 10,000; give fewer values"]),
        (["seed=1,2", "seeds=4"], ["`seeds` is short for a range of `seed`, which is swept as well; leave one of them out"]),
        (["seeds=2,3"], ["`seeds` must be one value for the whole sweep, got 2,3; write seeds=VALUE"]),
        (["run_dir=a,b"], ["`run_dir` must be one value for the whole sweep, got a,b; put a string with commas in two pairs of quotes, one for the shell: \"run_dir='a,b'\""]),
        (["seeds=0"], ["`seeds` must be an integer of at least 1, got 0; write seeds=8"]),
        (["optimizer.lr=interval(0,1)"], ["`optimizer.lr` must be a list of values for a grid, got interval(0,1); write optimizer.lr=1,2,3 or range(…), or search with hydra/sweeper=optuna"]),
        (["seed=range(5,1)", "data.noise=shuffle(range(1.0,inf))"], ["`seed` must have values that can be counted, got range(5,1); correct its ends", "`data.noise` must have values that can be counted, got shuffle(range(1.0,inf)); correct its ends"]),
        (["hydra.sweep.dir=x", "seeds=2"], ["`hydra.sweep.dir` has no effect in a sweep; use run_dir=… for the directory, or --config-dir to add groups"]),
        (["hydra/launcher=vmap,basic", "seeds=2"], ["`hydra/launcher` must be one value for the whole sweep, got vmap,basic; write hydra/launcher=VALUE"]),
        (["hydra/launcher=nope", "seeds=2"], ["`hydra/launcher` must be one of vmap, pool, basic, joblib, submitit_local, submitit_slurm, ray, got 'nope'"]),
        (["strategy=fsdp", "seeds=2"], ["trial 0: `strategy`=fsdp must have at least 2 processes to shard the model over, got 1"]),
        (["dtype=float16", "device=cpu", "seeds=2"], ["`dtype` must not be float16 with `device`=cpu"]),
        (["hydra/launcher=basic", "optimizer.lr=1,-1"], ["trial 1: `optimizer.lr` must be"]),
        (["hydra/launcher=basic", "hydra/sweeper=basic", "optimizer.lr=1,-1"], ["trial 1: `optimizer.lr` must be"]),
        (["hydra/launcher=pool", "device.visible=[0]", "seeds=2"], ["`device.visible` must be left to hydra/launcher=pool"]),
        (["run_dir=/proc/sweep", "seeds=2"], ["`run_dir` must be a new or empty directory for the sweep, got /proc/sweep: No such file or directory; give another one"]),
        (["run_dir=runs/linreg", "seeds=2"], ["`run_dir` must be a new or empty directory for the sweep, got runs/linreg: it exists and is not empty; give another one"]),
        (["run_dir=runs/linreg/older/note/sweep", "seeds=2"], ["`run_dir` must be a new or empty directory for the sweep, got runs/linreg/older/note/sweep: File exists; give another one"]),
        (["resume=runs/linreg/older"], ["`resume` must be a sweep directory with -m, got 'runs/linreg/older' without sweep.json; give the directory of a sweep, or leave out -m to resume one run"]),
        (["rerun", "runs/linreg/older", "seeds=2"], ["`rerun` must not be given with -m, because it repeats one run; remove one of them"]),
    ],
    ids=lambda value: value[0][:40],
)  # fmt: skip
def test_a_sweep_that_cannot_be_run_is_refused(
    arguments: Sequence[str], messages: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    if not arguments[0].startswith(("resume", "rerun")):
        arguments = ["+experiment=linreg", *QUICK, "train.steps=3", *arguments]
    assert sweep(*arguments) == 2
    errors = [
        line.removeprefix("error: ") for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")
    ]
    assert len(errors) == len(messages), errors
    for error, message in zip(errors, messages, strict=True):
        assert error.startswith(message)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("launcher", ["vmap", "pool", "basic", "joblib"])
def test_a_sweep_in_which_no_trial_can_be_built_is_refused(launcher: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = ["data=csv", "data.path=absent.csv", "data.target=y", *QUICK]
    assert sweep(*table, "optimizer.lr=0.1,0.01", f"hydra/launcher={launcher}") == 2
    message = "`data.path` must be a readable file, but 'absent.csv' does not exist; give its path with data.path=PATH, relative to the working directory"
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")] == [f"error: {message}"]


@pytest.mark.parametrize("name", ["linreg", "never_before"])
def test_no_new_directory_is_left(name: str) -> None:
    assert sweep("+experiment=linreg", *QUICK, f"name={name}", "optimizer.lr=1,-1") == 2
    assert not list(Path().iterdir())


def test_a_directory_in_use_is_not_changed(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(*SIX, "run_dir=sweep") == 0
    runner.run("linreg", [*QUICK, "train.steps=3", "record.plots=false", "run_dir=run"])
    before = tree()
    for directory in ("sweep", "run", "sweep/3"):
        capsys.readouterr()
        assert sweep(*SIX, f"run_dir={directory}") == 2
        assert f"for the sweep, got {directory}: it exists and is not empty" in capsys.readouterr().err
    assert tree() == before


# --------------------------------------------------------------------------------------------------- resume refused


def test_one_sweep_is_not_run_by_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second process starts while the first one trains."""
    codes = []

    def second() -> None:
        codes.append(os.waitstatus_to_exitcode(faults.in_child(lambda: os._exit(sweep("resume=sweep")))))

    faults.at_step(monkeypatch, 17, second)
    assert sweep(*SIX, "run_dir=sweep") == 0
    assert codes == [2]
    assert (states(), read("sweep/sweep.json")["resumed"]) == (["finished"] * 6, 0)


def test_a_sweep_in_use_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(*SIX, "run_dir=sweep") == 0
    held = lock(Path("sweep"))
    try:
        assert sweep("resume=sweep") == 2
    finally:
        unlock(held)
    expected = "error: sweep must not be in use, but another process is writing to it; wait for it to end, or start a new run\n"
    assert capsys.readouterr().err == expected


def test_a_run_and_a_sweep_are_not_confused(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(*SIX, "run_dir=sweep") == 0
    before = tree()
    capsys.readouterr()
    assert sweep("resume=sweep/3") == 2
    assert capsys.readouterr().err == (
        "error: `resume` must be a sweep directory with -m, got 'sweep/3' without sweep.json; give the directory of a sweep, "
        "or leave out -m to resume one run\n"
    )
    assert cli.main(["resume=sweep"]) == 2
    assert capsys.readouterr().err == (
        "error: `resume` must be a run directory, got 'sweep', which is a sweep directory; add -m to resume the sweep\n"
    )
    assert tree() == before


@pytest.mark.parametrize(
    "argument", ["seed=3", "optimizer.lr=1,2", "train.steps=80", "seeds=5", "run_dir=other", "hydra/sweeper=optuna"]
)
def test_trials_cannot_be_changed_on_resume(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("+experiment=linreg", *QUICK, "seeds=2", "train.steps=3", "run_dir=sweep") == 0
    before = tree()
    capsys.readouterr()
    assert sweep("resume=sweep", argument) == 2
    name = argument.partition("=")[0]
    assert capsys.readouterr().err == (
        f"error: `{name}` cannot be changed when a sweep is resumed: the trials would change; leave it out, "
        "or start a new sweep\n"
    )
    assert tree() == before


def test_a_changed_configuration_file_is_found_on_resume(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path("own/experiment/mine.yaml")
    file.parent.mkdir(parents=True)
    text = (
        "# @package _global_\n# Mine.\ndefaults:\n  - override /data: line\nname: mine\ndata: {noise: 1.0, rows: 30}\n"
    )
    file.write_text(text)
    arguments = ["--config-dir", "own", "+experiment=mine", *QUICK, "seeds=3", "train.steps=30", "optimizer.lr=1e-5"]
    stop_at(17, monkeypatch, *arguments)
    file.write_text(text.replace("noise: 1.0", "noise: 2.0"))
    before = tree()
    capsys.readouterr()
    assert sweep("--config-dir", "own", "resume=sweep") == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[0] == (
        "error: trial 0 of sweep must have the same configuration as before, but it has changed; "
        "restore the files of conf/, or start a new sweep"
    )
    assert len(errors) == 3
    assert tree() == before
    file.write_text(text)
    assert sweep("--config-dir", "own", "resume=sweep") == 0
    assert states() == ["finished"] * 3


def test_the_way_trials_run_may_change_on_resume(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_at(17, monkeypatch, *SIX)
    assert sweep("resume=sweep", "sweep.audit=1", "sweep.memory_gib=1e-6") == 0
    assert {read(f"sweep/{lane}/run.json")["lanes"] for lane in range(6)} == {1}
    assert read("sweep/sweep.json")["audit"]["largest_difference"] <= 1e-4
    assert "repeated one at a time: largest difference" in capsys.readouterr().out
