"""Assembly of several runs as one program: those that differ in numbers only are trained side by side, a lane each.

What a run leaves is what it would have left alone: a lane's state is captured, saved and resumed as that of a single run.
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
from runner.models.base import start_model
from runner.optim.base import Optimizer
from runner.optim.build import build_lanes
from runner.optim.optimum import Optimum, find_optimum, progress_columns, summarize
from runner.optim.qr import PIECE_ROWS
from runner.optim.standard_errors import Fit, Inference, infer
from runner.training.build import Inputs, objective, run_info
from runner.training.experiment import Outcome, RunInfo, warnings
from runner.training.loop import Loop
from runner.training.metrics import Evaluation
from runner.training.objective import BatchObjective
from runner.training.run_state import RunState


def alone_because(config: c.Config, prepared: Inputs) -> str | None:
    """Why a run cannot be a lane, as the end of a sentence; None for one that can."""
    reasons = {
        f"{config.optimizer.name} searches along a line of its own": config.optimizer.evaluates_repeatedly,
        "dropout draws from one stream": config.model.draws,
        "its model keeps running values, as batch normalisation does": len(prepared.model.state_dict())
        != len(list(prepared.model.parameters())),
        "amp changes what vmap computes": config.amp != "off",
        "train.compile makes a program of its own": config.train.compile,
        "strategy.reduction=exact promises bits": config.strategy.reduction == "exact",
        "checkpoint.async_save writes beside one training": config.checkpoint.async_save,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def shapes(prepared: Inputs) -> tuple[Any, ...]:
    """What lanes of one program must have in common besides their configuration: sizes of data and parameters."""
    parts = {name: tuple(rows.features.shape) for name, rows in prepared.dataset.parts.items()}
    parameters = [(name, tuple(p.shape)) for name, p in prepared.model.named_parameters()]
    return (tuple(parts.items()), tuple(parameters), prepared.dataset.feature_names, prepared.dataset.target_name)


def bytes_a_lane(config: c.Config, prepared: Inputs) -> int:
    """About how much memory a lane takes: parameters, their gradients, slots and copies, data, and what a batch leaves behind."""
    rows = prepared.dataset.parts["train"]
    size = rows.features.element_size()
    data = sum(len(part) * (part.features.shape[1] + 1) for part in prepared.dataset.parts.values())
    units = sum(p.shape[0] for p in prepared.model.parameters() if p.dim() == 2)
    batch = min(config.train.batch_size or len(rows), len(rows))
    evaluated = max(len(part) for part in prepared.dataset.parts.values())
    activations = 4 * max(batch, evaluated) * (units + rows.features.shape[1] + 2)
    matrices = (
        3 * 8 * min(len(rows), PIECE_ROWS) * (prepared.parameter_count + 2) if config.optimizer.least_squares else 0
    )
    return matrices + size * (12 * prepared.parameter_count + 2 * data + activations)


def refused(program: VmappedExperiment) -> str | None:
    """Why vmap does not take the model, as the end of a sentence; None where it does."""
    try:
        program.objective.at(1).gradient()
    except RuntimeError as error:
        return f"vmap refuses its model ({' '.join(str(error).split())[:200]})"
    finally:
        program.strategy.stack.grad = None
    return None


class Summed(Unscaled):
    """What is differentiated: the sum over the lanes, whose gradient by a lane's parameters is that of the lane's own loss."""

    def scale(self, loss: Tensor) -> Tensor:
        return loss.sum()


@dataclass
class VmappedExperiment:
    """The parts of several runs, a lane each, ready to train from step 0: a program of the loop."""

    facts: Sequence[RunInfo]
    template: Any
    strategy: Vmapped
    optimizer: Optimizer
    objective: BatchObjective
    evaluation: Evaluation
    schedule: Callable[[int], Tensor | None]
    batches: StackedBatches
    optimum: Optimum | None

    @property
    def warnings(self) -> list[list[str]]:
        return warnings(self.facts, self.optimum)

    @property
    def lanes(self) -> int:
        return len(self.facts)

    def capture(self) -> dict[str, Any]:
        slots = self.optimizer.state_dict()[STACK]
        named = {slot: self.strategy.split(value) if value.dim() else value for slot, value in slots.items()}
        names = self.strategy.split(self.strategy.stack.detach())
        return {
            "model": names,
            "optimizer": {
                name: {slot: value if isinstance(value, Tensor) else value[name] for slot, value in named.items()}
                for name in names
            },
            "scaler": {},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
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

    def lane_state(self, state: Mapping[str, Any], lane: int) -> dict[str, Any]:
        return {
            "model": {name: value[lane].clone() for name, value in state["model"].items()},
            "optimizer": {
                name: {slot: value.clone() if slot == "step" else value[lane].clone() for slot, value in slots.items()}
                for name, slots in state["optimizer"].items()
            },
            "scaler": {},
        }

    def join(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on from a captured state a lane, all of the same step; the way back from `lane_state`."""
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

    def narrowed(self, lanes: Sequence[int], state: Mapping[str, Any]) -> VmappedExperiment:
        chosen = torch.tensor(lanes, device=self.strategy.stack.device)
        optimum = None if self.optimum is None else self.optimum.select(chosen)
        program = _built([self.facts[lane] for lane in lanes], [self.template] * len(lanes), lambda _: optimum)
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
        return shares

    def finite(self) -> list[bool]:
        found: list[bool] = self.strategy.stack.detach().isfinite().all(1).tolist()
        return found

    def details(self) -> list[dict[str, float]]:
        rows: list[dict[str, float]] = [{} for _ in self.facts]
        if self.facts[0].config.model.records_parameters:
            names = [f"param/{name}" for name in self.strategy.split(self.strategy.stack)]
            rows = [dict(zip(names, row, strict=True)) for row in self.strategy.stack.detach().double().tolist()]
        if self.optimum is None:
            return rows
        return [
            {**row, **more} for row, more in zip(rows, progress_columns(self.optimum, self.strategy.stack), strict=True)
        ]

    def parameters(self) -> list[dict[str, Tensor]]:
        rows = self.strategy.split(self.strategy.stack.detach())
        return [{name: value[lane] for name, value in rows.items()} for lane in range(self.lanes)]

    def outcomes(self, lanes: Sequence[int]) -> list[Outcome]:
        measured = {part: self.evaluation.metrics(part) for part in self.facts[0].dataset.parts}
        everyone = self.parameters()
        found = []
        for lane in lanes:
            facts, parameters = self.facts[lane], {name: value.clone() for name, value in everyone[lane].items()}
            self.template.load_state_dict(parameters)
            metrics = {f"{part}/{name}": v for part, lanes_ in measured.items() for name, v in lanes_[lane].items()}
            fitted = {n: v.clone() for n, v in self.template.fitted(facts.dataset.scaling).items()}
            found.append((metrics, parameters, fitted, _evaluation_alone(facts, parameters)))
        return [
            Outcome(*outcome, optimum, inference)
            for outcome, optimum, inference in zip(
                found,
                self._summarised(lanes),
                self._inferred(lanes, [fitted for _, _, fitted, _ in found]),
                strict=True,
            )
        ]

    def _summarised(self, lanes: Sequence[int]) -> Sequence[dict[str, float | None] | None]:
        if self.optimum is None:
            return [None] * len(lanes)
        chosen = torch.tensor(lanes, device=self.strategy.stack.device)
        configs = [self.facts[lane].config for lane in lanes]
        return summarize(self.optimum.select(chosen), configs, self.strategy.stack.detach()[chosen])

    def _inferred(self, lanes: Sequence[int], fitted: Sequence[Mapping[str, Tensor]]) -> Sequence[Inference | None]:
        chosen = torch.tensor(lanes, device=self.strategy.stack.device)
        features, target = (part if part.dim() == 2 else part[chosen] for part in self.objective.rows.take(slice(None)))
        fits = [
            Fit(self.facts[lane].config, parameters, self.facts[lane].dataset.scaling)
            for lane, parameters in zip(lanes, fitted, strict=True)
        ]
        return infer(self.template, self.strategy.split(self.strategy.stack.detach()[chosen]), (features, target), fits)

    def loop(self, members: Sequence[RunState], stop: Stop) -> Loop:
        """The loop over these parts."""
        first = self.facts[0]
        return Loop(
            program=self,
            members=members,
            batches=self.batches,
            calendar=first.calendar(),
            watched=first.watched,
            stop=stop,
        )


def facts_of(config: c.Config, prepared: Inputs, lanes: int) -> RunInfo:
    """What is known of a run that is one of so many lanes. Raises `ConfigError`."""
    rows = len(prepared.dataset.parts["train"])
    batches = StackedBatches(rows, config.train.batch_size, [config.seed], prepared.device)
    return run_info(config, prepared, strategy="single", batches=batches, lanes=lanes)


def build(facts: Sequence[RunInfo], models: Sequence[Any]) -> VmappedExperiment:
    """The program of runs whose `config.program` and `shapes` are equal; `models` have their start values."""
    decays = [f.config.optimizer.l2_penalty or 0.0 for f in facts]
    return _built(
        facts, models, lambda rows: find_optimum(models[0], rows.features, rows.target, facts[0].config, decays)
    )


def _built(
    facts: Sequence[RunInfo], models: Sequence[Any], optimum: Callable[[StackedRows], Optimum | None]
) -> VmappedExperiment:
    first, template = facts[0].config, models[0]
    rows, undoing = stack_datasets([f.dataset for f in facts])
    device = rows["train"].target.device
    strategy = Vmapped(device, models)
    loss, autocast = losses.build_lanes(first.loss), precision.autocast("off", device)
    forward = strategy.place(template, loss)
    seeds = [f.config.seed for f in facts]
    batches = StackedBatches(rows["train"].target.shape[-2], first.train.batch_size, seeds, device)

    return VmappedExperiment(
        facts=facts,
        template=template,
        strategy=strategy,
        optimizer=build_lanes([f.config.optimizer for f in facts], strategy.parameters(template)),
        objective=objective(
            first,
            template,
            forward=forward,
            strategy=strategy,
            loss=loss,
            rows=rows["train"],
            batches=batches,
            scaler=Summed(),
            clip_norm=_clip_norm(facts, strategy.stack),
        ),
        evaluation=Evaluation(template, forward, loss, autocast, undoing.undo, rows, strategy),
        schedule=_schedule(facts, strategy.stack),
        batches=batches,
        optimum=optimum(rows["train"]),
    )


def _column(like: Tensor, values: Sequence[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1).to(like.device, scalar_type(like))


def _clip_norm(facts: Sequence[RunInfo], like: Tensor) -> Tensor | None:
    """Largest norms of the gradients, [lanes, 1]; None where they are not clipped."""
    norms = [f.config.train.clip_norm for f in facts]
    return None if norms[0] is None else _column(like, norms)


def _schedule(facts: Sequence[RunInfo], like: Tensor) -> Callable[[int], Tensor | None]:
    """Learning rates [lanes, 1] of every step, each computed as the run alone would; None for solvers, which have none."""
    if facts[0].config.optimizer.lr is None:
        return lambda step: None
    keys = [(f.config.schedule, f.config.optimizer.lr) for f in facts]
    distinct = {key: f.schedule for key, f in zip(keys, facts, strict=True)}
    place = {key: i for i, key in enumerate(distinct)}
    lanes = torch.tensor([place[key] for key in keys])

    def rates(step: int) -> Tensor:
        return _column(like, [schedule(step) for schedule in distinct.values()])[lanes]

    if all(f.config.schedule.constant for f in facts):
        constant = rates(1)
        return lambda step: constant
    return rates


def _evaluation_alone(facts: RunInfo, parameters: Mapping[str, Tensor]) -> Callable[[], Evaluation]:
    def evaluation() -> Evaluation:
        device = next(iter(parameters.values())).device
        model = start_model(facts.config, facts.dataset.feature_names).to(device)
        model.load_state_dict(dict(parameters))
        autocast = precision.autocast("off", device)
        loss = losses.build(facts.config.loss)
        dataset = facts.dataset
        return Evaluation(model, model, loss, autocast, dataset.scaling.undo, dataset.parts, Single(device))

    return evaluation
