"""What is found about machines as they were recorded: good ones of every kind, and each way in which one is broken."""

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

OWN = (
    Package(name="hydra-core", versions=">=1.3.8,<1.4", extra="", installed="1.3.8"),
    Package(name="numpy", versions=">=1.26", extra="", installed="2.4.6"),
    Package(name="tensorboard", versions=">=2.21", extra="", installed="2.21.0"),
    Package(name="torch", versions=">=2.10", extra="", installed="2.13.0"),
    Package(name="pyarrow", versions=">=17", extra="tables", installed="26.0.1"),
)


def says(build: TorchBuild, *gpus: Gpu, reason: str | None = None, **more: Any) -> Torch:
    """What this build says that sees these GPUs."""
    hardware = Hardware(build=build, cpu_name="AMD EPYC", gpu_count=len(gpus), gpu_names=tuple(g.name for g in gpus), reason=reason)  # fmt: skip
    return Torch(hardware=hardware, **{"threads": 8, "backends": ("gloo",), "gpus": gpus, **more})


def machine(build: TorchBuild | None, torch: Torch | None, **more: Any) -> Machine:
    """A good Linux server, but for what is said otherwise."""
    usual: dict[str, Any] = {
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
        "packages": OWN,
        "torch_fault": None,
        "cards": {},
        "nvidia_driver": None,
        "kfd": "absent",
        "compiler": "/usr/bin/g++",
        "python_headers": True,
        "triton": True,
    }
    return Machine(build=build, torch=torch, **{**usual, **more})


SERVER = machine(CPU, says(CPU))
CUDA_BOX = machine(
    CUDA,
    says(CUDA, H200, H200, backends=("gloo", "nccl")),
    cards={"nvidia": ("NVIDIA H200", "NVIDIA H200")},
    nvidia_driver="580.65.06",
)
ROCM_BOX = machine(ROCM, says(ROCM, MI300, backends=("gloo", "nccl")), cards={"amd": ("PCI 0000:c1:00.0",)}, kfd="open")
APPLE = machine(
    MAC,
    Torch(hardware=Hardware(build=MAC, cpu_name="Apple M3", mps=True), threads=4, backends=("gloo",)),
    system="Darwin",
    architecture="arm64",
    compiler="/usr/bin/clang++",
    shared_memory_gib=None,
)
WINDOWS = machine(CPU, says(CPU), system="Windows", architecture="AMD64", compiler="C:\\cl.exe", shared_memory_gib=None)


def blind(build: TorchBuild, reason: str | None, **more: Any) -> Machine:
    """A machine with a card on which torch finds no GPU."""
    return machine(build, says(build, reason=reason), **more)


def about(subject: str, recorded: Machine) -> list[tuple[str, str, str | None]]:
    return [(f.state, f.reason, f.remedy) for f in findings(recorded) if f.subject == subject]


def only(subject: str, recorded: Machine) -> tuple[str, str, str | None]:
    """What there is about a subject, when all else is well; and that a run can be done unless it is broken."""
    (found,) = about(subject, recorded)
    others = [f for f in findings(recorded) if f.subject != subject]
    assert {f.state for f in others} == {"ok"}, others
    assert able(findings(recorded)) == (found[0] != "broken")
    return found


# ----------------------------------------------------------------------------------------------------- good machines


@pytest.mark.parametrize(
    ("recorded", "gpu", "device"),
    [
        (SERVER, ["there is none; runs use the CPU"], "cpu: torch 2.13.0+cpu is a CPU-only build (AMD EPYC)"),
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
            ["the GPU of this Mac (mps), in float32 and below: it has no float64"],
            "mps: torch finds the GPU of this Mac (Apple GPU)",
        ),
        (WINDOWS, ["there is none; runs use the CPU"], "cpu: torch 2.13.0+cpu is a CPU-only build (AMD EPYC)"),
    ],
    ids=["cpu", "cuda", "rocm", "apple", "windows"],
)
def test_good_machines(recorded: Machine, gpu: list[str], device: str) -> None:
    found = findings(recorded)
    assert [f for f in found if f.state != "ok" or f.remedy] == []
    assert [f.reason for f in found if f.subject == "gpu"] == gpu
    assert [f.reason for f in found if f.subject == "device"] == [f"device=auto takes {device}"]
    assert able(found)


def test_a_record_comes_back_from_json() -> None:
    for recorded in (SERVER, CUDA_BOX, ROCM_BOX, APPLE, WINDOWS, machine(None, None), machine(CUDA, None)):
        assert from_json(json.loads(json.dumps(dataclasses.asdict(recorded)))) == recorded


def test_the_page_for_people() -> None:
    found = [
        Finding("python", "ok", "Python 3.12.4"),
        Finding("torch", "broken", "torch is not installed in this Python", "pip install torch"),
    ]
    assert text(found) == (
        "ok       python  Python 3.12.4\n"
        "broken   torch   torch is not installed in this Python\n"
        "                 mend: pip install torch\n"
    )


# ------------------------------------------------------------------------------------------- builds, drivers and cards


NVIDIA = {"nvidia": ("NVIDIA L40S",)}
AMD = {"amd": ("PCI 0000:c1:00.0",)}


@pytest.mark.parametrize(
    ("driver", "build"),
    [("580.65.06", "cu130"), ("575.51", "cu126"), ("525.60", "cu126")],
)
def test_a_cpu_build_beside_an_nvidia_card(driver: str, build: str) -> None:
    assert only("gpu", machine(CPU, says(CPU), cards=NVIDIA, nvidia_driver=driver)) == (
        "limited",
        "an NVIDIA card is here (NVIDIA L40S), but torch 2.13.0+cpu is a CPU-only build and cannot use it",
        f"pip install --force-reinstall torch --index-url {INDEX}/{build}",
    )


def test_a_cpu_build_beside_an_nvidia_card_that_no_build_can_use_yet() -> None:
    state, reason, remedy = only("gpu", machine(CPU, says(CPU), cards=NVIDIA, nvidia_driver="470.82"))
    assert (state, remedy) == ("limited", "update the NVIDIA driver: https://www.nvidia.com/drivers")
    assert reason.endswith("cannot use it; its driver 470.82 is too old for any that could")
    state, reason, remedy = only("gpu", machine(CPU, says(CPU), cards=NVIDIA))
    assert reason.endswith("cannot use it; no NVIDIA driver is seen either")
    assert remedy is not None
    assert remedy.startswith(f"pip install --force-reinstall torch --index-url {INDEX}/cu130; and install the driver (")


def test_a_cpu_build_beside_an_amd_card() -> None:
    reason = "an AMD card is here (PCI 0000:c1:00.0), but torch 2.13.0+cpu is a CPU-only build and cannot use it"
    command = f"pip install --force-reinstall torch --index-url {INDEX}/rocm7.1"
    assert only("gpu", machine(CPU, says(CPU), cards=AMD, kfd="open")) == ("limited", reason, command)
    assert only("gpu", machine(CPU, says(CPU), cards=AMD)) == (
        "limited",
        f"{reason}; its driver offers no computing either (/dev/kfd is absent)",
        f"install AMD's driver, where ROCm supports the card: https://rocm.docs.amd.com; then: {command}",
    )


def test_an_amd_card_on_windows() -> None:
    assert only("gpu", replace(WINDOWS, cards={"amd": ("AMD Radeon RX 7900 XTX",)})) == (
        "limited",
        "an AMD card is here (AMD Radeon RX 7900 XTX), but torch 2.13.0+cpu is a CPU-only build and cannot use it; "
        "torch's own index has no ROCm build for Windows",
        f"use Linux on this machine, and there: pip install --force-reinstall torch --index-url {INDEX}/rocm7.1",
    )


def test_a_driver_that_is_too_old() -> None:
    words = "an NVIDIA card is here (NVIDIA L40S), but its driver{} is too old for torch 2.13.0+cu130 (CUDA 13.0)"
    said = "The NVIDIA driver on your system is too old (found version 12040)"
    update = "update the NVIDIA driver: https://www.nvidia.com/drivers"
    for reason in (said, None):
        assert only("gpu", blind(CUDA, reason, cards=NVIDIA, nvidia_driver="550.54.15")) == (
            "limited",
            words.format(" 550.54.15") + ", which needs 580 or newer",
            f"{update}, or: pip install --force-reinstall torch --index-url {INDEX}/cu126",
        )
    assert only("gpu", blind(CUDA, said, cards=NVIDIA, nvidia_driver="470.82"))[2] == update
    assert only("gpu", blind(CUDA, said, cards=NVIDIA))[1:] == (words.format("") + ", which needs 580 or newer", update)
    later = replace(CUDA, cuda="14.0")
    assert only("gpu", blind(later, said, cards=NVIDIA, nvidia_driver="580.65"))[2] == update


def test_a_cuda_build_without_a_driver() -> None:
    card = "an NVIDIA card is here (NVIDIA L40S), but "
    state, reason, remedy = only("gpu", blind(CUDA, NO_DRIVER, cards=NVIDIA))
    assert (state, reason) == ("limited", f"{card}no NVIDIA driver is found")
    assert str(remedy).startswith("install the driver (")
    for driver in (None, "580.65"):  # the kernel's driver is seen in a container, its libraries are not
        inside = blind(CUDA, NO_DRIVER, cards=NVIDIA, container=True, nvidia_driver=driver)
        assert only("gpu", inside) == (
            "limited",
            f"{card}its driver is not in this container",
            "docker run --gpus all …",
        )


def test_a_build_for_gpus_where_there_are_none() -> None:
    reason = "torch 2.13.0+cu130 is a CUDA build (CUDA 13.0), but no such GPU is seen here (torch says: {}); runs use the CPU"
    assert only("gpu", blind(CUDA, NO_DRIVER)) == ("limited", reason.format(NO_DRIVER), None)
    assert only("gpu", blind(CUDA, NO_DRIVER, container=True)) == (
        "limited",
        reason.format(NO_DRIVER),
        "if the host has one: docker run --gpus all …",
    )
    assert only("gpu", blind(XPU, None, container=True))[1:] == (
        "torch 2.13.0+xpu is an XPU build, but no such GPU is seen here; runs use the CPU",
        "if the host has one: docker run --device /dev/dri …",
    )


def test_a_driver_that_works_and_shows_no_gpu() -> None:
    assert only("gpu", blind(CUDA, NO_DEVICE, cards=NVIDIA, nvidia_driver="580.65")) == (
        "limited",
        f"an NVIDIA card is here (NVIDIA L40S), but torch finds no GPU (torch says: {NO_DEVICE})",
        "see whether `nvidia-smi -L` lists it",
    )


@pytest.mark.parametrize(
    ("kfd", "container", "reason", "remedy"),
    [
        ("closed", False, "this user may not open /dev/kfd", "sudo usermod -aG render,video $USER, and log in again"),
        ("absent", True, "/dev/kfd is not in this container", "docker run --device /dev/kfd --device /dev/dri …"),
        (
            "absent",
            False,
            "its driver offers no computing (/dev/kfd is absent)",
            "install AMD's driver, where ROCm supports the card: https://rocm.docs.amd.com",
        ),
        (
            "open",
            False,
            "torch finds no GPU (torch says: No HIP GPUs are available)",
            "see whether `rocminfo` lists it",
        ),
    ],
)
def test_a_rocm_build_that_sees_no_gpu(kfd: str, container: bool, reason: str, remedy: str) -> None:
    recorded = blind(ROCM, "No HIP GPUs are available", cards=AMD, kfd=kfd, container=container)
    assert only("gpu", recorded) == ("limited", f"an AMD card is here (PCI 0000:c1:00.0), but {reason}", remedy)


def test_the_graphics_of_the_processor_beside_a_gpu_that_works_are_no_finding() -> None:
    assert {f.state for f in findings(replace(CUDA_BOX, cards={**CUDA_BOX.cards, **AMD, "intel": ("PCI 0",)}))} == {
        "ok"
    }
    assert only("gpu", replace(SERVER, cards={"intel": ("PCI 0",)})) == (
        "ok",
        "an Intel card is here (PCI 0); torch's XPU build may use it, runs now use the CPU",
        None,
    )


def test_a_gpu_that_fails_at_its_first_computation() -> None:
    kernel = "CUDA error: no kernel image is available for execution on the device"
    old = Gpu(name="GeForce GTX 1080", memory_gib=8.0, capability="6.1", fault=kernel)
    words = f"GeForce GTX 1080, 8 GiB, 6.1, fails at its first computation: {kernel}; torch 2.13.0+cu130 is a CUDA build (CUDA 13.0) without code for this GPU"
    remedy = f"install a build of torch that has it ({INDEX}), or set device=cpu, or device.visible"
    box = replace(CUDA_BOX, torch=says(CUDA, H200, old, backends=("gloo", "nccl")))
    assert about("gpu", box)[1] == ("limited", f"cuda:1 {words}", remedy)
    assert able(findings(box))
    box = replace(CUDA_BOX, torch=says(CUDA, old, H200, backends=("gloo", "nccl")))
    assert about("gpu", box)[0] == ("broken", f"cuda:0 {words}", remedy)
    assert not able(findings(box))
    assert about("device", box) == []


def test_macs_without_a_gpu_for_torch() -> None:
    hardware = Hardware(build=MAC, cpu_name="Apple M1")
    old = replace(APPLE, torch=Torch(hardware=hardware, threads=4, backends=("gloo",)))
    reason = "this torch finds no GPU that it can use (mps); runs use the CPU"
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


def test_a_mask_that_is_in_force_is_told() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "0,1", "HIP_VISIBLE_DEVICES": "7"}
    assert only("masks", replace(CUDA_BOX, environ=environ)) == (
        "ok",
        "CUDA_VISIBLE_DEVICES='0,1' says which GPUs a run sees",
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
        ("it ends Python with SIGSEGV", "it ends Python with SIGSEGV", AGAIN),
        (
            "it ends Python with SIGILL",
            "it ends Python with SIGILL, so this processor lacks an instruction that it has been built for",
            AGAIN,
        ),
        (
            "it does not answer within 120 seconds",
            "it does not answer within 120 seconds",
            "see where `python -X faulthandler -c 'import torch; torch.cuda.init()'` hangs: at a driver, or at a slow disk",
        ),
    ],
)
def test_torch_is_there_and_cannot_be_used(fault: str, reason: str, remedy: str) -> None:
    recorded = machine(CUDA, None, torch_fault=fault, cards=NVIDIA, nvidia_driver="580.65")
    words = f"torch 2.13.0+cu130 is a CUDA build (CUDA 13.0), but it cannot be used: {reason}"
    assert about("torch", recorded) == [("broken", words, remedy)]
    card = "an NVIDIA card is here (NVIDIA L40S), which nothing can use while torch cannot be used"
    assert about("gpu", recorded) == [("limited", card, None)]
    assert not able(findings(recorded))


def test_numpy_2_beside_a_torch_built_for_numpy_1() -> None:
    torch = says(CPU, numpy_fault="Numpy is not available")
    assert only("numpy", replace(SERVER, torch=torch)) == (
        "broken",
        "torch 2.13.0+cpu and numpy 2.4.6 do not fit: Numpy is not available; "
        "a torch that was built for numpy 1 cannot use a newer one",
        "pip install --upgrade torch numpy, or: pip install 'numpy<2'",
    )


def test_a_numpy_that_is_missing_is_one_of_the_packages() -> None:
    packages = tuple(replace(p, installed=None) if p.name in ("numpy", "hydra-core") else p for p in OWN)
    recorded = replace(SERVER, torch=says(CPU, numpy_fault="Numpy is not available"), packages=packages)
    assert only("packages", recorded) == (
        "broken",
        "a run needs hydra-core>=1.3.8,<1.4 (not installed), numpy>=1.26 (not installed)",
        "pip install 'hydra-core>=1.3.8,<1.4' 'numpy>=1.26'",
    )


# ------------------------------------------------------------------------------------------------ beside torch and GPUs


def test_packages_of_other_versions() -> None:
    packages = (*OWN[:2], replace(OWN[2], installed="2.9.1"), *OWN[3:])
    assert only("packages", replace(SERVER, packages=packages)) == (
        "limited",
        "made for tensorboard>=2.21 (2.9.1 is installed); with other versions a run may fail",
        "pip install 'tensorboard>=2.21'",
    )


def test_packages_that_are_not_known() -> None:
    assert only("packages", replace(SERVER, packages=()))[::2] == ("limited", "pip install -e .")


def test_an_extra_that_is_not_installed() -> None:
    sweep = Package(name="optuna", versions=">=4.9,<6", extra="sweep", installed=None)
    ok, limited = about("extras", replace(SERVER, packages=(*OWN, sweep)))
    assert ok == ("ok", "tables: pyarrow 26.0.1", None)
    assert limited == ("limited", "sweep: needs optuna>=4.9,<6 (not installed)", "pip install 'optuna>=4.9,<6'")


def test_pythons_that_do_not_fit() -> None:
    assert only("python", replace(SERVER, python="3.9.18")) == (
        "broken",
        "Python 3.9.18, 64 bit, Linux on x86_64, but the runner needs Python >=3.10",
        "make a virtual environment with another Python",
    )
    assert only("python", replace(SERVER, bits=32, container=True)) == (
        "broken",
        "Python 3.12.4, 32 bit, Linux on x86_64, in a container: there is no torch for 32 bit",
        "install a 64 bit Python",
    )


def test_two_gpus_without_nccl() -> None:
    reason = "2 GPUs are here, but this torch has no NCCL, so that a run uses one of them"
    box = replace(CUDA_BOX, torch=says(CUDA, H200, H200))
    assert only("distributed", box) == ("limited", reason, AGAIN)
    assert (
        only("distributed", replace(box, system="Windows"))[2] == "use Linux, or WSL 2, whose builds of torch have it"
    )
    assert about("distributed", replace(CUDA_BOX, torch=says(CUDA, H200))) == [
        ("ok", "several processes through gloo", None)
    ]


def test_a_torch_without_gloo() -> None:
    assert only("distributed", replace(SERVER, torch=says(CPU, backends=()))) == (
        "limited",
        "this torch has no gloo, so that a run on the CPU is one process",
        f"pip install --force-reinstall torch --index-url {INDEX}/cpu",
    )


def test_little_shared_memory_matters_between_gpus() -> None:
    small = 64 / 1024
    _, (state, reason, remedy) = about("distributed", replace(CUDA_BOX, shared_memory_gib=small, container=True))
    assert (state, remedy) == ("limited", "docker run --shm-size=8g …")
    assert reason == "/dev/shm has 0.06 GiB, with which NCCL may fail between GPUs"
    alone = replace(CUDA_BOX, torch=says(CUDA, H200, backends=("gloo", "nccl")), shared_memory_gib=small)
    assert [state for state, _, _ in about("distributed", alone)] == ["ok"]


def test_what_compiling_needs() -> None:
    bare = replace(CUDA_BOX, compiler=None, python_headers=False, triton=False, environ={"CXX": "icpx"})
    assert only("compile", bare) == (
        "limited",
        "train.compile=true cannot be used: no C++ compiler is found (CXX='icpx'), and the header Python.h is not there, "
        "and triton is not installed",
        "sudo apt install g++ (Debian, Ubuntu), or: sudo dnf install gcc-c++ (Fedora); "
        f"sudo apt install python3-dev (Debian, Ubuntu), or: sudo dnf install python3-devel (Fedora); {AGAIN}",
    )
    assert only("compile", replace(SERVER, triton=False))[0] == "ok"
    assert only("compile", replace(APPLE, compiler=None))[2] == "xcode-select --install"


def test_more_threads_than_cores() -> None:
    crowded = replace(SERVER, torch=says(CPU, threads=64), cores=2.5, environ={"OMP_NUM_THREADS": "64"})
    assert only("threads", crowded) == (
        "limited",
        "torch takes 64 threads, but this process may use 2 cores: they wait for each other (OMP_NUM_THREADS=64)",
        "set device.threads=2, or: export OMP_NUM_THREADS=2",
    )
    assert only("threads", replace(SERVER, torch=says(CPU, threads=1), cores=0.5)) == (
        "ok",
        "torch takes 1 thread; this process may use 1 core",
        None,
    )


def test_a_number_of_threads_that_is_none() -> None:
    assert only("threads", replace(SERVER, environ={"OMP_NUM_THREADS": "many"})) == (
        "broken",
        "the environment variable `OMP_NUM_THREADS` must be an integer of at least 1, got 'many'; correct or unset it",
        None,
    )


def test_where_runs_are_written() -> None:
    assert only("disk", replace(SERVER, disk_free_gib=0.25))[:2] == (
        "limited",
        "the disk of the working directory has 0.25 GiB left for runs and checkpoints",
    )
    assert only("disk", replace(SERVER, writable=False)) == (
        "broken",
        "the working directory cannot be written to, so that no run directory can be made in it",
        "change to another directory, or give each run its own with run_dir=…",
    )
    assert about("disk", replace(SERVER, disk_free_gib=None)) == []
