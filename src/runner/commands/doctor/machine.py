"""Everything that is recorded of a machine: `probes` finds it out, `findings` judges it, and JSON holds it whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runner.compute.devices import Hardware, TorchBuild

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU as torch sees it: its compute capability or architecture, and what a first computation on it fails with."""

    name: str
    memory_gib: float
    capability: str
    fault: str | None = None


@dataclass(frozen=True, kw_only=True)
class Torch:
    """What torch says, asked in the environment that a run would have."""

    hardware: Hardware
    threads: int
    backends: tuple[str, ...]
    """Of gloo, nccl, mpi and xccl those that the build has."""
    gpus: tuple[Gpu, ...] = ()
    numpy_fault: str | None = None
    """What a tensor fails with when it is to become a numpy array."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package that the runner, or an extra of it, asks for: which versions, and the one that is installed."""

    name: str
    versions: str
    extra: str
    installed: str | None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine and the Python on it, as a run would meet them."""

    python: str
    requires_python: str
    bits: int
    system: str
    """Linux, Windows or Darwin."""
    architecture: str
    container: bool
    cores: float
    """That this process may use, with the limit of its container."""
    disk_free_gib: float | None
    shared_memory_gib: float | None
    writable: bool
    """Whether files can be made in the working directory."""
    environ: dict[str, str]
    packages: tuple[Package, ...]
    build: TorchBuild | None
    torch: Torch | None
    torch_fault: str | None
    """Why torch said nothing, though it is installed."""
    cards: dict[str, tuple[str, ...]]
    """nvidia, amd, intel → names of the cards that the system lists, whatever torch sees."""
    nvidia_driver: str | None
    kfd: str
    """AMD's door to its GPUs, /dev/kfd: open, closed (no permission) or absent."""
    compiler: str | None
    python_headers: bool
    triton: bool

    @property
    def intel_mac(self) -> bool:
        """A Mac with an Intel processor, or a Python made for one."""
        return self.system == "Darwin" and self.architecture == "x86_64"


def from_json(values: Mapping[str, Any]) -> Machine:
    """A machine from what `dataclasses.asdict` made of it, after JSON."""
    torch = values["torch"]
    read = {
        "packages": tuple(Package(**package) for package in values["packages"]),
        "build": values["build"] and TorchBuild(**values["build"]),
        "torch": torch and torch_from_json(torch),
        "cards": {vendor: tuple(names) for vendor, names in values["cards"].items()},
    }
    return Machine(**{**values, **read})


def torch_from_json(values: Mapping[str, Any]) -> Torch:
    """What torch said, after JSON."""
    hardware = values["hardware"]
    read = {
        "hardware": Hardware(
            **{**hardware, "build": TorchBuild(**hardware["build"]), "gpu_names": tuple(hardware["gpu_names"])}
        ),
        "backends": tuple(values["backends"]),
        "gpus": tuple(Gpu(**gpu) for gpu in values["gpus"]),
    }
    return Torch(**{**values, **read})
