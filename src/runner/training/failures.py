"""What ends a run, or keeps it from starting, in the words that its user needs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from runner.config.schema import Config
from runner.errors import ConfigError, RunFailed, RunnerError
from runner.runs.atomic import explain_os_error


def as_failure(error: BaseException, config: Config, directory: Path) -> RunnerError | None:
    """What the world did to a run, in a sentence; None for mistakes of ours, which keep their traceback."""
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
def explained_memory() -> Iterator[None]:
    """Data and a model that are too large for the machine are the user's input: nothing has been started yet."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = " ".join(str(error).split())
        if isinstance(error, MemoryError) or any(word in text for word in ("memory", "overflow", "too large")):
            raise ConfigError(
                f"data and model must fit in memory, but do not ({text[:200]}); "
                "make `data.rows`, `data.features` or `model.widths` smaller"
            ) from None
        raise
