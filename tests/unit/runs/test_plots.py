import io
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from numpy.typing import NDArray

from runner.runs.plots import COLOURS, RunPlots, draw

Part = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def part(rows: int, seed: int = 0, features: int = 1) -> Part:
    random = np.random.default_rng(seed)
    x = random.uniform(0, 100, (rows, features))
    return x, x[:, 0] + 10 * random.standard_normal(rows), 0.9 * x[:, 0] + 1


def plots_of(
    parts: Mapping[str, Part] | None = None,
    rows: Sequence[Mapping[str, Any]] = (),
    line: Part | tuple[Any, Any] | None = None,
    **names: Any,
) -> RunPlots:
    labels: dict[str, Any] = {"title": "linreg", "feature_names": ["x"], "target_name": "y"} | names
    return RunPlots(parts=parts or {}, rows=rows, line=line, **labels)  # type: ignore[arg-type]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """Figures of the PNG files, by their heading."""
    figures: dict[str, Figure] = {}
    save = Figure.savefig

    def keep(figure: Figure, *arguments: Any, **options: Any) -> None:
        figures[figure.texts[0].get_text()] = figure
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def data(axes: Axes, number: int) -> list[list[float]]:
    """Return x and y of a line."""
    return [np.asarray(column).tolist() for column in axes.lines[number].get_data()]


def test_three_png_files_and_the_same_bytes_again() -> None:
    content = plots_of(
        {"train": part(90), "test": part(10)}, [{"step": 1, "train/loss": 2.0}], (np.arange(9), np.arange(9))
    )
    files = draw(content)
    assert list(files) == ["fit", "loss", "residuals"]
    for png in files.values():
        assert imread(io.BytesIO(png)).shape == (506, 792, 4)
        assert b"Software" not in png
    assert draw(content) == files


def test_one_feature_shows_rows_line_and_predictions(drawn: dict[str, Figure]) -> None:
    parts = {"test": part(3, 1), "train": part(5, 2), "valid": part(1, 3)}
    line = (np.array([0.0, 50, 100]), np.array([1.0, 46, 91]))
    draw(plots_of(parts, line=line, feature_names=["mass in kg"], target_name="price in $"))
    figure = drawn["Data and fit"]
    (axes,) = figure.axes
    assert legend(figure) == ["train (5 rows)", "valid (1 row)", "test (3 rows)", "fit", "predicted for test"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("mass in kg", "price in $")
    for number, name in enumerate(["train", "valid", "test"]):
        features, target, _ = parts[name]
        assert data(axes, number) == [list(features[:, 0]), list(target)]
        assert axes.lines[number].get_color() == COLOURS[name]
    assert data(axes, 3) == [[0, 50, 100], [1, 46, 91]]
    assert data(axes, 4) == [list(parts["test"][0][:, 0]), list(parts["test"][2])]
    assert len({COLOURS[name] for name in parts}) == 3


def test_bands_are_drawn_around_the_line_and_leave_room_for_the_rows(drawn: dict[str, Figure]) -> None:
    x = np.array([0.0, 50, 100])
    narrow, wide = (x - 1, x + 1), (x - np.array([2, 2, 1e9]), x + np.array([2, 2, np.inf]))
    content = plots_of({"train": part(20)}, line=(x, x), bands={"95 % confidence band": narrow, "95 % prediction band": wide})  # fmt: skip
    alone = plots_of({"train": part(20)}, line=(x, x))
    draw(alone)
    bottom, top = drawn["Data and fit"].axes[0].get_ylim()
    draw(content)
    figure = drawn["Data and fit"]
    (axes,) = figure.axes
    assert legend(figure) == ["train (20 rows)", "fit", "95 % confidence band", "95 % prediction band"]
    first, second = (
        [tuple(p) for path in band.get_paths() for p in np.asarray(path.vertices)] for band in axes.collections
    )
    assert {*first} >= {(0, -1), (0, 1), (100, 99), (100, 101)}
    assert {*second} >= {(0, -2), (50, 52)}
    assert max(point[0] for point in second) == 50  # the last place is not finite
    low, high = axes.get_ylim()
    assert (low, high) == (min(bottom, -2), top)  # the end of the narrow band is below the top of the rows


def test_several_features_show_predicted_against_true(drawn: dict[str, Figure]) -> None:
    parts = {"train": part(20, 1, 10), "test": part(5, 2, 10)}
    draw(plots_of(parts, feature_names=[f"f{i}" for i in range(10)]))
    (axes,) = drawn["Predicted against true"].axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("true y", "predicted y")
    assert data(axes, 1) == [list(parts["test"][1]), list(parts["test"][2])]
    targets = np.concatenate([parts["train"][1], parts["test"][1]])
    assert data(axes, 2) == [[targets.min(), targets.max()]] * 2


def test_residuals_are_true_minus_predicted_and_counted(drawn: dict[str, Figure]) -> None:
    parts = {"train": part(400, 1), "test": part(30, 2)}
    draw(plots_of(parts))
    axes, counts = drawn["Residuals"].axes
    _, target, prediction = parts["test"]
    assert data(axes, 1) == [list(prediction), list(target - prediction)]
    bars = [(bar.get_x(), bar.get_width()) for bar in counts.patches]  # type: ignore[attr-defined]
    train, test = bars[: len(bars) // 2], bars[len(bars) // 2 :]
    assert (sum(width for _, width in train), sum(width for _, width in test)) == (400, 30)
    assert [start for start, _ in test] == [width for _, width in train]
    assert axes.get_ylim() == counts.get_ylim()


@pytest.mark.parametrize(
    ("losses", "scale"),
    [([100.0, 50, 5], "log"), ([100.0, 50, 11], "linear"), ([100.0, 1, 0], "linear"), ([100.0, 1, -3], "linear")],
)
def test_loss_is_logarithmic_over_more_than_a_decade(drawn: dict[str, Figure], losses: list[float], scale: str) -> None:
    draw(plots_of(rows=[{"step": step, "train/loss": loss} for step, loss in enumerate(losses)]))
    (axes,) = drawn["Loss"].axes
    assert axes.get_yscale() == scale
    assert "$" not in "".join(label.get_text() for label in axes.get_yticklabels())


def test_loss_has_the_validation_loss_where_it_was_taken(drawn: dict[str, Figure]) -> None:
    rows = [
        {"step": 1, "train/loss": 3.0},
        {"step": 2, "train/loss": 2.0, "valid/loss": 2.5},
        {"step": 5, "train/loss": 1.0},
    ]
    draw(plots_of(rows=rows))
    assert legend(drawn["Loss"]) == ["train", "valid"]
    (axes,) = drawn["Loss"].axes
    assert [data(axes, 0), data(axes, 1)] == [[[1, 2, 5], [3, 2, 1]], [[2], [2.5]]]


LEVELS = [
    ([3.0, 2.0], {"optimum": 1.5, "noise floor": 2.25}, ["optimum (1.5)", "noise floor (2.25)"]),
    ([78.70, 78.69], {"optimum": 78.65, "noise floor": 100.0}, []),  # 5 and 2,000 times as far apart as the losses
    ([78.70, 78.66], {"optimum": 78.65, "noise floor": 100.0}, ["optimum (78.65)"]),
    ([1.0, 1e-6], {"optimum": 1e-20}, ["optimum (1e-20)"]),
    ([1.0, 1e-6], {"optimum": 1e-30}, []),
    ([3000.0, 2000.0], {"optimum": 78.0}, ["optimum (78)"]),
    ([3.0, 2.0], {"optimum": 0.0}, []),
    ([2.0], {"optimum": 1.0}, ["optimum (1)"]),
]


@pytest.mark.parametrize(("losses", "levels", "shown"), LEVELS)
def test_known_losses_are_lines_unless_they_flatten_the_curve(
    drawn: dict[str, Figure], losses: list[float], levels: dict[str, float], shown: list[str]
) -> None:
    draw(plots_of(rows=[{"step": step, "train/loss": loss} for step, loss in enumerate(losses)], levels=levels))
    (axes,) = drawn["Loss"].axes
    assert legend(drawn["Loss"]) == ["train", *shown]
    for number, text in enumerate(shown, 1):
        assert f"({data(axes, number)[1][0]:.4g})" in text
        low, high = axes.get_ylim()
        assert low < data(axes, number)[1][0] < high


def test_many_points_are_thinned_and_the_legend_says_so(drawn: dict[str, Figure]) -> None:
    parts = {"train": part(25_000, 1), "valid": part(10_000, 2), "test": part(51, 3)}
    draw(plots_of(parts, [{"step": step, "train/loss": 1.0} for step in range(20_001)]))
    fit, loss = drawn["Data and fit"], drawn["Loss"]
    assert legend(fit) == [
        "train (10,000 of 25,000 rows)",
        "valid (10,000 rows)",
        "test (51 rows)",
        "predicted (50 of 51 rows)",
    ]
    assert [len(line.get_xdata()) for line in fit.axes[0].lines] == [10_000, 10_000, 51, 50]  # type: ignore[arg-type]
    steps = data(loss.axes[0], 0)[0]
    assert (len(steps), steps[0], steps[-1]) == (10_000, 0, 20_000)
    assert set(np.diff(steps)) == {2, 3}
    assert legend(loss) == ["train (10,000 of 20,001 rows)"]


def test_values_that_are_not_finite_are_left_out(drawn: dict[str, Figure]) -> None:
    features, target, prediction = (np.ones((6, 1)), np.arange(6.0), np.arange(6.0))
    features[0], target[1], prediction[2], prediction[3] = np.nan, np.inf, -np.inf, 1e300
    draw(
        plots_of(
            {"train": (features, target, prediction), "test": tuple(c[:3] for c in (features, target, prediction))},  # type: ignore[dict-item]
            [{"step": 1, "train/loss": np.nan}, {"step": 2, "train/loss": 4.0}, {"step": 3, "train/loss": np.inf}],
            (np.arange(4.0), np.array([5, 1e300, np.inf, 7])),
        )
    )
    assert legend(drawn["Data and fit"]) == ["train (2 rows)", "fit"]
    assert data(drawn["Data and fit"].axes[0], 0) == [[1, 1], [4, 5]]
    np.testing.assert_array_equal(data(drawn["Data and fit"].axes[0], 1)[1], [5, np.nan, np.nan, 7])  # gaps in the line
    assert data(drawn["Loss"].axes[0], 0) == [[2], [4]]


def test_empty_plots_are_not_drawn() -> None:
    empty = (np.zeros((0, 1)), np.zeros(0), np.zeros(0))
    assert draw(plots_of({"train": empty}, [{"step": 1, "lr": 0.1}, {"step": 2, "train/loss": np.nan}])) == {}
    assert list(draw(plots_of({"train": part(1)}))) == ["fit", "residuals"]
    assert list(draw(plots_of(rows=[{"step": 1, "train/loss": 3.0}]))) == ["loss"]


@pytest.mark.parametrize(
    "content",
    [
        plots_of({"train": part(1)}, [{"step": 0, "train/loss": 0.0}], (np.ones(1), np.ones(1))),
        plots_of({"train": (np.ones((5, 1)), np.full(5, 3.0), np.full(5, 3.0))}, [{"step": 1, "train/loss": -1.0}] * 2),
        plots_of({"test": (np.full((5, 2), 1e99), np.full(5, 1e99), np.full(5, -1e99))}, feature_names=["a", "b"]),
        plots_of({"test": (np.full((5, 1), 1e17), np.array([1e17] * 4 + [1e17 + 16]), np.full(5, 1e17))}),
        plots_of({"test": (np.full((5, 1), 1e-320), np.full(5, 1e-320), np.zeros(5))}),
        plots_of(rows=[{"step": 1, "train/loss": 5e-324}, {"step": 2, "train/loss": 9e99}]),
        plots_of({"train": part(9)}, line=(np.array([0.0, np.nan, 2, 3]), np.array([0.0, 1, np.inf, 1e300]))),
        plots_of({"train": part(9)}, line=(np.full(3, np.nan), np.full(3, np.nan))),
        plots_of(
            {"train": part(9)}, title="$x^{$", feature_names=["質量 $\\frac$"], target_name="$\\frac$\n" + "long " * 90
        ),
    ],
)
def test_odd_input_is_drawn_without_a_warning(content: RunPlots) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files = draw(content)
    assert files
    assert all(png.startswith(b"\x89PNG") for png in files.values())


def test_importing_is_free_and_drawing_leaves_no_global_state() -> None:
    script = """
import sys
import runner.runs.plots as plots
assert not [name for name in sys.modules if name.startswith(("matplotlib", "torch"))]
import matplotlib
before = matplotlib.rcParams.copy()
plots.draw(plots.RunPlots("", [], "", {}, None, [{"step": 1, "train/loss": 1.0}]))
assert "matplotlib.pyplot" not in sys.modules
assert matplotlib.rcParams.copy() == before
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
