"""Sinks of the user's own: a class with `start(run_dir, config)`, `write(row)`, `flush()` and `finish(summary)`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runner.config import imports
from runner.config.imports import Target
from runner.errors import ConfigError, RunFailed
from runner.runs.sinks.base import Row

METHODS = ("start", "write", "flush", "finish")


class UsersSink:
    """A sink that passes rows on to an object of the user's. Its errors are reported with the user's own line."""

    def __init__(self, sink: Any, target: Target, directory: Path) -> None:
        self._sink, self._target, self._directory = sink, target, directory

    def open(self, first_step: int) -> None:
        """Do nothing: a resumed run sends the rows from its checkpoint on again."""

    def start(
        self, config: Mapping[str, Any], hyperparameters: Mapping[str, float | str | bool], metric_names: Sequence[str]
    ) -> None:
        """Pass on the run directory and the configuration."""
        with self._explained("start"):
            self._sink.start(self._directory, dict(config))

    def write(self, row: Row) -> None:
        """Pass on a row."""
        with self._explained("write"):
            self._sink.write(dict(row))

    def flush(self) -> None:
        """Flush."""
        with self._explained("flush"):
            self._sink.flush()

    def finish(self, summary: Mapping[str, Any], figures: Mapping[str, bytes]) -> None:
        """Pass on the result."""
        with imports.explained(self._target, "finish"):  # the run has its result: this is a warning
            self._sink.finish(dict(summary))

    def close(self) -> None:
        """Do nothing: `finish` is the last call."""

    @contextmanager
    def _explained(self, method: str) -> Iterator[None]:
        """Raise `RunFailed` for an error: the run has started, and can be resumed."""
        try:
            with imports.explained(self._target, method):
                yield
        except ConfigError as error:
            raise RunFailed(f"{error}; correct it, or leave it out of `record.sinks`, and resume the run") from error


def made(target: Target) -> Any:
    """Return an object of the user's class. Raises `ConfigError` for a class that cannot be used."""
    what = f"a class with {', '.join(METHODS[:-1])} and {METHODS[-1]}"
    kind = imports.load(target, object, what)
    if lacking := [name for name in METHODS if not callable(getattr(kind, name, None))]:
        raise ConfigError(f"{target.shown} must be {what}, got one without {', '.join(lacking)}; add it to the class")
    needed = [
        name
        for name, parameter in imports.parameters_of(kind).items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        raise ConfigError(
            f"{target.shown} must be built without arguments, but requires {', '.join(needed)}; "
            "give it a default, or read it from the environment"
        )
    return imports.called(target, kind, {}, {}, target.key)
