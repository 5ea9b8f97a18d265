"""Hashes of parameters, by which two runs are compared to the bit: of the answer, and of steps on the way as strict JSON.

    {"step": 20, "rolling": "5d41…", "parameters": {"bias": "9f2c…", "weight": "77b0…"}}

`rolling` is SHA-256 over the text of the rolling hash of the line before and the `parameters_sha256` of this step: where it
is equal, so are all lines up to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from runner.runs.sinks.jsonl import JsonLines, read_rows


def parameters_sha256(parameters: Mapping[str, Tensor]) -> str:
    """Names sorted; each as the line `name|float32|1,3`, then its little-endian bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(parameters.items()):
        kind = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{name}|{kind}|{','.join(map(str, tensor.shape))}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Hashes:
    """Appends a line a call, as rows are appended: `open`, `flush` and `close` are those of a sink."""

    def __init__(self, path: Path, *, held: bool = False) -> None:
        self._path, self._lines = path, JsonLines(path, held=held)
        self._rolling = ""

    def open(self, first_step: int) -> None:
        """Lines with step >= `first_step` that an earlier, killed attempt left are dropped."""
        self._lines.open(first_step)
        if self._path.exists() and (kept := read_rows(self._path)):
            self._rolling = str(kept[-1].get("rolling", ""))

    def write(self, step: int, parameters: Mapping[str, Tensor]) -> None:
        """The parameters after so many updates, each of them whole."""
        self._rolling = hashlib.sha256((self._rolling + parameters_sha256(parameters)).encode()).hexdigest()
        each = {name: parameters_sha256({name: tensor}) for name, tensor in sorted(parameters.items())}
        self._lines.write({"step": step, "rolling": self._rolling, "parameters": each})

    def flush(self) -> None:
        self._lines.flush()

    def close(self) -> None:
        self._lines.close()
