"""Two hosts: network namespaces of this one, joined by a cable of their own, that cannot reach each other otherwise."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from faulty import Fault
from launching import EXACT, RUNNER, assert_same, launched, record, torchrun

import runner

ADDRESSES = ("10.213.7.1", "10.213.7.2")
MEETING = f"{ADDRESSES[0]}:29511"
"""Nobody else is in these networks, so nobody else can have the port."""


@pytest.fixture
def hosts() -> Iterator[list[list[str]]]:
    """For each host the words that come before a command which is to run there."""
    names = [f"runner-test-{os.getpid()}-{i}" for i in range(2)]
    if shutil.which("ip") is None:
        pytest.skip("two hosts need `ip` of iproute2, which is not installed")
    try:
        for name in names:
            made = _ip("netns", "add", name)
            if made.returncode != 0:
                pytest.skip(f"two hosts need network namespaces, which are not allowed here: {made.stderr.strip()}")
        _must("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            _must("-n", name, "address", "add", f"{address}/30", "dev", "cable")
            for device in ("lo", "cable"):
                _must("-n", name, "link", "set", device, "up")
        yield [["ip", "netns", "exec", name] for name in names]
    finally:
        for name in names:
            _ip("netns", "delete", name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    return runner.run(None, [*EXACT, f"run_dir={tmp_path_factory.mktemp('whole') / 'run'}"]).directory


def _ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=False)


def _must(*words: str) -> None:
    done = _ip(*words)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


def run_on(
    hosts: Sequence[Sequence[str]], commands: Sequence[Sequence[str]], folder: Path, faults: Sequence[Fault] = ()
) -> None:
    """A command on each host, at the same time; both must succeed."""
    first, second = ([*host, *command] for host, command in zip(hosts, commands, strict=True))
    with launched(first, folder / "0", faults) as one, launched(second, folder / "1", faults) as other:
        assert (one.wait(), other.wait()) == (0, 0), one.err + other.err
        assert one.living() == other.living() == []
        assert one.faults + other.faults == [f"{f.kind}-{f.rank}-{f.step}-0" for f in faults]


def test_after_a_kill_on_one_of_two_hosts_torchrun_ends_with_the_bits_of_one_process(
    hosts: list[list[str]], whole: Path, tmp_path: Path
) -> None:
    """The number of the attempt differs between the hosts then: it cannot be what their processes meet under."""
    meeting = ["--nnodes=2", "--max-restarts=3", "--rdzv-backend=c10d", f"--rdzv-endpoint={MEETING}", "--rdzv-id=two"]
    commands = [
        torchrun(*EXACT, f"run_dir={tmp_path / 'run'}", options=[*meeting, f"--local-addr={address}", conf], size=1)
        for address, conf in zip(ADDRESSES, ("--rdzv-conf=is_host=1", "--rdzv-conf=is_host=0"), strict=True)
    ]
    run_on(hosts, commands, tmp_path, [Fault("kill", rank=1, step=7)])
    assert_same(tmp_path / "run", whole)
    found = record(tmp_path / "run")
    assert (found["status"], found["world_size"], found["resumed"]) == ("finished", 2, 1)


def test_our_launcher_needs_no_more_than_where_to_meet(hosts: list[list[str]], whole: Path, tmp_path: Path) -> None:
    """A host's name often stands for 127.0.0.1 or 127.0.1.1 on the host itself: the others must not look there."""
    command = [*RUNNER, *EXACT, f"run_dir={tmp_path / 'run'}", "launch.nodes=2", f"launch.rdzv_endpoint={MEETING}"]
    run_on(hosts, [command, command], tmp_path)
    assert_same(tmp_path / "run", whole)
    found = record(tmp_path / "run")
    assert (found["status"], found["world_size"], found["resumed"]) == ("finished", 2, 0)
