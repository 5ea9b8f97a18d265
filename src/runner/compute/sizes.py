"""Sizes that a configuration asks for, compared with this machine before anything is allocated."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from pathlib import Path

from runner.config import schema as c

GIB = 2**30

NAME_BYTES = 100
"""Memory of the name of a column at least."""

SMALL = GIB // 4
"""Bytes that are never refused, so that a small run does not depend on what else is running."""

PROCESS_BYTES = 100 * 2**20
"""Least memory of one more process with torch imported."""

NUMBER_BYTES = 16
"""Memory of one number of the data at least: in float64 twice while it is made, later from the source and in the dtype."""

PARAMETER_BYTES = 16
"""Memory of one parameter at least: its initial value and its gradient, in float64."""

FLOAT64_PARAMETER_BYTES = 24
"""The same where float64 is trained on the host: value, gradient, and the last finite value."""


def problems(config: c.Config, processes: int = 1) -> list[str]:
    """Return the reasons why data, model or processes cannot fit on this host, where each process holds all rows."""
    data = config.data
    found = [
        unfit(PROCESS_BYTES, "`launch.processes`", f"got {processes:,}", "start fewer processes", processes),
        *model_problems(config, data.known_columns or 1, data.known_targets),
    ]
    if data.known_rows is not None and data.known_columns is not None:
        needed = (
            NUMBER_BYTES * data.known_rows * (data.known_columns + data.known_targets) + NAME_BYTES * data.known_columns
        )
        keys = " times ".join(f"`{key}`" for key in data.size_keys)
        value = f"got {data.known_rows:,} rows of {data.known_columns:,} features"
        found.append(unfit(needed, keys, value, "use fewer", processes))
    return [problem for problem in found if problem is not None]


def model_problems(config: c.Config, columns: int, targets: int, cardinalities: Sequence[int] = ()) -> list[str]:
    """Return the reason why the parameters of a model for so many features and targets cannot fit in memory, if they cannot.

    `cardinalities` are the numbers of codes of the categories, for a model that takes them.
    """
    count = config.model.parameter_count(columns, targets, cardinalities)
    whole = config.device.name == "cpu" and config.strategy.name in ("auto", "single", "dp", "ddp")
    each = FLOAT64_PARAMETER_BYTES if whole and config.dtype == "float64" else PARAMETER_BYTES
    problem = unfit(count * each, f"`{config.model.size_key}`", f"got {count:,} parameters", "use a smaller model")
    return [] if problem is None else [problem]


def unfit(needed: int, subject: str, value: str, remedy: str, processes: int = 1) -> str | None:
    """Return the message for something that takes more bytes than each process can allocate, or None if it fits."""
    if needed * processes <= SMALL or needed * processes <= (available := available_bytes(processes)):
        return None
    sizes = f"{needed * processes / GIB:,.1f} GiB, of which {available / GIB:,.1f} GiB are available"
    return f"{subject} must fit in memory, {value} ({sizes}); {remedy}"


def available_bytes(processes: int = 1) -> float:
    """Return the memory that so many processes of this host can still allocate together; inf if it is unknown."""
    return max(0.0, min(_host_bytes(), _container_bytes(), processes * _limit_bytes()))


def _host_bytes() -> float:
    return _field(Path("/proc/meminfo"), "MemAvailable:") * 1024


def _container_bytes() -> float:
    """Memory that is left of the limit of a container, by version 2 and version 1 of control groups."""
    root = Path("/sys/fs/cgroup")
    return min(
        _left(root, "memory.max", "memory.current", "inactive_file"),
        _left(root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )


def _left(folder: Path, limit: str, used: str, cache: str) -> float:
    """Memory that is left of the limit of a control group; cached files count as free. inf without a group or a limit."""
    try:
        present = int((folder / used).read_text()) - _field(folder / "memory.stat", cache)
        return int((folder / limit).read_text()) - present
    except (OSError, ValueError):  # the limit may be "max"
        return float("inf")


def _limit_bytes() -> float:
    """Address space that is left of the limit of this process (`ulimit -v`)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = _field(Path("/proc/self/status"), "VmSize:") * 1024
    return float("inf") if limit == resource.RLIM_INFINITY or used == float("inf") else limit - used


def _field(file: Path, name: str) -> float:
    """Return the number after a name in a file of the system; inf if there is none."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return float("inf")
    return next((float(line.split()[1]) for line in lines if line.startswith(name)), float("inf"))
