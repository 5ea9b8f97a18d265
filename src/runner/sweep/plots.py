"""The figures of a sweep: the metric that members are compared by, against each swept value."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from runner.optim.student_t import Estimate
from runner.runs.plots import COLOURS, INK, LARGEST, dot, legend, log_where_wide, page, png, short
from runner.sweep.results import SEEDS, Member, Results, as_text, settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Marks: TypeAlias = Sequence[tuple[float, str]]

SERIES = 5
"""Most values of a second key that have a mean and a name of their own; more share a scale of colours."""

NAMES = 12
"""Most values without an order that are named at the axis."""

UNORDERED = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
"""Colours of values without an order, of Okabe and Ito's palette."""

BAND = 0.18
"""Opacity of an interval."""

LIGHTEST = 0.85
"""Share of a scale of colours that is used: beyond it they are too pale on white."""


def draw(results: Results, marks: Mapping[str, Marks] | None = None) -> dict[str, bytes]:
    """PNG files by swept key; of the seeds only where nothing else is swept, and none while no member has the metric.

    One dot a member; for settings with several seeds their mean and its 95 % interval; a cross at the upper edge where
    a member failed or its metric cannot be drawn. Colours tell another swept key. `marks`: for a key whose values are
    numbers, vertical lines as (value, label); those of a key without a picture are left out.
    """
    if not any(_drawable(member, results.metric) for member in results.members):
        return {}
    keys = results.varied or results.swept
    return {key.replace("/", "."): png(_figure(results, key, (marks or {}).get(key, ()))) for key in keys}


def _figure(results: Results, key: str, marks: Marks) -> Figure:
    metric = results.metric
    title = short(f"{short(results.name, 20)}: {results.counts}", 60)
    room = 60 - len(title) * 3 // 4  # in letters of the heading, which are wider
    figure, (axes,) = page(title, short(f"{metric} by {key}", room), key, metric)
    colours = _colours(results, key)
    place = _place(results, key, colours)
    drawn = [member for member in results.members if _drawable(member, metric)]
    _dots(axes, drawn, metric, place)
    _crosses(axes, [place.of(member.values) for member in results.members if _lost(member, metric)])
    if place.names:
        _name(axes, list(place.names))
    else:
        _measure(axes, key, [place.of(member.values) for member in results.members], marks)
    log_where_wide(axes, np.array([member.metrics[metric] for member in drawn]))
    axes.set_ylim(axes.get_ylim())  # those of the members; what is drawn from here on does not move them by itself
    if results.varied:
        _means(axes, results, place)
    else:
        _level(axes, settings(results)[0].estimate(metric))
    legend(figure, axes)
    return figure


def _drawable(member: Member, metric: str) -> bool:
    return metric in member.metrics and abs(member.metrics[metric]) < LARGEST


def _lost(member: Member, metric: str) -> bool:
    return member.failed or (member.state == "finished" and not _drawable(member, metric))


# ----------------------------------------------------------------------------------------------------- colours and places


@dataclass(frozen=True)
class _Colours:
    """The colour that a member has for its value of `key`; one for all where there is no such key."""

    key: str | None
    by_value: Mapping[str, Any]

    def value(self, values: Mapping[str, Any]) -> str:
        return "" if self.key is None else as_text(values.get(self.key))

    def of(self, values: Mapping[str, Any]) -> Any:
        return self.by_value[self.value(values)]

    def label(self, value: str) -> str:
        """Such as "lr 0.001"."""
        return "trial" if self.key is None else short(f"{self.key.rpartition('.')[2]} {_rounded(value)}", 26)


@dataclass(frozen=True)
class _Place:
    """Where members stand on the x axis: numbers at themselves; others side by side, and there each colour apart."""

    key: str
    colours: _Colours
    names: Mapping[str, int]
    shifts: Mapping[str, float]

    def of(self, values: Mapping[str, Any]) -> float:
        if not self.names:
            return float(values[self.key])
        return self.names[as_text(values.get(self.key))] + self.shifts[self.colours.value(values)]


def _colours(results: Results, key: str) -> _Colours:
    """Those of the first other key, where its values have an order or are few."""
    second = next((other for other in results.varied if other != key), None)
    values = {} if second is None else _values(results, second)
    if values and all(map(_is_number, values.values())):
        return _Colours(second, _scale(values))
    if values and len(values) <= SERIES:
        return _Colours(second, dict(zip(values, UNORDERED, strict=False)))
    return _Colours(None, {"": COLOURS.get(results.metric.partition("/")[0], INK)})


def _scale(values: Mapping[str, float]) -> dict[str, Any]:
    """Colours from dark to light: by rank for a few values, else by their size or its logarithm."""
    from matplotlib import colormaps

    names = sorted(values, key=lambda name: values[name])
    sizes = np.array([values[name] for name in names], np.float64)
    if len(names) <= SERIES:
        sizes = np.arange(len(names), dtype=np.float64)
    elif sizes[0] > 0 and sizes[-1] / 10 > sizes[0]:
        sizes = np.log(sizes)
    share = (sizes - sizes[0]) / ((sizes[-1] - sizes[0]) or 1.0)
    return dict(zip(names, colormaps["viridis"](LIGHTEST * share), strict=True))


def _place(results: Results, key: str, colours: _Colours) -> _Place:
    values, count = _values(results, key), len(colours.by_value)
    names = {} if all(map(_is_number, values.values())) else {name: number for number, name in enumerate(values)}
    shifts = np.linspace(-0.3, 0.3, count) if count > 1 else [0.0]
    return _Place(key, colours, names, dict(zip(colours.by_value, shifts, strict=True)))


def _values(results: Results, key: str) -> dict[str, Any]:
    """The values that a key has, by their text, in the order of the members."""
    return {as_text(member.values.get(key)): member.values.get(key) for member in results.members}


def _rounded(text: str) -> str:
    try:
        return f"{float(text):.3g}"
    except ValueError:
        return text


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST


# ---------------------------------------------------------------------------------------------------------------- drawing


def _dots(axes: Axes, members: Sequence[Member], metric: str, place: _Place) -> None:
    """One dot a member, the smaller and paler the more there are; the legend names some colours at even distances."""
    size, alpha = dot(len(members))
    colours = place.colours
    x, y = [place.of(member.values) for member in members], [member.metrics[metric] for member in members]
    axes.scatter(x, y, size**2, [colours.of(member.values) for member in members], linewidths=0, alpha=alpha)
    values = list(colours.by_value)
    for number in np.linspace(0, len(values) - 1, min(len(values), SERIES)).astype(int):
        label = colours.label(values[number])
        axes.plot([], [], "o", color=colours.by_value[values[number]], markeredgewidth=0, label=label)


def _crosses(axes: Axes, x: Sequence[float]) -> None:
    """One at the upper edge wherever members are lost."""
    if x:
        places = np.unique(x)
        style: Any = {"color": INK, "markersize": 5, "markeredgewidth": 1.2, "clip_on": False}
        share_of_height = axes.get_xaxis_transform()
        axes.plot(places, np.ones(len(places)), "x", transform=share_of_height, label=f"failed ({len(x):,})", **style)


def _name(axes: Axes, names: Sequence[str]) -> None:
    """Names below the axis, as long as there is room for them."""
    places = range(0, len(names), math.ceil(len(names) / NAMES))
    axes.set_xticks(places, [short(names[place], 80 // len(places)) for place in places], parse_math=False)
    axes.set_xlim(-0.5, len(names) - 0.5)


def _measure(axes: Axes, key: str, x: Sequence[float], marks: Marks) -> None:
    """An axis of numbers with its marks, whose labels stand to the side where there is more room."""
    if key in SEEDS:
        axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    else:
        log_where_wide(axes, np.array([*x, *(value for value, _ in marks)]), "x")
    for value, _ in marks:
        axes.axvline(value, color=INK, linewidth=1.2, linestyle="--", zorder=1.5)
    axes.autoscale_view()  # a mark beyond the members has widened it
    share = axes.transScale + axes.transLimits
    box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1}
    style: Any = {"transform": axes.get_xaxis_transform(), "color": INK, "fontsize": 9, "va": "top", "bbox": box}
    for value, label in marks:
        side = "left" if share.transform((value, 1.0))[0] < 0.5 else "right"
        axes.text(value, 0.96, f" {label} ", ha=side, parse_math=False, **style)


def _means(axes: Axes, results: Results, place: _Place) -> None:
    """The means of settings over their seeds, where each can be told from the others."""
    colours = place.colours
    if set(results.varied) - {place.key, colours.key} or len(colours.by_value) > SERIES:
        return
    series: dict[str, list[tuple[float, Estimate]]] = defaultdict(list)
    for setting in settings(results):
        found = setting.estimate(results.metric)
        if abs(found.mean) < LARGEST:
            series[colours.value(setting.values)].append((place.of(setting.values), found))
    if all(found.count < 2 for points in series.values() for _, found in points):
        return
    _make_room(axes, [found for points in series.values() for _, found in points])
    for value, points in series.items():
        colour = INK if colours.key is None else colours.by_value[value]
        _mean(axes, sorted(points, key=lambda point: point[0]), colour, connected=not place.names)
    _name_means(axes)


def _mean(axes: Axes, points: Sequence[tuple[float, Estimate]], colour: Any, connected: bool) -> None:
    x, mean, low, high = np.array([(x, found.mean, found.low, found.high) for x, found in points]).T
    low, high = np.clip((low, high), *axes.get_ylim())
    style: Any = {"linestyle": "-"} if connected else {"linestyle": "none", "marker": "_", "markersize": 14}
    axes.plot(x, mean, color=colour, linewidth=1.6, markeredgewidth=1.6, **style)
    if connected and len(x) > 1:
        axes.fill_between(x, low, high, color=colour, alpha=BAND, linewidth=0)
    else:
        axes.vlines(x, low, high, color=colour, linewidth=1.6)


def _level(axes: Axes, found: Estimate) -> None:
    """The mean over all seeds, across the picture."""
    if found.count > 1 and abs(found.mean) < LARGEST:
        _make_room(axes, [found])
        axes.axhspan(*np.clip((found.low, found.high), *axes.get_ylim()), color=INK, alpha=BAND, linewidth=0)
        axes.axhline(found.mean, color=INK, linewidth=1.6)
        _name_means(axes)


def _make_room(axes: Axes, estimates: Sequence[Estimate]) -> None:
    """For intervals, up to half of what the members take to either side: that of two seeds can be wider than all there is to see.

    None where the scale is logarithmic: an interval that reaches far below the smallest member has no end there.
    """
    if axes.get_yscale() == "log":
        return
    low, high = axes.get_ylim()
    ends = [end for found in estimates for end in (found.low, found.high) if math.isfinite(end)]
    most, margin = (high - low) / 2, (high - low) / 40
    axes.set_ylim(
        max(low - most, min([low, *(end - margin for end in ends)])),
        min(high + most, max([high, *(end + margin for end in ends)])),
    )


def _name_means(axes: Axes) -> None:
    axes.plot([], [], color=INK, linewidth=1.6, label="mean and 95 % interval")
