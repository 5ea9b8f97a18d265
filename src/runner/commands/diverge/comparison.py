"""Comparison of two run directories: what differs before the runs start, and the first step at which they differ."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from runner.commands.diverge import evidence as e
from runner.commands.diverge.runs import RecordedRun, read_run
from runner.errors import CheckpointError, InputError


def compare(a: str, b: str) -> Comparison:
    """Compare two run directories. Raises `CheckpointError` if they cannot be compared."""
    one, other = (_run_or_problems(path, letter) for path, letter in ((a, "A"), (b, "B")))
    if not isinstance(one, RecordedRun) or not isinstance(other, RecordedRun):
        raise CheckpointError(problem for run in (one, other) if not isinstance(run, RecordedRun) for problem in run)
    comparers = (e.compare_hashes, e.compare_rows, e.compare_checkpoints, e.compare_final_hashes)
    comparison = Comparison(one, other, [comparer(one, other) for comparer in comparers])
    if not any(evidence.steps or evidence.first is not None for evidence in comparison.evidence):
        raise CheckpointError(
            f"`A` and `B` must have recorded at least one step in common, got {a} and {b} without a row, hash or checkpoint "
            "of the same step; run them with record.every_steps=1 or record.hash_every_steps=1"
        )
    return comparison


def _run_or_problems(path: str, letter: str) -> RecordedRun | Sequence[str]:
    try:
        return read_run(path, letter)
    except InputError as error:
        return error.problems


@dataclass(frozen=True)
class Comparison:
    """Two recorded runs and the evidence of where they are equal and where they differ."""

    one: RecordedRun
    other: RecordedRun
    evidence: Sequence[e.Evidence]

    @property
    def first(self) -> e.Evidence | None:
        """Evidence with the earliest difference, or None if nothing differs.

        Of one step the row comes first, because its loss was computed before the update.
        """
        differing = [
            (evidence.first, evidence.parameters, i)
            for i, evidence in enumerate(self.evidence)
            if evidence.first is not None
        ]
        return self.evidence[min(differing)[2]] if differing else None

    @property
    def differ(self) -> bool:
        """Whether any record differs."""
        return self.first is not None

    def report(self) -> list[str]:
        """Return the lines of the whole report."""
        runs = [
            f"{letter}  {run.path}  {run.status}, step {run.step}"
            for letter, run in (("A", self.one), ("B", self.other))
        ]
        return [*runs, "", *self._before(), *self._records(), "", *self.verdict()]

    def _before(self) -> list[str]:
        """Return the lines on what differs before training: configuration, environment and data."""
        differences = [
            *e.config_differences(self.one, self.other),
            *e.environment_differences(self.one, self.other),
            *e.data_differences(self.one, self.other),
        ]
        if not differences:
            return ["same configuration, data and kind of machine", ""]
        cells = [("", "A", "B"), *((d.name, _shown(d.one), _shown(d.other)) for d in differences)]
        return ["differences in configuration, data or machine:", *columns(cells), ""]

    def _records(self) -> list[str]:
        rows = []
        for evidence in self.evidence:
            if evidence.first is not None:
                rows.append((evidence.source, f"differs at step {evidence.first}: {evidence.description}"))
            elif evidence.steps:
                rows.append((evidence.source, f"equal at {_counted(evidence.steps)}"))
            else:
                rows.append((evidence.source, "no step in common"))
        return columns(rows)

    def verdict(self) -> list[str]:
        """Return the lines on the first difference, or on how far the runs are known to be equal."""
        first = self.first
        if first is None:
            return [self._equal()]
        assert first.first is not None
        step, before = first.first, self._last_equal_step(first)
        where = f"in {first.source}: {first.description}"
        if step == 0:
            return [f"they differ from the start, {where}"]
        if before is not None and before >= step - 1:
            return [f"they differ first at step {step}, {where}; the parameters of step {before} are equal"]
        known = "no step is known to be equal" if before is None else f"the parameters of step {before} are equal"
        reruns = (run.rerun_arguments("record.hash_every_steps=1") for run in (self.one, self.other))
        return [
            f"they differ at step {step} or earlier, {where}; {known}",
            "to find the exact step, repeat both with a hash at each step and compare the new runs:",
            *(f"  python -m runner {shlex.join(arguments)}" for arguments in reruns),
        ]

    def _last_equal_step(self, first: e.Evidence) -> int | None:
        """Return the last step before the first difference whose parameters are known to be equal."""
        assert first.first is not None
        # The loss of a step belongs to the parameters before its update, and a metric may differ without them.
        last = first.first - 1 if first.parameters else first.first
        equal = [
            step
            for evidence in self.evidence
            if evidence.parameters
            for step in evidence.steps
            if step <= last and step != evidence.first
        ]
        return max(equal, default=None)

    def _equal(self) -> str:
        sources: dict[str, list[str]] = {}
        for evidence in (evidence for evidence in self.evidence if evidence.steps):
            extent = f"{'parameters' if evidence.parameters else 'rows'} up to step {evidence.steps[-1]}"
            sources.setdefault(extent, []).append(evidence.source)
        extents = [f"{extent} ({', '.join(names)})" for extent, names in sources.items()]
        longer = max((("A", self.one), ("B", self.other)), key=lambda named: named[1].step)
        more = f"; {longer[0]} continues to step {longer[1].step}" if self.one.step != self.other.step else ""
        return f"they are equal as far as both were recorded: {', '.join(extents)}{more}"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return one line for each row, with the cells aligned in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _shown(value: object) -> str:
    return "null" if value is None else str(value)


def _counted(steps: Sequence[int]) -> str:
    return f"step {steps[0]}" if len(steps) == 1 else f"{len(steps)} steps, {steps[0]} to {steps[-1]}"
