"""Verdict of a verification, and the command-line arguments that all verifications share."""

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

RESERVED_KEYS = ("run_dir", "resume", "seeds")
"""Keys that a verification sets itself, or that request something other than one run."""


@dataclass(frozen=True)
class Verdict:
    """Result of a verification in one sentence; if it is not `same`, also two runs that differ."""

    same: bool
    sentence: str
    differing: tuple[Path, Path] | None = None


@dataclass(frozen=True)
class ExperimentRequest:
    """Overrides that request an experiment, with the checked configuration that they compose."""

    overrides: tuple[str, ...]
    config_dir: str | None
    config: Config

    def run_arguments(self, directory: Path, *overrides: str) -> list[str]:
        """Return the arguments that run the experiment in a directory."""
        return [*_config_dir_option(self.config_dir), *self.overrides, *overrides, f"run_dir={quoted(str(directory))}"]

    def resume_arguments(self, directory: Path) -> list[str]:
        """Return the arguments that resume the run in a directory."""
        return [*_config_dir_option(self.config_dir), f"resume={quoted(str(directory))}"]

    def sets(self, key: str) -> bool:
        """Whether the overrides set a key."""
        return key in map(key_of, self.overrides)

    def with_added(self, *overrides: str) -> ExperimentRequest:
        """Return a copy with those overrides whose keys are not set yet, and print them. Raises `ConfigError`."""
        added = [override for override in overrides if not self.sets(key_of(override))]
        if not added:
            return self
        print_line(f"added    {' '.join(added)}")
        merged = (*self.overrides, *added)
        return ExperimentRequest(merged, self.config_dir, compose(merged, self.config_dir).config)


def read_request(
    parser: Parser, arguments: Sequence[str], also_reserved: Sequence[str] = ()
) -> tuple[Any, ExperimentRequest]:
    """Return the options of `parser` and the experiment that the overrides request.

    Raises `ConfigError` with every problem.
    """
    parser.add_argument("overrides", nargs="*")
    parsed, rest = parser.parse_known_intermixed_args(list(arguments))
    overrides = (*parsed.overrides, *rest)
    problems = [
        f"`{key_of(override)}` must be left out, since `{parser.prog}` sets it itself; remove {override}"
        for override in overrides
        if key_of(override) in (*RESERVED_KEYS, *also_reserved)
    ]
    if problems:
        raise ConfigError(problems)
    return parsed, ExperimentRequest(overrides, parsed.config_dir, compose(overrides, parsed.config_dir).config)


def print_line(text: str) -> None:
    """Print a line and flush, because the next one may take minutes."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def short(sha256: str) -> str:
    """Return the first 16 digits of a hash."""
    return f"{sha256[:16]}…"


def _config_dir_option(config_dir: str | None) -> list[str]:
    return [] if config_dir is None else ["--config-dir", config_dir]
