"""One run, from a checked configuration to its directory: the order of events, and what happens when one goes wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.compose import Composed
from runner.config import Config, config_hash, plain
from runner.directory import RunDirectory, git, now
from runner.errors import ConfigError, Interrupted, RunnerError
from runner.failures import as_failure, explained_memory, refuse_other
from runner.record.console import Console
from runner.startup import uncollected
from runner.stopping import StopRequest

if TYPE_CHECKING:
    from runner.checkpoint import Loaded
    from runner.devices import Choice
    from runner.experiment import Experiment
    from runner.loop import Loop
    from runner.record import Sink

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Run:
    """What a finished run left behind."""

    directory: Path
    summary: dict[str, Any]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl."""
        from runner.record.jsonl import read_rows

        return read_rows(self.directory / "metrics.jsonl")


def execute(composed: Composed, command: Sequence[str]) -> Run:
    """Do the whole job: device, data, model, training, records. Raises a `RunnerError` instead of a traceback."""
    began = time.perf_counter()
    console = Console()
    for notice in composed.notices:
        console.warn(notice)
    with uncollected():
        choice = _device(composed.config, console)
        # Only now torch is imported: masks and thread counts are in the environment before it.
        from runner import experiment

        resolved = experiment.resolve(composed.config, choice)
        with explained_memory():
            parts = experiment.build(resolved, choice)
    for warning in parts.dataset.warnings:
        console.warn(warning)
    with StopRequest() as stop:
        job = _Job(parts, choice, composed, tuple(command), console, began, stop)
        return job.resume(Path(resolved.resume)) if resolved.resume is not None else job.start()


def _device(asked: Config, console: Console) -> Choice:
    from runner import devices
    from runner.errors import DeviceError

    build = devices.installed_build()
    for notice in devices.notices(asked.device, os.environ, build):
        console.warn(notice)
    changes = devices.environment(asked.device, asked.deterministic, os.environ, build)
    problems = devices.environment_problems({**os.environ, **changes})
    if problems:
        raise DeviceError(problems)
    torch = sys.modules.get("torch")
    devices.refuse_late_mask(changes, os.environ, torch is not None and torch.cuda.is_initialized())
    os.environ.update(changes)
    choice = devices.choose(asked.device, os.environ, devices.probe())
    devices.configure(asked.device, asked.deterministic)
    return choice


@dataclass
class _Job:
    """The run in progress."""

    parts: Experiment
    choice: Choice
    composed: Composed
    command: tuple[str, ...]
    console: Console
    began: float
    stop: StopRequest

    def start(self) -> Run:
        resolved = self.parts.config
        directory = RunDirectory.create(resolved.name, resolved.run_dir, _yaml(resolved), self._record())
        return self._go(directory, None)

    def resume(self, path: Path) -> Run:
        from runner import checkpoint

        directory = RunDirectory.reopen(path)
        try:
            loaded = checkpoint.load(path / CHECKPOINTS)
            if loaded is not None:
                for skipped in loaded.skipped:
                    self.console.warn(skipped)
                refuse_other(loaded.state, self.parts.config, self.parts.dataset.sha256, loaded.path)
                summary = self._summary_of(directory, loaded)
                if summary is not None:
                    return self._nothing_to_do(directory, loaded, summary)
        except BaseException:
            directory.close()
            raise
        directory.resumed(**self._record())
        (path / "summary.json").unlink(missing_ok=True)  # that of fewer steps
        return self._go(directory, loaded)

    def _summary_of(self, directory: RunDirectory, loaded: Loaded) -> dict[str, Any] | None:
        """The summary of a run that has nothing left to do; None for one that goes on, or has to write it again."""
        early = bool(loaded.state["stopped_early"])
        if loaded.step > self.parts.steps and not early:
            raise ConfigError(
                f"`train.steps` must be at least {loaded.step}, the step that the run has reached, but is {self.parts.steps}; "
                "make it larger, or start a new run"
            )
        if directory.record.get("status") != "finished" or (loaded.step < self.parts.steps and not early):
            return None
        try:
            summary: dict[str, Any] = json.loads((directory.path / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return summary

    def _nothing_to_do(self, directory: RunDirectory, loaded: Loaded, summary: dict[str, Any]) -> Run:
        more = (
            "it stopped early, as it was told to" if loaded.state["stopped_early"] else "for more steps: train.steps=…"
        )
        self.console.say(f"{directory.path} is finished at step {loaded.step}; there is nothing left to do ({more})")
        directory.close()
        return Run(directory.path, summary)

    def _record(self) -> dict[str, Any]:
        import hydra
        import torch

        from runner.devices import masks

        resolved = self.parts.config
        return {
            "command": shlex.join(self.command),
            "overrides": list(self.composed.overrides),
            "config_hash": config_hash(resolved),
            "seed": resolved.seed,
            **git(),
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "hydra": hydra.__version__,
            "device": self.choice.kind,
            "device_name": self.choice.name,
            "masks": masks(os.environ),
            "dtype": resolved.dtype,
            "strategy": self.parts.strategy.name,
            "world_size": self.parts.strategy.world_size,
            "threads": torch.get_num_threads(),
        }

    def _go(self, directory: RunDirectory, loaded: Loaded | None) -> Run:
        """Train in an open directory; whatever happens, its record says how it ended."""
        from runner.record.jsonl import JsonLines
        from runner.record.tensorboard import TensorBoard

        self.console.attach(directory.path / "run.log")
        sinks: list[Sink] = [JsonLines(directory.path / "metrics.jsonl"), TensorBoard(directory.path), self.console]
        try:
            run = self._train(directory, sinks, loaded)
            for sink in sinks:
                sink.close()
        except Interrupted as stop:
            self._end(directory, sinks, "interrupted", str(stop))
            with contextlib.suppress(OSError):
                self.console.say(f"go on with: python -m runner resume={directory.path}")
            raise
        except BaseException as error:
            reason = str(error) if isinstance(error, RunnerError) else f"{type(error).__name__}: {error}"
            self._end(directory, sinks, "failed", reason)
            failure = as_failure(error, self.parts.config, directory.path)
            if failure is None:
                raise
            raise failure from error
        finally:
            for sink in sinks:
                with contextlib.suppress(OSError):  # what could not be written was told already
                    sink.close()
            directory.close()
        return run

    def _train(self, directory: RunDirectory, sinks: Sequence[Sink], loaded: Loaded | None) -> Run:
        import torch

        from runner.objective import borrowed

        with borrowed(self.parts.model.draws, torch.device(self.choice.torch_device)):
            loop = self.parts.loop(sinks, self._saver(directory), self.stop)
            first_step = self._restore(loop, loaded, resumed=self.composed.config.resume is not None)
            if loaded is not None or self.composed.config.resume is not None:
                _write_config(directory, self.parts.config)
            for sink in sinks:
                sink.open(first_step)
                sink.start(plain(self.parts.config), _hyperparameters(self.parts.config), self._metric_names())
            self._introduce(directory, loop)
            startup_seconds = time.perf_counter() - self.began
            steps_before, seconds_before = loop.step, loop.seconds
            loop.run()
            timing = {
                "seconds": loop.seconds,
                "steps_per_second": (loop.step - steps_before) / max(loop.seconds - seconds_before, 1e-9),
                "startup_seconds": startup_seconds,
            }
            return self._finish(directory, sinks, loop, timing)

    def _saver(self, directory: RunDirectory) -> Any:
        from runner import checkpoint

        resolved, dataset = self.parts.config, self.parts.dataset
        fixed = {"config": plain(resolved), "data_sha256": dataset.sha256, "scaling": dataset.scaling.state_dict()}

        def save(step: int, state: dict[str, Any], best: bool) -> None:
            whole = {"format": 1, "step": step, **state, **fixed}
            checkpoint.save(directory.path / CHECKPOINTS, step, whole, best=best, keep=resolved.checkpoint.keep)

        return save

    def _restore(self, loop: Loop, loaded: Loaded | None, resumed: bool) -> int:
        """Put the loop where the checkpoint is; gives the first step whose rows are not kept."""
        if loaded is None:
            return 1 if resumed else 0
        self.parts.restore(loaded.state)
        loop.load_decisions(loaded.state)
        loop.step = loop.saved_step = loaded.step
        # A run that ended here wrote a last row that one which goes on would not have written.
        kept = loop.calendar.row(loop.step) or loop.stopped_early or loop.step >= loop.calendar.last
        return loop.step + (1 if kept else 0)

    def _metric_names(self) -> list[str]:
        return [f"{part}/{name}" for part in self.parts.dataset.parts for name in ("loss", "rmse", "mae", "r2")]

    def _introduce(self, directory: RunDirectory, loop: Loop) -> None:
        import torch

        resolved, dataset = self.parts.config, self.parts.dataset
        count = sum(parameter.numel() for parameter in self.parts.parameters().values())
        rows = ", ".join(f"{len(part):,} {name}" for name, part in dataset.parts.items())
        by_hand = "by hand" if resolved.update == "manual" else "by torch.optim"
        say = self.console.say
        say(f"run      {directory.path}")
        say(f"device   {self.choice.name} ({self.choice.reason}), {_counted(torch.get_num_threads(), 'thread')}")
        say(f"dtype    {resolved.dtype}" + (f", amp {resolved.amp}" if resolved.amp != "off" else ""))
        say(
            f"data     {resolved.data.name}: {rows} rows of {_counted(len(dataset.feature_names), 'feature')} → {dataset.target_name}"
        )
        say(f"model    {resolved.model.name}, {_counted(count, 'parameter')}, loss {resolved.loss.name}")
        say(f"update   {resolved.optimizer.name} {by_hand}, lr {resolved.optimizer.lr:g} ({resolved.schedule.name})")
        batch = len(dataset.parts["train"]) if resolved.train.batch_size is None else resolved.train.batch_size
        say(
            f"training {self.parts.steps:,} steps of {batch:,} rows" + (f", from step {loop.step}" if loop.step else "")
        )
        record = resolved.record.every_steps
        self.console.begin(loop.step, self.parts.steps, max(1, (self.parts.steps - loop.step) // record))

    def _finish(self, directory: RunDirectory, sinks: Sequence[Sink], loop: Loop, timing: Mapping[str, float]) -> Run:
        from runner.files import write_json
        from runner.fingerprint import parameters_sha256

        parts = self.parts
        metrics = {
            f"{part}/{name}": value
            for part in parts.dataset.parts
            for name, value in parts.evaluation.metrics(part).items()
        }
        raw = parts.parameters()
        few = sum(parameter.numel() for parameter in raw.values()) <= MOST_PARAMETERS
        summary: dict[str, Any] = {
            "steps": loop.step,
            "stopped_early": loop.stopped_early,
            "metrics": metrics,
            **({"parameters": {name: value.tolist() for name, value in parts.fitted().items()}} if few else {}),
            "parameters_sha256": parameters_sha256(raw),
            "timing": dict(timing),
        }
        figures = self._draw(directory) if parts.config.record.plots else {}
        for sink in sinks:
            sink.finish({**summary, "status": "finished"}, figures)
        write_json(directory.path / "summary.json", summary)
        directory.update(status="finished", ended=now())
        self._explain(loop)
        self.console.say(f"run      {directory.path}")
        self.console.say(f"look     tensorboard --logdir {directory.path.parent}")
        return Run(directory.path, summary)

    def _explain(self, loop: Loop) -> None:
        """What the numbers above do not say themselves."""
        early, dataset = self.parts.config.train.early_stopping, self.parts.dataset
        if loop.stopped_early:
            metric = f"{loop.watched}/{early.metric}"
            self.console.say(
                f"stopped  early: {metric} has not become better than {loop.early.value:.6g} in {early.patience} evaluations"
            )
        if self.parts.config.data.standardize or self.parts.config.data.log_target:
            self.console.say(
                f"units    rmse and mae are those of {dataset.target_name}; loss is in the units trained in"
            )

    def _draw(self, directory: RunDirectory) -> dict[str, bytes]:
        from runner.files import write_atomic

        with uncollected():
            from runner.pictures import draw

            figures = draw(self.parts, directory.path / "metrics.jsonl")
        (directory.path / "plots").mkdir(exist_ok=True)
        for name, png in figures.items():
            write_atomic(directory.path / "plots" / f"{name}.png", png)
        return figures

    def _end(self, directory: RunDirectory, sinks: Sequence[Sink], status: str, reason: str) -> None:
        """A run that did not finish: say so wherever one looks, as far as the disk still takes it."""
        with contextlib.suppress(OSError):
            self.console.fail(reason)
        with contextlib.suppress(OSError, RunnerError):
            directory.update(status=status, ended=now(), reason=reason)
        for sink in sinks:
            with contextlib.suppress(OSError, RunnerError):
                sink.finish({"status": "failed", "metrics": {}, "steps": 0}, {})


MOST_PARAMETERS = 1_000
"""A model with more numbers than this has its parameters in the checkpoint only."""


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}" + ("s" if number != 1 else "")


def _yaml(config: Config) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(plain(dataclasses.replace(config, resume=None))))


def _write_config(directory: RunDirectory, config: Config) -> None:
    from runner.files import write_atomic

    write_atomic(directory.path / "config.yaml", _yaml(config).encode())


def _hyperparameters(config: Config) -> dict[str, float | str | bool]:
    """The columns of TensorBoard's table: the same ones for every experiment, since the first run it finds names them.

    It sorts them and shows the first five: these should be the ones that runs differ in.
    """
    return {
        "data": config.data.name,
        "lr": config.optimizer.lr,
        "model": config.model.name,
        "optimizer": config.optimizer.name,
        "seed": config.seed,
        "update": config.update,
        "weight_decay": getattr(config.optimizer, "weight_decay", 0.0),
        "widths": str(list(getattr(config.model, "widths", []))),
    }
