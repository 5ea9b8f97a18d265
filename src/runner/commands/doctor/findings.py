"""What is found out about a recorded machine: pure functions, each for one subject, each finding with reason and remedy."""

from __future__ import annotations

import math
from collections.abc import Iterator

from runner.commands.doctor import builds
from runner.commands.doctor.finding import Finding
from runner.commands.doctor.gpus import gpus, mask_findings
from runner.commands.doctor.machine import Machine, Package
from runner.compute import devices
from runner.config.schema import Device

AUTO = Device(name="auto", visible=None, threads=None, matmul_precision="highest")


def findings(machine: Machine) -> list[Finding]:
    """Everything there is to say, from the ground up."""
    rooms = (
        _python,
        _packages,
        _torch,
        _numpy,
        gpus,
        mask_findings,
        _distributed,
        _compile,
        _extras,
        _threads,
        _space,
        _device,
    )
    return [finding for room in rooms for finding in room(machine)]


# ------------------------------------------------------------------------------------------------- Python and packages


def _python(machine: Machine) -> Iterator[Finding]:
    words = f"Python {machine.python}, {machine.bits} bit, {machine.system} on {machine.architecture}"
    words += ", in a container" if machine.container else ""
    if machine.bits == 32:
        yield Finding("python", "broken", f"{words}: there is no torch for 32 bit", "install a 64 bit Python")
    elif machine.requires_python and not _within(machine.python, machine.requires_python):
        needs = f"{words}, but the runner needs Python {machine.requires_python}"
        yield Finding("python", "broken", needs, "make a virtual environment with another Python")
    else:
        yield Finding("python", "ok", words)


def _within(version: str, versions: str) -> bool:
    from packaging.specifiers import SpecifierSet  # only here: a broken installation may not have it

    return SpecifierSet(versions).contains(version, prereleases=True)


def _fits(package: Package) -> bool:
    return package.installed is not None and _within(package.installed, package.versions)


def _unfit(packages: list[Package]) -> str:
    return ", ".join(
        f"{p.name}{p.versions} ({f'{p.installed} is installed' if p.installed else 'not installed'})"
        for p in packages
        if not _fits(p)
    )


def _install(packages: list[Package]) -> str:
    return "pip install " + " ".join(f"'{p.name}{p.versions}'" for p in packages if not _fits(p))


def _packages(machine: Machine) -> Iterator[Finding]:
    """What every run imports; torch has a finding of its own where it is missing."""
    if not machine.packages:
        reason = "the runner is not installed, or not whole, so that the packages it needs are not known"
        yield Finding("packages", "limited", reason, "pip install -e .")
        return
    own = [p for p in machine.packages if not p.extra and not (p.name == "torch" and machine.build is None)]
    missing, old = [p for p in own if p.installed is None], [p for p in own if p.installed and not _fits(p)]
    if missing:
        yield Finding("packages", "broken", f"a run needs {_unfit(missing)}", _install(missing))
    if old:
        reason = f"made for {_unfit(old)}; with other versions a run may fail"
        yield Finding("packages", "limited", reason, _install([p for p in old if p.name != "torch"] or old))
    if not missing and not old:
        yield Finding("packages", "ok", ", ".join(f"{p.name} {p.installed}" for p in own if p.name != "torch"))


def _extras(machine: Machine) -> Iterator[Finding]:
    for extra in dict.fromkeys(p.extra for p in machine.packages if p.extra):
        own = [p for p in machine.packages if p.extra == extra]
        if all(map(_fits, own)):
            yield Finding("extras", "ok", f"{extra}: {', '.join(f'{p.name} {p.installed}' for p in own)}")
        else:
            yield Finding("extras", "limited", f"{extra}: needs {_unfit(own)}", _install(own))


# ---------------------------------------------------------------------------------------------------- torch and numpy


def _torch(machine: Machine) -> Iterator[Finding]:
    build = machine.build
    if build is None:
        reason = "torch is not installed in this Python"
        if machine.intel_mac:
            reason += ", and torch has no builds for Intel Macs since 2.3"
            yield Finding("torch", "broken", reason, "use a Mac with Apple silicon and an arm64 Python, or Linux")
        else:
            yield Finding("torch", "broken", reason, builds.install(builds.best(machine), anew=False))
        return
    if machine.torch is not None:
        yield Finding("torch", "ok", build.description)
        return
    fault = machine.torch_fault or "it says nothing"
    reason, remedy = f"{build.description}, but it cannot be used: {fault}", builds.install(builds.best(machine))
    if "SIGILL" in fault:
        reason += ", so this processor lacks an instruction that it has been built for"
    if "does not answer" in fault:
        remedy = "see where `python -X faulthandler -c 'import torch; torch.cuda.init()'` hangs: at a driver, or at a slow disk"
    yield Finding("torch", "broken", reason, remedy)


def _numpy(machine: Machine) -> Iterator[Finding]:
    """Whether tensors become numpy arrays; a numpy that is missing is one of the packages."""
    installed = next((p.installed for p in machine.packages if p.name == "numpy"), None)
    if machine.torch is None or machine.torch.numpy_fault is None or installed is None:
        return
    reason = (
        f"torch {machine.torch.hardware.build.version} and numpy {installed} do not fit: {machine.torch.numpy_fault}"
    )
    if not installed.startswith("1."):
        reason += "; a torch that was built for numpy 1 cannot use a newer one"
    yield Finding("numpy", "broken", reason, "pip install --upgrade torch numpy, or: pip install 'numpy<2'")


# -------------------------------------------------------------------------------------------------- beside the GPUs


def _distributed(machine: Machine) -> Iterator[Finding]:
    """What several processes of one run can talk through."""
    if machine.torch is None:
        return
    torch, kind = machine.torch, machine.torch.hardware.build.kind
    needed = {"cuda": "nccl", "rocm": "nccl", "xpu": "xccl"}.get(kind)
    if "gloo" not in torch.backends:
        reason = "this torch has no gloo, so that a run on the CPU is one process"
        yield Finding("distributed", "limited", reason, builds.install(builds.best(machine)))
    if needed and len(torch.gpus) > 1 and needed not in torch.backends:
        reason = (
            f"{len(torch.gpus)} GPUs are here, but this torch has no {needed.upper()}, so that a run uses one of them"
        )
        remedy = (
            "use Linux, or WSL 2, whose builds of torch have it"
            if machine.system == "Windows"
            else builds.install(builds.best(machine))
        )
        yield Finding("distributed", "limited", reason, remedy)
    elif torch.backends:
        yield Finding("distributed", "ok", f"several processes through {', '.join(torch.backends)}")
    small = machine.shared_memory_gib is not None and machine.shared_memory_gib < 1
    if small and len(torch.gpus) > 1 and "nccl" in torch.backends:
        reason = f"/dev/shm has {machine.shared_memory_gib:.2f} GiB, with which NCCL may fail between GPUs"
        remedy = "docker run --shm-size=8g …" if machine.container else "sudo mount -o remount,size=8G /dev/shm"
        yield Finding("distributed", "limited", reason, remedy)


def _compile(machine: Machine) -> Iterator[Finding]:
    """What `train.compile` needs: on the CPU a C++ compiler and Python's headers, on a GPU triton as well."""
    missing, remedies = [], []
    if machine.compiler is None:
        cxx = machine.environ.get("CXX")
        missing.append(f"no C++ compiler is found{f' (CXX={cxx!r})' if cxx else ''}")
        remedies.append(_COMPILER.get(machine.system, _COMPILER["Linux"]))
    if not machine.python_headers:
        missing.append("the header Python.h is not there")
        remedies.append("sudo apt install python3-dev (Debian, Ubuntu), or: sudo dnf install python3-devel (Fedora)")
    if machine.torch is not None and machine.torch.gpus and not machine.triton:
        missing.append("triton is not installed")
        remedies.append(
            "pip install triton-windows" if machine.system == "Windows" else builds.install(builds.best(machine))
        )
    if missing:
        reason = f"train.compile=true cannot be used: {', and '.join(missing)}"
        yield Finding("compile", "limited", reason, "; ".join(remedies))
    else:
        yield Finding("compile", "ok", f"train.compile=true can be used, with {machine.compiler}")


_COMPILER = {
    "Linux": "sudo apt install g++ (Debian, Ubuntu), or: sudo dnf install gcc-c++ (Fedora)",
    "Darwin": "xcode-select --install",
    "Windows": "install the C++ build tools of Visual Studio, and start from their prompt",
}


def _threads(machine: Machine) -> Iterator[Finding]:
    problems = devices.environment_problems(machine.environ)
    yield from (Finding("threads", "broken", problem) for problem in problems)
    if machine.torch is None or problems:
        return
    threads, cores = machine.torch.threads, max(1, math.floor(machine.cores))
    if threads <= cores:
        yield Finding(
            "threads",
            "ok",
            f"torch takes {_counted(threads, 'thread')}; this process may use {_counted(cores, 'core')}",
        )
        return
    reason = (
        f"torch takes {threads} threads, but this process may use {_counted(cores, 'core')}: they wait for each other"
    )
    asked = [f"{name}={machine.environ[name]}" for name in devices.THREADS if name in machine.environ]
    reason += f" ({', '.join(asked)})" if asked else ""
    yield Finding("threads", "limited", reason, f"set device.threads={cores}, or: export OMP_NUM_THREADS={cores}")


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _space(machine: Machine) -> Iterator[Finding]:
    if not machine.writable:
        reason = "the working directory cannot be written to, so that no run directory can be made in it"
        yield Finding("disk", "broken", reason, "change to another directory, or give each run its own with run_dir=…")
        return
    free = machine.disk_free_gib
    if free is not None and free < 1:
        reason = f"the disk of the working directory has {free:.2f} GiB left for runs and checkpoints"
        yield Finding(
            "disk",
            "limited",
            reason,
            "free some space, keep fewer checkpoints with checkpoint.keep=1, or move runs with run_dir=…",
        )
    elif free is not None:
        yield Finding("disk", "ok", f"{free:.0f} GiB left where runs are written")


def _device(machine: Machine) -> Iterator[Finding]:
    """What a run takes that says nothing about its device."""
    if machine.torch is not None and not any(gpu.fault for gpu in machine.torch.gpus[:1]):
        choice = devices.choose(AUTO, machine.environ, machine.torch.hardware)
        yield Finding("device", "ok", f"device=auto takes {choice.reason} ({choice.name})")
