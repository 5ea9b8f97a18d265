"""One run, from the user's words to its directory: the order of events on every process, and what happens when one goes wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.compute import devices
from runner.compute import processes as worlds
from runner.compute.gc_pause import gc_paused
from runner.compute.signals import StopRequest
from runner.config.compose import Composed, check
from runner.config.schema import Config, plain
from runner.runs.sinks.reporter import Reporter
from runner.training.failures import explained_memory
from runner.training.recorder import CHECKPOINTS, NullRecorder, Opened, Recorder, RunRecorder

if TYPE_CHECKING:
    from runner.compute.devices import DeviceChoice
    from runner.compute.processes import World
    from runner.runs.checkpoint import Loaded
    from runner.training.experiment import Experiment, RunInfo
    from runner.training.loop import Loop
    from runner.training.run_state import Calendar, RunState

Ask = Callable[[str | None], Composed]
"""What the user asks for; given the directory of an earlier attempt, to go on there."""


@dataclass(frozen=True)
class Run:
    """What a finished run left behind."""

    directory: Path
    summary: dict[str, Any]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl."""
        from runner.runs.sinks.jsonl import read_rows

        return read_rows(self.directory / "metrics.jsonl")


def execute(ask: Ask, command: Sequence[str], *, quiet: bool = False) -> Run:
    """Do the whole job, together with the other processes that a launcher started. Raises a `RunnerError`, no traceback.

    Rank 0 alone asks what to do and keeps the records; with `quiet`, what it says goes to run.log only.
    """
    began = time.perf_counter()
    # A launcher ends all processes when the first one leaves; the one that has still to say why marks the signal only.
    with StopRequest() as stop, worlds.find(os.environ) as world:
        records, config, choice = (
            _lead(world, ask, command, Reporter(quiet=quiet)) if world.rank == 0 else _follow(world)
        )
        from runner.training import build

        world.connect(choice.kind, config.launch.timeout_seconds)
        with gc_paused(), explained_memory():
            prepared = world.run_on_all_ranks(lambda: build.prepare(config, choice, world.size))
            parts = world.run_on_all_ranks(lambda: (build.build(config, prepared, world), {}))
        for warning in parts.warnings[0]:
            records.warn(warning)
        return _Job(parts, choice, records, world, began, stop).run()


def _lead(world: World, ask: Ask, command: Sequence[str], console: Reporter) -> tuple[Recorder, Config, DeviceChoice]:
    """Compose, choose the device, and tell the others."""
    composed = ask(None)
    earlier = world.previous_run_dir
    if earlier is not None:
        composed = replace(ask(earlier), overrides=composed.overrides)
    for notice in composed.notices:
        console.warn(notice)
    asked = _settled(composed.config)
    with gc_paused():
        choice = devices.set_up_device(asked, console.warn, world)
        # Only now torch is imported, when this process is alone: masks and thread counts are in the environment before it.
        from runner.training import build

        config = build.resolve(asked, choice, world.size)
    if asked.strategy.name not in ("auto", config.strategy.name):
        console.warn(
            f"`strategy`={asked.strategy.name} has one device to work on, so the run is {config.strategy.name}"
        )
    world.send_config(plain(config))
    records: Recorder = RunRecorder(config, composed.overrides, command, console)
    return records, config, choice


def _follow(world: World) -> tuple[Recorder, Config, DeviceChoice]:
    """Hear from rank 0 what to do, and find this process's own device for it."""
    config = check(world.receive_config())
    return NullRecorder(), config, devices.set_up_device(config, None, world)


def _settled(asked: Config) -> Config:
    """What must not be left to the machine where bits are promised: the number of threads."""
    if asked.strategy.reduction == "exact" and asked.device.threads is None:
        return replace(asked, device=replace(asked.device, threads=1))
    return asked


@dataclass
class _Job:
    """The run in progress on this process."""

    parts: Experiment
    choice: DeviceChoice
    records: Recorder
    world: World
    began: float
    stop: StopRequest

    def run(self) -> Run:
        """Train in an open directory; whatever happens, its record says how it ended."""
        try:
            opened = self.world.broadcast(self.records.open(self.parts.facts, self.choice))
            assert opened is not None
            if opened.summary is not None:
                return Run(opened.path, opened.summary)
            self.world.store_run_dir(str(opened.path))
            self.world.on_failure(self.records.failed)
            return self._train(opened)
        except BaseException as error:
            found = self.world.diagnose(error, self.parts.objective.step)
            told = self.records.fail(found)
            if told is error:
                raise
            raise told from error
        finally:
            self.records.close()

    def _train(self, opened: Opened) -> Run:
        import torch

        from runner.compute.rng import preserve_rng_state
        from runner.runs.saver import Saver

        facts = self.parts.facts
        config = facts.config
        saver = Saver(
            opened.path / CHECKPOINTS,
            fixed(facts),
            config.checkpoint.keep,
            self.world,
            sharded=self.parts.strategy.sharded,
            asynchronous=config.checkpoint.async_save,
            timeout_seconds=config.launch.timeout_seconds,
        )
        with preserve_rng_state(config.model.draws, torch.device(self.choice.torch_device)):
            loop = self.parts.loop(
                [facts.run_state(self.records.sinks, saver, self.records.hashes)], self.world.all_ranks_stop(self.stop)
            )
            first_step = self._restore(loop, opened.loaded, resumed=config.resume is not None)
            self.records.begin(loop.step, first_step)
            startup_seconds = time.perf_counter() - self.began
            steps_before, seconds_before = loop.step, loop.seconds
            try:
                loop.run()
            finally:
                saver.close()
            (member,) = loop.members
            if member.failure is not None:
                raise member.failure
            timing = {
                "seconds": loop.seconds,
                "steps_per_second": (loop.step - steps_before) / max(loop.seconds - seconds_before, 1e-9),
                "startup_seconds": startup_seconds,
            }
            return Run(opened.path, self.records.finish(member, timing))

    def _restore(self, loop: Loop, loaded: Loaded | None, resumed: bool) -> int:
        """Put the loop where the checkpoint is; gives the first step whose rows are not kept."""
        if loaded is None:
            return 1 if resumed else 0
        self.parts.restore(loaded.state)
        (member,) = loop.members
        member.load_decisions(loaded.state)
        loop.seconds = loaded.state["seconds"]
        loop.step = member.saved_step = loaded.step
        return first_row(loop.calendar, loaded.step, member)


def fixed(facts: RunInfo) -> dict[str, Any]:
    """What every checkpoint of a run holds besides its state."""
    dataset = facts.dataset
    return {"config": plain(facts.config), "data_sha256": dataset.sha256, "scaling": dataset.scaling.state_dict()}


def first_row(calendar: Calendar, step: int, member: RunState) -> int:
    """The first step whose rows a run that goes on from a checkpoint writes anew.

    A run that ended there wrote a last row that one which goes on would not have written.
    """
    kept = calendar.row(step) or member.stopped_early or step >= calendar.last
    return step + (1 if kept else 0)
