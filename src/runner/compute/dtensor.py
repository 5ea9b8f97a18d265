"""Tensors of which every process holds a part: torch's DTensor, recognised without importing it."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def is_sharded(tensor: Any) -> bool:
    """Whether the tensor is a DTensor."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """Return the part that this process holds, sharing its memory; an ordinary tensor is returned as it is."""
    part: Tensor = tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return part


def like(part: Tensor, whole: Tensor) -> Tensor:
    """Return a local part as a DTensor with the shape and layout of `whole`.

    The part is returned unchanged when `whole` is an ordinary tensor or its local part has another shape.
    """
    if not is_sharded(whole) or part.shape != local(whole).shape:
        return part
    from torch.distributed.tensor import DTensor

    sharded: Any = whole
    return DTensor.from_local(
        part, sharded.device_mesh, sharded.placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def gathered(tensor: Tensor) -> Tensor:
    """Return the whole tensor. For a DTensor this is a collective: every process must call it."""
    full: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return full


def scattered(value: Tensor, onto: Tensor) -> Tensor:
    """Return this process's part of a whole value as a DTensor laid out like `onto`.

    Every process has the whole value, so nothing is sent. The value is returned unchanged when `onto` is an ordinary
    tensor, the value is sharded already, or the shapes differ.
    """
    if not is_sharded(onto) or is_sharded(value) or value.shape != onto.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = onto
    return distribute_tensor(value.to(sharded.device), sharded.device_mesh, sharded.placements, src_data_rank=None)
