"""`launch.processes=N`: the same command on N processes, started and watched by torch's elastic launcher."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from runner.compute import sizes
from runner.compute.processes import notes
from runner.compute.signals import StopRequest
from runner.config import constraints
from runner.config.schema import Config, config_hash
from runner.errors import ConfigError, Interrupted, RunFailed

LOGGERS = ("torch.distributed.elastic", "torch.distributed.elastic.agent.server.api")
"""Loggers of torch's launcher; the second has a level of its own."""


TERM_SECONDS = 30
"""Time that torch's launcher gives the other workers to end after one has failed. It kills those that do not."""

OnFailure: TypeAlias = Callable[[Path, str], object]
"""Receives a directory in use, and why its processes failed."""


def needs_launch(config: Config) -> bool:
    """Whether the configuration requests more processes than this one."""
    return config.launch.processes * config.launch.nodes > 1


def launch(
    config: Config,
    arguments: Sequence[str],
    module: str = "runner",
    on_failure: Mapping[str, OnFailure] | None = None,
) -> int:
    """Run `python -m MODULE ARGUMENTS` on all processes and return their common exit code.

    If they fail, `on_failure` is called for every note on a directory that is in use: rank 0 may have ended without a record.

    Raises `ConfigError` for a number of processes on which the run cannot be computed, `RunFailed` when the hosts cannot
    connect, and `Interrupted` for a signal before the processes are started.
    """
    size = config.launch.processes * config.launch.nodes
    problems = constraints.world_size_problems(config, size) + sizes.problems(config, config.launch.processes)
    if problems:
        raise ConfigError(problems)
    with StopRequest() as stop:  # a KeyboardInterrupt during the import of torch is sometimes lost
        _set_environment(config)
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.elastic.rendezvous import RendezvousError
        from torch.distributed.launcher.api import elastic_launch
    if stop.signal_number is not None:
        raise Interrupted(stop.signal_number, "stopped before training began; nothing was written")

    # The workers report their errors themselves; torch's launcher would repeat them with a table and a traceback.
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with notes.kept() as kept:
        try:
            elastic_launch(_launch_config(config), sys.executable)("-m", module, *arguments)
        except ChildFailedError as error:
            killed = _report_killed(error, config.launch.max_restarts + 1)
            code, reason = _exit_code(error), kept.read(notes.REASON) or killed
        except SignalException as received:
            code, reason = 128 + int(received.sigval), f"its processes were stopped by {received.sigval.name}"
        except RendezvousError as error:
            raise RunFailed(
                f"`launch.rdzv_endpoint` must be an address where {config.launch.nodes} hosts meet, but they did not meet at "
                f"{config.launch.rdzv_endpoint} ({error}); correct it, or start the same command on the other hosts"
            ) from None
        else:
            return 0
        for note, record in (on_failure or {}).items():
            directory = kept.read(note)
            if directory is not None:
                record(Path(directory), reason or f"its processes ended with exit code {code}")
        return code


def _set_environment(config: Config) -> None:
    """Set the variables that the workers need before they import torch."""
    from runner.compute import devices

    build = devices.installed_build()
    os.environ.update(devices.environment(config.device, config.deterministic, os.environ, build))
    # As torchrun does: with a thread for every core, N processes would compete for the cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a wrong address is reported in one sentence


def _launch_config(config: Config) -> Any:
    """Return torch's launch configuration; on several hosts its run id is the same everywhere."""
    from torch.distributed.launcher.api import LaunchConfig

    requested = config.launch
    endpoint = requested.rdzv_endpoint or "localhost:0"  # on one host, a free port
    if requested.nodes == 1:
        rendezvous: dict[str, Any] = {"run_id": f"runner-{os.getpid()}", "local_addr": "localhost"}
    else:
        address, is_host = _local_address(endpoint)
        rendezvous = {
            "run_id": f"runner-{config_hash(config)[:16]}",
            "local_addr": address,
            "rdzv_configs": {"is_host": is_host},
        }
    return LaunchConfig(
        min_nodes=requested.nodes,
        max_nodes=requested.nodes,
        nproc_per_node=requested.processes,
        rdzv_backend="c10d",
        rdzv_endpoint=endpoint,
        max_restarts=requested.max_restarts,
        start_method="spawn",
        **rendezvous,
    )


def _local_address(endpoint: str) -> tuple[str, bool]:
    """Return this host's address on the route to the endpoint, and whether this host can open the endpoint itself.

    Raises `ConfigError` for an endpoint that this host cannot reach.
    """
    # torch would use the host's name, which may resolve to nothing, or to an address that the other hosts cannot reach.
    host, _, port = endpoint.rpartition(":")
    try:
        family, *_, resolved = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
        remote = (resolved[0], int(port))
        with socket.socket(family, socket.SOCK_DGRAM) as route:
            route.connect(remote)  # sends nothing
            local = str(route.getsockname()[0])
    except (OSError, OverflowError, UnicodeError) as error:  # UnicodeError: a name that is too long
        raise ConfigError(
            f"`launch.rdzv_endpoint` must be host:port that this host can reach, got {endpoint} ({error}); correct it"
        ) from None
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(remote)
        except OSError:
            return local, False
    return local, True


def _report_killed(error: Any, attempts: int) -> str:
    """Print a sentence for each worker that was killed, which could not report that itself. Return all of them."""
    last = f", in the last of {attempts} attempts" if attempts > 1 else ""
    failures = _in_order(error)
    end = min(failure.timestamp for _, failure in failures) + TERM_SECONDS
    killed = [
        f"rank {rank} was killed by {signal.Signals(-failure.exitcode).name}{last}"
        for rank, failure in failures
        if failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM and failure.timestamp < end
    ]
    sys.stderr.writelines(f"error: {text}\n" for text in killed)
    return "; ".join(killed)


def _exit_code(error: Any) -> int:
    """Return the exit code of the first worker that failed. A killed worker counts as 1."""
    codes = [failure.exitcode for _, failure in _in_order(error) if failure.exitcode != -signal.SIGTERM]
    return 1 if not codes or min(codes) < 0 else int(codes[0])


def _in_order(error: Any) -> list[tuple[int, Any]]:
    """Return rank and failure of the workers that failed, the first one first."""
    return sorted(error.failures.items(), key=lambda failed: failed[1].timestamp)
