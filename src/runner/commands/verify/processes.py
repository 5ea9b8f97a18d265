"""Runs in processes of their own, started as a user starts them, that end normally or are killed at a given step."""

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

POLL_SECONDS = 0.0005
"""Time between two looks at the progress of a run. A short run takes some ten thousand steps a second."""

TAIL_BYTES = 65_536
"""More than one row of `metrics.jsonl` takes."""


class RunProcess:
    """`python -m runner ARGUMENTS` in a session of its own, with its output appended to the file `log`."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self._log = log
        with log.open("ab") as file:
            self._log_start = file.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "runner", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        """Whether the process has exited."""
        return self._process.poll() is not None

    def wait(self) -> None:
        """Wait until the process exits. Raises `InputError` with its error messages, and `RunFailed` if it failed."""
        code = self._process.wait()
        output = self._log.read_bytes()[self._log_start :].decode(errors="replace")
        errors = [line[7:] for line in output.splitlines() if line.startswith("error: ")]
        if code == InputError.exit_code:
            raise InputError(errors)
        if code == 1 and not errors and "Traceback (most recent call last)" not in output:
            return  # a fit that did not converge: its run has finished
        if code:
            reason = next(reversed(errors or output.splitlines()), "no output")
            raise RunFailed(f"a run ended with exit code {code}: {reason}; its output is kept in {self._log}")

    def kill(self) -> None:
        """Send SIGKILL to the whole process tree and return when none of it is left."""
        self.kill_all(self.process_tree())

    def process_tree(self) -> list[int]:
        """Return the process ids of this process and of all its descendants."""
        # By parent, not by session: torch's launcher puts its workers into sessions of their own.
        parents = {int(entry.name): _parent(entry) for entry in Path("/proc").glob("[0-9]*")}
        pids = [self._process.pid]
        for pid in pids:
            pids += [child for child, parent in parents.items() if parent == pid]
        return pids

    def kill_all(self, pids: Sequence[int]) -> None:
        """Kill a process tree that was looked up before, because the look-up takes longer than some steps."""
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        while any(_is_alive(pid) for pid in pids[1:]):
            time.sleep(POLL_SECONDS)


@contextmanager
def running_process(arguments: Sequence[str], log: Path) -> Iterator[RunProcess]:
    """Start a run; on exit, kill whatever is left of it."""
    run = RunProcess(arguments, log)
    try:
        yield run
    finally:
        if not run.ended:
            run.kill()


def run_to_end(arguments: Sequence[str], log: Path) -> None:
    """Start a run and wait until it ends. Raises `InputError` and `RunFailed`."""
    with running_process(arguments, log) as run:
        run.wait()


def kill_at(arguments: Sequence[str], log: Path, directory: Path, step: int) -> bool:
    """Start or resume a run in `directory` and kill it when it has written the row of `step`.

    Return False if the run ended before that. Raises `InputError` and `RunFailed` if it could not be run.
    """
    attempt = _attempts(directory) + 1
    stale = _rows_inode(directory) if _last_step(directory) >= step else None
    with running_process(arguments, log) as run:
        while not run.ended and _attempts(directory) < attempt:
            time.sleep(POLL_SECONDS)
        pids = run.process_tree()
        # A row of the previous attempt does not count. This attempt drops such rows by writing a new file.
        while not run.ended and (_rows_inode(directory) == stale or _last_step(directory) < step):
            time.sleep(POLL_SECONDS)
        if run.ended:
            run.wait()
            return False
        run.kill_all(pids)
        return True


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # the process has ended meanwhile
        return 0


def _is_alive(pid: int) -> bool:
    """Whether a process may still write; a zombie cannot."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _attempts(directory: Path) -> int:
    """Return how many times the run was started or resumed."""
    try:
        return int(json.loads((directory / "run.json").read_text())["resumed"]) + 1
    except FileNotFoundError:
        return 0


def _rows_inode(directory: Path) -> int | None:
    """Return the inode of `metrics.jsonl`, which changes when the file is written anew."""
    try:
        return (directory / "metrics.jsonl").stat().st_ino
    except FileNotFoundError:
        return None


def _last_step(directory: Path) -> int:
    """Return the step of the last complete row, or 0."""
    try:
        with (directory / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            *rows, _torn = file.read().split(b"\n")
    except FileNotFoundError:
        return 0
    return int(json.loads(rows[-1])["step"]) if rows else 0
