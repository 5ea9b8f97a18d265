"""The world of a process that a launcher started with others."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from runner.compute.processes.consensus import StopConsensus, run_on_all_ranks
from runner.compute.processes.environment import RankEnvironment, network_interface
from runner.compute.processes.notes import REASON, RUN_DIRECTORY
from runner.compute.processes.rendezvous import JOIN_SECONDS, Rendezvous, join
from runner.compute.processes.watchdog import GRACE_SECONDS, FailureChannel, Watchdog, is_lost
from runner.compute.signals import StopRequest
from runner.errors import (
    ConfigError,
    Diverged,
    ForcedStop,
    InputError,
    Interrupted,
    ProcessLost,
    RemoteRankError,
    RunFailed,
    RunnerError,
)

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl", "rocm": "cpu:gloo,cuda:nccl", "xpu": "cpu:gloo,xpu:xccl"}
"""Backends of torch.distributed for each kind of device; tensors on the CPU, such as flags, never wait for an accelerator."""


@dataclass(frozen=True)
class Attempt:
    """Connections of one process for one attempt at the run."""

    rendezvous: Rendezvous
    failures: FailureChannel
    watchdog: Watchdog


class ProcessGroup:
    """World of `size` processes that a launcher started. They meet at the first communication."""

    def __init__(self, environment: RankEnvironment) -> None:
        self.rank, self.size = environment.rank, environment.size
        self.local_rank, self.local_size = environment.local_rank, environment.local_size
        self.exit_code = 0
        self._environment = environment
        self._attempt: Attempt | None = None
        self._timeout = JOIN_SECONDS
        self._plans = self._works = 0  # so far
        self._connected = False
        self._shared_error: InputError | None = None  # one that all processes have
        # The workers report an error of the store themselves; torch would with a page of C++ frames.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

    # ------------------------------------------------------------------------------------------------ joining, leaving

    @property
    def attempt(self) -> Attempt:
        """Connections of this attempt; the first access joins the other processes and may raise what `join` raises."""
        if self._attempt is None:
            rendezvous, watched = join(self._environment)
            self._attempt = Attempt(rendezvous, FailureChannel(rendezvous), Watchdog(rendezvous, watched))
        return self._attempt

    @property
    def met(self) -> bool:
        """Whether this process has joined the others."""
        return self._attempt is not None

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave with the others when all of them know how the run ended; otherwise report the failure first."""
        shared = isinstance(error, (Diverged, Interrupted, RemoteRankError)) and not isinstance(error, ForcedStop)
        agreed = error is None or error is self._shared_error or shared
        if self._attempt is None and not isinstance(error, InputError):
            return  # only an input error is a reason to join the others now: they must not wait for this process
        watchdog = self.attempt.watchdog
        try:
            if not agreed:
                self._fail(error)
            elif not isinstance(error, RemoteRankError):
                self._agree(error)
        finally:
            watchdog.close()
        if agreed and self._connected and not isinstance(error, RemoteRankError):
            import torch.distributed as dist

            dist.destroy_process_group()
        if agreed and isinstance(error, (Diverged, Interrupted)) and self.rank:
            raise RemoteRankError(str(error), error.exit_code) from None

    def _agree(self, error: BaseException | None) -> None:
        """Publish the exit code on rank 0; wait for it on the others."""
        stopped = isinstance(error, Interrupted)  # by a signal, which may have ended rank 0
        with contextlib.suppress(RunFailed if stopped else ProcessLost):  # the work is done already
            if self.rank == 0:
                code = str(self.exit_code if error is None else getattr(error, "exit_code", 0))
                self.attempt.rendezvous.set_persistent("ended", code)  # a launcher restarts after any code but 0
                self.attempt.rendezvous.publish("over", code)
            else:  # rank 0 still draws plots and writes the last checkpoint
                seconds = 2 * GRACE_SECONDS if stopped else max(self._timeout, JOIN_SECONDS)
                self.exit_code = int(self.attempt.failures.wait_for("over", seconds))

    def _fail(self, error: BaseException | None) -> None:
        """Report a failure of this process to the others and, when it is the first, to the user."""
        text = str(error) if isinstance(error, RunnerError) else f"{type(error).__name__}: {error}"
        code = error.exit_code if isinstance(error, RunnerError) else 1
        first = True
        with contextlib.suppress(ProcessLost):  # nobody is left to report to
            first = self.attempt.failures.report(
                text if isinstance(error, ProcessLost) else f"rank {self.rank}: {text}", code
            )
            if code == 2:  # the same input would fail again
                self.attempt.rendezvous.set_persistent("ended", str(code))
        if isinstance(error, RunnerError) and not isinstance(
            error, ProcessLost if self.rank else (ProcessLost, InputError)
        ):
            error.rank = self.rank
        if not first and isinstance(error, RunnerError):
            raise RemoteRankError(text, code) from None
        if first and not isinstance(error, RunnerError):
            sys.stderr.write(f"error: rank {self.rank}: {text}\n")

    def connect(self, kind: str, timeout_seconds: float) -> None:
        """Start torch.distributed with the backends for a kind of device; on the CPU over the interface to rank 0."""
        import torch.distributed

        dist: Any = torch.distributed
        if kind not in BACKENDS:
            raise ConfigError(
                f"`device` must be cpu, cuda, rocm or xpu for several processes, got {kind}; use device=cpu"
            )
        if "GLOO_SOCKET_IFNAME" not in os.environ:
            interface = network_interface(self._environment.address, self._environment.port)
            if interface:
                os.environ["GLOO_SOCKET_IFNAME"] = interface
        self._timeout = timeout_seconds
        with self._diagnosed():
            dist.init_process_group(
                BACKENDS[kind],
                store=dist.PrefixStore("c10d", self.attempt.rendezvous.store),
                rank=self.rank,
                world_size=self.size,
                timeout=timedelta(seconds=timeout_seconds),
            )
        self._connected = True

    # ------------------------------------------------------------------------------------------------------- the store

    def send_config(self, plan: dict[str, Any]) -> None:
        """Publish the plan as JSON in the store."""
        self._plans += 1
        self.attempt.rendezvous.publish(f"plan/{self._plans}", json.dumps(plan))

    def receive_config(self, stop: StopRequest | None = None) -> dict[str, Any]:
        """Wait for the next plan in the store while rank 0 is alive."""
        self._plans += 1
        try:
            texts = self.attempt.failures.wait_while_alive({0: f"plan/{self._plans}"}, self._timeout, stop)
        except Interrupted as stopped:  # rank 0 or the launcher reports it
            raise RemoteRankError(str(stopped), stopped.exit_code) from None
        plan: dict[str, Any] = json.loads(texts[0])
        return plan

    def work_apart(self, work: Callable[[StopRequest], None], timeout_seconds: float) -> None:
        """Publish in the store that the work has ended, and wait for the others while they are alive."""
        self._timeout, self._works = timeout_seconds, self._works + 1
        stopped: Interrupted | None = None
        with StopRequest() as stop:
            self.attempt.watchdog.request = stop
            try:
                work(stop)
            except ForcedStop:
                raise
            except Interrupted as error:
                stopped = error
            keys = {rank: f"worked/{self._works}/{rank}" for rank in range(self.size)}
            self.attempt.rendezvous.publish(keys[self.rank], str(stop.signal_number or 0))
            try:
                signals = self.attempt.failures.wait_while_alive(keys, timeout_seconds, stop).values()
            except Interrupted as error:
                raise stopped or error from None
        if number := max(map(int, signals)):
            raise stopped or Interrupted(number, "stopped; what was saved is kept")

    def store_run_dir(self, run_dir: str) -> None:
        """Store the run directory under a key that later attempts read."""
        self.attempt.rendezvous.set_persistent("run_dir", run_dir)
        self._environment.notes.write(RUN_DIRECTORY, os.path.abspath(run_dir))
        self._environment.notes.write(REASON, "")  # that of an earlier attempt

    @property
    def previous_run_dir(self) -> str | None:
        """Run directory that an earlier attempt stored, or None."""
        return self.attempt.rendezvous.get_persistent("run_dir")

    def on_failure(self, callback: Callable[[str], None]) -> None:
        """Set the callback of the watchdog."""
        self.attempt.watchdog.on_failure = callback

    def diagnose(self, error: BaseException, step: int) -> BaseException:
        """Ask all watchdogs which process is missing when a collective failed; return any other error unchanged."""
        if isinstance(error, RunnerError) or not is_lost(error):
            return error
        return self.attempt.failures.diagnose(error, step, self._timeout)

    @contextlib.contextmanager
    def _diagnosed(self) -> Iterator[None]:
        """Diagnose the error of a collective that runs before training; `diagnose` does so during training."""
        try:
            yield
        except RuntimeError as error:
            if not is_lost(error):
                raise
            raise self.attempt.failures.diagnose(error, None, self._timeout) from error

    # ----------------------------------------------------------------------------------------------------- collectives

    def run_on_all_ranks(self, work: Callable[[], tuple[T, dict[str, str]]]) -> T:
        """Run `work` and exchange errors and values with an all-gather."""
        try:
            with self._diagnosed():
                return run_on_all_ranks(work, self.rank, self.size)
        except InputError as error:
            self._shared_error = error
            raise

    def broadcast(self, value: T | None) -> T | None:
        """Return the value of rank 0, pickled and sent by torch."""
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the all-reduced sum in a new tensor."""
        import torch.distributed as dist

        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return the all-gathered tensors in new memory."""
        import torch
        import torch.distributed as dist

        tensors = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(tensors, tensor)
        return tensors

    def any(self, flag: bool) -> bool:
        """Whether the all-reduced maximum of the flags is 1."""
        return self._maximum([flag])[0] > 0

    def all_ranks_stop(self, request: StopRequest) -> StopConsensus:
        """Return a stop decision by all-reduce; the watchdog sets the request when the launcher exits."""
        self.attempt.watchdog.request = request
        return StopConsensus(self.rank, self._maximum, request)

    def _maximum(self, numbers: Sequence[int]) -> list[int]:
        """Return the largest of each number over all processes."""
        import torch
        import torch.distributed as dist

        votes = torch.tensor([int(number) for number in numbers])
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        largest: list[int] = votes.tolist()
        return largest
