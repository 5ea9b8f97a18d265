"""Errors of torch and the operating system that end a run or prevent its start, as sentences for the user."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from runner.config import imports
from runner.config.schema import Config
from runner.errors import ConfigError, Interrupted, RunFailed, RunnerError
from runner.runs.atomic import explain_os_error

T = TypeVar("T")


def as_failure(error: BaseException, config: Config, directory: Path) -> RunnerError | None:
    """Return the failure that disk, memory or device caused, as a `RunnerError`.

    Returns None for any other error: it is a bug, and keeps its traceback.
    """
    if isinstance(error, RunnerError):
        return error
    if isinstance(error, OSError):
        return RunFailed(explain_os_error(error, Path(error.filename or directory)))
    text = " ".join(str(error).split())
    if is_out_of_memory(error):
        batch = config.train.batch_size or "all rows"
        return RunFailed(
            f"out of memory with `train.batch_size`={batch}; make it smaller, or cut batches with train.accumulate ({text[:200]})"
        )
    if isinstance(error, RuntimeError) and any(word in text for word in ("CUDA error", "HIP error", "device lost")):
        return RunFailed(f"the device was lost: {text[:300]}; start again with resume=…")
    for target in config.code:
        if place := imports.place_of(error, target):
            return RunFailed(f"{target.shown} failed{place}: {imports.described(error)}")
    return None


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error of Python, torch or a library of the GPU means that no memory was left."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(part in str(error) for part in _NO_MEMORY)
    )


_NO_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED", "bad_alloc")


def as_run_failed(error: BaseException, config: Config, directory: Path) -> RunnerError:
    """Return any error as a `RunnerError`; that of a bug has its type and text."""
    return as_failure(error, config, directory) or RunFailed(_type_and_text(error))


def optional(product: str, make: Callable[[], T], directory: Path, warn: Callable[[str], None]) -> T | None:
    """Make something that a finished run or sweep can do without. If that fails, warn and return None."""
    made: list[T] = []
    error = error_of(lambda: made.append(make()))
    if error is not None:
        reason = (
            explain_os_error(error, Path(error.filename or directory))
            if isinstance(error, OSError)
            else " ".join(_type_and_text(error).split())
        )
        with contextlib.suppress(OSError):  # of run.log: the warning is on the console
            warn(f"the results are complete, but not {product}: {reason}")
    return made[0] if made else None


def error_of(work: Callable[[], object]) -> Exception | None:
    """Call `work`, and return its error or None. A signal is raised."""
    try:
        work()
    except Interrupted:
        raise
    except Exception as error:
        return error
    return None


def _type_and_text(error: BaseException) -> str:
    if isinstance(error, RunnerError):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


@contextlib.contextmanager
def python_warnings_to(warn: Callable[[str], None]) -> Iterator[None]:
    """Report the warnings of Python, which a training step and torch may give, inside the context by `warn`."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        with contextlib.suppress(OSError):  # of run.log, whose own lines report it
            warn(" ".join(str(message).split()))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def explain_out_of_memory(config: Config) -> Iterator[None]:
    """Raise `ConfigError` when data or model are too large for memory. For use before a run has started."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = " ".join(str(error).split())
        if isinstance(error, MemoryError) or any(word in text for word in ("memory", "overflow", "too large")):
            keys = dict.fromkeys((*config.data.size_keys, config.model.size_key))
            reason = f" ({text[:200]})" if text else ""
            raise ConfigError(
                f"data and model must fit in memory, but do not{reason}; make {' or '.join(f'`{key}`' for key in keys)} smaller"
            ) from None
        raise
