"""Choice of the torch build for a machine, and the command that installs it."""

from __future__ import annotations

import re

from runner.commands.doctor.machine import Machine

INDEX = "https://download.pytorch.org/whl"
BUILD_FOR_DRIVER = ((580, "cu130"), (525, "cu126"))
"""First NVIDIA driver that runs a build of torch, with that build, newest first."""
DRIVER_FOR_CUDA = {11: 450, 12: 525, 13: 580}
"""Major version of CUDA -> first NVIDIA driver that runs all of it (CUDA Compatibility, minor version compatibility)."""
ROCM = "rocm7.1"


def install(build: str | None, *, replace: bool = True) -> str:
    """Return the command that installs a build of torch; None leaves the choice to pip."""
    index = f" --index-url {INDEX}/{build}" if build else ""
    # Without --force-reinstall pip takes an installed build for any other build of the same version.
    return f"pip install{' --force-reinstall' if replace else ''} torch{index}"


def best(machine: Machine) -> str | None:
    """Return the build for the cards of a machine, or None on a Mac, for which there is only one."""
    if machine.system == "Darwin":
        return None
    if machine.cards.get("nvidia"):
        return for_driver(machine.nvidia_driver) or "cpu"
    return ROCM if machine.cards.get("amd") and machine.system == "Linux" else "cpu"


def for_driver(version: str | None) -> str | None:
    """Return the newest CUDA build that an NVIDIA driver runs, or None if it runs none.

    Without a driver (`version` is None), return the newest CUDA build.
    """
    driver = major(version)
    return next((build for first, build in BUILD_FOR_DRIVER if driver is None or driver >= first), None)


def major(version: str | None) -> int | None:
    """Return the number that a version starts with, or None."""
    number = re.match(r"\d+", version or "")
    return int(number[0]) if number else None
