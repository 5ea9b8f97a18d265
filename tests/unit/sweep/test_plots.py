"""The plots of a sweep: positions, colours and labels."""

from __future__ import annotations

import io
import math
import re
import subprocess
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread

from runner.runs.plots import COLOURS, INK, PALETTE
from runner.sweep.plots import SERIES, draw
from runner.sweep.results import Member, Results, settings

INF, NAN = math.inf, math.nan


def results(rows: Sequence[tuple[Any, ...]], swept: Sequence[str], **named: Any) -> Results:
    """Return members from rows of their swept values, with the metric, or the state if there is none, at the end."""
    members = []
    for number, (*values, last) in enumerate(rows):
        at = dict(zip(swept, values, strict=True))
        state, metrics = (last, {}) if isinstance(last, str) else ("finished", {"valid/rmse": last})
        members.append(Member(number, at, state, metrics=metrics))
    given: dict[str, Any] = {"name": "linreg", "metric": "valid/rmse", "larger_is_better": False} | named
    return Results(swept=swept, members=members, **given)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """Figures of the PNG files, by the label of their x axis."""
    figures: dict[str, Figure] = {}
    save = Figure.savefig

    def keep(figure: Figure, *arguments: Any, **options: Any) -> None:
        figures[figure.axes[0].get_xlabel()] = figure
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def dots(axes: Axes) -> list[tuple[float, float]]:
    return [tuple(point) for point in axes.collections[0].get_offsets().tolist()]  # type: ignore[union-attr]


def dot_colours(axes: Axes) -> list[str]:
    return [to_hex(colour) for colour in axes.collections[0].get_facecolors()]  # type: ignore[attr-defined]


def legend(figure: Figure) -> dict[str, str]:
    """Return the colours of the legend by text."""
    (found,) = figure.legends
    return {
        text.get_text(): to_hex(line.get_color())
        for text, line in zip(found.get_texts(), found.get_lines(), strict=True)
    }


def lines(axes: Axes) -> list[list[list[float]]]:
    """Return x and y of the lines that are not only for the legend."""
    return [[np.asarray(column).tolist() for column in line.get_data()] for line in axes.lines if len(line.get_xdata())]  # type: ignore[arg-type]


def test_a_png_for_each_swept_key_but_the_seed_and_the_same_bytes_again() -> None:
    given = results([(0.1, 0, "a", 1.0), (0.2, 1, "b", 2.0)], ["optimizer.lr", "seed", "data/split"])
    files = draw(given)
    assert list(files) == ["optimizer.lr", "data.split"]
    for png in files.values():
        assert imread(io.BytesIO(png)).shape == (506, 792, 4)
    assert draw(given) == files


def test_each_member_is_a_dot_and_each_lost_one_a_cross_at_the_edge(drawn: dict[str, Figure]) -> None:
    rows = [
        (0.1, 2.0),
        (0.2, 1.0),
        (0.3, NAN),
        (0.4, "failed"),
        (0.4, INF),
        (0.5, "pruned"),
        (0.6, 1e101),
        (0.7, "waiting"),
    ]
    draw(results(rows, ["data.noise"]))
    figure = drawn["data.noise"]
    (axes,) = figure.axes
    assert dots(axes) == [(0.1, 2.0), (0.2, 1.0)]
    assert dot_colours(axes) == [COLOURS["valid"].lower()] * 2
    assert lines(axes) == [[[0.3, 0.4, 0.6], [1, 1, 1]]]
    assert axes.lines[-1].get_transform() == axes.get_xaxis_transform()  # 1 is the upper edge
    assert legend(figure) == {"trial": COLOURS["valid"].lower(), "failed (4)": INK}
    assert [text.get_text() for text in figure.texts] == [
        "valid/rmse by data.noise",
        "linreg: 8 trials, 1 failed, 1 pruned, 1 waiting",
    ]
    assert axes.get_ylabel() == "valid/rmse"


@pytest.mark.parametrize(
    ("x", "y", "scales"),
    [
        ([1e-4, 1e-2], [1.0, 2.0], ("log", "linear")),
        ([0.1, 0.2], [1e-3, 1.0], ("linear", "log")),
        ([1e-4, 1e-2], [1e-3, 1.0], ("log", "log")),
        ([0.0, 1e-2], [0.0, 1.0], ("linear", "linear")),
        ([-1.0, 100.0], [-1.0, 100.0], ("linear", "linear")),
        ([1, 10], [1.0, 10.0], ("linear", "linear")),
        ([16, 256], [1.0, 9.0], ("log", "linear")),
    ],
)
def test_an_axis_is_logarithmic_over_more_than_a_decade(
    x: list[float], y: list[float], scales: tuple[str, str], drawn: dict[str, Figure]
) -> None:
    draw(results(list(zip(x, y, strict=True)), ["optimizer.lr"]))
    (axes,) = drawn["optimizer.lr"].axes
    assert (axes.get_xscale(), axes.get_yscale()) == scales


def test_failed_members_and_marks_widen_the_axis(drawn: dict[str, Figure]) -> None:
    rows = [(0.001, 1.0), (0.002, 1.0), (0.5, "failed")]
    draw(results(rows, ["optimizer.lr"]))
    (axes,) = drawn["optimizer.lr"].axes
    assert axes.get_xscale() == "log"
    assert axes.get_xlim()[1] > 0.5
    draw(results(rows[:2], ["optimizer.lr"]), {"optimizer.lr": [(0.1, "limit")]})
    (axes,) = drawn["optimizer.lr"].axes
    assert axes.get_xscale() == "log"
    assert axes.get_xlim()[1] > 0.1


def test_settings_with_several_seeds_have_their_mean_and_interval(drawn: dict[str, Figure]) -> None:
    random = np.random.default_rng(0)
    rows = [(x, seed, x + random.standard_normal()) for x in (0.3, 0.1, 0.2) for seed in range(8)]
    given = results([*rows, (0.4, 0, 0.5), (0.4, 1, "failed")], ["data.noise", "seed"])
    draw(given)
    figure = drawn["data.noise"]
    (axes,) = figure.axes
    found = {setting.values["data.noise"]: setting.estimate("valid/rmse") for setting in settings(given)}
    order = sorted(found)
    assert [[0.4], [1.0]] in lines(axes)
    assert [order, [found[x].mean for x in order]] in lines(axes)
    (band,) = axes.collections[1].get_paths()
    corners = {tuple(corner) for corner in np.asarray(band.vertices).tolist()}
    # The intervals of eight seeds are within the axes; one seed has none.
    assert corners == {(x, y) for x in order[:3] for y in (found[x].low, found[x].high)}
    assert legend(figure)["mean and 95 % interval"] == INK


def test_an_interval_wider_than_the_plot_does_not_widen_it(drawn: dict[str, Figure]) -> None:
    rows = [(x, seed, 10.0 ** (x + seed)) for x in (1, 2, 3) for seed in range(2)]  # the intervals go far below 0
    draw(results(rows, ["k", "seed"]))
    (axes,) = drawn["k"].axes
    low, high = axes.get_ylim()
    assert axes.get_yscale() == "log"
    assert 5 < low < 10
    assert 1e4 < high < 2e4
    (band,) = axes.collections[1].get_paths()
    heights = np.asarray(band.vertices)[:, 1]
    assert (heights.min(), heights.max()) == (low, high)


def test_the_axis_is_widened_for_intervals_up_to_a_limit(drawn: dict[str, Figure]) -> None:
    """Intervals of three seeds are about twice as wide as the range of the members, those of two seeds twelve times."""
    three = [(x, seed, x + seed / 2) for x in (1, 2) for seed in range(3)]
    draw(results(three, ["k", "seed"]))
    (axes,) = drawn["k"].axes
    found = settings(results(three, ["k", "seed"]))
    low, high = axes.get_ylim()
    assert low < min(setting.estimate("valid/rmse").low for setting in found)
    assert high > max(setting.estimate("valid/rmse").high for setting in found)
    draw(results(three[:2] + three[3:5], ["k", "seed"]))
    (axes,) = drawn["k"].axes
    low, high = axes.get_ylim()
    assert 0 < low < 1  # the members are from 1 to 2.5, with a margin of a twentieth
    assert 2.5 < high < 3.5


def test_a_sweep_of_seeds_shows_their_mean(drawn: dict[str, Figure]) -> None:
    given = results([(seed, 1 + seed % 3 / 2) for seed in range(1, 100)], ["seed"])
    assert list(draw(given)) == ["seed"]
    (axes,) = drawn["seed"].axes
    found = settings(given)[0].estimate("valid/rmse")
    assert axes.get_xscale() == "linear"  # the size of a seed means nothing
    assert [list(axes.get_xlim()), [found.mean, found.mean]] in lines(axes)
    (band,) = axes.collections[1].get_paths()
    corners = {tuple(corner) for corner in np.asarray(band.vertices).tolist()}
    assert corners == {(x, y) for x in axes.get_xlim() for y in (found.low, found.high)}
    assert "mean and 95 % interval" in legend(drawn["seed"])


def test_without_repetitions_there_are_no_means(drawn: dict[str, Figure]) -> None:
    draw(results([(0.1, 1.0), (0.2, 2.0)], ["data.noise"]))
    draw(results([(0, 1.0), (1, "failed")], ["seed"]))
    for figure in drawn.values():
        assert "mean and 95 % interval" not in legend(figure)
    assert lines(drawn["data.noise"].axes[0]) == []


def test_a_second_key_with_few_values_has_a_colour_and_a_mean_for_each(drawn: dict[str, Figure]) -> None:
    rows = [(lr, decay, seed, 1 + lr + decay + seed) for lr in (1.0, 2.0) for decay in (0.5, 0.0) for seed in range(3)]
    draw(results(rows, ["optimizer.lr", "optimizer.weight_decay", "seed"]))
    figure = drawn["optimizer.lr"]
    (axes,) = figure.axes
    texts, colours = list(legend(figure)), list(legend(figure).values())
    assert texts == ["weight_decay 0", "weight_decay 0.5", "mean and 95 % interval"]
    assert dot_colours(axes) == ([colours[1]] * 3 + [colours[0]] * 3) * 2
    assert [[1.0, 2.0], [3.0, 4.0]] in lines(axes)
    assert [[1.0, 2.0], [3.5, 4.5]] in lines(axes)
    assert list(legend(drawn["optimizer.weight_decay"])) == ["lr 1", "lr 2", "mean and 95 % interval"]


def test_a_second_key_with_many_values_has_a_scale_of_colours(drawn: dict[str, Figure]) -> None:
    rows = [(x, 10.0**-x, seed, 1.0 + x) for x in range(9) for seed in range(2)]
    draw(results(rows, ["k", "optimizer.lr", "seed"]))
    figure = drawn["k"]
    assert list(legend(figure)) == ["lr 1e-08", "lr 1e-06", "lr 0.0001", "lr 0.01", "lr 1"]
    found = dot_colours(figure.axes[0])[::2]
    assert len(set(found)) == 9
    named = list(legend(figure).values())
    assert found[::-2] == named
    # Equal ratios are equal steps. The green of viridis grows monotonically.
    green = np.array([int(colour[3:5], 16) for colour in found])
    assert (np.diff(green) < 0).all()
    assert lines(figure.axes[0]) == []


def test_no_means_are_drawn_if_a_third_key_varies(drawn: dict[str, Figure]) -> None:
    rows = [(a, b, c, seed, 1.0 + a + b + c) for a in (1, 2) for b in (1, 2) for c in (1, 2) for seed in range(2)]
    draw(results(rows, ["a", "b", "c", "seed"]))
    for key in "abc":
        assert "mean and 95 % interval" not in legend(drawn[key])


def test_values_without_an_order_stand_side_by_side(drawn: dict[str, Figure]) -> None:
    rows = [(model, seed, place + seed / 10) for place, model in enumerate(["mlp", "linear"], 1) for seed in range(3)]
    draw(results([*rows, ("tree", 0, "failed")], ["model", "seed"]))
    (axes,) = drawn["model"].axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["mlp", "linear", "tree"]
    assert dots(axes) == [(0, 1.0), (0, 1.1), (0, 1.2), (1, 2.0), (1, 2.1), (1, 2.2)]
    assert [[2], [1]] in lines(axes)
    x, y = next(line for line in lines(axes) if len(line[0]) == 2)
    assert x == [0, 1]
    assert y == pytest.approx([1.1, 2.1], rel=1e-15)  # the mean of 1.0, 1.1, 1.2 is the float next to 1.1
    assert len(axes.collections[1].get_paths()) == 2  # a bar for each, and no band between unordered values


def test_colours_are_shifted_apart_for_values_without_an_order(drawn: dict[str, Figure]) -> None:
    rows = [(model, update, 1.0) for model in ("mlp", "linear") for update in ("manual", "optimizer")]
    draw(results(rows, ["model", "update"]))
    figure = drawn["model"]
    assert [x for x, _ in dots(figure.axes[0])] == [-0.3, 0.3, 0.7, 1.3]
    assert legend(figure) == {"update manual": PALETTE[0].lower(), "update optimizer": PALETTE[1].lower()}


def test_many_values_without_an_order_share_one_colour_and_some_have_no_name(drawn: dict[str, Figure]) -> None:
    rows = [([8] * depth, 0.1 * depth, 1.0) for depth in range(1, 31)]
    draw(results(rows, ["model.widths", "k"]))
    assert list(legend(drawn["k"])) == ["trial"]
    names = [label.get_text() for label in drawn["model.widths"].axes[0].get_xticklabels()]
    assert names[:2] == ["[8]", "[8, 8, …"]
    assert len(names) == 10


@pytest.mark.parametrize("kinds", [[1, None], [True, False], [1.0, INF], ["1", "2"]])
def test_only_finite_numbers_are_an_axis_of_numbers(kinds: list[Any], drawn: dict[str, Figure]) -> None:
    draw(results([(kind, 1.0) for kind in kinds], ["k"]))
    assert dots(drawn["k"].axes[0]) == [(0, 1.0), (1, 1.0)]


def test_marks_are_lines_with_their_labels_to_the_side_with_room(drawn: dict[str, Figure]) -> None:
    given = results([(0.001, 1.0), (1.0, 1.0)], ["optimizer.lr"])
    draw(given, {"optimizer.lr": [(0.002, "2/λmax"), (0.1, "$other$")], "momentum": [(0.9, "not swept")]})
    (axes,) = drawn["optimizer.lr"].axes
    assert lines(axes) == [[[0.002, 0.002], [0, 1]], [[0.1, 0.1], [0, 1]]]
    assert [
        (text.get_text().strip(), text.get_position()[0], text.get_horizontalalignment()) for text in axes.texts
    ] == [
        ("2/λmax", 0.002, "left"),
        ("$other$", 0.1, "right"),  # in the right half of a log axis
    ]
    assert not any(text.get_parse_math() for text in axes.texts)
    draw(results([(100, 1.0), (200, 1.0)], ["k"]), {"k": [(180, "within"), (1000, "beyond")]})
    assert [text.get_horizontalalignment() for text in drawn["k"].axes[0].texts] == ["left", "right"]


def test_nothing_is_drawn_without_a_metric() -> None:
    assert draw(results([], ["k"])) == {}
    assert draw(results([(1, "failed"), (2, "waiting")], ["k"], metric="")) == {}
    assert draw(results([(1, NAN), (2, INF)], ["k"])) == {}
    assert draw(results([(1.0,)], [])) == {}


@pytest.mark.parametrize("pruned", [0, 1, 1000])
def test_heading_and_title_do_not_overlap(pruned: int, drawn: dict[str, Figure]) -> None:
    key = "model." + "very_" * 20 + "long"
    draw(results([(1.0, "failed"), (1.0, 1.0)] + [(2.0, "pruned")] * pruned, [key], name="n" * 90))
    figure = next(iter(drawn.values()))
    heading, title = (text.get_window_extent() for text in figure.texts)
    assert heading.x1 < title.x0
    assert re.search(r"n…: [0-9,]+ trials, 1 failed", figure.texts[1].get_text())


@pytest.mark.parametrize(
    "given",
    [
        results([(0.1, 1.0)], ["k"]),
        results([(0.1, 0, 1.0), (0.1, 1, 1.0)], ["k", "seed"]),
        results([(0.1, 0, 1.0), (0.1, 1, 2.0)], ["k", "seed"]),
        results([(0, 1e99), (1, -1e99), (2, 1e-320)], ["seed"]),
        results([(0, 1.0), (1, NAN), (2, 1.0)], ["seed"]),
        results([(5e-324, 1.0), (9e99, 1.0)], ["k"]),
        results([(1e99, 0, 5e-324), (-1e99, 1, 9e99), (-1e99, 2, 9e99)], ["k", "seed"]),
        results([("$x^{$", 1.0), ("質量 $\\frac$", 2.0), ("", 1.0), ("a\nb", 1.0)], ["$k^{$"], name="$\\frac$" * 9),
        results([(a, b, 1.0) for a in (0, 1) for b in ("$x^{$", "$\\frac$")], ["$k^{$", "$n^{$"], metric="valid/rmse"),
        results([(1.0, None, 2.0), (2.0, [1], 3.0)], ["k", "model.widths"]),
    ],
)
def test_odd_input_is_drawn_without_a_warning(given: Results) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files = draw(given)
    assert len(files) == len(given.varied or given.swept)
    assert all(png.startswith(b"\x89PNG") for png in files.values())


def test_a_member_without_the_key_is_drawn(drawn: dict[str, Figure]) -> None:
    members = [Member(0, {"k": 1.0}, "finished", metrics={"a": 1.0}), Member(1, {}, "finished", metrics={"a": 2.0})]
    draw(Results("x", ["k"], members, "a", False))
    assert [label.get_text() for label in drawn["k"].axes[0].get_xticklabels()] == ["1.0", "null"]


def test_thousands_of_members_are_a_few_objects(drawn: dict[str, Figure]) -> None:
    """The time to draw depends on the number of artists, not of points."""
    random = np.random.default_rng(0)
    rows = [(lr, lr * seed, seed, random.uniform()) for lr in np.geomspace(1e-5, 1, 512).tolist() for seed in range(8)]
    draw(results([*rows, *((lr, 0.0, 9, "failed") for lr, *_ in rows)], ["optimizer.lr", "k", "seed"]))
    for figure in drawn.values():
        (axes,) = figure.axes
        assert len(dots(axes)) == 4096
        assert len(axes.lines) + len(axes.collections) + len(axes.texts) <= SERIES + 3


def test_importing_is_free_and_drawing_leaves_no_global_state() -> None:
    script = """
import sys
from runner.sweep.plots import draw
from runner.sweep.results import Member, Results
assert not [name for name in sys.modules if name.startswith(("matplotlib", "torch"))]
assert draw(Results("x", ["k"], [Member(0, {"k": 1}, "finished", metrics={"a": 1.0})], "a", False))
assert "matplotlib.pyplot" not in sys.modules
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
