"""Probes that record the machine; all other modules of the command are pure functions of the record.

Nothing here imports torch or numpy. What torch reports comes from a child process, which may fail, crash or hang. A probe
that finds nothing returns None or an empty value; no probe raises.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from runner.commands.doctor.machine import GIB, Machine, Package, Torch, torch_from_json
from runner.compute.devices import TorchBuild, installed_build
from runner.errors import DeviceError

TORCH_SECONDS = 120
"""Time limit for the report of torch. Its import alone may take a minute on a slow network disk."""
TOOL_SECONDS = 20
"""Time limit for other programs, such as nvidia-smi."""

PCI = Path("/sys/bus/pci/devices")
NVIDIA_MODULE = Path("/proc/driver/nvidia/version")
CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
VENDORS = {"0x10de": "nvidia", "0x1002": "amd", "0x8086": "intel"}
"""PCI vendor id -> vendor."""
_VENDOR_PATTERNS = (("nvidia", r"nvidia|geforce|quadro|tesla"), ("amd", r"\bamd\b|radeon|\bati\b"), ("intel", r"intel"))
_RELEVANT = ("CXX", "CUDA", "HIP", "ROCR", "ROCM", "GPU", "OMP_", "MKL_", "HSA_")
"""Prefixes of the environment variables that select GPUs, threads and compiler, also if misspelt."""


def collect() -> Machine:
    """Return the record of this machine."""
    build, torch, fault = _torch()
    found_cards, driver = cards()
    requires_python, packages = _packages()
    return Machine(
        python=platform.python_version(),
        requires_python=requires_python,
        bits=64 if sys.maxsize > 2**32 else 32,
        system=platform.system(),
        architecture=platform.machine(),
        container=any(map(os.path.exists, ("/.dockerenv", "/run/.containerenv"))) or _in_cluster(),
        cores=cores(),
        disk_free_gib=_space(Path(), free=True),
        shared_memory_gib=_space(Path("/dev/shm"), free=False),
        writable=os.access(".", os.W_OK),
        environ={name: value for name, value in sorted(os.environ.items()) if name.upper().startswith(_RELEVANT)},
        packages=packages,
        build=build,
        torch=torch,
        torch_fault=fault,
        cards=found_cards,
        nvidia_driver=driver,
        kfd=_kfd(),
        compiler=_compiler(),
        python_headers=Path(sysconfig.get_path("include"), "Python.h").is_file(),
        triton=_is_installed("triton"),
    )


# --------------------------------------------------------------------------------------------------------- report of torch


def _torch() -> tuple[TorchBuild | None, Torch | None, str | None]:
    try:
        build = installed_build()
    except (DeviceError, ImportError, KeyError, SyntaxError):
        return None, None, None
    torch, fault = query_torch(TORCH_SECONDS)
    return build, torch, fault


def query_torch(seconds: float) -> tuple[Torch | None, str | None]:
    """Return the report of torch from a child process, or the reason why there is none.

    torch may fail to import, crash, or take longer than `seconds`.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "runner.commands.doctor.child"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, f"it does not answer within {seconds:g} seconds"
    except OSError as error:
        return None, f"no process can be started to import it ({error})"
    if done.returncode < 0:
        return None, f"it crashes Python with {signal.Signals(-done.returncode).name}"
    try:
        report = json.loads(done.stdout.splitlines()[-1])
        return (None, report["fault"]) if "fault" in report else (torch_from_json(report), None)
    except (IndexError, ValueError, KeyError, TypeError):  # the process exited before it printed a report
        return None, f"it exits Python with code {done.returncode}"


# ----------------------------------------------------------------------------------------------------- cards and drivers


def _output(*command: str) -> str | None:
    """Return what a program prints, or None if it is missing, fails or hangs."""
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=TOOL_SECONDS, encoding="utf-8", errors="replace", check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def cards() -> tuple[dict[str, tuple[str, ...]], str | None]:
    """Return the cards in this machine by vendor, and the version of the NVIDIA driver.

    nvidia-smi reports both. Without it, the system lists the cards and the kernel module has the version.
    """
    text = _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader") or ""
    rows = [line.rpartition(", ") for line in text.splitlines() if ", " in line]
    if rows:
        return {**_listed(), "nvidia": tuple(name for name, _, _ in rows)}, rows[0][2].strip()
    module = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)\s", _read(NVIDIA_MODULE))
    return _listed(), module[1] if module else None


def _listed() -> dict[str, tuple[str, ...]]:
    """Return the cards that the operating system lists, by vendor."""
    if platform.system() == "Windows":
        query = "(Get-CimInstance Win32_VideoController).Name"
        return by_vendor(_output("powershell", "-NoProfile", "-Command", query) or "")
    names: dict[str, tuple[str, ...]] = {}
    for device in sorted(PCI.glob("*")):
        vendor, kind = VENDORS.get(_read(device / "vendor").strip()), _read(device / "class")
        if vendor and kind.startswith(("0x03", "0x12")):  # displays and 3D controllers; processing accelerators
            names[vendor] = (*names.get(vendor, ()), f"PCI {device.name}")
    return names


def by_vendor(text: str) -> dict[str, tuple[str, ...]]:
    """Return names of cards, one per line in `text`, by vendor."""
    names: dict[str, tuple[str, ...]] = {}
    for name in filter(None, map(str.strip, text.splitlines())):
        vendor = next((vendor for vendor, pattern in _VENDOR_PATTERNS if re.search(pattern, name, re.IGNORECASE)), None)
        if vendor:
            names[vendor] = (*names.get(vendor, ()), name)
    return names


def _kfd() -> str:
    if not os.path.exists("/dev/kfd"):
        return "absent"
    return "open" if os.access("/dev/kfd", os.R_OK | os.W_OK) else "closed"


# --------------------------------------------------------------------------------------------------- Python and the system


def _packages() -> tuple[str, tuple[Package, ...]]:
    """Return the Python versions and the packages that the runner requires.

    Both are empty if the runner is not installed, or not completely.
    """
    from importlib import metadata

    try:
        from packaging.requirements import Requirement

        package = metadata.metadata("runner")
        requirements = [Requirement(text) for text in metadata.requires("runner") or []]
    except (ImportError, ValueError):  # not installed, or a requirement cannot be parsed
        return "", ()
    extras = ["", *sorted(set(package.get_all("Provides-Extra") or ()) - {"dev"})]
    packages = [
        Package(name=need.name, versions=str(need.specifier), extra=extra, installed=_version(need.name))
        for extra in extras
        for need in requirements
        if (need.marker is None and not extra) or (need.marker is not None and _belongs_to(need.marker, extra))
    ]
    return (package.get_all("Requires-Python") or [""])[0], tuple(packages)


def _belongs_to(marker: Any, extra: str) -> bool:
    """Whether a requirement belongs to an extra; the extra "" stands for the runner itself."""
    return bool(marker.evaluate({"extra": extra})) and not (extra and marker.evaluate({"extra": ""}))


def _version(name: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _is_installed(module: str) -> bool:
    from importlib.util import find_spec

    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def cores() -> float:
    """Return the number of cores that this process may use, limited by its container."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = re.match(r"(\d+) (\d+)", _read(CPU_LIMIT))
    return min(usable, int(limit[1]) / int(limit[2])) if limit else usable


def _compiler() -> str | None:
    """Return the path of the C++ compiler that torch.compile uses on the CPU, or None."""
    default = {"Darwin": "clang++", "Windows": "cl"}.get(platform.system(), "g++")
    return shutil.which(os.environ.get("CXX") or default)


def _space(path: Path, free: bool) -> float | None:
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return None
    return (usage.free if free else usage.total) / GIB


def _in_cluster() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
