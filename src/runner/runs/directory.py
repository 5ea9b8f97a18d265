"""The run directory and its record `run.json`: created complete or not at all, and used by one process at a time."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from runner.config.documents import FORMAT
from runner.config.files import kind_of
from runner.errors import CheckpointError, ConfigError
from runner.runs.atomic import remove_temporary_files, write_json
from runner.runs.records import read_record

FILES = {
    "config.yaml", "run.json", "summary.json", "run.log", "metrics.jsonl", "hashes.jsonl", "residuals.csv", "preprocessing.json", "calibration.json", "covariance.json", "sweep.json", "results.csv", "stderr.log",
}  # fmt: skip
"""Names of files, which are no folders, of a run or a sweep."""

EVENTS = "events.out.tfevents."
"""Start of the names of TensorBoard's event files, which are no folders either."""


def now() -> str:
    """Return the time in UTC as ISO 8601."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class RunDirectory:
    """An open run directory. No other process can open it meanwhile. The lock ends with the process that holds it.

    A trial of a sweep has no lock (`locked=False`): the process that runs the sweep locks the directory of the sweep.
    """

    def __init__(self, path: Path, *, locked: bool = True) -> None:
        self.path = path
        self.record: dict[str, Any] = {}
        self._lock = lock(path) if locked else None

    @staticmethod
    def create(
        name: str, run_dir: str | None, config_yaml: str, record: Mapping[str, Any], *, locked: bool = True
    ) -> RunDirectory:
        """Create `run_dir`, or `runs/<name>/<stamp>` if it is None, with `config.yaml` and `run.json` in it.

        Raises `ConfigError` if `run_dir` is not empty or cannot be created.
        """
        stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        path = Path(run_dir) if run_dir is not None else Path("runs", name, f"{stamp}_{secrets.token_hex(3)}")
        temporary = path.parent / f".{path.name}.{secrets.token_hex(3)}"
        full = {
            "format": FORMAT,
            "status": "running",
            "started": now(),
            "ended": None,
            "resumed": 0,
            **_process(),
            **record,
        }
        try:
            _refuse_taken(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            (temporary / "config.yaml").write_text(config_yaml, encoding="utf-8")
            write_json(temporary / "run.json", full)
            temporary.rename(path)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            shutil.rmtree(temporary, ignore_errors=True)
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ConfigError(
                f"`run_dir` must be an empty or a new directory, got {path}: {reason}; use another one"
            ) from None
        directory = RunDirectory(path, locked=locked)
        directory.record = full
        return directory

    @staticmethod
    def reopen(path: Path, *, locked: bool = True) -> RunDirectory:
        """Open the directory of an earlier run.

        Raises `CheckpointError` if it is in use, has no readable record, or has a link or a special file in it.
        """
        directory = RunDirectory(path, locked=locked)
        try:
            refuse_odd_files(path)
            directory.record = read_record(path)
        except BaseException:
            directory.close()
            raise
        return directory

    def update(self, **values: Any) -> None:
        """Change values of the record, atomically. Raises OSError."""
        self.record = self.record | values
        write_json(self.path / "run.json", self.record)

    def resumed(self, **values: Any) -> None:
        """Record that the run was resumed, and remove what a kill left behind. Raises OSError."""
        remove_temporary_files(self.path, self.path / "plots")
        self.record.pop("reason", None)
        self.update(status="running", ended=None, resumed=self.record["resumed"] + 1, **_process(), **values)

    def close(self) -> None:
        """Release the lock. A second call does nothing."""
        if self._lock is not None:
            unlock(self._lock)
            self._lock = None


def is_complete(record: Mapping[str, Any]) -> bool:
    """Return whether a run has finished and written everything: `ended` is the last entry that it sets."""
    return record.get("status") == "finished" and record.get("ended", "") is not None


def record_failure(path: Path, reason: str) -> None:
    """Record why the processes of a run have ended, if they have not done so themselves and it is still `running`.

    Does nothing if another process uses the directory, or if that is impossible.
    """
    with suppress(CheckpointError, OSError):
        directory = RunDirectory.reopen(path)
        try:
            if directory.record.get("status") == "running":
                directory.update(status="failed", ended=now(), reason=reason)
        finally:
            directory.close()


def lock(path: Path) -> int:
    """Lock a directory; return the descriptor for `unlock`. Raises `CheckpointError` if another process has it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)  # a FIFO would wait for a writer
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise CheckpointError(
            f"{path} must not be in use, but {_holder(path)} is writing to it; wait for it to end, or start a new run"
        ) from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def unlock(descriptor: int) -> None:
    """Release the lock of a directory."""
    os.close(descriptor)


def _refuse_taken(path: Path) -> None:
    """Raise `ConfigError` for a directory that cannot become that of a new run."""
    if os.path.realpath(path) in (os.getcwd(), os.path.abspath(path.anchor)):
        raise ConfigError(f"`run_dir` must name a new directory, got {str(path)!r}; give it a name")
    if os.path.lexists(path / "run.json"):
        raise ConfigError(
            f"`run_dir` must be a new directory, but {path} holds a run; use another one, or resume it with resume={path}"
        )


def refuse_odd_files(path: Path) -> None:
    """Raise `CheckpointError` for links and special files in a folder: what a run writes would go wherever they lead."""
    kinds = {name: kind_of(path / name) for name in sorted(os.listdir(path))}
    files = {name for name in kinds if name in FILES or name.startswith(EVENTS)}
    odd = {name: kind for name, kind in kinds.items() if kind is not None and (kind != "a folder" or name in files)}
    if odd:
        raise CheckpointError(
            f"{path / name} must be a regular file{'' if name in files else ' or a folder'}, got {kind}; remove it"
            for name, kind in odd.items()
        )


def _holder(path: Path) -> str:
    """Return the process that has a directory open, as text."""
    try:
        record = read_record(path)
    except CheckpointError:
        return "another process"
    return f"process {record.get('pid')} on {record.get('host')}"


def _process() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname()}


def git() -> dict[str, Any]:
    """Return the commit of the working directory and whether tracked files were changed; None outside a checkout.

    No program that the repository names is started. Where git would have to start one, `git_dirty` is None.
    """
    # A folder from somebody else may be a repository with a configuration of its own. `git status` starts the file system
    # monitor and the filters that it names, also in submodules, and fetches objects that are missing.
    code, lines = _git("config", "--show-scope", "--get-regexp", r"^filter\..*\.(clean|process)$")
    has_filters = code not in (0, 1) or any(line.startswith(("local", "worktree")) for line in lines)
    if has_filters:
        code, lines = _git("rev-parse", "--verify", "HEAD")
        return {"git_commit": lines[0] if code == 0 else None, "git_dirty": None}
    code, lines = _git("status", "--porcelain=v2", "--branch", "--untracked-files=no", "--ignore-submodules=dirty")
    if code != 0:
        return {"git_commit": None, "git_dirty": None}
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), None)
    commit = None if commit == "(initial)" else commit  # a repository without commits
    return {"git_commit": commit, "git_dirty": any(not line.startswith("#") for line in lines)}


def _git(*arguments: str) -> tuple[int, list[str]]:
    """Return the exit code of git and the lines that it prints. The code is -1 if it cannot be run."""
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", *arguments]
    environment = {**os.environ, "GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return -1, []
    return done.returncode, done.stdout.splitlines()
