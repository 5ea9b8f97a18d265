"""Arguments of a sweep, classified: those for Hydra, those for the sweep itself, and those that make up the trials."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config import introspection, validation
from runner.config.hydra_adapter import options
from runner.config.overrides import Plan, in_quotes, key_of, parse
from runner.config.schema import Config
from runner.errors import ConfigError
from runner.sweep import plugins
from runner.sweep.trials import PATHS

if TYPE_CHECKING:
    from hydra.core.override_parser.types import RangeSweep

FOLDS, FOLD = "data.split.folds", "data.split.fold"
SWEEP_KEYS = ("run_dir", "resume", "seeds")
ALLOWED_ON_RESUME = ("sweep.", "hydra.launcher.", *PATHS)
"""Prefixes of keys that may change when a sweep is resumed: they decide how the trials are run, not which trials there are."""


@dataclass
class SweepArguments:
    """The arguments by purpose. `task` makes up the trials: `fixed` is the same in all of them, `swept` keys vary."""

    hydra: list[str] = field(default_factory=list)
    task: list[str] = field(default_factory=list)
    fixed: list[str] = field(default_factory=list)
    swept: list[str] = field(default_factory=list)
    sample: list[str] = field(default_factory=list)
    """Overrides of one trial: the first value of every key."""
    notices: list[str] = field(default_factory=list)
    """Notes on the arguments for the user."""
    run_dir: str | None = None
    resume: str | None = None
    seeds: int | None = None

    def drop(self, name: str) -> bool:
        """Remove the overrides of a key. Return whether there were any."""
        count = len(self.task)
        for overrides in (self.task, self.fixed, self.sample):
            overrides[:] = [override for override in overrides if key_of(override) != name]
        self.swept[:] = [key for key in self.swept if key != name]
        return len(self.task) < count


def classify(arguments: Sequence[str], config_dir: str | None) -> SweepArguments:
    """Sort the arguments by purpose. Raises `ConfigError` with the problems of all arguments that cannot be read."""
    groups, plan, result = options(config_dir), Plan(), SweepArguments()
    known = [*introspection.paths(Config), *groups]
    for argument in arguments:
        name = key_of(argument)
        if name.startswith(plugins.PREFIXES):
            result.hydra.append(argument)
        elif name.startswith(("hydra.", "hydra/")):
            plan.problems.append(
                f"`{name}` has no effect in a sweep; use run_dir=… for the directory, or --config-dir to add groups"
            )
        elif (override := parse(argument, known, groups, plan)) is None:
            continue
        elif name in SWEEP_KEYS:
            plan.problems += _set_sweep_key(result, name, override)
        else:
            try:
                _add(result, name, override, groups)
            except ConfigError as error:
                plan.problems += error.problems
    if result.resume is None:  # the settings of a resumed sweep belong to the launcher that its manifest names
        result.hydra, problems = plugins.read(result.hydra)
        plan.problems += problems
    if plan.problems:
        raise ConfigError(plan.problems)
    return result


def replayed(saved: Mapping[str, Any], file: Path, typed: SweepArguments, config_dir: str | None) -> SweepArguments:
    """Return the arguments of a sweep to resume: those in its manifest `file`, with the `typed` ones in place of theirs.

    They are read exactly as if all had been typed. What could run code, or read other files, must be typed again. Raises
    `ConfigError`, which names the file.
    """
    problems = plugins.not_from_files(saved["hydra"], typed.hydra)
    if saved["config_dir"] is not None and config_dir is None:
        problems.append(
            f"`--config-dir` must be typed again, because it is never taken from a file, which has {saved['config_dir']!r}; "
            f"add --config-dir {shlex.quote(saved['config_dir'])}"
        )
    again = {key_of(argument) for argument in (*typed.hydra, *typed.task)}
    kept = [argument for argument in (*saved["hydra"], *saved["task"]) if key_of(argument) not in again]
    problems += [
        f"`{name}` must not be among the arguments of the trials; remove it"
        for name in SWEEP_KEYS
        if name in map(key_of, kept)
    ]
    if problems:
        raise ConfigError(f"{file}: {problem}" for problem in problems)
    with named_in_problems(file, typed):
        return classify([*kept, *typed.hydra, *typed.task], config_dir)


@contextmanager
def named_in_problems(file: Path, typed: SweepArguments) -> Iterator[None]:
    """Name the file in every problem with an argument that was not `typed`, and so was read from it."""
    here = {key_of(argument) for argument in (*typed.hydra, *typed.task)}
    try:
        yield
    except ConfigError as error:
        raise error.changed(lambda text: text if here & {*text.split("`")[1:2]} else f"{file}: {text}") from None


def _set_sweep_key(arguments: SweepArguments, name: str, override: Any) -> list[str]:
    """Store the value of a key of the sweep as a whole. Return the problems with it."""
    text = (override.input_line or "").partition("=")[2]
    if override.is_sweep_override():
        return [f"`{name}` must be one value for the whole sweep, got {text}; {in_quotes(name, text)}"]
    value = override.value()
    setattr(arguments, name, value if value is None or name == "seeds" or isinstance(value, str) else text)
    return []


def _add(arguments: SweepArguments, name: str, override: Any, groups: Mapping[str, Mapping[str, str]]) -> None:
    # The parsed line, not the argument as typed: a formula that Hydra would take for a function call is quoted in it.
    text = f"{_prefix(name, groups)}{(override.input_line or '').lstrip('+')}"
    if arguments.drop(name):
        arguments.notices.append(f"`{name}` is given twice; the last one counts: {text.partition('=')[2]}")
    arguments.task.append(text)
    if override.is_sweep_override():
        arguments.swept.append(name)
        arguments.sample.append(f"{name}={_first(override, groups)}")
    else:
        arguments.fixed.append(text)
        arguments.sample.append(text)


def _prefix(name: str, groups: Mapping[str, Mapping[str, str]]) -> str:
    """Prefix with which Hydra accepts a key that is missing from its configuration, or may be missing."""
    if name in groups:
        return "" if name in introspection.hints(Config) else "+"
    # An entry of a mapping, or a mapping that is given whole.
    return "++" if any(introspection.is_mapping(Config, key) for key in (name.rpartition(".")[0], name)) else ""


def _first(override: Any, groups: Mapping[str, Mapping[str, str]]) -> str:
    """Return the first value of an override as text."""
    from hydra.core.override_parser.types import Glob, IntervalSweep, RangeSweep
    from hydra.errors import HydraException

    value = override.value()
    if isinstance(value, IntervalSweep):
        return str(value.start)
    if isinstance(value, Glob):
        matches = value.filter(list(groups.get(override.key_or_group, ())))
        if not matches:
            raise ConfigError(
                f"`{override.key_or_group}` must match an option, got {override.input_line}, which matches none; see --help"
            )
        return str(matches[0])
    try:
        if isinstance(value, RangeSweep):
            return str(next(iter(_finite(value).range())))
        return str(next(override.sweep_string_iterator()))
    except (StopIteration, ValueError, HydraException):  # empty, endless, or with a step of 0
        raise ConfigError(
            f"`{override.key_or_group}` must have values that can be counted, got "
            f"{(override.input_line or '').partition('=')[2]}; correct its ends"
        ) from None


def _finite(values: RangeSweep) -> RangeSweep:
    """Return the range unchanged. Raises `ValueError` if an end is not finite."""
    if not all(math.isfinite(end) for end in (values.start or 0, values.stop or 0)):
        raise ValueError
    return values


def expand_seeds(arguments: SweepArguments, seed: int) -> None:
    """Replace `seeds=N` by a range of N values of `seed` that starts at the given one. Raises `ConfigError`."""
    if arguments.seeds is None:
        return
    if not isinstance(arguments.seeds, int) or isinstance(arguments.seeds, bool) or arguments.seeds < 1:
        raise ConfigError(
            f"`seeds` must be an integer of at least 1, got {validation.shown(arguments.seeds)}; write seeds=8"
        )
    if "seed" in arguments.swept:
        raise ConfigError("`seeds` is short for a range of `seed`, which is swept as well; leave one of them out")
    arguments.drop("seed")
    arguments.task.append(f"seed=range({seed},{seed + arguments.seeds})")
    arguments.swept.append("seed")
    arguments.sample.append(f"seed={seed}")


def expand_folds(arguments: SweepArguments, folds: int | None) -> None:
    """Sweep over the folds of `data.split.folds`, unless some are chosen. Raises `ConfigError` if their number is swept."""
    if FOLDS in arguments.swept:
        raise ConfigError(
            f"`{FOLDS}` must be one value for the whole sweep, got several; start a sweep for each of them"
        )
    if folds is None:
        return
    arguments.drop(FOLDS)  # it may be that of an experiment, and the results need it in the manifest
    for overrides in (arguments.task, arguments.fixed, arguments.sample):
        overrides.append(f"{FOLDS}={folds}")
    if not any(key_of(override) == FOLD for override in arguments.task):
        arguments.task.append(f"{FOLD}=range(1,{folds + 1})")
        arguments.swept.append(FOLD)
        arguments.sample.append(f"{FOLD}=1")


def disable_products(arguments: SweepArguments) -> None:
    """Turn off the plots and the residuals of the trials unless `record.plots` or `record.residuals` is given."""
    # They take longer than a small trial.
    for name in ("record.plots", "record.residuals"):
        if not any(override.lstrip("+").startswith(name) for override in arguments.task):
            for overrides in (arguments.task, arguments.fixed, arguments.sample):
                overrides.append(f"{name}=false")


def check_resume_overrides(arguments: Sequence[str]) -> None:
    """Refuse overrides that would change the trials of a resumed sweep. Raises `ConfigError`."""
    problems = [
        f"`{name}` cannot be changed when a sweep is resumed: the trials would change; leave it out, or start a new sweep"
        for argument in arguments
        if (name := key_of(argument)) != "resume" and not name.startswith(ALLOWED_ON_RESUME)
    ]
    if problems:
        raise ConfigError(problems)
