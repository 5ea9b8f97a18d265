"""Plots of a sweep: the metric that trials are compared by, against each swept value."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from runner.optim.student_t import Estimate
from runner.runs.plots import COLOURS, INK, LARGEST, PALETTE, dot, legend, log_if_wide, page, plot_style, png, short
from runner.sweep.results import REPETITIONS, Member, Results, as_text, settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Marks: TypeAlias = Sequence[tuple[float, str]]

SERIES = 5
"""Most values of a second key that have a mean and a name of their own; more share a scale of colours."""

NAMES = 12
"""Most values without an order that are named at the axis."""

BAND = 0.18
"""Opacity of an interval."""

LIGHTEST = 0.85
"""Part of a scale of colours that is used: the rest is too pale on white."""


def draw(results: Results, marks: Mapping[str, Marks] | None = None) -> dict[str, bytes]:
    """Return PNG files by swept key; by seed only if nothing else is swept, and none while no member has the metric.

    Each member is a dot, in the colour of its value of another swept key. Settings with several seeds have their mean
    and its 95 % interval. A cross at the upper edge is a member that failed or whose metric cannot be drawn. `marks`:
    key with numbers as its values → vertical lines as (value, label). Those of a key without a plot are left out.
    """
    if not any(_drawable(member, results.metric) for member in results.members):
        return {}
    keys = results.varied or results.swept
    with plot_style():
        return {key.replace("/", "."): png(_figure(results, key, (marks or {}).get(key, ()))) for key in keys}


def _figure(results: Results, key: str, marks: Marks) -> Figure:
    metric, members = results.metric, results.members
    title = short(f"{short(results.name, 20)}: {results.counts}", 60)
    room = 60 - len(title) * 3 // 4  # in letters of the heading, which are wider
    figure, (axes,) = page(title, short(f"{metric} by {key}", room), key, metric)
    layout = _layout(results, key)
    drawn = [member for member in members if _drawable(member, metric)]
    _dots(axes, drawn, metric, layout)
    _crosses(axes, [layout.x(member.values) for member in members if _lost(member, metric)])
    if layout.names:
        _name(axes, list(layout.names))
    else:
        _measure(axes, key, [layout.x(member.values) for member in members], marks)
    log_if_wide(axes, np.array([member.metrics[metric] for member in drawn]))
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # those of the members: means do not move them
    _means(axes, results, layout)
    legend(figure, axes)
    return figure


def _drawable(member: Member, metric: str) -> bool:
    return metric in member.metrics and abs(member.metrics[metric]) < LARGEST


def _lost(member: Member, metric: str) -> bool:
    return member.failed or (member.state == "finished" and not _drawable(member, metric))


# ----------------------------------------------------------------------------------------------------- colours and places


@dataclass(frozen=True)
class _Layout:
    """Places and colours of the members in the plot of a key."""

    key: str
    second: str | None
    """Swept key that the colours show."""
    colours: Mapping[str, Any]
    """Colour of each series, which is a value of the second key as text; of "" without such a key."""
    names: Mapping[str, int]
    """Place of each value without an order, as text. Empty for numbers, which are places themselves."""
    shifts: Mapping[str, float]
    """Distance of each series from such a place."""

    def series(self, values: Mapping[str, Any]) -> str:
        return "" if self.second is None else as_text(values.get(self.second))

    def x(self, values: Mapping[str, Any]) -> float:
        if not self.names:
            return float(values[self.key])
        return self.names[as_text(values.get(self.key))] + self.shifts[self.series(values)]


def _layout(results: Results, key: str) -> _Layout:
    second = next((other for other in results.varied if other != key), None)
    values, others = _values(results, key), {} if second is None else _values(results, second)
    colours: dict[str, Any] = {"": COLOURS.get(results.metric.partition("/")[0], INK)}
    if others and all(map(_is_number, others.values())):
        colours = _scale(others)
    elif 0 < len(others) <= SERIES:
        colours = dict(zip(others, PALETTE, strict=False))
    else:
        second = None
    names = {} if all(map(_is_number, values.values())) else {name: place for place, name in enumerate(values)}
    shifts = np.linspace(-0.3, 0.3, len(colours)) if len(colours) > 1 else [0.0]
    return _Layout(key, second, colours, names, dict(zip(colours, shifts, strict=True)))


def _scale(values: Mapping[str, float]) -> dict[str, Any]:
    """Return colours from dark to light: by rank for a few values, else by size or its logarithm."""
    from matplotlib import colormaps

    names = sorted(values, key=lambda name: values[name])
    sizes = np.array([values[name] for name in names], np.float64)
    if len(names) <= SERIES:
        sizes = np.arange(len(names), dtype=np.float64)
    elif sizes[0] > 0 and sizes[-1] / 10 > sizes[0]:
        sizes = np.log(sizes)
    share = (sizes - sizes[0]) / ((sizes[-1] - sizes[0]) or 1.0)
    return dict(zip(names, colormaps["viridis"](LIGHTEST * share), strict=True))


def _values(results: Results, key: str) -> dict[str, Any]:
    """Return the values of a key by their text, in the order of the members."""
    return {as_text(member.values.get(key)): member.values.get(key) for member in results.members}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST


# ---------------------------------------------------------------------------------------------------------------- drawing


def _dots(axes: Axes, members: Sequence[Member], metric: str, layout: _Layout) -> None:
    """Draw a dot for each member. The legend names some colours at even distances."""
    size, alpha = dot(len(members))
    x, y = [layout.x(member.values) for member in members], [member.metrics[metric] for member in members]
    colours = [layout.colours[layout.series(member.values)] for member in members]
    axes.scatter(x, y, size**2, colours, linewidths=0, alpha=alpha)
    series = list(layout.colours)
    for number in np.linspace(0, len(series) - 1, min(len(series), SERIES)).astype(int):
        name = series[number]
        axes.plot([], [], "o", color=layout.colours[name], markeredgewidth=0, label=_label(layout, name))


def _label(layout: _Layout, series: str) -> str:
    """Return the name of a series in the legend, such as "lr 0.001"."""
    if layout.second is None:
        return "trial"
    with suppress(ValueError):
        series = f"{float(series):.3g}"
    return short(f"{layout.second.rpartition('.')[2]} {series}", 26)


def _crosses(axes: Axes, x: Sequence[float]) -> None:
    """Draw crosses at the upper edge, where members are lost."""
    if x:
        places = np.unique(x)
        style: Any = {"color": INK, "markersize": 5, "markeredgewidth": 1.2, "clip_on": False}
        share_of_height = axes.get_xaxis_transform()
        axes.plot(places, np.ones(len(places)), "x", transform=share_of_height, label=f"failed ({len(x):,})", **style)


def _name(axes: Axes, names: Sequence[str]) -> None:
    """Write names below the axis, as long as there is room for them."""
    places = range(0, len(names), math.ceil(len(names) / NAMES))
    axes.set_xticks(places, [short(names[place], 80 // len(places)) for place in places])
    axes.set_xlim(-0.5, len(names) - 0.5)


def _measure(axes: Axes, key: str, x: Sequence[float], marks: Marks) -> None:
    """Scale an axis of numbers, and draw its marks. Their labels stand to the side where there is more room."""
    if key in REPETITIONS:
        axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    else:
        log_if_wide(axes, np.array([*x, *(value for value, _ in marks)]), "x")
    for value, _ in marks:
        axes.axvline(value, color=INK, linewidth=1.2, linestyle="--", zorder=1.5)
    axes.autoscale_view()  # a mark beyond the members has widened it
    share = axes.transScale + axes.transLimits
    box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1}
    style: Any = {"transform": axes.get_xaxis_transform(), "color": INK, "fontsize": 9, "va": "top", "bbox": box}
    for value, label in marks:
        side = "left" if share.transform((value, 1.0))[0] < 0.5 else "right"
        axes.text(value, 0.96, f" {label} ", ha=side, **style)


def _means(axes: Axes, results: Results, layout: _Layout) -> None:
    """Draw the mean of each setting over its seeds; across the plot if only seeds vary. None where a third key varies."""
    if set(results.varied) - {layout.key, layout.second} or len(layout.colours) > SERIES:
        return
    series: dict[str, list[tuple[float, Estimate]]] = defaultdict(list)
    for setting in settings(results):
        mean = setting.estimate(results.metric)
        if abs(mean.mean) < LARGEST:
            places = [layout.x(setting.values)] if results.varied else axes.get_xlim()
            series[layout.series(setting.values)] += [(x, mean) for x in places]
    estimates = [mean for points in series.values() for _, mean in points]
    if all(mean.count < 2 for mean in estimates):
        return
    _make_room(axes, estimates)
    for name, points in series.items():
        colour = INK if layout.second is None else layout.colours[name]
        _mean(axes, sorted(points, key=lambda point: point[0]), colour, not (layout.names and results.varied))
    axes.plot([], [], color=INK, linewidth=1.6, label="mean and 95 % interval")


def _mean(axes: Axes, points: Sequence[tuple[float, Estimate]], colour: Any, connected: bool) -> None:
    x, mean, low, high = np.array([(x, mean.mean, mean.low, mean.high) for x, mean in points]).T
    low, high = np.clip((low, high), *axes.get_ylim())
    axes.plot(x, mean, "-" if connected else "_", color=colour, linewidth=1.6, markersize=14, markeredgewidth=1.6)
    if connected and len(x) > 1:
        axes.fill_between(x, low, high, color=colour, alpha=BAND, linewidth=0)
    else:
        axes.vlines(x, low, high, color=colour, linewidth=1.6)


def _make_room(axes: Axes, estimates: Sequence[Estimate]) -> None:
    """Widen the y axis for intervals, by at most half of its range to either side: that of two seeds can be far wider.

    A logarithmic axis stays: an interval that reaches far below the smallest member has no end there.
    """
    if axes.get_yscale() == "log":
        return
    low, high = axes.get_ylim()
    ends = [end for mean in estimates for end in (mean.low, mean.high) if math.isfinite(end)]
    most, margin = (high - low) / 2, (high - low) / 40
    axes.set_ylim(
        max(low - most, min([low, *(end - margin for end in ends)])),
        min(high + most, max([high, *(end + margin for end in ends)])),
    )
