"""What must fit together: the one list of values that are fine alone and wrong side by side, each with its reason.

It is asked twice: with the configuration as written, and again when `auto` has become a device.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from runner.config import schema as c


@dataclass(frozen=True)
class Forbidden:
    """A combination that is refused: when it holds, and the sentence with its reason and what to do."""

    when: Callable[[c.Config], bool]
    sentence: str


def _line_search(config: c.Config) -> bool:
    return config.optimizer.evaluates_repeatedly


def _least_squares(config: c.Config) -> bool:
    return config.optimizer.least_squares


def _fraction(rows: float) -> bool:
    return isinstance(rows, float) and not rows < 1


def _eps_is_zero(config: c.Config) -> bool:
    return config.dtype == "float16" and getattr(config.optimizer, "eps", 1.0) < 6e-8


SHARDED = ("fsdp", "tensor", "pipeline")
"""Strategies whose processes hold a part of the parameters only."""


def _sharded(config: c.Config) -> bool:
    return config.strategy.name in SHARDED


def _exact(config: c.Config) -> bool:
    return config.strategy.reduction == "exact"


def _warmup_too_long(config: c.Config) -> bool:
    steps = config.train.steps
    return steps is not None and steps < config.schedule.least_steps


FORBIDDEN = (
    Forbidden(
        lambda k: k.dtype == "float64" and k.device.name == "mps",
        "`dtype` must not be float64 with `device`=mps, which has no float64; use dtype=float32 or device=cpu",
    ),
    Forbidden(
        lambda k: k.dtype == "float16" and k.device.name == "cpu",
        "`dtype` must not be float16 with `device`=cpu: adam's eps is 0 in half precision and some operations do not "
        "exist there; use dtype=bfloat16, or dtype=float32 with amp=float16",
    ),
    Forbidden(
        lambda k: _eps_is_zero(k) and k.device.name != "cpu",
        "`optimizer.eps` must be at least 6e-8 with `dtype`=float16, whose numbers below that are 0, so that 0 is divided "
        "by 0; use optimizer.eps=1e-4 or dtype=bfloat16",
    ),
    Forbidden(
        lambda k: k.amp != "off" and k.dtype != "float32",
        "`amp` must be off unless `dtype` is float32, since autocast changes float32 operations only; use amp=off or dtype=float32",
    ),
    Forbidden(
        lambda k: k.optimizer.rule is None and not _least_squares(k) and k.update == "manual",
        "`update` must be optimizer with `optimizer`=lbfgs, whose line search asks for the loss again within a step; use update=optimizer",
    ),
    Forbidden(
        lambda k: _line_search(k) and k.amp == "float16",
        "`amp` must not be float16 with `optimizer`=lbfgs: the gradient scaler cannot skip a part of its line search; use amp=off or amp=bfloat16",
    ),
    Forbidden(
        lambda k: _line_search(k) and k.train.clip_norm is not None,
        "`train.clip_norm` must be null with `optimizer`=lbfgs, whose line search needs the gradient of its own loss; use train.clip_norm=null",
    ),
    Forbidden(
        lambda k: _least_squares(k) and not k.loss.squares,
        "`loss` must be mse with `optimizer`=lstsq or lm, which make the sum of squares least; use loss=mse or optimizer=lbfgs",
    ),
    Forbidden(
        lambda k: _least_squares(k) and k.train.batch_size is not None,
        "`train.batch_size` must be null with `optimizer`=lstsq or lm, which need all rows at once; use train.batch_size=null",
    ),
    Forbidden(
        lambda k: _least_squares(k) and k.train.accumulate > 1,
        "`train.accumulate` must be 1 with `optimizer`=lstsq or lm, which read the rows in pieces by themselves; use train.accumulate=1",
    ),
    Forbidden(
        lambda k: _least_squares(k) and k.train.clip_norm is not None,
        "`train.clip_norm` must be null with `optimizer`=lstsq or lm, which know how far to step; use train.clip_norm=null",
    ),
    Forbidden(
        lambda k: _least_squares(k) and not k.schedule.constant,
        "`schedule` must be constant with `optimizer`=lstsq or lm, which have no learning rate; use schedule=constant",
    ),
    Forbidden(
        lambda k: _least_squares(k) and (k.dtype not in ("float64", "float32") or k.amp != "off"),
        "`dtype` must be float64 or float32, and `amp` off, with `optimizer`=lstsq or lm: fewer digits leave nothing of the "
        "answer; use dtype=float64",
    ),
    Forbidden(
        lambda k: _least_squares(k) and k.model.draws,
        "`model.dropout` must be 0 with `optimizer`=lstsq or lm, whose residuals must not change from one look to the next; "
        "use model.dropout=0",
    ),
    Forbidden(
        lambda k: _sharded(k) and _least_squares(k),
        "`strategy` must be single, dp or ddp with `optimizer`=lstsq or lm, whose steps need all parameters on each process; "
        "use strategy=ddp",
    ),
    Forbidden(
        lambda k: k.model.keeps_units and k.data.standardize,
        "`data.standardize` must be false with `model`=formula, whose parameters are in the units of the file; use data.standardize=false",
    ),
    Forbidden(
        lambda k: (k.train.steps is None) == (k.train.epochs is None),
        "`train.steps` and `train.epochs` must be one number and one null; set the other to null",
    ),
    Forbidden(
        lambda k: k.train.early_stopping.patience is not None and k.train.eval_every_steps is None,
        "`train.eval_every_steps` must be an integer when `train.early_stopping.patience` is given, "
        "since patience counts evaluations; set train.eval_every_steps",
    ),
    Forbidden(
        lambda k: k.train.batch_size is not None and k.train.accumulate > k.train.batch_size,
        "`train.accumulate` must not be above `train.batch_size`, the rows that it cuts into parts; make it smaller",
    ),
    Forbidden(
        lambda k: _fraction(k.data.split.test),
        "`data.split.test` must be an integer number of rows or a fraction below 1, but is a fraction of 1 or more; write rows without a point",
    ),
    Forbidden(
        lambda k: _fraction(k.data.split.valid),
        "`data.split.valid` must be an integer number of rows or a fraction below 1, but is a fraction of 1 or more; write rows without a point",
    ),
    Forbidden(
        lambda k: k.strategy.chunks & (k.strategy.chunks - 1) != 0,
        "`strategy.chunks` must be a power of two, the leaves of the tree in which gradients are added; use 8 or 16",
    ),
    Forbidden(
        lambda k: _exact(k) and k.strategy.name not in ("auto", "single", "ddp"),
        "`strategy.reduction` must be fast unless `strategy` is single or ddp: dp, fsdp, tensor and pipeline add in an order "
        "of their own, which depends on the number of processes; use strategy=ddp or strategy.reduction=fast",
    ),
    Forbidden(
        lambda k: _exact(k) and k.train.compile,
        "`train.compile` must be false with `strategy.reduction`=exact, since code compiled for the chunks that one process "
        "sees may round differently from that of another; use train.compile=false",
    ),
    Forbidden(
        lambda k: k.strategy.tensor_parallel > 1 and k.strategy.name == "ddp",
        "`strategy.tensor_parallel` must be 1 with `strategy`=ddp: torch's DistributedDataParallel silently loses parameters "
        "whose layers are split; use strategy=fsdp",
    ),
    Forbidden(
        lambda k: k.strategy.tensor_parallel > 1 and k.strategy.name not in ("ddp", "fsdp"),
        "`strategy.tensor_parallel` must be 1 unless `strategy` is fsdp, whose mesh it is a side of; use strategy=fsdp, "
        "or strategy=tensor for splitting layers alone",
    ),
    Forbidden(
        lambda k: _sharded(k) and not k.model.divisible,
        "`strategy` must be single, dp or ddp with `model`=formula, whose parameters are single numbers and cannot be split; use strategy=ddp",
    ),
    Forbidden(
        lambda k: _sharded(k) and _line_search(k),
        "`strategy` must be single, dp or ddp with `optimizer`=lbfgs, whose line search needs the whole gradient on each process; use strategy=ddp",
    ),
    Forbidden(
        lambda k: _sharded(k) and k.amp == "float16",
        "`amp` must not be float16 with `strategy`=fsdp, tensor or pipeline: the gradient scaler of one process does not see an "
        "overflow on another; use amp=bfloat16 or amp=off",
    ),
    Forbidden(
        lambda k: k.strategy.name in ("tensor", "pipeline") and k.train.compile,
        "`train.compile` must be false with `strategy`=tensor or pipeline, which run the layers themselves; use train.compile=false",
    ),
    Forbidden(
        lambda k: k.strategy.name == "pipeline" and (k.train.accumulate > 1 or k.amp != "off"),
        "`train.accumulate` must be 1 and `amp` off with `strategy`=pipeline, which cuts batches into micro-batches itself "
        "and sends activations of one type; use strategy=ddp",
    ),
    Forbidden(
        lambda k: k.launch.nodes > 1 and k.launch.rdzv_endpoint is None,
        "`launch.rdzv_endpoint` must be host:port when `launch.nodes` is above 1, so that the hosts can meet; give one of them and a free port",
    ),
    Forbidden(
        _warmup_too_long,
        "`schedule.warmup_steps` must be below `train.steps`, or the learning rate never gets down again; make it smaller",
    ),
)


def problems(config: c.Config) -> list[str]:
    """Every forbidden combination that holds, and what the parts find wrong with themselves."""
    found = [rule.sentence for rule in FORBIDDEN if rule.when(config)]
    parts = (config.data, config.model, config.loss, config.optimizer, config.schedule)
    return [*found, *(problem for part in parts for problem in part.problems()), *_sinks(config)]


def misplaced(config: c.Config, size: int) -> list[str]:
    """Why `size` processes cannot compute this run; nothing when they can."""
    strategy, found = config.strategy, []
    if _exact(config) and strategy.chunks % size:
        found.append(
            f"`strategy.chunks` must be divisible by the number of processes, {size}, with `strategy.reduction`=exact, "
            f"but is {strategy.chunks}; start 1, 2, 4, … processes, or set strategy.reduction=fast"
        )
    if strategy.name in ("single", "dp") and size > 1:
        found.append(
            f"`strategy` must be ddp, fsdp, tensor or pipeline on {size} processes, but is {strategy.name}, which is one process; "
            "use strategy=auto, or start one process"
        )
    if _sharded(config) and size == 1:
        found.append(
            f"`strategy`={strategy.name} must have at least 2 processes to split the model between, but has 1; "
            "start more with launch.processes=2 or torchrun --nproc-per-node 2, or use strategy=single"
        )
    if strategy.tensor_parallel > 1 and size % strategy.tensor_parallel:
        found.append(
            f"`strategy.tensor_parallel` must divide the number of processes, {size}, but is {strategy.tensor_parallel}; change one of them"
        )
    return found


def notices(config: c.Config) -> list[str]:
    """What is allowed and probably not meant."""
    if config.optimizer.lr == 0:
        return ["`optimizer.lr` is 0, so the parameters will not change"]
    return []


def _sinks(config: c.Config) -> Iterator[str]:
    known, given = c.SinkConfig.choices, config.record.sinks
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, list(known), n=1)
            hint = f"did you mean {near[0]}?" if near else "take it out"
            yield f"`record.sinks` must be of {', '.join(known)}, but has {name}; {hint}"
    if len(set(given)) < len(given):
        yield f"`record.sinks` must have each sink once, but is [{', '.join(given)}]; take one out"
    if "jsonl" not in given:
        yield f"`record.sinks` must have jsonl, which resuming and comparing runs read, but is [{', '.join(given)}]; add it"
