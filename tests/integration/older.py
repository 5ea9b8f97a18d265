"""Runs of an older version in tests/fixtures: copies of them, their expected results, and where those hold to the bit."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch

from runner.compute.devices import probe
from runner.config import introspection, versions

FOLDER = Path(__file__).parents[1] / "fixtures"
NAMES = ("killed", "finished", "sweep_half", "fsdp", "optuna")

# Another processor or another torch may add in another order. Over some twenty steps of a small network, the float32
# rounding errors grow to a few units in the seventh digit of a metric. A hundred times that is still the same result.
FLOAT32 = 1e-4


def copied(name: str, folder: Path) -> Path:
    """Copy one of the runs to `folder` with its symbolic links. Return the path relative to `folder`."""
    shutil.copytree(FOLDER / name, folder / name, symlinks=True)
    return Path(name)


def expected() -> dict[str, Any]:
    """Return the expected results of the runs, and the machine on which they were computed."""
    found: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text())
    return found


def machine() -> dict[str, str]:
    """Return what the bits depend on in addition to the configuration of a run."""
    return {
        "torch": str(torch.__version__),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "processor": probe().cpu_name,
    }


def is_same_machine() -> bool:
    """Return whether results must equal those of the original machine to the bit."""
    return bool(machine() == expected()["machine"])


def end(run: Path) -> dict[str, Any]:
    """Return the result of a finished run."""
    summary = json.loads((run / "summary.json").read_text())
    return {key: summary[key] for key in ("steps", "parameters_sha256", "metrics")}


def check_end(run: Path, expected_end: dict[str, Any]) -> None:
    """Assert that a run has the expected result: to the bit on an equal machine, within a tolerance on another one."""
    result = end(run)
    if is_same_machine():
        assert result == expected_end
        return
    assert result["steps"] == expected_end["steps"]
    assert result["metrics"].keys() == expected_end["metrics"].keys()
    for name, value in expected_end["metrics"].items():
        assert abs(result["metrics"][name] - value) <= FLOAT32 * max(abs(value), 1e-3), name


def config_files() -> list[Path]:
    """Return every config.yaml of the runs."""
    return sorted(FOLDER.glob("**/config.yaml"))


def keys(kind: type, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a schema, with the variant of a group if it has several: `model[mlp].widths`."""
    for name, hint in introspection.hints(kind).items():
        yield prefix + name
        for option, variant in introspection.variants(hint).items():
            yield from keys(variant, _below(prefix, name, option))


def unnamed(kind: type, known: Collection[str], prefix: str = "") -> Iterator[str]:
    """Yield the keys and groups that are neither known nor name their value from before they existed.

    Keys of a new variant are left out, because no older run has that variant.
    """
    for name, hint in introspection.hints(kind).items():
        if prefix + name not in known:
            if name not in versions.completed(kind, {}):
                yield prefix + name
            continue
        for option, variant in introspection.variants(hint).items():
            below = _below(prefix, name, option)
            if any(key.startswith(below) for key in known):
                yield from unnamed(variant, known, below)


def _below(prefix: str, name: str, option: str) -> str:
    return f"{prefix}{name}[{option}]." if option else f"{prefix}{name}."


def known() -> list[str]:
    """Return the keys that existed when the first of the runs were made."""
    return (FOLDER / "keys.txt").read_text().split()
