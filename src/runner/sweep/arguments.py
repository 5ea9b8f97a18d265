"""The words after `-m`, sorted: what is for Hydra, what is for the sweep itself, and what the trials are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runner.config import introspection, validation
from runner.config.hydra_adapter import options
from runner.config.overrides import Plan, in_quotes, key_of, parse
from runner.config.schema import Config
from runner.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import RangeSweep

OF_HYDRA = ("hydra/launcher", "hydra/sweeper", "hydra.launcher.", "hydra.sweeper.")
OF_SWEEP = ("run_dir", "resume", "seeds")
REPLACED_ON_RESUME = ("sweep.", "hydra.launcher.")
"""What may be given when a sweep goes on: how its trials are run, not which there are."""


@dataclass
class Words:
    """`task` words make the trials: `fixed` ones are the same in all of them, `swept` keys are not."""

    hydra: list[str] = field(default_factory=list)
    task: list[str] = field(default_factory=list)
    fixed: list[str] = field(default_factory=list)
    swept: list[str] = field(default_factory=list)
    sample: list[str] = field(default_factory=list)
    """The words of one trial, with the first value of every key."""
    notices: list[str] = field(default_factory=list)
    """What the user should hear about them."""
    run_dir: str | None = None
    resume: str | None = None
    seeds: int | None = None

    def drop(self, name: str) -> bool:
        """Take out what was given for a key; whether there was anything."""
        count = len(self.task)
        for own in (self.task, self.fixed, self.sample):
            own[:] = [word for word in own if key_of(word) != name]
        self.swept[:] = [key for key in self.swept if key != name]
        return len(self.task) < count


def sort(words: Sequence[str], config_dir: str | None) -> Words:
    """The words by what they are for. Raises `ConfigError` with every word that cannot be read."""
    groups, plan, sorted_ = options(config_dir), Plan(), Words()
    known = [*introspection.paths(Config), *groups]
    for word in words:
        name = key_of(word)
        if name.startswith(OF_HYDRA):
            sorted_.hydra.append(word)
        elif name.startswith(("hydra.", "hydra/")):
            plan.problems.append(
                f"`{name}` does nothing, since a sweep has its own place and records; run_dir=… moves it, --config-dir adds groups"
            )
        elif (override := parse(word, known, groups, plan)) is None:
            continue
        elif name in OF_SWEEP:
            plan.problems += _take_own(sorted_, name, override)
        else:
            try:
                _take(sorted_, name, override, groups)
            except ConfigError as error:
                plan.problems += error.problems
    if plan.problems:
        raise ConfigError(plan.problems)
    return sorted_


def _take_own(words: Words, name: str, override: Any) -> list[str]:
    """A word for the sweep as a whole; gives what is wrong with it."""
    text = (override.input_line or "").partition("=")[2]
    if override.is_sweep_override():
        return [f"`{name}` must be one value for the whole sweep, but is {text}; {in_quotes(name, text)}"]
    value = override.value()
    setattr(words, name, value if value is None or name == "seeds" or isinstance(value, str) else text)
    return []


def _take(words: Words, name: str, override: Any, groups: Mapping[str, Mapping[str, str]]) -> None:
    # As it was read: a formula that Hydra takes for a call of a function is in quotes there.
    word = f"{_plus(name, groups)}{(override.input_line or '').lstrip('+')}"
    if words.drop(name):
        words.notices.append(f"`{name}` is given twice; the last one counts: {word.partition('=')[2]}")
    words.task.append(word)
    if override.is_sweep_override():
        words.swept.append(name)
        words.sample.append(f"{name}={_first(override, groups)}")
    else:
        words.fixed.append(word)
        words.sample.append(word)


def _plus(name: str, groups: Mapping[str, Mapping[str, str]]) -> str:
    """What Hydra wants before a key that is not in its configuration, or may be there or not."""
    if name in groups:
        return "" if name in introspection.hints(Config) else "+"
    return "++" if introspection.is_mapping(Config, name.rpartition(".")[0]) else ""


def _first(override: Any, groups: Mapping[str, Mapping[str, str]]) -> str:
    """The first of the values that a word gives, as text."""
    from hydra.core.override_parser.types import Glob, IntervalSweep, RangeSweep
    from hydra.errors import HydraException

    value = override.value()
    if isinstance(value, IntervalSweep):
        return str(value.start)
    if isinstance(value, Glob):
        found = value.filter(list(groups.get(override.key_or_group, ())))
        if not found:
            raise ConfigError(
                f"`{override.key_or_group}` must match an option, but {override.input_line} matches none; see --help"
            )
        return str(found[0])
    try:
        if isinstance(value, RangeSweep):
            return str(next(iter(_finite(value).range())))
        return str(next(override.sweep_string_iterator()))
    except (StopIteration, ValueError, HydraException):  # steps of 0
        raise ConfigError(
            f"`{override.key_or_group}` must have values that can be counted, but is "
            f"{(override.input_line or '').partition('=')[2]}; mend its ends"
        ) from None


def _finite(values: RangeSweep) -> RangeSweep:
    """The range itself. Raises `ValueError` where it has no end."""
    if not all(math.isfinite(end) for end in (values.start or 0, values.stop or 0)):
        raise ValueError
    return values


def with_seeds(words: Words, seed: int) -> None:
    """`seeds=N` is short for N values of the seed, from that of the experiment on. Raises `ConfigError`."""
    if words.seeds is None:
        return
    if not isinstance(words.seeds, int) or isinstance(words.seeds, bool) or words.seeds < 1:
        raise ConfigError(
            f"`seeds` must be an integer of at least 1, but is {validation.shown(words.seeds)}; write seeds=8"
        )
    if "seed" in words.swept:
        raise ConfigError("`seeds` is short for a range of `seed`, which is swept as well; leave one of them out")
    words.drop("seed")
    words.task.append(f"seed=range({seed},{seed + words.seeds})")
    words.swept.append("seed")
    words.sample.append(f"seed={seed}")


def without_pictures(words: Words) -> None:
    """Trials draw no plots of their own unless they are told to: a picture costs more than a small trial."""
    if not any(word.lstrip("+").startswith("record.plots") for word in words.task):
        for own in (words.task, words.fixed, words.sample):
            own.append("record.plots=false")


def refuse_beside_resume(words: Sequence[str]) -> None:
    """Only the way in which trials are run may change when a sweep goes on. Raises `ConfigError`."""
    problems = [
        f"`{name}` cannot be changed when a sweep is resumed, since its trials would be others; leave it out, or start a new sweep"
        for word in words
        if (name := key_of(word)) != "resume" and not name.startswith(REPLACED_ON_RESUME)
    ]
    if problems:
        raise ConfigError(problems)
