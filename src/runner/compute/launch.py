"""`launch.processes=N`: the same command on N processes, started and watched by torch's own elastic launcher."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

from runner.compute.signals import StopRequest
from runner.config import constraints
from runner.config.schema import Config, config_hash
from runner.errors import ConfigError, Interrupted, RunFailed

LOGGERS = ("torch.distributed.elastic", "torch.distributed.elastic.agent.server.api")
"""What torch's launcher logs to; the second has a level of its own."""


def wanted(config: Config) -> bool:
    """Whether the configuration asks for more processes than this one."""
    return config.launch.processes * config.launch.nodes > 1


def launch(config: Config, words: Sequence[str], module: str = "runner") -> int:
    """Run `python -m MODULE WORDS` on all processes; gives the exit code that they agree on.

    Raises `ConfigError` for a number of processes that the run cannot be computed on, `RunFailed` where they cannot meet,
    and `Interrupted` for a signal that comes before they are started.
    """
    size = config.launch.processes * config.launch.nodes
    problems = constraints.world_size_problems(config, size)
    if problems:
        raise ConfigError(problems)
    with StopRequest() as stop:  # a KeyboardInterrupt in the midst of the import of torch is lost now and then
        _prepare(config)
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.elastic.rendezvous import RendezvousError
        from torch.distributed.launcher.api import elastic_launch
    if stop.signal_number is not None:
        raise Interrupted(stop.signal_number, "stopped before training began; nothing was written")

    # The workers say what is wrong themselves; torch's launcher would say it again, with a table and a traceback.
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        elastic_launch(_launch_config(config), sys.executable)("-m", module, *words)
    except ChildFailedError as error:
        return _exit_code(error, config.launch.max_restarts + 1)
    except SignalException as stop:
        return 128 + int(stop.sigval)
    except RendezvousError as error:
        raise RunFailed(
            f"`launch.rdzv_endpoint` must be where {config.launch.nodes} hosts meet, but they did not at "
            f"{config.launch.rdzv_endpoint} ({error}); mend it, or start the same command on the other hosts"
        ) from None
    return 0


def _prepare(config: Config) -> None:
    """What the workers must find in their environment before they import torch."""
    from runner.compute import devices

    build = devices.installed_build()
    os.environ.update(devices.environment(config.device, config.deterministic, os.environ, build))
    # As torchrun does: N processes with a thread for every core would fight.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # an address that is wrong is told in a sentence


def _launch_config(config: Config) -> Any:
    from torch.distributed.launcher.api import LaunchConfig

    asked = config.launch
    endpoint = asked.rdzv_endpoint or "localhost:0"  # on one host a port that is free
    if asked.nodes == 1:
        place: dict[str, Any] = {"run_id": f"runner-{os.getpid()}", "local_addr": "localhost"}
    else:  # all of them must name the same run
        address, here = _meeting(endpoint)
        place = {
            "run_id": f"runner-{config_hash(config)[:16]}",
            "local_addr": address,
            "rdzv_configs": {"is_host": here},
        }
    return LaunchConfig(
        min_nodes=asked.nodes,
        max_nodes=asked.nodes,
        nproc_per_node=asked.processes,
        rdzv_backend="c10d",
        rdzv_endpoint=endpoint,
        max_restarts=asked.max_restarts,
        start_method="spawn",
        **place,
    )


def _meeting(endpoint: str) -> tuple[str, bool]:
    """This host's address on the way to where the hosts meet, and whether they meet on it.

    torch goes by the host's name, which may well stand for nothing, or for an address that the other hosts cannot reach.
    Raises `ConfigError` for a place that there is no way to.
    """
    host, _, port = endpoint.rpartition(":")
    try:
        family, *_, found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
        place = (found[0], int(port))
        with socket.socket(family, socket.SOCK_DGRAM) as way:
            way.connect(place)  # sends nothing
            mine = str(way.getsockname()[0])
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"`launch.rdzv_endpoint` must be host:port that this host can reach, but {endpoint} is not ({error}); mend it"
        ) from None
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(place)
        except OSError:
            return mine, False
    return mine, True


def _exit_code(error: Any, attempts: int) -> int:
    """That of the first worker that failed; 1 for one that was killed, which is told here as it cannot tell itself."""
    failures = sorted(error.failures.items(), key=lambda failed: failed[1].timestamp)
    killed = {rank: -f.exitcode for rank, f in failures if f.exitcode < 0 and -f.exitcode != signal.SIGTERM}
    last = f", in the last of {attempts} attempts" if attempts > 1 else ""
    for rank, number in killed.items():
        sys.stderr.write(f"error: rank {rank} was killed by {signal.Signals(number).name}{last}\n")
    codes = [f.exitcode for _, f in failures if f.exitcode > 0]
    return 1 if killed or not codes else int(codes[0])
