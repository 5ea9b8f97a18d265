"""Options of the command line, as argparse reads them; what it cannot read is refused in one sentence."""

from __future__ import annotations

import argparse
from typing import NoReturn

from runner.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """Raises `ConfigError` instead of printing its usage and exiting; `verb` is whose options they are."""

    def __init__(self, verb: str = "") -> None:
        super().__init__(prog=f"runner {verb}".strip(), add_help=False, allow_abbrev=False)
        self._advice = f"see `python -m runner {verb} --help`" if verb else "see --help"

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"the options cannot be read: {message}; {self._advice}")
