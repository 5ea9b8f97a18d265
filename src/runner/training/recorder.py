"""The recorder of a run: its directory, sinks and console. Rank 0 records; the other processes have a `NullRecorder`."""

from __future__ import annotations

import contextlib
import shlex
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from runner.config import imports
from runner.config.overrides import key_of
from runner.config.resume import other_data, refuse_other, same_data
from runner.config.schema import Config, SinkConfig, config_hash, plain
from runner.errors import CheckpointError, ConfigError, Interrupted, Pruned
from runner.runs.atomic import as_yaml, write_atomic, write_json
from runner.runs.directory import RunDirectory, is_complete, now
from runner.runs.records import CHECKPOINTS, read_record, read_summary
from runner.runs.sinks import custom
from runner.runs.sinks.reporter import Reporter
from runner.training.environment import environment
from runner.training.failures import as_failure, as_run_failed, error_of, optional

if TYPE_CHECKING:
    from runner.compute.devices import DeviceChoice
    from runner.runs.checkpoint import Loaded
    from runner.runs.hashes import Hashes
    from runner.runs.sinks.base import Sink
    from runner.training.experiment import Outcome, RunInfo
    from runner.training.run_state import RunState

T = TypeVar("T")


@dataclass(frozen=True)
class Opened:
    """An open run directory, as all processes know it.

    `loaded` is the checkpoint to resume from, and `summary` the summary of a run that is finished already.
    """

    path: Path
    loaded: Loaded | None = None
    summary: dict[str, Any] | None = None


class Recorder(Protocol):
    """The records that a process keeps of a run.

    `open` comes first, then `begin` when training starts, and `finish` or `fail` at the end; `close` in any case.
    """

    @property
    def sinks(self) -> Sequence[Sink]:
        """The sinks of rows; filled by `open`."""

    @property
    def hashes(self) -> Hashes | None:
        """The file of parameter hashes; set by `open` where hashes are written."""

    def warn(self, text: str) -> None:
        """Report something that the user should know and that does not stop the run."""

    def open(self, info: RunInfo, choice: DeviceChoice) -> Opened | None:
        """Create or reopen the run directory. Returns None where another process does.

        Raises `InputError` for a directory that must not be used or resumed.
        """

    def fail_unbuilt(self, error: Exception, choice: DeviceChoice, size: int = 1) -> None:
        """Record that a bug ended the run before its directory was open. Input that cannot be run leaves no record.

        `size` is the number of processes.
        """

    def begin(self, step: int, first_step: int) -> None:
        """Start the records: training starts after `step` updates, and rows from `first_step` on are new."""

    def finish(self, run: RunState, timing: Mapping[str, float]) -> dict[str, Any]:
        """Record the end of a finished run. Returns its summary."""

    def fail(self, error: BaseException) -> BaseException:
        """Record the end of a run that did not finish. Returns the error to raise."""

    def mark_failed(self, reason: str) -> None:
        """Set the status to failed, and nothing more: for a process that must exit while its main thread is stuck."""

    def close(self) -> None:
        """Close all files."""


class NullRecorder:
    """The recorder of every process but rank 0: it writes nothing."""

    sinks: Sequence[Sink] = ()
    hashes: Hashes | None = None

    def warn(self, text: str) -> None:
        """Do nothing: rank 0 reports warnings."""

    def open(self, info: RunInfo, choice: DeviceChoice) -> Opened | None:
        """Return None: rank 0 opens the directory and broadcasts it."""
        self._config = info.config
        return None

    def fail_unbuilt(self, error: Exception, choice: DeviceChoice, size: int = 1) -> None:
        """Do nothing: rank 0 has the record."""

    def begin(self, step: int, first_step: int) -> None:
        """Do nothing: there are no sinks to open."""

    def finish(self, run: RunState, timing: Mapping[str, float]) -> dict[str, Any]:
        """Return an empty summary."""
        return {}

    def fail(self, error: BaseException) -> BaseException:
        """Return the error as a `RunnerError` where disk, memory or device caused it."""
        return as_failure(error, self._config, Path()) or error

    def mark_failed(self, reason: str) -> None:
        """Do nothing: only rank 0 has a status to set."""

    def close(self) -> None:
        """Do nothing: no files are open."""


@dataclass
class RunRecorder:
    """The recorder of a run on rank 0, or of one trial of many."""

    config: Config
    overrides: Sequence[str]
    """Overrides as the user typed them."""
    command: Sequence[str]
    """Command as the user typed it."""
    reporter: Reporter
    environment: Callable[[DeviceChoice], Mapping[str, Any]] = environment
    swept: Mapping[str, Any] = field(default_factory=dict)
    """Key → value, of the values in which this trial differs from others of its sweep."""
    repeats: str | None = None
    """Directory of the run that this one repeats, with the same data."""
    held: bool = False
    """Whether files are open only while they are written to, and the directory has no lock: for one trial of many."""
    sinks: list[Sink] = field(default_factory=list)
    hashes: Hashes | None = None
    _directory: RunDirectory | None = None
    _begun: bool = False

    def warn(self, text: str) -> None:
        """Print a note on the console and into run.log."""
        self.reporter.warn(text)

    # -------------------------------------------------------------------------------------------------------- opening

    def open(self, info: RunInfo, choice: DeviceChoice) -> Opened | None:
        """Create the directory, or reopen the one of `config.resume`, and build the sinks unless the run is finished."""
        from runner.runs import saved_state
        from runner.runs.hashes import Hashes

        self._info, self._choice = info, choice
        self._built = {
            "strategy": info.strategy,
            "world_size": info.size,
            "lanes": info.lanes,
            "data_sha256": info.dataset.sha256,
            **self._code(),
            **({} if info.start is None else {"init_from_sha256": info.start.sha256}),
        }
        if self.repeats is not None:
            repeated = Path(self.repeats)
            self._require_data_of(repeated, saved_state.data_sha256(repeated), {})
            record = read_record(repeated)
            self._report_other_code(repeated, record["code"])
            if info.start is not None:
                self._require_start_of(repeated, record["init_from_sha256"])
        own = [(custom.made(target), target) for target in self.config.record.code]
        opened = self._create() if self.config.resume is None else self._reopen(Path(self.config.resume))
        if opened.summary is None:
            self.reporter.attach(opened.path / "run.log")
            kinds = [kind(name=name) for name, kind in SinkConfig.choices.items() if name in self.config.record.sinks]
            self.sinks += [kind.build(opened.path, self.held) for kind in kinds]
            self.sinks += [custom.UsersSink(sink, target, opened.path) for sink, target in own]
            self.sinks.append(self.reporter)
            path = opened.path / "hashes.jsonl"
            # A resumed run must drop the hashes of steps that are repeated, even if it writes none any more.
            if self.config.record.hash_every_steps is not None or path.exists():
                self.hashes = Hashes(path, held=self.held)
        return opened

    def _require_data_of(self, run: Path, sha256: str | None, before: Mapping[str, Any]) -> None:
        """Raise `CheckpointError` for other data than an earlier run's, if their SHA-256 is known; say where they are now.

        `before` has the keys of the earlier run's data, as far as they are known.
        """
        found, data = self._info.dataset.sha256, self.config.data
        if sha256 is None:
            return
        if sha256 != found:
            raise CheckpointError(other_data(data, sha256, found, run))
        typed = {*map(key_of, self.overrides)}
        moved = {
            key: path
            for key, path in data.paths.items()
            if key in typed and before.get(key.removeprefix("data.")) != path
        }
        if moved:
            self.warn(same_data(moved, found, run))

    def _code(self) -> dict[str, Any]:
        """Return the entry of run.json on code of the user's own; none without any."""
        found = {target.text: imports.record_of(target) for target in self.config.code}
        return {"code": found} if found else {}

    def _report_other_code(self, run: Path, recorded: Mapping[str, Any] | None) -> None:
        """Say which code of the user's own is not that of an earlier run any more."""
        for target in self.config.code:
            before, now = (recorded or {}).get(target.text), imports.record_of(target)
            if not isinstance(before, dict) or before == now:
                continue
            versions = (
                f"version {before.get('version')} then, {now['version']} now, "
                if before.get("version") != now["version"]
                else ""
            )
            self.warn(
                f"{target.shown} is not the code that {run.name} ran: {versions}"
                f"SHA-256 of its file {str(before.get('sha256'))[:8]}… then, {str(now['sha256'])[:8]}… now; the answer may differ"
            )

    def _require_start_of(self, run: Path, sha256: str | None) -> None:
        """Raise `CheckpointError` if `model.init_from` has other parameters than those that an earlier run started from."""
        start = self._info.start
        if start is None or sha256 in (None, start.sha256) or "model.init_from" in map(key_of, self.overrides):
            return
        path = self.config.model.init_from
        raise CheckpointError(
            f"`model.init_from` must have the parameters that {run.name} has started from, parameters_sha256 {sha256[:8]}…, "
            f"got {start.sha256[:8]}… of {path}; restore it, or start a new run"
        )

    def fail_unbuilt(self, error: Exception, choice: DeviceChoice, size: int = 1) -> None:
        """Leave a directory whose run.log has the traceback, unless the error is one that a user can cause."""
        if as_failure(error, self.config, Path()) is None:
            error_of(lambda: self._keep(error, choice, size))  # the error itself is reported in any case
            self.close()

    def _keep(self, error: Exception, choice: DeviceChoice, size: int) -> None:
        self._choice = choice
        self._built = {"strategy": self.config.strategy.name, "world_size": size, "lanes": 1}
        if self.config.resume is None:
            self._create()
        else:
            self._directory = RunDirectory.reopen(Path(self.config.resume), locked=not self.held)
        self.reporter.attach(self.directory.path / "run.log")
        self.sinks.append(self.reporter)
        self.fail(error)

    @property
    def directory(self) -> RunDirectory:
        """The open run directory."""
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
            opened = self._load(directory)
        except BaseException:  # the run stays as it was
            directory.close()
            raise
        self._directory = directory
        if opened.summary is None:
            directory.resumed(**self._record())
            if opened.loaded is None or not self._at_end(opened.loaded):
                (path / "summary.json").unlink(missing_ok=True)  # it belongs to fewer steps
            write_atomic(path / "config.yaml", _yaml(self.config).encode())
        return opened

    def _load(self, directory: RunDirectory) -> Opened:
        """Load the last checkpoint of a reopened run. Raises `InputError` if the run must not be resumed."""
        from runner.runs import saved_state
        from runner.runs.sinks.jsonl import refuse_odd_lines
        from runner.training.saved_model import refuse_misfit

        self._report_other_code(directory.path, directory.record["code"])
        loaded = saved_state.load(directory.path / CHECKPOINTS, best=self.config.train.reports_best)
        last = 0 if loaded is None else loaded.step
        refuse_odd_lines(directory.path / "metrics.jsonl", last, numbers=True)
        refuse_odd_lines(directory.path / "hashes.jsonl", last, numbers=False)
        if loaded is None:
            self._require_data_of(directory.path, directory.record["data_sha256"], {})
            self._require_start_of(directory.path, directory.record["init_from_sha256"])
            return Opened(directory.path)
        for skipped in loaded.skipped:
            self.reporter.warn(skipped)
        refuse_other(loaded.state, self.config, self._info.dataset.sha256, loaded.path)
        self._require_data_of(directory.path, loaded.state["data_sha256"], loaded.state["config"]["data"])
        refuse_misfit(loaded.state, self._info, loaded.path)
        if loaded.best is not None:
            refuse_misfit(loaded.best, self._info, loaded.path.with_name(f"step_{loaded.state['best']['step']}"))
        summary = self._summary_of(directory, loaded)
        if summary is not None:
            from runner.training import report

            self.reporter.say(report.nothing_left(directory.path, loaded.step, loaded.state, summary))
        return Opened(directory.path, loaded, summary)

    def _summary_of(self, directory: RunDirectory, loaded: Loaded) -> dict[str, Any] | None:
        """Return the summary of a finished run; None if steps are left, or if the summary must be written again.

        That is so after a change of `train.select`.
        """
        steps = self._info.steps
        if loaded.step > steps and not self._at_end(loaded):
            raise ConfigError(
                f"`train.steps` must be at least {loaded.step}, the step that the run has reached, got {steps}; "
                "make it larger, or start a new run"
            )
        if not is_complete(directory.record) or not self._at_end(loaded):
            return None
        try:
            summary = read_summary(directory.path)
        except CheckpointError:
            return None
        best = loaded.state["best"].get("step") if self.config.train.reports_best else None
        selected = loaded.step if best is None else best
        return summary if summary is not None and summary["selected"]["step"] == selected else None

    def _at_end(self, loaded: Loaded) -> bool:
        """Return whether a checkpoint is the last one of the run."""
        return loaded.step == self._info.steps or bool(loaded.state["stopped_early"])

    def _record(self) -> dict[str, Any]:
        """Return the entries of run.json that are known before training."""
        return {
            "command": shlex.join(self.command),
            "overrides": list(self.overrides),
            "config_hash": config_hash(self.config),
            "seed": self.config.seed,
            **self.environment(self._choice),
            "dtype": self.config.dtype,
            **self._built,
        }

    # ------------------------------------------------------------------------------------------------------- training

    def begin(self, step: int, first_step: int) -> None:
        """Open the sinks, and print the introduction of the run."""
        from runner.data.preprocessing import PREPROCESSING
        from runner.training import report

        info, hyperparameters = self._info, report.hyperparameters(self.config, self.swept)
        write_json(self.directory.path / PREPROCESSING, info.dataset.preprocessing.state())
        for sink in (*self._dropped_sinks(), *self.sinks):
            sink.open(first_step)
        for sink in self.sinks:
            sink.start(plain(self.config), hyperparameters, info.metric_names)
        if self.hashes is not None:
            self.hashes.open(step)  # the parameters that training starts from are hashed again
        self._begun = True
        for text in report.introduction(info, self._choice, self.directory.path, step):
            self.reporter.say(text)
        self.reporter.begin(step, info.steps, max(1, (info.steps - step) // self.config.record.every_steps))

    def _dropped_sinks(self) -> list[Sink]:
        """Return the sinks that this attempt does not write to. An earlier one may have left rows of repeated steps there."""
        if self.config.resume is None:
            return []
        path, used = self.directory.path, self.config.record.sinks
        return [kind(name=name).build(path, True) for name, kind in SinkConfig.choices.items() if name not in used]

    # --------------------------------------------------------------------------------------------------------- ending

    def finish(self, run: RunState, timing: Mapping[str, float]) -> dict[str, Any]:
        """Write summary.json and the status, then residuals, plots, last events and printed results, whose failure is a warning.

        `ended` is written last: a run without it that is resumed writes all of them again.
        """
        from runner.runs.sinks.jsonl import each_row
        from runner.training import report

        info, path = self._info, self.directory.path
        compared = self._optional("the comparison with `record.baselines`", lambda: report.comparison(info))
        answers = {**report.answers(info, run, each_row(path / "metrics.jsonl")), **(compared or {})}
        summary = report.summary(info, run, answers, timing)
        write_json(path / "summary.json", summary)
        self.directory.update(status="finished")
        self._optional("residuals.csv", lambda: self._residuals(run.outcome))
        self._optional("what intervals need", lambda: self._intervals(run))
        figures = self._plots(lambda: report.plot(info, run, answers, path))
        for sink in self.sinks:
            end = partial(sink.finish, {**summary, "status": "finished"}, figures)
            self._optional(f"the end of {type(sink).__name__}", end)
        self._optional("what is printed", lambda: self._explain(report.explanation(info, run, answers)))
        for sink in self.sinks:
            self._optional(f"the end of {type(sink).__name__}", sink.close)
        self._optional("run.json", lambda: self.directory.update(ended=now()))
        return summary

    def _residuals(self, outcome: Outcome) -> None:
        """Write residuals.csv if it is configured, and not too large."""
        from runner.training import predictions

        rows, most = sum(map(len, self._info.dataset.parts.values())), predictions.MOST_ROWS
        if self.config.record.residuals and rows > most:
            self.reporter.say(
                f"residuals.csv is not written: there are {rows:,} rows, and more than {most:,} make it too large"
            )
        elif self.config.record.residuals:
            write_atomic(self.directory.path / "residuals.csv", predictions.residuals_csv(self._info, outcome))

    def _intervals(self, run: RunState) -> None:
        """Write what intervals need: calibration.json if there are rows for it, and covariance.json of a fit that has one."""
        from runner.training import intervals

        assert run.selected is not None
        for name, content in intervals.documents(self._info, run.outcome, run.selected.step).items():
            write_json(self.directory.path / name, content)

    def _plots(self, draw: Callable[[], Mapping[str, bytes]]) -> Mapping[str, bytes]:
        """Draw the plots that are configured, and write them. Return those that could be drawn."""
        figures = self._optional("plots", draw) if self.config.record.plots else None
        if figures:
            from runner.runs import plots

            folder = self.directory.path / "plots"
            optional("plots", lambda: plots.write(folder, figures), folder, self.warn)
        return figures or {}

    def _explain(self, explanation: Iterable[str]) -> None:
        path = self.directory.path
        for text in (*explanation, f"run      {path}"):
            self.reporter.say(text)
        if "tensorboard" in self.config.record.sinks:
            self.reporter.say(f"look     tensorboard --logdir {path.parent}")

    def _optional(self, product: str, make: Callable[[], T]) -> T | None:
        """Make something that the finished run can do without. If that fails, warn and return None."""
        return optional(product, make, self.directory.path, self.warn)

    def fail(self, error: BaseException) -> BaseException:
        """Write the reason into run.log and run.json. Returns the error as the user should see it."""
        if self._directory is None:  # nothing is written yet
            return as_failure(error, self.config, Path()) or error
        shown, path = as_failure(error, self.config, self.directory.path), self.directory.path
        if self.directory.record["status"] == "finished":  # stopped in what comes after the result
            return shown or error
        if isinstance(error, (Interrupted, Pruned)):
            self._end("interrupted", str(error))
            with contextlib.suppress(OSError):
                self.reporter.say(f"resume with: python -m runner resume={path}")
            return error
        trace = "" if shown is not None else "".join(traceback.format_exception(error))
        self._end("failed", str(as_run_failed(error, self.config, path)), trace)
        return shown or error

    def mark_failed(self, reason: str) -> None:
        """Write status and reason into run.json, if the run has no result yet and the disk takes it."""
        if self.directory.record["status"] == "running":
            with contextlib.suppress(OSError):
                self.directory.update(status="failed", ended=now(), reason=reason)

    def _end(self, status: str, reason: str, trace: str = "") -> None:
        """Record in every place that the run did not finish, as far as that is possible. Its first error is reported."""
        error_of(lambda: self.reporter.fail("\n".join(filter(None, (reason, trace)))))
        error_of(lambda: self.directory.update(status=status, ended=now(), reason=reason))
        for sink in self.sinks if self._begun else ():
            error_of(partial(sink.finish, {"status": "failed", "metrics": {}, "steps": 0}, {}))

    def close(self) -> None:
        """Close sinks and hashes, and unlock the directory."""
        for journal in (*self.sinks, self.hashes):
            if journal is not None:
                error_of(journal.close)  # a failed write was reported already
        if self._directory is not None:
            self._directory.close()


def _yaml(config: Config) -> str:
    return as_yaml(plain(replace(config, resume=None)))
