"""What torch says of this machine, as one line of JSON: a process of its own, since an import of torch may end it."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

from runner.commands.doctor.machine import GIB, Gpu, Torch
from runner.compute.devices import probe


def report() -> Torch:
    """What torch says. Raises whatever torch does."""
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
        # Whether the build has code for this GPU, and the GPU answers, is seen by using it.
        fault=_fault(lambda: (torch.ones(2, device=device) + 1).sum().item()),
    )


def _fault(attempt: Any) -> str | None:
    try:
        attempt()
    except Exception as error:
        return _line(error)
    return None


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def main() -> None:
    """Print the answer."""
    try:
        answer = dataclasses.asdict(report())
    except Exception as error:
        answer = {"fault": _line(error.__cause__ or error)}
    sys.stdout.write(f"\n{json.dumps(answer)}\n")


if __name__ == "__main__":
    main()
