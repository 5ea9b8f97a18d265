"""Assembly of a run: the one module that reads the whole configuration and builds the parts from it."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runner.compute import precision, sizes, strategies
from runner.compute.bounds import Bounds
from runner.compute.devices import DeviceChoice
from runner.compute.graphs import CudaGraphs
from runner.compute.precision import Scaler
from runner.compute.processes import World
from runner.compute.rng import dropout_seeder
from runner.compute.strategies.base import Loss, Strategy
from runner.config import constraints, imports
from runner.config import schema as c
from runner.data import dataset as data
from runner.data.base import Batches
from runner.data.batches import EpochBatches
from runner.data.dataset import Dataset, ResidentRows
from runner.data.hiding import HidingRows
from runner.data.progress import unreported
from runner.data.stacked import StackedRows
from runner.errors import ConfigError
from runner.models import custom_loss, habits, losses, row_values
from runner.models.base import Model, start_model
from runner.optim import custom, schedules
from runner.optim.base import Optimizer
from runner.optim.build import build as build_optimizer
from runner.optim.optimum import find_optimum
from runner.optim.traits import Traits
from runner.runs import saved_state
from runner.runs.hashes import parameters_sha256
from runner.training import initial, own_metrics, promises
from runner.training.experiment import Experiment, RunInfo, Start, watched
from runner.training.given import NOTHING, Given
from runner.training.initial import Weights
from runner.training.metrics import NEEDS_SPREAD, Evaluation, has_no_spread
from runner.training.objective import BatchObjective
from runner.training.step import EagerStep, GraphedStep, Step


@dataclass(frozen=True)
class Inputs:
    """What each process builds on its own, before the processes work together."""

    dataset: Dataset
    model: Model
    """The model with its start values, on the CPU."""
    device: torch.device
    parameter_count: int
    """Number of fitted numbers."""
    tensors: Mapping[str, Tensor]
    """The model's parameters and buffers by name, without storage: their shapes and dtypes."""
    parameter_names: Sequence[str]
    optimizer: Traits
    """What is known of the optimizer before it is built."""
    new_model: Callable[[], Model]
    """Returns the model at step 0 again."""
    start: Start | None = None
    """What the model starts from, if that is another run."""


def resolve(config: c.Config, choice: DeviceChoice, size: int) -> c.Config:
    """Return the configuration of a run with `size` processes, with `auto` replaced by the chosen device and strategy.

    Raises `ConfigError` when the parts do not fit together.
    """
    problems = misfits(config, choice, size)
    if problems:
        raise ConfigError(problems)
    return _resolved(config, choice, size)


def misfits(config: c.Config, choice: DeviceChoice, size: int) -> list[str]:
    """Return the problems of a configuration with the chosen device and the number of processes."""
    resolved = _resolved(config, choice, size)
    found = constraints.problems(resolved) + constraints.world_size_problems(resolved, size)
    return found + (imports.problems(resolved.code) or _misfits_of_update(resolved))


def _misfits_of_update(config: c.Config) -> list[str]:
    """Return the problem of an optimizer of the user's own that `update` cannot have, for which it is imported."""
    if not isinstance(config.optimizer, c.CustomOptimizer) or any(config.optimizer.problems()):
        return []
    try:
        return custom.update_problems(config.optimizer, config.update)
    except ConfigError as error:
        return list(error.problems)


def _resolved(config: c.Config, choice: DeviceChoice, size: int) -> c.Config:
    strategy = config.strategy
    # These two need several processes or several devices.
    unsplit = size == 1 and (strategy.name == "ddp" or (strategy.name == "dp" and choice.count < 2))
    if strategy.name == "auto" or unsplit:
        strategy = replace(strategy, name="ddp" if size > 1 else "single")
    return replace(config, device=replace(config.device, name=choice.kind), strategy=strategy)


def prepare(
    resolved: c.Config,
    choice: DeviceChoice,
    size: int,
    *,
    report: Callable[[str], None] = unreported,
    given: Given = NOTHING,
    build_data: Callable[..., Dataset] = data.build,
    read_weights: Callable[[str], Weights] = initial.read,
) -> tuple[Inputs, dict[str, str]]:
    """Return data and model, not placed yet, and the properties that must be equal on all processes: name → text.

    `report` receives lines of progress where reading takes long. Rows and model may be `given`.

    Raises `DataError` and `ConfigError`.
    """
    given.require_fit(resolved)
    device, dtype = torch.device(choice.torch_device), precision.DTYPES[resolved.dtype]
    advised = partial(constraints.advised, resolved)
    dataset = build_data(
        resolved.data,
        resolved.seed,
        dtype,
        device,
        advised,
        categories=resolved.category_coding,
        untransformed="linear" in resolved.record.baselines,
        report=report,
        read=given.read(resolved.data),
    )
    rows = len(dataset.parts["train"])
    if size > rows:
        raise ConfigError(
            f"the number of processes must not be above the number of training rows, {rows}, got {size}; start fewer processes"
        )
    problems = _misfits_of_model(resolved, dataset)
    if problems:
        raise ConfigError(problems)
    new_model = partial(start_model, resolved, *dataset.preprocessing.model_columns, make=given.make(resolved.model))
    model = new_model()
    start = None
    if resolved.model.init_from is not None and not _has_state(resolved.resume):
        start = initial.start(model, resolved, dataset, read_weights(resolved.model.init_from))
    if resolved.optimizer.linear_only and not model.is_linear(dataset.parts["train"].all.numbers.cpu()):
        raise ConfigError(
            f"`optimizer` must not be {resolved.optimizer.name} for a model that is not linear in its parameters, got {resolved.model.name}; "
            "use optimizer=lm"
        )
    few = [values[: habits.PROBED_ROWS].cpu() for values in dataset.parts["train"].all.inputs]
    promises.check_model(resolved, model, few, size)
    optimizer = promises.check_optimizer(resolved, model)
    problems = [*_metrics_without_value(resolved, dataset), *_problems_of_rows(resolved, model, dataset)]
    if problems:
        raise ConfigError(problems)
    equal = _equal(resolved, choice, dataset, model) if size > 1 else {}
    # Before a strategy shards them.
    tensors = {name: torch.empty_like(value, device="meta") for name, value in model.state_dict().items()}
    count = sum(parameter.numel() for parameter in model.parameters())
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return Inputs(dataset, model, device, count, tensors, names, optimizer, new_model, start), equal


def _equal(config: c.Config, choice: DeviceChoice, dataset: Dataset, model: Model) -> dict[str, str]:
    """Return the properties that must be equal on all processes: name → text."""
    own = [target for target in config.code if target not in config.record.code]  # sinks are on rank 0 only
    return {
        "torch's version": str(torch.__version__),
        "`device`": choice.kind,
        f"the content of `{_data_key(config.data)}`": dataset.sha256,
        **{f"the file of {target.shown}": str(imports.record_of(target)["sha256"]) for target in own},
        "the start values of the model": parameters_sha256(dict(model.named_parameters())),
    }


def _data_key(data: c.DataConfig) -> str:
    """Return the key that gives the rows."""
    return data.code.key if data.code is not None else next(iter(data.paths), "data")


def _has_state(run: str | None) -> bool:
    """Whether a run to resume has a state of its own, so that it needs no start. On another host its directory may be missing."""
    return run is not None and (not os.path.isdir(run) or saved_state.exists(Path(run)))


def _misfits_of_model(config: c.Config, dataset: Dataset) -> list[str]:
    """Return the problems of a model that does not fit these columns, or that they make too large."""
    names, targets, cardinalities = dataset.preprocessing.model_columns
    if config.model.takes_codes and not cardinalities:
        return [
            "`model.embedding_size` must be null without columns of categories, of which the data have none; "
            "use model.embedding_size=null, or name some in `data.categorical`"
        ]
    return sizes.model_problems(config, len(names), len(targets), cardinalities)


def _metrics_without_value(config: c.Config, dataset: Dataset) -> list[str]:
    """Return the problems with metrics that decide something and that cannot have a value with this data."""
    part = watched(dataset)
    rows = dataset.parts[part]
    chosen = {
        "checkpoint.metric": config.checkpoint.metric,
        "train.early_stopping.metric": config.train.early_stopping.metric,
    }
    keys = [key for key, metric in chosen.items() if metric in NEEDS_SPREAD]
    if not keys or not has_no_spread(rows, dataset.scaling.undo):
        return []
    name = {"train": "training", "valid": "validation"}[part]
    equal = "whose targets are all equal" if len(dataset.target_names) == 1 else "in which a target has one value"
    what = f"one {name} row" if len(rows) == 1 else f"{len(rows):,} {name} rows {equal}"
    return [f"`{key}` must not be r2 with {what}, because it has no value there; use {key}=rmse" for key in keys]


def _problems_of_rows(config: c.Config, model: Model, dataset: Dataset) -> Iterator[str]:
    """Yield the problems of a loss and of metrics of the user's own, found out on a few rows and their first predictions."""
    if config.loss.code is None and not config.own_metrics:
        return
    train = dataset.parts["train"].all
    chosen = row_values.probed(len(train.target)).to(train.target.device)
    few = train.map(lambda values: values[chosen].cpu())
    # On the CPU not every dtype has every operation.
    dtype = torch.float64 if config.dtype == "float64" else torch.float32
    inputs = [values.to(dtype) if values.is_floating_point() else values for values in few.inputs]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        prediction = copy.deepcopy(model).to(dtype).eval()(*inputs)
    target = few.target.to(dtype)
    if isinstance(config.loss, c.CustomLoss):
        yield from custom_loss.problems(config.loss, prediction, target)
    in_units = (dataset.scaling.undo(values.double()) for values in (prediction, target))
    yield from own_metrics.problems(own_metrics.build(config), *in_units)


def build(resolved: c.Config, prepared: Inputs, world: World) -> Experiment:
    """Build the experiment of a run. Raises `ConfigError` before anything is written."""
    dataset, model, device = prepared.dataset, prepared.model, prepared.device
    rows = dataset.parts["train"]
    loss, autocast = losses.build(resolved.loss), precision.autocast(resolved.amp, device)
    strategy = strategies.build(resolved.strategy, device, world)
    # The optimum needs the whole model, before the strategy shards it.
    optimum = find_optimum(model.to(device), rows.all, resolved, [resolved.optimizer.l2_penalty or 0.0])
    placed = strategy.place(model, loss)
    forward: Any = torch.compile(placed) if resolved.train.compile else placed
    batches = EpochBatches(len(rows), resolved.train.batch_size, resolved.seed, device)
    scaler = precision.scaler(resolved.amp, device)
    info = run_info(resolved, prepared, strategy=strategy.name, batches=batches, size=world.size)
    optimizer = build_optimizer(
        resolved.optimizer, resolved.update, strategy.parameters(model), bounds(resolved.model, model)
    )
    minimized = objective(
        resolved,
        model,
        forward=forward,
        strategy=strategy,
        loss=loss,
        rows=rows,
        seeds=[resolved.seed],
        batches=batches,
        scaler=scaler,
        clip_norm=resolved.train.clip_norm,
    )
    schedule: Callable[[int], float | Tensor | None] = info.schedule
    if device.type != "cpu" and not resolved.schedule.constant and optimizer.rate_type is not None:
        schedule = schedules.DeviceRates([info.schedule], optimizer.rate_type, device)
    return Experiment(
        info=info,
        model=model,
        strategy=strategy,
        optimizer=optimizer,
        objective=minimized,
        evaluation=Evaluation(
            model,
            placed,
            loss,
            autocast,
            dataset.scaling.undo,
            dataset.parts,
            strategy,
            dataset.target_names,
            own_metrics.build(resolved),
        ),
        schedule=schedule,
        step=training_step(resolved, minimized, optimizer, schedule),
        batches=batches,
        scaler=scaler,
        optimum=optimum,
    )


def bounds(config: c.ModelConfig, model: Model) -> Bounds | None:
    """Return the bounds of a placed model's parameters, or None if it has none."""
    return Bounds.of(config.limits, dict(model.named_parameters())) if config.limits else None


def objective(
    config: c.Config,
    model: Model,
    *,
    forward: Callable[..., Tensor],
    strategy: Strategy,
    loss: Loss,
    rows: ResidentRows | StackedRows,
    seeds: Sequence[int],
    batches: Batches,
    scaler: Scaler,
    clip_norm: float | Tensor | None,
) -> BatchObjective:
    """Build the objective of one run, or of several vmapped runs with these seeds."""
    device, train = rows.all.target.device, config.train
    hiding = None if rows.all.categories is None else HidingRows(rows, seeds)

    def widened() -> dict[str, Tensor]:
        """Return the parameters in the widest type."""
        return {
            name: value.detach().to(precision.widest(device))
            for name, value in strategy.parameters_by_name(model).items()
        }

    return BatchObjective(
        model=forward,
        parameters=list(strategy.parameters(model).values()),
        loss=loss,
        rows=hiding or rows,
        batches=batches,
        strategy=strategy,
        autocast=precision.autocast(config.amp, device),
        scaler=scaler,
        accumulate=train.accumulate,
        clip_norm=clip_norm,
        check_gradients=train.check_gradients,
        draw=dropout_seeder(model.draws, config.seed, device),
        predict=lambda features: strategy.predict(model, widened(), features),
        jacobian=lambda features: model.jacobian(widened(), features),
        named=widened if config.model.records_parameters else dict,
        bounds=bounds(config.model, model),
        hide=hiding.begin if hiding else lambda epoch: None,
    )


def training_step(
    config: c.Config, minimized: BatchObjective, optimizer: Optimizer, schedule: Callable[[int], Any], lanes: int = 1
) -> Step:
    """Return the function that takes a training step of a run, or of a program of `lanes` runs.

    Raises `ConfigError` where `train.cuda_graph` is true and the steps are eager.
    """
    eager, required = EagerStep(minimized, optimizer, schedule), config.train.cuda_graph is True
    reason = constraints.eager_because(config, lanes)
    if reason is None:
        return GraphedStep(eager, CudaGraphs(minimized.rows.all.target.device), required=required)
    if required:
        raise ConfigError(constraints.graph_problem(reason))
    return eager


def run_info(
    config: c.Config, prepared: Inputs, *, strategy: str, batches: Batches, size: int = 1, lanes: int = 1
) -> RunInfo:
    """Return what is known about a run before it trains. Raises `ConfigError` for a schedule that does not fit its length."""
    steps = length(config, batches)
    schedule = schedules.build(config.schedule, config.optimizer.lr, steps)
    return RunInfo(
        config,
        prepared.dataset,
        strategy,
        steps,
        size,
        prepared.parameter_count,
        schedule,
        prepared.tensors,
        prepared.parameter_names,
        prepared.new_model,
        lanes,
        prepared.start,
        prepared.model.remarks,
    )


def length(resolved: c.Config, batches: Batches) -> int:
    """Return the number of steps of a run.

    Raises `ConfigError` for a warmup that is too long. With `train.epochs` this cannot be checked before the rows are known.
    """
    train, schedule = resolved.train, resolved.schedule
    steps = train.steps if train.steps is not None else (train.epochs or 0) * batches.per_epoch
    if steps < schedule.least_steps:
        raise ConfigError(
            f"`train.epochs` must make at least {schedule.least_steps} steps with `schedule`={schedule.name}, got {steps}; "
            "use more epochs, or a shorter warm-up"
        )
    return steps
