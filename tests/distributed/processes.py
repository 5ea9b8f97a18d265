"""Several processes for one test, forked from the test's own, which has imported torch already, and connected by gloo."""

from __future__ import annotations

import functools
import os
import pickle
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import runner
from runner.config.compose import compose

SECONDS = 60.0
"""Longest run time of a forked process; after that it is killed, and the test fails."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of one process: its exit code (negative: the signal that killed it), the result of `work`, and its output."""

    code: int
    value: Any
    printed: str


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def on(size: int, work: Callable[[int], Any], seconds: float = SECONDS, port: int | None = None) -> list[Outcome]:
    """Run `work(rank)` on `size` processes with the environment that torchrun sets; return the outcomes by rank."""
    _import_all()
    with tempfile.TemporaryDirectory() as folder:
        port = port or free_port()
        children = [_fork(rank, size, port, work, Path(folder)) for rank in range(size)]
        codes = _wait(children, seconds)
        return [Outcome(code, *_result(Path(folder), rank)) for rank, code in enumerate(codes)]


def values(size: int, work: Callable[[int], Any]) -> list[Any]:
    """Return the results of `work(rank)` by rank; fails unless every process succeeds."""
    outcomes = on(size, work)
    assert [o.code for o in outcomes] == [0] * size, "\n".join(o.printed for o in outcomes)
    return [o.value for o in outcomes]


def merge(runs: Iterable[Sequence[str]]) -> None:
    """Have the options of runs merged here: forked processes inherit that, where each would take longer than to train."""
    for overrides in runs:
        compose(overrides)


@functools.cache
def _import_all() -> None:
    """Do one short run, once: importing and finding plugins would take each process longer than most tests do."""
    import torch.distributed.checkpoint
    import torch.distributed.fsdp
    import torch.distributed.pipelining
    import torch.distributed.tensor.parallel  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        overrides = ["data=line", "device=cpu", "update=optimizer", "train.steps=1", "record.plots=false"]
        runner.run(None, [*overrides, f"run_dir={folder}/run"])


def _fork(rank: int, size: int, port: int, work: Callable[[int], Any], folder: Path) -> int:
    """Fork a process that runs `work(rank)`, and return its pid."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        printed = os.open(folder / f"{rank}.txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        sys.stdout, sys.stderr = (os.fdopen(fd, "w", buffering=1) for fd in (1, 2))
        os.environ.update(
            RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo",
        )  # fmt: skip
        value = work(rank)
        (folder / f"{rank}.pickle").write_bytes(pickle.dumps(value))
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(children: list[int], seconds: float) -> list[int]:
    """Return the exit codes of all children; kills those that run longer than `seconds`."""
    deadline, codes = time.monotonic() + seconds, dict[int, int]()
    while len(codes) < len(children):
        for rank, child in enumerate(children):
            if rank not in codes and (ended := os.waitpid(child, os.WNOHANG))[0]:
                codes[rank] = os.waitstatus_to_exitcode(ended[1])
        if time.monotonic() > deadline:
            for rank, child in enumerate(children):
                if rank not in codes:
                    os.kill(child, signal.SIGKILL)
        time.sleep(0.005)  # a check every few milliseconds, not an estimate of how long the work takes
    return [codes[rank] for rank in range(len(children))]


def _result(folder: Path, rank: int) -> tuple[Any, str]:
    """Return the result and the output of one process."""
    value, printed = folder / f"{rank}.pickle", folder / f"{rank}.txt"
    return (
        pickle.loads(value.read_bytes()) if value.exists() else None,
        printed.read_text(errors="replace") if printed.exists() else "",
    )
