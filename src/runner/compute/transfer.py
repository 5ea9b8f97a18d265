"""Copies from the host to the device that no training step waits for."""

from __future__ import annotations

import torch
from torch import Tensor

PINNED: tuple[str, ...] = ("cuda",)
"""Devices to which copies are made from pinned memory, as the host then continues at once; "cuda" is ROCm too."""


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a CPU tensor on a device. The copy is made in the order of the work on the device."""
    if device.type in PINNED:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
