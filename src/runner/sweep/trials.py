"""From the overrides of many trials to their checked configurations."""

# Hydra takes a tenth of a second to compose one configuration. Trials that choose the same options and give the same keys differ
# in values alone: they are composed once, and the values are set on a typed copy, by the same checks.

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from runner.config import constraints, introspection, validation
from runner.config.compose import compose
from runner.config.overrides import key_of, quoted, values_of
from runner.config.schema import Config, config_hash, program
from runner.errors import ConfigError, InputError
from runner.sweep.manifest import Manifest

PATHS = ("data.path", "data.valid_path", "data.test_path")
"""Keys of files, which may have moved when a sweep is resumed."""

MAX_PROBLEMS = 20
"""Most problems that are reported: a wide sweep may have thousands of the same kind."""

MAX_REFUSALS = 3
"""Number of trials with the same options and keys that must fail to compose before the others are taken to fail as well."""

Shape: TypeAlias = tuple[str, ...]
"""Overrides without the numbers that may differ between trials of one program."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Trial:
    """One run of a sweep: its number, its overrides, its configuration, and its swept values.

    `values` maps key or group to value, for the overrides that differ between trials.
    """

    number: int
    overrides: tuple[str, ...]
    config: Config
    values: Mapping[str, Any]

    def resumed_config(self) -> Config:
        """Return the configuration that resumes the trial's run if there is one, else the configuration of a new run."""
        directory = self.config.run_dir or ""
        return replace(self.config, resume=directory) if (Path(directory) / "run.json").is_file() else self.config

    def manifest_entry(self) -> dict[str, Any]:
        """Return the trial's entry in the manifest."""
        return {
            "number": self.number,
            "values": dict(self.values),
            "overrides": list(self.overrides),
            "asked_hash": config_hash(self.config),
        }


def resuming(directory: Path, overrides: Sequence[str]) -> list[str]:
    """Return the arguments that resume a trial in its directory, with its files where they are now."""
    return [f"resume={quoted(str(directory))}", *(override for override in overrides if key_of(override) in PATHS)]


def by_program(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Group the trials by program: those of one group differ in numbers only."""
    return group_by(trials, lambda trial: program(trial.config))


def group_by(items: Iterable[Item], key: Callable[[Item], Any]) -> list[list[Item]]:
    """Group the items by a hashable key. Groups and items stay in the order of the input."""
    groups: dict[Any, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def plan(jobs: Sequence[Sequence[str]], first: int, manifest: Manifest) -> list[Trial]:
    """Compose the trials of these overrides, numbered from `first`, each with its own directory below that of the sweep.

    Raises `ConfigError` with the problems of all trials.
    """
    composer, fixed = Composer(manifest.values["config_dir"]), manifest.fixed_keys
    trials, problems = [], dict[str, list[int]]()
    for number, overrides in enumerate(jobs, start=first):
        try:
            config = composer.config(tuple(overrides))
        except InputError as error:
            for problem in error.problems:
                problems.setdefault(problem, []).append(number)
            continue
        config = replace(config, run_dir=str(manifest.member_directory(number)), resume=None, seeds=None)
        values = dict(_value(override) for override in overrides if key_of(override) not in fixed)
        trials.append(Trial(number, tuple(overrides), config, values))
    if problems:
        raise ConfigError(numbered(problems, len(jobs)))
    return trials


def numbered(problems: Mapping[str, Sequence[int]], count: int) -> list[str]:
    """Prefix every problem with the first trial that has it, unless all `count` trials have it."""
    lines = [
        problem if len(numbers) == count else f"trial {numbers[0]}{_others(len(numbers) - 1)}: {problem}"
        for problem, numbers in problems.items()
    ]
    more = len(lines) - MAX_PROBLEMS
    return lines if more <= 0 else [*lines[:MAX_PROBLEMS], f"and {more} more problems like these"]


def _others(count: int) -> str:
    return f" and {count} more" if count else ""


@dataclass(frozen=True)
class Composer:
    """Composes one configuration for all trials that choose the same options and give the same keys."""

    config_dir: str | None
    composed: dict[Shape, Config] = field(default_factory=dict)
    refused: dict[Shape, list[InputError]] = field(default_factory=dict)

    def config(self, overrides: tuple[str, ...]) -> Config:
        """Return the configuration of one trial. Raises `ConfigError`."""
        numbers = [number for override in overrides for number in _numbers(override)]
        shape = tuple(_shape(override) for override in overrides)
        if shape not in self.composed or len({name for name, _ in numbers}) < len(numbers):
            return self._compose(overrides, shape)
        config, problems = self.composed[shape], list[str]()
        for name, value in numbers:
            config, new = validation.replaced(config, name, value)
            problems += new
        problems = problems or constraints.problems(config)
        if problems:
            raise ConfigError(problems)
        return config

    def _compose(self, overrides: tuple[str, ...], shape: Shape) -> Config:
        refused = self.refused.setdefault(shape, [])
        if len(refused) >= MAX_REFUSALS:
            raise refused[-1]
        try:
            composed = compose(overrides, self.config_dir)
        except InputError as error:
            refused.append(error)
            raise
        if not composed.has_references:  # a value that refers to another one must follow it in every trial
            self.composed[shape] = composed.config
        return composed.config


@lru_cache(maxsize=100_000)
def _numbers(override: str) -> tuple[tuple[str, Any], ...]:
    """Return keys and values that may differ between the trials of one program; the entries of a mapping one by one."""
    key = key_of(override)
    if introspection.is_lane(Config, key):
        return (_value(override),)
    entries = _value(override)[1] if introspection.is_mapping(Config, key) else None
    numbers = tuple((f"{key}.{name}", value) for name, value in entries.items()) if isinstance(entries, dict) else ()
    return numbers if all(introspection.is_lane(Config, name) for name, _ in numbers) else ()


def _shape(override: str) -> str:
    numbers = _numbers(override)
    return f"{','.join(name for name, _ in numbers)}=" if numbers else override


@lru_cache(maxsize=100_000)
def _value(override: str) -> tuple[str, Any]:
    """Return key, or group, and value of an override."""
    # Plain numbers are read here: Hydra's parser takes a millisecond.
    key, _, text = override.partition("=")
    if re.fullmatch(r"[-+]?(0|[1-9][0-9]*)", text):
        return key.lstrip("+"), int(text)
    if re.fullmatch(r"[-+]?(0|[1-9][0-9]*)(\.[0-9]+([eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)", text):
        return key.lstrip("+"), float(text)
    ((name, value),) = values_of([override]).items()
    return name, value
