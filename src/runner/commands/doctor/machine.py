"""Record of a machine: `probes` fills it, `findings` judges it, and JSON stores it completely."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runner.compute.devices import Hardware, TorchBuild

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU as torch sees it."""

    name: str
    memory_gib: float
    capability: str
    """Compute capability (NVIDIA) or architecture (AMD)."""
    fault: str | None = None
    """Error of a first computation on it, or None."""


@dataclass(frozen=True, kw_only=True)
class Torch:
    """Report of torch, in the environment that a run would have."""

    hardware: Hardware
    threads: int
    backends: tuple[str, ...]
    """Names of the backends in the build, of gloo, nccl, mpi and xccl."""
    gpus: tuple[Gpu, ...] = ()
    numpy_fault: str | None = None
    """Error of converting a tensor to a numpy array, or None."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package that the runner or one of its extras requires, with the allowed versions and the installed one."""

    name: str
    versions: str
    extra: str
    installed: str | None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine and its Python, as a run would find them."""

    python: str
    requires_python: str
    bits: int
    system: str
    """Linux, Windows or Darwin."""
    architecture: str
    container: bool
    cores: float
    """Cores that this process may use, limited by its container."""
    disk_free_gib: float | None
    shared_memory_gib: float | None
    writable: bool
    """Whether files can be created in the working directory."""
    environ: dict[str, str]
    packages: tuple[Package, ...]
    build: TorchBuild | None
    torch: Torch | None
    torch_fault: str | None
    """Why there is no report from torch, though it is installed."""
    cards: dict[str, tuple[str, ...]]
    """nvidia, amd or intel -> names of the cards that the system lists, whatever torch sees."""
    nvidia_driver: str | None
    kfd: str
    """State of /dev/kfd, through which AMD GPUs compute: open, closed (no permission) or absent."""
    compiler: str | None
    python_headers: bool
    triton: bool

    @property
    def intel_mac(self) -> bool:
        """Whether this is a Mac with an Intel processor, or a Python built for one."""
        return self.system == "Darwin" and self.architecture == "x86_64"


def from_json(values: Mapping[str, Any]) -> Machine:
    """Return the machine whose `dataclasses.asdict` was stored as JSON."""
    torch = values["torch"]
    fields = {
        "packages": tuple(Package(**package) for package in values["packages"]),
        "build": values["build"] and TorchBuild(**values["build"]),
        "torch": torch and torch_from_json(torch),
        "cards": {vendor: tuple(names) for vendor, names in values["cards"].items()},
    }
    return Machine(**{**values, **fields})


def torch_from_json(values: Mapping[str, Any]) -> Torch:
    """Return the report of torch whose `dataclasses.asdict` was stored as JSON."""
    hardware = values["hardware"]
    fields = {
        "hardware": Hardware(
            **{**hardware, "build": TorchBuild(**hardware["build"]), "gpu_names": tuple(hardware["gpu_names"])}
        ),
        "backends": tuple(values["backends"]),
        "gpus": tuple(Gpu(**gpu) for gpu in values["gpus"]),
    }
    return Torch(**{**values, **fields})
