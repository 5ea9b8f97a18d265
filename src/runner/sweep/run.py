"""`python -m runner -m …`: from the words of a sweep to its directory, through Hydra's own sweepers and launchers."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.compute.gc_pause import gc_paused
from runner.compute.launch import wanted
from runner.compute.processes import launched
from runner.config.compose import Composed, compose
from runner.config.hydra_adapter import hydra_session, reason_of, search_path
from runner.config.overrides import quoted
from runner.config.schema import Config
from runner.errors import ConfigError, InputError, Interrupted, RunFailed, RunnerError
from runner.runs.atomic import explain_os_error, write_atomic
from runner.runs.directory import lock, now, unlock
from runner.runs.sinks.console import Console
from runner.sweep import arguments as words_
from runner.sweep.manifest import FILE, Manifest, place
from runner.sweep.task import Task
from runner.sweep.vmap_launcher import kept

if TYPE_CHECKING:
    from runner.sweep.results import Results


def spread(words: Sequence[str], config_dir: str | None) -> Config | None:
    """The configuration whose `launch.processes` a sweep asks for; None where it is trained in this process."""
    asked = words_.sort(words, config_dir)
    if asked.resume is not None:
        asked = words_.sort(Manifest.read(Path(str(asked.resume))).values["task"], config_dir)
    if not any(word.startswith("launch.") for word in asked.fixed):
        return None
    config = compose(asked.sample, config_dir).config
    return config if wanted(config) else None


def sweep(words: Sequence[str], config_dir: str | None, command: Sequence[str]) -> Manifest:
    """Run a sweep to its end, or go on with one; gives its manifest, whose members tell how each trial ended.

    Raises `InputError` before anything is started, and `Interrupted` when a signal stopped it.
    """
    asked = words_.sort(words, config_dir)
    if asked.resume is not None:
        words_.refuse_beside_resume(words)
        directory = Path(str(asked.resume))
        with _locked(directory):
            manifest = Manifest.read(directory)
            return _gone_on(manifest, asked, words)
    composed = compose(asked.sample, config_dir)
    config = composed.config
    _warn(asked, composed)
    words_.with_seeds(asked, config.seed)
    words_.without_pictures(asked)
    directory = place(config.name, asked.run_dir)
    values = {
        "name": config.name,
        "command": list(command),
        "config_dir": config_dir,
        "words": list(words),
        "task": asked.task,
        "hydra": asked.hydra,
        "fixed": asked.fixed,
        "swept": asked.swept,
        "metric": None,
        "directions": None,
    }
    absent = [parent for parent in directory.parents if not parent.exists()]
    try:
        manifest = Manifest.create(directory, values)
        with _locked(directory):
            return _refused_whole(manifest, config)
    except InputError:
        for parent in absent:
            with suppress(OSError):  # another run is in it already
                parent.rmdir()
        raise


def _warn(asked: words_.Words, composed: Composed) -> None:
    """What the user should hear of all trials, as of one run; what holds for the first value of a swept key is not of all."""
    of_all = [n for n in composed.notices if not any(f"`{key}`" in n or f"`{key}." in n for key in asked.swept)]
    for notice in [*asked.notices, *of_all]:
        Console().warn(notice)


def _refused_whole(manifest: Manifest, config: Config) -> Manifest:
    """Run a new sweep; one that is refused before any trial has begun leaves nothing behind."""
    try:
        return _run(manifest, config)
    except InputError:
        if all(member["state"] == "waiting" for member in Manifest.read(manifest.directory).members.values()):
            shutil.rmtree(manifest.directory)
        raise


def _gone_on(manifest: Manifest, asked: words_.Words, words: Sequence[str]) -> Manifest:
    """The same sweep again, where it stopped; where that is refused, all is as it was."""
    path, config_dir = manifest.directory / FILE, manifest.values["config_dir"]
    before = path.read_bytes()
    manifest.settle()
    manifest.reconsider()
    states = manifest.states()
    manifest.values.update(status="running", ended=None, resumed=manifest.values["resumed"] + 1)
    for own, new in ((manifest.values["hydra"], asked.hydra), (manifest.values["task"], asked.task)):
        keys = {word.partition("=")[0] for word in new}
        own[:] = [word for word in own if word.partition("=")[0] not in keys] + list(new)
    manifest.values["fixed"] += [word for word in asked.fixed if word not in manifest.values["fixed"]]
    manifest.save()
    try:
        return _run(manifest, compose(words_.sort(manifest.values["task"], config_dir).sample, config_dir).config)
    except InputError:
        if Manifest.read(manifest.directory).states() == states:
            write_atomic(path, before)
        raise


def _run(manifest: Manifest, config: Config) -> Manifest:
    """Let Hydra's sweeper make the trials and its launcher run them. `config` is that of one of them."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    directory, found, status = manifest.directory, None, "failed"
    try:
        with hydra_session() as hydra:
            found = _swept(hydra, manifest, config.sweep.max_trials)
        status = "finished"
    except (Interrupted, KeyboardInterrupt) as stop:
        status = "interrupted"
        raise _stopped(stop, directory) from None
    except RunnerError as error:
        if not _is_told(directory, error):
            raise
        status = "finished"
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"the sweep cannot be composed: {reason_of(error)}") from None
    except OSError as error:
        raise _unwritten(error, directory) from error
    finally:
        manifest = _ended(directory, status)
    if isinstance(found, dict):
        manifest.values.update({k: v for k, v in found.items() if k in ("metric", "directions")})
        manifest.save()
    return manifest


def _swept(hydra: Any, manifest: Manifest, max_trials: int) -> Any:
    """What Hydra's sweeper gives, its launcher keeping the manifest.

    As Hydra itself does it, but that the words of the trials are for the trials: `optimizer=adam,adamw optimizer.eps=1e-6` fits
    each of them, and not the configuration without any.
    """
    from hydra._internal.callbacks import Callbacks
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext, RunMode

    values, directory = manifest.values, manifest.directory
    words = [f"hydra.sweep.dir={quoted(str(directory))}", *search_path(values["config_dir"]), *values["hydra"]]
    composed = hydra.compose_config("sweep", [*words, f"sweep.max_trials={max_trials}"], RunMode.MULTIRUN)
    composed.hydra.overrides.task = list(values["task"])
    callbacks = Callbacks(composed)
    callbacks.on_multirun_start(config=composed, config_name="sweep")
    sweeper: Any = Plugins.instance().instantiate_sweeper(
        config=composed,
        hydra_context=HydraContext(config_loader=hydra.config_loader, callbacks=callbacks),
        task_function=Task(values["config_dir"], tuple(values["command"]), os.getcwd()),
    )
    if getattr(sweeper, "launcher", None) is not None:
        sweeper.launcher = kept(sweeper.launcher, directory)
    found = sweeper.sweep(arguments=list(values["task"]))
    callbacks.on_multirun_end(config=composed, config_name="sweep")
    return found


def _stopped(stop: Interrupted | KeyboardInterrupt, directory: Path) -> Interrupted:
    """The end of a sweep that a signal stopped, and how it goes on."""
    with suppress(OSError):
        Console().say(f"go on with: python -m runner -m resume={directory}")
    error = stop if isinstance(stop, Interrupted) else stop.__cause__
    return error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT, "stopped; what was saved is kept")


def _is_told(directory: Path, error: RunnerError) -> bool:
    """Whether it is how a trial failed: when all have run, Hydra's own sweeper raises what it finds among the results."""
    return any(m["reason"] == str(error) for m in Manifest.read(directory).members.values() if m["state"] == "failed")


def tell(manifest: Manifest) -> Results:
    """What the trials came to together: results.csv, a table, and a picture for each swept key."""
    from runner.sweep.results import collect, table, write_csv

    console, directory = Console(), manifest.directory
    results = collect(directory)
    with gc_paused():
        from runner.sweep.plots import draw

        figures = draw(results)
    try:
        write_csv(results, directory / "results.csv")
        (directory / "plots").mkdir(exist_ok=True)
        for name, png in figures.items():
            write_atomic(directory / "plots" / f"{name}.png", png)
    except OSError as error:
        raise _unwritten(error, directory) from error
    console.say(table(results))
    console.say(f"sweep    {directory}")
    console.say(f"look     tensorboard --logdir {directory}")
    return results


def check_some(manifest: Manifest) -> None:
    """Train the trials again that `sweep.audit` asks for, and tell how far they are from what they were side by side."""
    from runner.sweep.audit import audit

    config_dir = manifest.values["config_dir"]
    if not any(word.startswith("sweep.") for word in manifest.values["task"]):  # conf/ asks for none
        return
    count = compose(words_.sort(manifest.values["task"], config_dir).sample, config_dir).config.sweep.audit
    if count and launched(os.environ):
        again = f"python -m runner -m resume={manifest.directory} sweep.audit={count}"
        Console().warn(f"`sweep.audit` trains on one process: {again}")
        return
    found = audit(manifest, count)
    if found is None:
        return
    numbers = ", ".join(map(str, found.members))
    Console().say(f"audit    trials {numbers} trained again alone: largest difference {found.largest_difference:.2g}")
    manifest.values["audit"] = {"members": list(found.members), "largest_difference": found.largest_difference}
    manifest.save()


def _ended(directory: Path, status: str) -> Manifest:
    manifest = Manifest.read(directory)
    manifest.settle()
    failed = any(member["state"] == "failed" for member in manifest.members.values())
    manifest.values.update(status="failed" if failed and status == "finished" else status, ended=now())
    with suppress(OSError):  # told already: a disk that does not take this has not taken the trials
        manifest.save()
    return manifest


def _unwritten(error: OSError, directory: Path) -> RunFailed:
    return RunFailed(explain_os_error(error, Path(error.filename or directory)))


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Nobody else runs this sweep meanwhile. Raises `CheckpointError` where somebody does."""
    if not directory.is_dir():
        from runner.errors import CheckpointError

        raise CheckpointError(
            f"`resume` must be a sweep directory, but {str(directory)!r} is not a directory; mend the path"
        )
    descriptor = lock(directory)
    try:
        yield
    finally:
        unlock(descriptor)
