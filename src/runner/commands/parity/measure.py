"""From what is asked to a table: which cells can run here, their runs, and each held against its reference and its bound."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from runner.commands.parity.bounds import FIRST_STEPS, Bound, bound
from runner.commands.parity.cells import Asked, Cell, missing, obstacles
from runner.commands.parity.rounding import Rounding, difference
from runner.commands.parity.runs import Run, here, read, together
from runner.commands.parity.table import Entry, Table, judged
from runner.compute.devices import DeviceChoice, Hardware, device_of, probe
from runner.compute.processes import SingleProcess
from runner.config.schema import Config, Constant, Step
from runner.errors import ConfigError, DeviceError, InputError
from runner.training import build
from runner.training.experiment import Experiment

MOST_STEPS = 100
"""Steps that are compared unless the command line says how many: those of the experiment, and no more than these."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Machine:
    """Where the table is made; `devices` has the reasons for each kind that is not there."""

    cpu: DeviceChoice
    hardware: Hardware
    devices: Mapping[str, tuple[str, ...]]

    @staticmethod
    def find(asked: Asked, say: Say) -> Machine:
        """What is here, masks and threads as asked for. Raises `DeviceError` where none of the devices is."""
        device = next(iter(asked.bases.values())).device
        cpu = device_of(
            asked.config(Cell("cpu", "float64", "single", "optimizer", next(iter(asked.bases)))), say, SingleProcess()
        )
        hardware = probe()
        devices = {name: missing(device, name, os.environ, hardware) for name in asked.axes["device"]}
        if all(devices.values()):
            raise DeviceError(reason for why in devices.values() for reason in why)
        return Machine(cpu, hardware, devices)

    @property
    def present(self) -> list[str]:
        """The devices that are there."""
        return [name for name, why in self.devices.items() if not why]


@dataclass(frozen=True)
class Planned:
    """A cell that can be trained: its run, the run that it is held against, and the bound."""

    run: Run
    reference: Run
    bound: Bound


def measure(asked: Asked, steps: int | None, command: Sequence[str], folder: Path, say: Say) -> Table:
    """Train all cells that can be, in a folder that is empty. Raises `InputError` where none can, and `Interrupted`."""
    machine = Machine.find(asked, say)
    example = _example(asked, machine.cpu)
    steps = steps or min(example.info.steps, MOST_STEPS)
    plans = _plans(asked, steps, folder, machine)
    runs = {cell: plan for cell, plan in plans.items() if isinstance(plan, Planned)}
    alone = list({plan.reference.folder: plan.reference for plan in runs.values()}.values())
    alone += [plan.run for cell, plan in runs.items() if asked.size(cell) == 1]
    several = [plan.run for cell, plan in runs.items() if asked.size(cell) > 1]
    say(f"{len(alone)} runs on one process, {len(several)} on {asked.processes}")
    here(alone)
    together(several, folder, say)
    rows_of = lambda step: example.batches.rows_between(step, step)  # noqa: E731
    entries = [
        _entry(cell, plan, asked.size(cell), asked.command(cell, steps), rows_of) for cell, plan in plans.items()
    ]
    table = Table(
        name=example.info.config.name,
        command=tuple(command),
        steps=steps,
        processes=asked.processes,
        threads=example.info.config.device.threads or 1,
        torch=str(torch.__version__),
        device_name=", ".join([machine.hardware.cpu_name, *machine.hardware.gpu_names]),
        devices=machine.devices,
        entries=entries,
    )
    if all(entry.verdict == "cannot run" for entry in entries):
        raise ConfigError(table.letters)
    return table


def _reference_cell(asked: Asked, optimizer: str, cpu: DeviceChoice) -> Cell:
    """By hand; by the library where the rule is not written by hand."""
    by_hand = Cell("cpu", "float64", "single", "manual", optimizer)
    refused = build.misfits(asked.config(by_hand), cpu, 1)
    return replace(by_hand, update="optimizer") if refused else by_hand


def _example(asked: Asked, cpu: DeviceChoice) -> Experiment:
    """The parts of one reference, which all have the same data and length. Raises `InputError` where none can be built."""
    errors = []
    for optimizer in asked.bases:
        config = asked.config(_reference_cell(asked, optimizer, cpu))
        try:
            resolved = build.resolve(config, cpu, 1)
            return build.build(resolved, build.prepare(resolved, cpu, 1)[0], SingleProcess())
        except InputError as error:
            errors.append(error)
    raise errors[0]


def _run(config: Config, steps: int, folder: Path) -> Run:
    return Run(
        folder,
        replace(
            config,
            train=replace(config.train, steps=steps, epochs=None),
            checkpoint=replace(config.checkpoint, every_steps=min(steps, FIRST_STEPS)),
        ),
    )


def _plans(asked: Asked, steps: int, folder: Path, machine: Machine) -> dict[Cell, Planned | tuple[str, ...]]:
    """For each cell what is trained for it, or the reasons why it cannot run."""
    references = {
        optimizer: _run(
            asked.config(_reference_cell(asked, optimizer, machine.cpu)), steps, folder / f"reference_{optimizer}"
        )
        for optimizer in asked.bases
    }
    roundings = {optimizer: Rounding(reference.config, machine.cpu) for optimizer, reference in references.items()}
    plans: dict[Cell, Planned | tuple[str, ...]] = {}
    for number, cell in enumerate(asked.cells(machine.present)):
        if cell.optimizer in asked.refused:
            plans[cell] = asked.refused[cell.optimizer]
            continue
        run, reference = _run(asked.config(cell), steps, folder / str(number)), references[cell.optimizer]
        if why := obstacles(run.config, asked.size(cell), os.environ, machine.hardware):
            plans[cell] = why
            continue
        must = bound(run.config, reference.config, steps, roundings[cell.optimizer])
        if isinstance(run.config.schedule, (Constant, Step)):  # others depend on how many steps there will be
            run = _run(run.config, must.steps, run.folder)
        plans[cell] = Planned(run, reference, must)
    return plans


def _entry(
    cell: Cell,
    plan: Planned | tuple[str, ...],
    processes: int,
    command: Sequence[str],
    rows_of: Callable[[int], int],
) -> Entry:
    """What became of a cell."""
    entry = Entry(cell, processes, tuple(command), "cannot run")
    if isinstance(plan, tuple):
        return replace(entry, reasons=plan)
    (state, reasons), (of_reference, why) = plan.run.outcome, plan.reference.outcome
    if state == "refused":
        return replace(entry, reasons=reasons)
    besides = "its reference finished" if of_reference == "finished" else f"its reference did not: {'; '.join(why)}"
    if state == "failed":
        return replace(entry, verdict="failed", reasons=(f"{'; '.join(reasons)} ({besides})",))
    if of_reference != "finished":
        return replace(entry, verdict="failed", reasons=(f"it finished, but {besides}",))
    steps = plan.bound.steps
    found, whole = read(plan.run, steps, rows_of), read(plan.reference, steps, rows_of)
    common = min(len(found.losses), len(whole.losses))  # a method that knows when it is done may end before the other
    parameters = difference(found.parameters, whole.parameters)
    loss = difference({"": found.losses[:common]}, {"": whole.losses[:common]})
    return replace(
        entry,
        verdict=judged(parameters, loss, plan.bound),
        bound=plan.bound,
        parameters=parameters,
        loss=loss,
        seconds_per_step=found.seconds_per_step,
    )
