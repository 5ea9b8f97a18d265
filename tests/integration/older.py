"""The runs of tests/fixtures, made by an older version: copies of them, what they must end with, and where that holds to the bit."""

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

# Another processor, or another torch, may add in another order: what float32 rounds differently grows over some twenty
# steps of a small network to a few units in the seventh digit of a metric. A hundred times that is still no other answer.
FLOAT32 = 1e-4


def copied(name: str, folder: Path) -> Path:
    """A copy of one of the runs in `folder`, its links links; relative to it, as the runs were made."""
    shutil.copytree(FOLDER / name, folder / name, symlinks=True)
    return Path(name)


def expected() -> dict[str, Any]:
    """What the runs must end with, and the machine where they did."""
    found: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text())
    return found


def machine() -> dict[str, str]:
    """What bits depend on besides the run's own configuration."""
    return {
        "torch": str(torch.__version__),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "processor": probe().cpu_name,
    }


def here() -> bool:
    """Whether bits must be those of the machine where the runs were made."""
    return bool(machine() == expected()["machine"])


def end(run: Path) -> dict[str, Any]:
    """What a run that has finished came to."""
    summary = json.loads((run / "summary.json").read_text())
    return {key: summary[key] for key in ("steps", "parameters_sha256", "metrics")}


def agrees(run: Path, told: dict[str, Any]) -> None:
    """The run ends as it did when the fixtures were made: to the bit on such a machine, closely on another one."""
    found = end(run)
    if here():
        assert found == told
        return
    assert found["steps"] == told["steps"]
    assert found["metrics"].keys() == told["metrics"].keys()
    for name, value in told["metrics"].items():
        assert abs(found["metrics"][name] - value) <= FLOAT32 * max(abs(value), 1e-3), name


def config_files() -> list[Path]:
    """Every configuration that the runs have saved."""
    return sorted(FOLDER.glob("**/config.yaml"))


def keys(kind: type, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a schema, with the variant of a group where it has one: `model[mlp].widths`."""
    for name, hint in introspection.hints(kind).items():
        yield prefix + name
        for option, variant in introspection.variants(hint).items():
            yield from keys(variant, _below(prefix, name, option))


def unnamed(kind: type, known: Collection[str], prefix: str = "") -> Iterator[str]:
    """Keys and groups that are not among the known ones and do not name what they were before they existed.

    Those of a variant that is new itself need not: no older run has it.
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
    """The keys that there were when the first of the runs were made."""
    return (FOLDER / "keys.txt").read_text().split()
