"""Device choices on recorded machines: CUDA, ROCm, XPU, Apple and CPU builds, with and without GPUs."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from runner.compute import devices
from runner.compute.devices import DeviceChoice, Hardware, TorchBuild, choose, environment, notices
from runner.config.schema import Device
from runner.errors import DeviceError

CPU = TorchBuild("2.13.0+cpu", None, None)
CUDA = TorchBuild("2.13.0+cu130", "13.0", None)
ROCM = TorchBuild("2.13.0+rocm7.1", None, "7.1.25424")
XPU = TorchBuild("2.13.0+xpu", None, None, "20250302")
MAC = TorchBuild("2.13.0", None, None)

NO_DEVICE = "No CUDA GPUs are available"
NO_DRIVER = "Found no NVIDIA driver on your system"

H200 = Hardware(build=CUDA, gpu_count=2, gpu_names=("NVIDIA H200", "NVIDIA H200"))
MI300 = Hardware(build=ROCM, gpu_count=1, gpu_names=("AMD Instinct MI300X",))
ARC = Hardware(build=XPU, xpu_count=1, gpu_names=("Intel(R) Arc(TM) A770",))
APPLE = Hardware(build=MAC, cpu_name="Apple M3", mps=True)
BARE = Hardware(build=CPU, cpu_name="AMD EPYC")


def device(name: Any = "auto", visible: tuple[int | str, ...] | None = None, threads: int | None = None) -> Device:
    return Device(name=name, visible=visible, threads=threads, matmul_precision="highest")


def blind(build: TorchBuild = CUDA, reason: str | None = NO_DEVICE) -> Hardware:
    return Hardware(build=build, cpu_name="AMD EPYC", reason=reason)


def refusal(requested: Device, hardware: Hardware, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(DeviceError) as raised:
        choose(requested, environ or {}, hardware)
    (problem,) = raised.value.problems
    return problem


# The installed build


@pytest.mark.parametrize(
    ("build", "kind", "description"),
    [
        (CPU, "cpu", "torch 2.13.0+cpu is a CPU-only build"),
        (CUDA, "cuda", "torch 2.13.0+cu130 is a CUDA build (CUDA 13.0)"),
        (ROCM, "rocm", "torch 2.13.0+rocm7.1 is a ROCm build (HIP 7.1.25424)"),
        (XPU, "xpu", "torch 2.13.0+xpu is an XPU build"),
    ],
)
def test_a_build_has_a_kind_and_a_description(build: TorchBuild, kind: str, description: str) -> None:
    assert (build.kind, build.description) == (kind, description)


@pytest.fixture
def empty_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module path with one empty folder: torch is neither installed nor imported."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


def test_the_build_is_read_without_importing_torch(empty_path: Path) -> None:
    (empty_path / "torch").mkdir()
    (empty_path / "torch" / "__init__.py").write_text("raise RuntimeError('imported')")
    (empty_path / "torch" / "version.py").write_text(
        "from typing import Optional\n__all__ = ['cuda']\n__version__ = '2.10.0+rocm7.0'\ndebug = False\n"
        "cuda: Optional[str] = None\nhip: Optional[str] = '7.0.51831'\n"
    )
    assert devices.installed_build() == TorchBuild("2.10.0+rocm7.0", None, "7.0.51831")
    assert "torch" not in sys.modules


@pytest.mark.parametrize("leftover", [False, True])
def test_a_missing_torch_is_an_error_that_says_how_to_install(empty_path: Path, leftover: bool) -> None:
    if leftover:
        (empty_path / "torch").mkdir()
    with pytest.raises(DeviceError, match=r"this Python has none; install it with `pip install torch`"):
        devices.installed_build()


def test_the_installed_build_agrees_with_torch() -> None:
    import torch

    build = devices.installed_build()
    assert (build.version, build.cuda, build.hip) == (torch.__version__, torch.version.cuda, torch.version.hip)


# Environment variables set before torch is imported


def test_nothing_is_set_without_a_request() -> None:
    assert environment(device(), False, {"CUDA_VISIBLE_DEVICES": "1"}, CUDA) == {}


def test_the_mask_variable_is_that_of_the_build() -> None:
    assert environment(device(visible=(0, 2)), False, {}, CUDA) == {"CUDA_VISIBLE_DEVICES": "0,2"}
    assert environment(device(visible=("GPU-aa",)), False, {}, ROCM) == {"HIP_VISIBLE_DEVICES": "GPU-aa"}
    assert environment(device(visible=()), False, {}, ROCM) == {"HIP_VISIBLE_DEVICES": "-1"}


@pytest.mark.parametrize(("shell", "changed"), [(None, True), (":0:0", True), (":4096:8", False), (":16:8", False)])
def test_deterministic_needs_a_cublas_workspace(shell: str | None, changed: bool) -> None:
    environ = {} if shell is None else {"CUBLAS_WORKSPACE_CONFIG": shell}
    expected = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if changed else {}
    assert environment(device(), True, environ, CUDA) == expected
    assert environment(device(), False, environ, CUDA) == {}


def test_threads_are_set_for_openmp() -> None:
    assert environment(device(threads=3), False, {"OMP_NUM_THREADS": "8"}, CPU) == {"OMP_NUM_THREADS": "3"}


@pytest.mark.parametrize("value", ["0", "abc", "-2", "", "1.5"])
def test_thread_variables_that_cannot_be_read(value: str) -> None:
    problems = devices.environment_problems({"OMP_NUM_THREADS": value, "MKL_NUM_THREADS": value})
    assert problems == [
        f"the environment variable `{name}` must be an integer of at least 1, got {value!r}; correct or unset it"
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    ]


@pytest.mark.parametrize("environ", [{}, {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": " 10 "}])
def test_thread_variables_that_can_be_read(environ: dict[str, str]) -> None:
    assert devices.environment_problems(environ) == []


def test_notices_are_about_the_masks_of_the_build() -> None:
    environ = {"CUDA_VISIBLE_DEVICE": "1", "CUDA_VISIBLE_DEVICES": "1"}
    assert len(notices(device(visible=(0,)), environ, CUDA)) == 2
    assert notices(device(), {"HIP_VISIBLE_DEVICES": ""}, CUDA) == []
    assert len(notices(device(), {"HIP_VISIBLE_DEVICES": ""}, ROCM)) == 1


def test_device_visible_on_a_build_without_such_gpus_is_noticed() -> None:
    assert notices(device(visible=(0,)), {}, CPU) == [
        "device.visible=[0] has no effect: it names CUDA and ROCm GPUs, but torch 2.13.0+cpu is a CPU-only build"
    ]
    assert len(notices(device(visible=(0,)), {}, XPU)) == 1
    assert notices(device(visible=()), {}, CPU) == []


def test_masks_are_the_mask_variables_that_are_set() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "", "ROCR_VISIBLE_DEVICES": "1", "CUDA_HOME": "/usr"}
    assert devices.masks(environ) == {"CUDA_VISIBLE_DEVICES": "", "ROCR_VISIBLE_DEVICES": "1"}


def test_a_mask_is_refused_after_the_gpu_was_used() -> None:
    with pytest.raises(DeviceError) as raised:
        devices.refuse_late_mask({"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}, True)
    assert str(raised.value) == (
        "`device.visible` needs CUDA_VISIBLE_DEVICES='0' before the GPU is first used, but this process has used it "
        "with CUDA_VISIBLE_DEVICES='1'; restart the process, or set device.visible=null"
    )
    with pytest.raises(DeviceError, match="with HIP_VISIBLE_DEVICES not set"):
        devices.refuse_late_mask({"HIP_VISIBLE_DEVICES": "0"}, {}, True)


def test_a_mask_in_time_or_without_change_is_accepted() -> None:
    devices.refuse_late_mask({"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}, False)
    devices.refuse_late_mask({"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "0"}, True)
    devices.refuse_late_mask({"OMP_NUM_THREADS": "2"}, {}, True)


# The chosen device


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_cuda_is_used_when_available(name: str) -> None:
    assert choose(device(name), {}, H200) == DeviceChoice(
        "cuda", "cuda:0", "NVIDIA H200", "cuda: 2 GPUs are visible", 2
    )


@pytest.mark.parametrize("kind", ["cuda", "rocm", "xpu"])
def test_each_process_uses_the_visible_device_of_its_local_rank(kind: str) -> None:
    names = ("one", "another")
    hardware = {
        "cuda": H200,
        "rocm": replace(MI300, gpu_count=2, gpu_names=names),
        "xpu": replace(ARC, xpu_count=2, gpu_names=names),
    }[kind]
    here = [choose(device(kind), {}, hardware, rank, 2) for rank in range(2)]
    assert [choice.torch_device for choice in here] == [
        f"{'xpu' if kind == 'xpu' else 'cuda'}:{rank}" for rank in range(2)
    ]
    assert [choice.count for choice in here] == [2, 2]


def test_fewer_gpus_than_processes_are_refused() -> None:
    """B32, and a mask that leaves fewer: processes never share a GPU silently, and `auto` does not fall back to the CPU."""
    for name in ("auto", "cuda"):
        with pytest.raises(
            DeviceError, match="the 4 processes on this host need a GPU each, but 2 are visible; start 2, "
        ):
            choose(device(name), {}, H200, 3, 4)
    one = replace(H200, gpu_count=1, gpu_names=("NVIDIA H200",))
    with pytest.raises(DeviceError, match=r"2 processes .*but 1 is visible \(device.visible=\[1\]\); start 1"):
        choose(device("cuda", visible=(1,)), {}, one, 0, 2)


def test_any_number_of_processes_can_share_the_cpu() -> None:
    assert choose(device("cpu"), {}, H200, 5, 8).torch_device == "cpu"
    assert choose(device("auto"), {}, BARE, 5, 8).torch_device == "cpu"


@pytest.mark.parametrize("name", ["auto", "rocm"])
def test_rocm_is_used_when_available_and_is_cuda_to_torch(name: str) -> None:
    reason = "rocm: 1 GPU is visible to HIP 7.1.25424, whose devices torch calls cuda"
    assert choose(device(name), {}, MI300) == DeviceChoice("rocm", "cuda:0", "AMD Instinct MI300X", reason)


@pytest.mark.parametrize("name", ["auto", "xpu"])
def test_xpu_is_used_when_available(name: str) -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert choose(device(name), environ, ARC) == DeviceChoice(
        "xpu", "xpu:0", "Intel(R) Arc(TM) A770", "xpu: 1 GPU is visible"
    )


@pytest.mark.parametrize("name", ["auto", "mps"])
def test_mps_is_used_when_available(name: str) -> None:
    assert choose(device(name), {}, APPLE) == DeviceChoice(
        "mps", "mps", "Apple GPU", "mps: torch finds the GPU of this Mac"
    )


@pytest.mark.parametrize("hardware", [H200, MI300, ARC, APPLE, BARE])
def test_the_cpu_is_used_when_requested(hardware: Hardware) -> None:
    assert choose(device("cpu"), {}, hardware) == DeviceChoice(
        "cpu", "cpu", hardware.cpu_name, "cpu: requested by `device=cpu`"
    )


@pytest.mark.parametrize(
    ("hardware", "environ", "reason"),
    [
        (BARE, {}, "cpu: torch 2.13.0+cpu is a CPU-only build"),
        (blind(), {"CUDA_VISIBLE_DEVICES": ""}, "cpu: CUDA_VISIBLE_DEVICES='' hides every GPU"),
        (blind(), {"CUDA_VISIBLE_DEVICES": "-1"}, "cpu: CUDA_VISIBLE_DEVICES='-1' hides every GPU"),
        (blind(), {"CUDA_VISIBLE_DEVICES": "7"}, "cpu: CUDA_VISIBLE_DEVICES='7' names no GPU of this machine"),
        (blind(), {}, "cpu: torch finds no GPU (No CUDA GPUs are available)"),
        (blind(reason=NO_DRIVER), {}, "cpu: torch finds no GPU (Found no NVIDIA driver on your system)"),
        (blind(ROCM, None), {}, "cpu: torch finds no GPU"),
        (blind(ROCM, None), {"HIP_VISIBLE_DEVICES": "-1"}, "cpu: HIP_VISIBLE_DEVICES='-1' hides every GPU"),
        (blind(XPU, None), {}, "cpu: torch finds no GPU"),
    ],
)
def test_auto_uses_the_cpu_and_gives_the_reason(hardware: Hardware, environ: dict[str, str], reason: str) -> None:
    choice = choose(device(), environ, hardware)
    assert (choice.kind, choice.name, choice.reason) == ("cpu", "AMD EPYC", reason)


@pytest.mark.parametrize("hardware", [blind(), blind(ROCM), APPLE, ARC])
def test_auto_uses_the_cpu_when_the_configuration_hides_every_gpu(hardware: Hardware) -> None:
    choice = choose(device(visible=()), {}, hardware)
    assert (choice.kind, choice.reason) == ("cpu", "cpu: device.visible=[] hides every GPU")


def test_a_shell_mask_that_names_more_gpus_than_exist_is_reported() -> None:
    one = Hardware(build=CUDA, gpu_count=1, gpu_names=("NVIDIA H200",))
    reason = choose(device("cuda"), {"CUDA_VISIBLE_DEVICES": "0,7"}, one).reason
    assert reason == "cuda: 1 GPU is visible, although CUDA_VISIBLE_DEVICES='0,7' names 2"


# Refused devices


def test_an_accelerator_on_a_cpu_only_build() -> None:
    assert refusal(device("cuda"), BARE) == (
        "`device=cuda` needs a CUDA build of torch, but torch 2.13.0+cpu is a CPU-only build; "
        "install a CUDA build of torch, or set device=cpu"
    )
    assert "needs a ROCm build of torch" in refusal(device("rocm"), BARE)
    assert "needs an XPU build of torch" in refusal(device("xpu"), BARE)


def test_an_accelerator_on_another_accelerators_build() -> None:
    assert refusal(device("cuda"), MI300) == (
        "`device=cuda` needs a CUDA build of torch, but torch 2.13.0+rocm7.1 is a ROCm build (HIP 7.1.25424); "
        "set device=rocm, or install a CUDA build of torch, or set device=cpu"
    )
    assert refusal(device("rocm"), H200) == (
        "`device=rocm` needs a ROCm build of torch, but torch 2.13.0+cu130 is a CUDA build (CUDA 13.0); "
        "set device=cuda, or install a ROCm build of torch, or set device=cpu"
    )


def test_mps_without_a_mac() -> None:
    assert refusal(device("mps"), BARE) == (
        "`device=mps` needs the GPU of a Mac, but torch 2.13.0+cpu finds none; "
        "use a Mac with Apple silicon and a macOS that this torch supports, or set device=cpu"
    )


@pytest.mark.parametrize("reason", [NO_DRIVER, "The NVIDIA driver on your system is too old (found version 11040)"])
@pytest.mark.parametrize("environ", [{}, {"CUDA_VISIBLE_DEVICES": "0"}])
def test_no_gpu_for_a_cuda_build_is_reported_with_torchs_message(reason: str, environ: dict[str, str]) -> None:
    details = reason + ("; CUDA_VISIBLE_DEVICES='0'" if environ else "")
    assert refusal(device("cuda"), blind(reason=reason), environ) == (
        f"`device=cuda` needs a GPU, but torch finds no GPU ({details}); "
        "check the driver with `nvidia-smi -L`, or set device=cpu"
    )


def test_no_gpu_for_other_builds() -> None:
    rocm = refusal(device("rocm"), blind(ROCM, "No HIP GPUs are available"))
    assert "torch finds no GPU (No HIP GPUs are available); check the driver with `rocminfo`" in rocm
    xpu = refusal(device("xpu"), blind(XPU, None), {"CUDA_VISIBLE_DEVICES": "0"})
    assert "torch finds no GPU (CUDA_VISIBLE_DEVICES='0'); check the driver with `xpu-smi discovery`" in xpu


@pytest.mark.parametrize("value", ["", "-1"])
def test_a_shell_mask_that_hides_every_gpu(value: str) -> None:
    for name, build, mask in [("cuda", CUDA, "CUDA_VISIBLE_DEVICES"), ("rocm", ROCM, "HIP_VISIBLE_DEVICES")]:
        assert refusal(device(name), blind(build), {mask: value}) == (
            f"`device={name}` needs a GPU, but {mask}={value!r} hides every GPU; unset {mask}, or set device=cpu"
        )


@pytest.mark.parametrize(("name", "hardware"), [("cuda", blind()), ("rocm", blind(ROCM)), ("mps", APPLE), ("xpu", ARC)])
def test_a_configuration_that_hides_the_accelerator_it_requests(name: str, hardware: Hardware) -> None:
    assert refusal(device(name, visible=()), hardware) == (
        f"`device={name}` needs a GPU, but device.visible=[] hides every GPU; "
        "set device.visible=null, or set device=cpu"
    )


def test_a_mask_that_names_a_missing_gpu() -> None:
    assert refusal(device("cuda"), blind(), {"CUDA_VISIBLE_DEVICES": "7"}) == (
        "`device=cuda` needs a GPU, but CUDA_VISIBLE_DEVICES='7' names no GPU of this machine; "
        "name GPUs that `nvidia-smi -L` lists, or unset CUDA_VISIBLE_DEVICES, or set device=cpu"
    )
    configured = refusal(device("cuda", visible=(7,)), blind(), {"CUDA_VISIBLE_DEVICES": "7"})
    assert "but device.visible=[7] names no GPU of this machine; name GPUs that" in configured
    assert "or set device.visible=null, or set device=cpu" in configured


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_device_visible_with_more_gpus_than_exist(name: str) -> None:
    assert refusal(device(name, visible=(0, 1, 7)), H200) == (
        f"`device={name}` needs every named GPU, but device.visible=[0, 1, 7] names 3, of which torch finds 2; "
        "name GPUs that `nvidia-smi -L` lists, or set device=cpu"
    )


def test_auto_never_replaces_gpus_that_the_configuration_names() -> None:
    assert "device.visible=[7] names no GPU of this machine" in refusal(device(visible=(7,)), blind())
    assert "no NVIDIA driver" in refusal(device(visible=(0,)), blind(reason=NO_DRIVER))
    # A CPU build belongs to another machine; a notice reports that the key has no effect there.
    assert choose(device(visible=(0,)), {}, BARE).kind == "cpu"


@pytest.mark.parametrize("hardware", [H200, blind()])
def test_device_visible_with_a_duplicate(hardware: Hardware) -> None:
    assert refusal(device("cuda", visible=(0, 0)), hardware) == (
        "`device=cuda` needs `device.visible` to name each GPU once, all by ordinal or all by UUID, but "
        "device.visible=[0, 0] names GPU 0 twice, which hides every GPU; correct it, or set device=cpu"
    )


def test_two_rocm_masks_that_leave_no_gpu() -> None:
    message = refusal(
        device("rocm"),
        blind(ROCM, "No HIP GPUs are available"),
        {"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "1"},
    )
    assert "ROCR_VISIBLE_DEVICES='1' leaves 1 GPU, number 0, and HIP_VISIBLE_DEVICES='1' selects among these" in message
    assert "set only one of the two, or set device=cpu" in message


def test_independent_problems_are_reported_together() -> None:
    with pytest.raises(DeviceError) as raised:
        choose(device("cuda", visible=(0, 0)), {}, MI300)
    build, visible = raised.value.problems
    assert "is a ROCm build" in build
    assert "names GPU 0 twice" in visible


# Probing and configuring torch


class Backend:
    """A stand-in for torch.cuda or torch.xpu."""

    def __init__(self, names: tuple[str, ...] = (), error: Exception | None = None) -> None:
        self.names, self.error = names, error

    def init(self) -> None:
        if self.error:
            raise self.error

    def device_count(self) -> int:
        return len(self.names)

    def get_device_name(self, index: int) -> str:
        return self.names[index]


@pytest.fixture
def torch_with(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(build: TorchBuild, cuda: Backend, xpu: Backend) -> None:
        import torch

        monkeypatch.setattr(devices, "installed_build", lambda: build)
        monkeypatch.setattr(torch, "cuda", cuda)
        monkeypatch.setattr(torch, "xpu", xpu)

    return install


def test_probe_reports_the_gpus_of_the_build(torch_with: Any) -> None:
    torch_with(CUDA, Backend(("NVIDIA H200", "NVIDIA T4")), Backend())
    hardware = devices.probe()
    assert (hardware.gpu_count, hardware.gpu_names, hardware.xpu_count) == (2, ("NVIDIA H200", "NVIDIA T4"), 0)
    assert hardware.reason is None
    torch_with(XPU, Backend(error=AssertionError("called")), Backend(("Arc",)))
    hardware = devices.probe()
    assert (hardware.gpu_count, hardware.gpu_names, hardware.xpu_count, hardware.reason) == (0, ("Arc",), 1, None)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError(f"{NO_DRIVER}. Please check that you have an NVIDIA GPU and installed a driver"), NO_DRIVER),
        (RuntimeError(NO_DEVICE), NO_DEVICE),
        (OSError(), "OSError"),
    ],
)
def test_probe_returns_the_error_of_a_driver_and_does_not_raise(torch_with: Any, error: Exception, reason: str) -> None:
    torch_with(CUDA, Backend(error=error), Backend())
    hardware = devices.probe()
    assert (hardware.gpu_count, hardware.gpu_names, hardware.reason) == (0, (), reason)


def test_probe_calls_no_driver_on_a_cpu_only_build(torch_with: Any) -> None:
    torch_with(CPU, Backend(error=AssertionError("called")), Backend(error=AssertionError("called")))
    hardware = devices.probe()
    assert (hardware.gpu_count, hardware.xpu_count, hardware.reason) == (0, 0, None)
    assert hardware.cpu_name


def test_a_torch_that_cannot_be_imported_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "installed_build", lambda: CUDA)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(DeviceError, match=r"^torch 2\.13\.0\+cu130 must be importable, but is not .*; reinstall it$"):
        devices.probe()


@pytest.fixture
def torch() -> Iterator[ModuleType]:
    """The torch module; its settings are restored afterwards."""
    import torch

    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield torch
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.use_deterministic_algorithms(False)


ON_CPU = devices.DeviceChoice("cpu", "cpu", "a CPU", "cpu: in a test")


def test_configure_sets_threads_precision_and_determinism(torch: Any) -> None:
    devices.configure(Device(name="cpu", visible=None, threads=1, matmul_precision="high"), True, ON_CPU)
    assert torch.get_num_threads() == 1
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.are_deterministic_algorithms_enabled()


def test_configure_keeps_the_threads_without_a_request(torch: Any) -> None:
    torch.set_num_threads(3)
    torch.use_deterministic_algorithms(True)
    devices.configure(device("cpu"), False, ON_CPU)
    assert torch.get_num_threads() == 3
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.are_deterministic_algorithms_enabled()
