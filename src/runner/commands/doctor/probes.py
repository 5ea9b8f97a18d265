"""The one place that looks at the machine. Nothing here imports torch or numpy.

What torch itself says is asked of a process of its own, which may fail, crash or hang. A probe that finds nothing says so
with None or an empty text; none raises.
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

ANSWER_SECONDS = 120
"""How long torch may take to say what it finds: its import alone takes a minute where files come over a slow network."""
TOOL_SECONDS = 20

PCI = Path("/sys/bus/pci/devices")
NVIDIA_MODULE = Path("/proc/driver/nvidia/version")
CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
VENDORS = {"0x10de": "nvidia", "0x1002": "amd", "0x8086": "intel"}
"""PCI vendor → whose cards they are."""
_NAMED = (("nvidia", r"nvidia|geforce|quadro|tesla"), ("amd", r"\bamd\b|radeon|\bati\b"), ("intel", r"intel"))
_RELEVANT = ("CXX", "CUDA", "HIP", "ROCR", "ROCM", "GPU", "OMP_", "MKL_", "HSA_")
"""How the names of the variables begin that say which GPUs, threads and compiler there are, or were meant to."""


def collect() -> Machine:
    """This machine."""
    build, torch, fault = _torch()
    found, driver = cards()
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
        cards=found,
        nvidia_driver=driver,
        kfd=_kfd(),
        compiler=_compiler(),
        python_headers=Path(sysconfig.get_path("include"), "Python.h").is_file(),
        triton=_is_there("triton"),
    )


# ---------------------------------------------------------------------------------------------------------- torch's word


def _torch() -> tuple[TorchBuild | None, Torch | None, str | None]:
    try:
        build = installed_build()
    except (DeviceError, ImportError, KeyError, SyntaxError):
        return None, None, None
    torch, fault = ask(ANSWER_SECONDS)
    return build, torch, fault


def ask(seconds: float) -> tuple[Torch | None, str | None]:
    """What torch says in a process of its own, or why it says nothing: it cannot be imported, crashes, or takes too long."""
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
        return None, f"no process can be started to ask it ({error})"
    if done.returncode < 0:
        return None, f"it ends Python with {signal.Signals(-done.returncode).name}"
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
        return (None, answer["fault"]) if "fault" in answer else (torch_from_json(answer), None)
    except (IndexError, ValueError, KeyError, TypeError):  # it said something, or nothing, and left
        return None, f"it ends Python with exit code {done.returncode}"


# ----------------------------------------------------------------------------------------------------- cards and drivers


def _output(*command: str) -> str | None:
    """What a tool prints; None where it is not there, fails or hangs."""
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=TOOL_SECONDS, encoding="utf-8", errors="replace", check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def cards() -> tuple[dict[str, tuple[str, ...]], str | None]:
    """The cards that are there, by vendor, and the version of NVIDIA's driver.

    NVIDIA's own tool tells both; without it, the system lists the cards and the kernel tells the version.
    """
    text = _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader") or ""
    rows = [line.rpartition(", ") for line in text.splitlines() if ", " in line]
    if rows:
        return {**_listed(), "nvidia": tuple(name for name, _, _ in rows)}, rows[0][2].strip()
    module = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)\s", _read(NVIDIA_MODULE))
    return _listed(), module[1] if module else None


def _listed() -> dict[str, tuple[str, ...]]:
    """The cards that the system lists."""
    if platform.system() == "Windows":
        query = "(Get-CimInstance Win32_VideoController).Name"
        return by_vendor(_output("powershell", "-NoProfile", "-Command", query) or "")
    found: dict[str, tuple[str, ...]] = {}
    for device in sorted(PCI.glob("*")):
        vendor, kind = VENDORS.get(_read(device / "vendor").strip()), _read(device / "class")
        if vendor and kind.startswith(("0x03", "0x12")):  # displays and 3D controllers; processing accelerators
            found[vendor] = (*found.get(vendor, ()), f"PCI {device.name}")
    return found


def by_vendor(text: str) -> dict[str, tuple[str, ...]]:
    """Names of cards, one a line, by vendor."""
    found: dict[str, tuple[str, ...]] = {}
    for name in filter(None, map(str.strip, text.splitlines())):
        vendor = next((vendor for vendor, words in _NAMED if re.search(words, name, re.IGNORECASE)), None)
        if vendor:
            found[vendor] = (*found.get(vendor, ()), name)
    return found


def _kfd() -> str:
    if not os.path.exists("/dev/kfd"):
        return "absent"
    return "open" if os.access("/dev/kfd", os.R_OK | os.W_OK) else "closed"


# --------------------------------------------------------------------------------------------------- Python and the system


def _packages() -> tuple[str, tuple[Package, ...]]:
    """The Python that the runner asks for, and its packages; nothing where it is not installed, or not whole."""
    from importlib import metadata

    try:
        from packaging.requirements import Requirement

        own = metadata.metadata("runner")
        asked = [Requirement(text) for text in metadata.requires("runner") or []]
    except (ImportError, ValueError):  # not installed; a requirement that cannot be read
        return "", ()
    extras = ["", *sorted(set(own.get_all("Provides-Extra") or ()) - {"dev"})]
    found = [
        Package(name=need.name, versions=str(need.specifier), extra=extra, installed=_version(need.name))
        for extra in extras
        for need in asked
        if (need.marker is None and not extra) or (need.marker is not None and _for(need.marker, extra))
    ]
    return (own.get_all("Requires-Python") or [""])[0], tuple(found)


def _for(marker: Any, extra: str) -> bool:
    """Whether a requirement is one of an extra ("" for none), and not of the runner itself."""
    return bool(marker.evaluate({"extra": extra})) and not (extra and marker.evaluate({"extra": ""}))


def _version(name: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _is_there(module: str) -> bool:
    from importlib.util import find_spec

    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def cores() -> float:
    """The cores that this process may use: those it may run on, and no more than the limit of its container."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = re.match(r"(\d+) (\d+)", _read(CPU_LIMIT))
    return min(usable, int(limit[1]) / int(limit[2])) if limit else usable


def _compiler() -> str | None:
    """What torch.compile compiles with on the CPU."""
    usual = {"Darwin": "clang++", "Windows": "cl"}.get(platform.system(), "g++")
    return shutil.which(os.environ.get("CXX") or usual)


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
