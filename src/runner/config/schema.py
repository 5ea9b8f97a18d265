"""The typed schema: for every key its type, bounds, unit and one sentence of meaning. The values stand in `conf/`.

Nothing here imports torch: a configuration is checked, shown and hashed without it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from runner.config.validation import key, without_lanes

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
Metric = Literal["loss", "rmse", "mae", "r2"]
Init = Literal["kaiming", "uniform", "normal", "zeros"]


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where tensors live and how that hardware computes."""

    name: Literal["auto", "cpu", "cuda", "rocm", "mps", "xpu"] = key(
        "kind of device; auto takes an accelerator when there is one"
    )
    visible: tuple[int | str, ...] | None = key(
        "ordinals or UUIDs of the GPUs this run may see; null leaves the shell's mask", at_least=0
    )
    threads: int | None = key(
        "CPU threads inside one operation; null leaves torch's own number", unit="threads", at_least=1, at_most=1024
    )
    matmul_precision: Literal["highest", "high", "medium"] = key(
        "float32 matrix products: highest is true float32, high and medium allow TF32 or bfloat16"
    )


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which rows are held out, and how they are picked."""

    test: int | float = key("test rows: an integer is rows, a number below 1 a fraction", unit="rows", at_least=0)
    valid: int | float = key(
        "validation rows: an integer is rows, a number below 1 a fraction", unit="rows", at_least=0
    )
    order: Literal["sequential", "random"] = key(
        "sequential keeps the rows' order and takes train, valid, test; random draws from the data stream"
    )


@dataclass(frozen=True, kw_only=True)
class _Data:
    seed: int | None = key(
        "seed of data and split alone; null takes the run's seed", at_least=0, at_most=2**32 - 1, lane=True
    )
    log_target: bool = key("fit log(target); rmse and mae stay in the target's own units")
    standardize: bool = key("features and target to mean 0 and deviation 1, fitted on the training rows")
    split: Split


@dataclass(frozen=True, kw_only=True)
class _Synthetic(_Data):
    rows: int = key("rows that are made", unit="rows", at_least=1)
    start: float = key("smallest feature value", lane=True)
    stop: float = key("largest feature value", lane=True)
    noise: float = key("scale of what is added to the target", unit="target's", at_least=0, lane=True)
    noise_distribution: Literal["normal", "uniform"] = key("noise·N(0, 1) or noise·U(0, 1)")


@dataclass(frozen=True, kw_only=True)
class Line(_Synthetic):
    """Rows of y = slope·x + intercept + noise; one feature is evenly spaced, more are drawn evenly from the range."""

    name: Literal["line"] = key("kind of data")
    features: int = key("number of features; the slope is the same for each", at_least=1)
    slope: float = key("true slope", lane=True)
    intercept: float = key("true intercept", lane=True)


@dataclass(frozen=True, kw_only=True)
class Curve(_Synthetic):
    """Rows of y = expression + noise; one variable is evenly spaced, more are drawn evenly from the range."""

    name: Literal["curve"] = key("kind of data")
    expression: str = key("formula of the target; its names are the features")


@dataclass(frozen=True, kw_only=True)
class _Table(_Data):
    path: str = key("file, from the working directory")
    target: str = key("column to predict")
    features: tuple[str, ...] | None = key("columns to predict from; null takes all but the target")


@dataclass(frozen=True, kw_only=True)
class Csv(_Table):
    """A comma-separated file with a header line and numbers below it."""

    name: Literal["csv"] = key("kind of data")


@dataclass(frozen=True, kw_only=True)
class Parquet(_Table):
    """A Parquet file of numeric columns (extra `tables`)."""

    name: Literal["parquet"] = key("kind of data")


@dataclass(frozen=True, kw_only=True)
class Diabetes(_Data):
    """442 patients, ten measurements, disease progression a year later (Efron et al., 2004); ships with the package."""

    name: Literal["diabetes"] = key("kind of data")


@dataclass(frozen=True, kw_only=True)
class Linear:
    """y = weight·x + bias."""

    name: Literal["linear"] = key("kind of model")
    bias: bool = key("whether there is a constant term")
    init: Init = key("start values: kaiming is torch's own, uniform U(0, 1), normal N(0, 1)")


@dataclass(frozen=True, kw_only=True)
class Polynomial:
    """Linear in the powers 1 … degree of every feature."""

    name: Literal["polynomial"] = key("kind of model")
    degree: int = key("highest power", at_least=1, at_most=50)
    init: Init = key("start values: kaiming is torch's own, uniform U(0, 1), normal N(0, 1)")


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """Fully connected layers with an activation after each but the last."""

    name: Literal["mlp"] = key("kind of model")
    widths: tuple[int, ...] = key("units of the hidden layers", at_least=1)
    activation: Literal["relu", "tanh", "gelu", "silu", "sigmoid"] = key("what follows each hidden layer")
    dropout: float = key("share of units dropped in training", at_least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class Formula:
    """Any function of the data columns; every other name in it is a parameter."""

    name: Literal["formula"] = key("kind of model")
    expression: str = key("the function, such as a*exp(-b*x) + c")
    start: dict[str, float] = key("start value of each parameter; those not named are drawn by init", lane=True)
    init: Literal["uniform", "normal", "zeros"] = key("start values of the others: U(0, 1), N(0, 1) or 0")


@dataclass(frozen=True, kw_only=True)
class Mse:
    """Mean of squared errors."""

    name: Literal["mse"] = key("kind of loss")


@dataclass(frozen=True, kw_only=True)
class Mae:
    """Mean of absolute errors."""

    name: Literal["mae"] = key("kind of loss")


@dataclass(frozen=True, kw_only=True)
class Huber:
    """Squared near zero, absolute beyond delta (Huber, 1964)."""

    name: Literal["huber"] = key("kind of loss")
    delta: float = key("error at which the square becomes a line", unit="target's", above=0)


@dataclass(frozen=True, kw_only=True)
class _Optimizer:
    lr: float = key("learning rate before the schedule", at_least=0, at_most=1e38, lane=True)


@dataclass(frozen=True, kw_only=True)
class Sgd(_Optimizer):
    """Gradient descent: p ← p − lr·g."""

    name: Literal["sgd"] = key("kind of optimizer")
    weight_decay: float = key("l2 penalty added to the gradient", at_least=0, at_most=1e38, lane=True)


@dataclass(frozen=True, kw_only=True)
class Momentum(_Optimizer):
    """Gradient descent along a decaying sum of gradients (Polyak, 1964), as torch.optim.SGD defines it."""

    name: Literal["momentum"] = key("kind of optimizer")
    momentum: float = key("share of the last direction that is kept", at_least=0, below=1, lane=True)
    weight_decay: float = key("l2 penalty added to the gradient", at_least=0, at_most=1e38, lane=True)


@dataclass(frozen=True, kw_only=True)
class Adam(_Optimizer):
    """Adaptive moments (Kingma and Ba, 2015)."""

    name: Literal["adam"] = key("kind of optimizer")
    betas: tuple[float, float] = key("decay of the first and of the second moment", at_least=0, below=1, lane=True)
    eps: float = key("added to the root of the second moment", above=0, lane=True)
    weight_decay: float = key("l2 penalty added to the gradient", at_least=0, at_most=1e38, lane=True)


@dataclass(frozen=True, kw_only=True)
class AdamW(_Optimizer):
    """Adam with weight decay apart from the gradient (Loshchilov and Hutter, 2019)."""

    name: Literal["adamw"] = key("kind of optimizer")
    betas: tuple[float, float] = key("decay of the first and of the second moment", at_least=0, below=1, lane=True)
    eps: float = key("added to the root of the second moment", above=0, lane=True)
    weight_decay: float = key(
        "share of the parameter taken off each step, times lr", at_least=0, at_most=1e38, lane=True
    )


@dataclass(frozen=True, kw_only=True)
class Lbfgs(_Optimizer):
    """Limited-memory BFGS with a closure (Liu and Nocedal, 1989); update=optimizer only."""

    name: Literal["lbfgs"] = key("kind of optimizer")
    max_iter: int = key("iterations inside one step", at_least=1)
    history_size: int = key("pairs of vectors that are remembered", at_least=1)
    tolerance_grad: float = key("a largest gradient entry below this ends the step", at_least=0)
    tolerance_change: float = key("a change of loss or parameters below this ends the step", at_least=0)
    line_search: Literal["strong_wolfe"] | None = key("how far to go along a direction; null takes lr")


class _Solver:
    """An optimizer that finds out by itself how far to go."""

    @property
    def lr(self) -> None:
        """It has no learning rate."""


@dataclass(frozen=True, kw_only=True)
class Lstsq(_Solver):
    """The least-squares solution, outright: for mse and models that are linear in their parameters."""

    name: Literal["lstsq"] = key("kind of optimizer")
    weight_decay: float = key("l2 penalty added to the gradient", at_least=0, at_most=1e38, lane=True)


@dataclass(frozen=True, kw_only=True)
class Lm(_Solver):
    """Levenberg–Marquardt (Marquardt, 1963; Moré, 1978): damped Gauss–Newton steps, for mse, formulas and small models."""

    name: Literal["lm"] = key("kind of optimizer")
    radius: float = key(
        "longest first step, in multiples of the start values, each weighed by its effect on the predictions",
        above=0,
        at_most=1e38,
        lane=True,
    )


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The learning rate as given."""

    name: Literal["constant"] = key("kind of schedule")


@dataclass(frozen=True, kw_only=True)
class Step:
    """Multiplied by factor every so many steps."""

    name: Literal["step"] = key("kind of schedule")
    every_steps: int = key("steps between two reductions", unit="steps", at_least=1, lane=True)
    factor: float = key("what the learning rate is multiplied by", above=0, at_most=1, lane=True)


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Half a cosine from lr down to final_factor·lr at the last step (Loshchilov and Hutter, 2017)."""

    name: Literal["cosine"] = key("kind of schedule")
    final_factor: float = key("share of lr at the last step", at_least=0, at_most=1, lane=True)


@dataclass(frozen=True, kw_only=True)
class WarmupCosine:
    """A straight rise to lr, then half a cosine down to final_factor·lr."""

    name: Literal["warmup_cosine"] = key("kind of schedule")
    warmup_steps: int = key("steps of the rise", unit="steps", at_least=1, lane=True)
    final_factor: float = key("share of lr at the last step", at_least=0, at_most=1, lane=True)


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """How the work of one run is placed."""

    name: Literal["auto", "single", "dp", "ddp", "fsdp", "tensor", "pipeline"] = key(
        "auto is single on one process and ddp on more"
    )
    reduction: Literal["fast", "exact"] = key(
        "exact adds gradients in a fixed order, so that the bits do not depend on the number of processes"
    )
    chunks: int = key(
        "parts of every batch with reduction=exact, a power of two that the number of processes divides",
        at_least=1,
        at_most=4096,
    )
    tensor_parallel: int = key(
        "processes that split each layer between them, with fsdp; the others split the rows", at_least=1
    )


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Which processes compute the run, where `python -m runner` starts them; under torchrun they are there already."""

    processes: int = key("processes on this host; 1 starts none", at_least=1)
    nodes: int = key("hosts, on each of which the same command is typed", at_least=1)
    rdzv_endpoint: str | None = key(
        "host:port where the hosts meet, on one of them; null on a single host", pattern=r"[^:\s]+:[0-9]{1,5}"
    )
    max_restarts: int = key("how often all processes are started again after one of them failed", at_least=0)
    timeout_seconds: float = key(
        "longest time that a process waits for another one", unit="seconds", above=0, at_most=1e6
    )


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """Ends training when a metric no longer improves; on validation rows, or training rows where there are none."""

    metric: Metric = key("what is watched at every evaluation")
    patience: int | None = key(
        "evaluations without improvement before the end; null never ends early", at_least=1, lane=True
    )
    min_delta: float = key("least change that counts as an improvement", at_least=0, lane=True)


@dataclass(frozen=True, kw_only=True)
class Train:
    """How long and in what portions the model is trained."""

    steps: int | None = key("parameter updates; null where epochs are given", unit="steps", at_least=1)
    epochs: int | None = key("passes over the training rows; null where steps are given", unit="epochs", at_least=1)
    batch_size: int | None = key(
        "rows of one update, all processes together; null is all rows", unit="rows", at_least=1
    )
    accumulate: int = key("parts in which a batch is computed; its gradient stays that of the whole batch", at_least=1)
    clip_norm: float | None = key("largest norm of all gradients together; null does not clip", above=0, lane=True)
    check_gradients: bool = key("look for nan and inf in the gradients at every step, before the update")
    eval_every_steps: int | None = key(
        "steps between evaluations of the validation rows; null only at the end", unit="steps", at_least=1
    )
    compile: bool = key("forward pass through torch.compile")
    early_stopping: EarlyStopping


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """When the state is saved and how much of it is kept."""

    every_steps: int | None = key(
        "steps between checkpoints; null only at the end and on a signal", unit="steps", at_least=1
    )
    keep: int | None = key("newest checkpoints that are kept, the best one besides; null keeps all", at_least=1)
    metric: Metric = key(
        "what the best checkpoint is best in; on validation rows, or training rows where there are none"
    )
    async_save: bool = key("write checkpoints beside the training, which goes on meanwhile")


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is written down on the way."""

    every_steps: int = key("steps between rows of metrics.jsonl, TensorBoard and the console", unit="steps", at_least=1)
    plots: bool = key("draw plots/*.png at the end")
    hash_every_steps: int | None = key(
        "steps between lines of hashes.jsonl, from step 0 on, by which `diverge` tells where two runs part; null writes none",
        unit="steps",
        at_least=1,
    )


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """How the trials of `-m` are run."""

    max_trials: int = key("most trials of one sweep: a grid that would make more is refused", at_least=1)
    audit: int = key("trials, drawn at random, that are trained again alone at the end and compared", at_least=0)
    memory_gib: float | None = key(
        "memory that trials side by side may take; null takes half of what the device has free", unit="GiB", above=0
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """One experiment, whole."""

    name: str = key("experiment's name, the folder of its runs", pattern=NAME)
    seed: int = key("moves every random stream", at_least=0, at_most=2**32 - 1, lane=True)
    dtype: Literal["float64", "float32", "bfloat16", "float16"] = key("type of parameters and data")
    amp: Literal["off", "bfloat16", "float16"] = key(
        "mixed precision of the forward pass; float16 with a gradient scaler"
    )
    update: Literal["manual", "optimizer"] = key("updates written out by hand, or done by torch.optim")
    deterministic: bool = key("only operations that give the same bits twice")
    seeds: int | None = key("a sweep over this many seeds, from `seed` on; null is one run", at_least=1)
    run_dir: str | None = key("directory of this run, or sweep; null makes runs/<name>/<stamp>")
    resume: str | None = key("run directory to go on in")
    device: Device
    data: Line | Curve | Csv | Parquet | Diabetes
    model: Linear | Polynomial | Mlp | Formula
    loss: Mse | Mae | Huber
    optimizer: Sgd | Momentum | Adam | AdamW | Lbfgs | Lstsq | Lm
    schedule: Constant | Step | Cosine | WarmupCosine
    strategy: Strategy
    launch: Launch
    train: Train
    checkpoint: Checkpoint
    record: Record
    sweep: Sweep


UNHASHED = ("name", "seeds", "run_dir", "resume", "device.visible", "launch", "record", "checkpoint", "sweep")
"""Keys that change where and how a run is written down, not its answer."""


def plain(config: Any) -> dict[str, Any]:
    """A config as what YAML and JSON hold: dicts, lists, numbers, texts."""
    values: dict[str, Any] = _plain(config)
    return values


def _plain(value: Any) -> Any:
    """Not dataclasses.asdict, which copies every number deeply: ten times as slow, and a sweep asks for it thousands of times."""
    if isinstance(value, (str, int, float)) or value is None:
        return value
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, tuple):
        return list(value)
    kind: Any = type(value)
    return {name: _plain(getattr(value, name)) for name in _names(kind)}


@cache
def _names(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def config_hash(config: Config) -> str:
    """SHA-256 over every key that the answer depends on."""
    return hashlib.sha256(json.dumps(hashed(plain(config)), sort_keys=True).encode()).hexdigest()


def hashed(values: dict[str, Any]) -> dict[str, Any]:
    """Of a configuration's plain values those that the answer depends on."""
    found = {**values, "device": dict(values["device"])}
    for path in UNHASHED:
        group, _, name = path.rpartition(".")
        (found[group] if group else found).pop(name, None)
    return found


def program(config: Config) -> str:
    """What runs must have in common to be trained side by side: the same text for the same program."""
    values = without_lanes(config)
    for name in ("run_dir", "resume", "seeds", "sweep"):
        del values[name]
    return json.dumps(values, sort_keys=True)
