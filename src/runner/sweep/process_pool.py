"""Trials that are too large to batch: a process each, on a slot of a device. A slot that is free takes the next trial."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal

from runner.compute.devices import THREADS, TorchBuild, installed_build
from runner.compute.signals import StopRequest
from runner.compute.visible_devices import CUDA, HIP, ROCR, in_force, of_config, variable
from runner.config import validation
from runner.config.parts import key
from runner.errors import CheckpointError, ConfigError, Interrupted, RunFailed
from runner.runs.directory import lock, unlock
from runner.sweep.search_space import as_text

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn

PATH = "hydra.launcher"
TICK_SECONDS = 0.1
"""How often it is asked whether a signal came, or an earlier process has ended."""
_STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where trials run. The values stand in `conf/hydra/launcher/pool.yaml`."""

    devices: tuple[int | str, ...] | None = key(
        "ordinals or UUIDs of the GPUs that trials run on; null is all that are visible, else the CPU", at_least=0
    )
    per_device: int = key("trials on one device at a time", at_least=1, at_most=1024)


@dataclass(frozen=True)
class Job:
    """One trial: its number in the sweep, its words, and its run directory."""

    number: int
    words: tuple[str, ...]
    directory: Path

    @property
    def command(self) -> list[str]:
        """The words that run it: in a new directory, or on in the one that it has already."""
        place = as_text(str(self.directory))
        return [f"resume={place}"] if (self.directory / "run.json").exists() else [*self.words, f"run_dir={place}"]

    @property
    def in_use(self) -> bool:
        """Whether a process works on it still: one that a sweep which was killed has left behind."""
        try:
            unlock(lock(self.directory))
        except CheckpointError:
            return True
        except OSError:
            return False  # it is not there yet
        return False

    @property
    def metrics(self) -> dict[str, float] | None:
        """What it came to; None where it has not finished."""
        try:
            record = json.loads((self.directory / "run.json").read_text(encoding="utf-8"))
            summary = json.loads((self.directory / "summary.json").read_text(encoding="utf-8"))
            metrics = {name: float(value) for name, value in summary["metrics"].items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None
        return metrics if record.get("status") == "finished" else None


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: with its final metrics, or for a reason."""

    number: int
    state: Literal["finished", "failed", "interrupted"]
    metrics: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None


def slots(
    options: Options, environ: Mapping[str, str], build: TorchBuild, visible: int, cores: int
) -> list[dict[str, str]]:
    """The environment of every slot, one trial each at a time; neighbours are on different devices.

    `visible` is the number of GPUs that torch finds under the mask in force. Raises `ConfigError` with all that is wrong
    with `devices`.
    """
    problem = _unusable(options.devices, build, visible)
    if problem is not None:
        raise ConfigError(problem)
    shell = [mask for mask in in_force(options.devices, environ, bool(build.hip)) if mask.source != ROCR]
    entries = (shell[0].entries if shell else tuple(map(str, range(visible))))[:visible]
    masked = [_masked(environ, entry, build) for entry in entries] or [dict(environ)]
    threads = str(max(cores // (len(masked) * options.per_device), 1))
    return [{THREADS[0]: threads, **one} for _ in range(options.per_device) for one in masked]


def _unusable(devices: Sequence[int | str] | None, build: TorchBuild, visible: int) -> str | None:
    """What is wrong with the GPUs that are named."""
    if devices is None:
        return None
    mask, name = of_config(devices), f"`{PATH}.devices`"
    given = f"[{', '.join(map(str, devices))}]"
    if build.kind not in ("cuda", "rocm"):
        return f"{name} must be null without a GPU, but is {given}, and {build.description}; set per_device instead"
    if mask.fault or not mask.entries:
        return (
            f"{name} must name GPUs, each once, all by ordinal or all by UUID, but is {given}; correct it, or give null"
        )
    if visible < len(mask.entries):
        return f"{name} must name GPUs that are here, but torch finds {visible} of {given}; correct it, or give null"
    return None


def _masked(environ: Mapping[str, str], entry: str, build: TorchBuild) -> dict[str, str]:
    """One GPU alone, by one variable: two that disagree would be told of by every trial."""
    rest = {name: value for name, value in environ.items() if name not in (CUDA, HIP)}
    return rest | {variable(bool(build.hip)): entry}


def visible_gpus(devices: Sequence[int | str] | None, environ: Mapping[str, str], build: TorchBuild) -> int:
    """How many GPUs torch finds under the mask: asked of a process of its own, since this one must not import torch."""
    if build.kind not in ("cuda", "rocm"):
        return 0
    mask = {} if devices is None else {variable(bool(build.hip)): of_config(devices).value}
    command = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    answer = subprocess.run(command, env={**environ, **mask}, capture_output=True, text=True, check=False).stdout
    return int(answer) if answer.strip().isdecimal() else 0


class Pool:
    """The slots, and the processes that are on them."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._given = options
        self.config_dir: str | None = None
        self.slots: list[dict[str, str]] = []
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._stopping = threading.Event()

    def check(self, jobs: Sequence[Sequence[str]]) -> None:
        """Find the slots. Raises `ConfigError` where there cannot be any, or a trial would leave its own."""
        options, problems = validation.build(Options, self._given, PATH)
        if any(word.lstrip("+").startswith("device.visible=") for words in jobs for word in words):
            problems.append(
                "`device.visible` must be left to hydra/launcher=pool, which gives every trial its GPU, but is given; "
                f"name the GPUs with {PATH}.devices"
            )
        if options is None or problems:
            raise ConfigError(problems)
        if not self.slots:
            build = installed_build()
            visible = visible_gpus(options.devices, os.environ, build)
            cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
            self.slots = slots(options, os.environ, build, visible, cores)

    def launch(
        self,
        jobs: Sequence[Sequence[str]],
        first: int,
        directory: Path,
        ended: Callable[[Outcome], None] | None = None,
    ) -> list[JobReturn]:
        """What the trials `first`, `first + 1`, … come to, in the order of the jobs, as Hydra's launchers answer.

        `ended` is told each outcome as it comes. A trial that has finished already is not run again, and one that has
        begun goes on. Raises `ConfigError` before anything is started, and `Interrupted` when a signal came and every
        trial has saved.
        """
        self.check(jobs)
        numbered = [Job(number, tuple(words), directory / str(number)) for number, words in enumerate(jobs, first)]
        outcomes = self._run(numbered, ended)
        return [_returned(job, outcomes[job.number]) for job in numbered]

    def _run(self, jobs: Sequence[Job], ended: Callable[[Outcome], None] | None) -> dict[int, Outcome]:
        free: SimpleQueue[dict[str, str]] = SimpleQueue()
        for slot in self.slots:
            free.put(slot)
        outcomes: dict[int, Outcome] = {}
        self._stopping.clear()
        with StopRequest() as stop, ThreadPoolExecutor(len(self.slots)) as threads, self._ending(stop):
            pending: set[Future[Outcome | None]] = {threads.submit(self._on_slot, job, free) for job in jobs}
            while pending:
                done, pending = wait(pending, TICK_SECONDS, FIRST_COMPLETED)
                for outcome in filter(None, (future.result() for future in done)):
                    outcomes[outcome.number] = outcome
                    if ended is not None:
                        ended(outcome)
                if stop.signal_number is not None and not self._stopping.is_set():
                    self._signal(stop.signal_number)
        if stop.signal_number is not None:
            over = sum(outcome.state != "interrupted" for outcome in outcomes.values())
            raise Interrupted(stop.signal_number, f"stopped after {over} of {len(jobs)} trials; the others are saved")
        return outcomes

    @contextmanager
    def _ending(self, stop: StopRequest) -> Iterator[None]:
        """Whatever happens here, no trial goes on alone; a second signal is a second one for the trials as well."""
        try:
            yield
        except BaseException:
            self._signal(stop.signal_number or signal.SIGTERM)
            raise

    def _signal(self, number: int) -> None:
        """Tell every trial to stop, and start no other one."""
        with self._lock:
            self._stopping.set()
            for process in self._running:
                process.send_signal(number)

    def _on_slot(self, job: Job, free: SimpleQueue[dict[str, str]]) -> Outcome | None:
        """The trial's outcome; None where it was not started. There are as many slots as threads, so that one is free."""
        slot = free.get()
        try:
            while job.in_use and not self._stopping.wait(TICK_SECONDS):
                pass
            metrics = job.metrics
            return self._process(job, slot) if metrics is None else Outcome(job.number, "finished", metrics)
        finally:
            free.put(slot)

    def _process(self, job: Job, environment: dict[str, str]) -> Outcome | None:
        where = [] if self.config_dir is None else ["--config-dir", self.config_dir]
        with self._lock:
            if self._stopping.is_set():
                return None
            # A session of its own: the terminal's Ctrl-C comes once, by way of this process.
            process = subprocess.Popen(
                [sys.executable, "-m", "runner", *where, *job.command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # it has a run.log
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            self._running.add(process)
        _, said = process.communicate()
        with self._lock:
            self._running.discard(process)
        return self._outcome(job, process.returncode, said)

    def _outcome(self, job: Job, code: int, said: str) -> Outcome:
        if code == 0:
            return Outcome(job.number, "finished", job.metrics or {})
        if code in _STOPPED or (self._stopping.is_set() and -code in (signal.SIGINT, signal.SIGTERM)):
            return Outcome(job.number, "interrupted", reason="stopped by a signal")
        return Outcome(job.number, "failed", reason=_reason(job, code, said))


def _reason(job: Job, code: int, said: str) -> str:
    """Why a trial failed, in its own words; what are not words for the user goes to a file."""
    told = [line.removeprefix("error: ") for line in said.splitlines() if line.startswith("error: ")]
    if code < 0:
        usual = ", as the kernel does when memory is short" if -code == signal.SIGKILL else ""
        return f"its process was killed by {signal.Signals(-code).name}{usual}"
    if told:
        return "; ".join(told)
    if (job.directory / "run.json").exists():
        (job.directory / "stderr.log").write_text(said, encoding="utf-8")
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else f"its process ended with exit code {code} and without a word"


def _returned(job: Job, outcome: Outcome) -> JobReturn:
    from hydra.core.utils import JobReturn, JobStatus

    finished = outcome.state == "finished"
    return JobReturn(
        overrides=job.words,
        working_dir=str(job.directory),
        status=JobStatus.COMPLETED if finished else JobStatus.FAILED,
        _return_value=dict(outcome.metrics) if finished else RunFailed(outcome.reason),
    )
