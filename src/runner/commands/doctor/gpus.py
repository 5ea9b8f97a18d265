"""GPUs and masks of a recorded machine: what torch sees, and why it does not see what is there."""

from __future__ import annotations

from collections.abc import Iterator

from runner.commands.doctor import builds
from runner.commands.doctor.finding import Finding, State
from runner.commands.doctor.machine import Machine, Torch
from runner.compute import visible_devices

_WORDS = {"nvidia": "an NVIDIA card", "amd": "an AMD card", "intel": "an Intel card"}
_UPDATE = "update the NVIDIA driver: https://www.nvidia.com/drivers"
_NVIDIA_DRIVER = "install the driver (Ubuntu: sudo ubuntu-drivers install; https://www.nvidia.com/drivers), and start the machine again"
_AMD_DRIVER = "install AMD's driver, where ROCm supports the card: https://rocm.docs.amd.com"
_CONTAINER = {"cuda": "--gpus all", "rocm": "--device /dev/kfd --device /dev/dri", "xpu": "--device /dev/dri"}
"""What lets a container see the GPUs of its host."""


def gpus(machine: Machine) -> Iterator[Finding]:
    """The GPUs that torch sees, each; else why it sees none of those that are there."""
    if machine.torch is None:
        cards = "; ".join(_named(machine, vendor) for vendor in machine.cards)
        if cards:
            yield _limited(f"{cards}, which nothing can use while torch cannot be used", None)
    elif machine.torch.gpus:
        yield from _seen(machine.torch)
    elif machine.torch.hardware.mps:
        yield Finding("gpu", "ok", "the GPU of this Mac (mps), in float32 and below: it has no float64")
    elif machine.system == "Darwin":
        silicon = "use a Mac with Apple silicon and an arm64 Python" if machine.intel_mac else "update macOS"
        yield _limited("this torch finds no GPU that it can use (mps); runs use the CPU", silicon)
    else:
        yield from _unseen(machine, machine.torch.hardware.build.kind)


def _limited(reason: str, remedy: str | None) -> Finding:
    return Finding("gpu", "limited", reason, remedy)


def _seen(torch: Torch) -> Iterator[Finding]:
    kind = "xpu" if torch.hardware.build.kind == "xpu" else "cuda"
    for number, gpu in enumerate(torch.gpus):
        words = f"{kind}:{number} {gpu.name}, {gpu.memory_gib:.0f} GiB, {gpu.capability}"
        if gpu.fault is None:
            yield Finding("gpu", "ok", words)
            continue
        # A run that says nothing else takes the first one.
        state: State = "limited" if number else "broken"
        reason, remedy = f"{words}, fails at its first computation: {gpu.fault}", "set device=cpu, or device.visible"
        if "no kernel image" in gpu.fault or "invalid device function" in gpu.fault:
            reason += f"; {torch.hardware.build.description} without code for this GPU"
            remedy = f"install a build of torch that has it ({builds.INDEX}), or {remedy}"
        yield Finding("gpu", state, reason, remedy)


def _unseen(machine: Machine, kind: str) -> Iterator[Finding]:
    """No GPU for torch: for each card that is there why; for a build that expects other cards what that means."""
    nvidia, amd = (bool(machine.cards.get(vendor)) for vendor in ("nvidia", "amd"))
    if nvidia:
        yield _nvidia(machine) if kind == "cuda" else _nvidia_without_cuda(machine)
    if amd:
        yield _amd(machine) if kind == "rocm" else _amd_without_rocm(machine)
    if not {"cuda": nvidia, "rocm": amd, "cpu": True}.get(kind, False):
        yield _expected(machine, kind)
    elif machine.cards.get("intel") and not nvidia and not amd:
        yield Finding("gpu", "ok", f"{_named(machine, 'intel')}; torch's XPU build may use it, runs now use the CPU")
    elif not nvidia and not amd:
        yield Finding("gpu", "ok", "there is none; runs use the CPU")


def _named(machine: Machine, vendor: str) -> str:
    """The cards of a vendor as a clause: "an NVIDIA card is here (NVIDIA H200)"."""
    return f"{_WORDS[vendor]} is here ({', '.join(machine.cards[vendor])})"


def _other_build(machine: Machine, vendor: str) -> str:
    assert machine.build is not None
    return f"{_named(machine, vendor)}, but {machine.build.description} and cannot use it"


def _nvidia_without_cuda(machine: Machine) -> Finding:
    reason, build = _other_build(machine, "nvidia"), builds.for_driver(machine.nvidia_driver)
    if build is None:
        return _limited(f"{reason}; its driver {machine.nvidia_driver} is too old for any that could", _UPDATE)
    if machine.nvidia_driver is None:
        return _limited(f"{reason}; no NVIDIA driver is seen either", f"{builds.install(build)}; and {_NVIDIA_DRIVER}")
    return _limited(reason, builds.install(build))


def _amd_without_rocm(machine: Machine) -> Finding:
    reason = _other_build(machine, "amd")
    if machine.system == "Windows":
        remedy = f"use Linux on this machine, and there: {builds.install(builds.ROCM)}"
        return _limited(f"{reason}; torch's own index has no ROCm build for Windows", remedy)
    if machine.kfd == "absent":
        reason += "; its driver offers no computing either (/dev/kfd is absent)"
        return _limited(reason, f"{_AMD_DRIVER}; then: {builds.install(builds.ROCM)}")
    return _limited(reason, builds.install(builds.ROCM))


def _nvidia(machine: Machine) -> Finding:
    """Why a CUDA build sees none of the NVIDIA cards."""
    assert machine.torch is not None
    cards, build = _named(machine, "nvidia"), machine.torch.hardware.build
    hidden, said = _hidden(machine, "cuda"), machine.torch.hardware.reason or ""
    if hidden:
        return hidden
    driver, needed = builds.major(machine.nvidia_driver), builds.DRIVER_FOR_CUDA.get(builds.major(build.cuda) or 0)
    too_old = driver is not None and needed is not None and driver < needed
    if too_old or "too old" in said:
        version = f" {machine.nvidia_driver}" if machine.nvidia_driver else ""
        reason = f"{cards}, but its driver{version} is too old for torch {build.version} (CUDA {build.cuda})"
        reason += f", which needs {needed} or newer" if needed else ""
        older = builds.for_driver(machine.nvidia_driver) if too_old else None
        return _limited(reason, f"{_UPDATE}{f', or: {builds.install(older)}' if older else ''}")
    if driver is None or "no NVIDIA driver" in said:
        if machine.container:
            return _limited(f"{cards}, but its driver is not in this container", "docker run --gpus all …")
        return _limited(f"{cards}, but no NVIDIA driver is found", _NVIDIA_DRIVER)
    return _limited(f"{cards}, but torch finds no GPU{_said(machine)}", "see whether `nvidia-smi -L` lists it")


def _amd(machine: Machine) -> Finding:
    """Why a ROCm build sees none of the AMD cards."""
    cards, hidden = _named(machine, "amd"), _hidden(machine, "rocm")
    if hidden:
        return hidden
    if machine.kfd == "closed":
        remedy = "sudo usermod -aG render,video $USER, and log in again"
        return _limited(f"{cards}, but this user may not open /dev/kfd", remedy)
    if machine.kfd == "absent" and machine.container:
        return _limited(f"{cards}, but /dev/kfd is not in this container", f"docker run {_CONTAINER['rocm']} …")
    if machine.kfd == "absent":
        return _limited(f"{cards}, but its driver offers no computing (/dev/kfd is absent)", _AMD_DRIVER)
    return _limited(f"{cards}, but torch finds no GPU{_said(machine)}", "see whether `rocminfo` lists it")


def _expected(machine: Machine, kind: str) -> Finding:
    """A build for GPUs on a machine that shows none of them."""
    assert machine.build is not None
    hidden = _hidden(machine, kind)
    if hidden:
        return hidden
    reason = f"{machine.build.description}, but no such GPU is seen here{_said(machine)}; runs use the CPU"
    # Nothing is to be mended where there is none at all; a container hides what its host has.
    return _limited(reason, f"if the host has one: docker run {_CONTAINER[kind]} …" if machine.container else None)


def _hidden(machine: Machine, kind: str) -> Finding | None:
    """The mask that hides every GPU; an XPU build reads none of them."""
    applied = visible_devices.in_force(None, machine.environ, kind == "rocm") if kind != "xpu" else []
    obstacle = visible_devices.hides_all(applied)
    return _limited(f"{obstacle.found}; runs use the CPU", obstacle.remedy) if obstacle else None


def _said(machine: Machine) -> str:
    reason = machine.torch.hardware.reason if machine.torch else None
    return f" (torch says: {reason})" if reason else ""


def mask_findings(machine: Machine) -> Iterator[Finding]:
    """What the masks of the shell say, and what in them does nothing."""
    kind = machine.build.kind if machine.build else "cpu"
    found = visible_devices.notices(None, machine.environ, kind == "rocm")
    yield from (Finding("masks", "limited", notice) for notice in found)
    applied = visible_devices.in_force(None, machine.environ, kind == "rocm")
    if applied and not found and kind in ("cuda", "rocm"):
        yield Finding("masks", "ok", f"{' and '.join(mask.label for mask in applied)} says which GPUs a run sees")
