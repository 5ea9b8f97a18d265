"""Cells of a parity table (device × dtype × strategy × update × optimizer) and why some of them cannot run here.

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
"""Strategies of one process; all others use `ParityRequest.processes`."""

REFUSED_KEYS = {
    "run_dir": "use --out DIR for the directory of the table",
    "resume": "every cell starts from step 0; leave it out",
    "seeds": "a table has one seed; use seed=N",
    "train.steps": "use --steps N for the number of steps",
    "train.epochs": "use --steps N for the number of steps",
    "launch.nodes": "a table is computed on one host; leave it out",
}
"""Keys that parity refuses, with the remedy."""


@dataclass(frozen=True)
class Cell:
    """One way to compute the experiment."""

    device: str
    dtype: str
    strategy: str
    update: str
    optimizer: str

    @property
    def overrides(self) -> list[str]:
        """Overrides that select the cell on a command line."""
        return [f"{axis}={getattr(self, axis)}" for axis in AXES]

    def __str__(self) -> str:
        return " ".join(self.overrides)


@dataclass(frozen=True)
class ParityRequest:
    """The requested table: values of the axes, and the configurations that its cells vary."""

    axes: Mapping[str, Sequence[str]]
    """Axis -> its values, in the order of the schema."""
    overrides: tuple[str, ...]
    """Command-line overrides that are not for an axis."""
    bases: Mapping[str, Config]
    """Optimizer -> configuration."""
    refused: Mapping[str, tuple[str, ...]]
    """Optimizer whose configuration is not valid with the overrides -> the reasons."""
    notices: tuple[str, ...]
    """Notices that apply to every configuration."""
    processes: int

    def cells(self, devices: Sequence[str]) -> list[Cell]:
        """Return all cells of these devices, in the order of the axes."""
        values = {**self.axes, "device": devices}
        return [Cell(*combination) for combination in product(*(values[axis] for axis in AXES))]

    def processes_of(self, cell: Cell) -> int:
        """Return the number of processes that compute a cell."""
        return 1 if cell.strategy in ONE_PROCESS else self.processes

    def config(self, cell: Cell) -> Config:
        """Return the configuration of a cell whose optimizer is not refused."""
        base = self.bases[cell.optimizer]
        changes: dict[str, Any] = {
            "device": replace(base.device, name=cell.device),  # type: ignore[arg-type]
            "dtype": cell.dtype,
            "strategy": replace(base.strategy, name=cell.strategy),  # type: ignore[arg-type]
            "update": cell.update,
            "launch": replace(
                base.launch, processes=self.processes_of(cell), nodes=1, rdzv_endpoint=None, max_restarts=0
            ),
        }
        return replace(base, **changes)

    def command(self, cell: Cell, steps: int) -> list[str]:
        """Return the command line that computes one cell by itself."""
        size, threads = self.processes_of(cell), f"device.threads={next(iter(self.bases.values())).device.threads}"
        kept = [
            argument for argument in self.overrides if key_of(argument) not in ("launch.processes", "device.threads")
        ]
        several = [f"launch.processes={size}"] if size > 1 else []
        return ["python", "-m", "runner", *kept, *cell.overrides, f"train.steps={steps}", threads, *several]


def axis_values() -> dict[str, tuple[str, ...]]:
    """Return all values of each axis, as the schema lists them."""
    fields = {"device": (Device, "name"), "dtype": (Config, "dtype"), "update": (Config, "update")}
    values = {axis: get_args(introspection.hints(kind)[name]) for axis, (kind, name) in fields.items()}
    values["strategy"] = get_args(introspection.hints(Strategy)["name"])
    values["optimizer"] = tuple(introspection.variants(introspection.hints(Config)["optimizer"]))
    return {axis: tuple(value for value in values[axis] if value != "auto") for axis in AXES}


def read_request(overrides: Sequence[str], config_dir: str | None) -> ParityRequest:
    """Return the table that command-line overrides request; an override of an axis restricts it to one or more values.

    Raises `ConfigError` with every problem.
    """
    axes, others, plan = _split_axes(overrides, config_dir)
    bases, refused = dict[str, Config](), dict[str, tuple[str, ...]]()
    notices, errors = list[set[str]](), list[InputError]()
    for optimizer in axes["optimizer"]:
        # These axis values fit each other and so do not cause problems of their own. Cells are checked one by one later.
        plain = ["device=cpu", "dtype=float32", "strategy=single", "update=optimizer", f"optimizer={optimizer}"]
        try:
            composed = compose([*others, *plain], config_dir)
        except InputError as error:
            refused[optimizer] = error.problems
            errors.append(error)
            continue
        bases[optimizer] = _comparable(composed.config)
        notices.append(set(composed.notices))
    plan.problems += errors[0].problems if not bases else _incomparable(next(iter(bases.values())))
    if plan.problems:
        raise ConfigError(plan.problems)
    processes = max(2, *(config.launch.processes for config in bases.values()))
    common = (*plan.notices, *sorted(set.intersection(*notices)))
    return ParityRequest(axes, tuple(others), bases, refused, common, processes)


def _split_axes(overrides: Sequence[str], config_dir: str | None) -> tuple[dict[str, tuple[str, ...]], list[str], Plan]:
    """Return the values of the axes, the overrides that are not for an axis, and a plan with problems and notices."""
    axes, others, plan = dict[str, tuple[str, ...]](), [], Plan()
    groups, allowed = options(config_dir), axis_values()
    known = [*introspection.paths(Config), *groups]
    for argument in overrides:
        name = key_of(argument)
        if name in REFUSED_KEYS:
            plan.problems.append(f"`{name}` cannot be used with parity: {REFUSED_KEYS[name]}")
        elif name not in allowed:
            others.append(argument)
        elif (override := parse(argument, known, groups, plan)) is not None:
            values = list(override.sweep_string_iterator()) if override.is_sweep_override() else [override.value()]
            if name in axes:
                plan.notices.append(f"`{name}` is given twice; the last one counts: {argument.partition('=')[2]}")
            axes[name] = tuple(value for value in allowed[name] if value in values)
            if unknown := [str(value) for value in values if value not in allowed[name]]:
                plan.problems.append(
                    f"`{name}` must be among {', '.join(allowed[name])}, got {unknown[0]}; leave it out for all"
                )
    shipped = tuple(name for name in allowed["optimizer"] if name != "custom")  # which needs a class
    return allowed | {"optimizer": shipped} | axes, others, plan


def _comparable(config: Config) -> Config:
    """Return the configuration with everything fixed that should not differ between cells."""
    # The number of threads can change sums, and each of several processes has one thread.
    threads = config.device.threads or 1
    no_early_stopping = replace(config.train.early_stopping, patience=None)
    return replace(
        config,
        device=replace(config.device, threads=threads),
        train=replace(config.train, early_stopping=no_early_stopping),
        record=replace(config.record, every_steps=1, plots=False),
        checkpoint=replace(config.checkpoint, keep=None, async_save=False),
    )


def _incomparable(config: Config) -> list[str]:
    """Return problems with which no cell can be compared with its reference."""
    problems = []
    if config.amp != "off":
        problems.append(
            f"`amp` must be off for parity, whose reference is float64, got {config.amp}; use amp=off, and dtype for the dtypes"
        )
    if getattr(config.model, "dropout", 0):
        problems.append(
            "`model.dropout` must be 0 for parity, since each device and each process drops other units; use model.dropout=0"
        )
    return problems


def why_unavailable(device: Device, name: str, environ: Mapping[str, str], hardware: Hardware) -> tuple[str, ...]:
    """Return why this machine has no device of a kind; empty if it has one."""
    try:
        choose(replace(device, name=name), environ, hardware)  # type: ignore[arg-type]
    except DeviceError as error:
        return error.problems
    return ()


def obstacles(config: Config, size: int, environ: Mapping[str, str], hardware: Hardware) -> tuple[str, ...]:
    """Return why `size` processes cannot compute a configuration on this machine, as a run would report it.

    The result is empty if they can.
    """
    from runner.training.build import misfits, resolve

    try:
        choice = choose(config.device, environ, hardware, 0, size)
    except DeviceError as error:
        return error.problems
    if size > 1 and choice.kind not in BACKENDS:
        return (f"`device` must be cpu, cuda, rocm or xpu for several processes, got {choice.kind}; use device=cpu",)
    problems = misfits(config, choice, size)
    if problems:
        return tuple(problems)
    strategy = resolve(config, choice, size).strategy.name
    if strategy != config.strategy.name:
        return (f"`strategy`={config.strategy.name} has only one device here, so the run would use {strategy}",)
    return ()
