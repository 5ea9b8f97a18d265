"""The picture of a parity table: for every cell how far it is from its reference, and how far it may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.commands.parity.table import BAD, Entry, ParityTable
from runner.runs.plots import INK, SOFT, legend, page, png, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours of optimizers, of Okabe and Ito's palette; those after the last share it."""

EQUAL, LARGEST = 1e-18, 1e2
"""Where a difference of 0 is drawn on the logarithmic axis, and the largest that is drawn."""

GROUP = 0.42
"""Half the width of a group of cells, of the distance between two groups."""


def draw(table: ParityTable) -> bytes:
    """A PNG: groups of cells by device, dtype and strategy, in each a dot a cell in the colour of its optimizer.

    Of parameters and loss what stands nearer to its bound is drawn, or further beyond it; a cross where a bound is missed or
    the cell failed.
    """
    groups: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in table.entries:
        if entry.bound is not None or entry.verdict in BAD:
            groups.setdefault((entry.cell.device, entry.cell.dtype, entry.cell.strategy), []).append(entry)
    title = short(f"{table.name}: {table.headline()}", 60)
    figure, (axes,) = page(title, "difference and bound", "", "relative difference, the first steps")
    names = list(dict.fromkeys(entry.cell.optimizer for entries in groups.values() for entry in entries))
    colours = {name: COLOURS[min(number, len(COLOURS) - 1)] for number, name in enumerate(names)}
    for x, entries in enumerate(groups.values()):
        _group(axes, x, entries, colours)
    for name, colour in colours.items():
        axes.plot([], [], "o", color=colour, label=name)
    axes.plot([], [], "_", color=SOFT, markersize=7, label="bound")
    if table.bad:
        axes.plot([], [], "x", color=INK, label="missed or failed")
    _axes(axes, [_label(*group, many=len({g[0] for g in groups}) > 1) for group in groups])
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
        found, most = _worse(entry)
        y, limit = (float(np.clip(value, EQUAL, LARGEST)) for value in (found, most))
        bad = entry.verdict in BAD
        dot: Any = (
            {"color": INK, "markersize": 7, "markeredgewidth": 1.8} if bad else {"color": colour, "markersize": 4}
        )
        axes.plot(place, y, "x" if bad else "o", **dot)
        if most < 1:
            style: Any = {"color": colour, "alpha": 0.5}
            axes.plot(place, limit, "_", markersize=4, **style)
            axes.vlines(place, min(y, limit), max(y, limit), linewidth=0.7, **style)


def _worse(entry: Entry) -> tuple[float, float]:
    """The difference, with its bound, that is nearer to it or further beyond it."""
    assert entry.bound is not None
    pairs = [(entry.parameters, entry.bound.parameters), (entry.loss, entry.bound.loss)]
    return max(pairs, key=lambda pair: (pair[0] > pair[1], pair[0] / (pair[1] or EQUAL)))


def _label(device: str, dtype: str, strategy: str, *, many: bool) -> str:
    return f"{device} {dtype} {strategy}" if many else f"{dtype} {strategy}"


def _axes(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yscale("log")
    ticks = [EQUAL, *(10.0**power for power in range(-16, 3, 2))]
    axes.set_yticks(ticks, ["equal", *(f"{tick:g}" for tick in ticks[1:])])
    axes.minorticks_off()
    axes.set_ylim(EQUAL / 3, LARGEST)
    axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right", fontsize=8)
    axes.set_xlim(-0.6, len(labels) - 0.4)
    axes.grid(axis="x", visible=False)
