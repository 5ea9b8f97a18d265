"""Findings about a recorded machine: one pure function for each subject; a finding has a reason and a remedy."""

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
    """Return all findings, from Python up to the device of a run."""
    subjects = (
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
    return [finding for subject in subjects for finding in subject(machine)]


# ------------------------------------------------------------------------------------------------- Python and packages


def _python(machine: Machine) -> Iterator[Finding]:
    description = f"Python {machine.python}, {machine.bits} bit, {machine.system} on {machine.architecture}"
    description += ", in a container" if machine.container else ""
    if machine.bits == 32:
        yield Finding("python", "broken", f"{description}: torch has no 32 bit build", "install a 64 bit Python")
    elif machine.requires_python and not _within(machine.python, machine.requires_python):
        reason = f"{description}, but the runner needs Python {machine.requires_python}"
        yield Finding("python", "broken", reason, "create a virtual environment with another Python")
    else:
        yield Finding("python", "ok", description)


def _within(version: str, versions: str) -> bool:
    from packaging.specifiers import SpecifierSet  # imported here, because a broken installation may not have it

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
    """Check the packages that every run imports; a missing torch is reported by `_torch`."""
    if not machine.packages:
        reason = "the runner is not installed, or not completely, so the packages that it needs are unknown"
        yield Finding("packages", "limited", reason, "pip install -e .")
        return
    required = [p for p in machine.packages if not p.extra and not (p.name == "torch" and machine.build is None)]
    missing = [p for p in required if p.installed is None]
    unfit = [p for p in required if p.installed and not _fits(p)]
    if missing:
        yield Finding("packages", "broken", f"a run needs {_unfit(missing)}", _install(missing))
    if unfit:
        reason = f"the runner needs {_unfit(unfit)}; a run may fail with other versions"
        yield Finding("packages", "limited", reason, _install([p for p in unfit if p.name != "torch"] or unfit))
    if not missing and not unfit:
        yield Finding("packages", "ok", ", ".join(f"{p.name} {p.installed}" for p in required if p.name != "torch"))


def _extras(machine: Machine) -> Iterator[Finding]:
    for extra in dict.fromkeys(p.extra for p in machine.packages if p.extra):
        packages = [p for p in machine.packages if p.extra == extra]
        if all(map(_fits, packages)):
            yield Finding("extras", "ok", f"{extra}: {', '.join(f'{p.name} {p.installed}' for p in packages)}")
        else:
            yield Finding("extras", "limited", f"{extra}: needs {_unfit(packages)}", _install(packages))


# ---------------------------------------------------------------------------------------------------- torch and numpy


def _torch(machine: Machine) -> Iterator[Finding]:
    build = machine.build
    if build is None:
        reason = "torch is not installed in this Python"
        if machine.intel_mac:
            reason += ", and torch has no builds for Intel Macs since 2.3"
            yield Finding("torch", "broken", reason, "use a Mac with Apple silicon and an arm64 Python, or Linux")
        else:
            yield Finding("torch", "broken", reason, builds.install(builds.best(machine), replace=False))
        return
    if machine.torch is not None:
        yield Finding("torch", "ok", build.description)
        return
    fault = machine.torch_fault or "no reason given"
    reason, remedy = f"{build.description}, but it cannot be used: {fault}", builds.install(builds.best(machine))
    if "SIGILL" in fault:
        reason += ", so this processor lacks an instruction that the build uses"
    if "does not answer" in fault:
        remedy = "find out where `python -X faulthandler -c 'import torch; torch.cuda.init()'` hangs: in a driver or on a slow disk"
    yield Finding("torch", "broken", reason, remedy)


def _numpy(machine: Machine) -> Iterator[Finding]:
    """Check that tensors convert to numpy arrays; a missing numpy is reported by `_packages`."""
    installed = next((p.installed for p in machine.packages if p.name == "numpy"), None)
    if machine.torch is None or machine.torch.numpy_fault is None or installed is None:
        return
    reason = f"torch {machine.torch.hardware.build.version} and numpy {installed} are incompatible: {machine.torch.numpy_fault}"
    if not installed.startswith("1."):
        reason += "; a torch built for numpy 1 cannot use a newer numpy"
    yield Finding("numpy", "broken", reason, "pip install --upgrade torch numpy, or: pip install 'numpy<2'")


# ------------------------------------------------------------------------------------------ processes, compiler, threads and disk


def _distributed(machine: Machine) -> Iterator[Finding]:
    """Check the backends through which the processes of one run communicate."""
    if machine.torch is None:
        return
    torch, kind = machine.torch, machine.torch.hardware.build.kind
    needed = {"cuda": "nccl", "rocm": "nccl", "xpu": "xccl"}.get(kind)
    if "gloo" not in torch.backends:
        reason = "this torch has no gloo, so a run on the CPU cannot use several processes"
        yield Finding("distributed", "limited", reason, builds.install(builds.best(machine)))
    if needed and len(torch.gpus) > 1 and needed not in torch.backends:
        reason = f"torch finds {len(torch.gpus)} GPUs but has no {needed.upper()}, so a run uses one of them"
        remedy = (
            "use Linux or WSL 2, where torch has it"
            if machine.system == "Windows"
            else builds.install(builds.best(machine))
        )
        yield Finding("distributed", "limited", reason, remedy)
    elif torch.backends:
        yield Finding("distributed", "ok", f"several processes can use {', '.join(torch.backends)}")
    small = machine.shared_memory_gib is not None and machine.shared_memory_gib < 1
    if small and len(torch.gpus) > 1 and "nccl" in torch.backends:
        reason = f"/dev/shm has {machine.shared_memory_gib:.2f} GiB, which may be too small for NCCL between GPUs"
        remedy = "docker run --shm-size=8g …" if machine.container else "sudo mount -o remount,size=8G /dev/shm"
        yield Finding("distributed", "limited", reason, remedy)


def _compile(machine: Machine) -> Iterator[Finding]:
    """Check what `train.compile` needs: a C++ compiler and Python's headers, and on a GPU also triton."""
    missing, remedies = [], []
    if machine.compiler is None:
        cxx = machine.environ.get("CXX")
        missing.append(f"no C++ compiler found{f' (CXX={cxx!r})' if cxx else ''}")
        remedies.append(_COMPILER.get(machine.system, _COMPILER["Linux"]))
    if not machine.python_headers:
        missing.append("the header Python.h is missing")
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
        yield Finding("compile", "ok", f"train.compile=true works with {machine.compiler}")


_COMPILER = {
    "Linux": "sudo apt install g++ (Debian, Ubuntu), or: sudo dnf install gcc-c++ (Fedora)",
    "Darwin": "xcode-select --install",
    "Windows": "install the C++ build tools of Visual Studio, and use their command prompt",
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
            f"torch uses {_counted(threads, 'thread')}; this process may use {_counted(cores, 'core')}",
        )
        return
    reason = f"torch uses {threads} threads, but this process may use only {_counted(cores, 'core')}, so threads wait for each other"
    variables = [f"{name}={machine.environ[name]}" for name in devices.THREADS if name in machine.environ]
    reason += f" ({', '.join(variables)})" if variables else ""
    yield Finding("threads", "limited", reason, f"set device.threads={cores}, or: export OMP_NUM_THREADS={cores}")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _space(machine: Machine) -> Iterator[Finding]:
    if not machine.writable:
        reason = "the working directory is not writable, so no run directory can be created in it"
        yield Finding("disk", "broken", reason, "use another working directory, or set run_dir=… for each run")
        return
    free = machine.disk_free_gib
    if free is not None and free < 1:
        reason = f"only {free:.2f} GiB free for runs and checkpoints on the disk of the working directory"
        yield Finding(
            "disk",
            "limited",
            reason,
            "free some space, keep fewer checkpoints with checkpoint.keep=1, or write runs elsewhere with run_dir=…",
        )
    elif free is not None:
        yield Finding("disk", "ok", f"{free:.0f} GiB free where runs are written")


def _device(machine: Machine) -> Iterator[Finding]:
    """Report the device of a run with device=auto."""
    if machine.torch is not None and not any(gpu.fault for gpu in machine.torch.gpus[:1]):
        choice = devices.choose(AUTO, machine.environ, machine.torch.hardware)
        yield Finding("device", "ok", f"device=auto uses {choice.reason} ({choice.name})")
