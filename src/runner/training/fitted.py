"""The preprocessing of a run directory: read from its file, or made again from its data for a run of an older version."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runner.compute import precision
from runner.config.schema import Config
from runner.data import dataset, preprocessing
from runner.data.preprocessing import PREPROCESSING, Preprocessing
from runner.data.scaling import Scaling
from runner.errors import CheckpointError, InputError


def preprocessing_of(folder: Path, config: Config, state: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing of a run by one of its states. That of an older version, which wrote none, is made again from its data.

    Raises `CheckpointError` if it cannot be read, or cannot be made as the run made it.
    """
    if os.path.lexists(folder / PREPROCESSING):
        return preprocessing.read(folder)
    try:
        made = dataset.build(
            config.data,
            config.seed,
            precision.DTYPES[config.dtype],
            torch.device("cpu"),
            categories=config.category_coding,
        )
    except InputError as error:
        reason = error.problems[0].partition(";")[0]
    else:
        if made.sha256 == state["data_sha256"] and is_same_scaling(made.scaling, state["scaling"]):
            return made.preprocessing
        reason = "its data have another content now" if made.sha256 != state["data_sha256"] else "it is another one now"
    raise CheckpointError(
        f"{folder} must have a {PREPROCESSING}, which older versions did not write, and it cannot be made again: {reason}; repeat the "
        f"run with python -m runner rerun {folder}, with data.path=… if the file was moved"
    )


def is_same_scaling(made: Scaling, saved: Mapping[str, Any]) -> bool:
    """Return whether a scaling is the saved one, up to the roundings of another machine."""
    for name, value in made.state_dict().items():
        # Older versions had one target, without an axis for it.
        other, own = saved.get(name), torch.as_tensor(value).double().flatten()
        other = torch.as_tensor(other if isinstance(other, (bool, Tensor)) else torch.nan).double().flatten()
        if own.shape != other.shape or not torch.allclose(own, other, rtol=1e-9, atol=0):
            return False
    return True
