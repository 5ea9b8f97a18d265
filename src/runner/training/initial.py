"""Start values from another run: those of its parameters that fit a model, in the units of the model's own data."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from runner.config import schema as c
from runner.config import validation
from runner.config.constraints import advised
from runner.config.resume import checked_values
from runner.config.validation import cut
from runner.data.dataset import Dataset
from runner.data.diagnostics import listed
from runner.data.preprocessing import Preprocessing
from runner.data.scaling import Scaling
from runner.data.split import division
from runner.errors import CheckpointError, ConfigError, printable
from runner.models.base import Model
from runner.runs import saved_state
from runner.runs.records import CHECKPOINTS, RUN, SWEEP, read_record, read_summary
from runner.training import exported
from runner.training.experiment import Start
from runner.training.fitted import preprocessing_of

MOST_NAMED = 5
"""Most parameters of which a line says why they do not fit."""


@dataclass(frozen=True)
class Weights:
    """The state that a finished run reports, or that an export has, and the columns that its parameters are of."""

    run: str
    """The directory, as the user gave it."""
    step: int
    parameters: Mapping[str, Tensor]
    sha256: str
    """`parameters_sha256` of its summary."""
    columns: tuple[str, ...]
    """Names of the columns that its model gets."""
    targets: tuple[str, ...]
    scaling: Scaling
    config: c.Config
    data_sha256: str
    """SHA-256 of the data that it was trained on; empty where they were made."""

    @property
    def is_of_all_rows(self) -> bool:
        """Whether every row of its files trained it."""
        data, split = self.config.data, self.config.data.split
        divided = any(split.shares.values()) or split.folds is not None or split.column is not None
        return not divided and len(data.paths) == 1 and getattr(data, "missing", None) != "drop"


def read(run: str) -> Weights:
    """Return the weights of a finished run or of an export. Raises `CheckpointError` if there are none, or if they cannot be read."""
    if exported.is_export(run):
        found = exported.read(run)
        # An export does not say on which data it was trained.
        return _weights(
            run,
            found.step,
            found.tensors,
            found.parameters_sha256(),
            found.preprocessing,
            config=found.config,
            data_sha256="",
        )
    path = Path(run)
    if not os.path.lexists(path / RUN):
        sweep = os.path.lexists(path / SWEEP)
        what = "a sweep; give one of its runs" if sweep else "none; give its path with model.init_from=PATH"
        raise CheckpointError(f"`model.init_from` must be a run directory or an export, got {run!r}, which is {what}")
    status, summary = read_record(path)["status"], read_summary(path)
    if status != "finished" or summary is None:
        raise CheckpointError(
            f"`model.init_from` must be a finished run, got {run!r}, whose status is {status}; finish it with resume={run}, "
            "or use another run"
        )
    step = summary["selected"]["step"]
    state = saved_state.intact(path / CHECKPOINTS / f"step_{step}")
    if isinstance(state, str):
        raise CheckpointError(
            f"`model.init_from` must have the checkpoint of step {step}, which {run!r} reports, but {state}; use another run"
        )
    config, _ = validation.build(c.Config, checked_values(state["config"], path / CHECKPOINTS / f"step_{step}"))
    assert config is not None
    fitted = preprocessing_of(path, config, state)
    return _weights(
        run,
        step,
        state["model"],
        summary["selected"]["parameters_sha256"],
        fitted,
        config=config,
        data_sha256=state["data_sha256"],
    )


def _weights(
    run: str,
    step: int,
    tensors: Mapping[str, Tensor],
    sha256: str,
    fitted: Preprocessing,
    *,
    config: c.Config,
    data_sha256: str,
) -> Weights:
    columns = fitted.encoding.inputs, fitted.target_names, fitted.scaling
    return Weights(run, step, tensors, sha256, *columns, config, data_sha256)


def start(model: Model, config: c.Config, dataset: Dataset, weights: Weights) -> Start:
    """Give a model on the CPU the parameters of another run that fit it: those of the same name, shape, columns and targets.

    The model then is the same function of the columns of the file as far as they go, although its own data may be scaled in
    another way: what both scalings differ by is taken into the parameters. Raises `ConfigError` if no parameter fits, or if
    one has a value that the configuration excludes.
    """
    match = _Match(model, dataset, weights)
    if not match.fitting:
        raise ConfigError(
            f"`model.init_from` must be a run with parameters that fit this model, got {weights.run!r}: "
            f"{_reasons(match.misfits)}; use another run, or model.init_from=null"
        )
    odd = [f"`{name}`" for name in match.fitting if not bool(weights.parameters[name].isfinite().all())]
    if odd:
        raise ConfigError(
            f"`model.init_from` must have finite parameters, got others of {weights.run!r} in {cut(', '.join(odd))}; use another run"
        )
    seen = _seen_parts(config, dataset, weights)
    if "calibrate" in seen and weights.is_of_all_rows:
        raise ConfigError(
            f"`data.split.calibrate` must set rows aside that `model.init_from`={weights.run} was not trained on, got "
            f"{config.data.split.calibrate:g}, and all rows of the same file trained that run; train it with the data.split and data.seed of "
            "this run, or use data.split.calibrate=0"
        )
    own, values = match.own, match.values
    found = (_unusable(name, values[name], own[name], config, weights.run) for name in match.fitting)
    if problems := [problem for problem in found if problem is not None]:
        raise ConfigError(problems)
    with torch.no_grad():
        for name in match.fitting:
            own[name].copy_(values[name])
    warning = f"; it may have been trained on {' and '.join(seen)} rows of this run, which divides the same file in another way"
    return Start(weights.sha256, printable(match.sentence() + warning * bool(seen)))


def _seen_parts(config: c.Config, dataset: Dataset, weights: Weights) -> list[str]:
    """Return the parts whose rows must not train a model, and may have trained the other run."""
    if not dataset.sha256 or weights.data_sha256 != dataset.sha256 or division(weights.config) == division(config):
        return []
    return [part for part in ("calibrate", "test") if part in dataset.parts]


@dataclass(frozen=True)
class _Match:
    """A model with its data, and the weights of another run."""

    model: Model
    dataset: Dataset
    weights: Weights

    @cached_property
    def own(self) -> dict[str, Tensor]:
        """The parameters of the model."""
        return dict(self.model.named_parameters())

    @property
    def fitting(self) -> list[str]:
        """Names of the parameters that fit."""
        return [name for name in self.own if name not in self.misfits]

    @cached_property
    def misfits(self) -> dict[str, str]:
        """Why a parameter does not fit, as a clause, for each that does not."""
        reasons = {name: self._misfit(name, parameter) for name, parameter in self.own.items()}
        return {name: reason for name, reason in reasons.items() if reason is not None}

    def _misfit(self, name: str, parameter: Tensor) -> str | None:
        theirs = self.weights.parameters.get(name)
        if theirs is None:
            return "the run has none"
        if name in self.model.of_columns and self._other_columns is not None:
            return self._other_columns
        if name in self.model.of_targets and self._other_targets is not None:
            return self._other_targets
        if theirs.shape != parameter.shape:
            return f"its shape is {list(parameter.shape)}, in the run {list(theirs.shape)}"
        plain = theirs.is_floating_point() and theirs.layout == torch.strided and theirs.device == parameter.device
        return None if plain else "the run has no numbers for it"

    @cached_property
    def _other_columns(self) -> str | None:
        return _difference("columns", self.dataset.encoding.inputs, self.weights.columns)

    @cached_property
    def _other_targets(self) -> str | None:
        own, theirs = self.dataset.target_names, self.weights.targets
        # The only target may have got another name; of several each has its place.
        return None if len(own) == len(theirs) == 1 else _difference("targets", own, theirs)

    @cached_property
    def values(self) -> Mapping[str, Tensor]:
        """Parameters of the model by name, float64: those that fit, for values that this run has scaled."""
        there = copy.deepcopy(self.model).double()
        with torch.no_grad():
            for name, parameter in there.named_parameters():
                if name in self.fitting:
                    parameter.copy_(self.weights.parameters[name])
        return there.unscaled(self._scaling())

    def _scaling(self) -> Scaling:
        """Return the run's scaling as one of values that this run has scaled; none where the parameters for it are new."""
        scaling, other, fitting = self.weights.scaling, self.dataset.scaling, {*self.fitting}
        if self._other_columns is not None or not {*self.model.of_columns} <= fitting:
            scaling = replace(scaling, feature_mean=other.feature_mean, feature_scale=other.feature_scale)
        other_targets = self._other_targets is not None or other.log_target != scaling.log_target
        if other_targets or not {*self.model.of_targets} <= fitting:
            scaling = replace(scaling, target_mean=other.target_mean, target_scale=other.target_scale)
        return scaling.seen_through(other)

    def sentence(self) -> str:
        """Return what the model starts from."""
        own, weights, fitting = self.own, self.weights, self.fitting
        parts = [
            f"{len(fitting)} of {len(own)} parameter{'s' * (len(own) > 1)} from {weights.run}, step {weights.step}"
        ]
        kinds = {weights.parameters[name].dtype: own[name].dtype for name in fitting}
        parts[0] += "".join(f", cast from {_name(old)} to {_name(new)}" for old, new in kinds.items() if old != new)
        if self.misfits:
            parts.append(f"new: {_reasons(self.misfits)}")
        if unused := [name for name in weights.parameters if name not in own]:
            parts.append(f"not used: {cut(', '.join(unused))}")
        if any(name not in own and bool(value.any()) for name, value in self.values.items()):
            parts.append("the model has no bias for what the scalings of the data differ by")
        if weights.scaling.log_target != self.dataset.scaling.log_target:
            parts.append(
                f"the run predicts {'the logarithm of ' * weights.scaling.log_target}{listed(weights.targets)}"
            )
        elif self._other_targets is None and weights.targets != self.dataset.target_names:
            parts.append(f"the run predicts {listed(weights.targets)}")
        return "; ".join(parts)


def _difference(what: str, own: Sequence[str], theirs: Sequence[str]) -> str | None:
    """Return how two lists of names differ, as a clause; None if they are equal."""
    if tuple(own) == tuple(theirs):
        return None
    here, there = [name for name in own if name not in theirs], [name for name in theirs if name not in own]
    if not here and not there:
        return f"the {what} of the run are in another order"
    only = [f"{word} {listed(names)}" for word, names in (("without", there), ("with", here)) if names]
    return f"it has {len(own):,} {what}, the run {len(theirs):,}: {', '.join(only)}"


def _unusable(name: str, value: Tensor, parameter: Tensor, config: c.Config, run: str) -> str | None:
    """Return the problem with a start value, or None."""
    if not bool(value.to(parameter.dtype).isfinite().all()):
        wider = advised(config, "dtype", "float64")
        return (
            f"`model.init_from` must have parameters that `dtype`={config.dtype} represents, but `{name}` of {run!r} has others; "
            f"use {wider or 'another run'}"
        )
    low, high = config.model.limits.get(name, (-torch.inf, torch.inf))
    if bool((value < low).any() or (value > high).any()):
        return (
            f"`model.bounds.{name}` must contain the start value of `model.init_from`={run}, {float(value):g}, got "
            f"[{low:g}, {high:g}]; use wider bounds"
        )
    return None


def _reasons(misfits: Mapping[str, str]) -> str:
    """Return the first parameters that do not fit, those of the same reason together, and the number of others."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in [*misfits.items()][:MOST_NAMED]:
        by_reason.setdefault(reason, []).append(f"`{name}`")
    more = f", and {len(misfits) - MOST_NAMED:,} more" if len(misfits) > MOST_NAMED else ""
    return ", ".join(f"{' and '.join(names)} ({reason})" for reason, names in by_reason.items()) + more


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
