"""Parser for command-line options that reports a problem as one `ConfigError`."""

from __future__ import annotations

import argparse
from typing import NoReturn

from runner.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """Argument parser for one verb, with `--config-dir`, that raises `ConfigError` instead of printing its usage and exiting."""

    def __init__(self, verb: str = "") -> None:
        super().__init__(prog=f"runner {verb}".strip(), add_help=False, allow_abbrev=False)
        self.add_argument("--config-dir", "-cd")  # stands before any verb, also one that composes nothing
        self._advice = f"see `python -m runner {verb} --help`" if verb else "see --help"

    def error(self, message: str) -> NoReturn:
        """Raise `ConfigError` with argparse's message and where to find the options."""
        raise ConfigError(f"the options cannot be read: {message}; {self._advice}")
