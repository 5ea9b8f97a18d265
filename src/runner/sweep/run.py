"""`python -m runner -m …`: from the arguments of a sweep to its directory, through Hydra's sweepers and launchers."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.compute.gc_pause import gc_paused
from runner.compute.launch import needs_launch
from runner.compute.processes import launched
from runner.compute.processes.notes import SWEEP_DIRECTORY, LaunchNotes
from runner.config.compose import Composed, compose
from runner.config.documents import MAX_BYTES
from runner.config.files import read_bytes
from runner.config.hydra_adapter import hydra_session, reason_of, search_path
from runner.config.overrides import key_of, quoted
from runner.config.schema import Config
from runner.errors import CheckpointError, ConfigError, InputError, Interrupted, RunFailed, RunnerError
from runner.runs.atomic import explain_os_error, remove_temporary_files, write_atomic
from runner.runs.directory import lock, now, refuse_odd_files, unlock
from runner.runs.records import SWEEP
from runner.runs.sinks.reporter import Reporter
from runner.sweep import plugins
from runner.sweep.arguments import (
    SweepArguments,
    check_resume_overrides,
    classify,
    disable_products,
    expand_folds,
    expand_seeds,
    named_in_problems,
    replayed,
)
from runner.sweep.distributed import leading
from runner.sweep.manifest import Manifest, sweep_directory
from runner.sweep.moved_files import move_files
from runner.sweep.task import Task
from runner.sweep.trials import numbered
from runner.sweep.vmap_launcher import with_manifest
from runner.training.failures import optional

if TYPE_CHECKING:
    from runner.sweep.results import Results


def launch_config(arguments: Sequence[str], config_dir: str | None) -> Config | None:
    """Return the configuration with which a sweep starts its processes, or None if it runs in this process."""
    parsed = classify(arguments, config_dir)
    if parsed.resume is not None:
        saved, typed = Manifest.read(Path(str(parsed.resume))), parsed
        parsed = replayed(saved.values, saved.directory / SWEEP, typed, config_dir)
        with named_in_problems(saved.directory / SWEEP, typed):
            return _launch_config(parsed, config_dir)
    return _launch_config(parsed, config_dir)


def _launch_config(arguments: SweepArguments, config_dir: str | None) -> Config | None:
    if not any(override.startswith("launch.") for override in arguments.fixed):
        return None
    config = compose(arguments.sample, config_dir).config
    return config if needs_launch(config) else None


def run_and_report(words: Sequence[str], config_dir: str | None, command: Sequence[str]) -> tuple[Manifest, Results]:
    """Run or resume a sweep on all processes of the launcher, as rank 0; print its results, and return them.

    Raises what `sweep` and `report_results` raise.
    """
    with leading() as end:
        manifest = sweep(words, config_dir, command)
        results = report_results(manifest)
        end.directory = manifest.directory
    audit_trials(manifest)
    return manifest, results


def sweep(words: Sequence[str], config_dir: str | None, command: Sequence[str]) -> Manifest:
    """Run or resume a sweep, and return its manifest, whose members have the end of each trial.

    Raises `InputError` before any trial starts, and `Interrupted` after a signal.
    """
    parsed = classify(words, config_dir)
    if parsed.resume is not None:
        check_resume_overrides(words)
        directory = Path(str(parsed.resume))
        with _locked(directory):
            refuse_odd_files(directory)
            manifest = Manifest.read(directory)
            arguments = replayed(manifest.values, directory / SWEEP, parsed, config_dir)
            move_files(manifest, arguments, [key_of(override) for override in parsed.task], config_dir)
            with named_in_problems(directory / SWEEP, parsed):
                return _resume(manifest, arguments, config_dir)
    composed = compose(parsed.sample, config_dir)
    config = composed.config
    _print_notices(parsed, composed)
    expand_seeds(parsed, config.seed)
    expand_folds(parsed, config.data.split.folds)
    disable_products(parsed)
    directory = sweep_directory(config.name, parsed.run_dir)
    values = {
        "name": config.name,
        "command": list(command),
        "config_dir": config_dir,
        "words": list(words),
        "task": parsed.task,
        "hydra": parsed.hydra,
        "fixed": parsed.fixed,
        "swept": parsed.swept,
        "metric": None,
        "directions": None,
    }
    missing = [parent for parent in directory.parents if not os.path.exists(parent)]
    try:
        manifest = Manifest.create(directory, values)
        with _locked(directory):
            return _run_or_remove(manifest, config)
    except InputError:
        for parent in missing:
            with suppress(OSError):  # another run has been made in it meanwhile
                parent.rmdir()
        raise


def _print_notices(arguments: SweepArguments, composed: Composed) -> None:
    """Print the notices on the arguments, and those of the sample trial that concern all trials."""
    # A notice on a swept key holds for its first value only.
    common = [
        notice
        for notice in composed.notices
        if not any(f"`{k}`" in notice or f"`{k}." in notice for k in arguments.swept)
    ]
    for notice in [*arguments.notices, *common]:
        Reporter().warn(notice)


def _run_or_remove(manifest: Manifest, config: Config) -> Manifest:
    """Run a new sweep. If it is refused before a trial has started, remove its directory."""
    try:
        return _run(manifest, config)
    except InputError:
        if all(member["state"] == "waiting" for member in Manifest.read(manifest.directory).members.values()):
            shutil.rmtree(manifest.directory)
        raise


def _resume(manifest: Manifest, arguments: SweepArguments, config_dir: str | None) -> Manifest:
    """Continue a sweep where it stopped. If that is refused, restore its manifest."""
    path = manifest.directory / SWEEP
    before = read_bytes(path, MAX_BYTES)
    remove_temporary_files(manifest.directory, manifest.directory / "plots")
    manifest.update_from_records()
    manifest.rerun_lost()
    states = manifest.states()
    manifest.values.update(status="running", ended=None, resumed=manifest.values["resumed"] + 1, config_dir=config_dir)
    manifest.values.update(reason=None, hydra=arguments.hydra, task=arguments.task, fixed=arguments.fixed)
    manifest.save()
    try:
        return _run(manifest, compose(arguments.sample, config_dir).config)
    except InputError:
        if Manifest.read(manifest.directory).states() == states:
            write_atomic(path, before)
        raise


def _run(manifest: Manifest, config: Config) -> Manifest:
    """Let Hydra's sweeper make the trials and its launcher run them. `config` is that of one trial."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    directory, result, status = manifest.directory, None, "failed"
    LaunchNotes.of(os.environ).write(SWEEP_DIRECTORY, os.path.abspath(directory))
    try:
        with hydra_session() as hydra:
            result = _sweep_with_hydra(hydra, manifest, config.sweep.max_trials)
        status = "finished"
    except (Interrupted, KeyboardInterrupt) as stop:
        status = "interrupted"
        raise _interrupted(stop, manifest) from None
    except RunnerError as error:
        if not _is_failed_trial(directory, error):
            raise
        status = "finished"
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"the sweep cannot be composed: {reason_of(error)}") from None
    except OSError as error:
        raise _write_error(error, directory) from error
    finally:
        manifest = _finish(directory, status)
    if isinstance(result, dict):
        manifest.values.update({k: v for k, v in result.items() if k in ("metric", "directions")})
        manifest.save()
    elif not manifest.values["resumed"]:
        _refuse_unbuilt(manifest, result or ())
    return manifest


def _refuse_unbuilt(manifest: Manifest, returns: Sequence[Any]) -> None:
    """Raise the errors of all trials of a grid as one if none of them could be built, as where a file is missing."""
    errors = [getattr(trial, "_return_value", None) for trial in returns]
    refused = [error for error in errors if isinstance(error, InputError)]
    if (
        not refused
        or len(refused) < len(errors)
        or any(map(os.path.exists, map(manifest.member_directory, manifest.members)))
    ):
        return
    problems: dict[str, list[int]] = {}
    for number, error in enumerate(refused):
        for problem in error.problems:
            problems.setdefault(problem, []).append(number)
    manifest.mark(manifest.members, "waiting")
    manifest.save()
    raise type(refused[0])(numbered(problems, len(refused)))


def _sweep_with_hydra(hydra: Any, manifest: Manifest, max_trials: int) -> Any:
    """Return the result of Hydra's sweeper, with a launcher that keeps the manifest."""
    from hydra._internal.callbacks import Callbacks
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext, RunMode

    values, directory = manifest.values, manifest.directory
    settings = [f"hydra.sweep.dir={quoted(str(directory))}", *search_path(values["config_dir"]), *values["hydra"]]
    composed = hydra.compose_config("sweep", [*settings, f"sweep.max_trials={max_trials}"], RunMode.MULTIRUN)
    # Unlike Hydra itself, compose the overrides of the trials in the trials alone. `optimizer=adam,adamw optimizer.eps=1e-6`
    # fits each of them, but not the configuration of the sweep, which has neither optimizer.
    composed.hydra.overrides.task = list(values["task"])
    plugins.check(composed)
    sweeper: Any = Plugins.instance().instantiate_sweeper(
        config=composed,
        hydra_context=HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks()),
        task_function=Task(values["config_dir"], tuple(values["command"]), os.getcwd()),
    )
    if getattr(sweeper, "launcher", None) is not None:
        sweeper.launcher = with_manifest(sweeper.launcher, directory)
    return sweeper.sweep(arguments=list(values["task"]))


def _interrupted(stop: Interrupted | KeyboardInterrupt, manifest: Manifest) -> Interrupted:
    """Print how to resume the sweep, and return the error that ends it."""
    with suppress(OSError):
        Reporter().say(f"resume with: {_resume_command(manifest)}")
    error = stop if isinstance(stop, Interrupted) else stop.__cause__
    return error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT, "stopped; what was saved is kept")


def _resume_command(manifest: Manifest) -> str:
    """Return the command that resumes a sweep, with the arguments that must be typed again."""
    values = manifest.values
    folder = [] if values["config_dir"] is None else ["--config-dir", shlex.quote(values["config_dir"])]
    again = map(shlex.quote, plugins.never_from_files(values["hydra"]))
    return " ".join(["python -m runner -m", *folder, f"resume={manifest.directory}", *again])


def _is_failed_trial(directory: Path, error: RunnerError) -> bool:
    """Whether the error is that of a failed trial: Hydra's own sweeper raises it when all trials have run."""
    return any(m["reason"] == str(error) for m in Manifest.read(directory).members.values() if m["state"] == "failed")


def report_results(manifest: Manifest) -> Results:
    """Write results.csv and a plot for each swept key, print the table of settings, and return the results.

    Raises `CheckpointError` if the manifest cannot be read, and `RunFailed` if results.csv cannot be written.
    """
    from runner.sweep.results import collect, table, write_csv

    reporter, directory = Reporter(), manifest.directory
    results = collect(directory)
    try:
        write_csv(results, directory / "results.csv")
    except OSError as error:
        raise _write_error(error, directory) from error
    optional("plots", lambda: _plot(results, directory / "plots"), directory / "plots", reporter.warn)
    reporter.say(table(results))
    reporter.say(f"sweep    {directory}")
    reporter.say(f"look     tensorboard --logdir {directory}")
    return results


def _plot(results: Results, folder: Path) -> None:
    with gc_paused():
        from runner.runs import plots
        from runner.sweep.plots import draw

        plots.write(folder, draw(results))


def audit_trials(manifest: Manifest) -> None:
    """Repeat `sweep.audit` trials one at a time, and report the largest difference to their results in the sweep."""
    from runner.sweep.audit import audit

    config_dir = manifest.values["config_dir"]
    if not any(
        override.startswith("sweep.") for override in manifest.values["task"]
    ):  # the default in conf/ is no audit
        return
    count = compose(classify(manifest.values["task"], config_dir).sample, config_dir).config.sweep.audit
    if count and launched(os.environ):
        command = f"{_resume_command(manifest)} sweep.audit={count}"
        Reporter().warn(f"`sweep.audit` trains on one process: {command}")
        return
    result = audit(manifest, count)
    if result is None:
        return
    numbers = ", ".join(map(str, result.members))
    Reporter().say(
        f"audit    trials {numbers} repeated one at a time: largest difference {result.largest_difference:.2g}"
    )
    manifest.values["audit"] = {"members": list(result.members), "largest_difference": result.largest_difference}
    manifest.save()


def _finish(directory: Path, status: str) -> Manifest:
    manifest = Manifest.read(directory)
    manifest.update_from_records()
    failed = any(member["state"] == "failed" for member in manifest.members.values())
    manifest.values.update(status="failed" if failed and status == "finished" else status, ended=now())
    with suppress(OSError):  # already reported: a disk that refuses this has refused the trials' files
        manifest.save()
    return manifest


def _write_error(error: OSError, directory: Path) -> RunFailed:
    return RunFailed(explain_os_error(error, Path(error.filename or directory)))


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep other processes from running this sweep. Raises `CheckpointError` if one runs it already."""
    if not os.path.isdir(directory):  # Path.is_dir raises an error for a name that is too long
        raise CheckpointError(
            f"`resume` must be a sweep directory, got {str(directory)!r}, which is not a directory; correct the path"
        )
    descriptor = lock(directory)
    try:
        yield
    finally:
        unlock(descriptor)
