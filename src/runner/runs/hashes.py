"""Hashes of parameters, which tell whether two runs are equal to the bit: of the result, and of steps in hashes.jsonl.

    {"step": 20, "rolling": "5d41…", "parameters": {"bias": "9f2c…", "weight": "77b0…"}}

`rolling` is the SHA-256 of the text of the previous line's `rolling` ("" for the first line) followed by the
`parameters_sha256` of this step. Equal rolling hashes mean that all lines up to this one are equal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from runner.runs.sinks.jsonl import JsonLines, each_line


def parameters_sha256(parameters: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of parameters: by sorted name, the line `name|float32|1,3`, then the little-endian bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(parameters.items()):
        kind = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{name}|{kind}|{','.join(map(str, tensor.shape))}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Hashes:
    """Writes hashes of the parameters to a file of JSON lines.

    `open`, `flush` and `close` have the contract of a `Sink`. With `held`, lines are kept in memory until `flush`.
    Every method may raise OSError.
    """

    def __init__(self, path: Path, *, held: bool = False) -> None:
        self._path, self._lines = path, JsonLines(path, held=held)
        self._rolling = ""

    def open(self, first_step: int) -> None:
        """Prepare for lines from `first_step` on. Lines of an earlier attempt with step >= `first_step` are dropped."""
        self._lines.open(first_step)
        for line in each_line(self._path) if self._path.exists() else ():
            self._rolling = str(line.get("rolling", ""))

    def write(self, step: int, parameters: Mapping[str, Tensor]) -> None:
        """Add the line of the whole parameters after `step` updates."""
        self._rolling = hashlib.sha256((self._rolling + parameters_sha256(parameters)).encode()).hexdigest()
        hashes = {name: parameters_sha256({name: tensor}) for name, tensor in sorted(parameters.items())}
        self._lines.write({"step": step, "rolling": self._rolling, "parameters": hashes})

    def flush(self) -> None:
        """Wait until the disk has all lines so far."""
        self._lines.flush()

    def close(self) -> None:
        """Close the file."""
        self._lines.close()
