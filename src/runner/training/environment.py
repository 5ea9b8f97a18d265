"""The program versions and the machine of a run, as run.json records them."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING, Any

from runner.runs.directory import git
from runner.version import __version__

if TYPE_CHECKING:
    from runner.compute.devices import DeviceChoice


def environment(choice: DeviceChoice) -> dict[str, Any]:
    """Return the entries of run.json on program versions and machine."""
    # Rank 0 imports this module before it may import torch.
    import hydra
    import torch

    from runner.compute.devices import masks

    return {
        **git(),
        "runner": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "hydra": hydra.__version__,
        "device": choice.kind,
        "device_name": choice.name,
        "masks": masks(os.environ),
        "threads": torch.get_num_threads(),
    }
