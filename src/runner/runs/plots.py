"""Plots of a run (data and fit, loss, residuals), and the page style that all plots share.

Colours are of Okabe and Ito's palette ("Color Universal Design", 2008), which colour-blind readers can tell apart.
"""

from __future__ import annotations

import io
import math
import os
import sys
import warnings
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from runner.config.files import MIB, make_folder
from runner.runs.atomic import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Array: TypeAlias = NDArray[np.floating[Any]]
Part: TypeAlias = tuple[Array, Array, Array]

MAX_POINTS = 10_000
"""Most points that are drawn of one part or curve: more are indistinguishable, and cost time and bytes."""

MAX_ERROR_BARS = 300
"""Largest number of points with error bars."""

MAX_CROSSES = 50
"""Most crosses that are drawn on a line: more would hide it."""

MOST_PLOTTED = 6
"""Largest number of targets that have plots of their own."""

LINE_POINTS = 400
"""Number of points of a fitted curve."""

LARGEST = 1e100
"""Values from here on are not drawn: the arithmetic of the axes would overflow."""

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
COLOURS = {"train": PALETTE[0], "valid": PALETTE[2], "test": PALETTE[1], "input": PALETTE[1]}
INK, SOFT, GRID = "#222222", "#666666", "#E4E4E4"

LEFT, RIGHT = 0.11, 0.975
"""Edges of the axes, as fractions of the width of the page."""


@dataclass(frozen=True)
class RunPlots:
    """The content of a run's plots.

    `parts`: "train", "valid", "test", or "input" alone → (features [rows, k], target [rows], prediction [rows]), in the file's units.
    `line`: for one feature, x [m] ascending and the fitted y [m] over the range of the plot.
    `bands`: name → low [m] and high [m] at the x of the line, from the narrowest to the widest.
    `totals`: part → number of rows that its rows are a sample of; otherwise they are all.
    `errors`: part → standard deviations of the targets [rows], where they are known.
    `rows`: the rows of `metrics.jsonl`, which are read once; "train/loss" and "valid/loss" are drawn.
    `step`: that of the predictions, if it is not the last one.
    `levels`: name → a known loss, drawn as a thin line unless it would flatten the curves.
    """

    title: str
    feature_names: Sequence[str]
    target_name: str
    parts: Mapping[str, Part]
    line: tuple[Array, Array] | None
    rows: Iterable[Mapping[str, Any]]
    levels: Mapping[str, float] = field(default_factory=dict)
    bands: Mapping[str, tuple[Array, Array]] = field(default_factory=dict)
    totals: Mapping[str, int] = field(default_factory=dict)
    errors: Mapping[str, Array] = field(default_factory=dict)
    step: int | None = None

    def heading(self, text: str) -> str:
        """Return the heading of a plot of predictions."""
        return text if self.step is None else f"{text} at step {self.step:,}"


def draw(content: RunPlots) -> dict[str, bytes]:
    """Return the PNG files "fit", "loss" and "residuals". The same content gives the same bytes.

    Values that are not finite are left out, and so is an empty plot. Of a part or curve with more than 10,000 points,
    10,000 evenly spaced ones are drawn, and the legend says so.
    """
    parts = {name: part for name in COLOURS if (part := _finite(content.parts.get(name))) is not None}
    curves = _curves(content.rows)
    with plot_style():
        figures: dict[str, Figure] = {}
        if parts:
            fit = _fit if len(content.feature_names) == 1 else _agreement
            figures = {"fit": fit(content, parts), "residuals": _residuals(content, parts)}
        if curves:
            figures["loss"] = _loss(content, curves)
        return {name: png(figure) for name, figure in sorted(figures.items())}


def draw_targets(contents: Iterable[RunPlots]) -> dict[str, bytes]:
    """Return the PNG files of each target. With several targets they are "fit_1", "residuals_1", "fit_2", …; "loss" is one."""
    drawn = [draw(content) for content in contents]
    return {
        name if len(drawn) == 1 or name == "loss" else f"{name}_{number}": figure
        for number, figures in enumerate(drawn, 1)
        for name, figure in figures.items()
    }


def write(folder: Path, figures: Mapping[str, bytes]) -> None:
    """Write PNG files by name into a folder, which is made if it is missing. Raises OSError."""
    make_folder(folder)
    for name, data in figures.items():
        write_atomic(folder / f"{name}.png", data)


# ------------------------------------------------------------------------------------------------------ plots of a run


def _usable(*columns: Array) -> NDArray[np.bool_]:
    """Return which rows can be drawn in all columns."""
    usable: NDArray[np.bool_] = np.logical_and.reduce([np.abs(column) < LARGEST for column in columns])
    return usable


def _finite(part: Part | None) -> Part | None:
    """Return the rows of a part that can be drawn, in float64; None where there are none."""
    if part is None:
        return None
    features, target, prediction = (np.asarray(column, np.float64) for column in part)
    usable = _usable(target, prediction, *features.T)
    return (features[usable], target[usable], prediction[usable]) if usable.any() else None


def _curves(rows: Iterable[Mapping[str, Any]]) -> dict[str, tuple[Array, Array]]:
    """Return steps and losses by part, where they can be drawn. Parts without any are left out."""
    # Rows are read one by one, and of each only these numbers are kept: there may be millions.
    found = {part: (array("d"), array("d")) for part in COLOURS}
    for row in rows:
        for part, (steps, losses) in found.items():
            loss = row.get(f"{part}/loss")
            if loss is not None and abs(loss) < LARGEST:
                steps.append(row["step"])
                losses.append(loss)
    return {part: (np.array(steps), np.array(losses)) for part, (steps, losses) in found.items() if steps}


def _fit(content: RunPlots, parts: Mapping[str, Part]) -> Figure:
    figure, (axes,) = page(
        content.title, content.heading("Data and fit"), content.feature_names[0], content.target_name
    )
    _points(axes, content, {part: (features[:, 0], target) for part, (features, target, _) in parts.items()})
    for part, errors in content.errors.items():
        _error_bars(axes, part, content.parts[part], errors)
    if content.line is not None:
        x, y = (np.asarray(column, np.float64) for column in content.line)
        axes.plot(x, np.where(_usable(x, y), y, np.nan), color=INK, linewidth=1.6, label="fit", zorder=3)
        _bands(axes, x, content.bands)
    if "test" in parts:
        features, _, prediction = parts["test"]
        shown, count = _thin(len(prediction), MAX_CROSSES), len(prediction)
        label = "predicted for test" if len(shown) == count else _label("predicted", count, MAX_CROSSES)
        style: Any = {"color": COLOURS["test"], "markersize": 5, "markeredgewidth": 1.4, "zorder": 4}
        axes.plot(features[shown, 0], prediction[shown], "x", label=label, **style)
    legend(figure, axes)
    return figure


def _error_bars(axes: Axes, part: str, rows: Part, errors: Array) -> None:
    """Draw one standard deviation on each side of the points, if there are few enough to see them."""
    x, y = rows[0][:, 0], rows[1]
    usable = _usable(x, y, errors)
    if usable.sum() <= MAX_ERROR_BARS:
        style: Any = {"fmt": "none", "ecolor": COLOURS[part], "elinewidth": 0.8, "alpha": 0.6, "zorder": 2}
        axes.errorbar(x[usable], y[usable], errors[usable], **style)


def _bands(axes: Axes, x: Array, bands: Mapping[str, tuple[Array, Array]]) -> None:
    """Draw bands around a line, as far as they leave at least half of the height to what is drawn already."""
    bottom, top = axes.get_ylim()
    ends = [bottom, top]
    for (name, (low, high)), alpha in zip(bands.items(), (0.25, 0.1), strict=False):
        usable = _usable(x, low, high)
        axes.fill_between(x, low, high, where=usable, color=INK, alpha=alpha, linewidth=0, label=name, zorder=1.5)
        ends += [*low[usable], *high[usable]]
    spare = (top - bottom) / 2
    axes.set_ylim(max(min(ends), bottom - spare), min(max(ends), top + spare))


def _agreement(content: RunPlots, parts: Mapping[str, Part]) -> Figure:
    """Draw the predicted against the true values, for fits with several features."""
    name = content.target_name
    figure, (axes,) = page(
        content.title, content.heading("Predicted against true"), f"true {name}", f"predicted {name}"
    )
    _points(axes, content, {part: (target, prediction) for part, (_, target, prediction) in parts.items()})
    targets = np.concatenate([target for _, target, _ in parts.values()])
    ends = [targets.min(), targets.max()]
    axes.plot(ends, ends, color=INK, linewidth=1.2, label="predicted = true", zorder=3)
    legend(figure, axes)
    return figure


def _loss(content: RunPlots, curves: Mapping[str, tuple[Array, Array]]) -> Figure:
    figure, (axes,) = page(content.title, "Loss", "step", "loss")
    for name, (step, loss) in curves.items():
        count = len(step)
        shown = _thin(count, MAX_POINTS)
        style: Any = {"color": COLOURS[name], "linewidth": 1.6 if count <= 1000 else 0.9, "markersize": 3.5}
        label = name if len(shown) == count else _label(name, count, MAX_POINTS)
        axes.plot(step[shown], loss[shown], "o-" if count <= 50 else "-", label=label, **style)
    if content.step is not None:
        label = f"selected: step {content.step:,}"
        axes.axvline(content.step, color=INK, linewidth=0.9, linestyle="-.", label=label, zorder=1.5)
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    losses = np.concatenate([loss for _, loss in curves.values()])
    levels = {name: level for name, level in content.levels.items() if _fits(level, losses)}
    for (name, level), dashes in zip(levels.items(), ("--", ":"), strict=False):
        axes.axhline(level, color=INK, linewidth=0.9, linestyle=dashes, label=f"{name} ({level:.4g})", zorder=1.5)
    log_if_wide(axes, np.concatenate([losses, list(levels.values())]))
    legend(figure, axes)
    return figure


def _fits(level: float, losses: Array) -> bool:
    """Return whether the curves stay readable with a level: at most four times flatter, or in two decades."""
    low, high = float(losses.min()), float(losses.max())
    below, above = min(low, level), max(high, level)
    if below <= 0 or above > LARGEST:
        return False
    if above <= 10 * below:
        return low == high or above - below <= 4 * (high - low)
    return math.log10(above / below) <= max(2, 4 * math.log10(high / low))


def _residuals(content: RunPlots, parts: Mapping[str, Part]) -> Figure:
    """Draw target minus prediction: against the prediction, and as a histogram at its side."""
    name = content.target_name
    figure, (axes, counts) = page(
        content.title, content.heading("Residuals"), f"predicted {name}", f"true − predicted {name}", (3, 1)
    )
    residuals = {part: target - prediction for part, (_, target, prediction) in parts.items()}
    _points(axes, content, {part: (prediction, residuals[part]) for part, (_, _, prediction) in parts.items()})
    reach = max(float(np.abs(values).max()) for values in residuals.values()) * 1.08 or 1.0
    bins = min(max(math.isqrt(sum(map(len, residuals.values()))), 8), 40)
    edges = np.linspace(-reach, reach, bins + 1).tolist()
    bars: Any = {"color": [COLOURS[part] for part in residuals], "edgecolor": "white", "linewidth": 0.4}
    counts.hist([*residuals.values()], edges, stacked=True, orientation="horizontal", **bars)
    counts.locator_params(axis="x", integer=True, nbins=3)
    counts.tick_params(labelleft=False)
    counts.yaxis.get_offset_text().set_visible(False)
    counts.set_xlabel("rows")
    for side in (axes, counts):
        side.axhline(0, color=INK, linewidth=1.2, zorder=3)
        side.set_ylim(-reach, reach)
    legend(figure, axes)
    return figure


def _points(axes: Axes, content: RunPlots, parts: Mapping[str, tuple[Array, Array]]) -> None:
    """Draw x and y of each part as dots."""
    size, alpha = dot(sum(min(len(x), MAX_POINTS) for x, _ in parts.values()))
    for part, (x, y) in parts.items():
        shown = _thin(len(x), MAX_POINTS)
        style: Any = {"color": COLOURS[part], "markersize": size, "markeredgewidth": 0, "alpha": alpha}
        label = _label(part, content.totals.get(part, len(x)), len(shown))
        axes.plot(x[shown], y[shown], "o", label=label, **style)


def _label(name: str, count: int, most: int) -> str:
    """Return the text of a legend: "test (10 rows)", or "train (10,000 of 25,000 rows)" for a part of the points."""
    drawn = f"{most:,} of " if count > most else ""
    return f"{name} ({drawn}{count:,} {'rows' if count > 1 else 'row'})"


def _thin(count: int, most: int) -> NDArray[np.intp]:
    """Return the indices of `most` evenly spaced ones of `count` points, with the first and the last; or of all."""
    return np.linspace(0, count - 1, min(count, most)).astype(np.intp)


# -------------------------------------------------------------------------------------------------- style of all plots


@contextmanager
def plot_style() -> Iterator[None]:
    """Draw and save plots in the style of this program inside the context. Matplotlib's settings are restored.

    Neither the user's matplotlibrc nor MPLBACKEND changes a plot.
    """
    matplotlib = _matplotlib()
    ticks: Any = {"color": SOFT, "labelsize": 8.5, "major.size": 3}
    with matplotlib.rc_context(_users_settings(matplotlib)):
        matplotlib.rc("figure", figsize=(7.2, 4.6), dpi=110)
        matplotlib.rc("text", parse_math=False)  # a dollar sign in a name is a dollar sign
        matplotlib.rc("axes", grid=True, axisbelow=True, edgecolor=SOFT, labelcolor=INK, labelsize=9)
        matplotlib.rc("axes.spines", top=False, right=False)
        matplotlib.rc("axes.formatter", limits=(-3, 5))  # keeps the numbers within the margin
        matplotlib.rc("grid", color=GRID, linewidth=0.6)
        matplotlib.rc("xtick", **ticks)
        matplotlib.rc("ytick", **ticks)
        matplotlib.rc("legend", fontsize=8.5, labelcolor=INK, frameon=False, borderpad=0, borderaxespad=0)
        matplotlib.rc("legend", handlelength=1.5, handletextpad=0.5, columnspacing=1.2)
        yield


def _matplotlib() -> Any:
    """Return matplotlib, whose import fails for a backend that is not installed, and for a matplotlibrc that it cannot read."""
    if "matplotlib" in sys.modules:
        return sys.modules["matplotlib"]
    with _without_settings():
        import matplotlib
    with suppress(Exception):  # a program that uses matplotlib itself later on has its user's settings
        file = matplotlib.matplotlib_fname()
        if os.path.isfile(file) and os.path.getsize(file) <= MIB:  # a FIFO would wait for a writer
            matplotlib.rc_file(file, use_default_template=False)
    return matplotlib


@contextmanager
def _without_settings() -> Iterator[None]:
    """Hide the user's settings from the import of matplotlib: MPLBACKEND, and a matplotlibrc, first of the current folder."""
    # A notebook sets MPLBACKEND to its own backend, for its own processes and for those that it starts.
    hidden = {"MPLBACKEND": os.environ.pop("MPLBACKEND", None), "MATPLOTLIBRC": os.environ.get("MATPLOTLIBRC")}
    os.environ["MATPLOTLIBRC"] = os.devnull
    exists = os.path.exists
    # The only place that is searched before MATPLOTLIBRC, and by this name. No other folder can be made the current one:
    # other threads use relative paths.
    os.path.exists = lambda path: path != "matplotlibrc" and exists(path)
    try:
        yield
    finally:
        os.path.exists = exists
        del os.environ["MATPLOTLIBRC"]
        os.environ.update({name: value for name, value in hidden.items() if value is not None})


def _users_settings(matplotlib: Any) -> dict[str, Any]:
    """Return the settings that differ from matplotlib's own defaults, with the defaults as values."""
    # All of them are reset by `rcdefaults`, which reads a folder of style sheets first.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of settings that a later version will remove
        return {
            name: value
            for name, value in matplotlib.rcParamsDefault.items()
            if not name.startswith(("backend", "interactive", "toolbar")) and matplotlib.rcParams[name] != value
        }


def page(
    title: str, heading: str, x_label: str, y_label: str, widths: Sequence[int] = (1,)
) -> tuple[Figure, list[Axes]]:
    """Return a page with a heading, and its axes from left to right. The labels belong to the first."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure()
    FigureCanvasAgg(figure)  # draws without a window, whatever backend the process has
    figure.text(LEFT, 0.945, heading, color=INK, fontsize=12, fontweight="bold")
    figure.text(RIGHT, 0.945, short(title, 60), color=SOFT, fontsize=9, ha="right")
    axes = [*figure.subplots(1, len(widths), squeeze=False, width_ratios=widths, gridspec_kw={"wspace": 0.06})[0]]
    axes[0].set(xlabel=short(x_label, 80), ylabel=short(y_label, 50))
    return figure, axes


def dot(count: int) -> tuple[float, float]:
    """Return diameter in points and opacity of each of `count` dots: the more dots, the smaller and paler."""
    size = min(5.0, max(2.0, 20 / count**0.3))
    return size, min(0.85, size / 5)


def legend(figure: Figure, axes: Axes) -> None:
    """Add the legend between heading and axes, where it covers no data: one row, or rows of three when it is long."""
    handles, labels = axes.get_legend_handles_labels()
    long = sum(len(label) + 6 for label in labels) > 110  # in letters, with the sample before each
    columns = 3 if long else len(labels)
    legend = figure.legend(handles, labels, loc="upper left", bbox_to_anchor=(LEFT, 0.925), ncols=columns)
    for line in legend.get_lines():
        line.set(alpha=1, markersize=5)  # the dots of a crowd are too small and pale to show a colour
    figure.subplots_adjust(left=LEFT, right=RIGHT, bottom=0.125, top=0.88 - 0.04 * math.ceil(len(labels) / columns))


def log_if_wide(axes: Axes, values: Array, side: Literal["x", "y"] = "y") -> None:
    """Make an axis logarithmic if its values are positive and span more than a decade. Its labels are like "0.01"."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = float(values.min()), float(values.max())
    if low <= 0 or (decades := math.log10(high) - math.log10(low)) <= 1:
        return
    axes.set(**{f"{side}scale": "log"})
    axis: Axis = getattr(axes, f"{side}axis")
    axis.set_major_locator(LogLocator(subs=(1,) if decades > 3 else (1, 2, 5), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # by default formulas, which are slow
    axis.set_minor_locator(NullLocator())


def short(text: str, length: int) -> str:
    """Return the text, cut to `length` letters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG file. The same figure gives the same bytes."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # of a name in a script that the font lacks: boxes are drawn
        figure.savefig(file, format="png", metadata={"Software": None}, pil_kwargs={"compress_level": 1})
    return file.getvalue()
