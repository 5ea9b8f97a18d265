"""Reports on the trials of a sweep while it runs: on the screen, and in its manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from runner.errors import RunnerError
from runner.sweep.manifest import Manifest

Watch = Callable[[int, int, Mapping[str, float]], bool]
"""Called with the number of a trial, its step and a row of its metrics. Returns whether the trial ends now."""


@dataclass(frozen=True)
class TrialResult:
    """End of a trial: its state, its final metrics, and the error if it did not finish."""

    state: str
    metrics: Mapping[str, float]
    error: RunnerError | None = None


class SweepReporter(Protocol):
    """Receiver of reports on the progress of a sweep."""

    def say(self, text: str) -> None:
        """Print a line."""

    def warn(self, text: str) -> None:
        """Print a warning."""

    def began(self, numbers: Sequence[int]) -> None:
        """Note that the trials with these numbers have started."""

    def ended(self, results: Mapping[int, TrialResult]) -> None:
        """Note how trials ended, by their numbers."""


class SilentReporter:
    """Discards all reports. For processes other than rank 0, which reads the results of their trials from the run records."""

    def say(self, text: str) -> None:
        """Print nothing."""

    def warn(self, text: str) -> None:
        """Print nothing."""

    def began(self, numbers: Sequence[int]) -> None:
        """Note nothing."""

    def ended(self, results: Mapping[int, TrialResult]) -> None:
        """Note nothing."""


class ManifestReporter:
    """Updates the manifest, and prints how many trials have ended.

    `errors` has the exception of every trial that did not finish, by its number.
    """

    def __init__(self, manifest: Manifest) -> None:
        from runner.runs.sinks.reporter import Reporter

        self._manifest = manifest
        self._reporter = Reporter()
        self.errors: dict[int, RunnerError] = {}

    def say(self, text: str) -> None:
        """Print a line on the terminal."""
        self._reporter.say(text)

    def warn(self, text: str) -> None:
        """Print a warning on the terminal."""
        self._reporter.warn(text)

    def began(self, numbers: Sequence[int]) -> None:
        """Mark the trials as running in the manifest. Raises OSError."""
        self._manifest.mark(numbers, "running")
        self._manifest.save()

    def ended(self, results: Mapping[int, TrialResult]) -> None:
        """Write the states of the trials to the manifest, and print the counts. Raises OSError."""
        for number, result in results.items():
            if result.error is not None:
                self.errors[number] = result.error
            self._manifest.mark([number], result.state, None if result.error is None else str(result.error))
        self._manifest.save()
        states = self._manifest.states()
        left = sum(n for state, n in states.items() if state in ("waiting", "running", "interrupted"))
        counts = ", ".join(f"{n:,} {state}" for state in ("finished", "pruned", "failed") if (n := states.get(state)))
        self.say(f"         {counts or 'none finished'}, {left:,} left")
