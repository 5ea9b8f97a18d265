"""`hydra/launcher=pool`: one process per trial, on a slot of a device. A free slot takes the next trial."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal

from runner.compute.devices import THREADS, TorchBuild, installed_build
from runner.compute.signals import StopRequest
from runner.compute.visible_devices import CUDA, HIP, ROCR, config_mask, in_force, variable
from runner.config import validation
from runner.config.parts import key
from runner.errors import CheckpointError, ConfigError, InputError, Interrupted, RunFailed
from runner.runs.atomic import write_atomic
from runner.runs.directory import is_complete, lock, record_failure, unlock
from runner.runs.records import read_record, read_summary, selected_metrics
from runner.sweep.search_space import as_text
from runner.sweep.trials import resuming

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn

PATH = "hydra.launcher"
TICK_SECONDS = 0.1
"""Time between two checks for a signal, or for the end of an earlier process."""
_STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


@dataclass(frozen=True, kw_only=True)
class PoolOptions:
    """The keys of `hydra.launcher`. Their values are in `conf/hydra/launcher/pool.yaml`."""

    devices: tuple[int | str, ...] | None = key(
        "ordinals or UUIDs of the GPUs that trials run on; null is all that are visible, else the CPU", at_least=0
    )
    per_device: int = key("trials on one device at a time", at_least=1, at_most=1024)


@dataclass(frozen=True)
class Job:
    """One trial: its number in the sweep, its overrides, and its run directory."""

    number: int
    overrides: tuple[str, ...]
    directory: Path

    @property
    def command(self) -> list[str]:
        """Arguments that run the trial in a new directory, or resume it in the one that it has."""
        if (self.directory / "run.json").exists():
            return resuming(self.directory, self.overrides)
        return [*self.overrides, f"run_dir={as_text(str(self.directory))}"]

    @property
    def in_use(self) -> bool:
        """Whether a process still runs the trial: a sweep that was killed leaves such processes behind."""
        try:
            unlock(lock(self.directory))
        except CheckpointError:
            return True
        except OSError:
            return False  # the directory does not exist yet
        return False

    @property
    def metrics(self) -> dict[str, float] | None:
        """Final metrics; None if the trial has not finished."""
        try:
            summary = read_summary(self.directory)
            finished = summary is not None and is_complete(read_record(self.directory))
        except CheckpointError:
            return None
        return selected_metrics(summary) if summary is not None and finished else None


@dataclass(frozen=True)
class Outcome:
    """End of a trial: its state, with its final metrics or the reason why it did not finish."""

    number: int
    state: Literal["finished", "failed", "interrupted"]
    metrics: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None
    refused: Sequence[str] = ()
    """Messages on an input that cannot be run; the trial has left nothing then."""


def slots(
    options: PoolOptions, environ: Mapping[str, str], build: TorchBuild, visible: int, cores: int
) -> list[dict[str, str]]:
    """Return the environment variables of every slot. Consecutive slots are on different devices.

    `visible` is the number of GPUs that torch finds under the mask in force. Raises `ConfigError` if `devices` cannot be
    used.
    """
    problem = _unusable(options.devices, build, visible)
    if problem is not None:
        raise ConfigError(problem)
    shell = [mask for mask in in_force(options.devices, environ, bool(build.hip)) if mask.source != ROCR]
    entries = (shell[0].entries if shell else tuple(map(str, range(visible))))[:visible]
    masked = [_masked(environ, entry, build) for entry in entries] or [dict(environ)]
    threads = str(max(cores // (len(masked) * options.per_device), 1))
    return [{THREADS[0]: threads, **device} for _ in range(options.per_device) for device in masked]


def _unusable(devices: Sequence[int | str] | None, build: TorchBuild, visible: int) -> str | None:
    """Return the problem with the requested GPUs, or None."""
    if devices is None:
        return None
    mask, name = config_mask(devices), f"`{PATH}.devices`"
    value = f"[{', '.join(map(str, devices))}]"
    if build.kind not in ("cuda", "rocm"):
        return f"{name} must be null without a GPU, got {value}, and {build.description}; set per_device instead"
    if mask.fault or not mask.entries:
        return f"{name} must name GPUs, each once, all by ordinal or all by UUID, got {value}; correct it, or give null"
    if visible < len(mask.entries):
        return f"{name} must name GPUs of this machine, got {value}, of which torch finds {visible}; correct it, or give null"
    return None


def _masked(environ: Mapping[str, str], entry: str, build: TorchBuild) -> dict[str, str]:
    """Return the environment with one GPU visible."""
    # Only one variable is set: every trial would warn of two that disagree.
    rest = {name: value for name, value in environ.items() if name not in (CUDA, HIP)}
    return rest | {variable(bool(build.hip)): entry}


def visible_gpus(devices: Sequence[int | str] | None, environ: Mapping[str, str], build: TorchBuild) -> int:
    """Return the number of GPUs that torch finds under the mask."""
    if build.kind not in ("cuda", "rocm"):
        return 0
    mask = {} if devices is None else {variable(bool(build.hip)): config_mask(devices).value}
    # In a separate process: this one must not import torch.
    command = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    output = subprocess.run(command, env={**environ, **mask}, capture_output=True, text=True, check=False).stdout
    return int(output) if output.strip().isdecimal() else 0


class Pool:
    """The slots, and the processes that run on them."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self.config_dir: str | None = None
        self.slots: list[dict[str, str]] = []
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._stopping = threading.Event()

    def check(self, jobs: Sequence[Sequence[str]]) -> None:
        """Find the slots. Raises `ConfigError` if an option is wrong, or if a trial chooses its own GPU."""
        options, problems = validation.build(PoolOptions, self._options, PATH)
        if any(override.lstrip("+").startswith("device.visible=") for overrides in jobs for override in overrides):
            problems.append(
                "`device.visible` must be left to hydra/launcher=pool, which gives every trial its GPU, got a value; "
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
        """Run the trials `first`, `first + 1`, … and return their results in the order of the jobs, as Hydra's launchers do.

        `ended` is called with each outcome as it comes. A trial that has finished is not run again, and one that was
        started is resumed. Raises `ConfigError` before any trial starts, and `Interrupted` after a signal, when every
        trial has saved its state.
        """
        self.check(jobs)
        numbered = [Job(number, tuple(job), directory / str(number)) for number, job in enumerate(jobs, first)]
        outcomes = self._run(numbered, ended)
        return [_job_return(job, outcomes[job.number]) for job in numbered]

    def _run(self, jobs: Sequence[Job], ended: Callable[[Outcome], None] | None) -> dict[int, Outcome]:
        free: SimpleQueue[dict[str, str]] = SimpleQueue()
        for slot in self.slots:
            free.put(slot)
        outcomes: dict[int, Outcome] = {}
        self._stopping.clear()
        with StopRequest() as stop, ThreadPoolExecutor(len(self.slots)) as threads, self._stop_on_error(stop):
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
            ended_count = sum(outcome.state != "interrupted" for outcome in outcomes.values())
            raise Interrupted(
                stop.signal_number, f"stopped after {ended_count} of {len(jobs)} trials; the others are saved"
            )
        return outcomes

    @contextmanager
    def _stop_on_error(self, stop: StopRequest) -> Iterator[None]:
        """Stop all trials when an exception leaves the context. A second signal is passed on to them as well."""
        try:
            yield
        except BaseException:
            self._signal(stop.signal_number or signal.SIGTERM)
            raise

    def _signal(self, number: int) -> None:
        """Send a signal to every running trial, and start no other one."""
        with self._lock:
            self._stopping.set()
            for process in self._running:
                process.send_signal(number)

    def _on_slot(self, job: Job, free: SimpleQueue[dict[str, str]]) -> Outcome | None:
        """Run a trial on a free slot. Return its outcome, or None if it was not started."""
        slot = free.get()  # never waits: there are as many slots as threads
        try:
            while job.in_use and not self._stopping.wait(TICK_SECONDS):
                pass
            metrics = job.metrics
            return self._run_process(job, slot) if metrics is None else Outcome(job.number, "finished", metrics)
        except Exception as error:  # its process cannot be started, for example; the other trials go on
            return Outcome(job.number, "failed", reason=f"{type(error).__name__}: {error}")
        finally:
            free.put(slot)

    def _run_process(self, job: Job, environment: dict[str, str]) -> Outcome | None:
        config_dir = [] if self.config_dir is None else ["--config-dir", self.config_dir]
        with self._lock:
            if self._stopping.is_set():
                return None
            # In its own session the process gets the terminal's Ctrl-C once, from this process.
            process = subprocess.Popen(
                [sys.executable, "-m", "runner", *config_dir, *job.command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # the trial has a run.log
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            self._running.add(process)
        _, errors = process.communicate()
        with self._lock:
            self._running.discard(process)
        return self._outcome(job, process.returncode, errors)

    def _outcome(self, job: Job, code: int, errors: str) -> Outcome:
        metrics = job.metrics
        if code == 0 or (code == 1 and metrics is not None):  # a fit that did not converge has finished
            return Outcome(job.number, "finished", metrics or {})
        if code in _STOPPED or (self._stopping.is_set() and -code in (signal.SIGINT, signal.SIGTERM)):
            return Outcome(job.number, "interrupted", reason="stopped by a signal")
        messages = [line.removeprefix("error: ") for line in errors.splitlines() if line.startswith("error: ")]
        reason = _reason(job, code, messages, errors)
        record_failure(job.directory, reason)
        return Outcome(job.number, "failed", reason=reason, refused=messages if code == InputError.exit_code else ())


def _reason(job: Job, code: int, messages: Sequence[str], errors: str) -> str:
    """Return why a trial failed, from its exit code, its error messages and its standard error. A traceback is written to stderr.log."""
    if code < 0:
        usual = ", as the kernel does when memory is short" if -code == signal.SIGKILL else ""
        return f"its process was killed by {signal.Signals(-code).name}{usual}"
    if messages:
        return "; ".join(messages)
    if (job.directory / "run.json").exists():
        with suppress(OSError):
            write_atomic(job.directory / "stderr.log", errors.encode(errors="replace"))
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return lines[-1] if lines else f"its process ended with exit code {code} and no message"


def _job_return(job: Job, outcome: Outcome) -> JobReturn:
    from hydra.core.utils import JobReturn, JobStatus

    finished = outcome.state == "finished"
    error = ConfigError(outcome.refused) if outcome.refused else RunFailed(outcome.reason or "")
    return JobReturn(
        overrides=job.overrides,
        working_dir=str(job.directory),
        status=JobStatus.COMPLETED if finished else JobStatus.FAILED,
        _return_value=dict(outcome.metrics) if finished else error,
    )
