"""Faults of one process of a run, such as a kill or a hang, at a given step.

Forked processes call `inject`. The processes of a launcher read their faults from the environment, which `launching` sets:
the file `sitecustomize.py` that it writes makes every Python import this module first.
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
    """A fault of one process at a step; it happens `times` times, once in each of the first attempts."""

    kind: str
    rank: int
    step: int
    times: int = 1


def inject(faults: list[Fault], folder: Path) -> None:
    """Make the faults of this process happen at their steps. Each that happened leaves a file with its pid in `folder`."""
    from runner.training.objective import BatchObjective

    rank = int(os.environ.get("RANK", "0"))
    real, by_step = BatchObjective.at, {fault.step: fault for fault in faults if fault.rank == rank}

    def at(self: BatchObjective, step: int) -> BatchObjective:
        objective = real(self, step)
        if step in by_step and _is_due(by_step[step], folder):
            KINDS[by_step[step].kind](objective)
        return objective

    BatchObjective.at = at  # type: ignore[method-assign]


def happened(folder: Path) -> list[str]:
    """Return the faults that happened, as `kind-rank-step-attempt`."""
    return sorted(file.name for file in folder.iterdir())


def note_rows(folder: Path) -> None:
    """Write the targets on which this process trains, one line for each step, to a file of this attempt."""
    from runner.training.objective import BatchObjective

    attempt, rank = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), os.environ.get("RANK", "0")
    file, real = folder / f"{attempt}-{rank}.jsonl", BatchObjective.at

    def at(self: BatchObjective, step: int) -> BatchObjective:
        objective = real(self, step)
        targets = [value for part in objective._parts for value in part.rows.target.flatten().tolist()]
        with file.open("a") as lines:
            lines.write(json.dumps([step, targets]) + "\n")
        return objective

    BatchObjective.at = at  # type: ignore[method-assign]


def environment(faults: list[Fault], folder: Path, rows: Path | None) -> str:
    """Return the value of `VARIABLE` for the processes of a launcher."""
    instructions = {"faults": [asdict(fault) for fault in faults], "folder": str(folder), "rows": rows and str(rows)}
    return json.dumps(instructions)


def _is_due(fault: Fault, folder: Path) -> bool:
    """Whether the fault must happen again; counted in files, which outlive the process."""
    for occurrence in range(fault.times):
        try:
            with (folder / f"{fault.kind}-{fault.rank}-{fault.step}-{occurrence}").open("x") as file:
                file.write(str(os.getpid()))
        except FileExistsError:
            continue
        return True
    return False


def _raise(error: BaseException) -> NoReturn:
    raise error


def _one_feature_is_nan(objective: Any) -> None:
    objective._parts[0].rows.numbers[0] = float("nan")


def _one_collective_more(objective: Any) -> None:
    import torch
    import torch.distributed as dist

    dist.all_reduce(torch.zeros(3))


def _two_signals(objective: Any) -> None:
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)


def _launcher_gets_sigterm(objective: Any) -> None:
    """Send SIGTERM to the launcher and wait until the launcher has passed it on to this process."""
    received, previous = [], signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        assert callable(previous)
        previous(number, frame)
        received.append(number)

    signal.signal(signal.SIGTERM, handle)
    os.kill(os.getppid(), signal.SIGTERM)
    while not received:
        time.sleep(0.01)


KINDS: Mapping[str, Callable[[Any], object]] = {
    "kill": lambda objective: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda objective: os.kill(os.getpid(), signal.SIGSTOP),
    "raise": lambda objective: _raise(ValueError("a fault")),
    "memory": lambda objective: _raise(MemoryError("can't allocate memory")),
    "exit": lambda objective: sys.exit(0),
    "second signal": _two_signals,
    "hang": lambda objective: time.sleep(600),
    "slow": lambda objective: time.sleep(1.5),
    "nan": _one_feature_is_nan,
    "collective": _one_collective_more,
    "terminate launcher": _launcher_gets_sigterm,
    "kill launcher": lambda objective: os.kill(os.getppid(), signal.SIGKILL),
}


def _wait_for_torch(faults: list[Fault], folder: Path, rows: Path | None) -> None:
    """Inject the faults after the runner has imported torch: it must set the environment before that."""
    from runner.compute.processes import ProcessGroup

    def injected(real: Callable[..., None]) -> Callable[..., None]:
        """Return a method that begins training, with the faults injected first."""

        def begin(*arguments: Any) -> None:
            inject(faults, folder)
            if rows is not None:
                note_rows(rows)
            real(*arguments)

        return begin

    for name in ("connect", "work_apart"):
        setattr(ProcessGroup, name, injected(getattr(ProcessGroup, name)))


if VARIABLE in os.environ and "RANK" in os.environ:
    _instructions = json.loads(os.environ[VARIABLE])
    _wait_for_torch(
        [Fault(**fault) for fault in _instructions["faults"]],
        Path(_instructions["folder"]),
        _instructions["rows"] and Path(_instructions["rows"]),
    )
