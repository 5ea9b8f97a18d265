"""The rank environment, differences between processes, lost processes, and the stop consensus."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.distributed as dist

from runner import cli
from runner.compute.processes import ProcessGroup, SingleProcess, find, launched, watchdog
from runner.compute.processes.consensus import StopConsensus, differences
from runner.compute.processes.environment import network_interface, read_environment
from runner.compute.processes.rendezvous import Rendezvous, poll
from runner.compute.processes.watchdog import FailureChannel, is_lost
from runner.compute.signals import StopRequest
from runner.errors import ConfigError, ProcessLost

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500",
}  # fmt: skip


def problems(environ: Mapping[str, str]) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        find(environ)
    return caught.value.problems


@pytest.fixture(autouse=True)
def _log_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the variable that a process group would otherwise set for good."""
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")


# ------------------------------------------------------------------------------------------------------- environment


def test_a_process_without_a_launcher_is_a_single_process() -> None:
    world = find({})
    assert isinstance(world, SingleProcess)
    assert (world.rank, world.size, world.local_rank, world.local_size) == (0, 1, 0, 1)
    assert not launched({"RANK": "0"})
    assert not launched({"WORLD_SIZE": "2"})


def test_ranks_and_sizes_are_read_from_the_environment() -> None:
    world = find(TORCHRUN)
    assert isinstance(world, ProcessGroup)
    assert (world.rank, world.size, world.local_rank, world.local_size) == (3, 4, 1, 2)


def test_without_local_ranks_there_is_one_process_on_each_host() -> None:
    """Launchers other than torchrun may set no local ranks."""
    world = find({name: value for name, value in TORCHRUN.items() if not name.startswith("LOCAL")})
    assert (world.rank, world.size, world.local_rank, world.local_size) == (3, 4, 0, 1)


@pytest.mark.parametrize(
    ("count", "most", "local_size", "restart"), [("0", "1", "4", True), ("1", "1", "4", False), ("0", "1", "2", False)]
)
def test_a_restart_is_only_predicted_when_one_launcher_has_all_processes(
    count: str, most: str, local_size: str, restart: bool
) -> None:
    """On several hosts each launcher counts its own attempts."""
    restarts = {"TORCHELASTIC_RESTART_COUNT": count, "TORCHELASTIC_MAX_RESTARTS": most}
    assert read_environment({**TORCHRUN, "LOCAL_WORLD_SIZE": local_size, **restarts}).will_restart is restart
    assert not read_environment({**TORCHRUN, "LOCAL_WORLD_SIZE": local_size}).will_restart


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"RANK": "x"}, "the environment variable `RANK` must be an integer, got 'x'; start with torchrun, or unset RANK"),
        ({"RANK": "-1"}, "the environment variable `RANK` must be an integer, got '-1'; start with torchrun, or unset RANK"),
        ({"RANK": "٣"}, "the environment variable `RANK` must be an integer, got '٣'; start with torchrun, or unset RANK"),
        ({"RANK": "5"}, "the environment variable `RANK` must be below `WORLD_SIZE`=4, got 5; correct one of them"),
        ({"WORLD_SIZE": ""}, "the environment variable `WORLD_SIZE` must be an integer, got ''; start with torchrun, or unset RANK"),
        ({"WORLD_SIZE": "2.0"}, "the environment variable `WORLD_SIZE` must be an integer, got '2.0'; start with torchrun, or unset RANK"),
        ({"WORLD_SIZE": "0"}, "the environment variable `RANK` must be below `WORLD_SIZE`=0, got 3; correct one of them"),
        ({"LOCAL_RANK": "2"}, "the environment variable `LOCAL_RANK` must be below `LOCAL_WORLD_SIZE`=2, got 2; correct one of them"),
        ({"MASTER_PORT": "99999"}, "the environment variable `MASTER_PORT` must be 1 to 65535, got 99999; correct it"),
        ({"MASTER_PORT": "0"}, "the environment variable `MASTER_PORT` must be 1 to 65535, got 0; correct it"),
        ({"MASTER_PORT": "abc"}, "the environment variable `MASTER_PORT` must be an integer, got 'abc'; start with torchrun, or unset RANK"),
        ({"MASTER_PORT": None}, "the environment variable `MASTER_PORT` must be an integer, but is not set; start with torchrun, or unset RANK"),
        ({"MASTER_ADDR": ""}, "the environment variable `MASTER_ADDR` must name a host, but is not set; start with torchrun, or unset RANK"),
    ],
)  # fmt: skip
def test_an_invalid_variable_is_named(changes: dict[str, str | None], sentence: str) -> None:
    environ = {name: value for name, value in {**TORCHRUN, **changes}.items() if value is not None}
    assert problems(environ) == (sentence,)


def test_all_invalid_variables_are_named_at_once() -> None:
    assert len(problems({"RANK": "5", "WORLD_SIZE": "1", "MASTER_PORT": "abc"})) == 3


def test_the_command_line_refuses_an_invalid_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {**TORCHRUN, "MASTER_PORT": "abc"}.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["data=line", "run_dir=never"]) == 2
    assert capsys.readouterr().err == (
        "error: the environment variable `MASTER_PORT` must be an integer, got 'abc'; start with torchrun, or unset RANK\n"
    )


# --------------------------------------------------------------------------------------------------------- interface


def test_the_interface_is_the_one_that_reaches_the_address() -> None:
    assert network_interface("127.0.0.1", 29500) == "lo"
    assert network_interface("localhost", 29500) == "lo"


def test_an_unreachable_address_leaves_the_choice_of_the_interface_to_gloo() -> None:
    assert network_interface("no-such-host.invalid", 29500) is None


# ------------------------------------------------------------------------------------------------------- differences

Outcome = tuple[tuple[str, ...], str, dict[str, str]]


def success(**equal: str) -> Outcome:
    return (), "InputError", equal


def failure(*problems: str) -> Outcome:
    return problems, "DataError", {}


@pytest.mark.parametrize(
    ("outcomes", "messages"),
    [
        ([success(data="a"), success(data="a")], []),
        ([failure("no file"), failure("no file")], ["no file"]),
        ([success(data="a"), failure("no file"), failure("no file")], ["rank 1, 2: no file"]),
        ([failure("one", "two"), failure("two")], ["rank 0: one", "two"]),
        # When a process failed, values are not compared.
        ([success(data="a"), failure("no file"), success(data="b")], ["rank 1: no file"]),
        (
            [success(data="a", torch="2"), success(data="b", torch="2"), success(data="c", torch="2")],
            ["data must be the same on every process, got a on rank 0 and b on rank 1, 2; make them equal"],
        ),
        (
            [success(data="a"), success()],
            ["data must be the same on every process, got a on rank 0 and missing on rank 1; make them equal"],
        ),
        (
            [success(data="0123456789abcdef" + "0"), success(data="0123456789abcdef" + "1")],
            ["data must be the same on every process, got 0123456789abcdef on rank 0 and 0123456789abcdef on rank 1; make them equal"],
        ),
    ],
)  # fmt: skip
def test_each_difference_is_one_sentence_that_names_the_ranks(outcomes: list[Outcome], messages: list[str]) -> None:
    assert differences(outcomes) == messages


# ---------------------------------------------------------------------------------------------------- lost processes


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[/pytorch/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:4711"),
        RuntimeError("[pair.cc:534] Read error [127.0.0.1]:4711: Connection reset by peer"),
        RuntimeError("[unbound_buffer.cc:81] Timed out waiting 3000ms for recv operation to complete"),
        dist.DistBackendError("NCCL communicator was aborted on rank 1."),
        dist.DistNetworkError("failed to recv, got 0 bytes"),
    ],
)
def test_a_connection_error_means_that_another_process_is_lost(error: Exception) -> None:
    assert is_lost(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("gloo"), ProcessLost("x")]
)
def test_any_other_error_is_of_this_process(error: Exception) -> None:
    assert not is_lost(error)


class ClosedRendezvous:
    """A rendezvous whose store has closed because the launcher was killed."""

    environment = read_environment(TORCHRUN)

    def publish(self, key: str, text: str) -> None:
        raise ProcessLost("the launcher or rank 0 exited")

    def leave(self, seconds: float) -> None:
        raise ProcessLost("the launcher or rank 0 exited")


def test_without_the_store_a_process_stops_as_on_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store closes some time before the launcher has ended as a process."""
    monkeypatch.setattr(watchdog, "GRACE_SECONDS", 60.0)
    closed: Any = ClosedRendezvous()
    dog = watchdog.Watchdog(closed, closed)
    dog.request = request = StopRequest()
    deadline = time.monotonic() + 20
    while request.signal_number is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    dog.close()
    assert request.signal_number == signal.SIGTERM


class SlowRendezvous(Rendezvous):
    """A process that reports a failure only after another one did."""

    def publish_first(self, key: str, text: str) -> bool:
        assert poll(lambda: self.has(key), 20)
        return super().publish_first(key, text)


def test_a_timeout_on_one_process_explains_the_closed_connections_of_the_others() -> None:
    """Both processes are alive: rank 0 gave up after its timeout, and rank 1 reports the failure."""
    store = dist.HashStore()  # type: ignore[attr-defined]
    environments = [
        read_environment({**TORCHRUN, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}) for rank in "01"
    ]
    late, closed = (
        FailureChannel(kind(environment, store, store))
        for kind, environment in zip((SlowRendezvous, Rendezvous), environments, strict=True)
    )
    with ThreadPoolExecutor(1) as other:
        error = RuntimeError("Timed out waiting 3000ms for recv operation to complete")
        waited = other.submit(late.diagnose, error, 7, 3.0)
        reported = closed.diagnose(RuntimeError("Connection closed by peer"), 7, 3.0)
        text = "the connection between the processes did not answer within 3 seconds at step 7; continue with resume=…"
        assert [str(reported), str(waited.result())] == [text, text]


# ---------------------------------------------------------------------------------------------------- stop consensus


class Leader:
    """Rank 0 of processes that received no signal; `exchanges` are the steps of their collective checks."""

    def __init__(self) -> None:
        self.step, self.exchanges = 0, list[int]()

    def maximum(self, numbers: Sequence[int]) -> list[int]:
        self.exchanges.append(self.step)
        return list(numbers)


def exchanges(monkeypatch: pytest.MonkeyPatch, step_seconds: float, steps: int) -> list[int]:
    """Return the steps with a collective check in a run whose steps take so many seconds."""
    leader = Leader()
    monkeypatch.setattr(time, "perf_counter", lambda: leader.step * step_seconds)
    consensus = StopConsensus(0, leader.maximum, StopRequest())
    for leader.step in range(steps):
        assert consensus.requested(leader.step) is None
        assert consensus.requested(leader.step) is None  # a second call at a step makes no exchange
    return leader.exchanges


def test_slow_steps_have_a_check_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Except the second one: the time of a step is not known before."""
    assert exchanges(monkeypatch, 1.0, 6) == [0, 2, 3, 4, 5]


def test_fast_steps_have_about_four_checks_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """The distance doubles until it is a quarter of a second: 256 steps of 1/1024 s."""
    assert exchanges(monkeypatch, 1 / 1024, 1200) == [0, 2, 6, 14, 30, 62, 126, 254, 510, 766, 1022]


def test_a_signal_is_returned_at_every_later_step() -> None:
    request = StopRequest()
    consensus = StopConsensus(0, Leader().maximum, request)
    assert consensus.requested(0) is None
    request.signal_number = 15
    assert [consensus.requested(step) for step in (1, 2, 3, 4)].count(15) >= 2
    request.signal_number = None
    assert consensus.requested(5) == 15


# ---------------------------------------------------------------------------------------------------- single process


def test_a_single_process_needs_no_others() -> None:
    world, request = SingleProcess(), StopRequest()
    tensor = torch.tensor([1.0])
    assert world.sum(tensor) is tensor
    assert world.gather(tensor) == [tensor]
    assert world.any(True)
    assert not world.any(False)
    assert world.broadcast("x") == "x"
    assert world.all_ranks_stop(request) is request
    assert world.run_on_all_ranks(lambda: (7, {"data": "a"})) == 7
    error = RuntimeError("Connection closed by peer")
    assert world.diagnose(error, 3) is error
    assert world.previous_run_dir is None
