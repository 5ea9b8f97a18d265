"""Where a process stands among others, as its environment tells, and what differs between them."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist

from runner import cli
from runner.compute.processes import Group, SingleProcess, find, launched, watchdog
from runner.compute.processes.consensus import Agreement, differences
from runner.compute.processes.environment import interface, read
from runner.compute.processes.rendezvous import Meeting, poll
from runner.compute.processes.watchdog import News, is_lost
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
    """A process among others sets it, if it is not set."""
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")


# ------------------------------------------------------------------------------------------------------- environment


def test_a_process_that_nobody_launched_is_alone() -> None:
    found = find({})
    assert isinstance(found, SingleProcess)
    assert (found.rank, found.size, found.local_rank, found.local_size) == (0, 1, 0, 1)
    assert not launched({"RANK": "0"})
    assert not launched({"WORLD_SIZE": "2"})


def test_the_place_is_that_of_the_environment() -> None:
    found = find(TORCHRUN)
    assert isinstance(found, Group)
    assert (found.rank, found.size, found.local_rank, found.local_size) == (3, 4, 1, 2)


def test_without_local_numbers_every_process_is_alone_on_its_host() -> None:
    """What other launchers than torchrun set."""
    found = find({name: value for name, value in TORCHRUN.items() if not name.startswith("LOCAL")})
    assert (found.rank, found.size, found.local_rank, found.local_size) == (3, 4, 0, 1)


@pytest.mark.parametrize(
    ("count", "most", "local_size", "again"), [("0", "1", "4", True), ("1", "1", "4", False), ("0", "1", "2", False)]
)
def test_whether_all_start_again_is_known_where_one_launcher_has_them_all(
    count: str, most: str, local_size: str, again: bool
) -> None:
    """On several hosts each launcher counts the attempts of its own."""
    restarts = {"TORCHELASTIC_RESTART_COUNT": count, "TORCHELASTIC_MAX_RESTARTS": most}
    assert read({**TORCHRUN, "LOCAL_WORLD_SIZE": local_size, **restarts}).starts_again is again
    assert not read({**TORCHRUN, "LOCAL_WORLD_SIZE": local_size}).starts_again


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"RANK": "x"}, "the environment variable `RANK` must be an integer, but is 'x'; start with torchrun, or unset RANK"),
        ({"RANK": "-1"}, "the environment variable `RANK` must be an integer, but is '-1'; start with torchrun, or unset RANK"),
        ({"RANK": "٣"}, "the environment variable `RANK` must be an integer, but is '٣'; start with torchrun, or unset RANK"),
        ({"RANK": "5"}, "the environment variable `RANK` must be below `WORLD_SIZE`=4, but is 5; mend one of them"),
        ({"WORLD_SIZE": ""}, "the environment variable `WORLD_SIZE` must be an integer, but is ''; start with torchrun, or unset RANK"),
        ({"WORLD_SIZE": "2.0"}, "the environment variable `WORLD_SIZE` must be an integer, but is '2.0'; start with torchrun, or unset RANK"),
        ({"WORLD_SIZE": "0"}, "the environment variable `RANK` must be below `WORLD_SIZE`=0, but is 3; mend one of them"),
        ({"LOCAL_RANK": "2"}, "the environment variable `LOCAL_RANK` must be below `LOCAL_WORLD_SIZE`=2, but is 2; mend one of them"),
        ({"MASTER_PORT": "99999"}, "the environment variable `MASTER_PORT` must be 1 to 65535, but is 99999; mend it"),
        ({"MASTER_PORT": "0"}, "the environment variable `MASTER_PORT` must be 1 to 65535, but is 0; mend it"),
        ({"MASTER_PORT": "abc"}, "the environment variable `MASTER_PORT` must be an integer, but is 'abc'; start with torchrun, or unset RANK"),
        ({"MASTER_PORT": None}, "the environment variable `MASTER_PORT` must be an integer, but is not set; start with torchrun, or unset RANK"),
        ({"MASTER_ADDR": ""}, "the environment variable `MASTER_ADDR` must name a host, but is not set; start with torchrun, or unset RANK"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_named(changes: dict[str, str | None], sentence: str) -> None:
    environ = {name: value for name, value in {**TORCHRUN, **changes}.items() if value is not None}
    assert problems(environ) == (sentence,)


def test_all_that_makes_no_sense_is_named_at_once() -> None:
    assert len(problems({"RANK": "5", "WORLD_SIZE": "1", "MASTER_PORT": "abc"})) == 3


def test_the_command_line_refuses_it_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {**TORCHRUN, "MASTER_PORT": "abc"}.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["data=line", "run_dir=never"]) == 2
    assert capsys.readouterr().err == (
        "error: the environment variable `MASTER_PORT` must be an integer, but is 'abc'; start with torchrun, or unset RANK\n"
    )


# --------------------------------------------------------------------------------------------------------- interface


def test_the_interface_is_the_one_that_leads_to_the_address() -> None:
    assert interface("127.0.0.1", 29500) == "lo"
    assert interface("localhost", 29500) == "lo"


def test_an_address_that_leads_nowhere_leaves_the_choice_to_gloo() -> None:
    assert interface("no-such-host.invalid", 29500) is None


# ------------------------------------------------------------------------------------------------------- differences

Outcome = tuple[tuple[str, ...], str, dict[str, str]]


def well(**equal: str) -> Outcome:
    return (), "InputError", equal


def ill(*problems: str) -> Outcome:
    return problems, "DataError", {}


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        ([well(data="a"), well(data="a")], []),
        ([ill("no file"), ill("no file")], ["no file"]),
        ([well(data="a"), ill("no file"), ill("no file")], ["rank 1, 2: no file"]),
        ([ill("one", "two"), ill("two")], ["rank 0: one", "two"]),
        # Where something failed, nothing can be compared.
        ([well(data="a"), ill("no file"), well(data="b")], ["rank 1: no file"]),
        (
            [well(data="a", torch="2"), well(data="b", torch="2"), well(data="c", torch="2")],
            ["data must be the same on every process, but is a on rank 0 and b on rank 1, 2; make them equal"],
        ),
        (
            [well(data="a"), well()],
            ["data must be the same on every process, but is a on rank 0 and missing on rank 1; make them equal"],
        ),
        (
            [well(data="0123456789abcdef" + "0"), well(data="0123456789abcdef" + "1")],
            ["data must be the same on every process, but is 0123456789abcdef on rank 0 and 0123456789abcdef on rank 1; make them equal"],
        ),
    ],
)  # fmt: skip
def test_each_difference_is_one_sentence_that_names_the_ranks(outcomes: list[Outcome], said: list[str]) -> None:
    assert differences(outcomes) == said


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
def test_an_error_of_a_connection_is_that_of_another_process(error: Exception) -> None:
    assert is_lost(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("gloo"), ProcessLost("x")]
)
def test_any_other_error_is_our_own(error: Exception) -> None:
    assert not is_lost(error)


class Gone:
    """What is left to a process when the launcher with the store was killed."""

    place = read(TORCHRUN)

    def beside(self) -> Gone:
        return self

    def said(self, *names: str) -> bool:
        raise ProcessLost("the launcher, or rank 0, is gone")

    def leave(self, seconds: float) -> None:
        raise ProcessLost("the launcher, or rank 0, is gone")


def test_without_the_store_a_process_stops_as_on_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    """It closes some time before the launcher has ended as a process."""
    monkeypatch.setattr(watchdog, "GRACE_SECONDS", 60.0)
    watch = watchdog.Watch(Gone())  # type: ignore[arg-type]
    watch.request = request = StopRequest()
    deadline = time.monotonic() + 20
    while request.signal_number is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    watch.close()
    assert request.signal_number == signal.SIGTERM


class Slower(Meeting):
    """A process that tells of a failure only after another one did."""

    def say_first(self, name: str, text: str) -> bool:
        assert poll(lambda: self.said(name), 20)
        return super().say_first(name, text)


def test_who_waited_in_vain_is_believed_by_those_whose_connections_it_closed() -> None:
    """Both processes are there; rank 0 gave up, and rank 1 is the one that comes to tell of it."""
    store = dist.HashStore()  # type: ignore[attr-defined]
    places = [read({**TORCHRUN, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}) for rank in "01"]
    late, closed = (News(kind(place, store, store)) for kind, place in zip((Slower, Meeting), places, strict=True))
    with ThreadPoolExecutor(1) as other:
        error = RuntimeError("Timed out waiting 3000ms for recv operation to complete")
        waited = other.submit(late.explain, error, 7, 3.0)
        heard = closed.explain(RuntimeError("Connection closed by peer"), 7, 3.0)
        told = "the connection between the processes did not answer within 3 seconds at step 7; go on with resume=…"
        assert [str(heard), str(waited.result())] == [told, told]


# ------------------------------------------------------------------------------------------------- asking about signals


class Leader:
    """Rank 0 of processes on which no signal came; `asked` are the steps at which they were asked."""

    def __init__(self) -> None:
        self.step, self.asked = 0, list[int]()

    def most(self, numbers: Sequence[int]) -> list[int]:
        self.asked.append(self.step)
        return list(numbers)


def asked(monkeypatch: pytest.MonkeyPatch, step_seconds: float, steps: int) -> list[int]:
    """The steps at which a run whose steps take so long asks all its processes."""
    leader = Leader()
    monkeypatch.setattr(time, "perf_counter", lambda: leader.step * step_seconds)
    agreement = Agreement(0, leader.most, StopRequest())
    for leader.step in range(steps):
        assert agreement.requested(leader.step) is None
        assert agreement.requested(leader.step) is None  # a second question at a step costs nothing
    return leader.asked


def test_slow_steps_are_asked_at_each_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the second one: how long a step takes is not known before."""
    assert asked(monkeypatch, 1.0, 6) == [0, 2, 3, 4, 5]


def test_fast_steps_are_asked_about_four_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """The distance doubles until it is a quarter of a second: 256 steps of a 1024th."""
    assert asked(monkeypatch, 1 / 1024, 1200) == [0, 2, 6, 14, 30, 62, 126, 254, 510, 766, 1022]


def test_a_signal_is_told_at_every_later_step() -> None:
    request = StopRequest()
    agreement = Agreement(0, Leader().most, request)
    assert agreement.requested(0) is None
    request.signal_number = 15
    assert [agreement.requested(step) for step in (1, 2, 3, 4)].count(15) >= 2
    request.signal_number = None
    assert agreement.requested(5) == 15


# ------------------------------------------------------------------------------------------------------------- alone


def test_alone_every_answer_is_its_own() -> None:
    alone, request = SingleProcess(), StopRequest()
    tensor = torch.tensor([1.0])
    assert alone.sum(tensor) is tensor
    assert alone.gather(tensor) == [tensor]
    assert alone.any(True)
    assert not alone.any(False)
    assert alone.broadcast("x") == "x"
    assert alone.all_ranks_stop(request) is request
    assert alone.run_on_all_ranks(lambda: (7, {"data": "a"})) == 7
    error = RuntimeError("Connection closed by peer")
    assert alone.explain(error, 3) is error
    assert alone.remembered is None
