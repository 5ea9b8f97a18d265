"""The typed schema: for every key its type, bounds, unit and one sentence of meaning. The values stand in `conf/`.

Nothing here imports torch: a configuration is checked, shown and hashed without it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from runner.config.expression import parse
from runner.config.validation import Part, group, key, keys_where, without, without_lanes, without_newer
from runner.errors import ExpressionError

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
        "ordinals or UUIDs of the GPUs this run may see; null leaves the shell's mask", at_least=0, changes="placement"
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
class DataConfig(Part):
    """Rows to learn from: where they come from, how they are split and scaled.

    A builder takes (config, seed) and returns a `runner.data.tables.Table`.
    """

    name: str = key("kind of data")
    seed: int | None = key(
        "seed of data and split alone; null takes the run's seed", at_least=0, at_most=2**32 - 1, lane=True
    )
    log_target: bool = key("fit log(target); rmse and mae stay in the target's own units")
    standardize: bool = key("features and target to mean 0 and deviation 1, fitted on the training rows")
    split: Split

    @property
    def noise_deviation(self) -> float | None:
        """Standard deviation of the noise around the true function; None where that is not known."""
        return None


@dataclass(frozen=True, kw_only=True)
class _Synthetic(DataConfig):
    rows: int = key("rows that are made", unit="rows", at_least=1)
    start: float = key("smallest feature value", lane=True)
    stop: float = key("largest feature value", lane=True)
    noise: float = key("scale of what is added to the target", unit="target's", at_least=0, lane=True)
    noise_distribution: Literal["normal", "uniform"] = key("noise·N(0, 1) or noise·U(0, 1)")

    @property
    def noise_deviation(self) -> float:
        return self.noise / (math.sqrt(12) if self.noise_distribution == "uniform" else 1)

    def problems(self) -> Iterator[str]:
        if not self.start < self.stop:
            yield "`data.start` must be below `data.stop`, the other end of the feature's range; swap them"


@dataclass(frozen=True, kw_only=True)
class Line(_Synthetic, name="line", builder="runner.data.synthetic:line"):
    """Rows of y = slope·x + intercept + noise; one feature is evenly spaced, more are drawn evenly from the range."""

    features: int = key("number of features; the slope is the same for each", at_least=1)
    slope: float = key("true slope", lane=True)
    intercept: float = key("true intercept", lane=True)


@dataclass(frozen=True, kw_only=True)
class Curve(_Synthetic, name="curve", builder="runner.data.synthetic:curve"):
    """Rows of y = expression + noise; one variable is evenly spaced, more are drawn evenly from the range."""

    expression: str = key("formula of the target; its names are the features")

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        try:
            names = parse(self.expression).names
        except ExpressionError as error:
            yield f"`data.expression`: {error}"
            return
        if not names:
            yield "`data.expression` must have at least one name, the feature; write for example sin(x)"


@dataclass(frozen=True, kw_only=True)
class _Table(DataConfig):
    path: str = key("file, from the working directory")
    target: str = key("column to predict")
    features: tuple[str, ...] | None = key("columns to predict from; null takes all but the target")


@dataclass(frozen=True, kw_only=True)
class Csv(_Table, name="csv", builder="runner.data.tables:from_csv"):
    """A comma-separated file with a header line and numbers below it."""


@dataclass(frozen=True, kw_only=True)
class Parquet(_Table, name="parquet", builder="runner.data.tables:from_parquet"):
    """A Parquet file of numeric columns (extra `tables`)."""


@dataclass(frozen=True, kw_only=True)
class Diabetes(DataConfig, name="diabetes", builder="runner.data.tables:from_diabetes"):
    """442 patients, ten measurements, disease progression a year later (Efron et al., 2004); ships with the package."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Part):
    """A function with parameters to learn.

    A builder takes (config, feature_names, generator) and returns a `runner.models.base.Model` in float64 on the CPU.
    """

    identifiable: ClassVar[bool] = True
    """Whether other parameters make other predictions, as those of a network do not."""
    keeps_units: ClassVar[bool] = False
    """Whether its parameters are in the units of the file, so that the data must not be standardized."""
    divisible: ClassVar[bool] = True
    """Whether its parameters are tensors that processes can split between them."""
    records_parameters: ClassVar[bool] = False
    """Whether every row of metrics has its parameters."""

    name: str = key("kind of model")

    @property
    def draws(self) -> bool:
        """Whether the forward pass in training draws random numbers."""
        return False


@dataclass(frozen=True, kw_only=True)
class Linear(ModelConfig, name="linear", builder="runner.models.linear:linear"):
    """y = weight·x + bias."""

    bias: bool = key("whether there is a constant term")
    init: Init = key("start values: kaiming is torch's own, uniform U(0, 1), normal N(0, 1)")


@dataclass(frozen=True, kw_only=True)
class Polynomial(ModelConfig, name="polynomial", builder="runner.models.linear:polynomial"):
    """Linear in the powers 1 … degree of every feature."""

    degree: int = key("highest power", at_least=1, at_most=50)
    init: Init = key("start values: kaiming is torch's own, uniform U(0, 1), normal N(0, 1)")


@dataclass(frozen=True, kw_only=True)
class Mlp(ModelConfig, name="mlp", builder="runner.models.mlp:build"):
    """Fully connected layers with an activation after each but the last."""

    identifiable = False

    widths: tuple[int, ...] = key("units of the hidden layers", at_least=1)
    activation: Literal["relu", "tanh", "gelu", "silu", "sigmoid"] = key("what follows each hidden layer")
    dropout: float = key("share of units dropped in training", at_least=0, below=1)

    @property
    def draws(self) -> bool:
        return self.dropout > 0


@dataclass(frozen=True, kw_only=True)
class Formula(ModelConfig, name="formula", builder="runner.models.formula:build"):
    """Any function of the data columns; every other name in it is a parameter."""

    keeps_units = True
    divisible = False
    records_parameters = True

    expression: str = key("the function, such as a*exp(-b*x) + c")
    start: dict[str, float] = key("start value of each parameter; those not named are drawn by init", lane=True)
    init: Literal["uniform", "normal", "zeros"] = key("start values of the others: U(0, 1), N(0, 1) or 0")

    def problems(self) -> Iterator[str]:
        try:
            names = parse(self.expression).names
        except ExpressionError as error:
            yield f"`model.expression`: {error}"
            return
        for name in sorted(set(self.start) - set(names)):
            yield (
                f"`model.start.{name}` must name a parameter of `model.expression`, but {self.expression!r} has "
                f"{', '.join(names) or 'no names'}; take it out or mend its name"
            )


@dataclass(frozen=True, kw_only=True)
class LossConfig(Part):
    """Mean over the rows of what an error costs.

    A builder takes (config) and returns (prediction, target, reduction) → the cost of each row (0) or their mean (1), as
    the losses of `torch.ops.aten` do.
    """

    squares: ClassVar[bool] = False
    """Whether it is the mean of squared errors, for which much is known in closed form."""

    name: str = key("kind of loss")


@dataclass(frozen=True, kw_only=True)
class Mse(LossConfig, name="mse", builder="runner.models.losses:mse"):
    """Mean of squared errors."""

    squares = True


@dataclass(frozen=True, kw_only=True)
class Mae(LossConfig, name="mae", builder="runner.models.losses:mae"):
    """Mean of absolute errors."""


@dataclass(frozen=True, kw_only=True)
class Huber(LossConfig, name="huber", builder="runner.models.losses:huber"):
    """Squared near zero, absolute beyond delta (Huber, 1964)."""

    delta: float = key("error at which the square becomes a line", unit="target's", above=0)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Part):
    """How parameters are changed to make the loss smaller.

    A builder takes (config, parameters by name) and returns a `runner.optim.base.Optimizer`; that of a method of least
    squares also takes the configurations of all lanes. An update that can be written out by hand names its `rule` as well,
    which takes (configurations of all lanes, numbers) and returns a `runner.optim.rules.Rule`.
    """

    rule: ClassVar[str | None] = None
    least_squares: ClassVar[bool] = False
    """Whether it asks for residuals of all rows and finds its own steps."""
    linear_only: ClassVar[bool] = False
    """Whether it solves problems that are linear in their parameters, and no others."""
    evaluates_repeatedly: ClassVar[bool] = False
    """Whether a step asks for the loss more than once, along a line of its own."""

    name: str = key("kind of optimizer")

    def __init_subclass__(cls, *, rule: str | None = None, **binding: Any) -> None:
        super().__init_subclass__(**binding)
        cls.rule = rule

    if TYPE_CHECKING:

        @property
        def lr(self) -> float | None:
            """Learning rate before the schedule; None for a method that finds its own steps."""

    @property
    def l2_penalty(self) -> float | None:
        """Weight of the l2 penalty that it adds to the loss; None where it shrinks parameters in another way."""
        return float(getattr(self, "weight_decay", 0.0))

    @property
    def descent_momentum(self) -> float | None:
        """Momentum of gradient descent, 0 without; None for other methods."""
        return None


@dataclass(frozen=True, kw_only=True)
class _Optimizer(OptimizerConfig):
    lr: float = key("learning rate before the schedule", at_least=0, at_most=1e38, lane=True)


@dataclass(frozen=True, kw_only=True)
class Sgd(_Optimizer, name="sgd", builder="runner.optim.torch_optim:sgd", rule="runner.optim.rules:sgd"):
    """Gradient descent: p ← p − lr·g."""

    weight_decay: float = key("l2 penalty added to the gradient", at_least=0, at_most=1e38, lane=True)

    @property
    def descent_momentum(self) -> float:
        return 0.0


@dataclass(frozen=True, kw_only=True)
class Momentum(
    _Optimizer, name="momentum", builder="runner.optim.torch_optim:momentum", rule="runner.optim.rules:momentum"
):
    """Gradient descent along a decaying sum of gradients (Polyak, 1964), as torch.optim.SGD defines it."""

    momentum: float = key("share of the last direction that is kept", at_least=0, below=1, lane=True)
    weight_decay: float = key("l2 penalty added to the gradient", at_least=0, at_most=1e38, lane=True)

    @property
    def descent_momentum(self) -> float:
        return self.momentum


@dataclass(frozen=True, kw_only=True)
class Adam(_Optimizer, name="adam", builder="runner.optim.torch_optim:adam", rule="runner.optim.rules:adam"):
    """Adaptive moments (Kingma and Ba, 2015)."""

    betas: tuple[float, float] = key("decay of the first and of the second moment", at_least=0, below=1, lane=True)
    eps: float = key("added to the root of the second moment", above=0, lane=True)
    weight_decay: float = key("l2 penalty added to the gradient", at_least=0, at_most=1e38, lane=True)


@dataclass(frozen=True, kw_only=True)
class AdamW(_Optimizer, name="adamw", builder="runner.optim.torch_optim:adamw", rule="runner.optim.rules:adamw"):
    """Adam with weight decay apart from the gradient (Loshchilov and Hutter, 2019)."""

    betas: tuple[float, float] = key("decay of the first and of the second moment", at_least=0, below=1, lane=True)
    eps: float = key("added to the root of the second moment", above=0, lane=True)
    weight_decay: float = key(
        "share of the parameter taken off each step, times lr", at_least=0, at_most=1e38, lane=True
    )

    @property
    def l2_penalty(self) -> float | None:
        return None if self.weight_decay else 0.0


@dataclass(frozen=True, kw_only=True)
class Lbfgs(_Optimizer, name="lbfgs", builder="runner.optim.torch_optim:lbfgs"):
    """Limited-memory BFGS with a closure (Liu and Nocedal, 1989); update=optimizer only."""

    evaluates_repeatedly = True

    max_iter: int = key("iterations inside one step", at_least=1)
    history_size: int = key("pairs of vectors that are remembered", at_least=1)
    tolerance_grad: float = key("a largest gradient entry below this ends the step", at_least=0)
    tolerance_change: float = key("a change of loss or parameters below this ends the step", at_least=0)
    line_search: Literal["strong_wolfe"] | None = key("how far to go along a direction; null takes lr")


@dataclass(frozen=True, kw_only=True)
class _Solver(OptimizerConfig):
    """An optimizer that finds out by itself how far to go."""

    least_squares = True

    @property
    def lr(self) -> None:
        """It has no learning rate."""


@dataclass(frozen=True, kw_only=True)
class Lstsq(_Solver, name="lstsq", builder="runner.optim.least_squares:lstsq"):
    """The least-squares solution, outright: for mse and models that are linear in their parameters."""

    linear_only = True

    weight_decay: float = key("l2 penalty added to the gradient", at_least=0, at_most=1e38, lane=True)


@dataclass(frozen=True, kw_only=True)
class Lm(_Solver, name="lm", builder="runner.optim.least_squares:lm"):
    """Levenberg–Marquardt (Marquardt, 1963; Moré, 1978): damped Gauss–Newton steps, for mse, formulas and small models."""

    radius: float = key(
        "longest first step, in multiples of the start values, each weighed by its effect on the predictions",
        above=0,
        at_most=1e38,
        lane=True,
    )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Part):
    """Learning rate of every step.

    A builder takes (config, lr, steps) and returns step (from 1) → learning rate.
    """

    constant: ClassVar[bool] = False
    """Whether it is the same learning rate at every step."""

    name: str = key("kind of schedule")

    @property
    def least_steps(self) -> int:
        """Fewest steps of a run that it fits."""
        return 1


@dataclass(frozen=True, kw_only=True)
class Constant(ScheduleConfig, name="constant", builder="runner.optim.schedules:constant"):
    """The learning rate as given."""

    constant = True


@dataclass(frozen=True, kw_only=True)
class Step(ScheduleConfig, name="step", builder="runner.optim.schedules:step"):
    """Multiplied by factor every so many steps."""

    every_steps: int = key("steps between two reductions", unit="steps", at_least=1, lane=True)
    factor: float = key("what the learning rate is multiplied by", above=0, at_most=1, lane=True)


@dataclass(frozen=True, kw_only=True)
class Cosine(ScheduleConfig, name="cosine", builder="runner.optim.schedules:cosine"):
    """Half a cosine from lr down to final_factor·lr at the last step (Loshchilov and Hutter, 2017)."""

    final_factor: float = key("share of lr at the last step", at_least=0, at_most=1, lane=True)


@dataclass(frozen=True, kw_only=True)
class WarmupCosine(ScheduleConfig, name="warmup_cosine", builder="runner.optim.schedules:warmup_cosine"):
    """A straight rise to lr, then half a cosine down to final_factor·lr."""

    warmup_steps: int = key("steps of the rise", unit="steps", at_least=1, lane=True)
    final_factor: float = key("share of lr at the last step", at_least=0, at_most=1, lane=True)

    @property
    def least_steps(self) -> int:
        return self.warmup_steps + 1


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """How the work of one run is placed."""

    name: Literal["auto", "single", "dp", "ddp", "fsdp", "tensor", "pipeline"] = key(
        "auto is single on one process and ddp on more"
    )
    reduction: Literal["fast", "exact"] = key(
        "exact adds gradients in a fixed order, so that the bits do not depend on the number of processes",
        before="fast",
        hashed=True,
    )
    chunks: int = key(
        "parts of every batch with reduction=exact, a power of two that the number of processes divides",
        at_least=1,
        at_most=4096,
        before=8,
        hashed=True,
    )
    tensor_parallel: int = key(
        "processes that split each layer between them, with fsdp; the others split the rows",
        at_least=1,
        before=1,
        hashed=True,
    )


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Which processes compute the run, where `python -m runner` starts them; under torchrun they are there already."""

    processes: int = key("processes on this host; 1 starts none", at_least=1, before=1)
    nodes: int = key("hosts, on each of which the same command is typed", at_least=1, before=1)
    rdzv_endpoint: str | None = key(
        "host:port where the hosts meet, on one of them; null on a single host",
        pattern=r"[^:\s]+:[0-9]{1,5}",
        before=None,
    )
    max_restarts: int = key("how often all processes are started again after one of them failed", at_least=0, before=0)
    timeout_seconds: float = key(
        "longest time that a process waits for another one", unit="seconds", above=0, at_most=1e6, before=600.0
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

    steps: int | None = key("parameter updates; null where epochs are given", unit="steps", at_least=1, resumable=True)
    epochs: int | None = key(
        "passes over the training rows; null where steps are given", unit="epochs", at_least=1, resumable=True
    )
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
    async_save: bool = key("write checkpoints beside the training, which goes on meanwhile", before=False)


@dataclass(frozen=True, kw_only=True)
class SinkConfig(Part):
    """A place that rows of metrics are written to.

    A builder takes (config, run directory, held) and returns a `runner.runs.sinks.base.Sink`. With `held` its files are open
    only while they are written to, since the runs of a sweep are too many to keep all of them open.
    """

    name: str = key("kind of sink")


@dataclass(frozen=True, kw_only=True)
class JsonLines(SinkConfig, name="jsonl", builder="runner.runs.sinks.jsonl:build"):
    """`metrics.jsonl`, a line of strict JSON a row."""


@dataclass(frozen=True, kw_only=True)
class TensorBoard(SinkConfig, name="tensorboard", builder="runner.runs.sinks.tensorboard:build"):
    """Event files for the dashboard."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is written down on the way."""

    every_steps: int = key("steps between rows of metrics.jsonl, TensorBoard and the console", unit="steps", at_least=1)
    sinks: tuple[str, ...] = key(
        "where rows of metrics are written to besides the console: jsonl, always, and tensorboard",
        before=["jsonl", "tensorboard"],
    )
    plots: bool = key("draw plots/*.png at the end")
    hash_every_steps: int | None = key(
        "steps between lines of hashes.jsonl, from step 0 on, by which `diverge` tells where two runs part; null writes none",
        unit="steps",
        at_least=1,
        before=None,
    )


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """How the trials of `-m` are run."""

    max_trials: int = key("most trials of one sweep: a grid that would make more is refused", at_least=1, before=10_000)
    audit: int = key(
        "trials, drawn at random, that are trained again alone at the end and compared", at_least=0, before=0
    )
    memory_gib: float | None = key(
        "memory that trials side by side may take; null takes half of what the device has free",
        unit="GiB",
        above=0,
        before=None,
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """One experiment, whole."""

    name: str = key("experiment's name, the folder of its runs", pattern=NAME, changes="recording")
    seed: int = key("moves every random stream", at_least=0, at_most=2**32 - 1, lane=True)
    dtype: Literal["float64", "float32", "bfloat16", "float16"] = key("type of parameters and data")
    amp: Literal["off", "bfloat16", "float16"] = key(
        "mixed precision of the forward pass; float16 with a gradient scaler"
    )
    update: Literal["manual", "optimizer"] = key("updates written out by hand, or done by torch.optim")
    deterministic: bool = key("only operations that give the same bits twice")
    seeds: int | None = key(
        "a sweep over this many seeds, from `seed` on; null is one run",
        at_least=1,
        changes="recording",
        per_run=True,
        before=None,
    )
    run_dir: str | None = key(
        "directory of this run, or sweep; null makes runs/<name>/<stamp>", changes="recording", per_run=True
    )
    resume: str | None = key("run directory to go on in", changes="recording", resumable=True, per_run=True)
    device: Device = group(resumable=True)
    data: DataConfig
    model: ModelConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    strategy: Strategy = group(resumable=True)
    launch: Launch = group(changes="placement", resumable=True)
    train: Train
    checkpoint: Checkpoint = group(changes="recording", resumable=True)
    record: Record = group(changes="recording", resumable=True)
    sweep: Sweep = group(changes="recording", per_run=True)


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
    """SHA-256 over every key that the answer depends on, but for newer ones that still have the value of before."""
    values = without_newer(type(config), hashed(plain(config)))
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def hashed(values: dict[str, Any]) -> dict[str, Any]:
    """Those of a configuration's plain values that the answer depends on."""
    return without(values, unhashed_keys())


@cache
def unhashed_keys() -> tuple[str, ...]:
    """Keys that change where a run is computed and how it is recorded, not its answer."""
    return keys_where(Config, lambda key: key.changes != "answer")


@cache
def resumable_keys() -> tuple[str, ...]:
    """Keys that may be overridden when a run is resumed; any other would make it another experiment."""
    return keys_where(Config, lambda key: key.resumable)


@cache
def free_keys() -> tuple[str, ...]:
    """Keys that may differ between a checkpoint and the configuration that resumes it."""
    return keys_where(Config, lambda key: key.resumable or key.changes != "answer")


@cache
def _per_run_keys() -> tuple[str, ...]:
    return keys_where(Config, lambda key: key.per_run)


def program(config: Config) -> str:
    """What trials must have in common to be vmapped: the same text for the same program."""
    return json.dumps(without(without_lanes(config), _per_run_keys()), sort_keys=True)
