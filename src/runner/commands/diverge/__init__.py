"""`diverge A B`: the first step and the first tensor in which two runs differ, and what was asked differently before that."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from runner.commands.arguments import Parser
from runner.commands.diverge import evidence as e
from runner.commands.diverge.runs import Recorded, read
from runner.errors import CheckpointError, InputError

USAGE = """\
python -m runner diverge A B        the first step and the first tensor in which two runs differ

A and B are run directories, or members of sweeps: of runs that have finished, still run, were stopped or killed. What was
asked for and where it ran comes first; then hashes.jsonl, metrics.jsonl, checkpoints and the final parameters_sha256, each as
far as both have it. Equal means equal bits.

To the exact step: let both write hashes at every step, with record.hash_every_steps=1.

exit code   0 equal as far as both were recorded · 1 they differ · 2 no run directories, or nothing that both have recorded
"""


def command(words: list[str]) -> int:
    """Compare and tell; gives the exit code."""
    parser = Parser("diverge")
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")
    given = parser.parse_args(words)
    found = compare(given.a, given.b)
    sys.stdout.write("\n".join(found.report()) + "\n")
    return 1 if found.differ else 0


def compare(a: str, b: str) -> Divergence:
    """Two run directories, held against each other. Raises `CheckpointError` where they cannot be."""
    one, other = (_read(path, word) for path, word in ((a, "A"), (b, "B")))
    if not isinstance(one, Recorded) or not isinstance(other, Recorded):
        raise CheckpointError(problem for run in (one, other) if not isinstance(run, Recorded) for problem in run)
    kinds = (e.of_hashes, e.of_rows, e.of_checkpoints, e.of_ends)
    found = Divergence(one, other, [kind(one, other) for kind in kinds])
    if not any(evidence.steps or evidence.first is not None for evidence in found.evidence):
        raise CheckpointError(
            f"`A` and `B` must have recorded the same step at least once, but {a} and {b} have no row, hash or checkpoint of "
            "the same step; give them record.every_steps=1 or record.hash_every_steps=1"
        )
    return found


def _read(path: str, word: str) -> Recorded | Sequence[str]:
    """The run, or what is wrong."""
    try:
        return read(path, word)
    except InputError as error:
        return error.problems


@dataclass(frozen=True)
class Divergence:
    """What two runs have in common, and where they part."""

    one: Recorded
    other: Recorded
    evidence: Sequence[e.Evidence]

    @property
    def first(self) -> e.Evidence | None:
        """The record that differs first; of one step its row, whose loss is that before the update."""
        differing = [
            (found.first, found.parameters, i) for i, found in enumerate(self.evidence) if found.first is not None
        ]
        return self.evidence[min(differing)[2]] if differing else None

    @property
    def differ(self) -> bool:
        return self.first is not None

    def report(self) -> list[str]:
        """All that is to be told."""
        runs = [
            f"{letter}  {run.path}  {run.status}, step {run.step}"
            for letter, run in (("A", self.one), ("B", self.other))
        ]
        return [*runs, "", *self._before(), *self._records(), "", *self.verdict()]

    def _before(self) -> list[str]:
        """What differs already in what was asked for, and in what it ran on."""
        found = [*e.asked(self.one, self.other), *e.surroundings(self.one, self.other), *e.data(self.one, self.other)]
        if not found:
            return ["asked for the same, on the same data and kind of machine", ""]
        cells = [("", "A", "B"), *((d.name, _shown(d.one), _shown(d.other)) for d in found)]
        return ["asked for, or run on, different things:", *columns(cells), ""]

    def _records(self) -> list[str]:
        rows = []
        for found in self.evidence:
            if found.first is not None:
                rows.append((found.source, f"differs at step {found.first}: {found.what}"))
            elif found.steps:
                rows.append((found.source, f"equal at {_counted(found.steps)}"))
            else:
                rows.append((found.source, "nothing that both have"))
        return columns(rows)

    def verdict(self) -> list[str]:
        """The first difference, or how far the two are known to be equal."""
        first = self.first
        if first is None:
            return [self._equal()]
        assert first.first is not None
        step, before = first.first, self._known_equal(first)
        where = f"in {first.source}: {first.what}"
        if step == 0:
            return [f"they differ from the start, {where}"]
        if before is not None and before >= step - 1:
            return [f"they differ first at step {step}, {where}; the parameters of step {before} are equal"]
        known = "no step is known to be equal" if before is None else f"the parameters of step {before} are equal"
        again = (run.again("record.hash_every_steps=1") for run in (self.one, self.other))
        return [
            f"they differ at step {step} at the latest, {where}; {known}",
            "for the exact step, do both again with a hash at each step, and compare these:",
            *(f"  python -m runner {shlex.join(words)}" for words in again),
        ]

    def _known_equal(self, first: e.Evidence) -> int | None:
        """The last step up to the first difference whose parameters are known to be equal."""
        assert first.first is not None
        # The loss of a step is that of the parameters before its update, and a metric may differ without them.
        last = first.first - 1 if first.parameters else first.first
        equal = [
            s for found in self.evidence if found.parameters for s in found.steps if s <= last and s != found.first
        ]
        return max(equal, default=None)

    def _equal(self) -> str:
        by: dict[str, list[str]] = {}
        for found in (found for found in self.evidence if found.steps):
            what = f"{'parameters' if found.parameters else 'rows'} up to step {found.steps[-1]}"
            by.setdefault(what, []).append(found.source)
        told = [f"{what} ({', '.join(sources)})" for what, sources in by.items()]
        longer = max((("A", self.one), ("B", self.other)), key=lambda named: named[1].step)
        more = f"; {longer[0]} goes on to step {longer[1].step}" if self.one.step != self.other.step else ""
        return f"they are equal as far as both were recorded: {', '.join(told)}{more}"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines whose cells stand below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _shown(value: object) -> str:
    return "null" if value is None else str(value)


def _counted(steps: Sequence[int]) -> str:
    return f"step {steps[0]}" if len(steps) == 1 else f"{len(steps)} steps, {steps[0]} to {steps[-1]}"
