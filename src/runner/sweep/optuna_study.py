"""Optuna's study in a journal: it gives trials by generations, takes their results one by one, and is resumed after a kill.

Only this module and the journal import Optuna. They are imported when a search runs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
from runner.sweep.optuna_options import OptunaOptions
from runner.sweep.search_space import Space

OWNER = "sweep"
"""Attribute of a trial with the time at which its sweep was started, if several sweeps share a study."""


class Study:
    """The study of one sweep. Trials of the study and of the sweep have the same numbers."""

    def __init__(
        self, options: OptunaOptions, space: Space, directions: Sequence[str], path: Path, owner: str | None
    ) -> None:
        """Open the study in the journal at `path`, or create it. `owner` marks the trials of this sweep in a shared study.

        Raises `ConfigError` if the journal cannot be used, or has another search under the same name.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study_directions = [StudyDirection[direction.upper()] for direction in directions]
        self._options, self._space, self._owner = options, space, owner
        self._limit = len(space.grid[: options.n_trials]) if options.sampler == "grid" else options.n_trials
        self._running: dict[int, Trial] = {}
        self._reported: dict[int, int] = {}  # number of a trial → step of its last report
        try:
            self._study = optuna.create_study(
                storage=JournalStorage(Journal(path)),
                sampler=_SamplerPerValue(lambda number, name: _sampler(options, space, number, name)),
                pruner=_pruner(options),
                study_name=options.study_name,
                directions=study_directions,
                load_if_exists=True,
            )
        except Exception as error:  # Optuna replays the operations as they are, and stumbles over odd ones in many ways
            reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
            raise ConfigError(
                f"`hydra.sweeper.storage` must be a journal of Optuna, or a new file, got {path}, which cannot be used "
                f"({reason or type(error).__name__}); give another path"
            ) from None
        self._check_question({key: repr(dimension) for key, dimension in space.dimensions.items()}, study_directions)

    def _check_question(self, space: dict[str, str], directions: list[StudyDirection]) -> None:
        """Refuse a study with another search space or other directions. Raises `ConfigError`."""
        saved = self._study.user_attrs.get("space")
        if saved is None:
            self._study.set_user_attr("space", space)
        if saved not in (None, space) or self._study.directions != directions:
            what = "search space" if self._study.directions == directions else "directions"
            raise ConfigError(
                f"`hydra.sweeper.study_name` must name a study with the same {what}, got {self._options.study_name} "
                f"in {self._options.storage or 'the sweep directory'}, which has another; give another name"
            )

    @property
    def metric(self) -> list[str] | None:
        """Names of the metrics that the study optimizes; None until they are known."""
        names = self._study.user_attrs.get("metric")
        return names if names is None else list(names)

    @metric.setter
    def metric(self, names: list[str]) -> None:
        self._study.set_user_attr("metric", names)

    def generation(self) -> dict[int, dict[str, Any]]:
        """Return number → values of the trials to run next; empty when all have ended.

        Trials that were started and have no result come first, with the same values. New trials fill the generation.
        """
        self._running = {}
        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if frozen.user_attrs.get(OWNER) == self._owner:
                # A trial whose process was killed keeps its values; those that it lacks are drawn now.
                self._suggest(Trial(self._study, frozen._trial_id))
                self._reported[frozen.number] = -1 if frozen.last_step is None else frozen.last_step
        # Generations end at multiples of `n_jobs`, so that an interrupted sweep has the same trials as one that was not.
        while len(self._running) < self._options.n_jobs and self._trials_left() and not self._generation_full():
            trial = self._study.ask()
            if self._owner is not None:
                trial.set_user_attr(OWNER, self._owner)
            self._suggest(trial)
        return {number: dict(trial.params) for number, trial in self._running.items()}

    def _suggest(self, trial: Trial) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # samplers warn when they fall back on independent draws
            self._space.suggest(trial)
        self._running[trial.number] = trial

    def _trials_left(self) -> bool:
        return len(self._study.get_trials(deepcopy=False)) < self._limit

    def _generation_full(self) -> bool:
        return bool(self._running) and (max(self._running) + 1) % self._options.n_jobs == 0

    def report(self, number: int, step: int, value: float) -> bool:
        """Report the value of a trial's metric after `step`. Return whether the pruner ends the trial now."""
        trial = self._running[number]
        if step > self._reported.get(number, -1):
            trial.report(value, step)
            self._reported[number] = step
        return trial.should_prune()

    def complete(self, number: int, values: Sequence[float]) -> None:
        """Store the final metrics of a trial. A trial with nan or inf counts as failed."""
        if all(map(math.isfinite, values)):
            self._study.tell(number, values)
        else:
            self.fail(number)

    def fail(self, number: int) -> None:
        """Store that a trial failed."""
        self._study.tell(number, state=TrialState.FAIL)

    def prune(self, number: int) -> None:
        """Store that a trial was ended early. It counts with the last value that was reported."""
        self._study.tell(number, state=TrialState.PRUNED)

    def best(self) -> list[dict[str, Any]]:
        """Return number, metrics and overrides of the best trial; with several metrics, of every Pareto-optimal trial."""
        return [
            {
                "number": trial.number,
                "metrics": dict(zip(self.metric or (), trial.values, strict=True)),
                "overrides": self._space.overrides(trial.params),
            }
            for trial in self._study.best_trials
        ]


class _SamplerPerValue(BaseSampler):
    """A new sampler for every trial, and for every value that is drawn independently. Its draws depend on the study alone."""

    # One sampler for all trials would repeat its draws when a sweep is resumed, or when two processes share a study and a seed.
    # All that Optuna's samplers must remember is in the study.

    def __init__(self, make: Callable[[int, str], BaseSampler]) -> None:
        self._make = make
        self._address: tuple[int, str] | None = None
        self._sampler: BaseSampler = RandomSampler()

    def _at(self, trial: FrozenTrial, name: str = "") -> BaseSampler:
        if self._address != (trial.number, name):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # experimental samplers of Optuna warn
                self._sampler = self._make(trial.number, name)
            self._address = trial.number, name
        return self._sampler

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Let the trial's sampler prepare it."""
        self._at(trial).before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the distributions of the values that are drawn jointly."""
        return self._at(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw the joint values of a trial."""
        return self._at(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one value of a trial."""
        return self._at(trial, param_name).sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Let the trial's sampler store what it needs after the trial."""
        self._at(trial).after_trial(study, trial, state, values)


def _sampler(options: OptunaOptions, space: Space, number: int, name: str) -> BaseSampler:
    """Return the sampler for value `name` of trial `number`. The population of a sampler is a generation of the sweep."""
    seed = int(np.random.SeedSequence((options.seed, number, *name.encode())).generate_state(1)[0])
    independent = RandomSampler(seed)
    if options.sampler == "grid":
        grid = space.grid
        return PartialFixedSampler(grid[number % len(grid)], independent)
    smallest_population = 4 + int(3 * math.log(max(len(space.numeric), 1)))  # Hansen and Ostermeier, 2001
    makers: dict[str, Callable[[], BaseSampler]] = {
        "random": lambda: independent,
        "tpe": lambda: TPESampler(seed=seed, constant_liar=True),
        "gp": lambda: GPSampler(seed=seed, independent_sampler=independent),
        "cmaes": lambda: CmaEsSampler(
            seed=seed, independent_sampler=independent, popsize=max(options.n_jobs, smallest_population)
        ),
        "qmc": lambda: QMCSampler(seed=options.seed, scramble=True, independent_sampler=independent),
        "nsgaii": lambda: NSGAIISampler(seed=seed, population_size=max(options.n_jobs, 2)),
    }
    return makers[options.chosen_sampler]()


def _pruner(options: OptunaOptions) -> BasePruner:
    warmup = options.warmup_steps
    makers: dict[str, Callable[[], BasePruner]] = {
        "none": NopPruner,
        "median": lambda: MedianPruner(options.startup_trials, warmup),
        "sha": lambda: SuccessiveHalvingPruner(warmup or "auto"),
        "hyperband": lambda: HyperbandPruner(max(warmup, 1)),
    }
    return makers[options.pruner]()
