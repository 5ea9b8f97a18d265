"""The processes of one run and what they say to each other. `Alone` implements the whole contract for one process.

Processes that torchrun (or any launcher that sets the same environment) started meet in its store; rank 0 leads: it alone
reads the user's words and writes the run's records. Numbers travel through torch's collectives, the plan and the news of a
failure through the store, which still works when a collective does not.

Workers that are started again after a failure find the store as their dead predecessors left it, so what belongs to one
attempt carries a token. No variable of the environment names an attempt on all hosts alike: rank 0 draws the token, and
every other process asks for it with a number of its own, which no dead one can answer for.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from runner.errors import ConfigError, Diverged, Elsewhere, InputError, Interrupted, Lost, RunFailed, RunnerError
from runner.stopping import StopRequest

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl", "rocm": "cpu:gloo,cuda:nccl", "xpu": "cpu:gloo,xpu:xccl"}
"""What carries tensors of each kind of device; those on the CPU, such as flags, never wait for an accelerator."""

JOIN_SECONDS = 300.0
"""Longest time for all processes to meet: hosts may start minutes apart."""

CONNECT_SECONDS = 60.0
"""Longest time to reach the store: an address that is wrong is told soon."""

WATCH_SECONDS = 0.25
"""Time between two looks for news of a failure, and between two agreements on whether to stop."""

GRACE_SECONDS = 5.0
"""How long a process may take to end by itself once another one failed, or its launcher is gone."""

LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Timed out waiting",
    "gloo",
    "NCCL",
    "Broken pipe",
    "Socket",
)
"""Words in the error of a collective that another process did not take part in."""


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

    def tell(self, plan: dict[str, Any]) -> None:
        """Rank 0 tells the others what to do, before they know how to send tensors; as JSON can hold it."""

    def hear(self) -> dict[str, Any]:
        """What rank 0 tells. Raises `Elsewhere` where it cannot."""

    def connect(self, kind: str, timeout_seconds: float) -> None:
        """Make ready for tensors of a kind of device."""

    def together(self, work: Callable[[], tuple[T, dict[str, str]]]) -> T:
        """Do the same work everywhere. It gives a result and what must be equal on every process: name → text.

        Raises `InputError` on rank 0 and `Elsewhere` on the others, when it fails or differs anywhere.
        """

    def broadcast(self, value: T | None) -> T | None:
        """The value of rank 0."""

    def sum(self, tensor: Tensor) -> Tensor: ...
    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes, in the order of their ranks."""

    def any(self, flag: bool) -> bool: ...
    def agreed(self, request: StopRequest) -> Stop:
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


class Alone:
    """One process, that nobody started with others."""

    rank = 0
    size = 1
    local_rank = 0
    local_size = 1
    remembered: str | None = None

    def __enter__(self) -> Alone:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def tell(self, plan: dict[str, Any]) -> None:
        pass

    def hear(self) -> dict[str, Any]:
        raise AssertionError("one process has nobody to hear from")

    def connect(self, kind: str, timeout_seconds: float) -> None:
        pass

    def together(self, work: Callable[[], tuple[T, dict[str, str]]]) -> T:
        return work()[0]

    def broadcast(self, value: T | None) -> T | None:
        return value

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor

    def gather(self, tensor: Tensor) -> list[Tensor]:
        return [tensor]

    def any(self, flag: bool) -> bool:
        return flag

    def agreed(self, request: StopRequest) -> Stop:
        return request

    def remember(self, run_dir: str) -> None:
        pass

    def on_failure(self, tell: Callable[[str], None]) -> None:
        pass

    def explain(self, error: BaseException, step: int) -> BaseException:
        return error


def launched(environ: Mapping[str, str]) -> bool:
    """Whether a launcher such as torchrun started this process as one of several."""
    return "RANK" in environ and "WORLD_SIZE" in environ


def find(environ: Mapping[str, str]) -> World:
    """The world that the environment tells of. Raises `ConfigError` with every variable that does not make sense."""
    return Group(environ) if launched(environ) else Alone()


class Group:
    """Processes that a launcher started, `size` of them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.rank, self.size, self.local_rank, self.local_size, self._address, self._port = _place(environ)
        self._agent_store = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        # Only a launcher is waited for: a process that a shell started in the background may well outlive that.
        self._parent = os.getppid() if "TORCHELASTIC_RUN_ID" in environ else None
        self._timeout = JOIN_SECONDS
        self._store: Any = None
        # The workers tell themselves what happens to the store; torch would with a page of C++ frames.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        self._left = threading.Event()
        self._watcher: threading.Thread | None = None
        self._connected = False
        self._request: StopRequest | None = None
        self._known: InputError | None = None  # one that all processes know of
        self._tell_failure: Callable[[str], None] = lambda reason: None

    # ------------------------------------------------------------------------------------------------ meeting, parting

    def __enter__(self) -> Group:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Part: together, when all of them know how the run ended, else with the news for those that do not."""
        agreed = error is None or error is self._known or isinstance(error, (Diverged, Interrupted, Elsewhere))
        if self._store is None:
            if not isinstance(error, InputError):
                self._left.set()
                return
            self._join()  # only to say that it is no use
        if not agreed:
            self._fail(error)
        else:
            with contextlib.suppress(RuntimeError):  # the launcher is gone, and its store: all is done already
                if not isinstance(error, Elsewhere):
                    self._agree(error)
                self._leave()
        self._left.set()
        if self._watcher is not None:  # Python would end it in the midst of torch's C++, which ends the process in turn
            self._watcher.join(GRACE_SECONDS)
        if agreed and self._connected and not isinstance(error, Elsewhere):
            import torch.distributed as dist

            dist.destroy_process_group()
        if isinstance(error, (Diverged, Interrupted)) and self.rank:
            raise Elsewhere(str(error), error.exit_code) from None

    def _fail(self, error: BaseException | None) -> None:
        text = str(error) if isinstance(error, RunnerError) else f"{type(error).__name__}: {error}"
        code = error.exit_code if isinstance(error, RunnerError) else 1
        first = True
        with contextlib.suppress(RuntimeError):  # the store is gone, and with it whoever could be told
            first = self._announce(text if isinstance(error, Lost) else f"rank {self.rank}: {text}", code)
            if code == 2:  # the same input would fail again
                self._root.set("ended", str(code))
            self._leave()
        if isinstance(error, RunnerError) and not isinstance(error, Lost if self.rank else (Lost, InputError)):
            error.rank = self.rank
        if not first and isinstance(error, RunnerError):
            raise Elsewhere(text, code) from None
        if first and not isinstance(error, RunnerError):
            sys.stderr.write(f"error: rank {self.rank}: {text}\n")

    def _announce(self, text: str, code: int) -> bool:
        """Leave word of a failure; False when another process did before."""
        news = json.dumps({"rank": self.rank, "text": text, "code": code})
        return bool(self._store.compare_set("failure", "", news) == news.encode())

    def _agree(self, error: BaseException | None) -> None:
        """The leader says how it ended, and the others wait for that."""
        if self.rank == 0:
            code = str(getattr(error, "exit_code", 0))
            self._root.set("ended", code)
            self._store.set("over", code)
        else:
            self._await("over", max(self._timeout, JOIN_SECONDS))  # it draws pictures and writes the last checkpoint

    def _leave(self) -> None:
        """The process that keeps the store goes last, so that the others can still read there why they end."""
        self._left.set()
        if self.rank:
            self._store.add("left", 1)
        elif not self._agent_store:  # those that are stuck take `GRACE_SECONDS`
            self._poll(lambda: self._store.add("left", 0) >= self.size - 1, GRACE_SECONDS + 4 * WATCH_SECONDS)

    def _join(self) -> None:
        """Meet the others in the store. Raises `Elsewhere` where an earlier attempt has ended for good."""
        import torch.distributed

        dist: Any = torch.distributed  # its stores come from C++ and have no types
        if "GLOO_SOCKET_IFNAME" not in os.environ and (interface := _interface(self._address, self._port)):
            os.environ["GLOO_SOCKET_IFNAME"] = interface
        base = _store(self._address, self._port, self.rank == 0 and not self._agent_store)
        # A script may do several runs, one after the other: the same number on every process is the same run.
        place = f"runner/{next(_RUNS)}"
        self._root = dist.PrefixStore(place, base)
        if self._root.check(["ended"]) and (code := int(self._root.get("ended"))):
            raise Elsewhere("an earlier attempt has ended for good", code)
        token = self._meet()
        self._store = dist.PrefixStore(f"{place}/{token}", base)
        beside = dist.PrefixStore(f"{place}/{token}", base.clone())
        self._watcher = threading.Thread(target=self._watch, args=(beside,), daemon=True)
        self._watcher.start()

    def _meet(self) -> str:
        """The token of this attempt, the same on all processes that live now."""
        mine, root = secrets.token_hex(8), self._root
        if self.rank:
            root.set(f"join/{self.rank}", mine)
            self._poll(lambda: root.check([f"answer/{mine}"]), JOIN_SECONDS, "rank 0 did not come")
            token: str = root.get(f"answer/{mine}").decode()
            root.set(f"here/{token}/{self.rank}", "")
            return token
        missing, answered = set(range(1, self.size)), dict[int, bytes]()

        def all_here() -> bool:
            for rank in list(missing):
                if root.check([f"join/{rank}"]) and (number := root.get(f"join/{rank}")) != answered.get(rank):
                    root.set(f"answer/{number.decode()}", mine)
                    answered[rank] = number
                if root.check([f"here/{mine}/{rank}"]):
                    missing.discard(rank)
            return not missing

        self._poll(all_here, JOIN_SECONDS, "not all processes came")
        return mine

    def _poll(self, done: Callable[[], bool], seconds: float, otherwise: str | None = None) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                if otherwise is None:
                    return
                raise RunFailed(
                    f"{otherwise} within {seconds:g} seconds to {self._address}:{self._port}; look at the messages of the others"
                )
            time.sleep(0.01)

    def _await(self, key: str, seconds: float) -> None:
        """Until rank 0 has set a key. Raises `Elsewhere` when the run has failed instead."""

        def there() -> bool:
            if self._store.check(["failure"]) and not self._store.check([key]):
                raise self._news()
            return bool(self._store.check([key]))

        self._poll(there, seconds, "rank 0 did not answer")

    def _news(self) -> Elsewhere:
        news = json.loads(self._store.get("failure"))
        return Elsewhere(news["text"], news["code"])

    # ----------------------------------------------------------------------------------------------------- plan, check

    def tell(self, plan: dict[str, Any]) -> None:
        if self._store is None:
            self._join()
        self._store.set("plan", json.dumps(plan))

    def hear(self) -> dict[str, Any]:
        if self._store is None:
            self._join()
        self._await("plan", JOIN_SECONDS)
        plan: dict[str, Any] = json.loads(self._store.get("plan"))
        return plan

    def connect(self, kind: str, timeout_seconds: float) -> None:
        import torch.distributed

        dist: Any = torch.distributed
        if kind not in BACKENDS:
            raise ConfigError(
                f"`device` must be cpu, cuda, rocm or xpu for several processes, but is {kind}; use device=cpu"
            )
        self._timeout = timeout_seconds
        dist.init_process_group(
            BACKENDS[kind],
            store=dist.PrefixStore("c10d", self._store),
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=timeout_seconds),
        )
        self._connected = True

    def together(self, work: Callable[[], tuple[T, dict[str, str]]]) -> T:
        import torch.distributed as dist

        problems: tuple[str, ...] = ()
        kind: type[InputError] = InputError
        equal: dict[str, str] = {}
        result: Any = None
        try:
            result, equal = work()
        except InputError as error:
            problems, kind = error.problems, type(error)
        outcomes: list[Any] = [None] * self.size
        dist.all_gather_object(outcomes, (problems, kind.__name__, equal))
        said = _differences(outcomes)
        if not said:
            return result  # type: ignore[no-any-return]
        if self.rank:
            raise Elsewhere("\n".join(said), 2)
        self._known = kind(said)
        raise self._known

    def broadcast(self, value: T | None) -> T | None:
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    # ---------------------------------------------------------------------------------------------------------- tensors

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
        return self.most([flag])[0] > 0

    def most(self, numbers: Sequence[int]) -> list[int]:
        """The largest of each number on any process."""
        import torch
        import torch.distributed as dist

        votes = torch.tensor([int(number) for number in numbers])
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        found: list[int] = votes.tolist()
        return found

    def agreed(self, request: StopRequest) -> Stop:
        self._request = request
        return Agreement(self, request)

    # ---------------------------------------------------------------------------------------------------------- failure

    def remember(self, run_dir: str) -> None:
        self._root.set("run_dir", run_dir)

    @property
    def remembered(self) -> str | None:
        if self._store is None:
            self._join()
        return self._root.get("run_dir").decode() if self._root.check(["run_dir"]) else None

    def on_failure(self, tell: Callable[[str], None]) -> None:
        self._tell_failure = tell

    def explain(self, error: BaseException, step: int) -> BaseException:
        if isinstance(error, RunnerError) or not _is_lost(error):
            return error
        store = self._store
        try:
            store.set(f"stuck/{self.rank}", "")
            stuck = [f"stuck/{rank}" for rank in range(self.size)]
            self._poll(lambda: store.check(["failure"]) or store.check(stuck), GRACE_SECONDS / 2)
            missing = [rank for rank, key in enumerate(stuck) if not store.check([key])]
            if store.check(["failure"]):
                return self._news()
        except Exception:  # the store is gone as well, and with it the process or launcher that kept it
            return Lost(f"the launcher, or rank 0, is gone at step {step}; go on with resume=…")
        who = _ranks(missing) if missing else "the connection between the processes"
        what = f"did not answer within {self._timeout:g} seconds" if "imed out" in str(error) else "was lost"
        text = f"{who} {what} at step {step}; go on with resume=…"
        return Lost(text) if self._announce(text, 1) else self._news()

    def _watch(self, store: Any) -> None:
        """Beside the training: end this process when another one failed or the launcher is gone, and it does not itself."""
        while not self._left.wait(WATCH_SECONDS):
            if self._parent is not None and os.getppid() != self._parent:
                self._orphaned()
            try:
                if not store.check(["failure"]):
                    continue
                news = json.loads(store.get("failure"))
                reason, code = news["text"], int(news["code"])
            except Exception:
                reason, code = "the launcher, or rank 0, is gone", 1
            if not self._left.wait(GRACE_SECONDS):
                with contextlib.suppress(RuntimeError):  # the store is gone
                    store.add("left", 1)
                self._end(reason, code)

    def _orphaned(self) -> None:
        """The launcher was killed: stop as on SIGTERM, saving, or at once if that takes too long."""
        import signal

        if self._request is not None:
            self._request.signal_number = self._request.signal_number or signal.SIGTERM
        if not self._left.wait(GRACE_SECONDS):
            self._end("the launcher is gone", 1)

    def _end(self, reason: str, code: int) -> None:
        try:
            self._tell_failure(reason)
        finally:
            sys.stderr.flush()
            os._exit(code)


_RUNS = itertools.count()
"""Runs of this process as one of several."""


@functools.cache
def _store(address: str, port: int, hosts: bool) -> Any:
    """The store at an address, kept in this process if it `hosts` it. Raises `RunFailed` where it cannot be."""
    import torch.distributed

    dist: Any = torch.distributed  # its stores come from C++ and have no types
    try:
        timeout = timedelta(seconds=CONNECT_SECONDS)
        return dist.TCPStore(address, port, is_master=hosts, timeout=timeout, wait_for_workers=False)
    except dist.DistError as error:
        raise RunFailed(
            f"`MASTER_ADDR`:`MASTER_PORT` must be where the processes can meet, but {address}:{port} cannot be "
            f"{'opened' if hosts else 'reached'} ({_sentence(error)}); take another port, or mend the address"
        ) from None


class Agreement:
    """Asks all processes about four times a second whether a signal came: each alone would stop at a step of its own."""

    def __init__(self, group: Group, request: StopRequest) -> None:
        self._group, self._request = group, request
        self._signal: int | None = None
        self._next = -1
        self._every, self._step, self._time = 1, 0, time.perf_counter()

    def requested(self, step: int) -> int | None:
        """As of `Stop`; every process asks at every step."""
        if self._signal is None and not self._step <= step < self._next:
            number, self._every = self._group.most([self._request.signal_number or 0, self._pace(step)])
            self._signal, self._next = number or None, step + self._every
        return self._signal

    def _pace(self, step: int) -> int:
        """Steps until the next question: what rank 0 took for the last ones decides, the others have no say."""
        now = time.perf_counter()
        seconds, self._time = (now - self._time) / max(step - self._step, 1), now
        self._step = step
        return 0 if self._group.rank else max(1, min(int(WATCH_SECONDS / max(seconds, 1e-9)), 2 * self._every))


def _place(environ: Mapping[str, str]) -> tuple[int, int, int, int, str, int]:
    """Rank, processes, the same on this host, address and port of the store. Raises `ConfigError` with all problems."""
    local = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    problems, numbers = [], {}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        text = environ.get(name, local.get(name))
        if text is None or not re.fullmatch(r"[0-9]{1,9}", text):
            found = "is not set" if text is None else f"is {text!r}"
            problems.append(
                f"the environment variable `{name}` must be an integer, but {found}; start with torchrun, or unset RANK"
            )
        else:
            numbers[name] = int(text)
    if not environ.get("MASTER_ADDR"):
        problems.append(
            "the environment variable `MASTER_ADDR` must name a host, but is not set; start with torchrun, or unset RANK"
        )
    for name, of in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if name in numbers and of in numbers and not numbers[name] < numbers[of]:
            problems.append(
                f"the environment variable `{name}` must be below `{of}`={numbers[of]}, but is {numbers[name]}; mend one of them"
            )
    if not 0 < numbers.get("MASTER_PORT", 1) < 65536:
        problems.append(
            f"the environment variable `MASTER_PORT` must be 1 to 65535, but is {numbers['MASTER_PORT']}; mend it"
        )
    if problems:
        raise ConfigError(problems)
    rank, size, local_rank, local_size, port = (
        numbers[n] for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    )
    return rank, size, local_rank, local_size, environ["MASTER_ADDR"], port


def _interface(address: str, port: int) -> str | None:
    """The network interface by which this host reaches an address; gloo would take the one of the host's name."""
    import fcntl
    import socket
    import struct

    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, port))  # sends nothing
            mine = socket.inet_aton(probe.getsockname()[0])
            for _, name in socket.if_nameindex():
                request = struct.pack("256s", name.encode()[:15])
                try:
                    if fcntl.ioctl(probe.fileno(), 0x8915, request)[20:24] == mine:  # SIOCGIFADDR
                        return name
                except OSError:  # an interface without an address
                    continue
    except OSError:
        pass
    return None


def _differences(outcomes: Sequence[tuple[Sequence[str], str, Mapping[str, str]]]) -> list[str]:
    """What went wrong on some processes, and what differs between those where nothing did; a sentence each."""
    where: dict[str, list[int]] = {}
    for rank, (problems, _, _) in enumerate(outcomes):
        for problem in problems:
            where.setdefault(problem, []).append(rank)
    said = [p if len(ranks) == len(outcomes) else f"{_ranks(ranks)}: {p}" for p, ranks in where.items()]
    if said:
        return said
    first = outcomes[0][2]
    for name, value in first.items():
        other = [rank for rank, (_, _, equal) in enumerate(outcomes) if equal.get(name) != value]
        if other:
            said.append(
                f"{name} must be the same on every process, but is {value[:16]} on rank 0 and "
                f"{outcomes[other[0]][2].get(name, 'missing')[:16]} on {_ranks(other)}; make them equal"
            )
    return said


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {', '.join(map(str, ranks))}"


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _is_lost(error: BaseException) -> bool:
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in LOST)
    )
