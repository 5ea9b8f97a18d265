"""`hydra/sweeper=optuna`: Optuna suggests a generation of trials, the launcher runs it, and Optuna gets the results."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from runner.config import validation
from runner.config.schema import Metric
from runner.errors import ConfigError
from runner.sweep.arguments import FOLD
from runner.sweep.launcher import Launcher
from runner.sweep.manifest import Manifest
from runner.sweep.optuna_options import OptunaOptions
from runner.sweep.reporter import Watch
from runner.sweep.search_space import Space, read
from runner.sweep.trials import plan

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn

    from runner.sweep.optuna_study import Study

PATH = "hydra.sweeper"
JOURNAL = "optuna.log"
"""File of the study in the sweep directory."""

PARTS = ("train", "valid", "test")
METRICS = [f"{part}/{metric}" for part in PARTS for metric in get_args(Metric)]
"""Metrics that a search may be for, besides the user's own."""

NEEDS = {"cmaes": "cmaes", "gp": "scipy", "qmc": "scipy"}
"""Sampler → package that it needs besides Optuna."""


class Search:
    """One sweep led by Optuna.

    `metric` and `directions` are for the record of the sweep. They are None until the sweep has determined them.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self.metric: str | list[str] | None = None
        self.directions: list[str] | None = None

    def sweep(self, arguments: Sequence[str], launcher: Launcher, directory: Path) -> dict[str, Any]:
        """Run generations until all trials have ended. Return the best trials under `best`.

        Raises `ConfigError` with every problem before any trial starts, and passes on what the launcher raises: the
        trials of that generation are run again, under the same numbers, when the sweep is resumed in its directory.
        """
        options, space = self._prepare(arguments, launcher, directory)
        study = _open_study(options, space, directory)
        self.directions = options.directions
        self._set_metric(study.metric or options.metrics, study)
        with _watched(launcher, self._watch(study) if options.pruner != "none" else None):
            while trials := study.generation():
                for numbers in _consecutive(trials):
                    jobs = [space.overrides(trials[number]) for number in numbers]
                    self._store(study, numbers, launcher.launch(jobs, numbers[0]))
        return {"best": study.best()}

    def _prepare(self, arguments: Sequence[str], launcher: Launcher, directory: Path) -> tuple[OptunaOptions, Space]:
        options, problems = validation.build(OptunaOptions, self._options, PATH)
        space, unread = read(arguments)
        problems += unread
        if not space.dimensions and not unread:
            problems.append("a search must vary a key, but every argument is one value; write KEY=interval(0,1)")
        if options is not None:
            problems += _conflicts(options, space, launcher)
            unknown = [name for name in options.metrics or () if name not in METRICS]
            if unknown and not problems:  # the trials say which others there are
                own = _own_metrics(space, directory)
                problems += [_unknown_metric(name, [*METRICS, *own]) for name in unknown if name not in own]
        if options is None or problems:
            raise ConfigError(problems)
        check = getattr(launcher, "check", None)
        if check is not None:
            check(list(space.probes()))
        return options, space

    def _set_metric(self, names: list[str] | None, study: Study) -> None:
        if names is not None and names != study.metric:
            study.metric = names
        self.metric = names[0] if names is not None and len(names) == 1 else names

    def _watch(self, study: Study) -> Watch:
        """Return the function that passes rows of trials to the pruner. It ignores rows without the metric."""

        def watch(number: int, step: int, row: Mapping[str, float]) -> bool:
            name = self.metric or "valid/rmse"
            assert isinstance(name, str)
            return name in row and study.report(number, step, float(row[name]))

        return watch

    def _store(self, study: Study, numbers: Sequence[int], returns: Sequence[JobReturn]) -> None:
        from hydra.core.utils import JobStatus

        for number, returned in zip(numbers, returns, strict=True):
            if returned.status is not JobStatus.COMPLETED:
                study.fail(number)
            elif returned.return_value.get("pruned"):
                study.prune(number)
            else:
                study.complete(number, self._values(study, number, returned.return_value))

    def _values(self, study: Study, number: int, metrics: Mapping[str, float]) -> list[float]:
        if self.metric is None:
            self._set_metric(["valid/rmse" if "valid/rmse" in metrics else "train/rmse"], study)
        names = [self.metric] if isinstance(self.metric, str) else self.metric or []
        missing = [name for name in names if name not in metrics]
        if missing:
            raise ConfigError(
                f"`{PATH}.metric` must be a final metric of the trials, but trial {number} has no {', '.join(missing)}; "
                f"use one of {', '.join(metrics)}"
            )
        return [float(metrics[name]) for name in names]


@contextlib.contextmanager
def _watched(launcher: Any, watch: Watch | None) -> Iterator[None]:
    """Let the launcher report to `watch` inside the context."""
    if watch is None:
        yield
        return
    launcher.watch = watch
    try:
        yield
    finally:
        launcher.watch = None


def _open_study(options: OptunaOptions, space: Space, directory: Path) -> Study:
    """Open the study in the sweep directory, or the one that several sweeps share. Raises `ConfigError`."""
    needed = ["optuna", NEEDS.get(options.chosen_sampler, "optuna")]
    missing = [name for name in dict.fromkeys(needed) if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"`hydra/sweeper`=optuna with sampler={options.chosen_sampler} needs {' and '.join(missing)}, which this Python "
            'lacks; install it with `pip install "runner[sweep]"`'
        )
    from runner.sweep.optuna_study import Study

    directory.mkdir(parents=True, exist_ok=True)
    shared = options.storage is not None
    path = Path(options.storage) if options.storage is not None else directory / JOURNAL
    # Not the directory, which may be moved.
    owner = str(Manifest.read(directory).values["started"]) if shared else None
    return Study(options, space, options.directions, path, owner)


def _conflicts(options: OptunaOptions, space: Space, launcher: Launcher) -> list[str]:
    """Return the problems between the options, the space and the launcher."""
    problems, several, sampler = list[str](), len(options.metrics or [""]) > 1, options.chosen_sampler
    if len(options.directions) != len(options.metrics or [""]):
        problems.append(
            f"`{PATH}.direction` must be one for each metric, got {len(options.directions)} for "
            f"{len(options.metrics or [''])}; give as many, or null"
        )
    if "seed" in space.dimensions:
        problems.append(
            "`seed` must be one value in a search, which would find the luckiest seed, got several; leave it out, or use "
            "hydra/sweeper=grid"
        )
    if FOLD in space.dimensions:
        problems.append(
            f"`{FOLD}` must be one value in a search, which would find the easiest fold, got several; use data.split.valid "
            "with data.split.folds=null, or hydra/sweeper=grid"
        )
    if sampler == "grid" and space.continuous:
        problems.append(
            f"`{space.continuous[0]}` must have values that can be counted for sampler=grid, got an interval; "
            f"write {space.continuous[0]}=range(START,STOP,step=…) or choice(…)"
        )
    if sampler == "cmaes" and (several or len(space.numeric) < 2):
        number = "several metrics" if several else f"{len(space.numeric)}"
        problems.append(
            f"`{PATH}.sampler`=cmaes must have one metric and at least two keys with numbers, got {number}; use tpe"
        )
    if options.pruner != "none" and several:
        problems.append(f"`{PATH}.pruner` must be none for several metrics, got {options.pruner}; leave it out")
    elif options.pruner != "none" and not hasattr(launcher, "watch"):
        problems.append(
            f"`{PATH}.pruner` must be none with a launcher that reports no metrics before the end, got {options.pruner}; "
            "leave it out, or use hydra/launcher=vmap"
        )
    return problems


def _own_metrics(space: Space, directory: Path) -> list[str]:
    """Return the names of the user's own metrics in the trials of a space. Raises `ConfigError` for trials that cannot be composed."""
    first, *_ = space.probes()
    (trial,) = plan([first], 0, Manifest.read(directory))
    return [f"{part}/{target.name}" for part in PARTS for target in trial.config.own_metrics]


def _unknown_metric(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "use one of them"
    return f"`{PATH}.metric` must be one of {', '.join(known)}, got {name}; {hint}"


def _consecutive(numbers: Iterable[int]) -> list[list[int]]:
    """Split the numbers into runs without a gap: a launcher numbers its trials from the first."""
    ordered = sorted(numbers)
    runs = groupby(enumerate(ordered), lambda pair: pair[1] - pair[0])
    return [[number for _, number in run] for _, run in runs]
