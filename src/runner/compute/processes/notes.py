"""Notes from the processes of a run to the process that launched them. They are files: they outlive the processes."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "RUNNER_LAUNCH_NOTES"
"""Environment variable that names the folder of the notes. Another launcher than ours does not set it."""

RUN_DIRECTORY, SWEEP_DIRECTORY = "run_dir", "sweep_dir"
"""Names of the notes on the directories in use."""
REASON = "reason"
"""Name of the note on why this attempt failed, if no exit code shows it."""


@dataclass(frozen=True)
class LaunchNotes:
    """The notes of a launch; without a folder nobody reads them."""

    folder: Path | None

    @staticmethod
    def of(environ: Mapping[str, str]) -> LaunchNotes:
        """Return the notes of the launcher that started this process."""
        return LaunchNotes(Path(environ[VARIABLE]) if VARIABLE in environ else None)

    def write(self, name: str, text: str) -> None:
        """Replace a note. Does nothing where that is impossible: no run depends on a note."""
        if self.folder is not None:
            fresh = self.folder / f"{name}.{os.getpid()}"
            with contextlib.suppress(OSError):
                fresh.write_text(text, encoding="utf-8")
                os.replace(fresh, self.folder / name)

    def read(self, name: str) -> str | None:
        """Return a note, or None if there is none or an empty one."""
        if self.folder is not None:
            with contextlib.suppress(OSError):
                return (self.folder / name).read_text(encoding="utf-8") or None
        return None


@contextlib.contextmanager
def kept() -> Iterator[LaunchNotes]:
    """Keep notes of the processes that are started inside the context."""
    with tempfile.TemporaryDirectory(prefix="runner-") as folder:
        os.environ[VARIABLE] = folder
        try:
            yield LaunchNotes(Path(folder))
        finally:
            del os.environ[VARIABLE]
