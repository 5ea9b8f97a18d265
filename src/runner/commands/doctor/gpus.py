"""Findings about the GPUs and visibility masks of a machine: what torch sees, and why it does not see the rest."""

from __future__ import annotations

from collections.abc import Iterator

from runner.commands.doctor import builds
from runner.commands.doctor.finding import Finding, State
from runner.commands.doctor.machine import Machine, Torch
from runner.compute import visible_devices

_CARDS = {"nvidia": "an NVIDIA card", "amd": "an AMD card", "intel": "an Intel card"}
_UPDATE = "update the NVIDIA driver: https://www.nvidia.com/drivers"
_NVIDIA_DRIVER = "install the driver (Ubuntu: sudo ubuntu-drivers install; https://www.nvidia.com/drivers) and reboot"
_AMD_DRIVER = "install AMD's driver, if ROCm supports the card: https://rocm.docs.amd.com"
_CONTAINER = {"cuda": "--gpus all", "rocm": "--device /dev/kfd --device /dev/dri", "xpu": "--device /dev/dri"}
"""Kind of build -> option of `docker run` that gives a container the GPUs of its host."""


def gpus(machine: Machine) -> Iterator[Finding]:
    """Report each GPU that torch sees, or why it sees none of the cards in the machine."""
    if machine.torch is None:
        cards = "; ".join(_found(machine, vendor) for vendor in machine.cards)
        if cards:
            yield _limited(f"{cards}, but runs cannot use it without a working torch", None)
    elif machine.torch.gpus:
        yield from _seen(machine.torch)
    elif machine.torch.hardware.mps:
        yield Finding("gpu", "ok", "the GPU of this Mac (mps), with float32 and smaller types only")
    elif machine.system == "Darwin":
        silicon = "use a Mac with Apple silicon and an arm64 Python" if machine.intel_mac else "update macOS"
        yield _limited("this torch finds no usable GPU (mps); runs use the CPU", silicon)
    else:
        yield from _unseen(machine, machine.torch.hardware.build.kind)


def _limited(reason: str, remedy: str | None) -> Finding:
    return Finding("gpu", "limited", reason, remedy)


def _seen(torch: Torch) -> Iterator[Finding]:
    kind = "xpu" if torch.hardware.build.kind == "xpu" else "cuda"
    for number, gpu in enumerate(torch.gpus):
        description = f"{kind}:{number} {gpu.name}, {gpu.memory_gib:.0f} GiB, {gpu.capability}"
        if gpu.fault is None:
            yield Finding("gpu", "ok", description)
            continue
        # By default a run uses the first GPU.
        state: State = "limited" if number else "broken"
        reason = f"{description}, fails at its first computation: {gpu.fault}"
        remedy = "set device=cpu or device.visible"
        if "no kernel image" in gpu.fault or "invalid device function" in gpu.fault:
            reason += f"; {torch.hardware.build.description} and has no code for this GPU"
            remedy = f"install a build of torch that supports it ({builds.INDEX}), or {remedy}"
        yield Finding("gpu", state, reason, remedy)


def _unseen(machine: Machine, kind: str) -> Iterator[Finding]:
    """Report why torch sees none of the cards, and whether the build expects another kind of card."""
    nvidia, amd = (bool(machine.cards.get(vendor)) for vendor in ("nvidia", "amd"))
    if nvidia:
        yield _nvidia(machine) if kind == "cuda" else _nvidia_without_cuda(machine)
    if amd:
        yield _amd(machine) if kind == "rocm" else _amd_without_rocm(machine)
    if not {"cuda": nvidia, "rocm": amd, "cpu": True}.get(kind, False):
        yield _expected(machine, kind)
    elif machine.cards.get("intel") and not nvidia and not amd:
        yield Finding(
            "gpu", "ok", f"{_found(machine, 'intel')}; torch's XPU build may be able to use it; runs use the CPU"
        )
    elif not nvidia and not amd:
        yield Finding("gpu", "ok", "none found; runs use the CPU")


def _found(machine: Machine, vendor: str) -> str:
    """Return the cards of a vendor as a clause: "an NVIDIA card is present (NVIDIA H200)"."""
    return f"{_CARDS[vendor]} is present ({', '.join(machine.cards[vendor])})"


def _other_build(machine: Machine, vendor: str) -> str:
    assert machine.build is not None
    return f"{_found(machine, vendor)}, but {machine.build.description} and cannot use it"


def _nvidia_without_cuda(machine: Machine) -> Finding:
    reason, build = _other_build(machine, "nvidia"), builds.for_driver(machine.nvidia_driver)
    if build is None:
        return _limited(f"{reason}; its driver {machine.nvidia_driver} is too old for any build that can", _UPDATE)
    if machine.nvidia_driver is None:
        return _limited(f"{reason}; there is no NVIDIA driver either", f"{builds.install(build)}; and {_NVIDIA_DRIVER}")
    return _limited(reason, builds.install(build))


def _amd_without_rocm(machine: Machine) -> Finding:
    reason = _other_build(machine, "amd")
    if machine.system == "Windows":
        remedy = f"use Linux on this machine: {builds.install(builds.ROCM)}"
        return _limited(f"{reason}; torch's own index has no ROCm build for Windows", remedy)
    if machine.kfd == "absent":
        reason += "; its driver does not support computing either (/dev/kfd is missing)"
        return _limited(reason, f"{_AMD_DRIVER}; then: {builds.install(builds.ROCM)}")
    return _limited(reason, builds.install(builds.ROCM))


def _nvidia(machine: Machine) -> Finding:
    """Report why a CUDA build sees none of the NVIDIA cards."""
    assert machine.torch is not None
    cards, build = _found(machine, "nvidia"), machine.torch.hardware.build
    hidden, message = _hidden(machine, "cuda"), machine.torch.hardware.reason or ""
    if hidden:
        return hidden
    driver, needed = builds.major(machine.nvidia_driver), builds.DRIVER_FOR_CUDA.get(builds.major(build.cuda) or 0)
    too_old = driver is not None and needed is not None and driver < needed
    if too_old or "too old" in message:
        version = f" {machine.nvidia_driver}" if machine.nvidia_driver else ""
        reason = f"{cards}, but its driver{version} is too old for torch {build.version} (CUDA {build.cuda})"
        reason += f", which needs {needed} or newer" if needed else ""
        older = builds.for_driver(machine.nvidia_driver) if too_old else None
        return _limited(reason, f"{_UPDATE}{f', or: {builds.install(older)}' if older else ''}")
    if driver is None or "no NVIDIA driver" in message:
        if machine.container:
            return _limited(f"{cards}, but its driver is not available in this container", "docker run --gpus all …")
        return _limited(f"{cards}, but there is no NVIDIA driver", _NVIDIA_DRIVER)
    return _limited(
        f"{cards}, but torch finds no GPU{_torch_message(machine)}", "check whether `nvidia-smi -L` lists it"
    )


def _amd(machine: Machine) -> Finding:
    """Report why a ROCm build sees none of the AMD cards."""
    cards, hidden = _found(machine, "amd"), _hidden(machine, "rocm")
    if hidden:
        return hidden
    if machine.kfd == "closed":
        remedy = "sudo usermod -aG render,video $USER, then log in again"
        return _limited(f"{cards}, but you have no permission to open /dev/kfd", remedy)
    if machine.kfd == "absent" and machine.container:
        return _limited(
            f"{cards}, but /dev/kfd is not available in this container", f"docker run {_CONTAINER['rocm']} …"
        )
    if machine.kfd == "absent":
        return _limited(f"{cards}, but its driver does not support computing (/dev/kfd is missing)", _AMD_DRIVER)
    return _limited(f"{cards}, but torch finds no GPU{_torch_message(machine)}", "check whether `rocminfo` lists it")


def _expected(machine: Machine, kind: str) -> Finding:
    """Report a build for GPUs on a machine without such a GPU."""
    assert machine.build is not None
    hidden = _hidden(machine, kind)
    if hidden:
        return hidden
    reason = f"{machine.build.description}, but no such GPU is found{_torch_message(machine)}; runs use the CPU"
    # Without a GPU there is nothing to fix, but a container may hide a GPU of its host.
    return _limited(reason, f"if the host has a GPU: docker run {_CONTAINER[kind]} …" if machine.container else None)


def _hidden(machine: Machine, kind: str) -> Finding | None:
    """Report the mask that hides every GPU, if there is one."""
    # An XPU build reads none of the masks.
    applied = visible_devices.in_force(None, machine.environ, kind == "rocm") if kind != "xpu" else []
    obstacle = visible_devices.hides_all(applied)
    return _limited(f"{obstacle.found}; runs use the CPU", obstacle.remedy) if obstacle else None


def _torch_message(machine: Machine) -> str:
    reason = machine.torch.hardware.reason if machine.torch else None
    return f" (torch reports: {reason})" if reason else ""


def mask_findings(machine: Machine) -> Iterator[Finding]:
    """Report the masks in the environment and those parts of them that have no effect."""
    kind = machine.build.kind if machine.build else "cpu"
    notices = visible_devices.notices(None, machine.environ, kind == "rocm")
    yield from (Finding("masks", "limited", notice) for notice in notices)
    applied = visible_devices.in_force(None, machine.environ, kind == "rocm")
    if applied and not notices and kind in ("cuda", "rocm"):
        yield Finding("masks", "ok", f"{' and '.join(mask.label for mask in applied)} selects the GPUs that a run sees")
