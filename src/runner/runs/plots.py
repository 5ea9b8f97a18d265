"""The figures of a run, drawn once at its end: data and fit, loss, residuals; and the page that others are drawn on.

Colours are of Okabe and Ito's palette ("Color Universal Design", 2008), which colour-blind readers tell apart. Every
size is fixed beforehand and every text is plain, so that nothing is laid out twice and no formula is typeset.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Array: TypeAlias = NDArray[np.floating[Any]]

POINTS = 10_000  # more of one part are not told apart, and cost time and bytes
MARKS = 50  # more crosses on a line hide it
LARGEST = 1e100  # beyond it the arithmetic of the axes overflows
DPI = 110
COLOURS = {"train": "#0072B2", "valid": "#009E73", "test": "#D55E00"}
INK, SOFT, GRID = "#222222", "#666666", "#E4E4E4"
LEFT, RIGHT = 0.11, 0.975  # of the width of the page


@dataclass(frozen=True)
class Picture:
    """What is drawn.

    `parts`: "train", "valid" or "test" → (features [rows, k], target [rows], prediction [rows]), in the file's units.
    `line`: for one feature, x [m] ascending and the fitted y [m] over the range that is drawn.
    `rows`: the rows of `metrics.jsonl`; "train/loss" and "valid/loss" are drawn.
    `levels`: name → a loss that is known beforehand, drawn as a thin line unless it would flatten the curves.
    """

    title: str
    feature_names: Sequence[str]
    target_name: str
    parts: Mapping[str, tuple[Array, Array, Array]]
    line: tuple[Array, Array] | None
    rows: Sequence[Mapping[str, Any]]
    levels: Mapping[str, float] = field(default_factory=dict)


def draw(picture: Picture) -> dict[str, bytes]:
    """PNG files "fit", "loss" and "residuals"; the same input gives the same bytes.

    Values that are not finite are left out, and so is a figure that would be empty. Of a part or a curve with more than
    10,000 points every n-th is drawn, and the legend says so.
    """
    parts = {name: part for name in COLOURS if (part := _finite(picture.parts.get(name))) is not None}
    curves = {part: curve for part in COLOURS if len((curve := _curve(picture.rows, f"{part}/loss"))[0])}
    figures: dict[str, Figure] = {}
    if parts:
        figures["fit"] = _fit(picture, parts) if len(picture.feature_names) == 1 else _agreement(picture, parts)
        figures["residuals"] = _residuals(picture, parts)
    if curves:
        figures["loss"] = _loss(picture, curves)
    return {name: png(figure) for name, figure in sorted(figures.items())}


def _usable(*columns: Array) -> NDArray[np.bool_]:
    """Which rows can be drawn in all columns."""
    usable = np.ones(len(columns[0]), np.bool_)
    for column in columns:
        usable &= np.abs(column) < LARGEST
    return usable


def _finite(part: tuple[Array, Array, Array] | None) -> tuple[Array, Array, Array] | None:
    """The rows of a part that can be drawn, in float64; None where there are none."""
    if part is None:
        return None
    features, target, prediction = (np.asarray(column, np.float64) for column in part)
    usable = _usable(target, prediction, *features.T)
    return (features[usable], target[usable], prediction[usable]) if usable.any() else None


def _curve(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[Array, Array]:
    points = np.array([(row["step"], row[name]) for row in rows if name in row], np.float64).reshape(-1, 2)
    points = points[_usable(points[:, 1])]
    return points[:, 0], points[:, 1]


def _fit(picture: Picture, parts: Mapping[str, tuple[Array, Array, Array]]) -> Figure:
    figure, (axes,) = page(picture.title, "Data and fit", picture.feature_names[0], picture.target_name)
    _points(axes, {part: (features[:, 0], target) for part, (features, target, _) in parts.items()})
    if picture.line is not None:
        x, y = (np.asarray(column, np.float64) for column in picture.line)
        axes.plot(x, np.where(_usable(x, y), y, np.nan), color=INK, linewidth=1.6, label="fit", zorder=3)
    if "test" in parts:
        features, _, prediction = parts["test"]
        chosen = _thin(len(prediction), MARKS)
        axes.plot(
            features[chosen, 0],
            prediction[chosen],
            linestyle="none",
            marker="x",
            markersize=5,
            markeredgewidth=1.4,
            color=COLOURS["test"],
            label=_label("predicted", len(prediction), MARKS) if len(prediction) > MARKS else "predicted for test",
            zorder=4,
        )
    legend(figure, axes)
    return figure


def _agreement(picture: Picture, parts: Mapping[str, tuple[Array, Array, Array]]) -> Figure:
    """Predicted against true, which is where fits with several features can be looked at."""
    name = picture.target_name
    figure, (axes,) = page(picture.title, "Predicted against true", f"true {name}", f"predicted {name}")
    _points(axes, {part: (target, prediction) for part, (_, target, prediction) in parts.items()})
    targets = np.concatenate([target for _, target, _ in parts.values()])
    ends = [targets.min(), targets.max()]
    axes.plot(ends, ends, color=INK, linewidth=1.2, label="predicted = true", zorder=3)
    legend(figure, axes)
    return figure


def _loss(picture: Picture, curves: Mapping[str, tuple[Array, Array]]) -> Figure:
    figure, (axes,) = page(picture.title, "Loss", "step", "loss")
    for name, (step, loss) in curves.items():
        chosen, few = _thin(len(step), POINTS), len(step) <= 50
        axes.plot(
            step[chosen],
            loss[chosen],
            color=COLOURS[name],
            linewidth=1.6 if len(step) <= 1000 else 0.9,
            marker="o" if few else None,
            markersize=3.5,
            label=_label(name, len(step), POINTS) if len(step) > POINTS else name,
        )
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    losses = np.concatenate([loss for _, loss in curves.values()])
    levels = {name: level for name, level in picture.levels.items() if _fits(level, losses)}
    for (name, level), style in zip(levels.items(), ("--", ":"), strict=False):
        axes.axhline(level, color=INK, linewidth=0.9, linestyle=style, label=f"{name} ({level:.4g})", zorder=1.5)
    log_where_wide(axes, np.concatenate([losses, list(levels.values())]))
    legend(figure, axes)
    return figure


def _fits(level: float, losses: Array) -> bool:
    """Whether a level leaves curves of these losses readable: no more than four times flatter, or in two decades."""
    low, high = float(losses.min()), float(losses.max())
    below, above = min(low, level), max(high, level)
    if below <= 0 or above > LARGEST:
        return False
    if above <= 10 * below:
        return low == high or above - below <= 4 * (high - low)
    return math.log10(above / below) <= max(2, 4 * math.log10(high / low))


def _residuals(picture: Picture, parts: Mapping[str, tuple[Array, Array, Array]]) -> Figure:
    """Target minus prediction: against the prediction, and how often."""
    name = picture.target_name
    figure, (axes, beside) = page(picture.title, "Residuals", f"predicted {name}", f"true − predicted {name}", (3, 1))
    residuals = {part: target - prediction for part, (_, target, prediction) in parts.items()}
    _points(axes, {part: (prediction, residuals[part]) for part, (_, _, prediction) in parts.items()})
    reach = max(float(np.abs(values).max()) for values in residuals.values()) * 1.08 or 1.0
    _stack(beside, residuals, reach)
    for side in (axes, beside):
        side.axhline(0, color=INK, linewidth=1.2, zorder=3)
        side.set_ylim(-reach, reach)
    legend(figure, axes)
    return figure


def _stack(axes: Axes, residuals: Mapping[str, Array], reach: float) -> None:
    """A histogram that lies on its side, the parts one after the other in each bar."""
    count = sum(len(values) for values in residuals.values())
    edges = np.linspace(-reach, reach, min(max(math.isqrt(count), 8), 40) + 1)
    start = np.zeros(len(edges) - 1)
    for part, values in residuals.items():
        rows = np.histogram(values, edges)[0]
        style: Any = {"color": COLOURS[part], "edgecolor": "white", "linewidth": 0.4}
        axes.barh(edges[:-1], rows, np.diff(edges), start, align="edge", **style)
        start = start + rows
    axes.locator_params(axis="x", integer=True, nbins=3)
    axes.tick_params(labelleft=False)
    axes.yaxis.get_offset_text().set_visible(False)
    axes.set_xlabel("rows", color=INK, fontsize=9)


def page(
    title: str, heading: str, x_label: str, y_label: str, widths: Sequence[int] = (1,)
) -> tuple[Figure, list[Axes]]:
    """A page with a heading, and axes side by side; the labels belong to the first."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), dpi=DPI)
    plain: Any = {"parse_math": False, "fontsize": 9}  # a dollar sign in a name is a dollar sign
    figure.text(LEFT, 0.945, heading, color=INK, parse_math=False, fontsize=12, fontweight="bold")
    figure.text(RIGHT, 0.945, short(title, 60), color=SOFT, ha="right", **plain)
    grid = figure.add_gridspec(1, len(widths), width_ratios=widths, wspace=0.06)
    sides = [figure.add_subplot(grid[0, number]) for number in range(len(widths))]
    for axes in sides:
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(SOFT)
        axes.tick_params(colors=SOFT, labelsize=8.5, length=3)
        axes.ticklabel_format(scilimits=(-3, 5))  # keeps the numbers within the margin
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_offset_text().set_fontsize(8.5)
    sides[0].set_xlabel(short(x_label, 80), color=INK, **plain)
    sides[0].set_ylabel(short(y_label, 50), color=INK, **plain)
    return figure, sides


def _points(axes: Axes, parts: Mapping[str, tuple[Array, Array]]) -> None:
    """The x and y of each part as dots, the smaller and paler the more there are."""
    size, alpha = dot(sum(min(len(x), POINTS) for x, _ in parts.values()))
    for part, (x, y) in parts.items():
        chosen = _thin(len(x), POINTS)
        style: Any = {
            "linestyle": "none",
            "marker": "o",
            "markersize": size,
            "markeredgewidth": 0,
            "alpha": alpha,
        }
        axes.plot(x[chosen], y[chosen], color=COLOURS[part], label=_label(part, len(x), POINTS), **style)


def dot(crowd: int) -> tuple[float, float]:
    """Diameter in points and opacity of each of so many dots."""
    size = min(5.0, max(2.0, 20 / crowd**0.3))
    return size, min(0.85, size / 5)


def _label(name: str, count: int, most: int) -> str:
    """A legend's text: "test (10 rows)", or "train (10,000 of 25,000 rows)" where it is thinned."""
    drawn = f"{most:,} of " if count > most else ""
    return f"{name} ({drawn}{count:,} {'rows' if count > 1 else 'row'})"


def _thin(count: int, most: int) -> NDArray[np.intp]:
    """Which of `count` points are drawn: all, or `most` at even distances with the first and the last."""
    return np.linspace(0, count - 1, min(count, most)).astype(np.intp)


def legend(figure: Figure, axes: Axes) -> None:
    """A row between heading and axes, where it covers no data; rows of three when it is long."""
    handles, labels = axes.get_legend_handles_labels()
    long = sum(len(label) + 6 for label in labels) > 110  # in letters, with the sample before each
    columns = 3 if long else len(labels)
    legend = figure.legend(
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=(LEFT, 0.925),
        ncols=columns,
        fontsize=8.5,
        labelcolor=INK,
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        handlelength=1.5,
        handletextpad=0.5,
        columnspacing=1.2,
    )
    for line in legend.get_lines():
        line.set(alpha=1, markersize=5)  # the points of a crowd are too small and pale to name a colour
    for text in legend.get_texts():
        text.set_parse_math(False)
    figure.subplots_adjust(left=LEFT, right=RIGHT, bottom=0.125, top=0.88 - 0.04 * math.ceil(len(labels) / columns))


def log_where_wide(axes: Axes, values: Array, side: Literal["x", "y"] = "y") -> None:
    """A log axis for positive values over more than a decade, with numbers such as "0.01" or "1e-05".

    By default its numbers would be powers of ten, typeset as formulas.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = float(values.min()), float(values.max())
    if low <= 0 or (decades := math.log10(high) - math.log10(low)) <= 1:
        return
    axes.set(**{f"{side}scale": "log"})
    axis: Axis = getattr(axes, f"{side}axis")
    axis.set_major_locator(LogLocator(subs=(1,) if decades > 3 else (1, 2, 5), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def png(figure: Figure) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)  # makes itself the figure's canvas
    target = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in a script that the font lacks: boxes are drawn
        figure.savefig(target, format="png", dpi=DPI, metadata={"Software": None}, pil_kwargs={"compress_level": 1})
    return target.getvalue()
