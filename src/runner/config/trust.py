"""Trust: the packages whose code the user allows to be imported. Importing runs code, so no configuration and no folder can say it.

A package is trusted by the option `--trust PACKAGE`, by the variable RUNNER_TRUST, which the processes that are started inherit, or
because it is installed with an entry point of a group `runner.…`: to install such a package was a decision.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from runner.config.validation import shown
from runner.errors import ConfigError

VARIABLE = "RUNNER_TRUST"
"""Environment variable with the trusted packages, separated by commas."""

OPTION = "--trust"

ENTRY_POINTS = "runner."
"""Beginning of the groups of entry points, such as `runner.models`."""


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments without `--trust PACKAGE`, and the packages. Raises `ConfigError` for one without a package."""
    rest: list[str] = []
    packages: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, package = argument.partition("=")
        if name != OPTION:
            rest.append(argument)
            continue
        packages.append(package if equals else next(remaining, ""))
    return rest, _checked(packages, f"`{OPTION}`")


@contextmanager
def granted(packages: Iterable[str]) -> Iterator[None]:
    """Trust these packages as well, here and in processes that are started meanwhile."""
    before, wanted = os.environ.get(VARIABLE), _checked(packages, "`trust`")
    if wanted:
        os.environ[VARIABLE] = ",".join(dict.fromkeys([*_of_variable(), *wanted]))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before


def is_trusted(package: str) -> bool:
    """Return whether the code of a top-level package may be imported. Raises `ConfigError` for a RUNNER_TRUST that is none."""
    return package in _checked(_of_variable(), VARIABLE) or package in _of_entry_points()


def installed_path() -> list[str]:
    """Return the search path without the current folder, which Python puts first: what lies there is not installed."""
    first = sys.path[:1] if sys.path[:1] == [os.getcwd()] else []
    return [place for place in sys.path[len(first) :] if place]


def _of_variable() -> list[str]:
    return [name for name in os.environ.get(VARIABLE, "").replace(",", " ").split() if name]


def _of_entry_points() -> set[str]:
    """Return the packages of installed entry points. What lies in the current folder is not installed."""
    return {
        point.value.partition(":")[0].partition(".")[0].strip()
        for distribution in importlib.metadata.distributions(path=installed_path())
        for point in distribution.entry_points
        if point.group.startswith(ENTRY_POINTS)
    }


def _checked(packages: Iterable[str], subject: str) -> list[str]:
    """Return the names of packages. Raises `ConfigError` for other texts."""
    found = list(packages)
    wrong = [name for name in found if not (isinstance(name, str) and name.isidentifier())]
    if wrong:
        top = str(wrong[0]).partition(".")[0]
        remedy = f"write {top}" if top.isidentifier() else "write --trust my_lab"
        raise ConfigError(
            f"{subject} must name a package, without what is in it, such as my_lab, got {shown(wrong[0])}; {remedy}"
        )
    return found
