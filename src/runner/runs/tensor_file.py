"""Tensors in a file of the form safetensors: the length of a header, the header as JSON, then the bytes of each tensor.

    12 0 0 0 0 0 0 0 {"weight":{"dtype":"F32","shape":[1,3],"data_offsets":[0,12]}} …

The form has no code in it. All sizes are compared with that of the file before memory is taken for them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from runner.config.documents import parse_object
from runner.config.files import MIB, open_to_read

MOST_HEADER_BYTES = 8 * MIB
_MOST_AXES = 8
_LENGTH_BYTES = 8
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def pieces(tensors: Mapping[str, Tensor]) -> Iterator[bytes]:
    """Yield the content of a file with these tensors, which may be on any device."""
    header, end = dict[str, Any](), 0
    for name, tensor in tensors.items():
        first, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [first, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # so that the tensors are aligned
    yield len(text).to_bytes(_LENGTH_BYTES, "little") + text
    for tensor in tensors.values():
        yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@dataclass(frozen=True)
class TensorFile:
    """An open file whose header fits its size."""

    heads: Mapping[str, Tensor]
    """Tensors with dtype and shape and without memory, in the order of their bytes."""
    _file: BinaryIO

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors, on the CPU. Raises OSError."""
        return {name: self._tensor(head) for name, head in self.heads.items()}

    def sha256(self) -> str:
        """Return the SHA-256 of the whole file. Raises OSError."""
        self._file.seek(0)
        digest = hashlib.sha256()
        while piece := self._file.read(MIB):
            digest.update(piece)
        return digest.hexdigest()

    def _tensor(self, head: Tensor) -> Tensor:
        size = head.numel() * head.element_size()
        data = bytearray(self._file.read(size))
        if len(data) < size:
            raise OSError(errno.EIO, "it has become shorter")
        flat = torch.frombuffer(data, dtype=head.dtype) if data else torch.empty(0, dtype=head.dtype)
        return flat.reshape(head.shape)


@contextmanager
def opened(path: Path) -> Iterator[TensorFile]:
    """Yield the file at a path, which is not a link. Raises OSError, and ValueError with what is wrong with its header."""
    with open_to_read(path) as file:
        rest = os.fstat(file.fileno()).st_size - _LENGTH_BYTES
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if not 0 < length <= min(rest, MOST_HEADER_BYTES):
            raise ValueError(
                f"its header must have 1 to {max(min(rest, MOST_HEADER_BYTES), 1):,} bytes, got {length:,}"
            )
        header = parse_object(file.read(length))
        header.pop("__metadata__", None)
        yield TensorFile(_heads(header, rest - length), file)


def _heads(header: Mapping[str, Any], size: int) -> dict[str, Tensor]:
    """Return the tensors of a header, which together have as many bytes as follow it. Raises ValueError."""
    found = [(*_extent(name, entry), name, entry) for name, entry in header.items()]
    found.sort(key=lambda one: one[:2])
    end = 0
    for first, last, name, _ in found:
        if first != end:
            raise ValueError(f"the bytes of {name!r} must begin at {end:,}, got {first:,}")
        end = last
    if end != size:
        raise ValueError(f"its tensors must have the {size:,} bytes that follow the header, got {end:,}")
    return {
        name: torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]], device="meta") for *_, name, entry in found
    }


def _extent(name: str, entry: Any) -> tuple[int, int]:
    """Return where the bytes of a tensor begin and end, as many as its dtype and shape need. Raises ValueError."""
    values: dict[str, Any] = entry if isinstance(entry, dict) else {}
    parts: Any = (values.get(part) for part in ("dtype", "shape", "data_offsets"))
    dtype, shape, extent = parts
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"the dtype of {name!r} must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    if not (_is_counts(shape, range(_MOST_AXES + 1)) and _is_counts(extent, [2])):
        raise ValueError(f"{name!r} must have a shape and two offsets, got {shape!r} and {extent!r}")
    first, last = extent
    if last - first != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise ValueError(f"{name!r} must have the bytes of its shape {shape}, got {last - first:,}")
    return first, last


def _is_counts(value: Any, lengths: Container[int]) -> bool:
    counts = isinstance(value, list) and all(type(number) is int and 0 <= number < 2**62 for number in value)
    return counts and len(value) in lengths
