"""Faults of one process of a run: when it comes to a step, something bad happens to it.

Forked processes call `inject`. Those of a launcher are told by their environment, which `launching` sets: the file
`sitecustomize.py` that it writes has every Python import this module first.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

VARIABLE = "RUNNER_TEST_FAULTS"


@dataclass(frozen=True)
class Fault:
    """What happens to a process at a step, in its first attempts only: `times` of them."""

    kind: str
    rank: int
    step: int
    times: int = 1


def inject(faults: list[Fault], folder: Path) -> None:
    """Let the faults of this process happen when their step comes. `folder` gets a file for each that did, with its pid."""
    from runner.training.objective import BatchObjective

    rank = int(os.environ.get("RANK", "0"))
    real, own = BatchObjective.at, {fault.step: fault for fault in faults if fault.rank == rank}

    def at(self: BatchObjective, step: int) -> BatchObjective:
        turned = real(self, step)
        if step in own and _counts(own[step], folder):
            KINDS[own[step].kind](turned)
        return turned

    BatchObjective.at = at  # type: ignore[method-assign]


def happened(folder: Path) -> list[str]:
    """The faults that did, as `kind-rank-step-attempt`."""
    return sorted(file.name for file in folder.iterdir())


def note_rows(folder: Path) -> None:
    """Write down the targets that this process trains on, a line a step, in a file of this attempt."""
    from runner.training.objective import BatchObjective

    attempt, rank = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), os.environ.get("RANK", "0")
    file, real = folder / f"{attempt}-{rank}.jsonl", BatchObjective.at

    def at(self: BatchObjective, step: int) -> BatchObjective:
        turned = real(self, step)
        targets = [value for part in turned._parts for value in part.target.flatten().tolist()]
        with file.open("a") as lines:
            lines.write(json.dumps([step, targets]) + "\n")
        return turned

    BatchObjective.at = at  # type: ignore[method-assign]


def environment(faults: list[Fault], folder: Path, rows: Path | None) -> str:
    """What `VARIABLE` must hold for the processes of a launcher."""
    told = {"faults": [asdict(fault) for fault in faults], "folder": str(folder), "rows": rows and str(rows)}
    return json.dumps(told)


def _counts(fault: Fault, folder: Path) -> bool:
    """Whether it still has a time to happen; files count, since a number in memory dies with its process."""
    for time_ in range(fault.times):
        try:
            with (folder / f"{fault.kind}-{fault.rank}-{fault.step}-{time_}").open("x") as file:
                file.write(str(os.getpid()))
        except FileExistsError:
            continue
        return True
    return False


def _raise(error: BaseException) -> NoReturn:
    raise error


def _one_feature_is_nan(turned: Any) -> None:
    turned._parts[0].features[0] = float("nan")


def _one_collective_more(turned: Any) -> None:
    import torch
    import torch.distributed as dist

    dist.all_reduce(torch.zeros(3))


def _two_signals(turned: Any) -> None:
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)


def _launcher_gets_sigterm(turned: Any) -> None:
    """SIGTERM for the launcher; goes on when it has come back to this process."""
    came, before = [], signal.getsignal(signal.SIGTERM)

    def caught(number: int, frame: FrameType | None) -> None:
        assert callable(before)
        before(number, frame)
        came.append(number)

    signal.signal(signal.SIGTERM, caught)
    os.kill(os.getppid(), signal.SIGTERM)
    while not came:
        time.sleep(0.01)


KINDS: Mapping[str, Callable[[Any], object]] = {
    "kill": lambda turned: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda turned: os.kill(os.getpid(), signal.SIGSTOP),
    "raise": lambda turned: _raise(ValueError("a fault")),
    "memory": lambda turned: _raise(MemoryError("can't allocate memory")),
    "exit": lambda turned: sys.exit(0),
    "second signal": _two_signals,
    "hang": lambda turned: time.sleep(600),
    "slow": lambda turned: time.sleep(1.5),
    "nan": _one_feature_is_nan,
    "collective": _one_collective_more,
    "terminate launcher": _launcher_gets_sigterm,
    "kill launcher": lambda turned: os.kill(os.getppid(), signal.SIGKILL),
}


def _wait_for_torch(faults: list[Fault], folder: Path, rows: Path | None) -> None:
    """Inject when torch has been imported by the runner itself, which sets its environment before."""
    from runner.compute.processes import ProcessGroup

    real = ProcessGroup.connect

    def connect(self: ProcessGroup, kind: str, timeout_seconds: float) -> None:
        inject(faults, folder)
        if rows is not None:
            note_rows(rows)
        real(self, kind, timeout_seconds)

    ProcessGroup.connect = connect  # type: ignore[method-assign]


if VARIABLE in os.environ and "RANK" in os.environ:
    _told = json.loads(os.environ[VARIABLE])
    _wait_for_torch(
        [Fault(**fault) for fault in _told["faults"]], Path(_told["folder"]), _told["rows"] and Path(_told["rows"])
    )
