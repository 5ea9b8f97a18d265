"""The parts of one run, ready to train, and what comes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from runner.models.base import Model, start_model
from runner.optim.base import Optimizer
from runner.optim.optimum import Optimum, progress_columns, stability_warnings, summarize
from runner.optim.schedules import Schedule
from runner.optim.standard_errors import Fit, Inference, infer
from runner.runs.hashes import Hashes
from runner.runs.saver import Saver
from runner.runs.sinks.base import Writer
from runner.training.loop import Loop
from runner.training.metrics import LARGER_IS_BETTER, Best, Evaluation
from runner.training.objective import BatchObjective
from runner.training.run_state import Calendar, RunState


@dataclass(frozen=True)
class RunInfo:
    """What is known of a run before it trains."""

    config: c.Config
    dataset: Dataset
    strategy: str
    steps: int
    size: int
    """Processes."""
    parameter_count: int
    """Numbers that are fitted, over all processes."""
    schedule: Schedule
    """Learning rate of every step."""
    lanes: int = 1
    """Runs that are trained side by side with this one, itself included."""

    @property
    def watched(self) -> str:
        """The part that decisions are taken on."""
        return "valid" if "valid" in self.dataset.parts else "train"

    @property
    def metric_names(self) -> list[str]:
        """What is measured at the end."""
        return [f"{part}/{name}" for part in self.dataset.parts for name in LARGER_IS_BETTER]

    def calendar(self) -> Calendar:
        """What is due at which step."""
        record, evaluate_every = self.config.record, self.config.train.eval_every_steps
        checkpoint_every = self.config.checkpoint.every_steps
        return Calendar(self.steps, record.every_steps, evaluate_every, checkpoint_every, record.hash_every_steps)

    def run_state(self, sinks: Sequence[Writer], saver: Saver, hashes: Hashes | None) -> RunState:
        """The run as the loop knows it."""
        early = self.config.train.early_stopping
        return RunState(
            lr=self.schedule,
            early=Best(early.metric, early.min_delta),
            patience=early.patience,
            best=Best(self.config.checkpoint.metric),
            sinks=sinks,
            saver=saver,
            hashes=hashes,
        )


def warnings(facts: Sequence[RunInfo], optimum: Optimum | None) -> list[list[str]]:
    """For each run what is allowed and probably not meant: of its data, and of its learning rate where the optimum is known."""
    found = [list(run.dataset.warnings) for run in facts]
    if optimum is not None:
        for texts, sentence in zip(found, stability_warnings([run.config for run in facts], optimum), strict=True):
            if sentence is not None:
                texts.append(sentence)
    return found


@dataclass(frozen=True)
class Outcome:
    """The end of a training: metrics by part, raw parameters and those to report, by name; `evaluation` is that of the whole model.

    `optimum` is what the summary says of it, and `inference` what can be said of the parameters; None where nothing is known.
    """

    metrics: dict[str, float]
    parameters: dict[str, Tensor]
    fitted: Mapping[str, Tensor]
    evaluation: Callable[[], Evaluation]
    optimum: dict[str, float | None] | None
    inference: Inference | None


@dataclass(frozen=True)
class Experiment:
    """The parts of one run, on their device, ready to train from step 0: the program of one lane."""

    facts: RunInfo
    model: Model
    strategy: Strategy
    optimizer: Optimizer
    objective: BatchObjective
    evaluation: Evaluation
    schedule: Callable[[int], float | None]
    batches: EpochBatches
    scaler: Scaler
    optimum: Optimum | None
    lanes = 1

    @property
    def warnings(self) -> list[list[str]]:
        """For each lane what the user should hear of before the first step."""
        return warnings([self.facts], self.optimum)

    def capture(self) -> dict[str, Any]:
        """All that the next step depends on; the tensors are the live ones."""
        return {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a captured state."""
        self.strategy.load(self.model, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

    def lane_state(self, state: Mapping[str, Any], lane: int) -> dict[str, Any]:
        return dict(state)

    def narrowed(self, lanes: Sequence[int], state: Mapping[str, Any]) -> Experiment:
        self.restore(state)
        return self

    def total(self, shares: Tensor) -> Tensor:
        return self.strategy.total(shares)

    def finite(self) -> list[bool]:
        return [not self.strategy.any(not _finite(self.model.state_dict()))]

    def parameters(self) -> list[dict[str, Tensor]]:
        return [self.strategy.gather_parameters(dict(self.model.named_parameters()))]

    def outcomes(self, lanes: Sequence[int]) -> list[Outcome]:
        """What was learnt, gathered from all processes: every one of them must ask."""
        dataset = self.facts.dataset
        metrics = {
            f"{part}/{name}": value
            for part in dataset.parts
            for name, value in self.evaluation.metrics(part)[0].items()
        }
        (parameters,) = self.parameters()
        model = self.model
        if self.strategy.sharded:
            model = start_model(self.facts.config, dataset.feature_names).to(next(iter(parameters.values())).device)
            model.load_state_dict(parameters)
        resolved, optimum = self.facts.config, self.optimum
        train, fitted = dataset.parts["train"], model.fitted(dataset.scaling)
        stacked = {name: value.detach().unsqueeze(0) for name, value in parameters.items()}
        (inference,) = infer(model, stacked, (train.features, train.target), [Fit(resolved, fitted, dataset.scaling)])
        return [
            Outcome(
                metrics,
                parameters,
                fitted,
                lambda: replace(self.evaluation, model=model, forward=model),
                None if optimum is None else summarize(optimum, [resolved], _row(parameters))[0],
                inference,
            )
        ]

    def details(self) -> list[dict[str, float]]:
        """What a row tells besides losses: the parameters of a formula, the way to the optimum, the steps that a scaler skipped."""
        row: dict[str, float] = {}
        if self.facts.config.model.records_parameters:
            row = {
                f"param/{name}": float(value) for name, value in self.model.fitted(self.facts.dataset.scaling).items()
            }
        if self.optimum is not None:
            row.update(progress_columns(self.optimum, _row(self.parameters()[0]))[0])
        if self.facts.config.amp == "float16":
            row["skipped_steps"] = self.scaler.skipped_steps
        return [row]

    def join(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on from the state of every lane."""
        self.restore(states[0])

    def loop(self, members: Sequence[RunState], stop: Stop) -> Loop:
        """The loop over these parts."""
        return Loop(
            program=self,
            members=members,
            batches=self.batches,
            calendar=self.facts.calendar(),
            watched=self.facts.watched,
            stop=stop,
        )


def _row(parameters: Mapping[str, Tensor]) -> Tensor:
    """All numbers [1, n] of the parameters."""
    return torch.cat([value.detach().reshape(-1) for value in parameters.values()]).unsqueeze(0)


def _finite(tensors: Mapping[str, Tensor]) -> bool:
    parts = [local(tensor.detach()) for tensor in tensors.values()]
    floating = [part.abs().max() for part in parts if part.is_floating_point() and part.numel()]
    return bool(torch.stack(floating).isfinite().all()) if floating else True
