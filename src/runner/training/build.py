"""Assembly: the one module that sees the whole configuration and builds the parts of a run from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from runner.compute import precision, strategies
from runner.compute.devices import DeviceChoice
from runner.compute.precision import Scaler
from runner.compute.processes import World
from runner.compute.rng import drawing
from runner.compute.strategies.base import Loss, Strategy
from runner.config import constraints
from runner.config import schema as c
from runner.data import dataset as data
from runner.data.base import Batches, Rows
from runner.data.batches import EpochBatches
from runner.data.dataset import Dataset
from runner.errors import ConfigError
from runner.models import losses
from runner.models.base import Model, start_model
from runner.optim import schedules
from runner.optim.build import build as build_optimizer
from runner.optim.optimum import find
from runner.runs.hashes import parameters_sha256
from runner.training.experiment import Experiment, RunInfo
from runner.training.metrics import Evaluation
from runner.training.objective import BatchObjective


@dataclass(frozen=True)
class Inputs:
    """What every process makes for itself before they work together."""

    dataset: Dataset
    model: Model
    device: torch.device
    parameter_count: int


def resolve(asked: c.Config, choice: DeviceChoice, size: int) -> c.Config:
    """The configuration with `auto` replaced by what was chosen, for `size` processes.

    Raises `ConfigError` when the parts no longer fit.
    """
    problems = misfits(asked, choice, size)
    if problems:
        raise ConfigError(problems)
    return _chosen(asked, choice, size)


def misfits(asked: c.Config, choice: DeviceChoice, size: int) -> list[str]:
    """What does not fit the device or the number of processes."""
    resolved = _chosen(asked, choice, size)
    return constraints.problems(resolved) + constraints.world_size_problems(resolved, size)


def _chosen(asked: c.Config, choice: DeviceChoice, size: int) -> c.Config:
    alone = size == 1 and (asked.strategy.name == "ddp" or (asked.strategy.name == "dp" and choice.count < 2))
    strategy = asked.strategy
    if strategy.name == "auto" or alone:
        strategy = replace(strategy, name="ddp" if size > 1 else "single")
    return replace(asked, device=replace(asked.device, name=choice.kind), strategy=strategy)


def prepare(
    resolved: c.Config, choice: DeviceChoice, size: int, build_data: Callable[..., Dataset] = data.build
) -> tuple[Inputs, dict[str, str]]:
    """Data and model, not placed yet, and what must be equal on all processes: name → text.

    Raises `DataError` and `ConfigError`.
    """
    device, dtype = torch.device(choice.torch_device), precision.DTYPES[resolved.dtype]
    dataset = build_data(resolved.data, resolved.seed, dtype, device)
    rows = len(dataset.parts["train"])
    if size > rows:
        raise ConfigError(
            f"the {size} processes must not be more than the training rows, of which there are {rows}; start fewer processes"
        )
    model = start_model(resolved, dataset.feature_names)
    if resolved.optimizer.linear_only and not model.is_linear(dataset.parts["train"].features.cpu()):
        raise ConfigError(
            f"`optimizer` must not be {resolved.optimizer.name} for a model that is not linear in its parameters, as this {resolved.model.name} is not; "
            "use optimizer=lm"
        )
    equal = {
        "torch's version": str(torch.__version__),
        "`device`": choice.kind,
        "the content of `data.path`": dataset.sha256,
        "the start values of the model": parameters_sha256(dict(model.named_parameters())) if size > 1 else "",
    }
    return Inputs(dataset, model, device, sum(parameter.numel() for parameter in model.parameters())), equal


def build(resolved: c.Config, prepared: Inputs, world: World) -> Experiment:
    """All that trains the model. Raises `ConfigError` before anything is written."""
    dataset, model, device = prepared.dataset, prepared.model, prepared.device
    rows = dataset.parts["train"]
    loss, autocast = losses.build(resolved.loss), precision.autocast(resolved.amp, device)
    strategy = strategies.build(resolved.strategy, device, world)
    # Before the strategy cuts the model.
    optimum = find(model.to(device), rows.features, rows.target, resolved, [resolved.optimizer.l2_penalty or 0.0])
    placed = strategy.place(model, loss)
    forward: Any = torch.compile(placed) if resolved.train.compile else placed
    batches = EpochBatches(len(rows), resolved.train.batch_size, resolved.seed, device)
    scaler = precision.scaler(resolved.amp, device)
    facts = run_info(resolved, prepared, strategy=strategy.name, batches=batches, size=world.size)
    return Experiment(
        facts=facts,
        model=model,
        strategy=strategy,
        optimizer=build_optimizer(resolved.optimizer, resolved.update, strategy.parameters(model)),
        objective=objective(
            resolved,
            model,
            forward=forward,
            strategy=strategy,
            loss=loss,
            rows=rows,
            batches=batches,
            scaler=scaler,
            clip_norm=resolved.train.clip_norm,
        ),
        evaluation=Evaluation(model, placed, loss, autocast, dataset.scaling.undo, dataset.parts, strategy),
        schedule=facts.schedule,
        batches=batches,
        scaler=scaler,
        optimum=optimum,
    )


def objective(
    config: c.Config,
    model: Model,
    *,
    forward: Callable[[Tensor], Tensor],
    strategy: Strategy,
    loss: Loss,
    rows: Rows,
    batches: Batches,
    scaler: Scaler,
    clip_norm: float | Tensor | None,
) -> BatchObjective:
    """What the optimizer asks, of one run or of several that are vmapped."""
    device, train = rows.target.device, config.train

    def widened() -> dict[str, Tensor]:
        return {name: value.detach().to(precision.widest(device)) for name, value in strategy.named(model).items()}

    return BatchObjective(
        model=forward,
        parameters=list(strategy.parameters(model).values()),
        loss=loss,
        rows=rows,
        batches=batches,
        strategy=strategy,
        autocast=precision.autocast(config.amp, device),
        scaler=scaler,
        accumulate=train.accumulate,
        clip_norm=clip_norm,
        check_gradients=train.check_gradients,
        draw=drawing(config.model.draws, config.seed, device),
        alone=lambda features: strategy.predict(model, widened(), features),
        jacobian=lambda features: model.jacobian(widened(), features),
    )


def run_info(
    config: c.Config, prepared: Inputs, *, strategy: str, batches: Batches, size: int = 1, lanes: int = 1
) -> RunInfo:
    """What is known of a run before it trains. Raises `ConfigError` for a schedule that does not fit its length."""
    steps = length(config, batches)
    schedule = schedules.build(config.schedule, config.optimizer.lr, steps)
    return RunInfo(config, prepared.dataset, strategy, steps, size, prepared.parameter_count, schedule, lanes)


def length(resolved: c.Config, batches: Batches) -> int:
    """Steps of the run. Raises `ConfigError` for what `train.epochs` hides from the combinations."""
    train, schedule = resolved.train, resolved.schedule
    steps = train.steps if train.steps is not None else (train.epochs or 0) * batches.per_epoch
    if steps < schedule.least_steps:
        raise ConfigError(
            f"`schedule.warmup_steps` must be below the {steps} steps of this run, but is {schedule.least_steps - 1}; make it smaller"
        )
    return steps
