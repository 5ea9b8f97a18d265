"""From the words of many trials to their checked configurations: composed once for all that differ in numbers only.

Hydra takes a tenth of a second to compose one. Trials that choose the same options and give the same keys differ in values
alone: these are set on a typed copy, by the same checks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

from runner.config import constraints, introspection, validation
from runner.config.compose import compose
from runner.config.overrides import key_of, values_of
from runner.config.schema import Config, config_hash
from runner.errors import ConfigError, InputError
from runner.sweep.manifest import Manifest

MOST_PROBLEMS = 20
"""Problems that are told; a wide sweep may have thousands of the same kind."""

MOST_TRIES = 3
"""Trials of the same options and keys that are composed in vain, before the others are held to be like them."""

Shape: TypeAlias = tuple[str, ...]
"""Words with the numbers left out in which trials of one program may differ."""


@dataclass(frozen=True)
class Trial:
    """One run of a sweep: its number, the words that it was asked for with, its configuration, and what is its own of that.

    `values` are those of the words that not every trial has: key, or group → value.
    """

    number: int
    words: tuple[str, ...]
    config: Config
    values: Mapping[str, Any]

    def going_on(self) -> Config:
        """The configuration that goes on where an earlier attempt stopped, where there was one."""
        directory = self.config.run_dir or ""
        return replace(self.config, resume=directory) if (Path(directory) / "run.json").is_file() else self.config

    def member(self) -> dict[str, Any]:
        """Its entry in the manifest."""
        return {
            "number": self.number,
            "values": dict(self.values),
            "overrides": list(self.words),
            "asked_hash": config_hash(self.config),
        }


def plan(jobs: Sequence[Sequence[str]], first: int, manifest: Manifest) -> list[Trial]:
    """The trials of these words, numbered from `first`, each in its own directory below that of the sweep.

    Raises `ConfigError` with what is wrong with any of them, before anything is started.
    """
    composer, fixed = _Composer(manifest.values["config_dir"]), manifest.fixed_keys
    trials, problems = [], dict[str, list[int]]()
    for number, words in enumerate(jobs, start=first):
        try:
            config = composer.config(tuple(words))
        except InputError as error:
            for problem in error.problems:
                problems.setdefault(problem, []).append(number)
            continue
        own = replace(config, run_dir=str(manifest.member_directory(number)), resume=None, seeds=None)
        values = dict(_value(word) for word in words if key_of(word) not in fixed)
        trials.append(Trial(number, tuple(words), own, values))
    if problems:
        raise ConfigError(_told(problems, len(jobs)))
    return trials


def _told(problems: dict[str, list[int]], count: int) -> list[str]:
    said = [
        problem if len(numbers) == count else f"trial {numbers[0]}{_others(len(numbers) - 1)}: {problem}"
        for problem, numbers in problems.items()
    ]
    more = len(said) - MOST_PROBLEMS
    return said if more <= 0 else [*said[:MOST_PROBLEMS], f"and {more} more problems like these"]


def _others(count: int) -> str:
    return f" and {count} more" if count else ""


@dataclass(frozen=True)
class _Composer:
    """Composes once for all trials that choose the same options and give the same keys."""

    config_dir: str | None
    composed: dict[Shape, Config] = field(default_factory=dict)
    refused: dict[Shape, list[InputError]] = field(default_factory=dict)

    def config(self, words: tuple[str, ...]) -> Config:
        """The configuration of one trial. Raises `ConfigError`."""
        numbers = [number for word in words if (number := _number(word)) is not None]
        shape = tuple(word if _number(word) is None else f"{key_of(word)}=" for word in words)
        if shape not in self.composed or len({name for name, _ in numbers}) < len(numbers):
            return self._whole(words, shape)
        config, problems = self.composed[shape], list[str]()
        for name, value in numbers:
            config, found = validation.replaced(config, name, value)
            problems += found
        problems = problems or constraints.problems(config)
        if problems:
            raise ConfigError(problems)
        return config

    def _whole(self, words: tuple[str, ...], shape: Shape) -> Config:
        refused = self.refused.setdefault(shape, [])
        if len(refused) >= MOST_TRIES:
            raise refused[-1]
        try:
            whole = compose(words, self.config_dir)
        except InputError as error:
            refused.append(error)
            raise
        if not whole.has_references:  # a value that follows another must follow it in every trial
            self.composed[shape] = whole.config
        return whole.config


@lru_cache(maxsize=100_000)
def _number(word: str) -> tuple[str, Any] | None:
    """Key and value of a word that gives a number which may differ between trials of one program; None for any other."""
    return _value(word) if introspection.is_lane(Config, key_of(word)) else None


@lru_cache(maxsize=100_000)
def _value(word: str) -> tuple[str, Any]:
    """Key, or group, and value of a word; a plain number without Hydra's parser, which takes a millisecond."""
    key, _, text = word.partition("=")
    if re.fullmatch(r"[-+]?(0|[1-9][0-9]*)", text):
        return key.lstrip("+"), int(text)
    if re.fullmatch(r"[-+]?(0|[1-9][0-9]*)(\.[0-9]+([eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)", text):
        return key.lstrip("+"), float(text)
    ((name, value),) = values_of([word]).items()
    return name, value
