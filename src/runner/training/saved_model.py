"""Check that a saved state belongs to the model and the optimizer of a run, before the run is changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from runner.config import schema as c
from runner.errors import CheckpointError
from runner.optim import saved_slots
from runner.optim.saved_slots import described
from runner.training.experiment import RunInfo


def refuse_misfit(state: Mapping[str, Any], info: RunInfo, path: Path) -> None:
    """Raise `CheckpointError` with each part of a state that this run cannot load. `path` is its checkpoint."""
    problems = misfits(state["model"], info.tensors)
    if not problems:
        parameters = {name: info.tensors[name] for name in info.parameter_names}
        problems = saved_slots.problems(info.config.optimizer, parameters, state["optimizer"])
    if info.config.amp == "float16" and not _is_scaler(state["scaler"]):
        problems.append("`scaler` must have the state of a gradient scaler")
    if problems:
        remedy = (
            "give the model of the run" if isinstance(info.config.model, c.MemoryModel) else "restore the checkpoint"
        )
        raise CheckpointError(f"{path / 'state.pt'}: {problem}; {remedy}" for problem in problems)


def misfits(saved: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the differences of saved tensors from those of a model in name, dtype and shape."""
    problems = [f"`model.{name}` is missing" for name in tensors if name not in saved]
    problems += [f"`model.{name}` is no parameter of this model" for name in saved if name not in tensors]
    return problems + [
        f"`model.{name}` must be {described(tensor)}, got {described(saved[name])}"
        for name, tensor in tensors.items()
        if name in saved and (saved[name].dtype, saved[name].shape) != (tensor.dtype, tensor.shape)
    ]


def _is_scaler(state: Mapping[str, Any]) -> bool:
    names = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker", "skipped_steps"}
    return names <= state.keys() and all(isinstance(state[name], (int, float)) for name in names)
