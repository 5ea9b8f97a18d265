"""What can go wrong, as the user meets it. The exit code belongs to the kind of error.

RunnerError
├── InputError            2   the user's input cannot be run; nothing was started
│   ├── ConfigError           a key or a value of the configuration
│   ├── DeviceError           a device, a mask or a torch build
│   ├── DataError             a data file or a split of it
│   ├── ExpressionError       a formula
│   └── CheckpointError       a run directory or a checkpoint in it
├── RunFailed             1   the run started and cannot go on
│   ├── Diverged              its loss or its parameters are no longer finite
│   └── ProcessLost           another process of the run no longer takes part
├── Interrupted     130/143   stopped by a signal, after saving
│   └── ForcedStop            by a second one, at once
├── Pruned                    a trial of a sweep that is not worth its time
└── RemoteRankError           another process of the run failed, and said why
"""

from __future__ import annotations

import signal
from collections.abc import Iterable


class RunnerError(Exception):
    """Base of every error that is meant for the user's eyes. `exit_code` is what the process answers.

    `rank` is the process it happened on, where that says more than the error itself.
    """

    exit_code = 1
    rank: int | None = None


class InputError(RunnerError):
    """Input that cannot be run. `problems` has one sentence for each thing that is wrong."""

    exit_code = 2

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class ConfigError(InputError):
    """A key or a value of the configuration cannot be used."""


class DeviceError(InputError):
    """The device that was asked for is not there."""


class DataError(InputError):
    """The data cannot be read, or not split as asked."""


class ExpressionError(InputError):
    """A formula is not one that the runner reads."""


class CheckpointError(InputError):
    """A run directory, or a checkpoint in it, cannot be used."""


class RunFailed(RunnerError):
    """The run started, and ended without an answer."""


class Diverged(RunFailed):
    """The loss or a parameter became nan or inf."""


class ProcessLost(RunFailed):
    """A process of the run was killed, hangs, cannot be reached or cannot write; the text names it."""


class Interrupted(RunnerError):
    """A signal stopped the run; its state was saved first."""

    def __init__(self, signal_number: int, message: str) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(f"{message} ({signal.Signals(signal_number).name})")


class ForcedStop(Interrupted):
    """A second signal: nothing more was saved, and the other processes of the run do not know."""


class Pruned(RunnerError):
    """A trial of a sweep was ended early, since others are better; its state was saved."""


class RemoteRankError(RunnerError):
    """The run ended on another process, which told the user; this one ends with the same exit code and is silent."""

    def __init__(self, message: str, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(message)
