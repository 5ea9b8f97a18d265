"""`evaluate`: the metrics of a trained model on other rows, by group, with plots and the importance of features."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn import metrics as oracle
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.inspection import permutation_importance

import runner
from runner.cli import main
from runner.commands.evaluate import importance, job
from runner.compute.rng import stream
from runner.data import arrow_files
from runner.optim.student_t import estimate
from runner.runs.plots import RunPlots, draw

ROWS = 200
QUICK = ["device=cpu", "device.threads=1", "dtype=float64", "record.plots=false", "record.sinks=[jsonl]", "data=csv", "data.path=t.csv"]  # fmt: skip
RUNS = ("run", "weighted", "two", "logarithm")
DRAW = np.random.default_rng(0)
TABLE: dict[str, list[Any]] = {
    "a": DRAW.normal(1, 2, ROWS).tolist(),
    "b": DRAW.uniform(-1, 1, ROWS).tolist(),
    "idle": DRAW.normal(size=ROWS).tolist(),
    "kind": DRAW.choice(["n", "o", "p"], ROWS).tolist(),
    "w": DRAW.uniform(0.5, 2, ROWS).tolist(),
    "place": [["10", "9", "NA", "-1.5"][i % 4] for i in range(ROWS)],
}
TABLE["y"] = [
    3 * a - 2 * b + {"n": 0, "o": 1, "p": 4}[kind] + noise
    for a, b, kind, noise in zip(TABLE["a"], TABLE["b"], TABLE["kind"], DRAW.normal(size=ROWS), strict=True)
]


TABLE["z"] = np.exp(np.array(TABLE["y"]) / 5).tolist()


def write(table: dict[str, list[Any]], path: str) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([list(table), *zip(*table.values(), strict=True)])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a table and runs on it."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write(TABLE, "t.csv")
        every = ["data.features=[a,b,idle,kind]", "data.target=y", "optimizer=lstsq"]
        runner.run(None, [*QUICK, *every, "run_dir=run"])
        runner.run(None, [*QUICK, *every, "data.weight=w", "run_dir=weighted"])
        logarithm = ["data.features=[a,b]", "data.target=z", "data.log_target=true", "data.sigma=w", "optimizer=lstsq"]
        runner.run(None, [*QUICK, *logarithm, "data.standardize=true", "run_dir=logarithm"])
        runner.run(None, [*QUICK, "data.features=[a]", "data.target=[y,b]", "optimizer=lstsq", "run_dir=two"])
    return folder


@pytest.fixture(autouse=True)
def _here(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in RUNS:
        shutil.copytree(home / run, tmp_path / run, symlinks=True)
    shutil.copy(home / "t.csv", tmp_path)
    monkeypatch.chdir(tmp_path)


def evaluate(run: str, *arguments: str) -> dict[str, Any]:
    """Evaluate a run on t.csv, or on another input, and return the document."""
    given = [*arguments, *([] if "--input" in arguments else ["--input", "t.csv"])]
    assert main(["evaluate", run, *given, "--output", "out.json", "--force"]) == 0
    found: dict[str, Any] = json.loads(Path("out.json").read_text())
    return found


def expected(rows: Any, weights: Any = None, run: str = "run") -> dict[str, Any]:
    """Return what scikit-learn says of some rows of the table, and its mean squared error as the loss."""
    table = pa.table({name: TABLE[name] for name in ("a", "b", "idle", "kind")})
    prediction, target = runner.load(run).predict(table)[rows], np.array(TABLE["y"])[rows]
    given = {"sample_weight": None if weights is None else np.array(weights)[rows]}
    return {
        "loss": pytest.approx(oracle.mean_squared_error(target, prediction, **given), rel=1e-12),
        "rmse": pytest.approx(oracle.root_mean_squared_error(target, prediction, **given), rel=1e-12),
        "mae": pytest.approx(oracle.mean_absolute_error(target, prediction, **given), rel=1e-12),
        "r2": pytest.approx(oracle.r2_score(target, prediction, **given), rel=1e-12),
    }


def test_the_metrics_are_those_of_the_run_and_of_scikit_learn() -> None:
    for run, weights in (("run", None), ("weighted", TABLE["w"])):
        found = evaluate(run)
        assert (found["rows"], found["left_out"], found["models"]) == (ROWS, 0, [{"run": run, "step": 2}])
        assert found["metrics"] == expected(slice(None), weights, run)
    for run in RUNS:
        summary = json.loads(Path(run, "summary.json").read_text())["metrics"]
        found = evaluate(run)["metrics"]
        assert {f"train/{name}": pytest.approx(value, rel=1e-11) for name, value in found.items()} == summary


@pytest.mark.parametrize("form", ["text", "arrow"])
def test_each_value_of_a_column_has_metrics(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers are sorted as such, a missing value is a group of its own, and rows without the target are left out."""
    table = {**TABLE, "y": [None, *TABLE["y"][1:]], "w": [1, 0, *TABLE["w"][2:]]}
    path = f"new.{'csv' if form == 'text' else 'parquet'}"
    if form == "text":
        write(table, path)
    else:
        numbers = [None if value == "NA" else float(value) for value in table["place"]]
        pq.write_table(pa.table({**table, "place": pa.array(numbers).dictionary_encode()}), path, row_group_size=70)
    found = evaluate("weighted", "--by", "place", "--input", path)
    assert (found["rows"], found["left_out"], found["by"]) == (ROWS - 2, 2, "place")
    for group, value, first in zip(found["groups"], ["-1.5", "9", "10", None], [3, 5, 4, 2], strict=True):
        rows = range(first, ROWS, 4)
        assert group == {"value": value, "rows": len(rows), "metrics": expected(rows, table["w"], "weighted")}
    shown = capsys.readouterr().out.splitlines()
    assert next(line for line in shown if line.startswith("rows")).startswith(
        "rows     198 with the target and a weight above 0, 2 others are left out, of new."
    )
    assert [line.split()[:2] for line in shown[-6:]] == [
        ["place", "rows"], ["-1.5", "50"], ["9", "49"], ["10", "49"], ["(missing)", "50"], ["all", "198"],
    ]  # fmt: skip


def test_several_targets_have_lines_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluate("two", "--by", "kind")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[-12:]]
    assert [line[0] if line[0] != "→" else line[1] for line in lines] == ["n", "y", "b", "o", "y", "b", "p", "y", "b", "all", "y", "b"]  # fmt: skip
    assert lines[-1][2:] == [f"{found['metrics'][f'{name}/b']:.6g}" for name in ("rmse", "mae", "r2")]


# ------------------------------------------------------------------------------------------------------------- importance


class Loaded(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """The run as an estimator of scikit-learn, for columns a, b, idle and numbers for the kinds."""

    def fit(self, _x: Any, _y: Any) -> Loaded:
        self.fitted_ = runner.load("run")
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        kinds = [["n", "o", "p"][int(code)] for code in x[:, 3]]
        columns = dict(zip(("a", "b", "idle", "kind"), [*x[:, :3].T, kinds], strict=True))
        return np.asarray(self.fitted_.predict(pa.table(columns)))


def test_the_importance_is_that_of_scikit_learn(capsys: pytest.CaptureFixture[str]) -> None:
    """The intervals of both overlap for each feature, where a column of categories is one feature."""
    found = evaluate("run", "--importance", "20")["importance"]
    codes = ["nop".index(kind) for kind in TABLE["kind"]]
    x = np.array([TABLE["a"], TABLE["b"], TABLE["idle"], codes], float).T
    theirs = permutation_importance(
        Loaded().fit(x, None), x, TABLE["y"], scoring="neg_root_mean_squared_error", n_repeats=20, random_state=1
    )
    assert [each["feature"] for each in found] == ["a", "kind", "b", "idle"]
    for each in found:
        other = estimate(theirs.importances[["a", "b", "idle", "kind"].index(each["feature"])].tolist())
        assert each["low"] < other.high
        assert other.low < each["high"]
    own = estimate(found[0]["values"])
    assert (found[0]["mean"], found[0]["low"], found[0]["high"]) == (own.mean, own.low, own.high)
    assert "shuffled 4 features, 20 times each, among 200 rows\n" in capsys.readouterr().out
    assert evaluate("run", "--importance", "20")["importance"] == found


def test_the_importance_of_a_linear_model_has_a_closed_form() -> None:
    """Least squares on their own rows leave residuals that no feature correlates with.

    So the mean squared error grows by 2·var(c·x) in the mean over all permutations, for the effect c·x of a feature.
    """
    kinds = np.array([[kind == value for value in "op"] for kind in TABLE["kind"]], float)
    x = np.column_stack([np.ones(ROWS), TABLE["a"], TABLE["b"], TABLE["idle"], kinds])
    c, (squares,), _, _ = np.linalg.lstsq(x, np.array(TABLE["y"]))
    effects = {"a": x[:, 1] * c[1], "b": x[:, 2] * c[2], "idle": x[:, 3] * c[3], "kind": kinds @ c[4:]}
    for each in evaluate("run", "--importance", "50")["importance"]:
        errors = estimate([(np.sqrt(squares / ROWS) + growth) ** 2 for growth in each["values"]])
        assert errors.low < squares / ROWS + 2 * effects[each["feature"]].var() < errors.high
        assert errors.deviation / errors.mean < 0.1


@pytest.mark.parametrize("model", ["model=linear", "model=mlp"])
def test_a_feature_is_shuffled_with_all_of_its_inputs(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts of a date, the column that says where a number is missing, and columns or codes of categories.

    It does not depend on how many shuffles are predicted together. The rows of the network have weights.
    """
    table = {
        "day": [f"20{20 + i % 5}-0{1 + i % 7}-11" for i in range(ROWS)],
        "a": [None, *TABLE["a"][1:]],
        "kind": TABLE["kind"],
        "more": TABLE["kind"][::-1],
        "y": TABLE["y"],
    }
    weight = np.arange(1.0, ROWS + 1) if model == "model=mlp" else None
    table |= {} if weight is None else {"w": weight.tolist()}
    write(table, "parts.csv")
    codes = ["model.widths=[4]", "model.embedding_size=3", "data.weight=w"] if model == "model=mlp" else []
    inputs = ["data.path=parts.csv", "data.dates=parts", "data.missing=mean", "data.target=y", model, *codes]
    runner.run(None, [*QUICK, *inputs, "data.standardize=true", "train.steps=3", "run_dir=parts"])
    found = evaluate("parts", "--input", "parts.csv", "--importance", "3")["importance"]
    monkeypatch.setattr(importance, "BATCH_ROWS", 2 * ROWS)
    assert evaluate("parts", "--input", "parts.csv", "--importance", "3")["importance"] == found
    assert {each["feature"] for each in found} == {"day", "a", "kind", "more"}
    target = np.array(TABLE["y"])

    def rmse(columns: dict[str, list[Any]]) -> Any:
        predicted = runner.load("parts").predict(pa.table(columns))
        return oracle.root_mean_squared_error(target, predicted, sample_weight=weight)

    for each in found:
        order = torch.randperm(ROWS, generator=stream(0, f"importance/{each['feature']}", 1))
        shuffled = {**table, each["feature"]: [table[each["feature"]][row] for row in order.tolist()]}
        assert each["values"][1] == pytest.approx(rmse(shuffled) - rmse(table), rel=1e-9)
        assert each["values"][1] != 0


def test_importance_and_plots_are_of_a_sample_of_many_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It does not depend on the blocks in which the rows are read, and metrics are of all rows."""
    monkeypatch.setattr(job, "MOST_ROWS", 150)
    many = {name: values * 10 for name, values in TABLE.items()}
    write(many, "many.csv")
    whole = evaluate("run", "--input", "many.csv", "--importance", "2", "--plots", "p")
    assert "shuffled 4 features, 2 times each, among 150 rows of 2,000, drawn at random\n" in capsys.readouterr().out
    pq.write_table(pa.table(many), "many.parquet")
    monkeypatch.setattr(arrow_files, "BATCH_ROWS", 170)
    in_blocks = evaluate("run", "--input", "many.parquet", "--importance", "2")
    assert in_blocks["importance"] == whole["importance"]
    assert in_blocks["metrics"] == expected(slice(None))
    assert whole["metrics"] == expected(slice(None))
    monkeypatch.setattr(job, "MOST_ROWS", 2000)
    largest = evaluate("run", "--input", "many.csv", "--importance", "2")["importance"][0]
    assert abs(largest["mean"] - whole["importance"][0]["mean"]) < 0.1 * largest["mean"]


# ------------------------------------------------------------------------------------------------------------------ plots


@pytest.mark.parametrize("run", ["run", "two"])
def test_the_plots_show_the_rows_of_the_input(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[RunPlots] = []

    def keep(content: RunPlots) -> dict[str, bytes]:
        drawn.append(content)
        return draw(content)

    monkeypatch.setattr("runner.runs.plots.draw", keep)
    write({**TABLE, "y": [None, *TABLE["y"][1:]]}, "new.csv")
    evaluate(run, "--input", "new.csv", "--plots", "here")
    names = ["fit.png", "residuals.png"] if run == "run" else ["fit_1.png", "fit_2.png", "residuals_1.png", "residuals_2.png"]  # fmt: skip
    assert sorted(path.name for path in Path("here").iterdir()) == names
    assert capsys.readouterr().out.endswith(" in here\n")
    table = pa.table({name: TABLE[name] for name in ("a", "b", "idle", "kind")})
    predictions = runner.load(run).predict(table)[1:].reshape(ROWS - 1, -1)
    for number, content in enumerate(drawn):
        x, target, prediction = content.parts["input"]
        assert target.tolist() == TABLE[content.target_name][1:]
        np.testing.assert_array_equal(prediction, predictions[:, number])
        assert (content.totals, content.target_name) == ({"input": ROWS - 1}, "yb"[number])
        if run == "two":
            assert x[:, 0].tolist() == TABLE["a"][1:]
            assert content.line is not None
            ends = runner.load(run).predict(np.array([[min(TABLE["a"][1:])], [max(TABLE["a"][1:])]]))
            np.testing.assert_array_equal(content.line[1][[0, -1]], ends[:, number])


# ------------------------------------------------------------------------------------------------------------- bad inputs


def test_one_row_has_no_r2(capsys: pytest.CaptureFixture[str]) -> None:
    write({**{name: values[:1] for name, values in TABLE.items()}, "place": ["[red]"]}, "one.csv")
    found = evaluate("run", "--input", "one.csv", "--importance", "2", "--by", "place")
    assert (found["rows"], found["metrics"]["r2"]) == (1, "nan")
    assert [each["values"] for each in found["importance"]] == [[0.0, 0.0]] * 4
    shown = capsys.readouterr().out
    assert "shuffled 4 features, 2 times each, among 1 row\n" in shown
    assert "\n[red]  1 " in shown


def test_the_document_may_go_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "run", "--input", "t.csv", "--output", "-"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["metrics"] == expected(slice(None))
    assert shown.err.splitlines()[0] == "model    run, state of step 2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--by", "Kind"], "`--by` must name a column of 't.csv', got 'Kind'; the columns are 'kind', 'idle'"),
        (["--by", "a"], "`--by` must name a column with at most 100 values, got 'a', which has more; use another column, or add one with ranges of the values"),
        (["--importance", "0"], "`--importance` must be a number of shuffles from 2 to 1,000, got 0; use 10"),
        (["--importance", "ten"], "the options cannot be read: argument --importance: invalid int value: 'ten'; see"),
        (["--plots", "run"], "`--plots` must be a new folder, got 'run', which exists; add --force to write into it"),
        (["--plots", "t.csv", "--force"], "`--plots` must be a folder, got the file 't.csv'; name a folder"),
        (["--plots", "absent/p"], "`--plots` must be in a folder that exists, got 'absent/p'; make 'absent' first"),
        (["--output", "t.csv"], "`--output` must be another file than `--input`, got 't.csv' for both; name another one"),
        (["--output", "run/run.json"], "`--output` must be a new file, got 'run/run.json', which exists; add --force to replace it"),
        (["--input", "none.csv"], "`--input` must have the targets that predictions are compared with, but 'none.csv' lacks 'y'; add them, or use predict"),
        (["--input", "blank.csv"], "`--input` must have rows with the target, but none of the 200 rows of 'blank.csv' is one; fill them in, or use predict"),
        (["--input", "lists.parquet", "--by", "place"], "`--by` must name a column of texts, numbers or dates, got one of type list<element: int64>; use another one"),
        (["optimizer.lr=1"], "`optimizer.lr` must not be given with new rows, because it would change the model"),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write({name: values for name, values in TABLE.items() if name != "y"}, "none.csv")
    write({**TABLE, "y": [""] * ROWS}, "blank.csv")
    pq.write_table(pa.table({**TABLE, "place": [[1]] * ROWS}), "lists.parquet")
    given = [*arguments, *([] if "--input" in arguments else ["--input", "t.csv"])]
    assert main(["evaluate", "run", *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_what_a_logarithm_or_a_weight_lacks_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    write({**TABLE, "z": [-1, *TABLE["z"][1:]], "w": [1, 0, -1, "", *TABLE["w"][4:]]}, "new.csv")
    found = evaluate("logarithm", "--input", "new.csv")
    assert (found["rows"], found["left_out"], found["metrics"]["loss"]) == (ROWS - 3, 3, "nan")
    assert found["metrics"]["rmse"] > 0
    assert "note: 1 row has a target that is not positive, so there is no loss: the model predicts the logarithm\n" in capsys.readouterr().out  # fmt: skip
