"""A study's journal: one JSON line an operation, in Optuna's own format, in a file that kills and power cuts cannot spoil.

Optuna's own backend leaves a lock behind when its process is killed, which holds the next one up for half a minute; it
takes a line that was cut short for damage; and it waits for the disk at every value that is asked for or reported.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from optuna.storages.journal import BaseJournalBackend

TELL = 6
"""The operation that ends a trial (optuna.storages.journal._storage.JournalOperation)."""


class Journal(BaseJournalBackend):
    """Operations in the order in which processes append them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._starts = [0]  # of every line read so far, and of the next one, in bytes
        path.open("ab").close()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The operations from a number on, no further than one past those read before."""
        with self._path.open("rb") as file:
            file.seek(self._starts[log_number_from])
            for number, line in enumerate(file, log_number_from + 1):
                if not line.endswith(b"\n"):
                    return  # it is being written, or never will be
                if number == len(self._starts):
                    self._starts.append(self._starts[-1] + len(line))
                yield json.loads(line)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add operations. They survive a kill at once, and a power cut from the next trial on that ends. Raises OSError."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with self._path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # the kernel's lock dies with its holder
            file.seek(_end(file))
            file.write(lines.encode())
            file.truncate()
            file.flush()
            if any(log["op_code"] == TELL for log in logs):
                os.fsync(file.fileno())


def _end(file: BinaryIO) -> int:
    """Where the last whole line ends. Only the holder of the lock writes, so that a part of one was left by the dead."""
    end = file.seek(0, os.SEEK_END)
    while end and os.pread(file.fileno(), 1, end - 1) != b"\n":
        end -= 1
    return end
