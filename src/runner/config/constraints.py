"""Constraints between keys: combinations of values that are valid by themselves and refused together, with the reason.

They are checked twice: for the configuration as composed, and again after `auto` has been resolved to a device.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from runner.config import schema as c
from runner.config import validation


@dataclass(frozen=True)
class _Forbidden:
    """A combination that is refused: its condition, and the message with requirement, reason and remedy."""

    when: Callable[[c.Config], bool]
    sentence: str
    """Format string in which `k` is the configuration, as in "{k.optimizer.name}", and "{dtype[float64]}" is advice to use it."""

    def message(self, config: c.Config) -> str:
        """Return the message for a configuration."""
        return self.sentence.format(k=config, dtype=_DtypeAdvice(config))


@dataclass(frozen=True)
class _DtypeAdvice:
    """Advice on each dtype, made only where a sentence has it."""

    config: c.Config

    def __getitem__(self, dtype: str) -> str:
        return advised(self.config, "dtype", dtype) or f"dtype={dtype}"


def _repeats(config: c.Config) -> bool:
    return config.optimizer.evaluates_repeatedly


def _least_squares(config: c.Config) -> bool:
    return config.optimizer.least_squares


def _eps_is_zero(config: c.Config) -> bool:
    return config.dtype == "float16" and getattr(config.optimizer, "eps", 1.0) < 6e-8


SHARDED = ("fsdp", "tensor", "pipeline")
"""Strategies in which a process holds only a part of the parameters."""


def _sharded(config: c.Config) -> bool:
    return config.strategy.name in SHARDED


def _exact(config: c.Config) -> bool:
    return config.strategy.reduction == "exact"


def _changing_rate_in_float64(config: c.Config) -> bool:
    return config.update == "optimizer" and config.dtype == "float64" and not config.schedule.constant


def _too_few_steps(config: c.Config) -> bool:
    steps = config.train.steps
    return steps is not None and steps < config.schedule.least_steps


def _invalid_port(config: c.Config) -> bool:
    endpoint = config.launch.rdzv_endpoint
    return endpoint is not None and not 1 <= int(endpoint.rpartition(":")[2]) <= 65535


EAGER: tuple[tuple[Callable[[c.Config], bool], str], ...] = (
    (lambda k: k.device.name not in ("auto", "cuda", "rocm"), "`device`={k.device.name} has no CUDA graphs"),
    (lambda k: k.strategy.name not in ("auto", "single"), "`strategy`={k.strategy.name} uses several devices"),
    (_exact, "`strategy.reduction`=exact adds the gradients of its chunks in an order of its own"),
    (lambda k: k.optimizer.rule is None, "`optimizer`={k.optimizer.name} makes decisions on the host in every step"),
    (lambda k: k.optimizer.code is not None, "`optimizer`={k.optimizer.name} may make decisions on the host in a step"),
    (lambda k: k.amp == "float16", "`amp`=float16 decides on the host in every step whether the gradients overflowed"),
    (lambda k: k.train.compile, "`train.compile`=true makes kernels of its own"),
)
"""Why a training step cannot be captured as a CUDA graph: conditions, and format strings in which `k` is the configuration."""


RANGES = {
    "float32": (2.0**-126, (2 - 2**-23) * 2.0**127),
    "bfloat16": (2.0**-126, (2 - 2**-7) * 2.0**127),
    "float16": (2.0**-14, 65504.0),
}
"""Smallest and largest number that a dtype represents with all its digits."""


def eager_because(config: c.Config, lanes: int = 1) -> str | None:
    """Return why the steps of a resolved configuration are eager, as a clause; None if they are CUDA graphs.

    `lanes` is the number of runs in the program.
    """
    if config.train.cuda_graph is False:
        return "`train.cuda_graph` is false"
    reason = next((text.format(k=config) for when, text in EAGER if when(config)), None)
    if reason is None and lanes == 1 and _changing_rate_in_float64(config):
        reason = "torch's fused optimizers take a learning rate that changes in float32 only, and `dtype` is float64"
    return reason


FORBIDDEN = (
    _Forbidden(
        lambda k: k.dtype == "float64" and k.device.name == "mps",
        "`dtype` must not be float64 with `device`=mps, which does not support it; use {dtype[float32]} or device=cpu",
    ),
    _Forbidden(
        lambda k: k.dtype == "float16" and k.device.name == "cpu",
        "`dtype` must not be float16 with `device`=cpu: adam's eps underflows to 0 and some operations are not implemented; "
        "use {dtype[float32]}",
    ),
    _Forbidden(
        lambda k: _eps_is_zero(k) and k.device.name != "cpu",
        "`optimizer.eps` must be at least 6e-8 with `dtype`=float16, got {k.optimizer.eps}, which underflows to 0; "
        "use optimizer.eps=1e-4 or dtype=bfloat16",
    ),
    _Forbidden(
        lambda k: k.amp != "off" and k.dtype != "float32",
        "`amp` must be off unless `dtype` is float32, because autocast changes float32 operations only; use amp=off or dtype=float32",
    ),
    _Forbidden(
        lambda k: k.optimizer.rule is None and not _least_squares(k) and k.update == "manual",
        "`update` must be optimizer with `optimizer`={k.optimizer.name}, which has no manual update rule; use update=optimizer",
    ),
    _Forbidden(
        lambda k: _repeats(k) and k.amp == "float16",
        "`amp` must not be float16 with `optimizer`={k.optimizer.name}, which evaluates the loss several times in a "
        "step: the gradient scaler cannot skip a part of a step; use amp=off or amp=bfloat16",
    ),
    _Forbidden(
        lambda k: _repeats(k) and k.train.clip_norm is not None,
        "`train.clip_norm` must be null with `optimizer`={k.optimizer.name}, which needs the exact gradient of the loss; "
        "use train.clip_norm=null",
    ),
    _Forbidden(
        lambda k: _least_squares(k) and not k.loss.squares,
        "`loss` must be mse with `optimizer`={k.optimizer.name}, which minimizes the sum of squares; use loss=mse or optimizer=adam",
    ),
    _Forbidden(
        lambda k: _least_squares(k) and k.train.batch_size is not None,
        "`train.batch_size` must be null with `optimizer`={k.optimizer.name}, which needs all rows at once; use train.batch_size=null",
    ),
    _Forbidden(
        lambda k: _least_squares(k) and k.train.accumulate > 1,
        "`train.accumulate` must be 1 with `optimizer`={k.optimizer.name}, which already reads the rows in pieces; use train.accumulate=1",
    ),
    _Forbidden(
        lambda k: _least_squares(k) and k.train.clip_norm is not None,
        "`train.clip_norm` must be null with `optimizer`={k.optimizer.name}, which chooses its own step length; use train.clip_norm=null",
    ),
    _Forbidden(
        lambda k: _least_squares(k) and not k.schedule.constant,
        "`schedule` must be constant with `optimizer`={k.optimizer.name}, which has no learning rate; use schedule=constant",
    ),
    _Forbidden(
        lambda k: _least_squares(k) and (k.dtype not in ("float64", "float32") or k.amp != "off"),
        "`dtype` must be float64 or float32, and `amp` off, with `optimizer`={k.optimizer.name}, which needs their precision; "
        "use {dtype[float64]}",
    ),
    _Forbidden(
        lambda k: _least_squares(k) and k.model.draws,
        "`model`={k.model.name} must not use dropout with `optimizer`={k.optimizer.name}, whose residuals must not change "
        "between evaluations; use model.dropout=0 or another model",
    ),
    _Forbidden(
        lambda k: _least_squares(k) and k.model.takes_codes,
        "`model.embedding_size` must be null with `optimizer`={k.optimizer.name}, whose residuals must not change between "
        "steps: 1 in 100 categories is hidden, others in each epoch; use optimizer=adam",
    ),
    _Forbidden(
        lambda k: k.model.takes_codes and (k.strategy.name == "tensor" or k.strategy.tensor_parallel > 1),
        "`model.embedding_size` must be null when processes split each layer, because the vectors of categories are no layer "
        "that they can split; use strategy=ddp strategy.tensor_parallel=1",
    ),
    _Forbidden(
        lambda k: _sharded(k) and _least_squares(k),
        "`strategy` must be single, dp or ddp with `optimizer`={k.optimizer.name}, whose steps need all parameters on each "
        "process; use strategy=ddp",
    ),
    _Forbidden(
        lambda k: bool(k.model.limits) and k.optimizer.linear_only,
        "`model.bounds` must be empty with `optimizer`={k.optimizer.name}, which solves without bounds; use optimizer=lm",
    ),
    _Forbidden(
        lambda k: bool(k.model.limits) and _repeats(k),
        "`model.bounds` must be empty with `optimizer`={k.optimizer.name}, whose line search would leave them; use optimizer=adam",
    ),
    _Forbidden(
        lambda k: k.model.init_from is not None and k.optimizer.linear_only,
        "`model.init_from` must be null with `optimizer`={k.optimizer.name}, whose solution does not depend on a start, got "
        "{k.model.init_from}; use model.init_from=null",
    ),
    _Forbidden(
        lambda k: k.model.keeps_units and k.data.standardize,
        "`data.standardize` must be false with `model`={k.model.name}, whose parameters are in the units of the data; "
        "use data.standardize=false",
    ),
    _Forbidden(
        lambda k: k.model.keeps_units and k.data.numbers not in (None, "none"),
        "`data.numbers` must be none with `model`={k.model.name}, whose parameters are in the units of the data, got "
        "{k.data.numbers}; use data.numbers=none",
    ),
    _Forbidden(
        lambda k: k.model.keeps_units and k.data.target_scale == "standardize",
        "`data.target_scale` must be none with `model`={k.model.name}, whose parameters are in the units of the data; "
        "use data.target_scale=none",
    ),
    _Forbidden(
        lambda k: k.data.standardize and k.data.numbers not in (None, "standardize"),
        "`data.numbers` must be standardize or null with `data.standardize`=true, which stands for it, got {k.data.numbers}; "
        "use data.standardize=false data.target_scale=standardize",
    ),
    _Forbidden(
        lambda k: k.data.standardize and k.data.target_scale == "none",
        "`data.target_scale` must be standardize or null with `data.standardize`=true, which stands for it, got none; "
        "use data.standardize=false data.numbers=standardize",
    ),
    _Forbidden(
        lambda k: (k.train.steps is None) == (k.train.epochs is None),
        "`train.steps` and `train.epochs` must be one number and one null; set exactly one of them",
    ),
    _Forbidden(
        lambda k: k.train.early_stopping.patience is not None and k.train.eval_every_steps is None,
        "`train.eval_every_steps` must be an integer with `train.early_stopping.patience`, which counts evaluations; "
        "set train.eval_every_steps",
    ),
    _Forbidden(
        lambda k: k.train.reports_best and k.checkpoint.metric not in (None, k.train.early_stopping.metric),
        "`checkpoint.metric` must be null where the best state is reported, which `train.early_stopping.metric` chooses, got "
        "{k.checkpoint.metric}; use checkpoint.metric=null",
    ),
    _Forbidden(
        lambda k: k.train.batch_size is not None and k.train.accumulate > k.train.batch_size,
        "`train.accumulate` must be at most `train.batch_size`={k.train.batch_size}, got {k.train.accumulate}; use a smaller number",
    ),
    _Forbidden(
        lambda k: k.strategy.chunks & (k.strategy.chunks - 1) != 0,
        "`strategy.chunks` must be a power of two, got {k.strategy.chunks}, because gradients are added in a binary tree; use 8 or 16",
    ),
    _Forbidden(
        lambda k: _exact(k) and k.strategy.name not in ("auto", "single", "ddp"),
        "`strategy.reduction` must be fast unless `strategy` is single or ddp, because the other strategies add in an order "
        "that depends on the number of processes; use strategy=ddp or strategy.reduction=fast",
    ),
    _Forbidden(
        lambda k: _exact(k) and k.train.compile,
        "`train.compile` must be false with `strategy.reduction`=exact, because code compiled for the chunks of one process "
        "may round differently from that of another; use train.compile=false",
    ),
    _Forbidden(
        lambda k: k.strategy.tensor_parallel > 1 and k.strategy.name == "ddp",
        "`strategy.tensor_parallel` must be 1 with `strategy`=ddp: torch's DistributedDataParallel silently loses parameters "
        "of split layers; use strategy.tensor_parallel=1",
    ),
    _Forbidden(
        lambda k: k.strategy.tensor_parallel > 1 and k.strategy.name not in ("ddp", "fsdp"),
        "`strategy.tensor_parallel` must be 1 unless `strategy` is fsdp, got {k.strategy.tensor_parallel}; "
        "use strategy.tensor_parallel=1",
    ),
    _Forbidden(
        lambda k: _sharded(k) and not k.model.divisible,
        "`strategy` must be single, dp or ddp with `model`={k.model.name}, whose parameters are single numbers and cannot be "
        "sharded; use strategy=ddp",
    ),
    _Forbidden(
        lambda k: _sharded(k) and _repeats(k),
        "`strategy` must be single, dp or ddp with `optimizer`={k.optimizer.name}, which needs the whole gradient on each "
        "process; use strategy=ddp",
    ),
    _Forbidden(
        lambda k: _sharded(k) and k.amp == "float16",
        "`amp` must not be float16 with `strategy`=fsdp, tensor or pipeline: the gradient scaler of one process does not see an "
        "overflow on another; use amp=bfloat16 or amp=off",
    ),
    _Forbidden(
        lambda k: k.strategy.name in ("tensor", "pipeline") and k.train.compile,
        "`train.compile` must be false with `strategy`=tensor or pipeline, which run the layers themselves; use train.compile=false",
    ),
    _Forbidden(
        lambda k: k.strategy.name == "pipeline" and (k.train.accumulate > 1 or k.amp != "off"),
        "`train.accumulate` must be 1 and `amp` off with `strategy`=pipeline, which splits batches into micro-batches itself "
        "and sends activations of one dtype; use strategy=ddp",
    ),
    _Forbidden(
        lambda k: k.launch.nodes > 1 and k.launch.rdzv_endpoint is None,
        "`launch.rdzv_endpoint` must be host:port with `launch.nodes`={k.launch.nodes}; give one of the hosts and a free port",
    ),
    _Forbidden(
        _invalid_port,
        "`launch.rdzv_endpoint` must have a port from 1 to 65535, got {k.launch.rdzv_endpoint}; give a free port of that host",
    ),
    _Forbidden(
        _too_few_steps,
        "`train.steps` must be at least {k.schedule.least_steps} with `schedule`={k.schedule.name}, got {k.train.steps}; "
        "use more steps, or a shorter warm-up",
    ),
)


def problems(config: c.Config) -> list[str]:
    """Return the messages of all forbidden combinations that hold, and the problems of the parts themselves."""
    return [*(rule.message(config) for rule in FORBIDDEN if rule.when(config)), *_other_problems(config)]


def _other_problems(config: c.Config) -> Iterator[str]:
    for part in (config.data, config.data.split, config.model, config.loss, config.optimizer, config.schedule):
        yield from part.problems()
    yield from _metric_problems(config)
    yield from _sink_problems(config)
    yield from _baseline_problems(config)
    yield from _graph_problems(config)
    yield from _range_problems(config)


def advised(config: c.Config, path: str, value: Any) -> str | None:
    """Return the advice to use another value of a dotted key, such as "dtype=float64 and amp=off".

    It names the other arguments without which this configuration would be refused. None if it would be refused with them too.
    """
    for others in ((), (("amp", "off"),), (("device.name", "cpu"),), (("amp", "off"), ("device.name", "cpu"))):
        changed, misfits = config, list[str]()
        for key, wanted in ((path, value), *others):
            changed, problems = validation.replaced(changed, key, wanted)
            misfits += problems
        if not misfits and not _refused(changed):
            return " and ".join(_argument(*change) for change in ((path, value), *others))
    return None


def _refused(config: c.Config) -> bool:
    return any(rule.when(config) for rule in FORBIDDEN) or any(_other_problems(config))


def _argument(path: str, value: Any) -> str:
    """Return an argument of the command line; that of a part is the name of its group."""
    return f"{path.removesuffix('.name')}={str(value).lower() if isinstance(value, bool) else value}"


def world_size_problems(config: c.Config, size: int) -> list[str]:
    """Return the reasons why `size` processes cannot compute this run; empty if they can."""
    strategy, rows, messages = config.strategy, config.data.known_rows, []
    if rows is not None and size > rows:
        messages.append(
            f"the number of processes must not be above the number of rows, {rows}, got {size}; start fewer processes"
        )
    if _exact(config) and strategy.chunks % size:
        messages.append(
            f"`strategy.chunks` must be divisible by the number of processes, {size}, with `strategy.reduction`=exact, "
            f"got {strategy.chunks}; start 1, 2, 4, … processes, or use strategy.reduction=fast"
        )
    if strategy.name in ("single", "dp") and size > 1:
        messages.append(
            f"`strategy` must be ddp, fsdp, tensor or pipeline on {size} processes, got {strategy.name}, which is one process; "
            "use strategy=auto, or start one process"
        )
    if _sharded(config) and size == 1:
        messages.append(
            f"`strategy`={strategy.name} must have at least 2 processes to shard the model over, got 1; "
            "start more with launch.processes=2 or torchrun --nproc-per-node 2, or use strategy=single"
        )
    if strategy.tensor_parallel > 1 and size % strategy.tensor_parallel:
        messages.append(
            f"`strategy.tensor_parallel` must divide the number of processes, {size}, got {strategy.tensor_parallel}; change one of them"
        )
    return messages


def notices(config: c.Config) -> list[str]:
    """Return notices about values that are allowed but probably not intended."""
    if config.optimizer.lr == 0:
        return ["`optimizer.lr` is 0, so the parameters will not change"]
    return []


def graph_problem(reason: str) -> str:
    """Return the problem with `train.cuda_graph`=true where the steps are eager for a reason."""
    return f"`train.cuda_graph` must be auto or false because {reason}, got true; use train.cuda_graph=auto"


def _graph_problems(config: c.Config) -> Iterator[str]:
    # Lanes may do what one run alone may not: that is known when the program is built.
    reason = eager_because(config, lanes=2) if config.train.cuda_graph is True else None
    if reason is not None:
        yield graph_problem(reason)


def _range_problems(config: c.Config) -> Iterator[str]:
    smallest, largest = RANGES.get(config.dtype, (0.0, math.inf))
    for key, value in config.model.given_values.items():
        if value and not smallest <= abs(value) <= largest:
            size = "small" if abs(value) < smallest else "large"
            wider = advised(config, "dtype", "float64")
            remedy = f"use {wider}" if wider else "use other units"
            yield f"`{key}` must be a number that `dtype`={config.dtype} represents, got {value:g}, which is too {size}; {remedy}"


def _list_problems(name: str, values: Sequence[str], known: Collection[str], others: str = "") -> Iterator[str]:
    """Yield the problems of a list that may name each of the known things once. `others` says what else it may have."""
    for value in values:
        if value not in known:
            near = difflib.get_close_matches(value, list(known), n=1)
            hint = f"did you mean {near[0]}?" if near else "remove it"
            yield f"`{name}` must be a list of {', '.join(known)}{others}, got {value}; {hint}"
    if len(set(values)) < len(values):
        yield f"`{name}` must not repeat an entry, got [{', '.join(values)}]; remove one"


def _baseline_problems(config: c.Config) -> Iterator[str]:
    chosen = config.record.baselines
    yield from _list_problems("record.baselines", chosen, c.BASELINES)
    if "boosting" in chosen and importlib.util.find_spec("sklearn") is None:
        yield (
            "`record.baselines` must not contain boosting, because scikit-learn is not installed; "
            'install it with `pip install "runner[baselines]"`, or remove boosting'
        )


def _metric_problems(config: c.Config) -> Iterator[str]:
    """Yield the problems of metrics that nobody knows, or that have one name, and of one that decides and is not among them."""
    own, names = config.own_metrics, ["loss", *c.METRICS]
    built_in = [entry for entry in config.metrics if entry not in {target.text for target in own}]
    yield from _list_problems(
        "metrics", built_in, c.METRICS, " and functions of your own, such as my_lab.metrics:relative"
    )
    for target in own:
        yield from target.problems("my_lab.metrics:relative")
        if target.name in names:
            yield f"`metrics` must have one metric of each name, got a second {target.name}, {target.text}; give the function another name"
        names += [target.name] if target.name and target.name not in names else []
    chosen = config.train.early_stopping.metric
    if chosen not in names:
        near = difflib.get_close_matches(chosen, names, n=1)
        hint = f"did you mean {near[0]}?" if near else "add one of your own to metrics"
        yield f"`train.early_stopping.metric` must be one of {', '.join(names)}, got {chosen!r}; {hint}"


def _sink_problems(config: c.Config) -> Iterator[str]:
    names = config.record.sinks
    own = [target.text for target in config.record.code]
    yield from _list_problems("record.sinks", names, [*c.SinkConfig.choices, *own])
    for target in config.record.code:
        yield from target.problems("my_lab.sinks:Slack")
    if "jsonl" not in names:
        yield f"`record.sinks` must include jsonl, which resume and comparisons read, got [{', '.join(names)}]; add it"
