"""Runs in processes of their own, started as a user starts them: ended, or killed without a word when they reach a step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from runner.errors import InputError, RunFailed

LOOK_SECONDS = 0.0005
"""Time between two looks at how far a run is: a short one takes some ten thousand steps a second."""

TAIL_BYTES = 65_536
"""More than one row of `metrics.jsonl` takes."""


class Started:
    """`python -m runner WORDS`, in a session of its own. What it says is in the file `log`."""

    def __init__(self, words: Sequence[str], log: Path) -> None:
        self._log = log
        with log.open("ab") as file:
            self._said_before = file.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "runner", *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self) -> None:
        """Wait for its end. Raises `InputError` with what it refused, and `RunFailed` where it failed."""
        code = self._process.wait()
        said = self._log.read_bytes()[self._said_before :].decode(errors="replace")
        told = [line[7:] for line in said.splitlines() if line.startswith("error: ")]
        if code == InputError.exit_code:
            raise InputError(told)
        if code:
            reason = next(reversed(told or said.splitlines()), "it said nothing")
            raise RunFailed(f"a run ended with exit code {code}: {reason}; what it said is kept in {self._log}")

    def kill(self) -> None:
        """SIGKILL to all its processes at once; returns when none of them lives."""
        self.kill_all(self.family())

    def family(self) -> list[int]:
        """Process ids: itself and all that it has started, which torch's launcher puts into sessions of their own."""
        parents = {int(entry.name): _parent(entry) for entry in Path("/proc").glob("[0-9]*")}
        found = [self._process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def kill_all(self, family: Sequence[int]) -> None:
        """`kill` of a family that was found before, which takes longer than some steps."""
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        while any(_lives(pid) for pid in family[1:]):
            time.sleep(LOOK_SECONDS)


@contextmanager
def started(words: Sequence[str], log: Path) -> Iterator[Started]:
    """Start a run; at the end, whatever happened, nothing of it lives."""
    run = Started(words, log)
    try:
        yield run
    finally:
        if not run.ended:
            run.kill()


def finish(words: Sequence[str], log: Path) -> None:
    """Do a run to its end. Raises `InputError` and `RunFailed`."""
    with started(words, log) as run:
        run.wait()


def kill_at(words: Sequence[str], log: Path, directory: Path, step: int) -> bool:
    """Start a run, or go on with one, in its directory, and kill it when it has written the row of a step.

    False: it has ended before. Raises `InputError` and `RunFailed` where it could not be run.
    """
    attempt, stale = _attempt(directory) + 1, _identity(directory) if _written(directory) >= step else None
    with started(words, log) as run:
        while not run.ended and _attempt(directory) < attempt:
            time.sleep(LOOK_SECONDS)
        family = run.family()
        # A row of the attempt before says nothing of this one, which drops it by writing the file anew.
        while not run.ended and (_identity(directory) == stale or _written(directory) < step):
            time.sleep(LOOK_SECONDS)
        if run.ended:
            run.wait()
            return False
        run.kill_all(family)
        return True


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has ended meanwhile
        return 0


def _lives(pid: int) -> bool:
    """Whether a process may still write: one that only waits for its parent to notice does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _attempt(directory: Path) -> int:
    """How often the run was begun."""
    try:
        return int(json.loads((directory / "run.json").read_text())["resumed"]) + 1
    except FileNotFoundError:
        return 0


def _identity(directory: Path) -> int | None:
    """The file that the rows are in; a file that is written anew is another one."""
    try:
        return (directory / "metrics.jsonl").stat().st_ino
    except FileNotFoundError:
        return None


def _written(directory: Path) -> int:
    """The step of the last whole row."""
    try:
        with (directory / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            *rows, _torn = file.read().split(b"\n")
    except FileNotFoundError:
        return 0
    return int(json.loads(rows[-1])["step"]) if rows else 0
