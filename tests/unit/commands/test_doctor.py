"""Findings about recorded machines: good ones of every kind, and every kind of fault."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from typing import Any

import pytest

from runner.commands.doctor import text
from runner.commands.doctor.finding import Finding, able
from runner.commands.doctor.findings import findings
from runner.commands.doctor.machine import Gpu, Machine, Package, Torch, from_json
from runner.compute.devices import Hardware, TorchBuild

CPU = TorchBuild("2.13.0+cpu", None, None)
CUDA = TorchBuild("2.13.0+cu130", "13.0", None)
ROCM = TorchBuild("2.13.0+rocm7.1", None, "7.1.25424")
XPU = TorchBuild("2.13.0+xpu", None, None, "20250302")
MAC = TorchBuild("2.13.0", None, None)

NO_DRIVER = "Found no NVIDIA driver on your system"
NO_DEVICE = "No CUDA GPUs are available"
INDEX = "https://download.pytorch.org/whl"
H200 = Gpu(name="NVIDIA H200", memory_gib=139.8, capability="9.0")
MI300 = Gpu(name="AMD Instinct MI300X", memory_gib=191.98, capability="gfx942")

PACKAGES = (
    Package(name="hydra-core", versions=">=1.3.8,<1.4", extra="", installed="1.3.8"),
    Package(name="numpy", versions=">=1.26", extra="", installed="2.4.6"),
    Package(name="tensorboard", versions=">=2.21", extra="", installed="2.21.0"),
    Package(name="torch", versions=">=2.10", extra="", installed="2.13.0"),
    Package(name="pyarrow", versions=">=17", extra="tables", installed="26.0.1"),
)


def torch_report(build: TorchBuild, *gpus: Gpu, reason: str | None = None, **more: Any) -> Torch:
    """Return the report of a torch build that sees these GPUs."""
    hardware = Hardware(build=build, cpu_name="AMD EPYC", gpu_count=len(gpus), gpu_names=tuple(g.name for g in gpus), reason=reason)  # fmt: skip
    return Torch(hardware=hardware, **{"threads": 8, "backends": ("gloo",), "gpus": gpus, **more})


def machine(build: TorchBuild | None, torch: Torch | None, **more: Any) -> Machine:
    """Return a good Linux server with some fields replaced."""
    defaults: dict[str, Any] = {
        "python": "3.12.4",
        "requires_python": ">=3.10",
        "bits": 64,
        "system": "Linux",
        "architecture": "x86_64",
        "container": False,
        "cores": 8,
        "disk_free_gib": 512.4,
        "shared_memory_gib": 64.0,
        "writable": True,
        "environ": {},
        "packages": PACKAGES,
        "torch_fault": None,
        "cards": {},
        "nvidia_driver": None,
        "kfd": "absent",
        "compiler": "/usr/bin/g++",
        "python_headers": True,
        "triton": True,
    }
    return Machine(build=build, torch=torch, **{**defaults, **more})


SERVER = machine(CPU, torch_report(CPU))
CUDA_BOX = machine(
    CUDA,
    torch_report(CUDA, H200, H200, backends=("gloo", "nccl")),
    cards={"nvidia": ("NVIDIA H200", "NVIDIA H200")},
    nvidia_driver="580.65.06",
)
ROCM_BOX = machine(
    ROCM, torch_report(ROCM, MI300, backends=("gloo", "nccl")), cards={"amd": ("PCI 0000:c1:00.0",)}, kfd="open"
)
APPLE = machine(
    MAC,
    Torch(hardware=Hardware(build=MAC, cpu_name="Apple M3", mps=True), threads=4, backends=("gloo",)),
    system="Darwin",
    architecture="arm64",
    compiler="/usr/bin/clang++",
    shared_memory_gib=None,
)
WINDOWS = machine(
    CPU, torch_report(CPU), system="Windows", architecture="AMD64", compiler="C:\\cl.exe", shared_memory_gib=None
)


def blind(build: TorchBuild, reason: str | None, **more: Any) -> Machine:
    """Return a machine on which torch finds no GPU, for this reason."""
    return machine(build, torch_report(build, reason=reason), **more)


def about(subject: str, recorded: Machine) -> list[tuple[str, str, str | None]]:
    return [(f.state, f.reason, f.remedy) for f in findings(recorded) if f.subject == subject]


def only(subject: str, recorded: Machine) -> tuple[str, str, str | None]:
    """Return the only finding about a subject, and check that all other findings are ok."""
    (finding,) = about(subject, recorded)
    others = [f for f in findings(recorded) if f.subject != subject]
    assert {f.state for f in others} == {"ok"}, others
    assert able(findings(recorded)) == (finding[0] != "broken")
    return finding


# ----------------------------------------------------------------------------------------------------- good machines


@pytest.mark.parametrize(
    ("recorded", "gpu", "device"),
    [
        (SERVER, ["none found; runs use the CPU"], "cpu: torch 2.13.0+cpu is a CPU-only build (AMD EPYC)"),
        (
            CUDA_BOX,
            ["cuda:0 NVIDIA H200, 140 GiB, 9.0", "cuda:1 NVIDIA H200, 140 GiB, 9.0"],
            "cuda: 2 GPUs are visible (NVIDIA H200)",
        ),
        (
            ROCM_BOX,
            ["cuda:0 AMD Instinct MI300X, 192 GiB, gfx942"],
            "rocm: 1 GPU is visible to HIP 7.1.25424, whose devices torch calls cuda (AMD Instinct MI300X)",
        ),
        (
            APPLE,
            ["the GPU of this Mac (mps), with float32 and smaller types only"],
            "mps: torch finds the GPU of this Mac (Apple GPU)",
        ),
        (WINDOWS, ["none found; runs use the CPU"], "cpu: torch 2.13.0+cpu is a CPU-only build (AMD EPYC)"),
    ],
    ids=["cpu", "cuda", "rocm", "apple", "windows"],
)
def test_good_machines_have_no_faults(recorded: Machine, gpu: list[str], device: str) -> None:
    results = findings(recorded)
    assert [f for f in results if f.state != "ok" or f.remedy] == []
    assert [f.reason for f in results if f.subject == "gpu"] == gpu
    assert [f.reason for f in results if f.subject == "device"] == [f"device=auto uses {device}"]
    assert able(results)


def test_a_machine_survives_json() -> None:
    for recorded in (SERVER, CUDA_BOX, ROCM_BOX, APPLE, WINDOWS, machine(None, None), machine(CUDA, None)):
        assert from_json(json.loads(json.dumps(dataclasses.asdict(recorded)))) == recorded


def test_findings_as_text() -> None:
    results = [
        Finding("python", "ok", "Python 3.12.4"),
        Finding("torch", "broken", "torch is not installed in this Python", "pip install torch"),
    ]
    assert text(results) == (
        "ok       python  Python 3.12.4\n"
        "broken   torch   torch is not installed in this Python\n"
        "                 fix: pip install torch\n"
    )


# ------------------------------------------------------------------------------------------- builds, drivers and cards


NVIDIA = {"nvidia": ("NVIDIA L40S",)}
AMD = {"amd": ("PCI 0000:c1:00.0",)}


@pytest.mark.parametrize(
    ("driver", "build"),
    [("580.65.06", "cu130"), ("575.51", "cu126"), ("525.60", "cu126")],
)
def test_a_cpu_build_cannot_use_an_nvidia_card(driver: str, build: str) -> None:
    assert only("gpu", machine(CPU, torch_report(CPU), cards=NVIDIA, nvidia_driver=driver)) == (
        "limited",
        "an NVIDIA card is present (NVIDIA L40S), but torch 2.13.0+cpu is a CPU-only build and cannot use it",
        f"pip install --force-reinstall torch --index-url {INDEX}/{build}",
    )


def test_an_nvidia_card_without_a_usable_driver() -> None:
    state, reason, remedy = only("gpu", machine(CPU, torch_report(CPU), cards=NVIDIA, nvidia_driver="470.82"))
    assert (state, remedy) == ("limited", "update the NVIDIA driver: https://www.nvidia.com/drivers")
    assert reason.endswith("cannot use it; its driver 470.82 is too old for any build that can")
    state, reason, remedy = only("gpu", machine(CPU, torch_report(CPU), cards=NVIDIA))
    assert reason.endswith("cannot use it; there is no NVIDIA driver either")
    assert remedy is not None
    assert remedy.startswith(f"pip install --force-reinstall torch --index-url {INDEX}/cu130; and install the driver (")


def test_a_cpu_build_cannot_use_an_amd_card() -> None:
    reason = "an AMD card is present (PCI 0000:c1:00.0), but torch 2.13.0+cpu is a CPU-only build and cannot use it"
    command = f"pip install --force-reinstall torch --index-url {INDEX}/rocm7.1"
    assert only("gpu", machine(CPU, torch_report(CPU), cards=AMD, kfd="open")) == ("limited", reason, command)
    assert only("gpu", machine(CPU, torch_report(CPU), cards=AMD)) == (
        "limited",
        f"{reason}; its driver does not support computing either (/dev/kfd is missing)",
        f"install AMD's driver, if ROCm supports the card: https://rocm.docs.amd.com; then: {command}",
    )


def test_an_amd_card_on_windows() -> None:
    assert only("gpu", replace(WINDOWS, cards={"amd": ("AMD Radeon RX 7900 XTX",)})) == (
        "limited",
        "an AMD card is present (AMD Radeon RX 7900 XTX), but torch 2.13.0+cpu is a CPU-only build and cannot use it; "
        "torch's own index has no ROCm build for Windows",
        f"use Linux on this machine: pip install --force-reinstall torch --index-url {INDEX}/rocm7.1",
    )


def test_a_driver_that_is_too_old() -> None:
    template = "an NVIDIA card is present (NVIDIA L40S), but its driver{} is too old for torch 2.13.0+cu130 (CUDA 13.0)"
    message = "The NVIDIA driver on your system is too old (found version 12040)"
    update = "update the NVIDIA driver: https://www.nvidia.com/drivers"
    for reason in (message, None):
        assert only("gpu", blind(CUDA, reason, cards=NVIDIA, nvidia_driver="550.54.15")) == (
            "limited",
            template.format(" 550.54.15") + ", which needs 580 or newer",
            f"{update}, or: pip install --force-reinstall torch --index-url {INDEX}/cu126",
        )
    assert only("gpu", blind(CUDA, message, cards=NVIDIA, nvidia_driver="470.82"))[2] == update
    assert only("gpu", blind(CUDA, message, cards=NVIDIA))[1:] == (
        template.format("") + ", which needs 580 or newer",
        update,
    )
    later = replace(CUDA, cuda="14.0")
    assert only("gpu", blind(later, message, cards=NVIDIA, nvidia_driver="580.65"))[2] == update


def test_a_cuda_build_without_a_driver() -> None:
    card = "an NVIDIA card is present (NVIDIA L40S), but "
    state, reason, remedy = only("gpu", blind(CUDA, NO_DRIVER, cards=NVIDIA))
    assert (state, reason) == ("limited", f"{card}there is no NVIDIA driver")
    assert str(remedy).startswith("install the driver (")
    for driver in (None, "580.65"):  # a container sees the driver of the kernel but not its libraries
        inside = blind(CUDA, NO_DRIVER, cards=NVIDIA, container=True, nvidia_driver=driver)
        assert only("gpu", inside) == (
            "limited",
            f"{card}its driver is not available in this container",
            "docker run --gpus all …",
        )


def test_a_gpu_build_on_a_machine_without_a_gpu() -> None:
    reason = (
        "torch 2.13.0+cu130 is a CUDA build (CUDA 13.0), but no such GPU is found (torch reports: {}); runs use the CPU"
    )
    assert only("gpu", blind(CUDA, NO_DRIVER)) == ("limited", reason.format(NO_DRIVER), None)
    assert only("gpu", blind(CUDA, NO_DRIVER, container=True)) == (
        "limited",
        reason.format(NO_DRIVER),
        "if the host has a GPU: docker run --gpus all …",
    )
    assert only("gpu", blind(XPU, None, container=True))[1:] == (
        "torch 2.13.0+xpu is an XPU build, but no such GPU is found; runs use the CPU",
        "if the host has a GPU: docker run --device /dev/dri …",
    )


def test_a_working_driver_without_a_gpu() -> None:
    assert only("gpu", blind(CUDA, NO_DEVICE, cards=NVIDIA, nvidia_driver="580.65")) == (
        "limited",
        f"an NVIDIA card is present (NVIDIA L40S), but torch finds no GPU (torch reports: {NO_DEVICE})",
        "check whether `nvidia-smi -L` lists it",
    )


@pytest.mark.parametrize(
    ("kfd", "container", "reason", "remedy"),
    [
        (
            "closed",
            False,
            "you have no permission to open /dev/kfd",
            "sudo usermod -aG render,video $USER, then log in again",
        ),
        (
            "absent",
            True,
            "/dev/kfd is not available in this container",
            "docker run --device /dev/kfd --device /dev/dri …",
        ),
        (
            "absent",
            False,
            "its driver does not support computing (/dev/kfd is missing)",
            "install AMD's driver, if ROCm supports the card: https://rocm.docs.amd.com",
        ),
        (
            "open",
            False,
            "torch finds no GPU (torch reports: No HIP GPUs are available)",
            "check whether `rocminfo` lists it",
        ),
    ],
)
def test_a_rocm_build_that_sees_no_gpu(kfd: str, container: bool, reason: str, remedy: str) -> None:
    recorded = blind(ROCM, "No HIP GPUs are available", cards=AMD, kfd=kfd, container=container)
    assert only("gpu", recorded) == ("limited", f"an AMD card is present (PCI 0000:c1:00.0), but {reason}", remedy)


def test_integrated_graphics_are_not_reported_if_a_gpu_works() -> None:
    assert {f.state for f in findings(replace(CUDA_BOX, cards={**CUDA_BOX.cards, **AMD, "intel": ("PCI 0",)}))} == {
        "ok"
    }
    assert only("gpu", replace(SERVER, cards={"intel": ("PCI 0",)})) == (
        "ok",
        "an Intel card is present (PCI 0); torch's XPU build may be able to use it; runs use the CPU",
        None,
    )


def test_a_gpu_that_fails_at_its_first_computation() -> None:
    kernel = "CUDA error: no kernel image is available for execution on the device"
    old = Gpu(name="GeForce GTX 1080", memory_gib=8.0, capability="6.1", fault=kernel)
    description = f"GeForce GTX 1080, 8 GiB, 6.1, fails at its first computation: {kernel}; torch 2.13.0+cu130 is a CUDA build (CUDA 13.0) and has no code for this GPU"
    remedy = f"install a build of torch that supports it ({INDEX}), or set device=cpu or device.visible"
    box = replace(CUDA_BOX, torch=torch_report(CUDA, H200, old, backends=("gloo", "nccl")))
    assert about("gpu", box)[1] == ("limited", f"cuda:1 {description}", remedy)
    assert able(findings(box))
    box = replace(CUDA_BOX, torch=torch_report(CUDA, old, H200, backends=("gloo", "nccl")))
    assert about("gpu", box)[0] == ("broken", f"cuda:0 {description}", remedy)
    assert not able(findings(box))
    assert about("device", box) == []


def test_macs_without_a_usable_gpu() -> None:
    hardware = Hardware(build=MAC, cpu_name="Apple M1")
    old = replace(APPLE, torch=Torch(hardware=hardware, threads=4, backends=("gloo",)))
    reason = "this torch finds no usable GPU (mps); runs use the CPU"
    assert only("gpu", old) == ("limited", reason, "update macOS")
    intel = replace(old, architecture="x86_64")
    assert only("gpu", intel) == ("limited", reason, "use a Mac with Apple silicon and an arm64 Python")


# -------------------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize(
    ("build", "cards", "environ", "reason", "remedy"),
    [
        (CUDA, NVIDIA, {"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES='' hides every GPU", "unset CUDA_VISIBLE_DEVICES"),
        (CUDA, {}, {"CUDA_VISIBLE_DEVICES": "-1"}, "CUDA_VISIBLE_DEVICES='-1' hides every GPU", "unset CUDA_VISIBLE_DEVICES"),
        (ROCM, AMD, {"ROCR_VISIBLE_DEVICES": "-1"}, "ROCR_VISIBLE_DEVICES='-1' hides every GPU", "unset ROCR_VISIBLE_DEVICES"),
        (
            ROCM,
            AMD,
            {"ROCR_VISIBLE_DEVICES": "0", "HIP_VISIBLE_DEVICES": "1"},
            "ROCR_VISIBLE_DEVICES='0' leaves 1 GPU, number 0, and HIP_VISIBLE_DEVICES='1' selects among these, so no GPU is left",
            "set only one of the two",
        ),
    ],
)  # fmt: skip
def test_a_mask_that_hides_every_gpu(
    build: TorchBuild, cards: dict[str, tuple[str, ...]], environ: dict[str, str], reason: str, remedy: str
) -> None:
    recorded = blind(build, NO_DEVICE, cards=cards, environ=environ, nvidia_driver="580.65", kfd="open")
    assert about("gpu", recorded) == [("limited", f"{reason}; runs use the CPU", remedy)]
    assert able(findings(recorded))


def test_an_active_mask_is_reported() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "0,1", "HIP_VISIBLE_DEVICES": "7"}
    assert only("masks", replace(CUDA_BOX, environ=environ)) == (
        "ok",
        "CUDA_VISIBLE_DEVICES='0,1' selects the GPUs that a run sees",
        None,
    )
    assert about("masks", replace(SERVER, environ=environ)) == []


def test_a_misspelt_mask() -> None:
    assert only("masks", replace(CUDA_BOX, environ={"CUDA_VISIBLE_DEVICE": "0"})) == (
        "limited",
        "the environment variable 'CUDA_VISIBLE_DEVICE' ('0') has no effect; did you mean CUDA_VISIBLE_DEVICES?",
        None,
    )


# ------------------------------------------------------------------------------------------- a torch that does not work


@pytest.mark.parametrize(
    ("more", "command"),
    [
        ({}, f"pip install torch --index-url {INDEX}/cpu"),
        ({"cards": NVIDIA, "nvidia_driver": "580.65"}, f"pip install torch --index-url {INDEX}/cu130"),
        ({"cards": NVIDIA, "nvidia_driver": "470.82"}, f"pip install torch --index-url {INDEX}/cpu"),
        ({"cards": AMD}, f"pip install torch --index-url {INDEX}/rocm7.1"),
        ({"cards": AMD, "system": "Windows"}, f"pip install torch --index-url {INDEX}/cpu"),
        ({"system": "Darwin", "architecture": "arm64"}, "pip install torch"),
    ],
)
def test_torch_is_missing(more: dict[str, Any], command: str) -> None:
    recorded = machine(None, None, **more)
    assert about("torch", recorded) == [("broken", "torch is not installed in this Python", command)]
    assert not able(findings(recorded))
    assert [f.subject for f in findings(recorded) if f.state == "broken"] == ["torch"]


def test_torch_is_missing_on_an_intel_mac() -> None:
    assert about("torch", machine(None, None, system="Darwin", architecture="x86_64")) == [
        (
            "broken",
            "torch is not installed in this Python, and torch has no builds for Intel Macs since 2.3",
            "use a Mac with Apple silicon and an arm64 Python, or Linux",
        )
    ]


AGAIN = f"pip install --force-reinstall torch --index-url {INDEX}/cu130"


@pytest.mark.parametrize(
    ("fault", "reason", "remedy"),
    [
        (
            "libcudart.so.13: cannot open shared object file: No such file or directory",
            "libcudart.so.13: cannot open shared object file: No such file or directory",
            AGAIN,
        ),
        ("it crashes Python with SIGSEGV", "it crashes Python with SIGSEGV", AGAIN),
        (
            "it crashes Python with SIGILL",
            "it crashes Python with SIGILL, so this processor lacks an instruction that the build uses",
            AGAIN,
        ),
        (
            "it does not answer within 120 seconds",
            "it does not answer within 120 seconds",
            "find out where `python -X faulthandler -c 'import torch; torch.cuda.init()'` hangs: in a driver or on a slow disk",
        ),
    ],
)
def test_torch_is_installed_but_does_not_work(fault: str, reason: str, remedy: str) -> None:
    recorded = machine(CUDA, None, torch_fault=fault, cards=NVIDIA, nvidia_driver="580.65")
    expected = f"torch 2.13.0+cu130 is a CUDA build (CUDA 13.0), but it cannot be used: {reason}"
    assert about("torch", recorded) == [("broken", expected, remedy)]
    card = "an NVIDIA card is present (NVIDIA L40S), but runs cannot use it without a working torch"
    assert about("gpu", recorded) == [("limited", card, None)]
    assert not able(findings(recorded))


def test_numpy_2_with_a_torch_built_for_numpy_1() -> None:
    torch = torch_report(CPU, numpy_fault="Numpy is not available")
    assert only("numpy", replace(SERVER, torch=torch)) == (
        "broken",
        "torch 2.13.0+cpu and numpy 2.4.6 are incompatible: Numpy is not available; "
        "a torch built for numpy 1 cannot use a newer numpy",
        "pip install --upgrade torch numpy, or: pip install 'numpy<2'",
    )


def test_a_missing_numpy_is_reported_with_the_packages() -> None:
    packages = tuple(replace(p, installed=None) if p.name in ("numpy", "hydra-core") else p for p in PACKAGES)
    recorded = replace(SERVER, torch=torch_report(CPU, numpy_fault="Numpy is not available"), packages=packages)
    assert only("packages", recorded) == (
        "broken",
        "a run needs hydra-core>=1.3.8,<1.4 (not installed), numpy>=1.26 (not installed)",
        "pip install 'hydra-core>=1.3.8,<1.4' 'numpy>=1.26'",
    )


# ------------------------------------------------------------------------------------------------ packages, compiler, threads and disk


def test_packages_of_other_versions() -> None:
    packages = (*PACKAGES[:2], replace(PACKAGES[2], installed="2.9.1"), *PACKAGES[3:])
    assert only("packages", replace(SERVER, packages=packages)) == (
        "limited",
        "the runner needs tensorboard>=2.21 (2.9.1 is installed); a run may fail with other versions",
        "pip install 'tensorboard>=2.21'",
    )


def test_unknown_packages() -> None:
    assert only("packages", replace(SERVER, packages=()))[::2] == ("limited", "pip install -e .")


def test_an_extra_that_is_not_installed() -> None:
    sweep = Package(name="optuna", versions=">=4.9,<6", extra="sweep", installed=None)
    ok, limited = about("extras", replace(SERVER, packages=(*PACKAGES, sweep)))
    assert ok == ("ok", "tables: pyarrow 26.0.1", None)
    assert limited == ("limited", "sweep: needs optuna>=4.9,<6 (not installed)", "pip install 'optuna>=4.9,<6'")


def test_an_unsupported_python() -> None:
    assert only("python", replace(SERVER, python="3.9.18")) == (
        "broken",
        "Python 3.9.18, 64 bit, Linux on x86_64, but the runner needs Python >=3.10",
        "create a virtual environment with another Python",
    )
    assert only("python", replace(SERVER, bits=32, container=True)) == (
        "broken",
        "Python 3.12.4, 32 bit, Linux on x86_64, in a container: torch has no 32 bit build",
        "install a 64 bit Python",
    )


def test_two_gpus_without_nccl() -> None:
    reason = "torch finds 2 GPUs but has no NCCL, so a run uses one of them"
    box = replace(CUDA_BOX, torch=torch_report(CUDA, H200, H200))
    assert only("distributed", box) == ("limited", reason, AGAIN)
    assert only("distributed", replace(box, system="Windows"))[2] == "use Linux or WSL 2, where torch has it"
    assert about("distributed", replace(CUDA_BOX, torch=torch_report(CUDA, H200))) == [
        ("ok", "several processes can use gloo", None)
    ]


def test_a_torch_without_gloo() -> None:
    assert only("distributed", replace(SERVER, torch=torch_report(CPU, backends=()))) == (
        "limited",
        "this torch has no gloo, so a run on the CPU cannot use several processes",
        f"pip install --force-reinstall torch --index-url {INDEX}/cpu",
    )


def test_small_shared_memory_matters_only_with_several_gpus() -> None:
    small = 64 / 1024
    _, (state, reason, remedy) = about("distributed", replace(CUDA_BOX, shared_memory_gib=small, container=True))
    assert (state, remedy) == ("limited", "docker run --shm-size=8g …")
    assert reason == "/dev/shm has 0.06 GiB, which may be too small for NCCL between GPUs"
    one_gpu = replace(CUDA_BOX, torch=torch_report(CUDA, H200, backends=("gloo", "nccl")), shared_memory_gib=small)
    assert [state for state, _, _ in about("distributed", one_gpu)] == ["ok"]


def test_requirements_of_compiling() -> None:
    bare = replace(CUDA_BOX, compiler=None, python_headers=False, triton=False, environ={"CXX": "icpx"})
    assert only("compile", bare) == (
        "limited",
        "train.compile=true cannot be used: no C++ compiler found (CXX='icpx'), and the header Python.h is missing, "
        "and triton is not installed",
        "sudo apt install g++ (Debian, Ubuntu), or: sudo dnf install gcc-c++ (Fedora); "
        f"sudo apt install python3-dev (Debian, Ubuntu), or: sudo dnf install python3-devel (Fedora); {AGAIN}",
    )
    assert only("compile", replace(SERVER, triton=False))[0] == "ok"
    assert only("compile", replace(APPLE, compiler=None))[2] == "xcode-select --install"


def test_more_threads_than_cores() -> None:
    crowded = replace(SERVER, torch=torch_report(CPU, threads=64), cores=2.5, environ={"OMP_NUM_THREADS": "64"})
    assert only("threads", crowded) == (
        "limited",
        "torch uses 64 threads, but this process may use only 2 cores, so threads wait for each other (OMP_NUM_THREADS=64)",
        "set device.threads=2, or: export OMP_NUM_THREADS=2",
    )
    assert only("threads", replace(SERVER, torch=torch_report(CPU, threads=1), cores=0.5)) == (
        "ok",
        "torch uses 1 thread; this process may use 1 core",
        None,
    )


def test_an_invalid_number_of_threads() -> None:
    assert only("threads", replace(SERVER, environ={"OMP_NUM_THREADS": "many"})) == (
        "broken",
        "the environment variable `OMP_NUM_THREADS` must be an integer of at least 1, got 'many'; correct or unset it",
        None,
    )


def test_the_disk_and_the_working_directory() -> None:
    assert only("disk", replace(SERVER, disk_free_gib=0.25))[:2] == (
        "limited",
        "only 0.25 GiB free for runs and checkpoints on the disk of the working directory",
    )
    assert only("disk", replace(SERVER, writable=False)) == (
        "broken",
        "the working directory is not writable, so no run directory can be created in it",
        "use another working directory, or set run_dir=… for each run",
    )
    assert about("disk", replace(SERVER, disk_free_gib=None)) == []
