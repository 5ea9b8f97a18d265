"""One number for an answer: SHA-256 over raw parameters."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def parameters_sha256(parameters: Mapping[str, Tensor]) -> str:
    """Names sorted; each as the line `name|float32|1,3`, then its little-endian bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(parameters.items()):
        kind = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{name}|{kind}|{','.join(map(str, tensor.shape))}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
