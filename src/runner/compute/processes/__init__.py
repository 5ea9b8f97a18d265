"""The processes of one run and how they communicate. `SingleProcess` implements the whole contract for one process.

Processes that torchrun, or any launcher that sets the same environment, started meet in its store. Rank 0 leads: it alone
reads the command line and writes the run's records. Tensors travel through torch's collectives. The configuration and
failure reports travel through the store, which still works when a collective does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from runner.compute.processes.environment import launched, leads, read_environment
from runner.compute.processes.group import ProcessGroup
from runner.compute.signals import StopRequest

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ProcessGroup", "SingleProcess", "Stop", "World", "find", "launched", "leads"]

T = TypeVar("T")


class Stop(Protocol):
    """Source of the decision to stop a run early."""

    def requested(self, step: int) -> int | None:
        """Return the number of the signal that was received, or None: the same answer on every process at the same step."""


class World(Protocol):
    """The processes of a run, seen from one of them."""

    rank: int
    """Number of this process among all."""
    size: int
    """Number of processes."""
    local_rank: int
    """Number of this process among those on its host."""
    local_size: int
    """Number of processes on this host."""
    exit_code: int
    """Exit code of a run that ends without an error: rank 0 sets it, and the others have it once they have left."""

    @property
    def met(self) -> bool:
        """Whether this process has met the others, at the first communication."""

    def __enter__(self) -> World:
        """Return the world itself; the processes meet at the first communication."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the other processes and report to them how the run ended here."""

    def send_config(self, plan: dict[str, Any]) -> None:
        """Send a JSON-compatible plan from rank 0 to the other processes; works before `connect`."""

    def receive_config(self, stop: StopRequest | None = None) -> dict[str, Any]:
        """Return the next plan that rank 0 sent.

        `stop` catches signals meanwhile: after one, rank 0 is not waited for where it does not answer. Raises
        `RemoteRankError` when rank 0 failed instead, and `ProcessLost` when it does not answer.
        """

    def connect(self, kind: str, timeout_seconds: float) -> None:
        """Prepare collectives for tensors on devices of this kind. Raises `ConfigError` for a kind without a backend."""

    def work_apart(self, work: Callable[[StopRequest], None], timeout_seconds: float) -> None:
        """Run `work`, without communication, on every process, and wait until all have ended it; works before `connect`.

        A signal to one process stops the work of all. Raises `Interrupted` on all of them then, and `ProcessLost` when a process
        has not answered for so many seconds, however long its work takes.
        """

    def run_on_all_ranks(self, work: Callable[[], tuple[T, dict[str, str]]]) -> T:
        """Run `work` on every process and return its result.

        `work` returns the result and a mapping name → text of what must be equal on every process. When it fails or differs
        anywhere, raises `InputError` on rank 0 and `RemoteRankError` on the others.
        """

    def broadcast(self, value: T | None) -> T | None:
        """Return the value of rank 0."""

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of the tensors of all processes, with their common shape."""

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors of all processes, which have one shape, in the order of their ranks."""

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on some process."""

    def all_ranks_stop(self, request: StopRequest) -> Stop:
        """Return a stop decision that all processes share, for signals that reach only some of them."""

    def store_run_dir(self, run_dir: str) -> None:
        """Store the run directory for processes that are restarted after a failure."""

    @property
    def previous_run_dir(self) -> str | None:
        """Run directory that an earlier attempt of this launch stored; None in the first attempt."""

    def on_failure(self, callback: Callable[[str], None]) -> None:
        """Set the callback that receives the reason when this process must exit while its main thread is stuck."""

    def diagnose(self, error: BaseException, step: int) -> BaseException:
        """Return an error that names the process which missed a collective; any other error is returned unchanged."""


class SingleProcess:
    """The world of a process that no launcher started."""

    rank = 0
    size = 1
    local_rank = 0
    local_size = 1
    exit_code = 0
    met = True
    previous_run_dir: str | None = None

    def __enter__(self) -> SingleProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def send_config(self, plan: dict[str, Any]) -> None:
        """Do nothing: there is no other process."""

    def receive_config(self, stop: StopRequest | None = None) -> dict[str, Any]:
        """Raise `AssertionError`: there is no other process."""
        raise AssertionError("a single process has no other process to receive from")

    def connect(self, kind: str, timeout_seconds: float) -> None:
        """Do nothing: one process needs no collectives."""

    def work_apart(self, work: Callable[[StopRequest], None], timeout_seconds: float) -> None:
        """Run `work` with the signals of this process."""
        with StopRequest() as stop:
            work(stop)

    def run_on_all_ranks(self, work: Callable[[], tuple[T, dict[str, str]]]) -> T:
        """Return the result of `work` on this process; errors pass through unchanged."""
        return work()[0]

    def broadcast(self, value: T | None) -> T | None:
        """Return the value unchanged: this process is rank 0."""
        return value

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the tensor unchanged: there is one process."""
        return tensor

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return a list of the one tensor."""
        return [tensor]

    def any(self, flag: bool) -> bool:
        """Return the flag of this process."""
        return flag

    def all_ranks_stop(self, request: StopRequest) -> Stop:
        """Return the request of this process."""
        return request

    def store_run_dir(self, run_dir: str) -> None:
        """Do nothing: no launcher restarts this process."""

    def on_failure(self, callback: Callable[[str], None]) -> None:
        """Do nothing: no other process can fail."""

    def diagnose(self, error: BaseException, step: int) -> BaseException:
        """Return the error unchanged: it cannot come from another process."""
        return error


def find(environ: Mapping[str, str]) -> World:
    """Return the world that the environment describes. Raises `ConfigError` with one sentence for each invalid variable."""
    return ProcessGroup(read_environment(environ)) if launched(environ) else SingleProcess()
