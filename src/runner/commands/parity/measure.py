"""Measurement of a parity table: find the cells that can run here, run them, and compare each with its reference."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from runner.commands.parity.bounds import FIRST_STEPS, Bound, bound
from runner.commands.parity.cells import Cell, ParityRequest, obstacles, why_unavailable
from runner.commands.parity.rounding import Rounding, relative_difference
from runner.commands.parity.runs import ParityRun, read_result, run_here, run_in_group
from runner.commands.parity.table import Entry, ParityTable, judge
from runner.compute.devices import DeviceChoice, Hardware, probe, set_up_device
from runner.compute.processes import SingleProcess
from runner.config.schema import Config
from runner.errors import ConfigError, DeviceError, InputError
from runner.training import build
from runner.training.experiment import Experiment

MAX_STEPS = 100
"""Largest number of steps compared unless the command line sets it; a shorter experiment compares its own number."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class AvailableDevices:
    """Devices of this machine; `devices` maps each requested kind to the reasons why it is not available."""

    cpu: DeviceChoice
    hardware: Hardware
    devices: Mapping[str, tuple[str, ...]]

    @staticmethod
    def find(request: ParityRequest, say: Say) -> AvailableDevices:
        """Apply the requested masks and threads and find the devices. Raises `DeviceError` if there is none."""
        device = next(iter(request.bases.values())).device
        cpu_cell = Cell("cpu", "float64", "single", "optimizer", next(iter(request.bases)))
        cpu = set_up_device(request.config(cpu_cell), say, SingleProcess())
        hardware = probe()
        devices = {name: why_unavailable(device, name, os.environ, hardware) for name in request.axes["device"]}
        if all(devices.values()):
            raise DeviceError(reason for reasons in devices.values() for reason in reasons)
        return AvailableDevices(cpu, hardware, devices)

    @property
    def present(self) -> list[str]:
        """Names of the available kinds."""
        return [name for name, reasons in self.devices.items() if not reasons]


@dataclass(frozen=True)
class Planned:
    """A cell that can be trained: its run, the run that it is compared with, and the bound."""

    run: ParityRun
    reference: ParityRun
    bound: Bound


def measure(request: ParityRequest, steps: int | None, command: Sequence[str], folder: Path, say: Say) -> ParityTable:
    """Train all cells that can run, in an empty folder, and return the table.

    Raises `InputError` if no cell can run, and `Interrupted`.
    """
    available = AvailableDevices.find(request, say)
    example = _example(request, available.cpu)
    steps = steps or min(example.info.steps, MAX_STEPS)
    plans = _plans(request, steps, folder, available)
    planned = {cell: plan for cell, plan in plans.items() if isinstance(plan, Planned)}
    one_process = list({plan.reference.folder: plan.reference for plan in planned.values()}.values())
    one_process += [plan.run for cell, plan in planned.items() if request.processes_of(cell) == 1]
    several = [plan.run for cell, plan in planned.items() if request.processes_of(cell) > 1]
    say(f"{len(one_process)} runs on one process, {len(several)} on {request.processes}")
    run_here(one_process)
    run_in_group(several, folder, say)
    rows_of = lambda step: example.batches.rows_between(step, step)  # noqa: E731
    entries = [
        _entry(cell, plan, request.processes_of(cell), request.command(cell, steps), rows_of)
        for cell, plan in plans.items()
    ]
    table = ParityTable(
        name=example.info.config.name,
        command=tuple(command),
        steps=steps,
        processes=request.processes,
        threads=example.info.config.device.threads or 1,
        torch=str(torch.__version__),
        device_name=", ".join([available.hardware.cpu_name, *available.hardware.gpu_names]),
        devices=available.devices,
        entries=entries,
    )
    if all(entry.verdict == "cannot run" for entry in entries):
        raise ConfigError(table.letters)
    return table


def _reference_cell(request: ParityRequest, optimizer: str, cpu: DeviceChoice) -> Cell:
    """Return the reference of an optimizer: the manual update, or torch.optim if there is no manual one."""
    manual = Cell("cpu", "float64", "single", "manual", optimizer)
    refused = build.misfits(request.config(manual), cpu, 1)
    return replace(manual, update="optimizer") if refused else manual


def _example(request: ParityRequest, cpu: DeviceChoice) -> Experiment:
    """Build one reference; all references have the same data and length. Raises `InputError` if none can be built."""
    errors = []
    for optimizer in request.bases:
        config = request.config(_reference_cell(request, optimizer, cpu))
        try:
            resolved = build.resolve(config, cpu, 1)
            return build.build(resolved, build.prepare(resolved, cpu, 1)[0], SingleProcess())
        except InputError as error:
            errors.append(error)
    raise errors[0]


def _run(config: Config, steps: int, folder: Path) -> ParityRun:
    return ParityRun(
        folder,
        replace(
            config,
            train=replace(config.train, steps=steps, epochs=None),
            checkpoint=replace(config.checkpoint, every_steps=min(steps, FIRST_STEPS)),
        ),
    )


def _plans(
    request: ParityRequest, steps: int, folder: Path, available: AvailableDevices
) -> dict[Cell, Planned | tuple[str, ...]]:
    """Return for each cell its planned run, or the reasons why it cannot run."""
    references = {
        optimizer: _run(
            request.config(_reference_cell(request, optimizer, available.cpu)), steps, folder / f"reference_{optimizer}"
        )
        for optimizer in request.bases
    }
    roundings = {optimizer: Rounding(reference.config, available.cpu) for optimizer, reference in references.items()}
    plans: dict[Cell, Planned | tuple[str, ...]] = {}
    for number, cell in enumerate(request.cells(available.present)):
        if cell.optimizer in request.refused:
            plans[cell] = request.refused[cell.optimizer]
            continue
        run, reference = _run(request.config(cell), steps, folder / str(number)), references[cell.optimizer]
        if reasons := obstacles(run.config, request.processes_of(cell), os.environ, available.hardware):
            plans[cell] = reasons
            continue
        limits = bound(run.config, reference.config, steps, roundings[cell.optimizer])
        # A schedule that spans the run would change if the run were shortened.
        if not run.config.schedule.spans_run:
            run = _run(run.config, limits.steps, run.folder)
        plans[cell] = Planned(run, reference, limits)
    return plans


def _entry(
    cell: Cell,
    plan: Planned | tuple[str, ...],
    processes: int,
    command: Sequence[str],
    rows_of: Callable[[int], int],
) -> Entry:
    """Return the entry of a cell from the outcomes of its run and of its reference."""
    entry = Entry(cell, processes, tuple(command), "cannot run")
    if isinstance(plan, tuple):
        return replace(entry, reasons=plan)
    (state, reasons), (reference_state, reference_reasons) = plan.run.outcome, plan.reference.outcome
    if state == "refused":
        return replace(entry, reasons=reasons)
    finished = reference_state == "finished"
    reference = "its reference finished" if finished else f"its reference did not: {'; '.join(reference_reasons)}"
    if state == "failed":
        return replace(entry, verdict="failed", reasons=(f"{'; '.join(reasons)} ({reference})",))
    if not finished:
        return replace(entry, verdict="failed", reasons=(f"it finished, but {reference}",))
    steps = plan.bound.steps
    result, exact = read_result(plan.run, steps, rows_of), read_result(plan.reference, steps, rows_of)
    common = min(len(result.losses), len(exact.losses))  # a method that detects convergence may end before the other
    parameters = relative_difference(result.parameters, exact.parameters)
    loss = relative_difference({"": result.losses[:common]}, {"": exact.losses[:common]})
    return replace(
        entry,
        verdict=judge(parameters, loss, plan.bound),
        bound=plan.bound,
        parameters=parameters,
        loss=loss,
        seconds_per_step=result.seconds_per_step,
    )
