"""Parsers for command-line options that report a problem as one `ConfigError`, and the lines that verbs print."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from typing import Any, NoReturn, get_args

from runner.config.introspection import hints
from runner.config.schema import Device
from runner.config.validation import shown
from runner.errors import ConfigError, printable

PATHS = ("input", "output", "plots")
"""Options of a `ModelParser` that are paths."""


class Parser(argparse.ArgumentParser):
    """Argument parser for one verb, with `--config-dir`, that raises `ConfigError` instead of printing its usage and exiting."""

    def __init__(self, verb: str = "") -> None:
        super().__init__(prog=f"runner {verb}".strip(), add_help=False, allow_abbrev=False)
        self.add_argument("--config-dir", "-cd")  # stands before any verb, also one that composes nothing
        self._advice = f"see `python -m runner {verb} --help`" if verb else "see --help"

    def error(self, message: str) -> NoReturn:
        """Raise `ConfigError` with argparse's message and where to find the options."""
        raise ConfigError(f"the options cannot be read: {message}; {self._advice}")


class ModelParser(Parser):
    """Parser for a verb that uses the trained model of a run: RUN, `--state` and `--force`."""

    def __init__(self, verb: str) -> None:
        super().__init__(verb)
        self._verb = verb
        self.add_argument("run", metavar="RUN")
        self.add_argument("--state", default="selected")
        self.add_argument("--force", action="store_true")

    def add_rows(self) -> None:
        """Add the arguments of a verb that reads new rows: `--input`, `--device`, and keys that say how they are written."""
        self.add_argument("--input", required=True)
        self.add_argument("--device", default="auto", choices=get_args(hints(Device)["name"]))
        self.add_argument("overrides", nargs="*")

    def read(self, arguments: list[str]) -> Any:
        """Return the options. Raises `ConfigError`, also for `--config-dir`: the configuration is that of the run."""
        options = self.parse_intermixed_args(arguments)
        problems = [*filter(None, (_path_problem(name, getattr(options, name, None)) for name in PATHS))]
        if options.config_dir is not None:
            problems.append(
                f"`--config-dir` must not be given with {self._verb}, which uses the configuration of the run; remove it"
            )
        if problems:
            raise ConfigError(problems)
        return options


def _path_problem(name: str, path: str | None) -> str | None:
    """Return the problem with a path that the system cannot look for, such as one that is too long; None otherwise."""
    try:
        os.lstat(path or ".")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return f"`--{name}` must be a path that can be looked for, got {shown(path)} ({reason}); use another one"
    return None


def print_lines(lines: Iterable[str], *, output: str | None = None) -> None:
    """Print each line, without control characters, as it comes; to the error stream if standard output, "-", is the output."""
    for line in lines:
        print(printable(line), file=sys.stderr if output == "-" else sys.stdout, flush=True)
