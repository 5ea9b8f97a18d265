"""The parts of one run, ready to train, and its outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from runner.compute.dtensor import local
from runner.compute.precision import Scaler
from runner.compute.processes import Stop
from runner.compute.strategies.base import Strategy
from runner.config import schema as c
from runner.data.batches import EpochBatches
from runner.data.dataset import Dataset
from runner.models.base import Model
from runner.optim.base import Optimizer
from runner.optim.optimum import Optimum, progress_columns, stability_warnings, summarize
from runner.optim.schedules import Schedule
from runner.optim.standard_errors import Fit, Inference, infer
from runner.runs.hashes import Hashes
from runner.runs.sinks.base import Writer
from runner.training.loop import Loop
from runner.training.metrics import Best, Evaluation, metric_names
from runner.training.objective import BatchObjective
from runner.training.run_state import Calendar, RunState, Saver
from runner.training.step import Step

LONG_WORK = 2**31
"""Multiplications of a factorisation that takes about a second on one core."""


@dataclass(frozen=True)
class Start:
    """What a model has started from: `parameters_sha256` of the other run, and a sentence for the user."""

    sha256: str
    sentence: str


@dataclass(frozen=True)
class RunInfo:
    """Everything known about a run before it trains."""

    config: c.Config
    dataset: Dataset
    strategy: str
    steps: int
    size: int
    """Number of processes."""
    parameter_count: int
    """Number of fitted numbers, over all processes."""
    schedule: Schedule
    """Step → learning rate."""
    tensors: Mapping[str, Tensor]
    """The whole model's parameters and buffers by name, without storage: their shapes and dtypes."""
    parameter_names: Sequence[str]
    new_model: Callable[[], Model]
    """Returns the model at step 0 again, on the CPU."""
    lanes: int = 1
    """Number of runs in the same program, this one included."""
    start: Start | None = None
    """What the model starts from, if that is another run."""
    remarks: Sequence[str] = ()
    """Sentences on what the user should know of the model."""

    @property
    def watched(self) -> str:
        """The part of the data that decisions are based on."""
        return watched(self.dataset)

    @property
    def metric_names(self) -> list[str]:
        """Names of the metrics of the summary, such as "valid/rmse"."""
        own = [target.name for target in self.config.own_metrics]
        names = metric_names(self.dataset.target_names, own)
        return [f"{part}/{name}" for part in self.dataset.evaluated for name in names]

    @property
    def batch_size(self) -> int:
        """Rows of one update, all processes together."""
        return batch_size(self.config, self.dataset)

    def calendar(self) -> Calendar:
        """Return the steps at which rows, evaluations, checkpoints and hashes are due."""
        record, evaluate_every = self.config.record, self.config.train.eval_every_steps
        checkpoint_every = self.config.checkpoint.every_steps
        return Calendar(self.steps, record.every_steps, evaluate_every, checkpoint_every, record.hash_every_steps)

    def run_state(self, sinks: Sequence[Writer], saver: Saver, hashes: Hashes | None) -> RunState:
        """Return the state of this run, before its first step."""
        early = self.config.train.early_stopping
        return RunState(
            lr=self.schedule,
            early=Best(early.metric, early.min_delta),
            patience=early.patience,
            best=Best(self.config.checkpoint.metric or early.metric),
            sinks=sinks,
            saver=saver,
            hashes=hashes,
            reports_best=self.config.train.reports_best,
            may_standardize=self.config.may_standardize,
        )


def watched(dataset: Dataset) -> str:
    """Return the part of the data that decisions are based on: "valid" where there is one, else "train"."""
    return "valid" if "valid" in dataset.parts else "train"


def batch_size(config: c.Config, dataset: Dataset) -> int:
    """Return the rows of one update, all processes together: `train.batch_size`, or all training rows."""
    size = config.train.batch_size
    return len(dataset.parts["train"]) if size is None else size


def warnings(infos: Sequence[RunInfo], objective: BatchObjective, optimum: Optimum | None) -> list[list[str]]:
    """Return for each run the warnings about its data and batches, and about its learning rate where the optimum is known."""
    texts = [[*info.dataset.warnings, *info.remarks, *_doubts(info), *objective.warnings] for info in infos]
    if optimum is not None:
        for lines, sentence in zip(texts, stability_warnings([info.config for info in infos], optimum), strict=True):
            if sentence is not None:
                lines.append(sentence)
    return texts


def _doubts(info: RunInfo) -> Iterator[str]:
    dataset = info.dataset
    return info.config.model.doubts(dataset.feature_names, dataset.other_columns, info.config.data.selects_features)


@dataclass(frozen=True)
class Outcome:
    """The result of a training that reached its end."""

    metrics: dict[str, float]
    """Values by name, such as "valid/rmse", of every part and metric."""
    parameters: dict[str, Tensor]
    """Raw parameters by name, gathered from all processes."""
    fitted: Mapping[str, Tensor]
    """The parameters to report, by name, in the units of the file where the model can undo the scaling."""
    terms: Sequence[str]
    """Names of the terms whose coefficients they are, as `Model.terms` returns them."""
    evaluation: Callable[[], Evaluation]
    """Builds the evaluation of the whole model on this process."""
    optimum: dict[str, float | None] | None
    """The summary's figures about the optimum; None where it is unknown."""
    inference: Inference | None
    """Standard errors and convergence of the fit; None where neither is known."""


@dataclass(frozen=True)
class Experiment:
    """The parts of one run, on their device, ready to train from step 0. Implements `Program` with one lane."""

    info: RunInfo
    model: Model
    strategy: Strategy
    optimizer: Optimizer
    objective: BatchObjective
    evaluation: Evaluation
    schedule: Callable[[int], float | Tensor | None]
    step: Step
    batches: EpochBatches
    scaler: Scaler
    optimum: Optimum | None
    lanes = 1

    @property
    def warnings(self) -> list[list[str]]:
        """Warnings to report before the first step; a list with the list of the one lane."""
        return warnings([self.info], self.objective, self.optimum)

    def capture(self) -> dict[str, Any]:
        """Return the live state of model, optimizer and loss scaler."""
        return {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Load model, optimizer and loss scaler from a captured state or a checkpoint."""
        self.strategy.load(self.model, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step.reset()

    def lane_state(self, state: Mapping[str, Any], lane: int) -> dict[str, Any]:
        """Return the whole state: there is one lane."""
        return dict(state)

    def select_lanes(self, lanes: Sequence[int], state: Mapping[str, Any]) -> Experiment:
        """Return this experiment, restored: there is one lane to select."""
        self.restore(state)
        return self

    def total(self, shares: Tensor) -> Tensor:
        """Return the losses [steps, 1] summed over all processes by the strategy."""
        return self.strategy.total(shares)

    def finite_lanes(self) -> list[bool]:
        """Return whether the model's state is finite on every process."""
        return [not self.strategy.any(not _finite(self.model.state_dict()))]

    def state(self) -> dict[str, Tensor]:
        """Return the parameters, gathered by the strategy, and buffers of the model by name."""
        return {**self.model.state_dict(), **self.parameters()[0]}

    def parameters(self) -> list[dict[str, Tensor]]:
        """Return the parameters gathered by the strategy."""
        # After an evaluation, fsdp has whole parameters in buffers that it frees later; the state has its shards.
        state = self.model.state_dict()
        return [self.strategy.gather_parameters({name: state[name] for name, _ in self.model.named_parameters()})]

    def outcomes(self, lanes: Sequence[int]) -> list[Outcome]:
        """Return the outcome of the run, from the parameters gathered by the strategy."""
        dataset = self.info.dataset
        metrics = {
            f"{part}/{name}": value
            for part in dataset.evaluated
            for name, value in self.evaluation.metrics(part)[0].items()
        }
        (parameters,) = self.parameters()
        model = self.model
        if self.strategy.sharded:
            model = self.info.new_model().to(next(iter(parameters.values())).device)
            model.load_state_dict(parameters)
        resolved, optimum = self.info.config, self.optimum
        train, fitted = dataset.parts["train"], model.fitted(dataset.scaling)
        stacked = {name: value.detach().unsqueeze(0) for name, value in parameters.items()}
        terms = model.terms(dataset.feature_names, dataset.target_names)
        fit = Fit(resolved, fitted, dataset.scaling, dataset.unit_deviation, terms)
        (inference,) = infer(model, stacked, train.all, [fit])
        return [
            Outcome(
                metrics,
                parameters,
                fitted,
                terms,
                lambda: replace(self.evaluation, model=model, forward=model),
                None if optimum is None else summarize(optimum, [resolved], _row(parameters))[0],
                inference,
            )
        ]

    def load_models(self, states: Mapping[int, Mapping[str, Any]]) -> None:
        """Load the model of the only lane, if a state is given."""
        for state in states.values():
            self.strategy.load(self.model, state["model"])

    def extra_columns(self) -> list[dict[str, float]]:
        """Return the parameters of a formula, the distance to a known optimum, and the steps that the loss scaler skipped."""
        columns: dict[str, float] = {}
        if self.info.config.model.records_parameters:
            columns = {
                f"param/{name}": float(value) for name, value in self.model.fitted(self.info.dataset.scaling).items()
            }
        if self.optimum is not None:
            columns.update(progress_columns(self.optimum, _row(self.parameters()[0]))[0])
        if self.info.config.amp == "float16":
            columns["skipped_steps"] = self.scaler.skipped_steps
        return [columns]

    def join(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Restore the state of the only lane."""
        self.restore(states[0])

    def loop(self, runs: Sequence[RunState], stop: Stop, report: Callable[[str], None] | None = None) -> Loop:
        """Return the training loop of this experiment. `runs` has one run; `report` is for the progress of long steps."""
        return Loop(
            program=self,
            runs=runs,
            batches=self.batches,
            calendar=self.info.calendar(),
            watched=self.info.watched,
            stop=stop,
            report=report if self._has_long_steps else None,
        )

    @property
    def _has_long_steps(self) -> bool:
        """Whether a step may take seconds in which it does not look at signals, as one factorisation of a large matrix does."""
        info, rows = self.info, self.info.batch_size
        on_cpu = info.size == 1 and next(self.model.parameters()).device.type == "cpu"
        multiplications = rows * info.parameter_count * min(rows, info.parameter_count)
        return on_cpu and info.config.optimizer.least_squares and multiplications > LONG_WORK


def _row(parameters: Mapping[str, Tensor]) -> Tensor:
    """Return all numbers [1, n] of the parameters."""
    return torch.cat([value.detach().reshape(-1) for value in parameters.values()]).unsqueeze(0)


def _finite(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the parts of these tensors on this process are finite."""
    parts = [local(tensor.detach()) for tensor in tensors.values()]
    floating = [part.abs().max() for part in parts if part.is_floating_point() and part.numel()]
    return bool(torch.stack(floating).isfinite().all()) if floating else True
