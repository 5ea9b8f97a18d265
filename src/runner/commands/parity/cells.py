"""The cells of a parity table: every device × dtype × strategy × update × optimizer, and why some of them cannot run here.

The decisions are functions of the configuration, the environment and what torch reports about the hardware.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, get_args

from runner.compute.devices import Hardware, choose
from runner.compute.processes.group import BACKENDS
from runner.config import introspection
from runner.config.compose import compose
from runner.config.hydra_adapter import options
from runner.config.overrides import Plan, key_of, parse
from runner.config.schema import Config, Device, Strategy
from runner.errors import ConfigError, DeviceError, InputError

AXES = ("device", "dtype", "strategy", "update", "optimizer")
ONE_PROCESS = ("single", "dp")
"""Strategies of one process; all others have `Asked.processes` of them."""

OWN = {
    "run_dir": "say where the table goes with --out DIR",
    "resume": "every cell starts from step 0; leave it out",
    "seeds": "a table is of one seed; give seed=N",
    "train.steps": "say how many steps are compared with --steps N",
    "train.epochs": "say how many steps are compared with --steps N",
    "launch.nodes": "a table is made on one host; leave it out",
}
"""Keys that are refused, and what to do."""


@dataclass(frozen=True)
class Cell:
    """One way to compute the experiment."""

    device: str
    dtype: str
    strategy: str
    update: str
    optimizer: str

    @property
    def words(self) -> list[str]:
        """Itself on a command line."""
        return [f"{axis}={getattr(self, axis)}" for axis in AXES]

    def __str__(self) -> str:
        return " ".join(self.words)


@dataclass(frozen=True)
class Asked:
    """What the table is of: `axes` are the values of each axis in the order of the schema, `bases` a configuration an optimizer.

    `refused` are the optimizers that the words of the command line do not fit, each with the reasons;
    `notices` is what the user should hear of every configuration.
    """

    axes: Mapping[str, Sequence[str]]
    words: tuple[str, ...]
    bases: Mapping[str, Config]
    refused: Mapping[str, tuple[str, ...]]
    notices: tuple[str, ...]
    processes: int

    def cells(self, devices: Sequence[str]) -> list[Cell]:
        """All cells of some of the devices, in the order of the axes."""
        values = {**self.axes, "device": devices}
        return [Cell(*found) for found in product(*(values[axis] for axis in AXES))]

    def size(self, cell: Cell) -> int:
        """Processes that compute a cell."""
        return 1 if cell.strategy in ONE_PROCESS else self.processes

    def config(self, cell: Cell) -> Config:
        """The configuration of a cell whose optimizer is not refused."""
        base = self.bases[cell.optimizer]
        changed: dict[str, Any] = {
            "device": replace(base.device, name=cell.device),  # type: ignore[arg-type]
            "dtype": cell.dtype,
            "strategy": replace(base.strategy, name=cell.strategy),  # type: ignore[arg-type]
            "update": cell.update,
            "launch": replace(base.launch, processes=self.size(cell), nodes=1, rdzv_endpoint=None, max_restarts=0),
        }
        return replace(base, **changed)

    def command(self, cell: Cell, steps: int) -> list[str]:
        """The command line that computes a cell alone."""
        size, threads = self.size(cell), f"device.threads={next(iter(self.bases.values())).device.threads}"
        own = [word for word in self.words if key_of(word) not in ("launch.processes", "device.threads")]
        several = [f"launch.processes={size}"] if size > 1 else []
        return ["python", "-m", "runner", *own, *cell.words, f"train.steps={steps}", threads, *several]


def every() -> dict[str, tuple[str, ...]]:
    """All values of each axis, as the schema has them."""
    fields = {"device": (Device, "name"), "dtype": (Config, "dtype"), "update": (Config, "update")}
    found = {axis: get_args(introspection.hints(kind)[name]) for axis, (kind, name) in fields.items()}
    found["strategy"] = get_args(introspection.hints(Strategy)["name"])
    found["optimizer"] = tuple(introspection.variants(introspection.hints(Config)["optimizer"]))
    return {axis: tuple(value for value in found[axis] if value != "auto") for axis in AXES}


def ask(words: Sequence[str], config_dir: str | None) -> Asked:
    """The table that the words of a command line ask for; a word for an axis restricts it, and may name several values.

    Raises `ConfigError` with everything that is wrong.
    """
    axes, others, plan = _sorted(words, config_dir)
    bases, refused = dict[str, Config](), dict[str, tuple[str, ...]]()
    notices, errors = list[set[str]](), list[InputError]()
    for optimizer in axes["optimizer"]:
        # The rest of a configuration is judged beside values that all fit each other; cells are judged one by one.
        plain = ["device=cpu", "dtype=float32", "strategy=single", "update=optimizer", f"optimizer={optimizer}"]
        try:
            composed = compose([*others, *plain], config_dir)
        except InputError as error:
            refused[optimizer] = error.problems
            errors.append(error)
            continue
        bases[optimizer] = _one_thread(composed.config)
        notices.append(set(composed.notices))
    plan.problems += errors[0].problems if not bases else _unfit(next(iter(bases.values())))
    if plan.problems:
        raise ConfigError(plan.problems)
    processes = max(2, *(config.launch.processes for config in bases.values()))
    heard = (*plan.notices, *sorted(set.intersection(*notices)))
    return Asked(axes, tuple(others), bases, refused, heard, processes)


def _sorted(words: Sequence[str], config_dir: str | None) -> tuple[dict[str, tuple[str, ...]], list[str], Plan]:
    """The values of the axes, the words that are for none of them, and what is to be said of the words."""
    axes, others, plan = dict[str, tuple[str, ...]](), [], Plan()
    groups, whole = options(config_dir), every()
    known = [*introspection.paths(Config), *groups]
    for word in words:
        name = key_of(word)
        if name in OWN:
            plan.problems.append(f"`{name}` cannot be given to parity: {OWN[name]}")
        elif name not in whole:
            others.append(word)
        elif (override := parse(word, known, groups, plan)) is not None:
            values = list(override.sweep_string_iterator()) if override.is_sweep_override() else [override.value()]
            if name in axes:
                plan.notices.append(f"`{name}` is given twice; the last one counts: {word.partition('=')[2]}")
            axes[name] = tuple(value for value in whole[name] if value in values)
            if unknown := [str(value) for value in values if value not in whole[name]]:
                plan.problems.append(
                    f"`{name}` must be among {', '.join(whole[name])}, but is {unknown[0]}; leave it out for all"
                )
    return whole | axes, others, plan


def _one_thread(config: Config) -> Config:
    """Cells differ in their axes alone: the number of threads can change sums, and several processes have one each."""
    threads = config.device.threads or 1
    early = replace(config.train.early_stopping, patience=None)
    return replace(
        config,
        device=replace(config.device, threads=threads),
        train=replace(config.train, early_stopping=early),
        record=replace(config.record, every_steps=1, plots=False),
        checkpoint=replace(config.checkpoint, keep=None, async_save=False),
    )


def _unfit(config: Config) -> list[str]:
    """With what no cell can be held against its reference."""
    problems = []
    if config.amp != "off":
        problems.append(
            f"`amp` must be off for parity, whose reference is float64, but is {config.amp}; use amp=off, and dtype for the types"
        )
    if getattr(config.model, "dropout", 0):
        problems.append(
            "`model.dropout` must be 0 for parity, since each device and each process drops units of its own; use model.dropout=0"
        )
    return problems


def missing(device: Device, name: str, environ: Mapping[str, str], hardware: Hardware) -> tuple[str, ...]:
    """Why there is no device of a kind on this machine; nothing when there is one."""
    try:
        choose(replace(device, name=name), environ, hardware)  # type: ignore[arg-type]
    except DeviceError as error:
        return error.problems
    return ()


def obstacles(config: Config, size: int, environ: Mapping[str, str], hardware: Hardware) -> tuple[str, ...]:
    """Why a configuration cannot be computed by `size` processes on this machine, in the words of a run; nothing when it can."""
    from runner.training.build import misfits, resolve

    try:
        choice = choose(config.device, environ, hardware, 0, size)
    except DeviceError as error:
        return error.problems
    if size > 1 and choice.kind not in BACKENDS:
        return (f"`device` must be cpu, cuda, rocm or xpu for several processes, but is {choice.kind}; use device=cpu",)
    problems = misfits(config, choice, size)
    if problems:
        return tuple(problems)
    found = resolve(config, choice, size).strategy.name
    if found != config.strategy.name:
        return (f"`strategy`={config.strategy.name} has one device to work on, so the run is {found}",)
    return ()
