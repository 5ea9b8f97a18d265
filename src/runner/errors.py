"""Errors that a user meets. Each kind of error has its exit code.

RunnerError
├── InputError            2   input of the user that cannot be run; nothing was started
│   ├── ConfigError           a key or a value of the configuration
│   ├── DeviceError           a device, a mask or a build of torch
│   ├── DataError             a data file or its split
│   ├── ExpressionError       a formula
│   └── CheckpointError       a run directory or a checkpoint
├── RunFailed             1   a run that started and cannot continue
│   ├── Diverged              the loss, a derivative or a parameter is not finite
│   └── ProcessLost           another process of the run no longer takes part
├── Interrupted     130/143   a signal; the state was saved
│   └── ForcedStop            a second signal; nothing more was saved
├── Pruned                    a trial of a sweep that was ended early
└── RemoteRankError           an error that another process of the run has reported
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterable

_LONG_WORD = re.compile(r"(?<!\S)(\S{200})\S{40,}(\S{60})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
LONGEST_MESSAGE = 2000
"""Characters of a message at most."""

MOST_PROBLEMS = 100
"""Problems that are reported one by one. More of them have a common cause."""


def shortened(text: str) -> str:
    """Return a message in which every word of 300 or more characters, and the message as a whole, is cut in its middle.

    A key, a path or a cell may have any length, and the reason and the remedy must stay readable.
    """
    text = _LONG_WORD.sub(r"\1…\2", text)
    half = LONGEST_MESSAGE // 2
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:half]}…{text[1 - half :]}"


def printable(text: str) -> str:
    """Return a line of text with control characters written out: those of a file may change what a terminal shows."""
    return _CONTROL.sub(lambda found: repr(found.group())[1:-1], text)


class RunnerError(Exception):
    """Base of every error that is reported to the user. Its text is `shortened`.

    `exit_code` is the exit code of the process. `rank` is the process in which the error occurred, if that matters.
    """

    exit_code = 1
    rank: int | None = None

    def __init__(self, message: str = "") -> None:
        super().__init__(shortened(message))


class InputError(RunnerError):
    """Input that cannot be run. `problems` has one sentence for each problem, and counts those after the first hundred."""

    exit_code = 2

    def __init__(self, problems: str | Iterable[str]) -> None:
        found = (problems,) if isinstance(problems, str) else tuple(problems)
        more = len(found) - MOST_PROBLEMS
        self.problems = tuple(map(shortened, found[:MOST_PROBLEMS])) + (
            (f"and {more:,} more problems",) if more > 0 else ()
        )
        Exception.__init__(self, "\n".join(self.problems))

    def changed(self, change: Callable[[str], str]) -> InputError:
        """Return the error with a change made to every problem; those that are only counted stay counted."""
        error = type(self)(())
        error.problems = tuple(map(change, self.problems))
        Exception.__init__(error, "\n".join(error.problems))
        return error


class ConfigError(InputError):
    """A key or a value of the configuration cannot be used."""


class DeviceError(InputError):
    """The requested device is not available."""


class DataError(InputError):
    """The data cannot be read, or not split as requested."""


class ExpressionError(InputError):
    """A formula does not follow the grammar."""


class CheckpointError(InputError):
    """A run directory, or a checkpoint in it, cannot be used."""


class RunFailed(RunnerError):
    """The run started and ended without a result."""


class Diverged(RunFailed):
    """The loss, a derivative or a parameter is nan or inf."""


class ProcessLost(RunFailed):
    """A process of the run was killed, hangs, cannot be reached or cannot write. The message names it."""


class Interrupted(RunnerError):
    """A signal stopped the run. Its state was saved first."""

    def __init__(self, signal_number: int, message: str) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(f"{message} ({signal.Signals(signal_number).name})")


class ForcedStop(Interrupted):
    """A second signal stopped the run. Nothing more was saved, and the other processes were not informed."""


class Pruned(RunnerError):
    """A trial of a sweep was ended early because others are better. Its state was saved."""


class RemoteRankError(RunnerError):
    """Another process of the run failed and reported why. This process ends silently with the same exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(message)
