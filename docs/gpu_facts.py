"""Print, as one line of JSON, the facts of this machine that its GPU figures belong to: `python docs/gpu_facts.py`.

This is a process of its own: a driver that hangs or crashes when torch starts it cannot take the report with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "hydra-core", "omegaconf", "antlr4-python3-runtime", "numpy", "tensorboard", "PyYAML", "packaging", "rich", "matplotlib",
    "scipy", "pyarrow", "pytest", "pytest-timeout", "hypothesis", "triton",
)  # fmt: skip
MASKS = (
    "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_LAUNCH_BLOCKING", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "OMP_NUM_THREADS",
)  # fmt: skip
DRIVERS = (
    ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
    ["rocm-smi", "--showdriverversion", "--csv"],
)


def facts(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return name → fact. `gpu` is None if torch finds none; then `problem` is torch's reason."""
    found: dict[str, Any] = {"gpu": None, "problem": None}
    found |= {
        "driver": driver(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "environment": {name: environ[name] for name in MASKS if name in environ},
        "commit": commit(),
    }
    try:
        found |= _torch()
    except Exception as error:
        found["problem"] = f"{type(error).__name__}: {error}"
    return found


def _torch() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"torch": str(torch.__version__), "cuda": torch.version.cuda, "hip": torch.version.hip}
    if not torch.cuda.is_available():
        return {**found, "problem": "torch finds no CUDA or ROCm GPU"}
    first = torch.cuda.get_device_properties(0)
    return {
        **found,
        "gpu": first.name,
        "gpus": torch.cuda.device_count(),
        "memory_gib": round(first.total_memory / 2**30, 1),
        "capability": getattr(first, "gcnArchName", None) or f"{first.major}.{first.minor}",
        "cudnn": _quietly(torch.backends.cudnn.version),
        "nccl": _quietly(lambda: ".".join(map(str, torch.cuda.nccl.version()))),  # type: ignore[no-untyped-call]
    }


def _quietly(read: Callable[[], Any]) -> Any:
    with contextlib.suppress(Exception):
        return read()
    return None


def driver() -> str | None:
    """Return the version of the GPU's driver, as nvidia-smi or rocm-smi print it, or None."""
    for command in DRIVERS:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
            if done.stdout.strip():
                return done.stdout.strip().splitlines()[-1]
    return None


def commit() -> str | None:
    """Return the commit of the checkout, with a mark if files were changed, or None where git knows none."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        texts = [
            subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30).stdout
            for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
        return texts[0].strip() + (" with changes" if texts[1].strip() else "")
    return None


def _version(name: str) -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return None


if __name__ == "__main__":
    print(json.dumps(facts(os.environ)))
