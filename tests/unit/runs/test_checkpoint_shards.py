"""The files of sharded checkpoints, and manipulated ones that are refused before torch reads them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from runner.runs import checkpoint, checkpoint_shards

STATE: dict[str, Any] = {
    "model": {"0.weight": torch.arange(6.0).reshape(3, 2)},
    "optimizer": {},
    "scaler": {"scale": 2.0},
}


@pytest.fixture(autouse=True)
def _one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = tmp_path_factory.mktemp("store") / "file"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def put(folder: Path, step: int) -> Path:
    """Save a checkpoint with shards from one process."""
    fresh = checkpoint.draft(folder, step)
    tensors, plain = checkpoint_shards.split(STATE)
    assert checkpoint_shards.write(fresh, tensors, None) is None
    return checkpoint.publish(fresh, {**STATE, "model": {}, "optimizer": {}, **plain}, best=False, keep=None)


def write_manifest(path: Path) -> None:
    """Write a correct manifest of the files in a folder, by its documented format."""

    def written(value: Any) -> bytes:
        return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()

    contents = {file.name: file.read_bytes() for file in path.iterdir() if file.name != "manifest.json"}
    files = {name: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for name, d in contents.items()}
    body = {"step": int(path.name.removeprefix("step_")), "files": files}
    (path / "manifest.json").write_bytes(written({**body, "sha256": hashlib.sha256(written(body)).hexdigest()}))


def rewritten(path: Path, change: Callable[[Metadata], Any]) -> str | None:
    """Change `.metadata`, with a correct manifest, and return what is wrong with the checkpoint."""
    file = path / ".metadata"
    file.write_bytes(pickle.dumps(change(pickle.loads(file.read_bytes()))))
    write_manifest(path)
    return checkpoint.verify(path)


# ------------------------------------------------------------------------------------------------- names and nesting


def test_split_separates_tensors_from_other_values() -> None:
    a, b = torch.ones(2), torch.zeros(1)
    state = {
        "model": {"0.weight": a},
        "optimizer": {"0.weight": {"exp_avg": b, "momentum_buffer": None}, "0.bias": {}},
        "scaler": {"scale": torch.ones(1)},
    }
    tensors, plain = checkpoint_shards.split(state)
    assert list(tensors.items()) == [("model/0.weight", a), ("optimizer/0.weight/exp_avg", b)]
    assert plain == {"optimizer/0.weight/momentum_buffer": None, "optimizer/0.bias": {}}
    assert checkpoint_shards.joined({"scaler": state["scaler"]}, {**plain, **tensors}) == state


def test_joined_adds_the_state_of_another_stage_to_an_empty_one() -> None:
    state: dict[str, Any] = {"model": {}, "optimizer": {}}
    flat = {"optimizer/1.bias/calls": 3, "optimizer": {}}
    assert checkpoint_shards.joined(state, flat) == {"model": {}, "optimizer": {"1.bias": {"calls": 3}}}
    assert state == {"model": {}, "optimizer": {}}


def test_a_state_without_optimizer_state_is_loaded(tmp_path: Path) -> None:
    put(tmp_path, 1)
    found = checkpoint.load(tmp_path)
    assert found is not None
    assert found.state["optimizer"] == {}
    assert found.state["scaler"] == {"scale": 2.0}
    assert torch.equal(found.state["model"]["0.weight"], STATE["model"]["0.weight"])


# ------------------------------------------------------------------------------------------------------- manipulated files


class Payload:
    """An object that runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


WHERE: dict[str, Callable[[Metadata, Any], Any]] = {
    "alone": lambda metadata, payload: payload,
    "in a field": lambda metadata, payload: dataclasses.replace(metadata, planner_data={"model/0.weight": payload}),
    "in a key": lambda metadata, payload: dataclasses.replace(metadata, storage_data={payload: None}),
}


@pytest.mark.parametrize("where", WHERE)
def test_metadata_that_runs_a_command_is_refused_and_runs_nothing(where: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    put(tmp_path / "c", 1)
    path = put(tmp_path / "c", 2)
    message = rewritten(path, lambda metadata: WHERE[where](metadata, Payload(marker)))
    assert message == (
        ".metadata must hold what torch.distributed.checkpoint writes, and is refused (posix.system is not allowed)"
    )
    found = checkpoint.load(tmp_path / "c")
    assert found is not None
    assert (found.step, found.skipped) == (1, (f"the checkpoint `{path}` is not used: {message}",))
    assert not marker.exists()
    pickle.loads((path / ".metadata").read_bytes())
    assert marker.exists()  # unpickling the payload does run the command


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"ctorch\nload\n(S'x'\ntR.", "torch.load"),
        (b"\x80\x04\x8c\x05torch\x8c\x0cSize.__new__\x93.", "torch.Size.__new__"),
        (b"ctorch.serialization\nload\n.", "torch.serialization.load"),
        (b"ctorch.distributed.checkpoint.metadata\nos\n.", "torch.distributed.checkpoint.metadata.os"),
    ],
)
def test_metadata_may_contain_only_known_names(content: bytes, name: str, tmp_path: Path) -> None:
    path = put(tmp_path, 1)
    (path / ".metadata").write_bytes(content)
    write_manifest(path)
    message = checkpoint.verify(path)
    assert message is not None
    assert message.endswith(f"is refused ({name} is not allowed)")


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"no pickle", pickle.dumps([1]), pickle.dumps(None)])
def test_a_file_that_is_not_metadata_is_refused(content: bytes, tmp_path: Path) -> None:
    path = put(tmp_path, 1)
    (path / ".metadata").write_bytes(content)
    write_manifest(path)
    message = checkpoint.verify(path)
    assert message is not None
    assert message.startswith(".metadata must hold what torch.distributed.checkpoint writes, and is refused (")


def test_values_that_torch_would_unpickle_are_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "c", 1)
    for file in (".metadata", "__0_0.distcp"):
        (path / file).unlink()
    dcp_save({"model/0.weight": Payload(tmp_path / "marker")}, checkpoint_id=path)
    write_manifest(path)
    message = checkpoint.verify(path)
    assert message is not None
    assert "BytesStorageMetadata is not allowed" in message
    assert not (tmp_path / "marker").exists()


def outside(metadata: Metadata) -> Metadata:
    places = {
        i: dataclasses.replace(p, relative_path="../step_1/__0_0.distcp") for i, p in metadata.storage_data.items()
    }
    return dataclasses.replace(metadata, storage_data=places)


def uncovered(metadata: Metadata) -> Metadata:
    [(name, entry)] = metadata.state_dict_metadata.items()
    assert isinstance(entry, TensorStorageMetadata)
    larger = dataclasses.replace(entry, size=torch.Size([4, 2]))
    return dataclasses.replace(metadata, state_dict_metadata={name: larger})


@pytest.mark.parametrize("change", [outside, uncovered])
def test_metadata_of_missing_shards_is_refused(change: Callable[[Metadata], Metadata], tmp_path: Path) -> None:
    put(tmp_path, 1)
    message = rewritten(put(tmp_path, 2), change)
    assert message == ".metadata must list whole tensors in files of this checkpoint, and does not"


def shifted(metadata: Metadata) -> Metadata:
    places = {i: dataclasses.replace(place, offset=7) for i, place in metadata.storage_data.items()}
    return dataclasses.replace(metadata, storage_data=places)


def test_shards_that_do_not_match_metadata_are_refused(tmp_path: Path) -> None:
    message = rewritten(put(tmp_path, 1), shifted)
    assert message == "the shards do not match .metadata (CheckpointException)"


def test_a_checkpoint_with_shards_and_no_metadata_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path, 1)
    (path / ".metadata").unlink()
    write_manifest(path)
    message = checkpoint.verify(path)
    assert message == ".metadata must hold what torch.distributed.checkpoint writes, and is refused (FileNotFoundError)"


def test_shards_that_cannot_be_loaded_are_not_published(tmp_path: Path) -> None:
    put(tmp_path, 1)
    fresh = checkpoint.draft(tmp_path, 2)
    dcp_save({"model/0.weight": "text"}, checkpoint_id=fresh)
    with pytest.raises(ValueError, match=r"the shards of step 2 cannot be loaded again: \.metadata must hold"):
        checkpoint.publish(fresh, STATE, best=False, keep=None)
    assert sorted(os.listdir(tmp_path)) == ["last", "step_1"]


# ---------------------------------------------------------------------------------------------------------- warnings


def test_loading_without_a_process_group_does_not_warn(tmp_path: Path) -> None:
    put(tmp_path, 1)
    dist.destroy_process_group()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert checkpoint.load(tmp_path) is not None
    assert caught == []
