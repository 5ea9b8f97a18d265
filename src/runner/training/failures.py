"""What ends a run, or keeps it from starting, in the words that its user needs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runner.config import validation
from runner.config.schema import Config, plain
from runner.errors import CheckpointError, ConfigError, RunFailed, RunnerError
from runner.runs.atomic import explain_os_error

FREE_ON_RESUME = (
    "train.steps",
    "train.epochs",
    "device",
    "strategy",
    "launch",
    "name",
    "seeds",
    "sweep",
    "run_dir",
    "resume",
    "record",
    "checkpoint",
)
"""Keys that may differ between a checkpoint and the configuration that goes on from it."""


def refuse_other(state: Mapping[str, Any], config: Config, data_sha256: str, path: Path) -> None:
    """A checkpoint of another experiment must not be continued. Raises `CheckpointError` with every key that differs."""
    saved, present = _leaves(validation.completed(type(config), state["config"]), ""), _leaves(plain(config), "")
    problems = []
    for key in sorted(saved.keys() | present.keys()):
        name = key.removeprefix(".")
        if saved.get(key) != present.get(key) and not any(
            name == k or name.startswith(f"{k}.") for k in FREE_ON_RESUME
        ):
            problems.append(
                f"`{name}` must be {saved.get(key)} as in {path.name}, but is {present.get(key)} in config.yaml; restore config.yaml"
            )
    if state["data_sha256"] != data_sha256:
        problems.append(
            f"`data.path` must be the file that {path.name} was trained on, but its content has changed; restore it, or start a new run"
        )
    if problems:
        raise CheckpointError(problems)


def _leaves(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _leaves(value, f"{prefix}.{name}")
        elif isinstance(value, (bool, int, float, str)):
            found[f"{prefix}.{name}"] = value
        elif value is not None:
            found[f"{prefix}.{name}"] = str(value)
    return found


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
