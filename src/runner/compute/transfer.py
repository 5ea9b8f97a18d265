"""Copies from the host to the device that no training step waits for."""

from __future__ import annotations

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a CPU tensor on a device. The copy to a CUDA or ROCm device is ordered before later work there."""
    if device.type == "cuda":  # only a copy from pinned memory lets the host continue at once
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
