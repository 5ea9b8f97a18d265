"""One run, from the user's command to its directory: the order of events on every process, and the handling of errors."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.compute import devices, sizes
from runner.compute import processes as worlds
from runner.compute.gc_pause import gc_paused
from runner.compute.signals import StopRequest
from runner.config.compose import Composed, check
from runner.config.schema import Config, plain
from runner.errors import ConfigError
from runner.runs.records import CHECKPOINTS
from runner.runs.sinks.reporter import Reporter
from runner.training.failures import explain_out_of_memory, python_warnings_to
from runner.training.given import NOTHING, Given
from runner.training.recorder import NullRecorder, Opened, Recorder, RunRecorder

if TYPE_CHECKING:
    from runner.compute.devices import DeviceChoice
    from runner.compute.processes import World
    from runner.runs.checkpoint import Loaded
    from runner.training.experiment import Experiment, RunInfo
    from runner.training.loop import Loop
    from runner.training.run_state import Calendar, RunState

Compose = Callable[[str | None], Composed]
"""Composes the requested configuration; given the directory of an earlier attempt, to resume that."""


@dataclass(frozen=True)
class Run:
    """The directory and summary of a finished run."""

    directory: Path
    summary: dict[str, Any]
    exit_code: int = 0
    """Exit code of a process that does only this run: 1 if a least-squares solver did not converge, else 0."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl."""
        from runner.runs.sinks.jsonl import read_rows

        return read_rows(self.directory / "metrics.jsonl")


def execute(compose: Compose, command: Sequence[str], *, given: Given = NOTHING, quiet: bool = False) -> Run:
    """Execute one run, on this process and on the others that a launcher started. Each has rows and model that are `given`.

    Rank 0 composes the configuration and sends it to the others, keeps the records and reports: with `quiet` to run.log only.
    Raises a `RunnerError` for everything that a user can cause; other errors are bugs. A fit that did not converge is no error:
    its run is finished.
    """
    began = time.perf_counter()
    # A launcher ends all processes when the first one exits. A process that still has to report its error only notes the signal.
    with StopRequest() as stop, worlds.find(os.environ) as world:
        records, config, choice = (
            _lead(world, compose, command, Reporter(quiet=quiet)) if world.rank == 0 else _follow(world)
        )
        from runner.training import build

        world.connect(choice.kind, config.launch.timeout_seconds)
        try:
            with gc_paused(), explain_out_of_memory(config):
                prepared = world.run_on_all_ranks(
                    lambda: build.prepare(config, choice, world.size, report=records.warn, given=given)
                )
                parts = world.run_on_all_ranks(lambda: (build.build(config, prepared, world), {}))
        except Exception as error:
            records.fail_unbuilt(error, choice, world.size)
            raise
        for warning in (*parts.warnings[0], *given.remarks(config)):
            records.warn(warning)
        run = _Job(parts, choice, records, world, began, stop, given).run()
    return replace(run, exit_code=world.exit_code)


def _lead(
    world: World, compose: Compose, command: Sequence[str], reporter: Reporter
) -> tuple[Recorder, Config, DeviceChoice]:
    """Compose the configuration and choose the device on rank 0, and send the configuration to the other processes."""
    composed = compose(None)
    earlier = world.previous_run_dir
    if earlier is not None:
        composed = replace(compose(earlier), overrides=composed.overrides)
    for notice in composed.notices:
        reporter.warn(notice)
    if problems := sizes.problems(composed.config):
        raise ConfigError(problems)
    requested = _with_fixed_threads(composed.config)
    with gc_paused():
        choice = devices.set_up_device(requested, reporter.warn, world)
        # torch is imported here at the earliest: it reads masks and thread counts from the environment at import.
        from runner.training import build

        config = build.resolve(requested, choice, world.size)
    if requested.strategy.name not in ("auto", config.strategy.name):
        reporter.warn(
            f"`strategy`={requested.strategy.name} has one device to work on, so the run is {config.strategy.name}"
        )
    world.send_config(plain(config))
    records: Recorder = RunRecorder(config, composed.overrides, command, reporter, repeats=composed.repeats)
    return records, config, choice


def _follow(world: World) -> tuple[Recorder, Config, DeviceChoice]:
    """Receive the configuration from rank 0, and choose this process's own device."""
    config = check(world.receive_config())
    return NullRecorder(), config, devices.set_up_device(config, None, world)


def _with_fixed_threads(config: Config) -> Config:
    """Return the configuration with one thread where bits are promised and the number of threads is left open."""
    if config.strategy.reduction == "exact" and config.device.threads is None:
        return replace(config, device=replace(config.device, threads=1))
    return config


@dataclass
class _Job:
    """A run in progress on this process."""

    parts: Experiment
    choice: DeviceChoice
    records: Recorder
    world: World
    began: float
    """Time at which the process started the run, of `time.perf_counter`."""
    stop: StopRequest
    given: Given

    def run(self) -> Run:
        """Open the directory and train. However the run ends, its record says so."""
        try:
            opened = self.world.broadcast(self.records.open(self.parts.info, self.choice))
            assert opened is not None
            if opened.summary is not None:
                assert opened.loaded is not None  # of a finished run
                self.given.receive((opened.loaded.best or opened.loaded.state)["model"])
                return self._ended(opened.path, opened.summary)
            self.world.store_run_dir(str(opened.path))
            self.world.on_failure(self.records.mark_failed)
            return self._train(opened)
        except BaseException as error:
            explained = self.world.diagnose(error, self.parts.objective.step)
            reported = self.records.fail(explained)
            if reported is error:
                raise
            raise reported from error
        finally:
            self.records.close()

    def _train(self, opened: Opened) -> Run:
        import torch

        from runner.compute.rng import preserve_rng_state
        from runner.runs.saver import Saver

        info = self.parts.info
        config = info.config
        saver = Saver(
            opened.path / CHECKPOINTS,
            checkpoint_metadata(info),
            config.checkpoint.keep,
            self.world,
            sharded=self.parts.strategy.sharded,
            asynchronous=config.checkpoint.async_save,
            timeout_seconds=config.launch.timeout_seconds,
        )
        with preserve_rng_state(self.parts.model.draws, torch.device(self.choice.torch_device)):
            loop = self.parts.loop(
                [info.run_state(self.records.sinks, saver, self.records.hashes)],
                self.world.all_ranks_stop(self.stop),
                self.records.warn,
            )
            first_step = self._restore(loop, opened.loaded)
            self.records.begin(loop.step, first_step)
            startup_seconds = time.perf_counter() - self.began
            steps_before, seconds_before = loop.step, loop.seconds
            try:
                with python_warnings_to(self.records.warn):
                    loop.run()
            finally:
                saver.close()
            (run,) = loop.runs
            if run.failure is not None:
                raise run.failure
            timing = {
                "seconds": loop.seconds,
                "steps_per_second": (loop.step - steps_before) / max(loop.seconds - seconds_before, 1e-9),
                "startup_seconds": startup_seconds,
            }
            trained = self.parts.state() if self.given.receives else {}
            summary = self.records.finish(run, timing)
            self.given.receive(trained)
            return self._ended(opened.path, summary)

    def _ended(self, path: Path, summary: dict[str, Any]) -> Run:
        """Return the finished run. A fit that did not converge has a result and an exit code of its own."""
        if self.world.rank == 0 and self.parts.info.config.optimizer.least_squares:
            self.world.exit_code = int(summary.get("converged") is False)
        return Run(path, summary)

    def _restore(self, loop: Loop, loaded: Loaded | None) -> int:
        """Restore the loop from a checkpoint. Returns the first step whose rows are new."""
        if loaded is None:
            return 0
        self.parts.restore(loaded.state)
        (run,) = loop.runs
        run.resume(loaded)
        loop.seconds = loaded.state["seconds"]
        loop.step = loaded.step
        return first_new_row(loop.calendar, loaded.step, run)


def checkpoint_metadata(info: RunInfo) -> dict[str, Any]:
    """Return what every checkpoint of a run holds besides its state: configuration, hash of the data, and scaling."""
    dataset = info.dataset
    return {"config": plain(info.config), "data_sha256": dataset.sha256, "scaling": dataset.scaling.state_dict()}


def first_new_row(calendar: Calendar, step: int, run: RunState) -> int:
    """Return the first step whose rows are written anew when a run is resumed from a checkpoint of `step`.

    The row of `step` itself is kept if it is due there. It is dropped if the run had it only because that step was its last,
    and now has more steps to go.
    """
    kept = calendar.row_due(step) or run.stopped_early or step >= calendar.last
    return step + (1 if kept else 0)
