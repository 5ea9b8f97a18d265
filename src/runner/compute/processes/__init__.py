"""The processes of one run and what they say to each other. `SingleProcess` implements the whole contract for one process.

Processes that torchrun (or any launcher that sets the same environment) started meet in its store; rank 0 leads: it alone
reads the user's words and writes the run's records. Numbers travel through torch's collectives, the plan and the news of a
failure through the store, which still works when a collective does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from runner.compute.processes.environment import launched, read
from runner.compute.processes.group import Group
from runner.compute.signals import StopRequest

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Group", "SingleProcess", "Stop", "World", "find", "launched"]

T = TypeVar("T")


class Stop(Protocol):
    """Whether the run is to stop."""

    def requested(self, step: int) -> int | None:
        """The number of the signal that came, or None: the same answer on every process at the same step."""


class World(Protocol):
    """The processes of a run, seen from one of them."""

    rank: int
    size: int
    local_rank: int
    local_size: int

    def __enter__(self) -> World: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def send_config(self, plan: dict[str, Any]) -> None:
        """Rank 0 tells the others what to do, before they know how to send tensors; as JSON can hold it."""

    def receive_config(self) -> dict[str, Any]:
        """What rank 0 tells. Raises `RemoteRankError` where it cannot."""

    def connect(self, kind: str, timeout_seconds: float) -> None:
        """Make ready for tensors of a kind of device."""

    def run_on_all_ranks(self, work: Callable[[], tuple[T, dict[str, str]]]) -> T:
        """Do the same work everywhere. It gives a result and what must be equal on every process: name → text.

        Raises `InputError` on rank 0 and `RemoteRankError` on the others, when it fails or differs anywhere.
        """

    def broadcast(self, value: T | None) -> T | None:
        """The value of rank 0."""

    def sum(self, tensor: Tensor) -> Tensor: ...
    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes, in the order of their ranks."""

    def any(self, flag: bool) -> bool: ...
    def all_ranks_stop(self, request: StopRequest) -> Stop:
        """One answer on all processes to a signal that reached some of them."""

    def remember(self, run_dir: str) -> None:
        """Leave word of the run directory for processes that are started again."""

    @property
    def remembered(self) -> str | None:
        """The run directory of an earlier attempt of this launch."""

    def on_failure(self, tell: Callable[[str], None]) -> None:
        """What rank 0 does with the reason when it has to end without its main thread."""

    def explain(self, error: BaseException, step: int) -> BaseException:
        """The error itself; or, for a collective that failed, which process did not take part."""


class SingleProcess:
    """One process, that nobody started with others."""

    rank = 0
    size = 1
    local_rank = 0
    local_size = 1
    remembered: str | None = None

    def __enter__(self) -> SingleProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def send_config(self, plan: dict[str, Any]) -> None:
        pass

    def receive_config(self) -> dict[str, Any]:
        raise AssertionError("one process has nobody to hear from")

    def connect(self, kind: str, timeout_seconds: float) -> None:
        pass

    def run_on_all_ranks(self, work: Callable[[], tuple[T, dict[str, str]]]) -> T:
        return work()[0]

    def broadcast(self, value: T | None) -> T | None:
        return value

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor

    def gather(self, tensor: Tensor) -> list[Tensor]:
        return [tensor]

    def any(self, flag: bool) -> bool:
        return flag

    def all_ranks_stop(self, request: StopRequest) -> Stop:
        return request

    def remember(self, run_dir: str) -> None:
        pass

    def on_failure(self, tell: Callable[[str], None]) -> None:
        pass

    def explain(self, error: BaseException, step: int) -> BaseException:
        return error


def find(environ: Mapping[str, str]) -> World:
    """The world that the environment tells of. Raises `ConfigError` with every variable that does not make sense."""
    return Group(read(environ)) if launched(environ) else SingleProcess()
