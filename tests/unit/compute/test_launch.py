"""The configuration that `launch.processes` gives to torch's launcher, and the exit code of its outcome."""

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
from runner.compute.launch import launch, needs_launch
from runner.config.compose import compose
from runner.config.schema import Config
from runner.errors import ConfigError, Interrupted, RunFailed

TWO = "launch.processes=2"


def hosts(endpoint: str = "127.0.0.1:29500") -> tuple[str, str]:
    return "launch.nodes=2", f"launch.rdzv_endpoint={endpoint}"


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which another program listens."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the variables that a launch sets for its workers."""
    for name in ("OMP_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG", "TORCH_CPP_LOG_LEVEL"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def config(*overrides: str) -> Config:
    return compose(["data=line", "device=cpu", *overrides]).config


def failure(code: int, timestamp: int) -> ProcessFailure:
    """Return the failure of a worker: its exit code (negative: the signal that killed it) and its time in seconds."""
    failed = ProcessFailure(local_rank=0, pid=4711, exitcode=code, error_file="")
    failed.timestamp = timestamp
    return failed


class Launcher:
    """A stand-in for torch's launcher: it records its configuration and command, then calls `outcome`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, outcome: Callable[[], object] = lambda: None) -> None:
        self.command: tuple[str, ...] = ()
        self.config: Any = None
        self.environment: dict[str, str] = {}

        def elastic_launch(config: Any, entrypoint: str) -> Callable[..., object]:
            def start(*arguments: str) -> object:
                self.config, self.command, self.environment = config, (entrypoint, *arguments), dict(os.environ)
                return outcome()

            return start

        monkeypatch.setattr(api, "elastic_launch", elastic_launch)


def fails(*failures: tuple[int, ProcessFailure]) -> Callable[[], object]:
    def outcome() -> object:
        raise ChildFailedError("runner", dict(failures))

    return outcome


# -------------------------------------------------------------------------------------------------- requested launches


@pytest.mark.parametrize(("overrides", "expected"), [((), False), ((TWO,), True), (hosts(), True)])
def test_only_several_processes_need_a_launch(overrides: Sequence[str], expected: bool) -> None:
    assert needs_launch(config(*overrides)) == expected


def test_the_same_command_is_started_on_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = Launcher(monkeypatch)
    arguments = ["data=line", "device=cpu", TWO]
    assert launch(config(TWO), arguments) == 0
    assert launcher.command == (sys.executable, "-m", "runner", *arguments)


def test_one_host_uses_a_free_port_and_a_run_id_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = Launcher(monkeypatch)
    launch(config("launch.processes=3", "launch.max_restarts=5"), [])
    requested = launcher.config
    assert (requested.min_nodes, requested.max_nodes, requested.nproc_per_node, requested.max_restarts) == (1, 1, 3, 5)
    assert (requested.rdzv_backend, requested.rdzv_endpoint, requested.local_addr) == (
        "c10d",
        "localhost:0",
        "localhost",
    )
    assert str(os.getpid()) in requested.run_id


def test_several_hosts_use_the_endpoint_and_a_common_run_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launcher = Launcher(monkeypatch)
    run_ids = []
    for overrides in ((), (), ("seed=1",)):
        launch(config(*hosts(), *overrides), [])
        run_ids.append(launcher.config.run_id)
    assert (launcher.config.min_nodes, launcher.config.max_nodes, launcher.config.rdzv_endpoint) == (
        2,
        2,
        "127.0.0.1:29500",
    )
    assert run_ids[0] == run_ids[1] != run_ids[2]


def test_the_host_with_the_address_hosts_the_rendezvous(monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    """Unless another process uses the port; the host is known by that address, whatever its name resolves to."""
    launcher = Launcher(monkeypatch)
    free = processes.free_port()
    for endpoint, is_host in ((f"127.0.0.1:{free}", True), (f"localhost:{free}", True), (f"127.0.0.1:{taken}", False)):
        launch(config(*hosts(endpoint)), [])
        assert launcher.config.rdzv_configs["is_host"] is is_host
        assert launcher.config.local_addr in ("127.0.0.1", "::1")


@pytest.mark.parametrize("endpoint", ["no-such-host.invalid:29500", f"{'k' * 100}.invalid:1"])
def test_an_unreachable_endpoint_is_refused(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = Launcher(monkeypatch)
    with pytest.raises(ConfigError, match=f"`launch.rdzv_endpoint` must be .*, got {endpoint} "):
        launch(config(*hosts(endpoint)), [])
    assert launcher.command == ()


def test_the_workers_inherit_masks_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = Launcher(monkeypatch)
    launch(config(TWO, "device.threads=3", "deterministic=true"), [])
    assert launcher.environment["OMP_NUM_THREADS"] == "3"
    assert launcher.environment["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_without_a_number_of_threads_each_worker_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = Launcher(monkeypatch)
    launch(config(TWO), [])
    assert launcher.environment["OMP_NUM_THREADS"] == "1"


def test_an_impossible_number_of_processes_is_refused_before_the_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = Launcher(monkeypatch)
    with pytest.raises(ConfigError, match=r"`strategy.chunks` must be divisible by the number of processes, 6"):
        launch(config("strategy.reduction=exact", "launch.processes=3", *hosts()), [])
    assert launcher.command == ()


# -------------------------------------------------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    ("failures", "code", "message"),
    [
        ([(0, failure(2, 10)), (1, failure(2, 11))], 2, ""),
        ([(1, failure(143, 10))], 143, ""),
        # The first failure is the cause; the others followed.
        ([(0, failure(1, 20)), (1, failure(2, 10))], 2, ""),
        ([(3, failure(-signal.SIGKILL, 10))], 1, "error: rank 3 was killed by SIGKILL\n"),
        ([(0, failure(1, 5)), (1, failure(-signal.SIGSEGV, 10))], 1, "error: rank 1 was killed by SIGSEGV\n"),
        # Workers that the launcher ended are not the cause.
        ([(0, failure(2, 10)), (1, failure(-signal.SIGTERM, 11))], 2, ""),
        ([(0, failure(-signal.SIGTERM, 11))], 1, ""),
    ],
)
def test_the_exit_code_is_that_of_the_first_failure_and_killed_workers_are_named(
    failures: list[tuple[int, ProcessFailure]], code: int, message: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    Launcher(monkeypatch, fails(*failures))
    assert launch(config(TWO), []) == code
    assert capsys.readouterr().err == message


def test_the_number_of_attempts_is_reported_after_restarts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Launcher(monkeypatch, fails((0, failure(-signal.SIGKILL, 10))))
    assert launch(config(TWO, "launch.max_restarts=3"), []) == 1
    assert capsys.readouterr().err == "error: rank 0 was killed by SIGKILL, in the last of 4 attempts\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_launcher_is_its_exit_code(number: int, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def outcome() -> object:
        raise SignalException("stopped", signal.Signals(number))

    Launcher(monkeypatch, outcome)
    assert launch(config(TWO), []) == code


def test_a_signal_before_the_launch_starts_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal arrives while torch is imported, where an exception may be lost: it is checked afterwards."""
    launcher = Launcher(monkeypatch)
    monkeypatch.setattr(devices, "installed_build", lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted) as caught:
        launch(config(TWO), [])
    assert caught.value.exit_code == 130
    assert str(caught.value) == "stopped before training began; nothing was written (SIGINT)"
    assert launcher.command == ()


def test_hosts_that_do_not_meet_are_reported_with_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    def outcome() -> object:
        raise RendezvousConnectionError("no connection")

    Launcher(monkeypatch, outcome)
    with pytest.raises(RunFailed) as caught:
        launch(config(*hosts()), [])
    assert str(caught.value) == (
        "`launch.rdzv_endpoint` must be an address where 2 hosts meet, but they did not meet at 127.0.0.1:29500 "
        "(no connection); correct it, or start the same command on the other hosts"
    )
