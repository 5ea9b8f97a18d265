"""A parity table: what every cell came to against its reference, and how that is told."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from runner.commands.parity.bounds import REASONS, Bound
from runner.commands.parity.cells import AXES, Cell

CellVerdict = Literal["met", "missed", "no bound", "failed", "cannot run"]
ORDER: tuple[CellVerdict, ...] = ("met", "missed", "failed", "no bound", "cannot run")
BAD: tuple[CellVerdict, ...] = ("missed", "failed")
"""What the exit code 1 is for."""

LEGEND = (
    "Difference of the parameters ≤ its bound; `none` where rounding may leave no digit; letters are reasons why there is nothing to "
    "compare."
)
HEADINGS = (*AXES, "steps", "parameters", "bound", "loss", "bound", "ms a step", "")


@dataclass(frozen=True)
class Entry:
    """A cell, and what became of it: the relative differences over the steps of its bound, or the reasons why there are none."""

    cell: Cell
    processes: int
    command: tuple[str, ...]
    verdict: CellVerdict
    reasons: tuple[str, ...] = ()
    bound: Bound | None = None
    parameters: float = math.nan
    loss: float = math.nan
    seconds_per_step: float = math.nan

    @property
    def place(self) -> tuple[str, str, str, str]:
        """All but its optimizer."""
        return self.cell.device, self.cell.dtype, self.cell.strategy, self.cell.update

    @property
    def runs(self) -> bool:
        """Whether it can."""
        return self.verdict != "cannot run"

    @property
    def plain(self) -> dict[str, Any]:
        """Itself as JSON holds it; null for what was not measured."""
        bound = self.bound
        return {
            **{axis: getattr(self.cell, axis) for axis in AXES},
            "processes": self.processes,
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "bound": bound and bound.kind,
            "steps": bound and bound.steps,
            "parameters_difference": None if bound is None else self.parameters,
            "parameters_bound": bound and bound.parameters,
            "loss_difference": None if bound is None else self.loss,
            "loss_bound": bound and bound.loss,
            "seconds_per_step": None if bound is None else self.seconds_per_step,
            "command": shlex.join(self.command),
        }


def judge(parameters: float, loss: float, bound: Bound) -> CellVerdict:
    """What two differences come to; nan is within no bound."""
    if not (parameters <= bound.parameters and loss <= bound.loss):
        return "missed"
    return "met" if bound.holds_digits else "no bound"


@dataclass(frozen=True)
class ParityTable:
    """A whole table: of which experiment, over how many steps, where; `devices` has the reasons for each that is not there."""

    name: str
    command: tuple[str, ...]
    steps: int
    processes: int
    threads: int
    torch: str
    device_name: str
    devices: Mapping[str, tuple[str, ...]]
    entries: Sequence[Entry]

    @property
    def counts(self) -> dict[CellVerdict, int]:
        """How many cells there are of each verdict."""
        found = Counter(entry.verdict for entry in self.entries)
        return {verdict: found[verdict] for verdict in ORDER}

    @property
    def bad(self) -> list[Entry]:
        """The cells that the table is not good for."""
        return [entry for entry in self.entries if entry.verdict in BAD]

    @property
    def letters(self) -> dict[str, str]:
        """Reason why a cell has no figures → the letter that stands for it."""
        found = dict.fromkeys(reason for entry in self.entries for reason in entry.reasons)
        return dict(zip(found, _letters(), strict=False))

    @property
    def plain(self) -> dict[str, Any]:
        """Itself as JSON holds it."""
        kinds = {entry.bound.kind for entry in self.entries if entry.bound is not None}
        return {
            "experiment": self.name,
            "command": shlex.join(self.command),
            "steps": self.steps,
            "processes": self.processes,
            "threads": self.threads,
            "torch": self.torch,
            "device_name": self.device_name,
            "devices": {name: {"present": not why, "reasons": list(why)} for name, why in self.devices.items()},
            "counts": self.counts,
            "bounds": {kind: reason for kind, reason in REASONS.items() if kind in kinds},
            "cells": [entry.plain for entry in self.entries],
        }

    def headline(self) -> str:
        """The count of cells by verdict."""
        return ", ".join(
            f"{count} {verdict}" for verdict, count in self.counts.items() if count or verdict in ("met", "missed")
        )

    def complaints(self) -> list[str]:
        """A sentence for each cell that missed its bound or failed."""
        return [f"{entry.verdict}: {entry.cell}: {_complaint(entry)}" for entry in self.bad]

    def grid(self) -> tuple[list[str], list[list[str]]]:
        """Headings and rows: a row for each device, dtype, strategy and update, a column for each optimizer.

        Where nothing can run, all strategies of a dtype share a row, or both updates of a strategy.
        """
        optimizers = list(dict.fromkeys(entry.cell.optimizer for entry in self.entries))
        rows: dict[tuple[str, ...], dict[str, list[Entry]]] = {}
        for entry in self.entries:
            rows.setdefault(self._row(entry.cell), {}).setdefault(entry.cell.optimizer, []).append(entry)
        letters = self.letters
        shown = [[*place, *(_figure(found[name], letters) for name in optimizers)] for place, found in rows.items()]
        return [*AXES[:-1], *optimizers], shown

    def _row(self, cell: Cell) -> tuple[str, ...]:
        place = (cell.device, cell.dtype, cell.strategy, cell.update)
        shared = [n for n in (2, 3) if not any(e.runs and e.place[:n] == place[:n] for e in self.entries)]
        return (*place[: shared[0]], *["all"] * (4 - shared[0])) if shared else place

    def absent(self) -> list[str]:
        """A sentence for each device that is not there."""
        return [reason for why in self.devices.values() for reason in why]


def _letters() -> Iterator[str]:
    """From a to z, then aa, ab, …"""
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    yield from alphabet
    yield from (first + second for first in alphabet for second in alphabet)


def _figure(entries: Sequence[Entry], letters: Mapping[str, str]) -> str:
    """The text for cells that share a place: their difference of parameters and its bound, or the letters of their reasons."""
    entry = entries[0]
    if entry.bound is None:
        why = ", ".join(sorted({letters[reason] for entry in entries for reason in entry.reasons}))
        return f"failed ({why})" if entry.verdict == "failed" else f"({why})"
    found, most = _number(entry.parameters), _number(entry.bound.parameters)
    if entry.verdict == "missed":
        return (
            f"missed: {found}>{most}"
            if entry.parameters > entry.bound.parameters
            else f"missed by loss: {found}≤{most}"
        )
    if entry.bound.parameters >= 1:
        return f"{found}, none"
    return "equal" if entry.bound.parameters == 0 else f"{found}≤{most}"


def _complaint(entry: Entry) -> str:
    if entry.bound is None:
        return "; ".join(entry.reasons)
    pairs = (("parameters", entry.parameters, entry.bound.parameters), ("loss", entry.loss, entry.bound.loss))
    said = [f"{name} off by {found:.1e}, bound {most:.1e}" for name, found, most in pairs if not found <= most]
    return f"over {entry.bound.steps} steps {' and '.join(said)} ({entry.bound.kind})"


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.0e}"


def text(table: ParityTable) -> list[str]:
    """The grid as lines of aligned columns."""
    headings, rows = table.grid()
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = (zip(row, widths, strict=True) for row in [headings, *rows])
    return ["  ".join(cell.ljust(width) for cell, width in line).rstrip() for line in lines]


# --------------------------------------------------------------------------------------------------------------- markdown


def markdown(table: ParityTable) -> str:
    """The page of a table."""
    lines = [
        f"# Parity of {table.name}",
        "",
        f"`{shlex.join(table.command)}`",
        "",
        *summary(table),
        "",
        f"**{table.headline()}.**",
    ]
    for complaint, entry in zip(table.complaints(), table.bad, strict=True):
        lines.append(f"* {_escaped(complaint)}; alone: `{shlex.join(entry.command)}`")
    lines += ["", "![differences and bounds](parity.png)", "", "## Parameters", "", *cells(table)]
    lines += ["", "## Bounds", "", *bounds(table), "", "## Every cell", "", *listing(table)]
    return "\n".join([*lines, ""])


def summary(table: ParityTable) -> list[str]:
    """What was compared with what, and where."""
    return [
        f"The first {table.steps} steps of each cell against those in float64 on one process of the CPU, the update written by hand",
        "(by the library where there is none by hand); differences are the largest over the largest magnitude of a tensor.",
        f"torch {table.torch} on {table.device_name}, {table.threads} thread{'s' if table.threads > 1 else ''} a process; "
        f"{table.processes} processes under all strategies but single and dp.",
    ]


def cells(table: ParityTable) -> list[str]:
    """The grid, the reasons of its letters, and the devices that are not there."""
    headings, rows = table.grid()
    lines = [*_table(headings, rows, len(AXES) - 1), "", LEGEND, ""]
    lines += [f"* ({letter}) {_escaped(reason)}" for reason, letter in table.letters.items()]
    return lines + [f"* {_escaped(reason)}" for reason in table.absent()]


def bounds(table: ParityTable) -> list[str]:
    """The reason of each kind of bound that a cell has."""
    return [f"* **{kind}**: {reason}." for kind, reason in table.plain["bounds"].items()]


def listing(table: ParityTable) -> list[str]:
    """Every cell that was compared, with its figures."""
    rows = []
    for entry in table.entries:
        if entry.bound is not None:
            bound, cell = entry.bound, [getattr(entry.cell, axis) for axis in AXES]
            figures = [entry.parameters, bound.parameters, entry.loss, bound.loss]
            verdict = f"**{entry.verdict}**" if entry.verdict in BAD else entry.verdict
            shown = [_number(figure) for figure in figures]
            rows.append(
                [*cell, str(bound.steps), *shown, f"{1000 * entry.seconds_per_step:.2f}", f"{verdict}, {bound.kind}"]
            )
    return _table(HEADINGS, rows, len(AXES))


def _table(headings: Iterable[str], rows: Iterable[Sequence[str]], left: int) -> list[str]:
    """A table whose first columns are names and whose others are figures."""
    headings = list(headings)
    rule = ["---"] * left + ["---:"] * (len(headings) - left)
    return ["| " + " | ".join(row) + " |" for row in [headings, rule, *rows]]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
