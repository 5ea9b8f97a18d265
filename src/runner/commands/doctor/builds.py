"""Which build of torch a machine should have, and the command that installs it."""

from __future__ import annotations

import re

from runner.commands.doctor.machine import Machine

INDEX = "https://download.pytorch.org/whl"
BUILD_FOR_DRIVER = ((580, "cu130"), (525, "cu126"))
"""The first driver that runs a build of torch, newest first."""
DRIVER_FOR_CUDA = {11: 450, 12: 525, 13: 580}
"""CUDA's major version → the first NVIDIA driver that runs all of it (CUDA Compatibility, minor version compatibility)."""
ROCM = "rocm7.1"


def install(build: str | None, anew: bool = True) -> str:
    """The command that installs a build, None being pip's own choice; `anew` since pip takes any build for any other."""
    index = f" --index-url {INDEX}/{build}" if build else ""
    return f"pip install{' --force-reinstall' if anew else ''} torch{index}"


def best(machine: Machine) -> str | None:
    """The build for the cards of a machine; None on a Mac, for which there is only one."""
    if machine.system == "Darwin":
        return None
    if machine.cards.get("nvidia"):
        return for_driver(machine.nvidia_driver) or "cpu"
    return ROCM if machine.cards.get("amd") and machine.system == "Linux" else "cpu"


def for_driver(version: str | None) -> str | None:
    """The newest CUDA build that an NVIDIA driver runs, or None; where there is no driver yet, the newest there is."""
    driver = major(version)
    return next((build for first, build in BUILD_FOR_DRIVER if driver is None or driver >= first), None)


def major(version: str | None) -> int | None:
    """The number that a version starts with."""
    number = re.match(r"\d+", version or "")
    return int(number[0]) if number else None
