"""The hash of the parameters against its documented definition, computed here with numpy and struct."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
import torch
from torch import Tensor

from runner.runs.hashes import parameters_sha256


def _sha256(*pieces: bytes) -> str:
    return hashlib.sha256(b"".join(pieces)).hexdigest()


def test_the_hash_of_a_linear_model() -> None:
    parameters = {
        "weight": torch.tensor([[1.0, -2.5, 3.0]], requires_grad=True),
        "bias": torch.tensor([0.5], dtype=torch.float32),
    }
    expected = _sha256(
        b"bias|float32|1\n", struct.pack("<f", 0.5), b"weight|float32|1,3\n", struct.pack("<3f", 1.0, -2.5, 3.0)
    )
    assert parameters_sha256(parameters) == expected


@pytest.mark.parametrize(
    ("tensor", "header", "content"),
    [
        (torch.tensor(1.5, dtype=torch.float64), b"p|float64|\n", struct.pack("<d", 1.5)),
        (torch.tensor([1.5, -2.0], dtype=torch.float16), b"p|float16|2\n", struct.pack("<2e", 1.5, -2.0)),
        # bfloat16 is the upper half of float32.
        (
            torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
            b"p|bfloat16|2\n",
            struct.pack("<f", 1.5)[2:] + struct.pack("<f", -2.0)[2:],
        ),
        (torch.zeros(0, 3), b"p|float32|0,3\n", b""),
        (torch.tensor(float("nan"), dtype=torch.float64), b"p|float64|\n", struct.pack("<d", float("nan"))),
    ],
    ids=["0-d", "float16", "bfloat16", "empty", "nan"],
)
def test_every_type_and_shape(tensor: Tensor, header: bytes, content: bytes) -> None:
    assert parameters_sha256({"p": tensor}) == _sha256(header, content)


def test_a_view_is_hashed_by_its_values_in_row_order() -> None:
    whole = np.arange(12, dtype="<f8").reshape(3, 4)
    tensor = torch.from_numpy(whole.copy()).T
    assert not tensor.is_contiguous()
    assert parameters_sha256({"p": tensor}) == _sha256(b"p|float64|4,3\n", np.ascontiguousarray(whole.T).tobytes())
    assert parameters_sha256({"p": tensor}) == parameters_sha256({"p": tensor.contiguous()})


def test_names_are_sorted_and_in_utf_8() -> None:
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    second, first = struct.pack("<f", 2.0), struct.pack("<f", 1.0)
    expected = _sha256(b"Z|float32|\n", second, b"a|float32|\n", first, "β|float32|\n".encode(), first)
    assert parameters_sha256({"β": one, "a": one, "Z": two}) == expected


@pytest.mark.parametrize(
    "other",
    [
        {"p": torch.tensor([0.0, 2.0])},
        {"p": torch.tensor([-0.0, 1.0])},
        {"q": torch.tensor([0.0, 1.0])},
        {"p": torch.tensor([[0.0, 1.0]])},
        {"p": torch.tensor([0.0, 1.0], dtype=torch.float64)},
    ],
    ids=["value", "sign of zero", "name", "shape", "type"],
)
def test_any_difference_changes_the_hash(other: dict[str, Tensor]) -> None:
    assert parameters_sha256(other) != parameters_sha256({"p": torch.tensor([0.0, 1.0])})
