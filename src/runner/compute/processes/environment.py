"""The position of a process among the others, read from the environment that its launcher sets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from runner.compute.processes.notes import LaunchNotes
from runner.errors import ConfigError


@dataclass(frozen=True)
class RankEnvironment:
    """Position of one of `size` processes, `local_size` of them on this host, and the address of their common store."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    launcher_hosts_store: bool
    """Whether the launcher hosts the store and opened it before this process started; otherwise rank 0 opens it."""
    launcher_pid: int | None
    """Process id of a launcher that waits for all processes on this host; None when there is no such launcher."""
    notes: LaunchNotes
    """Notes for our own launcher, which reads them when the processes have ended."""
    will_restart: bool
    """Whether the launcher restarts all processes when one fails; False on several hosts, where no process can know."""

    @property
    def hosts_store(self) -> bool:
        """Whether this process hosts the store."""
        return self.rank == 0 and not self.launcher_hosts_store


def launched(environ: Mapping[str, str]) -> bool:
    """Whether a launcher such as torchrun started this process as one of several."""
    return "RANK" in environ and "WORLD_SIZE" in environ


def leads(environ: Mapping[str, str]) -> bool:
    """Whether this process reports for all that a launcher started, or was started by none."""
    return environ.get("RANK", "0") == "0" or not launched(environ)


def read_environment(environ: Mapping[str, str]) -> RankEnvironment:
    """Return the position that the environment describes. Raises `ConfigError` with one sentence for each invalid variable."""
    numbers, problems = _numbers(environ)
    if not environ.get("MASTER_ADDR"):
        problems.append(
            "the environment variable `MASTER_ADDR` must name a host, but is not set; start with torchrun, or unset RANK"
        )
    for name, bound in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if name in numbers and bound in numbers and not numbers[name] < numbers[bound]:
            problems.append(
                f"the environment variable `{name}` must be below `{bound}`={numbers[bound]}, got {numbers[name]}; "
                "correct one of them"
            )
    if not 0 < numbers.get("MASTER_PORT", 1) < 65536:
        problems.append(
            f"the environment variable `MASTER_PORT` must be 1 to 65535, got {numbers['MASTER_PORT']}; correct it"
        )
    if problems:
        raise ConfigError(problems)
    restarts, most = (int(environ.get(f"TORCHELASTIC_{name}", 0)) for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    return RankEnvironment(
        rank=numbers["RANK"],
        size=numbers["WORLD_SIZE"],
        local_rank=numbers["LOCAL_RANK"],
        local_size=numbers["LOCAL_WORLD_SIZE"],
        address=environ["MASTER_ADDR"],
        port=numbers["MASTER_PORT"],
        launcher_hosts_store=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        # Only a launcher waits for its processes. A shell may end before a process that it started in the background.
        launcher_pid=os.getppid() if "TORCHELASTIC_RUN_ID" in environ else None,
        notes=LaunchNotes.of(environ),
        will_restart=restarts < most and numbers["LOCAL_WORLD_SIZE"] == numbers["WORLD_SIZE"],
    )


def _numbers(environ: Mapping[str, str]) -> tuple[dict[str, int], list[str]]:
    """Return the numeric variables, and a sentence for each that is not an integer."""
    local = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    numbers, problems = dict[str, int](), list[str]()
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        text = environ.get(name, local.get(name))
        if text is None or not re.fullmatch(r"[0-9]{1,9}", text):
            value = "but is not set" if text is None else f"got {text!r}"
            problems.append(
                f"the environment variable `{name}` must be an integer, {value}; start with torchrun, or unset RANK"
            )
        else:
            numbers[name] = int(text)
    return numbers, problems


def network_interface(address: str, port: int) -> str | None:
    """Return the network interface by which this host reaches an address; None when there is no route to it."""
    # gloo would take the interface of the host's name, which the other hosts may not reach.
    import fcntl
    import socket
    import struct

    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, port))  # sends nothing
            local = socket.inet_aton(probe.getsockname()[0])
            for _, name in socket.if_nameindex():
                request = struct.pack("256s", name.encode()[:15])
                try:
                    if fcntl.ioctl(probe.fileno(), 0x8915, request)[20:24] == local:  # SIOCGIFADDR
                        return name
                except OSError:  # an interface without an address
                    continue
    except OSError:
        pass
    return None


def format_ranks(ranks: Iterable[int]) -> str:
    """Return ranks as messages show them: "rank 1, 2"."""
    return f"rank {', '.join(map(str, ranks))}"
