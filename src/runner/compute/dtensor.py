"""Tensors of which every process holds a part: torch's DTensor, told from ordinary ones without importing it."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def is_sharded(tensor: Any) -> bool:
    """Whether it is a DTensor."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """The part that this process holds, sharing its memory; an ordinary tensor is its own part."""
    part: Tensor = tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return part


def like(part: Tensor, whole: Tensor) -> Tensor:
    """A part, laid out as those of `whole`; as it is where `whole` is an ordinary tensor or has another shape."""
    if not is_sharded(whole) or part.shape != local(whole).shape:
        return part
    from torch.distributed.tensor import DTensor

    sharded: Any = whole
    return DTensor.from_local(
        part, sharded.device_mesh, sharded.placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def gathered(tensor: Tensor) -> Tensor:
    """The whole tensor, on every process; all of them must ask."""
    full: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return full


def scattered(value: Tensor, onto: Tensor) -> Tensor:
    """This process's part of a whole value, laid out as `onto`; every process has the whole value and nothing is sent."""
    if not is_sharded(onto) or is_sharded(value) or value.shape != onto.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = onto
    return distribute_tensor(value.to(sharded.device), sharded.device_mesh, sharded.placements, src_data_rank=None)
