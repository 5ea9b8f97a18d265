"""A sweep that learns from its trials: Optuna asks for a generation, the launcher runs it, Optuna is told what came out."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from runner.config import validation
from runner.config.parts import key
from runner.config.schema import Metric
from runner.errors import ConfigError
from runner.sweep.search_space import Space, read

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn

    from runner.sweep.optuna_study import Study

Watch = Callable[[int, int, Mapping[str, float]], bool]
"""Told a trial's number, its step and a row of its metrics; answers whether the trial ends now."""

PATH = "hydra.sweeper"
JOURNAL = "optuna.log"
"""The study, in the sweep directory."""

METRICS = [f"{part}/{metric}" for part in ("train", "valid", "test") for metric in get_args(Metric)]
NEEDS = {"cmaes": "cmaes", "gp": "scipy", "qmc": "scipy"}
"""What a sampler needs besides Optuna."""


class Launcher(Protocol):
    """Hydra's launcher, as far as it is used here.

    One that reports on the way has `watch: Watch | None`; one that can tell beforehand whether trials can be composed
    has `check(jobs)`, which raises `ConfigError` with all that is wrong.
    """

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the trials, the first of which has number `initial_job_idx`; what they return, in their order."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a search is led. The values stand in `conf/hydra/sweeper/optuna.yaml`."""

    n_trials: int = key("trials in all, failed and pruned ones included", at_least=1)
    n_jobs: int = key("trials asked for at once: a generation, which the launcher runs together", at_least=1)
    sampler: Literal["tpe", "gp", "cmaes", "qmc", "nsgaii", "random", "grid"] | None = key(
        "what chooses the values; null is tpe, and nsgaii for several metrics"
    )
    seed: int = key("moves the sampler's random numbers", at_least=0, at_most=2**32 - 1)
    metric: str | tuple[str, ...] | None = key(
        "metric of summary.json, or several; null is valid/rmse, and train/rmse where no rows are held out"
    )
    direction: Literal["minimize", "maximize"] | tuple[Literal["minimize", "maximize"], ...] | None = key(
        "null maximizes r2 and minimizes any other metric"
    )
    storage: str | None = key("journal file that several sweeps share; null is optuna.log in the sweep directory")
    study_name: str = key("name of the study in the journal")
    pruner: Literal["none", "median", "sha", "hyperband"] = key("what ends trials early, by their rows of metrics")
    startup_trials: int = key("trials that end before the median prunes any", at_least=0)
    warmup_steps: int = key("steps of every trial before which it is not pruned", unit="steps", at_least=0)

    @property
    def metrics(self) -> list[str] | None:
        """The metrics that are named, or None."""
        return [self.metric] if isinstance(self.metric, str) else list(self.metric or ()) or None

    @property
    def directions(self) -> list[str]:
        """Minimize or maximize, for every metric."""
        if self.direction is None:
            return ["maximize" if name.endswith("/r2") else "minimize" for name in self.metrics or [""]]
        return [self.direction] if isinstance(self.direction, str) else list(self.direction)

    @property
    def chosen_sampler(self) -> str:
        """The sampler by its name."""
        return self.sampler or ("nsgaii" if len(self.metrics or ()) > 1 else "tpe")


class Search:
    """One sweep led by Optuna. `metric` and `directions` are for the sweep's record; None before they are settled."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._given = options
        self.metric: str | list[str] | None = None
        self.directions: list[str] | None = None

    def sweep(self, words: Sequence[str], launcher: Launcher, directory: Path) -> dict[str, Any]:
        """Run generations until all trials have ended; `best` are the trials that no other one beats.

        What the launcher raises goes through: the trials of that generation are run again, under their numbers, when
        the sweep is resumed in its directory. Raises `ConfigError` with every problem before anything is started.
        """
        options, space = self._prepared(words, launcher)
        study = _opened(options, space, directory)
        self.directions = options.directions
        self._settle(study.metric or options.metrics, study)
        with _watched(launcher, self._watch(study) if options.pruner != "none" else None):
            while trials := study.generation():
                for numbers in _consecutive(trials):
                    jobs = [space.words(trials[number]) for number in numbers]
                    self._tell(study, numbers, launcher.launch(jobs, numbers[0]))
        return {"best": study.best()}

    def _prepared(self, words: Sequence[str], launcher: Launcher) -> tuple[Options, Space]:
        options, problems = validation.build(Options, self._given, PATH)
        space, unread = read(words)
        problems += unread
        if not space.dimensions and not unread:
            problems.append("a search must have a key to vary, but every word is one value; write KEY=interval(0,1)")
        if options is not None:
            problems += _unfit(options, space, launcher)
        if options is None or problems:
            raise ConfigError(problems)
        check = getattr(launcher, "check", None)
        if check is not None:
            check(list(space.probes()))
        return options, space

    def _settle(self, names: list[str] | None, study: Study) -> None:
        if names is not None and names != study.metric:
            study.metric = names
        self.metric = names[0] if names is not None and len(names) == 1 else names

    def _watch(self, study: Study) -> Watch:
        """Between a row of a trial and the pruner; a row that lacks the metric says nothing."""

        def watch(number: int, step: int, row: Mapping[str, float]) -> bool:
            name = self.metric or "valid/rmse"
            assert isinstance(name, str)
            return name in row and study.report(number, step, float(row[name]))

        return watch

    def _tell(self, study: Study, numbers: Sequence[int], returns: Sequence[JobReturn]) -> None:
        from hydra.core.utils import JobStatus

        for number, returned in zip(numbers, returns, strict=True):
            if returned.status is not JobStatus.COMPLETED:
                study.fail(number)
            elif returned.return_value.get("pruned"):
                study.prune(number)
            else:
                study.tell(number, self._values(study, number, returned.return_value))

    def _values(self, study: Study, number: int, metrics: Mapping[str, float]) -> list[float]:
        if self.metric is None:
            self._settle(["valid/rmse" if "valid/rmse" in metrics else "train/rmse"], study)
        names = [self.metric] if isinstance(self.metric, str) else self.metric or []
        missing = [name for name in names if name not in metrics]
        if missing:
            raise ConfigError(
                f"`{PATH}.metric` must be what trials end with, but trial {number} has no {', '.join(missing)}; "
                f"take one of {', '.join(metrics)}"
            )
        return [float(metrics[name]) for name in names]


@contextlib.contextmanager
def _watched(launcher: Any, watch: Watch | None) -> Iterator[None]:
    """Meanwhile the launcher reports to `watch`."""
    if watch is None:
        yield
        return
    launcher.watch = watch
    try:
        yield
    finally:
        launcher.watch = None


def _opened(options: Options, space: Space, directory: Path) -> Study:
    """The study in the sweep directory, or the one that several sweeps share. Raises `ConfigError`."""
    needed = ["optuna", NEEDS.get(options.chosen_sampler, "optuna")]
    missing = [name for name in dict.fromkeys(needed) if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"`hydra/sweeper`=optuna with sampler={options.chosen_sampler} needs {' and '.join(missing)}, but this Python "
            'has none; install it with `pip install "runner[sweep]"`'
        )
    from runner.sweep.optuna_study import Study

    directory.mkdir(parents=True, exist_ok=True)
    shared = options.storage is not None
    path = Path(options.storage) if options.storage is not None else directory / JOURNAL
    return Study(options, space, options.directions, path, str(directory.resolve()) if shared else None)


def _unfit(options: Options, space: Space, launcher: Launcher) -> list[str]:
    """What is wrong between the options, the space and the launcher."""
    problems = [_unknown_metric(name) for name in options.metrics or () if name not in METRICS]
    several, sampler = len(options.metrics or [""]) > 1, options.chosen_sampler
    if len(options.directions) != len(options.metrics or [""]):
        problems.append(
            f"`{PATH}.direction` must be one for each metric, but there are {len(options.directions)} for "
            f"{len(options.metrics or [''])}; give as many, or null"
        )
    if "seed" in space.dimensions:
        problems.append(
            "`seed` must be one value in a search, which would find the luckiest, but is several; leave it out, or take "
            "hydra/sweeper=grid"
        )
    if sampler == "grid" and space.endless:
        problems.append(
            f"`{space.endless[0]}` must have values that can be counted, but is an interval, and sampler=grid takes all; "
            f"write {space.endless[0]}=range(START,STOP,step=…) or choice(…)"
        )
    if sampler == "cmaes" and (several or len(space.numeric) < 2):
        has = "several metrics" if several else f"{len(space.numeric)}"
        problems.append(
            f"`{PATH}.sampler`=cmaes must have one metric and at least two keys with numbers, but has {has}; take tpe"
        )
    if options.pruner != "none" and several:
        problems.append(f"`{PATH}.pruner` must be none for several metrics, but is {options.pruner}; leave it out")
    elif options.pruner != "none" and not hasattr(launcher, "watch"):
        problems.append(
            f"`{PATH}.pruner` must be none with a launcher that tells nothing before the end, but is {options.pruner}; "
            "leave it out, or take hydra/launcher=vmap"
        )
    return problems


def _unknown_metric(name: str) -> str:
    near = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "take one of them"
    return f"`{PATH}.metric` must be of {', '.join(METRICS)}, but is {name}; {hint}"


def _consecutive(numbers: Iterable[int]) -> list[list[int]]:
    """The numbers in stretches without a gap, since a launcher counts on from the first."""
    ordered = sorted(numbers)
    stretches = groupby(enumerate(ordered), lambda pair: pair[1] - pair[0])
    return [[number for _, number in stretch] for _, stretch in stretches]
