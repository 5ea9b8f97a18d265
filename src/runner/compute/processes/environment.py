"""Where a process stands among the others, as its launcher tells it by the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from runner.errors import ConfigError


@dataclass(frozen=True)
class Place:
    """One of `size` processes, `local_size` of them on this host, and the address of the store in which they meet."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    launcher_keeps_store: bool
    """Whether the store is in the launcher and there before this process; otherwise rank 0 opens it."""
    launcher: int | None
    """The id of the process that waits for this one and for all others on this host."""
    starts_again: bool
    """Whether it will start all of them again when one fails; of several hosts no process can know."""

    @property
    def keeps_store(self) -> bool:
        """Whether the store is in this process."""
        return self.rank == 0 and not self.launcher_keeps_store


def launched(environ: Mapping[str, str]) -> bool:
    """Whether a launcher such as torchrun started this process as one of several."""
    return "RANK" in environ and "WORLD_SIZE" in environ


def read(environ: Mapping[str, str]) -> Place:
    """The place that the environment tells of. Raises `ConfigError` with every variable that does not make sense."""
    numbers, problems = _numbers(environ)
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
    restarts, most = (int(environ.get(f"TORCHELASTIC_{name}", 0)) for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    return Place(
        rank=numbers["RANK"],
        size=numbers["WORLD_SIZE"],
        local_rank=numbers["LOCAL_RANK"],
        local_size=numbers["LOCAL_WORLD_SIZE"],
        address=environ["MASTER_ADDR"],
        port=numbers["MASTER_PORT"],
        launcher_keeps_store=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        # Only a launcher is waited for: a process that a shell started in the background may well outlive that.
        launcher=os.getppid() if "TORCHELASTIC_RUN_ID" in environ else None,
        starts_again=restarts < most and numbers["LOCAL_WORLD_SIZE"] == numbers["WORLD_SIZE"],
    )


def _numbers(environ: Mapping[str, str]) -> tuple[dict[str, int], list[str]]:
    """The variables that are numbers, and a sentence for each that is none."""
    local = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    numbers, problems = dict[str, int](), list[str]()
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        text = environ.get(name, local.get(name))
        if text is None or not re.fullmatch(r"[0-9]{1,9}", text):
            found = "is not set" if text is None else f"is {text!r}"
            problems.append(
                f"the environment variable `{name}` must be an integer, but {found}; start with torchrun, or unset RANK"
            )
        else:
            numbers[name] = int(text)
    return numbers, problems


def interface(address: str, port: int) -> str | None:
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


def named(ranks: Iterable[int]) -> str:
    """Ranks as the user is told of them: rank 1, 2."""
    return f"rank {', '.join(map(str, ranks))}"
