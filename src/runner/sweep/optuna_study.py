"""Optuna's study in a journal: trials asked for by generations, told one by one, and taken up again after a kill.

The only module besides the journal that imports Optuna; it is imported when such a sweep is run.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIISampler,
    PartialFixedSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.storages import JournalStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from runner.errors import ConfigError
from runner.sweep.journal import Journal
from runner.sweep.search_space import Space

if TYPE_CHECKING:
    from runner.sweep.optuna_sweeper import Options

OWNER = "sweep"
"""The trial's attribute that names the sweep directory, where several sweeps share a study."""


class Study:
    """The study of one sweep. A trial keeps its number, which is that of the sweep's member."""

    def __init__(
        self, options: Options, space: Space, directions: Sequence[str], path: Path, owner: str | None
    ) -> None:
        """Open the study in the journal at `path`, or make it. `owner` tells this sweep's trials from others' there.

        Raises `ConfigError` where the journal cannot be used, or holds another search under the same name.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        aims = [StudyDirection[direction.upper()] for direction in directions]
        self._options, self._space, self._owner = options, space, owner
        self._limit = len(space.grid[: options.n_trials]) if options.sampler == "grid" else options.n_trials
        self._asked: dict[int, Trial] = {}
        self._reported: dict[int, int] = {}
        try:
            self._study = optuna.create_study(
                storage=JournalStorage(Journal(path)),
                sampler=_Addressed(lambda number, name: _sampler(options, space, number, name)),
                pruner=_pruner(options),
                study_name=options.study_name,
                directions=aims,
                load_if_exists=True,
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"`hydra.sweeper.storage` must be the file of Optuna's journal, or a new one, but {path} cannot be used "
                f"({' '.join(str(error).split())}); give another path"
            ) from None
        self._refuse_other({key: repr(dimension) for key, dimension in space.dimensions.items()}, aims)

    def _refuse_other(self, space: dict[str, str], aims: list[StudyDirection]) -> None:
        """One study answers one question. Raises `ConfigError`."""
        saved = self._study.user_attrs.get("space")
        if saved is None:
            self._study.set_user_attr("space", space)
        if saved not in (None, space) or self._study.directions != aims:
            what = "search space" if self._study.directions == aims else "directions"
            raise ConfigError(
                f"`hydra.sweeper.study_name` must be that of a study with the same {what}, but {self._options.study_name} "
                f"in {self._options.storage or 'the sweep directory'} has another; give another name"
            )

    @property
    def metric(self) -> list[str] | None:
        """What the study is optimized for, once that is settled."""
        names = self._study.user_attrs.get("metric")
        return names if names is None else list(names)

    @metric.setter
    def metric(self, names: list[str]) -> None:
        self._study.set_user_attr("metric", names)

    def generation(self) -> dict[int, dict[str, Any]]:
        """Number → values of the trials to run next; none when all have ended.

        First those that were asked for and never told, as before. New ones end where a generation ends, so that a
        sweep that was interrupted asks for the same trials as one that was not.
        """
        self._asked = {}
        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if frozen.user_attrs.get(OWNER) == self._owner:
                # A trial whose process died keeps what it was given, and is given now what it lacks.
                self._take(Trial(self._study, frozen._trial_id))
                self._reported[frozen.number] = -1 if frozen.last_step is None else frozen.last_step
        while len(self._asked) < self._options.n_jobs and self._unasked() and not self._full():
            trial = self._study.ask()
            if self._owner is not None:
                trial.set_user_attr(OWNER, self._owner)
            self._take(trial)
        return {number: dict(trial.params) for number, trial in self._asked.items()}

    def _take(self, trial: Trial) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where they fall back on independent draws
            self._space.suggest(trial)
        self._asked[trial.number] = trial

    def _unasked(self) -> bool:
        return len(self._study.get_trials(deepcopy=False)) < self._limit

    def _full(self) -> bool:
        return bool(self._asked) and (max(self._asked) + 1) % self._options.n_jobs == 0

    def report(self, number: int, step: int, value: float) -> bool:
        """Note the value that a trial has after `step`; gives whether the pruner ends it now."""
        trial = self._asked[number]
        if step > self._reported.get(number, -1):
            trial.report(value, step)
            self._reported[number] = step
        return trial.should_prune()

    def tell(self, number: int, values: Sequence[float]) -> None:
        """What a trial came to; one with nan or inf has failed."""
        if all(map(math.isfinite, values)):
            self._study.tell(number, values)
        else:
            self.fail(number)

    def fail(self, number: int) -> None:
        """A trial came to nothing."""
        self._study.tell(number, state=TrialState.FAIL)

    def prune(self, number: int) -> None:
        """A trial was ended early; it counts with the last value that was reported."""
        self._study.tell(number, state=TrialState.PRUNED)

    def best(self) -> list[dict[str, Any]]:
        """Number, metrics and overrides of the trials that no other one beats: of several with several metrics."""
        return [
            {
                "number": trial.number,
                "metrics": dict(zip(self.metric or (), trial.values, strict=True)),
                "overrides": self._space.words(trial.params),
            }
            for trial in self._study.best_trials
        ]


class _Addressed(BaseSampler):
    """A new sampler for every trial, and for every value that is drawn by itself: what it draws depends on nothing before.

    All that Optuna's samplers must remember is in the study. One that went on drawing would repeat itself when a sweep
    is resumed, or when two processes share a study and a seed.
    """

    def __init__(self, make: Callable[[int, str], BaseSampler]) -> None:
        self._make = make
        self._address: tuple[int, str] | None = None
        self._sampler: BaseSampler = RandomSampler()

    def _at(self, trial: FrozenTrial, name: str = "") -> BaseSampler:
        if self._address != (trial.number, name):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # those that are new in Optuna say so
                self._sampler = self._make(trial.number, name)
            self._address = trial.number, name
        return self._sampler

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """What a sampler notes before a trial."""
        self._at(trial).before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """What is drawn together."""
        return self._at(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """What is drawn together, drawn."""
        return self._at(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """What is drawn by itself, drawn."""
        return self._at(trial, param_name).sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """What a sampler notes after a trial."""
        self._at(trial).after_trial(study, trial, state, values)


def _sampler(options: Options, space: Space, number: int, name: str) -> BaseSampler:
    """The sampler for value `name` of trial `number`. Where a sampler has a population, a generation of the sweep is one."""
    seed = int(np.random.SeedSequence((options.seed, number, *name.encode())).generate_state(1)[0])
    alone = RandomSampler(seed)
    if options.sampler == "grid":
        grid = space.grid
        return PartialFixedSampler(grid[number % len(grid)], alone)
    least = 4 + int(3 * math.log(max(len(space.numeric), 1)))  # Hansen and Ostermeier, 2001
    makers: dict[str, Callable[[], BaseSampler]] = {
        "random": lambda: alone,
        "tpe": lambda: TPESampler(seed=seed, constant_liar=True),
        "gp": lambda: GPSampler(seed=seed, independent_sampler=alone),
        "cmaes": lambda: CmaEsSampler(seed=seed, independent_sampler=alone, popsize=max(options.n_jobs, least)),
        "qmc": lambda: QMCSampler(seed=options.seed, scramble=True, independent_sampler=alone),
        "nsgaii": lambda: NSGAIISampler(seed=seed, population_size=max(options.n_jobs, 2)),
    }
    return makers[options.chosen_sampler]()


def _pruner(options: Options) -> BasePruner:
    first = options.warmup_steps
    makers: dict[str, Callable[[], BasePruner]] = {
        "none": NopPruner,
        "median": lambda: MedianPruner(options.startup_trials, first),
        "sha": lambda: SuccessiveHalvingPruner(first or "auto"),
        "hyperband": lambda: HyperbandPruner(max(first, 1)),
    }
    return makers[options.pruner]()
