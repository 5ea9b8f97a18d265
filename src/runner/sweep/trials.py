"""From the words of many trials to their checked configurations: composed once for all that differ in numbers only.

Hydra takes a tenth of a second to compose one. Trials that choose the same options and give the same keys differ in values
alone: these are set on a typed copy, by the same checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from runner import combinations, schema
from runner.compose import compose
from runner.config import Config, config_hash
from runner.errors import ConfigError, InputError
from runner.overrides import values_of

MOST_PROBLEMS = 20
"""Problems that are told; a wide sweep may have thousands of the same kind."""


@dataclass(frozen=True)
class Trial:
    """One run of a sweep: its number, the words that it was asked for with, and its configuration."""

    number: int
    words: tuple[str, ...]
    config: Config

    def going_on(self) -> Config:
        """The configuration that goes on where an earlier attempt stopped, where there was one."""
        directory = self.config.run_dir or ""
        return replace(self.config, resume=directory) if (Path(directory) / "run.json").is_file() else self.config

    def member(self, fixed: Sequence[str]) -> dict[str, Any]:
        """Its entry in the manifest; the values are those of words that not every trial has."""
        own = [_value(word) for word in self.words if word not in fixed]
        return {
            "number": self.number,
            "values": dict(own),
            "overrides": list(self.words),
            "config_hash": config_hash(self.config),
        }


def plan(jobs: Sequence[Sequence[str]], first: int, directory: Path, config_dir: str | None) -> list[Trial]:
    """The trials of these words, numbered from `first`, each in its own directory below.

    Raises `ConfigError` with what is wrong with any of them, before anything is started.
    """
    composed: dict[tuple[str, ...], Config] = {}
    trials, problems = [], dict[str, list[int]]()
    for number, words in enumerate(jobs, start=first):
        try:
            config = _config(tuple(words), composed, config_dir)
        except InputError as error:
            for problem in error.problems:
                problems.setdefault(problem, []).append(number)
            continue
        own = replace(config, run_dir=str(directory / str(number)), resume=None, seeds=None)
        trials.append(Trial(number, tuple(words), own))
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


def _config(words: tuple[str, ...], composed: dict[tuple[str, ...], Config], config_dir: str | None) -> Config:
    """The configuration of one trial: composed, or that of one with the same keys and other numbers."""
    numbers = [number for word in words if (number := _number(word)) is not None]
    shape = tuple(word if _number(word) is None else f"{_number(word)[0]}=" for word in words)  # type: ignore[index]
    if shape not in composed or len({name for name, _ in numbers}) < len(numbers):
        config = compose(words, config_dir).config
        composed[shape] = config
        return config
    config, problems = composed[shape], list[str]()
    for name, value in numbers:
        config, found = schema.replaced(config, name, value)
        problems += found
    problems = problems or combinations.problems(config)
    if problems:
        raise ConfigError(problems)
    return config


@lru_cache(maxsize=100_000)
def _number(word: str) -> tuple[str, Any] | None:
    """Key and value of a word that gives a number which may differ between trials of one program; None for any other."""
    return _value(word) if schema.is_lane(Config, word.partition("=")[0].lstrip("+")) else None


@lru_cache(maxsize=100_000)
def _value(word: str) -> tuple[str, Any]:
    """Key, or group, and value of a word."""
    ((name, value),) = values_of([word]).items()
    return name, value
