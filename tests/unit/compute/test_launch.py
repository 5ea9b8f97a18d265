"""What `launch.processes` asks of torch's launcher, and what becomes of its answer."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import processes
import pytest
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousConnectionError
from torch.distributed.launcher import api

from runner.compute import devices
from runner.compute.launch import launch, wanted
from runner.config.compose import compose
from runner.config.schema import Config
from runner.errors import ConfigError, Interrupted, RunFailed

TWO = "launch.processes=2"


def hosts(endpoint: str = "127.0.0.1:29500") -> tuple[str, str]:
    return "launch.nodes=2", f"launch.rdzv_endpoint={endpoint}"


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which a program listens."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a launcher leaves to its workers must not stay."""
    for name in ("OMP_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG", "TORCH_CPP_LOG_LEVEL"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def config(*words: str) -> Config:
    return compose(["data=line", "device=cpu", *words]).config


def failure(code: int, timestamp: int) -> ProcessFailure:
    """Of a worker that ended with a code (negative: the signal that killed it) at a time in seconds."""
    failed = ProcessFailure(local_rank=0, pid=4711, exitcode=code, error_file="")
    failed.timestamp = timestamp
    return failed


class Launcher:
    """In place of torch's: it notes what it is asked for, and then what is to happen does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, happen: Callable[[], object] = lambda: None) -> None:
        self.command: tuple[str, ...] = ()
        self.asked: Any = None
        self.environment: dict[str, str] = {}

        def elastic_launch(asked: Any, entrypoint: str) -> Callable[..., object]:
            def start(*arguments: str) -> object:
                self.asked, self.command, self.environment = asked, (entrypoint, *arguments), dict(os.environ)
                return happen()

            return start

        monkeypatch.setattr(api, "elastic_launch", elastic_launch)


def fails(*failures: tuple[int, ProcessFailure]) -> Callable[[], object]:
    def happen() -> object:
        raise ChildFailedError("runner", dict(failures))

    return happen


# ------------------------------------------------------------------------------------------------------- what is asked


@pytest.mark.parametrize(("words", "asked"), [((), False), ((TWO,), True), (hosts(), True)])
def test_one_process_is_this_one(words: Sequence[str], asked: bool) -> None:
    assert wanted(config(*words)) == asked


def test_the_same_command_is_started_on_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = Launcher(monkeypatch)
    words = ["data=line", "device=cpu", TWO]
    assert launch(config(TWO), words) == 0
    assert launcher.command == (sys.executable, "-m", "runner", *words)


def test_one_host_takes_a_free_port_and_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = Launcher(monkeypatch)
    launch(config("launch.processes=3", "launch.max_restarts=5"), [])
    asked = launcher.asked
    assert (asked.min_nodes, asked.max_nodes, asked.nproc_per_node, asked.max_restarts) == (1, 1, 3, 5)
    assert (asked.rdzv_backend, asked.rdzv_endpoint, asked.local_addr) == ("c10d", "localhost:0", "localhost")
    assert str(os.getpid()) in asked.run_id


def test_several_hosts_meet_where_they_are_told_under_a_name_that_all_of_them_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launcher = Launcher(monkeypatch)
    names = []
    for words in ((), (), ("seed=1",)):
        launch(config(*hosts(), *words), [])
        names.append(launcher.asked.run_id)
    assert (launcher.asked.min_nodes, launcher.asked.max_nodes, launcher.asked.rdzv_endpoint) == (
        2,
        2,
        "127.0.0.1:29500",
    )
    assert names[0] == names[1] != names[2]


def test_the_host_that_has_the_address_keeps_the_meeting_place(monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    """Unless another process there does already; and it is known by that address, whatever its name stands for."""
    launcher = Launcher(monkeypatch)
    free = processes.free_port()
    for endpoint, here in ((f"127.0.0.1:{free}", True), (f"localhost:{free}", True), (f"127.0.0.1:{taken}", False)):
        launch(config(*hosts(endpoint)), [])
        assert launcher.asked.rdzv_configs["is_host"] is here
        assert launcher.asked.local_addr in ("127.0.0.1", "::1")


@pytest.mark.parametrize("endpoint", ["no-such-host.invalid:29500", "127.0.0.1:99999"])
def test_a_meeting_place_that_there_is_no_way_to_is_refused(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = Launcher(monkeypatch)
    with pytest.raises(ConfigError, match=f"`launch.rdzv_endpoint` must be .*, but {endpoint} is not"):
        launch(config(*hosts(endpoint)), [])
    assert launcher.command == ()


def test_the_workers_find_masks_and_threads_in_their_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = Launcher(monkeypatch)
    launch(config(TWO, "device.threads=3", "deterministic=true"), [])
    assert launcher.environment["OMP_NUM_THREADS"] == "3"
    assert launcher.environment["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_without_a_number_of_threads_each_worker_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = Launcher(monkeypatch)
    launch(config(TWO), [])
    assert launcher.environment["OMP_NUM_THREADS"] == "1"


def test_a_number_that_cannot_work_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = Launcher(monkeypatch)
    with pytest.raises(ConfigError, match=r"`strategy.chunks` must be divisible by the number of processes, 6"):
        launch(config("strategy.reduction=exact", "launch.processes=3", *hosts()), [])
    assert launcher.command == ()


# -------------------------------------------------------------------------------------------------- what is answered


@pytest.mark.parametrize(
    ("failures", "code", "said"),
    [
        ([(0, failure(2, 10)), (1, failure(2, 11))], 2, ""),
        ([(1, failure(143, 10))], 143, ""),
        # The first that failed knows why; the others followed.
        ([(0, failure(1, 20)), (1, failure(2, 10))], 2, ""),
        ([(3, failure(-signal.SIGKILL, 10))], 1, "error: rank 3 was killed by SIGKILL\n"),
        ([(0, failure(1, 5)), (1, failure(-signal.SIGSEGV, 10))], 1, "error: rank 1 was killed by SIGSEGV\n"),
        # What the launcher itself ended is no cause.
        ([(0, failure(2, 10)), (1, failure(-signal.SIGTERM, 11))], 2, ""),
        ([(0, failure(-signal.SIGTERM, 11))], 1, ""),
    ],
)
def test_the_exit_code_is_that_of_the_first_failure_and_who_was_killed_is_named(
    failures: list[tuple[int, ProcessFailure]], code: int, said: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    Launcher(monkeypatch, fails(*failures))
    assert launch(config(TWO), []) == code
    assert capsys.readouterr().err == said


def test_after_restarts_their_number_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Launcher(monkeypatch, fails((0, failure(-signal.SIGKILL, 10))))
    assert launch(config(TWO, "launch.max_restarts=3"), []) == 1
    assert capsys.readouterr().err == "error: rank 0 was killed by SIGKILL, in the last of 4 attempts\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_launcher_is_its_exit_code(number: int, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def happen() -> object:
        raise SignalException("stopped", signal.Signals(number))

    Launcher(monkeypatch, happen)
    assert launch(config(TWO), []) == code


def test_a_signal_before_the_workers_are_started_starts_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes while torch is imported, where an exception may be lost: it is looked for afterwards."""
    launcher = Launcher(monkeypatch)
    monkeypatch.setattr(devices, "installed_build", lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted) as caught:
        launch(config(TWO), [])
    assert caught.value.exit_code == 130
    assert str(caught.value) == "stopped before training began; nothing was written (SIGINT)"
    assert launcher.command == ()


def test_hosts_that_do_not_meet_are_told_where_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    def happen() -> object:
        raise RendezvousConnectionError("no connection")

    Launcher(monkeypatch, happen)
    with pytest.raises(RunFailed) as caught:
        launch(config(*hosts()), [])
    assert str(caught.value) == (
        "`launch.rdzv_endpoint` must be where 2 hosts meet, but they did not at 127.0.0.1:29500 (no connection); "
        "mend it, or start the same command on the other hosts"
    )
