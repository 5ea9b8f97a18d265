"""Promises that need processes of their own: masks, launchers and `doctor`. They start before the first test, one for each core."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from gpu.devices import DEVICE, HAS_GPU, REHEARSAL, SETTINGS, needs_device, needs_gpu, read_json, sha256, train

pytestmark = [needs_device, pytest.mark.timeout(300)]

one_gpu = pytest.mark.skipif(torch.cuda.device_count() != 1 or REHEARSAL, reason="needs exactly one GPU")

SECONDS = 90.0
"""Longest time of a process. On a GPU's machine all run side by side, and a test waits no longer than this."""

MASK = "HIP_VISIBLE_DEVICES" if torch.version.hip else "CUDA_VISIBLE_DEVICES"
MASKS = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
MARK = "RUNNER_TEST_CHILD"
"""Variable in the environment of every process; launchers hand it on to their workers."""

RUN = ("+experiment=mlp", "data.rows=60", "model.widths=[8]", "train.epochs=2", "deterministic=true", *SETTINGS)
ON_DEVICE, AUTO, OUT = f"device={DEVICE}", "device=auto", "run_dir=run"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--local-addr=localhost")


def uuid() -> str:
    """Return the UUID of the first GPU as a mask names it."""
    return f"GPU-{torch.cuda.get_device_properties(0).uuid}" if HAS_GPU else "GPU-00000000-0000-0000-0000-000000000000"


def commands() -> dict[str, tuple[Mapping[str, str], tuple[str, ...]]]:
    """Return name → variables and arguments of Python, of every process."""
    runner = ("-m", "runner")
    return {
        # Those of a rehearsal are first, as the others are not waited for before the end.
        "no mask": ({}, (*runner, *RUN, ON_DEVICE, OUT)),
        "misspelt": ({MASK[:-1]: "0"}, (*runner, *RUN, ON_DEVICE, OUT)),
        "torchrun": ({}, (*TORCHRUN, "--nproc-per-node=1", *runner, *RUN, ON_DEVICE, OUT)),
        "torchrun, exact": ({}, (*TORCHRUN, "--nproc-per-node=1", *runner, *RUN, ON_DEVICE, OUT, "strategy.reduction=exact")),
        "two": ({}, (*runner, *RUN, ON_DEVICE, OUT, "launch.processes=2")),
        "two, auto": ({}, (*runner, *RUN, AUTO, OUT, "launch.processes=2")),
        "two, torchrun": ({}, (*TORCHRUN, "--nproc-per-node=2", *runner, *RUN, ON_DEVICE, OUT)),
        "empty": ({MASK: ""}, (*runner, *RUN, AUTO, OUT)),
        "empty, requested": ({MASK: ""}, (*runner, *RUN, ON_DEVICE, OUT)),
        "minus one": ({MASK: "-1"}, (*runner, *RUN, AUTO, OUT)),
        "minus one, requested": ({MASK: "-1"}, (*runner, *RUN, ON_DEVICE, OUT)),
        "ordinal": ({MASK: "0"}, (*runner, *RUN, ON_DEVICE, OUT)),
        "ordinal beyond": ({MASK: "99"}, (*runner, *RUN, ON_DEVICE, OUT)),
        "uuid": ({MASK: uuid()}, (*runner, *RUN, ON_DEVICE, OUT)),
        "visible": ({}, (*runner, *RUN, ON_DEVICE, OUT, "device.visible=[0]")),
        "visible uuid": ({}, (*runner, *RUN, ON_DEVICE, OUT, f"device.visible=[{uuid()}]")),
        "visible beyond": ({}, (*runner, *RUN, AUTO, OUT, "device.visible=[99]")),
        "visible none": ({}, (*runner, *RUN, AUTO, OUT, "device.visible=[]")),
        "visible wins": ({MASK: "-1"}, (*runner, *RUN, ON_DEVICE, OUT, "device.visible=[0]")),
        "doctor": ({}, (*runner, "doctor")),
        "doctor, hidden": ({MASK: "-1"}, (*runner, "doctor")),
    }  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """A process that ended: its exit code, what it printed, and the folder that it ran in."""

    code: int
    printed: str
    folder: Path

    @property
    def run(self) -> Path:
        """Directory of its run."""
        return self.folder / "run"

    @property
    def errors(self) -> list[str]:
        """Error messages of all its processes."""
        return [line for line in self.printed.splitlines() if line.startswith("error: ")]

    @property
    def record(self) -> dict[str, Any]:
        """Return run.json of its run; the assertion shows what it printed."""
        assert self.code == 0, self.printed
        return read_json(self.run / "run.json")

    def assert_refused(self, *texts: str) -> None:
        """Assert that it ended with one error of one sentence that has these texts, and left nothing."""
        assert len(self.errors) == 1, self.printed
        assert all(text in self.errors[0] for text in texts), self.printed
        assert "Traceback" not in self.printed
        assert not self.run.exists()


Processes = Callable[[str], Ended]
"""Name -> the process, once it has ended."""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """Start all processes, and return a function that waits for the end of one of them."""
    root = tmp_path_factory.mktemp("processes")
    with ThreadPoolExecutor(max(2, len(os.sched_getaffinity(0)))) as pool:
        futures = {
            name: pool.submit(_run, arguments, variables, root / re.sub(r"\W+", "_", name))
            for name, (variables, arguments) in commands().items()
        }
        try:
            yield lambda name: futures[name].result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for pid in left_over(root):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _run(arguments: tuple[str, ...], variables: Mapping[str, str], folder: Path) -> Ended:
    """Run Python in a new folder, in which it finds the same packages as this process."""
    folder.mkdir()
    kept = {name: value for name, value in os.environ.items() if name not in MASKS or not variables}
    environment = {**kept, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), MARK: str(folder), **variables}
    with (folder / "printed.txt").open("wb") as printed:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
        )
    try:
        code = process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    return Ended(code, (folder / "printed.txt").read_text(encoding="utf-8", errors="replace"), folder)


def left_over(folder: Path) -> list[int]:
    """Return the ids of running processes that were started in or below a folder."""
    places = {int(process.name): _started_in(process) for process in Path("/proc").glob("[0-9]*")}
    return [pid for pid, place in places.items() if place is not None and place.is_relative_to(folder)]


def _started_in(process: Path) -> Path | None:
    """Return the folder that marks the environment of a process; None without one, or for another user's process."""
    try:
        variables = (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return None
    marks = [Path(os.fsdecode(text.partition(b"=")[2])) for text in variables if text.startswith(f"{MARK}=".encode())]
    return marks[0] if marks else None


# ---------------------------------------------------------------------------------------------------------------- masks


@needs_gpu
@pytest.mark.parametrize("name", ["empty", "minus one"])
def test_auto_uses_the_cpu_when_every_gpu_is_hidden(ended: Processes, name: str) -> None:
    assert ended(name).record["device"] == "cpu"
    assert "hides every GPU" in (ended(name).run / "run.log").read_text()
    assert ended(name).record["masks"] == {MASK: "" if name == "empty" else "-1"}


@needs_gpu
@pytest.mark.parametrize("name", ["empty, requested", "minus one, requested"])
def test_a_requested_gpu_that_is_hidden_is_refused(ended: Processes, name: str) -> None:
    assert ended(name).code == 2, ended(name).printed
    ended(name).assert_refused(f"`device={DEVICE}` needs a GPU", "hides every GPU", f"unset {MASK}")


@needs_gpu
@pytest.mark.parametrize("name", ["no mask", "ordinal", "uuid", "visible", "visible uuid"])
def test_a_mask_that_names_the_gpu_selects_it(ended: Processes, name: str) -> None:
    if torch.version.hip and "uuid" in name:
        pytest.skip("torch names AMD GPUs by another UUID than their driver")
    assert ended(name).record["device"] == DEVICE
    assert ended(name).record["device_name"] == torch.cuda.get_device_name(0)
    assert sha256(ended(name).run) == sha256(ended("no mask").run)
    assert "has no effect" not in ended(name).printed, ended(name).printed


@needs_gpu
def test_gpus_that_do_not_exist_are_refused(ended: Processes) -> None:
    for name, label in (("ordinal beyond", f"{MASK}='99'"), ("visible beyond", "device.visible=[99]")):
        assert ended(name).code == 2, ended(name).printed
        ended(name).assert_refused(label, "names no GPU of this machine", "set device=cpu")


@needs_gpu
def test_an_empty_list_of_visible_gpus_hides_all(ended: Processes) -> None:
    assert ended("visible none").record["device"] == "cpu"
    assert "device.visible=[] hides every GPU" in (ended("visible none").run / "run.log").read_text()


@needs_gpu
def test_the_configuration_wins_over_the_shell_and_says_so(ended: Processes) -> None:
    assert ended("visible wins").record["device"] == DEVICE
    assert "disagrees with device.visible=[0]; the configuration wins" in ended("visible wins").printed


def test_a_misspelt_variable_is_reported(ended: Processes) -> None:
    assert ended("misspelt").record["device"] == DEVICE
    assert f"'{MASK[:-1]}' ('0') has no effect; did you mean {MASK}?" in ended("misspelt").printed


# --------------------------------------------------------------------------------------------------------------- doctor


@needs_gpu
def test_doctor_names_the_gpu(ended: Processes) -> None:
    doctor = ended("doctor")
    assert doctor.code == 0, doctor.printed
    assert torch.cuda.get_device_name(0) in doctor.printed
    assert re.search(rf"^ok +device +device=auto uses {DEVICE}", doctor.printed, re.MULTILINE), doctor.printed


@needs_gpu
def test_doctor_names_the_mask_that_hides_the_gpu(ended: Processes) -> None:
    hidden = ended("doctor, hidden")
    assert hidden.code == 0, hidden.printed
    assert f"{MASK}='-1' hides every GPU" in hidden.printed


# ------------------------------------------------------------------------------------------------------------ launchers


@pytest.mark.parametrize(
    ("name", "more"), [("no mask", ()), ("torchrun", ()), ("torchrun, exact", ("strategy.reduction=exact",))]
)
def test_a_world_of_one_has_the_bits_of_a_run_alone(ended: Processes, name: str, more: tuple[str, ...]) -> None:
    """Another process, and under torchrun a group of NCCL or RCCL, or of gloo on the CPU."""
    assert ended(name).record["world_size"] == 1
    assert sha256(ended(name).run) == sha256(train("alone", *RUN, *more))


@one_gpu
@pytest.mark.parametrize("name", ["two", "two, auto", "two, torchrun"])
def test_two_processes_on_one_gpu_are_refused(ended: Processes, name: str) -> None:
    """NCCL refuses a GPU that two processes share, and so do we, before any of it starts."""
    assert ended(name).code == (1 if "torchrun" in name else 2), ended(name).printed  # torchrun has its own exit code
    assert len(ended(name).errors) == 1, ended(name).printed
    assert "the 2 processes on this host need a GPU each, but 1 is visible" in ended(name).errors[0]
    assert "start 1, make more visible with device.visible, or set device=cpu" in ended(name).errors[0]
    assert not ended(name).run.exists()
    assert left_over(ended(name).folder) == []


@pytest.mark.skipif(torch.cuda.device_count() < 2 and not REHEARSAL, reason="needs two GPUs, or a rehearsal on the CPU")
def test_two_processes_on_two_devices_train(ended: Processes) -> None:
    assert ended("two").record["world_size"] == 2


def test_every_process_ended_and_left_none(ended: Processes) -> None:
    codes = {name: ended(name).code for name in commands()}
    assert set(codes.values()) <= {0, 1, 2}, codes
    assert {name: left for name in commands() if (left := left_over(ended(name).folder))} == {}
