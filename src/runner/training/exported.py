"""A trained model in a folder, without the run that it is from: model.safetensors and model.json.

    {"format": 1, "runner": "0.1.0", "torch": "2.13.0+cpu", "weights_sha256": "5d41…", "config": {…}, "preprocessing": {…},
     "selected": {"step": 300, "metrics": {…}, "parameters_sha256": "9f2c…"}}

`config` and `preprocessing` are what config.yaml and preprocessing.json of the run have, but without paths, which tell
strangers about the folders of who trained the model. The SHA-256 of the weights reveals damage and does not prove who wrote them.

calibration.json and covariance.json, which intervals need, are those of the run. The former has targets of the run's table.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runner.config import compose
from runner.config.documents import FORMAT, checked, read_json
from runner.config.files import MIB, is_folder, read_bytes
from runner.config.parts import key
from runner.config.resume import checked_values
from runner.config.schema import Config, plain
from runner.config.validation import shown
from runner.data import preprocessing
from runner.errors import CheckpointError, ConfigError
from runner.runs.atomic import sync_folder, write_json, write_new
from runner.runs.records import checked_selected
from runner.training.bands import COVARIANCE
from runner.training.given import NOTHING, Given
from runner.training.intervals import CALIBRATION, documents_of
from runner.training.saved_model import misfits
from runner.training.trained import Trained, other_torch, other_version, start
from runner.version import __version__

DESCRIPTION = "model.json"
WEIGHTS = "model.safetensors"
FILES = {DESCRIPTION, WEIGHTS, CALIBRATION, COVARIANCE}
"""Names of the files that an export may have."""

_MOST_HEADER_BYTES = 8 * MIB
"""Largest header of a file of safetensors, which has the names, dtypes and shapes."""

_NO_PATH = ""
"""Value of a path that is left out."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """`model.json` without its groups."""

    format: int = key("version of the file's form", at_least=1)
    runner: str | None = key("version of runner that wrote it", before=None)
    torch: str = key("version of torch that wrote it")
    weights_sha256: str = key("SHA-256 of model.safetensors", pattern="[0-9a-f]{64}")


def write(folder: Path, trained: Trained) -> None:
    """Write a model into a folder that exists and is empty.

    Raises OSError, `ConfigError` without the package safetensors, and `CheckpointError` for damaged files of its run.
    """
    weights: bytes = _library().save({name: tensor.detach().cpu().clone() for name, tensor in trained.tensors.items()})
    write_new(folder / WEIGHTS, weights)
    selected = {
        "step": trained.step,
        "metrics": dict(trained.metrics),
        "parameters_sha256": trained.parameters_sha256(),
    }
    description = {
        "format": FORMAT,
        "runner": __version__,
        "torch": str(torch.__version__),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "selected": selected,
        "config": _without_paths(trained.config),
        "preprocessing": trained.preprocessing.state(),
    }
    write_json(folder / DESCRIPTION, description)
    for name, content in documents_of(trained).items():
        write_json(folder / name, content)
    sync_folder(folder)


def _without_paths(config: Config) -> dict[str, Any]:
    """Return the plain values of a configuration without those that name a folder of the user."""
    values = plain(config)
    values["data"] |= {name.removeprefix("data."): _NO_PATH for name in config.data.paths}
    values["model"] |= {"init_from": None}
    return {**values, "run_dir": None, "resume": None}


def is_export(path: str) -> bool:
    """Return whether a path is a folder with an exported model."""
    return os.path.lexists(Path(path) / DESCRIPTION)


def read(path: str, state: str = "selected", given: Given = NOTHING) -> Trained:
    """Return the model of an export. Raises `CheckpointError` with every problem, and for another state than "selected"."""
    folder, file = Path(path), Path(path) / DESCRIPTION
    if not is_folder(folder):
        raise CheckpointError(f"{path} must be a folder, and not a link to one; give the folder")
    values = checked(Description, read_json(file, "the description of an exported model"), file)
    groups = {name: values.get(name) for name in ("config", "preprocessing")}
    problems = [
        f"{file}: `{name}` must be a group of keys, got {shown(value)}; restore the file"
        for name, value in groups.items()
        if not isinstance(value, Mapping)
    ]
    if problems:
        raise CheckpointError(problems)
    selected = checked_selected(values.get("selected"), file)
    if state != "selected":
        raise CheckpointError(
            f"`--state` must be left out for the exported model {path}, which has step {selected['step']} alone; remove it"
        )
    config = compose.check(checked_values(values["config"], file))
    fitted = preprocessing.of_state(values["preprocessing"], file)
    tensors = _weights(folder / WEIGHTS, start(config, fitted, path, given).state_dict(), values["weights_sha256"])
    notices = (*other_version(values["runner"]), *other_torch(values["torch"]))
    trained = Trained(path, config, fitted, tensors, selected["step"], notices, selected["metrics"], given=given)
    if trained.parameters_sha256() != selected["parameters_sha256"]:
        raise CheckpointError(
            f"{folder / WEIGHTS} must have the parameters of `selected` in {DESCRIPTION}, but their SHA-256 is another one; "
            "export the run again"
        )
    return trained


def _weights(path: Path, expected: Mapping[str, Tensor], sha256: str) -> dict[str, Tensor]:
    """Return the tensors of a file, which must be those of a model in name, dtype and shape. Raises `CheckpointError`."""
    library, size = _library(), sum(tensor.nbytes for tensor in expected.values())
    try:
        data = read_bytes(path, size + _MOST_HEADER_BYTES)  # so that the model decides how much memory is taken
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ValueError(f"its SHA-256 is not the `weights_sha256` of {DESCRIPTION}")
        tensors: dict[str, Tensor] = library.load(data)
    except Exception as error:  # OSError, ValueError, and the several of a library that reads a stranger's bytes
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise CheckpointError(
            f"{path} must be the weights of an exported model, but cannot be used ({reason}); export the run again"
        ) from None
    problems = misfits(tensors, expected)
    if problems:
        raise CheckpointError(f"{path}: {problem}; export the run again" for problem in problems)
    return tensors


def _library() -> Any:
    """Return the module of safetensors for torch. Raises `ConfigError` where it is not installed."""
    try:
        import safetensors.torch
    except ImportError:
        raise ConfigError(
            'a model in the form safetensors needs safetensors, which is not installed; pip install "runner[export]"'
        ) from None
    return safetensors.torch
