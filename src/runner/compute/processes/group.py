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

from runner.compute.processes.consensus import Agreement, together
from runner.compute.processes.environment import Place, interface
from runner.compute.processes.rendezvous import JOIN_SECONDS, Meeting, meet
from runner.compute.processes.watchdog import News, Watch, is_lost
from runner.compute.signals import StopRequest
from runner.errors import (
    ConfigError,
    Diverged,
    ForcedStop,
    InputError,
    Interrupted,
    ProcessLost,
    RemoteRankError,
    RunnerError,
)

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl", "rocm": "cpu:gloo,cuda:nccl", "xpu": "cpu:gloo,xpu:xccl"}
"""What carries tensors of each kind of device; those on the CPU, such as flags, never wait for an accelerator."""


@dataclass(frozen=True)
class Attempt:
    """One attempt at the run, as a process takes part in it."""

    meeting: Meeting
    news: News
    watch: Watch


class Group:
    """Processes that a launcher started, `size` of them. They meet when there is something to say."""

    def __init__(self, place: Place) -> None:
        self.rank, self.size = place.rank, place.size
        self.local_rank, self.local_size = place.local_rank, place.local_size
        self._place = place
        self._attempt: Attempt | None = None
        self._timeout = JOIN_SECONDS
        self._connected = False
        self._known: InputError | None = None  # one that all processes know of
        # The workers tell themselves what happens to the store; torch would with a page of C++ frames.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

    # ------------------------------------------------------------------------------------------------ meeting, parting

    @property
    def attempt(self) -> Attempt:
        """Raises `RemoteRankError` where an earlier one has ended for good, and `RunFailed` where the others do not come."""
        if self._attempt is None:
            meeting = meet(self._place)
            self._attempt = Attempt(meeting, News(meeting), Watch(meeting))
        return self._attempt

    def __enter__(self) -> Group:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Part: together, when all of them know how the run ended, else with the news for those that do not."""
        shared = isinstance(error, (Diverged, Interrupted, RemoteRankError)) and not isinstance(error, ForcedStop)
        agreed = error is None or error is self._known or shared
        if self._attempt is None and not isinstance(error, InputError):
            return  # one with an input error meets the others only to say that it is no use
        watch = self.attempt.watch
        try:
            if not agreed:
                self._fail(error)
            elif not isinstance(error, RemoteRankError):
                self._agree(error)
        finally:
            watch.close()
        if agreed and self._connected and not isinstance(error, RemoteRankError):
            import torch.distributed as dist

            dist.destroy_process_group()
        if agreed and isinstance(error, (Diverged, Interrupted)) and self.rank:
            raise RemoteRankError(str(error), error.exit_code) from None

    def _agree(self, error: BaseException | None) -> None:
        """The leader says how it ended, and the others wait for that."""
        with contextlib.suppress(ProcessLost):  # all is done already
            if self.rank == 0:
                code = str(getattr(error, "exit_code", 0))
                self.attempt.meeting.keep("ended", code)
                self.attempt.meeting.say("over", code)
            else:  # it draws pictures and writes the last checkpoint
                self.attempt.news.answer("over", max(self._timeout, JOIN_SECONDS))

    def _fail(self, error: BaseException | None) -> None:
        text = str(error) if isinstance(error, RunnerError) else f"{type(error).__name__}: {error}"
        code = error.exit_code if isinstance(error, RunnerError) else 1
        first = True
        with contextlib.suppress(ProcessLost):  # there is nobody who could be told
            first = self.attempt.news.leave(
                text if isinstance(error, ProcessLost) else f"rank {self.rank}: {text}", code
            )
            if code == 2:  # the same input would fail again
                self.attempt.meeting.keep("ended", str(code))
        if isinstance(error, RunnerError) and not isinstance(
            error, ProcessLost if self.rank else (ProcessLost, InputError)
        ):
            error.rank = self.rank
        if not first and isinstance(error, RunnerError):
            raise RemoteRankError(text, code) from None
        if first and not isinstance(error, RunnerError):
            sys.stderr.write(f"error: rank {self.rank}: {text}\n")

    def connect(self, kind: str, timeout_seconds: float) -> None:
        import torch.distributed

        dist: Any = torch.distributed
        if kind not in BACKENDS:
            raise ConfigError(
                f"`device` must be cpu, cuda, rocm or xpu for several processes, but is {kind}; use device=cpu"
            )
        if "GLOO_SOCKET_IFNAME" not in os.environ and (found := interface(self._place.address, self._place.port)):
            os.environ["GLOO_SOCKET_IFNAME"] = found
        self._timeout = timeout_seconds
        with self._explained():
            dist.init_process_group(
                BACKENDS[kind],
                store=dist.PrefixStore("c10d", self.attempt.meeting.store),
                rank=self.rank,
                world_size=self.size,
                timeout=timedelta(seconds=timeout_seconds),
            )
        self._connected = True

    # --------------------------------------------------------------------------------------------------------- by words

    def send_config(self, plan: dict[str, Any]) -> None:
        self.attempt.meeting.say("plan", json.dumps(plan))

    def receive_config(self) -> dict[str, Any]:
        plan: dict[str, Any] = json.loads(self.attempt.news.answer("plan", JOIN_SECONDS))
        return plan

    def remember(self, run_dir: str) -> None:
        self.attempt.meeting.keep("run_dir", run_dir)

    @property
    def remembered(self) -> str | None:
        return self.attempt.meeting.kept("run_dir")

    def on_failure(self, tell: Callable[[str], None]) -> None:
        self.attempt.watch.tell = tell

    def explain(self, error: BaseException, step: int) -> BaseException:
        if isinstance(error, RunnerError) or not is_lost(error):
            return error
        return self.attempt.news.explain(error, step, self._timeout)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Around what comes before the training, which has its own errors explained."""
        try:
            yield
        except RuntimeError as error:
            if not is_lost(error):
                raise
            raise self.attempt.news.explain(error, None, self._timeout) from error

    # ------------------------------------------------------------------------------------------------------- by tensors

    def run_on_all_ranks(self, work: Callable[[], tuple[T, dict[str, str]]]) -> T:
        try:
            with self._explained():
                return together(work, self.rank, self.size)
        except InputError as error:
            self._known = error
            raise

    def broadcast(self, value: T | None) -> T | None:
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def sum(self, tensor: Tensor) -> Tensor:
        import torch.distributed as dist

        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def gather(self, tensor: Tensor) -> list[Tensor]:
        import torch
        import torch.distributed as dist

        everyone = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(everyone, tensor)
        return everyone

    def any(self, flag: bool) -> bool:
        return self._most([flag])[0] > 0

    def all_ranks_stop(self, request: StopRequest) -> Agreement:
        self.attempt.watch.request = request
        return Agreement(self.rank, self._most, request)

    def _most(self, numbers: Sequence[int]) -> list[int]:
        """The largest of each number on any process."""
        import torch
        import torch.distributed as dist

        votes = torch.tensor([int(number) for number in numbers])
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        found: list[int] = votes.tolist()
        return found
