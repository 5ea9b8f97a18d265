"""Choice of the device of a run, with its reason, and the environment variables to set before torch is imported.

The decisions are pure functions of the configuration, the environment, the installed torch build and the hardware that
torch reports. `installed_build` and `probe` read the last two. `configure` changes torch's settings, and `set_up_device`
puts all of it together. Nothing is read at import.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import platform
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from runner.compute.visible_devices import VARIABLES, Obstacle, config_mask, hides_all, in_force, unusable, variable
from runner.compute.visible_devices import notices as mask_notices
from runner.config.schema import Config, Device
from runner.errors import DeviceError

if TYPE_CHECKING:
    from runner.compute.processes import World

Kind = Literal["cpu", "cuda", "rocm", "mps", "xpu"]
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

_LABELS = {"cuda": "a CUDA", "rocm": "a ROCm", "xpu": "an XPU", "cpu": "a CPU-only"}
_LISTED_BY = {"cuda": "nvidia-smi -L", "rocm": "rocminfo", "xpu": "xpu-smi discovery"}


@dataclass(frozen=True)
class TorchBuild:
    """Version of the installed torch and the versions of CUDA, HIP and XPU for which it was built (None: not for it)."""

    version: str
    cuda: str | None
    hip: str | None
    xpu: str | None = None

    @property
    def kind(self) -> Kind:
        """Kind of accelerator for which torch was built; "cpu" for none, which includes Apple builds."""
        if self.hip:
            return "rocm"
        if self.cuda:
            return "cuda"
        return "xpu" if self.xpu else "cpu"

    @property
    def description(self) -> str:
        """Clause that describes the build: "torch 2.13.0+cu130 is a CUDA build (CUDA 13.0)"."""
        toolkit = {"cuda": f" (CUDA {self.cuda})", "rocm": f" (HIP {self.hip})"}.get(self.kind, "")
        return f"torch {self.version} is {_LABELS[self.kind]} build{toolkit}"


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Hardware that torch reports after its import.

    `gpu_names` are the CUDA, ROCm or XPU devices, in torch's order. `reason` is torch's message when there is none.
    """

    build: TorchBuild
    cpu_name: str = "CPU"
    gpu_count: int = 0
    gpu_names: tuple[str, ...] = ()
    xpu_count: int = 0
    mps: bool = False
    reason: str | None = None


@dataclass(frozen=True)
class DeviceChoice:
    """Device of a process: its kind, torch's name for it, its model name, why it was chosen, and how many are visible."""

    kind: Kind
    torch_device: str
    name: str
    reason: str
    count: int = 1


def installed_build() -> TorchBuild:
    """Return the build of the torch that `import torch` would load, read from its files.

    Raises `DeviceError` when torch is not installed.
    """
    spec = importlib.util.find_spec("torch")
    try:
        text = Path(spec.origin if spec and spec.origin else "").with_name("version.py").read_text(encoding="utf-8")
    except (OSError, ValueError):
        raise DeviceError(
            "torch must be installed, but this Python has none; install it with `pip install torch`, "
            "or with the command for your GPU from https://pytorch.org/get-started/locally"
        ) from None
    values: dict[str, Any] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant):
            values[ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)] = node.value.value
    return TorchBuild(values["__version__"], values.get("cuda"), values.get("hip"), values.get("xpu"))


def environment(device: Device, deterministic: bool, environ: Mapping[str, str], build: TorchBuild) -> dict[str, str]:
    """Return the variables to change in `environ` before torch is imported."""
    changes = {}
    if device.visible is not None:
        changes[variable(bool(build.hip))] = config_mask(device.visible).value
    if deterministic and environ.get(CUBLAS) not in (":4096:8", ":16:8"):
        changes[CUBLAS] = ":4096:8"
    if device.threads is not None:
        changes[THREADS[0]] = str(device.threads)
    return changes


def environment_problems(environ: Mapping[str, str]) -> list[str]:
    """Return one sentence for each thread variable that OpenMP or MKL could not read."""
    return [
        f"the environment variable `{name}` must be an integer of at least 1, got {environ[name]!r}; correct or unset it"
        for name in THREADS
        if name in environ and not re.fullmatch(r"\s*0*[1-9][0-9]*\s*", environ[name])
    ]


def notices(device: Device, environ: Mapping[str, str], build: TorchBuild) -> list[str]:
    """Return one sentence for each mask with no effect or a surprising one; `environ` is the shell's, before changes."""
    sentences = mask_notices(device.visible, environ, bool(build.hip))
    if device.visible and build.kind not in ("cuda", "rocm"):
        label = config_mask(device.visible).label
        sentences.append(f"{label} has no effect: it names CUDA and ROCm GPUs, but {build.description}")
    return sentences


def masks(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the mask variables that are set."""
    return {name: environ[name] for name in VARIABLES if name in environ}


def refuse_late_mask(changes: Mapping[str, str], environ: Mapping[str, str], cuda_started: bool) -> None:
    """Raise `DeviceError` when a mask would have to change after CUDA or ROCm has read it."""
    late = [name for name in VARIABLES if name in changes and changes[name] != environ.get(name)]
    if cuda_started and late:
        raise DeviceError(
            f"`device.visible` needs {name}={changes[name]!r} before the GPU is first used, but this process has used it "
            f"with {f'{name}={environ[name]!r}' if name in environ else f'{name} not set'}; "
            f"restart the process, or set device.visible=null"
            for name in late
        )


def probe() -> Hardware:
    """Return the hardware that torch reports about this machine. The error of a driver is put into `reason`, not raised.

    Raises `DeviceError` when torch is missing or cannot be imported.
    """
    build = installed_build()
    try:
        import torch
    except (ImportError, OSError) as error:
        raise DeviceError(
            f"torch {build.version} must be importable, but is not ({_first_sentence(error)}); reinstall it"
        ) from error
    names, reason = _names({"cuda": torch.cuda, "rocm": torch.cuda, "xpu": torch.xpu}.get(build.kind))
    return Hardware(
        build=build,
        cpu_name=_cpu_name(),
        gpu_count=len(names) if build.kind != "xpu" else 0,
        gpu_names=names,
        xpu_count=len(names) if build.kind == "xpu" else 0,
        mps=torch.backends.mps.is_available(),
        reason=reason,
    )


def _names(backend: Any) -> tuple[tuple[str, ...], str | None]:
    """Return the names of a backend's devices, or none and the backend's reason. A CPU build has no backend (None)."""
    if backend is None:
        return (), None
    with warnings.catch_warnings():
        # Torch warns of a problem such as an old driver and also raises it; it is reported once, as the reason.
        warnings.simplefilter("ignore")
        try:
            backend.init()
            return tuple(backend.get_device_name(i) for i in range(backend.device_count())), None
        except Exception as error:
            return (), _first_sentence(error)


def _first_sentence(error: Exception) -> str:
    """Return the first sentence of an error's message, or the error's class name when it has none."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0].rstrip(".")


def _cpu_name() -> str:
    """Return the model name of the CPU, or its architecture when the name is unknown."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    model = re.search(r"^model name\s*:\s*(.+?)\s*$", text, re.MULTILINE)
    return model[1] if model else platform.processor() or platform.machine() or "CPU"


def choose(
    device: Device, environ: Mapping[str, str], hardware: Hardware, local_rank: int = 0, local_size: int = 1
) -> DeviceChoice:
    """Return the requested device with the reason; `environ` is the environment in which torch was imported.

    Process `local_rank` of the `local_size` on this host uses the visible device of that number.

    `auto` uses the CPU when there is no accelerator. An accelerator that is requested by its kind, or whose GPUs
    `device.visible` names, is never replaced by the CPU: `DeviceError` has one sentence for each obstacle.
    """
    kind = _best(hardware) if device.name == "auto" else device.name
    if kind == "cpu":
        return _cpu(hardware, "requested by `device=cpu`" if device.name == "cpu" else hardware.build.description)
    obstacles = _obstacles(kind, device, environ, hardware)
    if not obstacles:
        _refuse_few(kind, device, environ, hardware, local_size)
        return _accelerator(kind, device, environ, hardware, local_rank)
    if device.name == "auto" and not device.visible:
        return _cpu(hardware, "; ".join(obstacle.found for obstacle in obstacles))
    raise DeviceError(
        f"`device={device.name}` needs {needs}, but {found}; {remedy}, or set device=cpu"
        for needs, found, remedy in obstacles
    )


def _best(hardware: Hardware) -> Kind:
    """Return the accelerator that `auto` tries. A build is for one kind, so CUDA, ROCm and XPU never compete."""
    return "mps" if hardware.build.kind == "cpu" and hardware.mps else hardware.build.kind


def _cpu(hardware: Hardware, why: str) -> DeviceChoice:
    """Return the CPU as the choice."""
    return DeviceChoice("cpu", "cpu", hardware.cpu_name, f"cpu: {why}")


def _count(kind: Kind, hardware: Hardware) -> int:
    """Return the number of devices of a kind."""
    return {"mps": 1, "xpu": hardware.xpu_count}.get(kind, hardware.gpu_count)


def _refuse_few(kind: Kind, device: Device, environ: Mapping[str, str], hardware: Hardware, local_size: int) -> None:
    """Raise `DeviceError` when there are fewer devices than processes on this host."""
    count = _count(kind, hardware)
    if count >= local_size:
        return
    applied = [] if kind in ("mps", "xpu") else in_force(device.visible, environ, kind == "rocm")
    label = f" ({applied[-1].label})" if applied else ""
    raise DeviceError(
        f"the {local_size} processes on this host need a GPU each, but {count} {'is' if count == 1 else 'are'} visible{label}; "
        f"start {count}, make more visible with device.visible, or set device=cpu"
    )


def _accelerator(
    kind: Kind, device: Device, environ: Mapping[str, str], hardware: Hardware, local_rank: int
) -> DeviceChoice:
    """Return the visible device of an available kind whose number is that of the process on this host."""
    if kind == "mps":
        return DeviceChoice(kind, "mps", "Apple GPU", "mps: torch finds the GPU of this Mac")
    count = _count(kind, hardware)
    reason = f"{kind}: {count} {'GPU is' if count == 1 else 'GPUs are'} visible"
    if kind == "rocm":
        reason += f" to HIP {hardware.build.hip}, whose devices torch calls cuda"
    for mask in in_force(device.visible, environ, kind == "rocm")[-1:] if kind != "xpu" else []:
        reason += f", although {mask.label} names {len(mask.entries)}" if len(mask.entries) > count else ""
    number = f"{'xpu' if kind == 'xpu' else 'cuda'}:{local_rank}"
    return DeviceChoice(kind, number, hardware.gpu_names[local_rank], reason, count)


def _obstacles(kind: Kind, device: Device, environ: Mapping[str, str], hardware: Hardware) -> list[Obstacle]:
    """Return all obstacles to a kind. The GPUs are only checked when build and configuration have no obstacle."""
    obstacles = [o for o in (_build_obstacle(kind, hardware), unusable(device.visible)) if o]
    if not obstacles and kind != "mps" and (missing := _gpu_obstacle(kind, device, environ, hardware)):
        obstacles = [missing]
    return obstacles


def _build_obstacle(kind: Kind, hardware: Hardware) -> Obstacle | None:
    """Return why the installed build cannot use a kind, or None."""
    build = hardware.build
    if kind == "mps":
        remedy = "use a Mac with Apple silicon and a macOS that this torch supports"
        return None if hardware.mps else Obstacle("the GPU of a Mac", f"torch {build.version} finds none", remedy)
    if kind == build.kind:
        return None
    needed = f"{_LABELS[kind]} build of torch"
    instead = "" if build.kind == "cpu" else f"set device={build.kind}, or "
    return Obstacle(needed, build.description, f"{instead}install {needed}")


def _gpu_obstacle(kind: Kind, device: Device, environ: Mapping[str, str], hardware: Hardware) -> Obstacle | None:
    """Return why a build for this kind of GPU cannot use the requested GPUs, or None."""
    if kind == "xpu":
        return None if hardware.xpu_count else _no_gpu(kind, environ, hardware)
    applied = in_force(device.visible, environ, kind == "rocm")
    named = len(device.visible or ())
    if hardware.gpu_count >= max(named, 1):
        return None
    other_gpus = f"name GPUs that `{_LISTED_BY[kind]}` lists"
    if hardware.gpu_count:
        found = f"{applied[-1].label} names {named}, of which torch finds {hardware.gpu_count}"
        return Obstacle("every named GPU", found, other_gpus)
    # Torch reports "No CUDA GPUs are available" when the driver works and shows no device: then a mask is the cause.
    driver_works = hardware.reason is None or "GPUs are available" in hardware.reason
    if applied and driver_works and not hides_all(applied):
        labels = " with ".join(mask.label for mask in applied)
        return Obstacle("a GPU", f"{labels} names no GPU of this machine", f"{other_gpus}, or {applied[-1].removal}")
    return hides_all(applied) or _no_gpu(kind, environ, hardware)


def _no_gpu(kind: Kind, environ: Mapping[str, str], hardware: Hardware) -> Obstacle:
    """Return the obstacle of a machine on which torch finds no GPU, with torch's reason and the masks of the shell."""
    shell = [f"{name}={value!r}" for name, value in masks(environ).items()]
    details = f" ({'; '.join([*filter(None, [hardware.reason]), *shell])})" if hardware.reason or shell else ""
    return Obstacle("a GPU", f"torch finds no GPU{details}", f"check the driver with `{_LISTED_BY[kind]}`")


def configure(device: Device, deterministic: bool, choice: DeviceChoice) -> None:
    """Set torch's device, threads, float32 matrix precision (TF32) and determinism for this whole process."""
    import torch

    if choice.kind in ("cuda", "rocm"):
        torch.cuda.set_device(choice.torch_device)
    elif choice.kind == "xpu":
        torch.xpu.set_device(choice.torch_device)
    if device.threads is not None:
        torch.set_num_threads(device.threads)
    torch.set_float32_matmul_precision(device.matmul_precision)
    if (
        deterministic != torch.are_deterministic_algorithms_enabled()
    ):  # setting it imports torch's compiler, which takes a second
        torch.use_deterministic_algorithms(deterministic)


@contextmanager
def configured(device: Device, deterministic: bool, choice: DeviceChoice) -> Iterator[None]:
    """Have the settings of `configure` while entered, and those of before at the end."""
    import torch

    module: Any = {"cuda": torch.cuda, "rocm": torch.cuda, "xpu": torch.xpu}.get(choice.kind)
    current = None if module is None else module.current_device()
    before = Device(
        name=choice.kind,
        visible=None,
        threads=torch.get_num_threads(),
        matmul_precision=torch.get_float32_matmul_precision(),  # type: ignore[arg-type]
    )
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        configure(device, deterministic, choice)
        yield
    finally:
        configure(before, was_deterministic, choice)
        if module is not None:
            module.set_device(current)


def set_up_device(config: Config, warn: Callable[[str], None] | None, world: World) -> DeviceChoice:
    """Choose and configure this process's device, and return it. `warn` receives notices about masks; None ignores them.

    Raises `DeviceError`. Torch is imported after masks and thread counts are in the environment.
    """
    build = installed_build()
    if warn is not None:
        for notice in notices(config.device, os.environ, build):
            warn(notice)
    changes = environment(config.device, config.deterministic, os.environ, build)
    problems = environment_problems({**os.environ, **changes})
    if problems:
        raise DeviceError(problems)
    torch = sys.modules.get("torch")
    refuse_late_mask(changes, os.environ, torch is not None and torch.cuda.is_initialized())
    os.environ.update(changes)
    choice = choose(config.device, os.environ, probe(), world.local_rank, world.local_size)
    configure(config.device, config.deterministic, choice)
    return choice
