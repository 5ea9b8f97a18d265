"""A parity table: the result of each cell compared with its reference, as text, Markdown and JSON."""

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
"""Verdicts that give exit code 1."""

LEGEND = (
    "Difference of the parameters ≤ its bound; `none` if rounding may leave no digit; a letter stands for the reason why there is nothing "
    "to compare."
)
HEADINGS = (*AXES, "steps", "parameters", "bound", "loss", "bound", "ms per step", "")


@dataclass(frozen=True)
class Entry:
    """A cell and its result: the relative differences over the steps of its bound, or the reasons why there are none."""

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
        """All axes but the optimizer."""
        return self.cell.device, self.cell.dtype, self.cell.strategy, self.cell.update

    @property
    def runs(self) -> bool:
        """Whether the cell can run."""
        return self.verdict != "cannot run"

    @property
    def plain(self) -> dict[str, Any]:
        """The entry as JSON values, with null for everything not measured."""
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
    """Return the verdict on two differences; nan is within no bound."""
    if not (parameters <= bound.parameters and loss <= bound.loss):
        return "missed"
    return "met" if bound.holds_digits else "no bound"


@dataclass(frozen=True)
class ParityTable:
    """All entries of a table, with the experiment, the number of steps and the machine.

    `devices` maps each device to the reasons why it is not available, empty if it is.
    """

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
        """Number of cells by verdict."""
        counts = Counter(entry.verdict for entry in self.entries)
        return {verdict: counts[verdict] for verdict in ORDER}

    @property
    def bad(self) -> list[Entry]:
        """Cells that missed their bound or failed."""
        return [entry for entry in self.entries if entry.verdict in BAD]

    @property
    def letters(self) -> dict[str, str]:
        """Reason why a cell has no figures -> the letter that stands for it."""
        reasons = dict.fromkeys(reason for entry in self.entries for reason in entry.reasons)
        return dict(zip(reasons, _letters(), strict=False))

    @property
    def plain(self) -> dict[str, Any]:
        """The table as JSON values."""
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
        """Return the number of cells by verdict as one line."""
        return ", ".join(
            f"{count} {verdict}" for verdict, count in self.counts.items() if count or verdict in ("met", "missed")
        )

    def complaints(self) -> list[str]:
        """Return one sentence for each cell that missed its bound or failed."""
        return [f"{entry.verdict}: {entry.cell}: {_complaint(entry)}" for entry in self.bad]

    def grid(self) -> tuple[list[str], list[list[str]]]:
        """Return headings and rows: one row per device, dtype, strategy and update, one column per optimizer.

        If nothing can run, all strategies of a dtype share one row, or both updates of a strategy.
        """
        optimizers = list(dict.fromkeys(entry.cell.optimizer for entry in self.entries))
        rows: dict[tuple[str, ...], dict[str, list[Entry]]] = {}
        for entry in self.entries:
            rows.setdefault(self._row(entry.cell), {}).setdefault(entry.cell.optimizer, []).append(entry)
        letters = self.letters
        cells = [[*place, *(_figure(entries[name], letters) for name in optimizers)] for place, entries in rows.items()]
        return [*AXES[:-1], *optimizers], cells

    def _row(self, cell: Cell) -> tuple[str, ...]:
        place = (cell.device, cell.dtype, cell.strategy, cell.update)
        shared = [n for n in (2, 3) if not any(e.runs and e.place[:n] == place[:n] for e in self.entries)]
        return (*place[: shared[0]], *["all"] * (4 - shared[0])) if shared else place

    def absent(self) -> list[str]:
        """Return the reasons for all devices that are not available."""
        return [reason for why in self.devices.values() for reason in why]


def _letters() -> Iterator[str]:
    """Yield a to z, then aa, ab, …"""
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    yield from alphabet
    yield from (first + second for first in alphabet for second in alphabet)


def _figure(entries: Sequence[Entry], letters: Mapping[str, str]) -> str:
    """Return the text for cells that share a place: the difference of the parameters and its bound, or letters of reasons."""
    entry = entries[0]
    if entry.bound is None:
        reasons = ", ".join(sorted({letters[reason] for entry in entries for reason in entry.reasons}))
        return f"failed ({reasons})" if entry.verdict == "failed" else f"({reasons})"
    difference, limit = _number(entry.parameters), _number(entry.bound.parameters)
    if entry.verdict == "missed":
        return (
            f"missed: {difference}>{limit}"
            if entry.parameters > entry.bound.parameters
            else f"missed by loss: {difference}≤{limit}"
        )
    if entry.bound.parameters >= 1:
        return f"{difference}, none"
    return "equal" if entry.bound.parameters == 0 else f"{difference}≤{limit}"


def _complaint(entry: Entry) -> str:
    if entry.bound is None:
        return "; ".join(entry.reasons)
    pairs = (("parameters", entry.parameters, entry.bound.parameters), ("loss", entry.loss, entry.bound.loss))
    misses = [f"{name} off by {found:.1e}, bound {limit:.1e}" for name, found, limit in pairs if not found <= limit]
    return f"over {entry.bound.steps} steps {' and '.join(misses)} ({entry.bound.kind})"


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.0e}"


def text(table: ParityTable) -> list[str]:
    """Return the grid as lines with aligned columns."""
    headings, rows = table.grid()
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = (zip(row, widths, strict=True) for row in [headings, *rows])
    return ["  ".join(cell.ljust(width) for cell, width in line).rstrip() for line in lines]


# --------------------------------------------------------------------------------------------------------------- markdown


def markdown(table: ParityTable) -> str:
    """Return the table as a Markdown page."""
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
        lines.append(f"* {_escaped(complaint)}; by itself: `{shlex.join(entry.command)}`")
    lines += ["", "![differences and bounds](parity.png)", "", "## Parameters", "", *cells(table)]
    lines += ["", "## Bounds", "", *bounds(table), "", "## Every cell", "", *listing(table)]
    return "\n".join([*lines, ""])


def summary(table: ParityTable) -> list[str]:
    """Return the lines that say what was compared with what, and on which machine."""
    return [
        f"The first {table.steps} steps of each cell, compared with float64 on one process of the CPU with the manual update",
        "(torch.optim for rules without one). Differences are relative to the largest magnitude of a tensor.",
        f"torch {table.torch} on {table.device_name}, {table.threads} thread{'s' if table.threads > 1 else ''} per process; "
        f"{table.processes} processes for all strategies except single and dp.",
    ]


def cells(table: ParityTable) -> list[str]:
    """Return the grid, the reasons for its letters, and the reasons for unavailable devices."""
    headings, rows = table.grid()
    lines = [*_table(headings, rows, len(AXES) - 1), "", LEGEND, ""]
    lines += [f"* ({letter}) {_escaped(reason)}" for reason, letter in table.letters.items()]
    return lines + [f"* {_escaped(reason)}" for reason in table.absent()]


def bounds(table: ParityTable) -> list[str]:
    """Return the reason for each kind of bound in the table."""
    return [f"* **{kind}**: {reason}." for kind, reason in table.plain["bounds"].items()]


def listing(table: ParityTable) -> list[str]:
    """Return a table of all cells that were compared, with their figures."""
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
    """Return a Markdown table whose first `left` columns are names and whose others are figures."""
    headings = list(headings)
    rule = ["---"] * left + ["---:"] * (len(headings) - left)
    return ["| " + " | ".join(row) + " |" for row in [headings, rule, *rows]]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
