"""What a verification found, and the words that all of them are asked with."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.commands.arguments import Parser
from runner.config.compose import compose
from runner.config.overrides import key_of, quoted
from runner.config.schema import Config
from runner.errors import ConfigError

OURS = ("run_dir", "resume", "seeds")
"""Keys that a verification gives itself, or that ask for another thing than one run."""


@dataclass(frozen=True)
class Verdict:
    """Whether all is the same, in a sentence; where it is not, two runs that differ."""

    same: bool
    sentence: str
    differing: tuple[Path, Path] | None = None


@dataclass(frozen=True)
class Experiment:
    """The words that an experiment is asked for with, checked; and those that are added where they were not given."""

    words: tuple[str, ...]
    config_dir: str | None
    config: Config

    def run(self, directory: Path, *more: str) -> list[str]:
        """The words of a run of it in a directory."""
        return [*_folder(self.config_dir), *self.words, *more, f"run_dir={quoted(str(directory))}"]

    def resumed(self, directory: Path) -> list[str]:
        """The words that go on with it."""
        return [*_folder(self.config_dir), f"resume={quoted(str(directory))}"]

    def gives(self, key: str) -> bool:
        """Whether the user has given a key."""
        return key in map(key_of, self.words)

    def with_added(self, *words: str) -> Experiment:
        """With these words where their keys were not given; says so. Raises `ConfigError`."""
        added = [word for word in words if not self.gives(key_of(word))]
        if not added:
            return self
        say(f"added    {' '.join(added)}")
        together = (*self.words, *added)
        return Experiment(together, self.config_dir, compose(together, self.config_dir).config)


def experiment(parser: Parser, words: Sequence[str], also_ours: Sequence[str] = ()) -> tuple[Any, Experiment]:
    """The options of `parser`, and the experiment that the other words ask for. Raises `ConfigError` with all that is wrong."""
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("overrides", nargs="*")
    given, rest = parser.parse_known_intermixed_args(list(words))
    asked = (*given.overrides, *rest)
    problems = [
        f"`{key_of(word)}` must be left out, since `{parser.prog}` gives it itself; take {word} away"
        for word in asked
        if key_of(word) in (*OURS, *also_ours)
    ]
    if problems:
        raise ConfigError(problems)
    return given, Experiment(asked, given.config_dir, compose(asked, given.config_dir).config)


def say(text: str) -> None:
    """A line, at once: what follows may take minutes."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def short(sha256: str) -> str:
    """As much of a hash as one compares by eye."""
    return f"{sha256[:16]}…"


def _folder(config_dir: str | None) -> list[str]:
    return [] if config_dir is None else ["--config-dir", config_dir]
