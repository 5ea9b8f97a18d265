"""Assembly: the one module that sees the whole configuration and builds the parts of a run from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from runner import combinations, config, data, losses, models, objective, optimizers, precision, schedules, strategies
from runner.data import Dataset
from runner.data.batches import Batches
from runner.devices import Choice
from runner.errors import ConfigError
from runner.evaluation import Best, Evaluation
from runner.loop import Calendar, Loop
from runner.models import Model
from runner.objective import Objective
from runner.optimizers import Optimizer
from runner.precision import Scaler
from runner.seeding import stream
from runner.strategies import Strategy


@dataclass(frozen=True)
class Experiment:
    """The parts of one run, on their device, ready to train from step 0."""

    config: config.Config
    dataset: Dataset
    model: Model
    strategy: Strategy
    optimizer: Optimizer
    objective: Objective
    evaluation: Evaluation
    batches: Batches
    scaler: Scaler
    steps: int

    @property
    def watched(self) -> str:
        """The part that decisions are taken on."""
        return "valid" if "valid" in self.dataset.parts else "train"

    def capture(self) -> dict[str, Any]:
        """All that the next step depends on; the tensors are the live ones."""
        return {
            "model": self.strategy.full_state(self.model),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a captured state."""
        self.strategy.load_full_state(self.model, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

    def parameters(self) -> dict[str, Tensor]:
        """Name → parameter, raw."""
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}

    def fitted(self) -> dict[str, Tensor]:
        """Name → parameter as reported: in the units of the file where the model can say so."""
        return dict(self.model.fitted(self.dataset.scaling))

    def details(self) -> dict[str, float]:
        """What a row tells besides losses: the parameters of a formula, and the steps that a scaler skipped."""
        told: dict[str, float] = {}
        if isinstance(self.config.model, config.Formula):
            told = {f"param/{name}": float(value) for name, value in self.model.fitted(self.dataset.scaling).items()}
        return told if self.config.amp != "float16" else {**told, "skipped_steps": self.scaler.skipped_steps}

    def calendar(self) -> Calendar:
        """What is due at which step."""
        train = self.config.train
        return Calendar(
            self.steps, self.config.record.every_steps, train.eval_every_steps, self.config.checkpoint.every_steps
        )

    def loop(self, sinks: Sequence[Any], save: Callable[[int, dict[str, Any], bool], None], stop: Any) -> Loop:
        """The loop over these parts."""
        early = self.config.train.early_stopping
        return Loop(
            optimizer=self.optimizer,
            objective=self.objective,
            schedule=schedules.build(self.config.schedule, self.config.optimizer.lr, self.steps),
            batches=self.batches,
            calendar=self.calendar(),
            state=self,
            evaluation=self.evaluation,
            watched=self.watched,
            early=Best(early.metric, early.min_delta),
            patience=early.patience,
            best=Best(self.config.checkpoint.metric),
            sinks=sinks,
            save=save,
            details=self.details,
            stop=stop,
        )


def resolve(asked: config.Config, choice: Choice) -> config.Config:
    """The configuration with `auto` replaced by what was chosen. Raises `ConfigError` when the parts no longer fit."""
    resolved = dataclasses.replace(
        asked,
        device=dataclasses.replace(asked.device, name=choice.kind),
        strategy=dataclasses.replace(asked.strategy, name="single"),
    )
    problems = combinations.problems(resolved)
    if problems:
        raise ConfigError(problems)
    return resolved


def build(resolved: config.Config, choice: Choice) -> Experiment:
    """Data, model and all that trains it. Raises `DataError` and `ConfigError` before anything is written."""
    device, dtype = torch.device(choice.torch_device), precision.DTYPES[resolved.dtype]
    train = resolved.train
    dataset = data.build(resolved.data, resolved.seed, dtype, device)
    rows = dataset.parts["train"]
    model = models.build(resolved.model, dataset.feature_names, stream(resolved.seed, "init")).to(dtype)
    strategy = strategies.build(resolved.strategy, device)
    placed = strategy.place(model)
    forward: Any = torch.compile(placed) if train.compile else placed
    batches = Batches(len(rows), train.batch_size, resolved.seed, device)
    steps = train.steps if train.steps is not None else (train.epochs or 0) * batches.per_epoch
    _refuse_short(resolved, steps)
    loss, autocast = losses.build(resolved.loss), precision.autocast(resolved.amp, device)
    parameters = dict(model.named_parameters())
    scaler = precision.scaler(resolved.amp, device)
    return Experiment(
        config=resolved,
        dataset=dataset,
        model=model,
        strategy=strategy,
        optimizer=optimizers.build(resolved.optimizer, resolved.update, parameters),
        objective=Objective(
            model=forward,
            parameters=list(parameters.values()),
            loss=loss,
            rows=rows,
            batches=batches,
            autocast=autocast,
            scaler=scaler,
            accumulate=train.accumulate,
            clip_norm=train.clip_norm,
            check_gradients=train.check_gradients,
            draw=objective.drawing(model.draws, resolved.seed, device),
        ),
        evaluation=Evaluation(model, placed, loss, autocast, dataset.scaling.undo, dataset.parts, strategy),
        batches=batches,
        scaler=scaler,
        steps=steps,
    )


def _refuse_short(resolved: config.Config, steps: int) -> None:
    """What `train.epochs` hides from the combinations: only now the number of steps is known."""
    schedule = resolved.schedule
    if isinstance(schedule, config.WarmupCosine) and schedule.warmup_steps >= steps:
        raise ConfigError(
            f"`schedule.warmup_steps` must be below the {steps} steps of this run, but is {schedule.warmup_steps}; make it smaller"
        )
