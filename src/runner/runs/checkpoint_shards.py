"""The tensors of a state in parts, written by all processes at once with torch.distributed.checkpoint (DCP).

    __<rank>_0.distcp    the parts that one process wrote
    .metadata            which part of which tensor is where: a pickle

DCP unpickles `.metadata` without looking, and whoever can write it could have any command run. So it is read here, by an
unpickler that knows nothing but what DCP itself puts there, and torch is given the outcome instead of the file.
"""

from __future__ import annotations

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

from runner.errors import RunFailed

METADATA = ".metadata"
PARTS = ("model", "optimizer")
"""What of a state has tensors that no process may hold whole."""

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
"""Module → names that `.metadata` may mention."""


def split(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of model and optimizer by flat names such as `optimizer/0.weight/exp_avg`, and what else is in the two."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for name, value in _flat({part: state[part] for part in PARTS}).items():
        (tensors if isinstance(value, Tensor) else plain)[name] = value
    return tensors, plain


def joined(state: Mapping[str, Any], flat: Mapping[str, Any]) -> dict[str, Any]:
    """The state with the values of flat names put into its model and optimizer."""
    parts: dict[str, Any] = {part: {} for part in PARTS}
    for name, value in {**_flat({part: state.get(part, {}) for part in PARTS}), **flat}.items():
        *path, last = name.split("/")
        inner = parts
        for word in path:
            inner = inner.setdefault(word, {})
        inner[last] = value
    return {**state, **parts}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Names of leaves, joined by slashes; an empty mapping is a leaf."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{name}/")
        else:
            found[prefix + name] = {} if isinstance(value, Mapping) else value
    return found


def write(folder: Path, tensors: Mapping[str, Tensor], group: ProcessGroup | None) -> tuple[int, BaseException] | None:
    """Write this process's parts into a folder that all of them share; all of `group` call it.

    Gives, on every process, the rank of one that could not and why; None when all is on the disk. What is not the disk's
    fault is raised where it happened.
    """
    writer = _Writer(folder)
    try:
        save(dict(tensors), storage_writer=writer, process_group=group)
    except CheckpointException as error:
        if writer.mistake is not None:
            raise writer.mistake from None
        rank = min(error.failures)
        return rank, error.failures[rank][0]
    return None


def read(folder: Path, files: Collection[str], state: Mapping[str, Any]) -> dict[str, Any] | str:
    """The state with every tensor put in whole, on the CPU; or what is wrong with the shards, which are among `files`."""
    metadata = described(folder, files)
    if isinstance(metadata, str):
        return metadata
    try:
        tensors: dict[str, Any] = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            load(tensors, storage_reader=_Reader(folder, metadata), no_dist=True)
    except (Exception, CheckpointException) as error:  # the latter is no Exception
        return f"the shards do not hold what {METADATA} says ({type(error).__name__})"
    return joined(state, tensors)


def described(folder: Path, files: Collection[str]) -> Metadata | str:
    """What DCP wrote of the shards; or why it is refused. Runs nothing that the file asks for."""
    try:
        with open(folder / METADATA, "rb") as file:
            metadata = _Unpickler(file).load()
        places = {place.relative_path for place in metadata.storage_data.values()}
        sound = places <= {*files} and all(map(_covered, metadata.state_dict_metadata.values()))
    except Exception as error:  # bytes that are no pickle can raise anything
        reason = str(error) if isinstance(error, pickle.UnpicklingError) else type(error).__name__
        return f"{METADATA} must hold what torch.distributed.checkpoint writes and is refused ({reason})"
    if not sound or not isinstance(metadata, Metadata):
        return f"{METADATA} must say of whole tensors where in the checkpoint they are, and does not"
    return metadata


def _covered(entry: Any) -> bool:
    """Whether the parts make up the tensor: what no part covers would stay as memory was."""
    size = sum(math.prod(part.sizes) for part in entry.chunks)
    return isinstance(entry, TensorStorageMetadata) and size == math.prod(entry.size)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in KNOWN.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} is not part of it")
        return super().find_class(module, name)


class _Writer(FileSystemWriter):
    mistake: BaseException | None = None

    def __init__(self, folder: Path) -> None:
        # Copying ahead waits for the current device of the thread, which need not be the one that has the tensors.
        super().__init__(folder, per_thread_copy_ahead=0)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        if not os.path.isdir(self.path):  # torch would make one, on this process's own disk
            raise RunFailed(f"`run_dir` must be on a disk that all processes share, but `{self.path}` is not there")
        return super().prepare_local_plan(plan)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except BaseException as error:
            cause = error.__context__ if isinstance(error, RuntimeError) else error
            if isinstance(cause, OSError):  # of a full disk torch itself says only "unexpected pos"
                raise cause from None
            self.mistake = error
            # Torch sends it to the other processes, as a pickle, which not every error can be made from again.
            raise RunFailed(str(error) or type(error).__name__) from None

    def storage_meta(self) -> StorageMeta | None:
        return None  # a path of this machine and a random number, which nobody reads


class _Reader(FileSystemReader):
    def __init__(self, folder: Path, metadata: Metadata) -> None:
        super().__init__(folder)
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata
