"""Two hosts: network namespaces of this machine that are connected only by a virtual cable."""

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
ENDPOINT = f"{ADDRESSES[0]}:29511"
"""The namespaces are new, so the port is free."""


@pytest.fixture
def hosts() -> Iterator[list[list[str]]]:
    """Return for each host the prefix of a command that runs there."""
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
    """A run on one process."""
    return runner.run(None, [*EXACT, f"run_dir={tmp_path_factory.mktemp('whole') / 'run'}"]).directory


def _ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)


def _must(*arguments: str) -> None:
    done = _ip(*arguments)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


def run_on(
    hosts: Sequence[Sequence[str]], commands: Sequence[Sequence[str]], folder: Path, faults: Sequence[Fault] = ()
) -> None:
    """Run one command on each host at the same time; both must succeed."""
    first, second = ([*host, *command] for host, command in zip(hosts, commands, strict=True))
    with launched(first, folder / "0", faults) as one, launched(second, folder / "1", faults) as other:
        assert (one.wait(), other.wait()) == (0, 0), one.err + other.err
        assert one.running_pids() == other.running_pids() == []
        assert one.faults + other.faults == [f"{f.kind}-{f.rank}-{f.step}-0" for f in faults]


@pytest.mark.long
def test_after_a_kill_on_one_of_two_hosts_torchrun_ends_with_the_bits_of_one_process(
    hosts: list[list[str]], whole: Path, tmp_path: Path
) -> None:
    """The number of the attempt then differs between the hosts, so it cannot identify the attempt."""
    options = ["--nnodes=2", "--max-restarts=3", "--rdzv-backend=c10d", f"--rdzv-endpoint={ENDPOINT}", "--rdzv-id=two"]
    commands = [
        torchrun(*EXACT, f"run_dir={tmp_path / 'run'}", options=[*options, f"--local-addr={address}", conf], size=1)
        for address, conf in zip(ADDRESSES, ("--rdzv-conf=is_host=1", "--rdzv-conf=is_host=0"), strict=True)
    ]
    run_on(hosts, commands, tmp_path, [Fault("kill", rank=1, step=7)])
    assert_same(tmp_path / "run", whole)
    run_json = record(tmp_path / "run")
    assert (run_json["status"], run_json["world_size"], run_json["resumed"]) == ("finished", 2, 1)


def test_launch_nodes_needs_only_the_endpoint(hosts: list[list[str]], whole: Path, tmp_path: Path) -> None:
    """A host's name often resolves to 127.0.0.1 or 127.0.1.1 on the host itself; the others must not use that."""
    command = [*RUNNER, *EXACT, f"run_dir={tmp_path / 'run'}", "launch.nodes=2", f"launch.rdzv_endpoint={ENDPOINT}"]
    run_on(hosts, [command, command], tmp_path)
    assert_same(tmp_path / "run", whole)
    run_json = record(tmp_path / "run")
    assert (run_json["status"], run_json["world_size"], run_json["resumed"]) == ("finished", 2, 0)
