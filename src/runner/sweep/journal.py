"""The journal of a study: one JSON line per operation, in Optuna's own format, in a file that survives kills and power cuts."""

# Why not Optuna's own backend: a killed process leaves its lock behind, which delays the next one by half a minute. A line that
# was cut short counts as damage. And it waits for the disk at every value that is drawn or reported.

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from optuna.storages.journal import BaseJournalBackend

from runner.config.files import MIB, open_to_append, open_to_change, open_to_read

MAX_LINE = MIB
"""Longest operation."""
END_TRIAL = 6
"""The operation that ends a trial (`SET_TRIAL_STATE_VALUES` of Optuna's `JournalOperation`)."""


class Journal(BaseJournalBackend):
    """Operations in the order in which the processes appended them."""

    def __init__(self, path: Path) -> None:
        """Use the journal at `path`, and create it if it is missing. Raises OSError."""
        self._path = path
        self._starts = [0]  # byte offsets of the lines read so far, and of the next one
        open_to_append(path).close()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield the operations from a number on. It must not exceed the number of operations read before."""
        with open_to_read(self._path) as file:
            file.seek(self._starts[log_number_from])
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), b""), log_number_from + 1):
                if not line.endswith(b"\n"):
                    return  # another process is writing it, or was killed while it did
                if number == len(self._starts):
                    self._starts.append(self._starts[-1] + len(line))
                yield json.loads(line)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append operations. They survive a kill at once, and a power cut once the next trial has ended. Raises OSError."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with open_to_change(self._path) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # the kernel's lock dies with its holder
            file.seek(_end(file))
            file.write(lines.encode())
            file.truncate()
            file.flush()
            if any(log["op_code"] == END_TRIAL for log in logs):
                os.fsync(file.fileno())


def _end(file: BinaryIO) -> int:
    """Return the offset at which the last whole line ends."""
    # Only the holder of the lock writes, so a partial line was left by a killed process.
    size = end = file.seek(0, os.SEEK_END)
    while end and os.pread(file.fileno(), 1, end - 1) != b"\n":
        end -= 1
        if size - end > MAX_LINE:
            raise OSError(errno.EFBIG, f"its last line has more than {MAX_LINE / MIB:g} MiB")
    return end
