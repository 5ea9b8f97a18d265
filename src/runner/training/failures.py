"""Errors of torch and the operating system that end a run or prevent its start, as sentences for the user."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from runner.config.schema import Config
from runner.errors import ConfigError, RunFailed, RunnerError
from runner.runs.atomic import explain_os_error


def as_failure(error: BaseException, config: Config, directory: Path) -> RunnerError | None:
    """Return the failure that disk, memory or device caused, as a `RunnerError`.

    Returns None for any other error: it is a bug, and keeps its traceback.
    """
    if isinstance(error, RunnerError):
        return error
    if isinstance(error, OSError):
        return RunFailed(explain_os_error(error, Path(error.filename or directory)))
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        batch = config.train.batch_size or "all rows"
        return RunFailed(
            f"out of memory with `train.batch_size`={batch}; make it smaller, or cut batches with train.accumulate ({text[:200]})"
        )
    if isinstance(error, RuntimeError) and any(word in text for word in ("CUDA error", "HIP error", "device lost")):
        return RunFailed(f"the device was lost: {text[:300]}; start again with resume=…")
    return None


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
