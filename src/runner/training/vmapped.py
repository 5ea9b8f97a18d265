"""Vmapped training: runs that differ in numbers only become one program, and vmap computes their steps at once.

A *lane* is the axis along which the runs are stacked under vmap: index i of a tensor [lanes, …] belongs to run i. A lane's
state is captured, saved and resumed in the form of a single run's state, so that a run leaves the same files either way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from runner.compute import precision
from runner.compute.precision import Unscaled, scalar_type
from runner.compute.processes import Stop
from runner.compute.strategies.base import Single
from runner.compute.strategies.vmapped import STACK, Vmapped
from runner.config import schema as c
from runner.data.stacked import StackedBatches, StackedRows, stack_datasets
from runner.models import losses
from runner.optim.base import Optimizer
from runner.optim.build import build_lanes
from runner.optim.optimum import Optimum, find_optimum, progress_columns, summarize
from runner.optim.qr import PIECE_ROWS, select_lanes
from runner.optim.schedules import DeviceRates
from runner.optim.standard_errors import Fit, Inference, infer
from runner.training import own_metrics
from runner.training.build import Inputs, bounds, objective, run_info, training_step
from runner.training.experiment import Outcome, RunInfo, batch_size, warnings
from runner.training.loop import Loop
from runner.training.metrics import Evaluation
from runner.training.objective import BatchObjective
from runner.training.run_state import RunState
from runner.training.step import Step


def not_vmappable_because(config: c.Config, prepared: Inputs) -> str | None:
    """Return why a run cannot be a lane, as the end of a sentence; None for a run that can."""
    reasons = {
        "amp changes what vmap computes": config.amp != "off",
        "train.compile makes a program of its own": config.train.compile,
        "strategy.reduction=exact promises bits": config.strategy.reduction == "exact",
        "checkpoint.async_save works for one run at a time": config.checkpoint.async_save,
    }
    of_config = next((reason for reason, holds in reasons.items() if holds), None)
    return prepared.optimizer.alone_because or of_config or prepared.model.alone_because


def shapes(prepared: Inputs) -> tuple[Any, ...]:
    """Return the sizes and names of data and parameters, which must be equal for all lanes of a program."""
    parts = {
        name: tuple(None if values is None else tuple(values.shape) for values in rows.all)
        for name, rows in prepared.dataset.parts.items()
    }
    parameters = [(name, tuple(p.shape)) for name, p in prepared.model.named_parameters()]
    return (tuple(parts.items()), tuple(parameters), prepared.dataset.feature_names, prepared.dataset.target_names)


def bytes_per_lane(config: c.Config, prepared: Inputs) -> int:
    """Estimate the memory of a lane in bytes: parameters, gradients, optimizer state, copies and best state, data, and activations."""
    rows = prepared.dataset.parts["train"]
    columns, size = rows.all.numbers.shape[1], rows.all.numbers.element_size()
    data = sum(values.numel() for part in prepared.dataset.parts.values() for values in part.all if values is not None)
    tables = [layer for layer in prepared.model.modules() if isinstance(layer, torch.nn.Embedding)]
    units = sum(p.shape[0] for p in prepared.model.parameters() if p.dim() == 2)
    units += sum(table.embedding_dim - table.num_embeddings for table in tables)
    batch = min(batch_size(config, prepared.dataset), len(rows))
    evaluated = max(len(part) for part in prepared.dataset.parts.values())
    activations = 4 * max(batch, evaluated) * (units + columns + 2)
    matrices = 0
    if config.optimizer.least_squares:
        matrices = 3 * 8 * min(rows.all.residuals, PIECE_ROWS) * (prepared.parameter_count + 2)
    return matrices + size * (15 * prepared.parameter_count + 2 * data + activations)


def vmap_error(program: VmappedExperiment) -> str | None:
    """Return why vmap refuses the model, as the end of a sentence; None if it computes the first gradients."""
    try:
        program.objective.at(1).gradient()
    except torch.OutOfMemoryError:
        return "the gradients of all of them do not fit into the memory of the device; a smaller sweep.memory_gib vmaps fewer"
    except RuntimeError as error:
        own = " or loss" if program.infos[0].config.loss.code is not None else ""
        return f"vmap refuses its model{own} ({' '.join(str(error).split())[:200]})"
    finally:
        program.strategy.stack.grad = None
    return None


class SumOverLanes(Unscaled):
    """Sums the lanes' losses before the backward pass: the gradient of the sum by a lane's parameters is that lane's own."""

    def scale(self, loss: Tensor) -> Tensor:
        """Return the sum [] of the losses [lanes]."""
        return loss.sum()


@dataclass
class VmappedExperiment:
    """The parts of several runs, ready to train from step 0. Implements `Program` with one lane for each run."""

    infos: Sequence[RunInfo]
    template: Any
    """The model that vmap calls with the parameters of each lane."""
    strategy: Vmapped
    optimizer: Optimizer
    objective: BatchObjective
    evaluation: Evaluation
    schedule: Callable[[int], Tensor | None]
    step: Step
    batches: StackedBatches
    optimum: Optimum | None

    @property
    def warnings(self) -> list[list[str]]:
        """Warnings to report before the first step, one list per lane."""
        return warnings(self.infos, self.objective, self.optimum)

    @property
    def lanes(self) -> int:
        """Number of runs in this program."""
        return len(self.infos)

    def capture(self) -> dict[str, Any]:
        """Return views of the stacked parameters and optimizer slots, by parameter name, each [lanes, …]."""
        slots = self.optimizer.state_dict()[STACK]
        by_slot = {slot: self.strategy.split(value) if value.dim() else value for slot, value in slots.items()}
        parameters = self.strategy.split(self.strategy.stack.detach())
        return {
            "model": parameters,
            "optimizer": {
                name: {slot: value if isinstance(value, Tensor) else value[name] for slot, value in by_slot.items()}
                for name in parameters
            },
            "scaler": {},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Join the parameters and optimizer slots of a captured state into matrices [lanes, numbers], and load them."""
        with torch.no_grad():
            self.strategy.stack.copy_(self.strategy.join(state["model"]))
        slots: dict[str, dict[str, Tensor]] = {}
        for name, values in state["optimizer"].items():
            for slot, value in values.items():
                slots.setdefault(slot, {})[name] = value
        rows = {
            slot: self.strategy.join(values) if slot != "step" else next(iter(values.values()))
            for slot, values in slots.items()
        }
        self.optimizer.load_state_dict({STACK: rows})
        self.step.reset()

    def lane_state(self, state: Mapping[str, Any], lane: int) -> dict[str, Any]:
        """Return copies of one lane's slice of every tensor; all lanes share the optimizer's step."""
        return {
            "model": {name: value[lane].clone() for name, value in state["model"].items()},
            "optimizer": {
                name: {slot: value.clone() if slot == "step" else value[lane].clone() for slot, value in slots.items()}
                for name, slots in state["optimizer"].items()
            },
            "scaler": {},
        }

    def join(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Stack and restore one state per lane, all of the same step: the inverse of `lane_state`."""
        first = states[0]
        self.restore(
            {
                "model": {name: torch.stack([s["model"][name] for s in states]) for name in first["model"]},
                "optimizer": {
                    name: {
                        slot: value if slot == "step" else torch.stack([s["optimizer"][name][slot] for s in states])
                        for slot, value in first["optimizer"].get(name, {}).items()
                    }
                    for name in first["model"]
                },
            }
        )

    def select_lanes(self, lanes: Sequence[int], state: Mapping[str, Any]) -> VmappedExperiment:
        """Build a smaller program of these lanes, and restore their slices of the state."""
        chosen = torch.tensor(lanes, device=self.strategy.stack.device)
        optimum = None if self.optimum is None else self.optimum.select(chosen)
        program = _built([self.infos[lane] for lane in lanes], [self.template] * len(lanes), lambda _: optimum)
        program.restore(
            {
                "model": {name: value[chosen] for name, value in state["model"].items()},
                "optimizer": {
                    name: {slot: value if slot == "step" else value[chosen] for slot, value in slots.items()}
                    for name, slots in state["optimizer"].items()
                },
            }
        )
        return program

    def total(self, shares: Tensor) -> Tensor:
        """Return the losses unchanged: there is one process."""
        return shares

    def finite_lanes(self) -> list[bool]:
        """Return for each lane whether its row of parameters is finite; vmapped models have no buffers."""
        finite: list[bool] = self.strategy.stack.detach().isfinite().all(1).tolist()
        return finite

    def extra_columns(self) -> list[dict[str, float]]:
        """Return for each lane the parameters of a formula, and the distance to a known optimum."""
        columns: list[dict[str, float]] = [{} for _ in self.infos]
        if self.infos[0].config.model.records_parameters:
            names = [f"param/{name}" for name in self.strategy.split(self.strategy.stack)]
            columns = [dict(zip(names, row, strict=True)) for row in self.strategy.stack.detach().double().tolist()]
        if self.optimum is None:
            return columns
        progress = progress_columns(self.optimum, self.strategy.stack)
        return [{**lane, **more} for lane, more in zip(columns, progress, strict=True)]

    def parameters(self) -> list[dict[str, Tensor]]:
        """Return for each lane views of its parameters."""
        stacked_parameters = self.strategy.split(self.strategy.stack.detach())
        return [{name: value[lane] for name, value in stacked_parameters.items()} for lane in range(self.lanes)]

    def outcomes(self, lanes: Sequence[int]) -> list[Outcome]:
        """Return the outcomes of these lanes, from copies of their parameters."""
        metrics_by_part = {part: self.evaluation.metrics(part) for part in self.infos[0].dataset.evaluated}
        all_parameters = self.parameters()
        results = []
        for lane in lanes:
            info, parameters = self.infos[lane], {name: value.clone() for name, value in all_parameters[lane].items()}
            self.template.load_state_dict(parameters)
            metrics = {
                f"{part}/{name}": value
                for part, by_lane in metrics_by_part.items()
                for name, value in by_lane[lane].items()
            }
            fitted = {name: value.clone() for name, value in self.template.fitted(info.dataset.scaling).items()}
            terms = self.template.terms(info.dataset.feature_names, info.dataset.target_names)
            results.append((metrics, parameters, fitted, terms, _evaluation_of_run(info, parameters)))
        return [
            Outcome(*result, optimum, inference)
            for result, optimum, inference in zip(
                results,
                self._summarised(lanes),
                self._inferred(lanes, [(fitted, terms) for _, _, fitted, terms, _ in results]),
                strict=True,
            )
        ]

    def load_models(self, states: Mapping[int, Mapping[str, Any]]) -> None:
        """Write the parameters of each state into the row of its lane."""
        stacked = self.strategy.split(self.strategy.stack.detach())
        for lane, state in states.items():
            for name, values in stacked.items():
                values[lane].copy_(state["model"][name])

    def _summarised(self, lanes: Sequence[int]) -> Sequence[dict[str, float | None] | None]:
        """Return for each of these lanes the summary's figures about the optimum."""
        if self.optimum is None:
            return [None] * len(lanes)
        chosen = torch.tensor(lanes, device=self.strategy.stack.device)
        configs = [self.infos[lane].config for lane in lanes]
        return summarize(self.optimum.select(chosen), configs, self.strategy.stack.detach()[chosen])

    def _inferred(
        self, lanes: Sequence[int], fitted: Sequence[tuple[Mapping[str, Tensor], Sequence[str]]]
    ) -> Sequence[Inference | None]:
        """Return for each of these lanes its standard errors, given the reported parameters and the names of their terms."""
        chosen = torch.tensor(lanes, device=self.strategy.stack.device)
        rows = select_lanes(self.objective.rows.all, chosen)
        fits = [
            Fit(self.infos[lane].config, parameters, dataset.scaling, dataset.unit_deviation, terms)
            for lane, (parameters, terms) in zip(lanes, fitted, strict=True)
            for dataset in [self.infos[lane].dataset]
        ]
        return infer(self.template, self.strategy.split(self.strategy.stack.detach()[chosen]), rows, fits)

    def loop(self, runs: Sequence[RunState], stop: Stop) -> Loop:
        """Return the training loop of this program. `runs` are in the order of the lanes."""
        first = self.infos[0]
        return Loop(
            program=self,
            runs=runs,
            batches=self.batches,
            calendar=first.calendar(),
            watched=first.watched,
            stop=stop,
        )


def run_info_of_lane(config: c.Config, prepared: Inputs, lanes: int) -> RunInfo:
    """Return what is known about a run in a program of `lanes` lanes. Raises `ConfigError`."""
    rows = len(prepared.dataset.parts["train"])
    batches = StackedBatches(rows, config.train.batch_size, [config.seed], prepared.device)
    return run_info(config, prepared, strategy="single", batches=batches, lanes=lanes)


def build(infos: Sequence[RunInfo], models: Sequence[Any]) -> VmappedExperiment:
    """Build the program of runs whose `config.program` and `shapes` are equal. `models` have their start values."""
    config = infos[0].config
    decays = [info.config.optimizer.l2_penalty or 0.0 for info in infos]
    return _built(infos, models, lambda rows: find_optimum(models[0], rows.all, config, decays))


def _built(
    infos: Sequence[RunInfo], models: Sequence[Any], optimum: Callable[[StackedRows], Optimum | None]
) -> VmappedExperiment:
    """Build the program; `optimum` takes the stacked training rows."""
    config, template = infos[0].config, models[0]
    rows, scaling = stack_datasets([info.dataset for info in infos])
    device = rows["train"].all.target.device
    strategy = Vmapped(device, models)
    loss, autocast = losses.build_lanes(config.loss), precision.autocast("off", device)
    forward = strategy.place(template, loss)
    seeds = [info.config.seed for info in infos]
    batches = StackedBatches(len(rows["train"]), config.train.batch_size, seeds, device)
    optimizer = build_lanes(
        [info.config.optimizer for info in infos], strategy.parameters(template), bounds(config.model, template)
    )
    schedule = _schedule(infos, strategy.stack)
    minimized = objective(
        config,
        template,
        forward=forward,
        strategy=strategy,
        loss=loss,
        rows=rows["train"],
        seeds=seeds,
        batches=batches,
        scaler=SumOverLanes(),
        clip_norm=_clip_norm(infos, strategy.stack),
    )
    return VmappedExperiment(
        infos=infos,
        template=template,
        strategy=strategy,
        optimizer=optimizer,
        objective=minimized,
        evaluation=Evaluation(
            template,
            forward,
            loss,
            autocast,
            scaling.undo,
            rows,
            strategy,
            infos[0].dataset.target_names,
            own_metrics.build(config),
        ),
        schedule=schedule,
        step=training_step(config, minimized, optimizer, schedule, lanes=infos[0].lanes),
        batches=batches,
        optimum=optimum(rows["train"]),
    )


def _column(like: Tensor, values: Sequence[Any]) -> Tensor:
    """Return values as a tensor [lanes, 1], on the device and in the scalar type of `like`."""
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1).to(like.device, scalar_type(like))


def _clip_norm(infos: Sequence[RunInfo], like: Tensor) -> Tensor | None:
    """Return the largest allowed norms of the gradients, [lanes, 1]; None without clipping."""
    norms = [info.config.train.clip_norm for info in infos]
    return None if norms[0] is None else _column(like, norms)


def _schedule(infos: Sequence[RunInfo], like: Tensor) -> Callable[[int], Tensor | None]:
    """Return step → learning rates [lanes, 1], each computed by the run's own schedule; step → None for solvers."""
    if infos[0].config.optimizer.lr is None:
        return lambda step: None
    # Lanes with equal schedules share one evaluation of it.
    keys = [(info.config.schedule, info.config.optimizer.lr) for info in infos]
    distinct = {key: info.schedule for key, info in zip(keys, infos, strict=True)}
    index = {key: i for i, key in enumerate(distinct)}
    lanes = torch.tensor([index[key] for key in keys])
    rates = DeviceRates(list(distinct.values()), scalar_type(like), like.device, lanes)
    if all(info.config.schedule.constant for info in infos):
        constant = rates(1)
        return lambda step: constant
    return rates


def _evaluation_of_run(info: RunInfo, parameters: Mapping[str, Tensor]) -> Callable[[], Evaluation]:
    """Return a function that builds the evaluation of one run with these parameters, without vmap."""

    def evaluation() -> Evaluation:
        device = next(iter(parameters.values())).device
        dataset = info.dataset
        model = info.new_model().to(device)
        model.load_state_dict(dict(parameters))
        loss, autocast = losses.build(info.config.loss), precision.autocast("off", device)
        undo, strategy, own = dataset.scaling.undo, Single(device), own_metrics.build(info.config)
        return Evaluation(model, model, loss, autocast, undo, dataset.parts, strategy, dataset.target_names, own)

    return evaluation
