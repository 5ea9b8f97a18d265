"""What the leading process writes and says of a run: its directory, its rows, its console. The others keep no records."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from runner.compute.gc_pause import gc_paused
from runner.config.resume import refuse_other
from runner.config.schema import Config, SinkConfig, config_hash, plain
from runner.errors import ConfigError, Interrupted, Pruned, RunnerError
from runner.runs.atomic import as_yaml, write_atomic, write_json
from runner.runs.directory import RunDirectory, git, now
from runner.runs.sinks.reporter import Reporter
from runner.training.failures import as_failure

if TYPE_CHECKING:
    from runner.compute.devices import DeviceChoice
    from runner.runs.checkpoint import Loaded
    from runner.runs.hashes import Hashes
    from runner.runs.sinks.base import Sink
    from runner.training.experiment import Outcome, RunInfo
    from runner.training.run_state import RunState

CHECKPOINTS = "checkpoints"

MOST_PARAMETERS = 1_000
"""A model with more numbers than this has its parameters in the checkpoint only."""


@dataclass(frozen=True)
class Opened:
    """An open run directory as every process hears of it: where to go on, or the summary when there is nothing to do."""

    path: Path
    loaded: Loaded | None = None
    summary: dict[str, Any] | None = None


class Recorder(Protocol):
    """What a process keeps of a run."""

    @property
    def sinks(self) -> Sequence[Sink]: ...
    @property
    def hashes(self) -> Hashes | None: ...

    def warn(self, text: str) -> None: ...
    def open(self, facts: RunInfo, choice: DeviceChoice) -> Opened | None:
        """Make or reopen the directory; None where another process does."""

    def begin(self, step: int, first_step: int) -> None:
        """Training starts after `step` updates; rows from `first_step` on are new."""

    def finish(self, member: RunState, timing: Mapping[str, float]) -> dict[str, Any]:
        """Write the end of a run that finished; gives its summary."""

    def fail(self, error: BaseException) -> BaseException:
        """Write the end of a run that did not; gives the error to raise."""

    def failed(self, reason: str) -> None:
        """The least that is written when the process has to end at once, its main thread stuck."""

    def close(self) -> None: ...


class NullRecorder:
    """Those of every process but the leading one."""

    sinks: Sequence[Sink] = ()
    hashes: Hashes | None = None

    def warn(self, text: str) -> None:
        pass

    def open(self, facts: RunInfo, choice: DeviceChoice) -> Opened | None:
        self._config = facts.config
        return None

    def begin(self, step: int, first_step: int) -> None:
        pass

    def finish(self, member: RunState, timing: Mapping[str, float]) -> dict[str, Any]:
        return {}

    def fail(self, error: BaseException) -> BaseException:
        return as_failure(error, self._config, Path()) or error

    def failed(self, reason: str) -> None:
        pass

    def close(self) -> None:
        pass


def surroundings(choice: DeviceChoice) -> dict[str, Any]:
    """What a record tells of the program and the machine."""
    import hydra
    import torch

    from runner.compute.devices import masks

    return {
        **git(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "hydra": hydra.__version__,
        "device": choice.kind,
        "device_name": choice.name,
        "masks": masks(os.environ),
        "threads": torch.get_num_threads(),
    }


@dataclass
class RunRecorder:
    """The records themselves. `overrides` and `command` are as the user typed them.

    Those of one run of many are `held`: their files are open only while they are written to, and the directory has no lock.
    """

    config: Config
    overrides: Sequence[str]
    command: Sequence[str]
    console: Reporter
    around: Callable[[DeviceChoice], Mapping[str, Any]] = surroundings
    swept: Mapping[str, Any] = field(default_factory=dict)
    """Values in which the run differs from others of its sweep."""
    held: bool = False
    sinks: list[Sink] = field(default_factory=list)
    hashes: Hashes | None = None
    _directory: RunDirectory | None = None
    _begun: bool = False

    def warn(self, text: str) -> None:
        self.console.warn(text)

    # -------------------------------------------------------------------------------------------------------- opening

    def open(self, facts: RunInfo, choice: DeviceChoice) -> Opened | None:
        from runner.runs.hashes import Hashes

        self._facts, self._choice = facts, choice
        opened = self._create() if self.config.resume is None else self._reopen(Path(self.config.resume))
        if opened.summary is None:
            self.console.attach(opened.path / "run.log")
            kinds = [SinkConfig.choices[name](name=name) for name in self.config.record.sinks]
            self.sinks += [*(kind.build(opened.path, self.held) for kind in kinds), self.console]
            path = opened.path / "hashes.jsonl"
            # Of a run that once wrote them, those of steps that are done again must go, though it writes no more.
            if self.config.record.hash_every_steps is not None or path.exists():
                self.hashes = Hashes(path, held=self.held)
        return opened

    @property
    def directory(self) -> RunDirectory:
        """The open one."""
        assert self._directory is not None
        return self._directory

    def _create(self) -> Opened:
        self._directory = RunDirectory.create(
            self.config.name, self.config.run_dir, _yaml(self.config), self._record(), locked=not self.held
        )
        return Opened(self._directory.path)

    def _reopen(self, path: Path) -> Opened:
        directory = RunDirectory.reopen(path, locked=not self.held)
        try:
            opened = self._resume(directory)
        except BaseException:  # the run stays as it was
            directory.close()
            raise
        self._directory = directory
        if opened.summary is None:
            directory.resumed(**self._record())
            (path / "summary.json").unlink(missing_ok=True)  # that of fewer steps
            _write_config(directory, self.config)
        return opened

    def _resume(self, directory: RunDirectory) -> Opened:
        """Where an earlier run goes on. Raises `InputError` where it must not."""
        from runner.runs import checkpoint

        loaded = checkpoint.load(directory.path / CHECKPOINTS)
        if loaded is None:
            return Opened(directory.path)
        for skipped in loaded.skipped:
            self.console.warn(skipped)
        refuse_other(loaded.state, self.config, self._facts.dataset.sha256, loaded.path)
        summary = self._summary_of(directory, loaded)
        if summary is not None:
            self._say_done(directory, loaded)
        return Opened(directory.path, loaded, summary)

    def _summary_of(self, directory: RunDirectory, loaded: Loaded) -> dict[str, Any] | None:
        """The summary of a run that has nothing left to do; None for one that goes on, or has to write it again."""
        steps, early = self._facts.steps, bool(loaded.state["stopped_early"])
        if loaded.step > steps and not early:
            raise ConfigError(
                f"`train.steps` must be at least {loaded.step}, the step that the run has reached, but is {steps}; "
                "make it larger, or start a new run"
            )
        if directory.record.get("status") != "finished" or (loaded.step < steps and not early):
            return None
        try:
            summary: dict[str, Any] = json.loads((directory.path / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return summary

    def _say_done(self, directory: RunDirectory, loaded: Loaded) -> None:
        more = (
            "a further step finds no better parameters"
            if loaded.state.get("settled")
            else "it stopped early, as it was told to"
            if loaded.state["stopped_early"]
            else "for more steps: train.steps=…"
        )
        self.console.say(f"{directory.path} is finished at step {loaded.step}; there is nothing left to do ({more})")

    def _record(self) -> dict[str, Any]:
        return {
            "command": shlex.join(self.command),
            "overrides": list(self.overrides),
            "config_hash": config_hash(self.config),
            "seed": self.config.seed,
            **self.around(self._choice),
            "dtype": self.config.dtype,
            "strategy": self._facts.strategy,
            "world_size": self._facts.size,
            "lanes": self._facts.lanes,
        }

    # ------------------------------------------------------------------------------------------------------- training

    def begin(self, step: int, first_step: int) -> None:
        hyperparameters = {
            **_hyperparameters(self.config),
            **{name: _cell(value) for name, value in self.swept.items()},
        }
        for sink in self.sinks:
            sink.open(first_step)
            sink.start(plain(self.config), hyperparameters, self._facts.metric_names)
        if self.hashes is not None:
            self.hashes.open(step)  # the parameters that training starts from are hashed again
        self._begun = True
        self._introduce(step)

    def _introduce(self, step: int) -> None:
        import torch

        config, facts, say = self.config, self._facts, self.console.say
        rows = ", ".join(f"{len(part):,} {name}" for name, part in facts.dataset.parts.items())
        by_hand = "by hand" if config.update == "manual" else "by torch.optim"
        say(f"run      {self.directory.path}")
        say(f"device   {self._choice.name} ({self._choice.reason}), {_counted(torch.get_num_threads(), 'thread')}")
        if facts.size > 1 or config.strategy.reduction == "exact":
            say(f"strategy {facts.strategy} on {_counted(facts.size, 'process')}, {_reduction(config)}")
        say(f"dtype    {config.dtype}" + (f", amp {config.amp}" if config.amp != "off" else ""))
        features = _counted(len(facts.dataset.feature_names), "feature")
        say(f"data     {config.data.name}: {rows} rows of {features} → {facts.dataset.target_name}")
        say(f"model    {config.model.name}, {_counted(facts.parameter_count, 'parameter')}, loss {config.loss.name}")
        lr = config.optimizer.lr
        rate = "" if lr is None else f" {by_hand}, lr {lr:g} ({config.schedule.name})"
        say(f"update   {config.optimizer.name}{rate}")
        batch = len(facts.dataset.parts["train"]) if config.train.batch_size is None else config.train.batch_size
        say(f"training {facts.steps:,} steps of {batch:,} rows" + (f", from step {step}" if step else ""))
        self.console.begin(step, facts.steps, max(1, (facts.steps - step) // config.record.every_steps))

    # --------------------------------------------------------------------------------------------------------- ending

    def finish(self, member: RunState, timing: Mapping[str, float]) -> dict[str, Any]:
        from runner.runs.hashes import parameters_sha256

        outcome: Outcome = member.outcome
        few = self._facts.parameter_count <= MOST_PARAMETERS
        answers = self._answers(outcome)
        summary: dict[str, Any] = {
            "steps": member.step,
            "stopped_early": member.stopped_early,
            "metrics": outcome.metrics,
            **({"parameters": {name: value.tolist() for name, value in outcome.fitted.items()}} if few else {}),
            "parameters_sha256": parameters_sha256(outcome.parameters),
            **answers,
            "timing": dict(timing),
        }
        figures = self._draw(outcome, answers) if self.config.record.plots else {}
        for sink in self.sinks:
            sink.finish({**summary, "status": "finished"}, figures)
        write_json(self.directory.path / "summary.json", summary)
        self.directory.update(status="finished", ended=now())
        self._explain(member, answers)
        self.console.say(f"run      {self.directory.path}")
        if "tensorboard" in self.config.record.sinks:
            self.console.say(f"look     tensorboard --logdir {self.directory.path.parent}")
        for sink in self.sinks:
            sink.close()
        return summary

    def _answers(self, outcome: Outcome) -> dict[str, Any]:
        """What the summary says of the answer: the optimum where it is known, and how sure the parameters are."""
        from runner.optim.optimum import noise_floor, observed_rate
        from runner.runs.sinks.jsonl import read_rows

        answers: dict[str, Any] = {}
        if outcome.optimum is not None:
            rounding = outcome.optimum["rounding_distance"] or 0.0
            rate = observed_rate(read_rows(self.directory.path / "metrics.jsonl"), rounding)
            answers["optimum"] = {**outcome.optimum, "observed_rate": rate}
        floor = noise_floor(self.config, float(self._facts.dataset.scaling.target_scale))
        if floor is not None:
            answers["noise_floor"] = floor
        if outcome.inference is not None:
            answers.update(outcome.inference.summary(outcome.fitted))
        return answers

    def _explain(self, member: RunState, answers: Mapping[str, Any]) -> None:
        """What the numbers above do not say themselves."""
        for text in _verdict(answers, self.config):
            self.console.say(text)
        early, dataset = self.config.train.early_stopping, self._facts.dataset
        if member.settled:
            self.console.say(
                f"settled  after {_counted(member.step, 'step')}: a further one finds no better parameters"
            )
        elif member.stopped_early:
            metric = f"{self._facts.watched}/{early.metric}"
            self.console.say(
                f"stopped  early: {metric} has not become better than {member.early.value:.6g} in {early.patience} evaluations"
            )
        if self.config.data.standardize or self.config.data.log_target:
            self.console.say(
                f"units    rmse and mae are those of {dataset.target_name}; loss is in the units trained in"
            )

    def _draw(self, outcome: Outcome, answers: Mapping[str, Any]) -> dict[str, bytes]:
        path = self.directory.path
        with gc_paused():
            from runner.training.report import draw

            known = {"optimum": answers.get("optimum"), "noise floor": answers.get("noise_floor")}
            levels = {name: found["loss"] for name, found in known.items() if found and "loss" in found}
            figures = draw(self._facts, outcome.evaluation(), path / "metrics.jsonl", levels)
        (path / "plots").mkdir(exist_ok=True)
        for name, png in figures.items():
            write_atomic(path / "plots" / f"{name}.png", png)
        return figures

    def fail(self, error: BaseException) -> BaseException:
        if self._directory is None:  # nothing is written yet
            return as_failure(error, self.config, Path()) or error
        reason = str(error) if isinstance(error, RunnerError) else f"{type(error).__name__}: {error}"
        if isinstance(error, (Interrupted, Pruned)):
            self._end("interrupted", reason)
            with contextlib.suppress(OSError):
                self.console.say(f"go on with: python -m runner resume={self.directory.path}")
            return error
        self._end("failed", reason)
        return as_failure(error, self.config, self.directory.path) or error

    def failed(self, reason: str) -> None:
        with contextlib.suppress(OSError):
            self.directory.update(status="failed", ended=now(), reason=reason)

    def _end(self, status: str, reason: str) -> None:
        """A run that did not finish: say so wherever one looks, as far as the disk still takes it."""
        with contextlib.suppress(OSError):
            self.console.fail(reason)
        with contextlib.suppress(OSError, RunnerError):
            self.directory.update(status=status, ended=now(), reason=reason)
        for sink in self.sinks if self._begun else ():
            with contextlib.suppress(OSError, RunnerError):
                sink.finish({"status": "failed", "metrics": {}, "steps": 0}, {})

    def close(self) -> None:
        for journal in (*self.sinks, self.hashes):
            with contextlib.suppress(OSError):  # what could not be written was told already
                if journal is not None:
                    journal.close()
        if self._directory is not None:
            self._directory.close()


def _reduction(config: Config) -> str:
    return f"exact over {config.strategy.chunks} chunks" if config.strategy.reduction == "exact" else "fast"


def _verdict(answers: Mapping[str, Any], config: Config) -> Iterator[str]:
    """How good the answer is, in lines."""
    optimum, floor = answers.get("optimum"), answers.get("noise_floor")
    if optimum is not None:
        yield (
            f"optimum  train/loss {optimum['loss']:.6g}; the run ended {optimum['gap']:.3g} above the optimum, "
            f"its parameters {optimum['distance']:.3g} away"
        )
        if config.optimizer.linear_only:
            digits = {"float64": 16, "float32": 7}[config.dtype]
            yield (
                f"digits   about {int(optimum['digits'])} of the {digits} digits of {config.dtype} are certain in the worst "
                f"parameter; condition number {optimum['condition_number']:.3g}"
            )
    if floor is not None:
        loss = f" (loss {floor['loss']:.6g})" if "loss" in floor else ""
        yield f"noise    rmse {floor['rmse']:.6g}{loss} is that of the data's own function; on average no model is better on new rows"
    if answers.get("converged"):
        deviation = answers["residual_standard_deviation"]
        yield f"fit      converged; residual standard deviation {deviation:.6g}, {_counted(answers['degrees_of_freedom'], 'degree')} of freedom"
    elif "converged" in answers:
        yield f"fit      not converged: {answers['not_converged_because']}"


def _counted(number: int, thing: str) -> str:
    plural = thing if number == 1 else thing + ("es" if thing.endswith("s") else "s")
    return f"{number:,} {plural}"


def _yaml(config: Config) -> str:
    return as_yaml(plain(replace(config, resume=None)))


def _write_config(directory: RunDirectory, config: Config) -> None:
    write_atomic(directory.path / "config.yaml", _yaml(config).encode())


def _cell(value: Any) -> float | str | bool:
    return value if isinstance(value, (bool, float, int)) else str(value)


def _hyperparameters(config: Config) -> dict[str, float | str | bool]:
    """The columns of TensorBoard's table: the same ones for every experiment, since the first run it finds names them.

    It sorts them and shows the first five: these should be the ones that runs differ in.
    """
    return {
        "data": config.data.name,
        "lr": config.optimizer.lr or 0.0,
        "model": config.model.name,
        "optimizer": config.optimizer.name,
        "seed": config.seed,
        "update": config.update,
        "weight_decay": getattr(config.optimizer, "weight_decay", 0.0),
        "widths": str(list(getattr(config.model, "widths", []))),
    }
