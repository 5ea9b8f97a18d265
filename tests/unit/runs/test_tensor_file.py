"""Files of tensors: the same as the package safetensors writes and reads, and refused before memory is taken."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch as oracle
import torch

from runner.runs import tensor_file

TENSORS = {
    "weight": torch.randn(2, 3),
    "bias": torch.randn(3, dtype=torch.float64),
    "a": torch.tensor(2.5, dtype=torch.bfloat16),
    "none": torch.empty(0, 4),
    "half": torch.randn(3, dtype=torch.float16),
    "count": torch.arange(4),
}


def written(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def read(path: Path) -> dict[str, torch.Tensor]:
    with tensor_file.opened(path) as file:
        return file.tensors()


def test_the_package_safetensors_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(b"".join(tensor_file.pieces(TENSORS)))
    for found in (oracle.load_file(path), read(path)):
        assert found.keys() == TENSORS.keys()
        assert all(
            torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in TENSORS.items()
        )


def test_what_the_package_safetensors_writes_is_read(tmp_path: Path) -> None:
    oracle.save_file(TENSORS, tmp_path / "t", {"made": "by another program"})
    found = read(tmp_path / "t")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], value) for name, value in TENSORS.items())


def head(shape: Any = (2,), extent: Any = (0, 8), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(extent)}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": head([2**40], [0, 2**42])}, b"12345678", "its tensors must have the 8 bytes that follow the header, got 4,398,046,511,104"),
        ({"a": head([2**40])}, b"12345678", "'a' must have the bytes of its shape [1099511627776], got 8"),
        ({"a": head([2**61, 8], [0, 2**61 * 32])}, b"", "'a' must have a shape and two offsets"),
        ({"a": head(), "b": head()}, b"12345678", "the bytes of 'b' must begin at 8, got 0"),
        ({"a": head([2], [8, 16])}, b"1" * 16, "the bytes of 'a' must begin at 0, got 8"),
        ({"a": head()}, b"1" * 9, "its tensors must have the 9 bytes that follow the header, got 8"),
        ({"a": head([-2], [0, -8])}, b"", "'a' must have a shape and two offsets, got [-2] and [0, -8]"),
        ({"a": head([True, 2])}, b"12345678", "'a' must have a shape and two offsets"),
        ({"a": head([1] * 99 + [2])}, b"12345678", "'a' must have a shape and two offsets"),
        ({"a": head(dtype="I4")}, b"12345678", "the dtype of 'a' must be one of F64, F32, F16, BF16, I64, got 'I4'"),
        ({"a": "text"}, b"", "the dtype of 'a' must be one of"),
        (b'{"a":1,"a":2}', b"", "`a` is given twice"),
        (b"[1]", b"", "it is not an object"),
        (b"\xff\xff", b"", "it is not UTF-8"),
        (b"", b"", "its header must have 1 to 1 bytes, got 0"),
    ],
)  # fmt: skip
def test_a_header_that_does_not_fit_its_file_is_refused(header: Any, data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        read(written(tmp_path / "t", header, data))


def test_the_length_of_a_header_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match=r"its header must have 1 to 2 bytes, got 4,611,686,018,427,387,904"):
        read(tmp_path / "t")
    (tmp_path / "t").write_bytes(b"123")
    with pytest.raises(ValueError, match="its header must have"):
        read(tmp_path / "t")


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    written(tmp_path / "t", {})
    (tmp_path / "link").symlink_to("t")
    assert read(tmp_path / "t") == {}
    with pytest.raises(OSError, match="it is a link"):
        read(tmp_path / "link")
