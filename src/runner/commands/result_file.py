"""The file that a verb writes its result to, or standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runner.errors import RunFailed
from runner.runs.atomic import explain_os_error, write_atomic

STANDARD = "-"
"""Name of standard input and output."""


def refuse(path: str, inputs: str, *, force: bool) -> list[str]:
    """Return the problem with `--output`, before anything is read; none if there is no problem."""
    file = Path(path)
    found = {
        f"in a folder that exists, got {path!r}; make {str(file.parent)!r} first": not file.parent.is_dir(),
        f"a file, got the folder {path!r}; name a file in it": file.is_dir(),
        f"a regular file, got {path!r}; use - for standard output": file.exists() and not file.is_file(),
        f"another file than `--input`, got {path!r} for both; name another one": _same(file, Path(inputs)),
        f"a new file, got {path!r}, which exists; add --force to replace it": file.exists() and not force,
    }
    problems = [f"`--output` must be {text}" for text, wrong in found.items() if wrong]
    return [] if path == STANDARD else problems[:1]


def _same(file: Path, other: Path) -> bool:
    return file.exists() and other.exists() and file.samefile(other)


def write(path: str, text: str) -> None:
    """Write a short text as a file, which is complete or absent, or to standard output. Raises OSError."""
    if path == STANDARD:
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_atomic(Path(path), text.encode())


@contextmanager
def explained(path: str, option: str = "--output") -> Iterator[None]:
    """Raise `RunFailed`, which names the option, for an error of the operating system."""
    try:
        yield
    except BrokenPipeError:
        raise RunFailed("standard output was closed before the whole result was written") from None
    except OSError as error:
        raise RunFailed(explain_os_error(error, Path(path)).replace("`run_dir`", f"`{option}`")) from error
