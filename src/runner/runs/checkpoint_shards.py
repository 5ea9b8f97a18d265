"""Write and read sharded tensors with torch.distributed.checkpoint (DCP). All processes write at the same time.

    __<rank>_0.distcp    the shards of one process
    .metadata            the file of each shard of each tensor, as a pickle

DCP unpickles `.metadata` without a check: whoever can write it could run any command. So it is read here, by an
unpickler that accepts only the names that DCP writes, and torch receives the result instead of the file.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from runner.config.files import MIB, read_bytes
from runner.errors import RunFailed

METADATA = ".metadata"
MAX_METADATA_BYTES = 64 * MIB
PARTS = ("model", "optimizer")
"""Parts of a state whose tensors may be sharded."""

KNOWN = {
    "torch": {"Size", *(str(t).removeprefix("torch.") for t in vars(torch).values() if isinstance(t, torch.dtype))},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
}
"""Module → names that `.metadata` may contain."""


def split(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and other values of model and optimizer, by names such as `optimizer/0.weight/exp_avg`."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for name, value in _flat({part: state[part] for part in PARTS}).items():
        (tensors if isinstance(value, Tensor) else plain)[name] = value
    return tensors, plain


def joined(state: Mapping[str, Any], flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state with the values of flat names added to its model and optimizer."""
    parts: dict[str, Any] = {part: {} for part in PARTS}
    for name, value in {**_flat({part: state.get(part, {}) for part in PARTS}), **flat}.items():
        *path, last = name.split("/")
        inner = parts
        for key in path:
            inner = inner.setdefault(key, {})
        inner[last] = value
    return {**state, **parts}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves by their names, joined by slashes. An empty mapping is a leaf."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            leaves |= _flat(value, f"{prefix}{name}/")
        else:
            leaves[prefix + name] = {} if isinstance(value, Mapping) else value
    return leaves


def write(folder: Path, tensors: Mapping[str, Tensor], group: ProcessGroup | None) -> tuple[int, BaseException] | None:
    """Write the shards of this process into a folder that all processes share. All processes of `group` call it.

    Returns None once the disk has all shards. If a process could not write, all of them return its rank and the error.
    An error that is not the disk's is raised on the process where it happened.
    """
    writer = _Writer(folder)
    try:
        save(dict(tensors), storage_writer=writer, process_group=group)
    except CheckpointException as error:
        if writer.error is not None:
            raise writer.error from None
        rank = min(error.failures)
        return rank, error.failures[rank][0]
    return None


def read(folder: Path, files: Collection[str], state: Mapping[str, Any]) -> dict[str, Any] | str:
    """Return the state with all tensors whole and on the CPU; or a text that says what is wrong with the shards.

    `files` are the names of the files that the manifest lists.
    """
    metadata = read_metadata(folder, files)
    if isinstance(metadata, str):
        return metadata
    entries = [e for e in metadata.state_dict_metadata.values() if isinstance(e, TensorStorageMetadata)]
    total = sum(math.prod(entry.size) * entry.properties.dtype.itemsize for entry in entries)
    stored = sum(os.stat(folder / name).st_size for name in files)
    if total > stored:
        return f"{METADATA} describes tensors of {total} bytes, but the shards have {stored}"
    try:
        tensors: dict[str, Any] = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            load(tensors, storage_reader=_Reader(folder, metadata), no_dist=True)
    except (Exception, CheckpointException) as error:  # the latter is not an Exception
        return f"the shards do not match {METADATA} ({type(error).__name__})"
    return joined(state, tensors)


def read_metadata(folder: Path, files: Collection[str]) -> Metadata | str:
    """Return DCP's description of the shards; or a text that says why it is refused. Runs no code of the file."""
    try:
        metadata = _Unpickler(io.BytesIO(read_bytes(folder / METADATA, MAX_METADATA_BYTES))).load()
        used = {shard.relative_path for shard in metadata.storage_data.values()}
        complete = used <= {*files} and all(map(_covered, metadata.state_dict_metadata.values()))
    except Exception as error:  # bytes that are not a pickle can raise any type
        reason = str(error) if isinstance(error, pickle.UnpicklingError) else type(error).__name__
        return f"{METADATA} must hold what torch.distributed.checkpoint writes, and is refused ({reason})"
    if not complete or not isinstance(metadata, Metadata):
        return f"{METADATA} must list whole tensors in files of this checkpoint, and does not"
    return metadata


def _covered(entry: Any) -> bool:
    """Return whether the shards cover the tensor: the rest of it would be uninitialized memory."""
    size = sum(math.prod(shard.sizes) for shard in entry.chunks)
    return isinstance(entry, TensorStorageMetadata) and size == math.prod(entry.size)


class _Unpickler(pickle.Unpickler):
    """Unpickles only objects with the names in `KNOWN`."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in KNOWN.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return super().find_class(module, name)


class _Writer(FileSystemWriter):
    """DCP's writer, with errors that name their cause."""

    error: BaseException | None = None
    """Error of this process that is not the disk's."""

    def __init__(self, folder: Path) -> None:
        # Copying ahead waits for the current device of the thread, which may not be the one that has the tensors.
        super().__init__(folder, per_thread_copy_ahead=0)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        if not os.path.isdir(self.path):  # torch would make one, on the disk of this process
            raise RunFailed(f"`run_dir` must be on a disk that all processes share, but `{self.path}` is missing here")
        return super().prepare_local_plan(plan)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except BaseException as error:
            cause = error.__context__ if isinstance(error, RuntimeError) else error
            if isinstance(cause, OSError):  # of a full disk torch reports only "unexpected pos"
                raise cause from None
            self.error = error
            # Torch sends the error to the other processes as a pickle. Not every type of error can be unpickled.
            raise RunFailed(str(error) or type(error).__name__) from None

    def storage_meta(self) -> StorageMeta | None:
        return None  # DCP would store a path of this machine and a random number, which nothing reads


class _Reader(FileSystemReader):
    """DCP's reader, with metadata that was checked."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        super().__init__(folder)
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata
