"""Report of what torch finds on this machine, as one line of JSON.

It runs in a process of its own, because importing torch may crash or hang the process.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Any

from runner.commands.doctor.machine import GIB, Gpu, Torch
from runner.compute.devices import probe


def report() -> Torch:
    """Return what torch finds. Raises whatever torch raises."""
    hardware = probe()
    import torch
    from torch import distributed

    kinds = ("gloo", "nccl", "mpi", "xccl") if distributed.is_available() else ()
    backends = tuple(kind for kind in kinds if getattr(distributed, f"is_{kind}_available")())
    backend = torch.xpu if hardware.build.kind == "xpu" else torch.cuda
    return Torch(
        hardware=hardware,
        threads=torch.get_num_threads(),
        backends=backends,
        gpus=tuple(_gpu(backend, number) for number in range(len(hardware.gpu_names))),
        numpy_fault=_fault(lambda: torch.zeros(1).numpy()),
    )


def _gpu(backend: Any, number: int) -> Gpu:
    import torch

    properties = backend.get_device_properties(number)
    capability = (
        getattr(properties, "gcnArchName", "")
        or f"{getattr(properties, 'major', '?')}.{getattr(properties, 'minor', '?')}"
    )
    device = f"{'xpu' if backend is torch.xpu else 'cuda'}:{number}"
    return Gpu(
        name=properties.name,
        memory_gib=properties.total_memory / GIB,
        capability=capability.partition(":")[0],
        # Only a computation shows whether the build has code for this GPU and whether the GPU responds.
        fault=_fault(lambda: (torch.ones(2, device=device) + 1).sum().item()),
    )


def _fault(attempt: Callable[[], object]) -> str | None:
    try:
        attempt()
    except Exception as error:
        return _first_line(error)
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def main() -> None:
    """Print the report, or the reason why there is none, as JSON."""
    try:
        result = dataclasses.asdict(report())
    except Exception as error:
        result = {"fault": _first_line(error.__cause__ or error)}
    sys.stdout.write(f"\n{json.dumps(result)}\n")


if __name__ == "__main__":
    main()
