"""Plot of a parity table: how far each cell is from its reference, and how far it may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from runner.commands.parity.table import BAD, Entry, ParityTable
from runner.runs.plots import INK, PALETTE, SOFT, legend, page, plot_style, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EQUAL, LARGEST = 1e-18, 1e2
"""Place of a difference of 0 on the logarithmic axis, and the largest difference that is drawn."""

GROUP = 0.42
"""Half the width of a group of cells, in units of the distance between two groups."""


def draw(table: ParityTable) -> bytes:
    """Return a PNG with groups of cells by device, dtype and strategy. Each cell is a dot in its optimizer's colour.

    The dot is the difference of the parameters or of the loss: the one nearer to its bound, or further beyond it. A
    cross is a missed bound or a failed cell. Optimizers after the seventh share its colour.
    """
    groups: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in table.entries:
        if entry.bound is not None or entry.verdict in BAD:
            groups.setdefault((entry.cell.device, entry.cell.dtype, entry.cell.strategy), []).append(entry)
    names = dict.fromkeys(entry.cell.optimizer for entries in groups.values() for entry in entries)
    colours = {name: PALETTE[min(number, len(PALETTE) - 1)] for number, name in enumerate(names)}
    first = 0 if len({device for device, _, _ in groups}) > 1 else 1  # one device needs no name
    with plot_style():
        title = f"{table.name}: {table.headline()}"
        figure, (axes,) = page(title, "difference and bound", "", "relative difference, the first steps")
        for x, entries in enumerate(groups.values()):
            _group(axes, x, entries, colours)
        for name, colour in colours.items():
            axes.plot([], [], "o", color=colour, label=name)
        axes.plot([], [], "_", color=SOFT, markersize=7, label="bound")
        if table.bad:
            axes.plot([], [], "x", color=INK, label="missed or failed")
        _axes(axes, [" ".join(group[first:]) for group in groups])
        legend(figure, axes)
        figure.subplots_adjust(bottom=0.24)
        return png(figure)


def _group(axes: Axes, x: int, entries: Sequence[Entry], colours: dict[str, str]) -> None:
    places = x + (np.linspace(-GROUP, GROUP, len(entries)) if len(entries) > 1 else np.zeros(1))
    for place, entry in zip(places, entries, strict=True):
        colour = colours[entry.cell.optimizer]
        if entry.bound is None:
            axes.plot(place, LARGEST, "x", color=INK, markersize=6, clip_on=False)
            continue
        difference, bound = _worse(entry)
        y, limit = (float(np.clip(value, EQUAL, LARGEST)) for value in (difference, bound))
        if entry.verdict in BAD:
            axes.plot(place, y, "x", color=INK, markersize=7, markeredgewidth=1.8)
        else:
            axes.plot(place, y, "o", color=colour, markersize=4)
        if bound < 1:
            axes.plot(place, limit, "_", color=colour, alpha=0.5, markersize=4)
            axes.vlines(place, min(y, limit), max(y, limit), color=colour, alpha=0.5, linewidth=0.7)


def _worse(entry: Entry) -> tuple[float, float]:
    """Return the difference that is nearer to its bound, or further beyond it, with the bound."""
    assert entry.bound is not None
    pairs = [(entry.parameters, entry.bound.parameters), (entry.loss, entry.bound.loss)]
    return max(pairs, key=lambda pair: (pair[0] > pair[1], pair[0] / (pair[1] or EQUAL)))


def _axes(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yscale("log")
    ticks = [EQUAL, *(10.0**power for power in range(-16, 3, 2))]
    axes.set_yticks(ticks, ["equal", *(f"{tick:g}" for tick in ticks[1:])])
    axes.minorticks_off()
    axes.set_ylim(EQUAL / 3, LARGEST)
    axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right", fontsize=8)
    axes.set_xlim(-0.6, len(labels) - 0.4)
    axes.grid(axis="x", visible=False)
