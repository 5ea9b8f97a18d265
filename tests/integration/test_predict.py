"""`predict` and `runner.load`: the predictions of a trained model for new rows, whatever form and order these have."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import torch
from pyarrow import feather
from sklearn import metrics as oracle

import runner
from runner.cli import main
from runner.data import cells
from runner.data.scaling import Scaling
from runner.errors import CheckpointError, DataError
from runner.training.fitted import is_same_scaling
from runner.training.predicting import CHUNK_ROWS

ROWS = 60
QUICK = ["device=cpu", "device.threads=1", "record.plots=false", "record.sinks=[jsonl]", "data=csv", "data.path=t.csv"]
NET = ["data.target=y", "model=mlp", "model.widths=[7]", "data.standardize=true", "train.steps=6", "optimizer=adam", "optimizer.lr=0.1"]  # fmt: skip


def table(rows: int = ROWS, seed: int = 0) -> pa.Table:
    """Return a table with numbers, texts, dates and missing values in each of them."""
    draw = np.random.default_rng(seed)
    x, n = draw.normal(2, 3, rows).round(3), draw.integers(0, 5, rows)
    color = draw.choice(["blue", "green", "red"], rows)
    day = [f"2024-0{1 + i % 9}-11" for i in range(rows)]
    y = np.round(x * 2 + (color == "red") + n + 0.1 * draw.normal(size=rows), 3)
    cells = {
        "id": [f"r{i}" for i in range(rows)],
        "x": list(x),
        "color": list(color),
        "day": day,
        "n": list(n),
        "y": list(y),
    }
    cells["x"][3] = None
    cells["color"][5] = None
    return pa.table(cells)


def write(found: pa.Table, path: str) -> None:
    columns = [["" if value is None else value for value in column.to_pylist()] for column in found.columns]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([found.column_names, *zip(*columns, strict=True)])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a table and a run on it."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write(table(), "t.csv")
        runner.run(
            None, [*QUICK, *NET, "data.drop=[id]", "data.missing=mean", "checkpoint.every_steps=3", "run_dir=run"]
        )
        runner.run(
            None, [*QUICK, *NET, "data.features=[x,color]", "data.missing=drop", "dtype=float64", "run_dir=strict"]
        )
    return folder


@pytest.fixture(autouse=True)
def _here(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in ("run", "strict"):
        shutil.copytree(home / run, tmp_path / run, symlinks=True)
    shutil.copy(home / "t.csv", tmp_path)
    monkeypatch.chdir(tmp_path)


def predict(*arguments: str) -> str:
    """Predict from t.csv with the run into out.csv, and return the output."""
    given = list(arguments)
    for option, value in (("--input", "t.csv"), ("--output", "out.csv")):
        given += [] if option in given else [option, value]
    assert main(["predict", *([] if given[0] in ("strict", "run", "sweep") else ["run"]), "--force", *given]) == 0
    return Path("out.csv").read_text()


def column(name: str = "prediction", path: str = "out.csv") -> list[str]:
    with open(path, newline="") as file:
        return [row[name] for row in csv.DictReader(file)]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    given = list(arguments)
    for option, value in (("--input", "t.csv"), ("--output", "new.csv")):
        given += [] if option in given else [option, value]
    capsys.readouterr()
    assert main(["predict", *given]) == 2
    assert not Path("new.csv").exists()
    return capsys.readouterr().err


def test_the_training_rows_have_the_predictions_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    """The targets need not be there, columns may have any order, and others are not used."""
    expected = column(path="run/residuals.csv")
    predict()
    np.testing.assert_allclose(np.array(column(), float), np.array(expected, float), rtol=1e-6)
    first = Path("out.csv").read_text()
    found = table().select(["n", "day", "x", "color"]).append_column("more", pa.array(["text"] * ROWS))
    write(found, "new.csv")
    capsys.readouterr()
    assert predict("--input", "new.csv") == first
    assert "read     1 column is not used: 'more'" in capsys.readouterr().out


def test_every_form_of_the_same_rows_has_the_same_predictions(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: Any
) -> None:
    expected = predict()
    dates = table().set_column(3, "day", pc.cast(table()["day"], pa.date32()))
    pq.write_table(dates, "t.parquet", row_group_size=7)
    feather.write_feather(table(), "t.feather")
    text = Path("t.csv").read_bytes()
    Path("t.csv.gz").write_bytes(gzip.compress(text))
    Path("semicolons.txt").write_bytes(text.replace(b",", b";"))
    for path in ("t.parquet", "t.feather", "t.csv.gz", "semicolons.txt"):
        assert predict("--input", path) == expected, path
    capsysbinary.readouterr()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    assert main(["predict", "run", "--input", "-", "--output", "-"]) == 0
    assert capsysbinary.readouterr().out == expected.encode()
    predict("--output", "out.parquet")
    assert [str(np.float32(value)) for value in pq.read_table("out.parquet")["prediction"].to_pylist()] == column()


@pytest.mark.parametrize("reader", ["Python's", "pyarrow's"])
def test_rows_are_read_in_blocks(reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a column that looks like floats has another cell in a later block."""
    write(table(3000), "many.csv")
    monkeypatch.setattr(cells, "LARGE", 0 if reader == "pyarrow's" else 2**30)
    monkeypatch.setattr(cells, "LONGEST_LINE", 2**14)
    lines = Path("many.csv").read_text().splitlines()
    lines[2500] = ",".join(["r", "1e400".replace("400", "4"), *lines[2500].split(",")[2:]])
    lines[2600] = ",".join(["r", " NA ", *lines[2600].split(",")[2:]])
    Path("many.csv").write_text("\n".join(lines) + "\n")
    predict("--input", "many.csv", "--keep", "id,x")
    whole = column()
    assert (len(whole), column("x")[2499], column("id")[:2]) == (3000, "1e4", ["r0", "r1"])
    Path("few.csv").write_text("\n".join([lines[0], *lines[2490:2610]]) + "\n")
    predict("--input", "few.csv")
    assert column() == whole[2489:2609]


@pytest.mark.parametrize("widths", ["[5]", "[7,33]", "[64]"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_row_has_the_same_prediction_alone_and_among_others(widths: str, dtype: str) -> None:
    runner.run(
        None,
        [
            *QUICK,
            *NET,
            "data.drop=[id]",
            "data.missing=mean",
            f"model.widths={widths}",
            f"dtype={dtype}",
            "run_dir=net",
        ],
    )
    model = runner.load("net")
    whole = model.predict(table(CHUNK_ROWS + 100))
    for rows in ([0], [1], [6], [CHUNK_ROWS + 99], [*range(50, 63)], [*range(3, CHUNK_ROWS + 50)]):
        np.testing.assert_array_equal(model.predict(table(CHUNK_ROWS + 100).take(rows)), whole[rows])


def test_tables_in_memory_have_the_predictions_of_files() -> None:
    import pandas as pd

    polars = pytest.importorskip("polars")
    model = runner.load("run")
    predict()
    expected = np.array(column(), np.float32)
    frame = table().to_pandas()
    frame["color"] = frame["color"].astype("category")
    for found in (
        table(),
        frame,
        polars.from_arrow(table()),
        pa.table({name: table()[name] for name in ("n", "x", "day", "color")}),
    ):
        np.testing.assert_array_equal(model.predict(found).astype(np.float32), expected)
    (inputs,) = model.preprocess(frame.assign(day=pd.to_datetime(frame["day"])))
    with torch.no_grad():
        scaled = model.model(inputs).double()
    scaling = model.preprocessing.scaling
    np.testing.assert_allclose(scaling.undo(scaled).flatten(), model.predict(frame), rtol=1e-6)


def test_an_array_has_the_features_in_their_order() -> None:
    run = runner.run(
        None,
        [
            "data=line",
            "data.features=2",
            "data.split.test=0",
            "device=cpu",
            "device.threads=1",
            "record.plots=false",
            "train.steps=3",
        ],
    )
    model, rows = runner.load(run.directory), np.array([[0.5, 2.0], [1.0, -1.0]])
    weight, bias = (np.array(run.summary["parameters"][name]) for name in ("weight", "bias"))
    np.testing.assert_allclose(model.predict(rows), rows @ weight[0] + bias, rtol=1e-6)
    with pytest.raises(
        DataError, match=r"the array must have the shape \[rows, 2\], got \[2, 1\]; its columns are 'x1', 'x2'"
    ):
        model.predict(rows[:, :1])
    with pytest.raises(DataError, match="the rows must be a table with named columns, because 'color' are categories"):
        runner.load("run").predict(rows)


@pytest.mark.parametrize("text", ["x\n0.5\n2\n", "x\n0.5\n2", "more,x\n,0.5\n,2\n", "x;\n0.5;\n2;\n"])
def test_a_model_of_one_feature_needs_one_column(text: str) -> None:
    overrides = [
        "data=line",
        "data.split.test=0",
        "device=cpu",
        "device.threads=1",
        "record.plots=false",
        "train.steps=3",
    ]
    model = runner.load(runner.run(None, [*overrides, "run_dir=line"]).directory)
    Path("one.csv").write_text(text)
    assert main(["predict", "line", "--input", "one.csv", "--output", "out.csv"]) == 0
    assert column() == [str(np.float32(value)) for value in model.predict(np.array([[0.5], [2.0]]))]


def test_metrics_are_printed_where_the_target_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    found = table()
    known = np.array(found["y"].to_pylist())
    found = found.set_column(5, "y", pa.array([None, *known[1:]]))
    write(found, "new.csv")
    capsys.readouterr()
    predict("--input", "new.csv")
    predictions = np.array(column(), float)[1:]
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("metrics"))
    values = dict(zip(line.split()[1:9:2], map(float, line.split()[2:9:2]), strict=True))
    expected = {
        "rmse": oracle.root_mean_squared_error(known[1:], predictions),
        "mae": oracle.mean_absolute_error(known[1:], predictions),
        "r2": oracle.r2_score(known[1:], predictions),
    }
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, rel=1e-5)  # six digits are printed
    assert line.endswith("of 59 rows with the target")


def test_parts_of_dates_are_made_again() -> None:
    overrides = [
        "data.features=[day]",
        "data.target=y",
        "data.dates=parts",
        "model=linear",
        "optimizer=lstsq",
        "run_dir=dated",
    ]
    runner.run(None, [*QUICK, *overrides])
    assert [value["name"] for value in json.loads(Path("dated/preprocessing.json").read_text())["inputs"]] == [
        "day.month",
        "day.weekday",
    ]
    assert main(["predict", "dated", "--input", "t.csv", "--output", "out.csv"]) == 0
    np.testing.assert_allclose(
        np.array(column(), float), np.array(column(path="dated/residuals.csv"), float), rtol=1e-6
    )
    dates = pa.table({"day": pc.cast(table()["day"], pa.timestamp("ms"))})
    np.testing.assert_array_equal(
        runner.load("dated").predict(dates).astype(np.float32), np.array(column(), np.float32)
    )


def test_several_targets_have_a_column_each() -> None:
    runner.run(
        None,
        [*QUICK, "data.target=[y,n]", "data.features=[color]", "data.missing=drop", "optimizer=lstsq", "run_dir=two"],
    )
    assert main(["predict", "two", "--input", "t.csv", "--output", "o.csv", "data.missing=mean"]) == 0
    assert Path("o.csv").read_text().splitlines()[0] == "prediction/y,prediction/n"
    assert runner.load("two").predict(table().slice(10, 5)).shape == (5, 2)


# ------------------------------------------------------------------------------------------------- values without a number


def test_an_unseen_category_is_one_without_a_column(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Path("t.csv").read_text().splitlines()
    lines[1], lines[2] = (
        line.replace("blue", "pink").replace("red", "pink").replace("green", "pink") for line in lines[1:3]
    )
    Path("new.csv").write_text("\n".join(lines[:4]) + "\n")
    lines[1], lines[2] = (line.replace("pink", "") for line in lines[1:3])
    Path("missing.csv").write_text("\n".join(lines[:4]) + "\n")
    expected = predict("--input", "missing.csv")
    capsys.readouterr()
    assert predict("--input", "new.csv") == expected
    said = "column 'color' has values that the training rows did not have: 'pink' (2 rows)"
    assert f"note: {said}; they are predicted as another category" in capsys.readouterr().out
    Path("new.csv").rename("unseen.csv")
    error = refused(capsys, "run", "--input", "unseen.csv", "predict.unseen=error")
    assert (
        "`predict.unseen`: column 'color' of 'unseen.csv' has values that the training rows did not have: 'pink' (2 rows); correct them"
        in error
    )


def test_a_category_may_be_written_in_another_way(capsys: pytest.CaptureFixture[str]) -> None:
    """Truth values and whole numbers are what they are in training, also for a state that has other names for them."""
    Path("b.csv").write_text("flag,n,y\n" + "".join(f"{i % 3 > 0},{i % 4}{'.0' * (i % 2)},{i}\n" for i in range(24)))
    runner.run(
        None, [*QUICK, "data.path=b.csv", "data.categorical=[flag,n]", "data.drop=[]", "data.target=y", "run_dir=b"]
    )
    frame = pacsv.read_csv("b.csv")
    texts = frame.set_column(0, "flag", pa.array([str(flag).upper() for flag in frame["flag"].to_pylist()]))
    whole = texts.set_column(1, "n", pa.array([str(round(n)) for n in frame["n"].to_pylist()]))
    expected = column(path="b/residuals.csv")
    path = Path("b/preprocessing.json")
    for state in (path.read_text(), path.read_text().replace('true"', 'True"').replace('false"', 'False"')):
        path.write_text(state)
        for rows in (frame, texts, whole):
            pacsv.write_csv(rows, "new.csv")
            assert main(["predict", "b", "--input", "new.csv", "--output", "out.csv", "--force"]) == 0
            assert column() == expected
    assert "did not have" not in capsys.readouterr().out


def test_missing_values_are_refused_unless_they_are_the_mean(capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, "strict")
    assert (
        "`data.missing`: column 'x' of 't.csv' has 1 missing value, in line 5; fill them in, or use data.missing=mean"
        in error
    )
    assert "column 'color' of 't.csv' has 1 missing value, in line 7" in error
    predict("strict", "data.missing=mean")
    state = json.loads(Path("strict/preprocessing.json").read_text())
    mean = next(feature["mean"] for feature in state["features"] if feature["name"] == "x")
    found = table().select(["x", "color"]).to_pydict()
    found["x"][3] = mean
    expected = runner.load("strict").predict(pa.table(found).take([0, 3, 4]))
    np.testing.assert_array_equal(np.array(column(), float)[[0, 3, 4]], expected)


# ------------------------------------------------------------------------------------------------------------- bad inputs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,day,n\n1,2024-01-11,2\n", "`--input` must have the columns of the training rows, but 'bad.csv' lacks 'color'; the columns are"),
        ("a,b\n1,2\n", "`--input` must have the columns of the training rows, but 'bad.csv' lacks 'x', 'color', 'day', 'n'; add them"),
        ("x,color,day,n\n", "`--input` must have rows, got a header and 0 rows in 'bad.csv'; add rows"),
        ("", "`--input` must have a header and rows, but 'bad.csv' is empty"),
        (
            "x,color,day,n\n1,red,2024-01-11,2\nfoo,red,2024-01-11,2\n3,red,2024-13-11,2\n",
            "`--input`: line 3 of 'bad.csv', column 'x', must be a finite number, got 'foo', text; use a number, or list it in "
            "`data.missing_values`\n`--input`: line 4 of 'bad.csv', column 'day', must be a date such as 2024-01-31, got '2024-13-11'",
        ),
        ("x,color,day,n\n1,red,2024-01-11\n", "`--input`: line 2 of 'bad.csv' must have 4 fields like the header, got 3"),
        ("x,color,day,n,n\n1,red,2024-01-11,2,3\n", "`--input` must have distinct column names, got 'n' 2 times in 'bad.csv'"),
    ],
)  # fmt: skip
def test_a_table_that_does_not_fit_is_refused(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.csv").write_text(text)
    assert message in refused(capsys, "run", "--input", "bad.csv").replace("error: ", "")


def test_a_typed_column_of_another_kind_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    found = table().set_column(1, "x", pc.cast(table()["day"], pa.date32())).set_column(4, "n", pa.array([[1]] * ROWS))
    pq.write_table(found, "bad.parquet")
    error = refused(capsys, "run", "--input", "bad.parquet")
    assert "`--input`: column 'x' of 'bad.parquet' must be of type number, got date32[day]; cast it" in error
    assert "`--input`: column 'n' of 'bad.parquet' must be of type number, got list<element: int64>; cast it" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "absent.csv"], "`--input` must be a readable file, but 'absent.csv' does not exist"),
        (["--output", "t.csv"], "`--output` must be another file than `--input`, got 't.csv' for both"),
        (["--output", "run/run.json"], "`--output` must be a new file, got 'run/run.json', which exists; add --force to replace it"),
        (["--output", "run"], "`--output` must be a file, got the folder 'run'"),
        (["--output", "absent/out.csv"], "`--output` must be in a folder that exists, got 'absent/out.csv'; make 'absent' first"),
        (["--output", "out.arrow"], "`--output` must be a text file or a Parquet file, got 'out.arrow'"),
        (["--keep", "idd"], "`--keep` must name a column of 't.csv', got 'idd'; the columns are 'id'"),
        (["--state", "first"], "`--state` must be one of last, best or the number of a step, got 'first'"),
        (["--state", "4"], "run/checkpoints/step_4 cannot be used: it does not exist; restore it, or use --state with one of 3, 6"),
        (["optimizer.lr=1"], "`optimizer.lr` must not be given with new rows, because it would change the model"),
        (["data.missing=none"], "`data.missing` must be one of error, drop, mean, got 'none'"),
        (["--device", "cuda"], "`device=cuda` needs"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_used_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, "run", *arguments)


@pytest.mark.parametrize(("path", "reason"), [("a" * 300, "File name too long"), ("a\0b", "embedded null byte")])
@pytest.mark.parametrize(
    "command",
    [
        "predict run --output out.csv --input",
        "predict run --input t.csv --output",
        "evaluate run --input t.csv --output",
        "evaluate run --input t.csv --plots",
        "export run --format safetensors --output",
    ],
)
def test_a_path_that_no_file_can_have_is_refused(
    command: str, path: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command.split(), path]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: `{command.rsplit(maxsplit=1)[-1]}` must be a path that can be looked for, got ")
    assert error.endswith(f" ({reason}); use another one\n")


def test_a_column_that_is_kept_must_not_have_a_name_of_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    write(table().rename_columns(["prediction", "x", "color", "day", "n", "y"]), "named.csv")
    error = refused(capsys, "run", "--input", "named.csv", "--keep", "prediction")
    assert "`--keep` must not name a column that the output has of its own, got prediction" in error


def test_a_full_disk_leaves_no_half_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(file: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("runner.runs.atomic.sync", full)
    monkeypatch.setattr("runner.commands.predict.output.sync", full)
    for name in ("out.csv", "out.parquet"):
        assert main(["predict", "run", "--input", "t.csv", "--output", name]) == 1
        error = capsys.readouterr().err
        assert f"`{name}` cannot be written: the disk is full" in error
        assert "free some space or choose another `--output`" in error
    assert not [*Path().glob("out*")]


# ------------------------------------------------------------------------------------------------- states of a run, sweeps


def test_any_state_that_was_saved_can_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    reported = predict()
    assert predict("--state", "last") == predict("--state", "6") == reported
    assert predict("--state", "3") != reported
    capsys.readouterr()
    Path("run/summary.json").unlink()
    record = json.loads(Path("run/run.json").read_text()) | {"status": "interrupted", "torch": "2.9.0"}
    Path("run/run.json").write_text(json.dumps(record))
    assert predict() == reported
    said = capsys.readouterr().out
    assert "note: the run is not finished (interrupted), so its last checkpoint is used" in said
    assert "note: the run was made with torch 2.9.0 and this is" in said


@pytest.mark.parametrize("version", ["0.0.9", None])
def test_a_run_of_another_version_is_used_and_named(
    version: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict()
    assert "made with" not in capsys.readouterr().out
    record = json.loads(Path("run/run.json").read_text())
    assert record["runner"] == runner.__version__
    Path("run/run.json").write_text(json.dumps(record | {"runner": version}))
    commands = [
        ["predict", "run", "--input", "t.csv", "--output", "out.csv", "--force"],
        ["evaluate", "run", "--input", "t.csv"],
        ["export", "run", "--format", "safetensors", "--output", "model"],
    ]
    name = f"runner {version}" if version else "an older version of runner, which recorded no number"
    for command in commands:
        assert main(command) == 0
        assert f"note: the run was made with {name}; this is {runner.__version__}\n" in capsys.readouterr().out
    description = json.loads(Path("model/model.json").read_text())
    assert description["runner"] == runner.__version__
    Path("model/model.json").write_text(json.dumps(description | {"runner": version}))
    assert main(["predict", "model", *commands[0][2:]]) == 0
    assert f"note: the run was made with {name}; this is {runner.__version__}\n" in capsys.readouterr().out


def test_a_preprocessing_that_an_older_version_has_not_written_is_made_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = predict("run"), predict("strict", "data.missing=mean")
    Path("run/preprocessing.json").unlink()
    Path("strict/preprocessing.json").unlink()
    assert (predict("run"), predict("strict", "data.missing=mean")) == expected
    table_bytes = Path("t.csv").read_bytes()
    with open("t.csv", "a") as file:
        file.write("r60,1,red,2024-01-11,1,2\n")
    problem = (
        "error: run must have a preprocessing.json, which older versions did not write, and it cannot be made again: {}; repeat the run "
        "with python -m runner rerun run, with data.path=… if the file was moved\n"
    )
    new = ["--input", "new_rows.csv"]
    Path("t.csv").rename("new_rows.csv")
    assert refused(capsys, "run", *new) == problem.format("`data.path` must be a readable file, but 't.csv' does not exist")  # fmt: skip
    shutil.copy("new_rows.csv", "t.csv")
    assert refused(capsys, "run", *new) == problem.format("its data have another content now")
    Path("t.csv").write_bytes(table_bytes)
    assert predict("run") == expected[0]
    state = torch.load("run/checkpoints/step_6/state.pt", weights_only=True)
    saved = Scaling(**state["scaling"])
    assert is_same_scaling(saved, state["scaling"])
    assert not is_same_scaling(replace(saved, target_mean=saved.target_mean + 1e-3), state["scaling"])
    assert not is_same_scaling(saved, {"target_mean": "x"})


def test_files_that_do_not_belong_together_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads(Path("run/summary.json").read_text())
    summary["selected"]["parameters_sha256"] = "0" * 64
    Path("run/summary.json").write_text(json.dumps(summary))
    assert "run/checkpoints/step_6 must have the parameters of `selected` in summary.json" in refused(capsys, "run")
    config = Path("strict/config.yaml")
    config.write_text(config.read_text().replace("- 7\n", "- 8\n"))
    assert "`model.widths` must be [7] as in step_6, got [8] in config.yaml; restore config.yaml" in refused(
        capsys, "strict"
    )
    state = json.loads(Path("run/preprocessing.json").read_text())
    state["features"][0]["mean"] = "1"
    state["inputs"][1]["scale"] = 0
    Path("run/preprocessing.json").write_text(json.dumps(state))
    error = refused(capsys, "run", "--state", "3")
    assert "run/preprocessing.json: `features.0.mean` must be a finite number, got '1'; restore the file" in error
    assert "`inputs.1.scale` must be a finite number above 0, got 0; restore the file" in error
    assert "`RUN` must be a run directory, got 'absent'" in refused(capsys, "absent")


SWEEP = [*QUICK, *NET, "data.drop=[id]", "data.missing=mean", "data.split.valid=12", "run_dir=sweep"]


def test_a_sweep_predicts_the_mean_over_the_seeds_of_its_best_setting() -> None:
    _, results = runner.multirun(None, [*SWEEP, "data.seed=0", "seed=1,2,3", "optimizer.lr=1e-5,0.1"])
    predict("sweep")
    members = [member for member in results.members if member.values["optimizer.lr"] == 0.1]
    single = np.stack([runner.load(f"sweep/{member.number}").predict(table()) for member in members])
    assert column() == [str(value) for value in single.mean(0).astype(np.float32)]
    np.testing.assert_allclose(np.array(column("spread"), float), single.std(0, ddof=1), rtol=1e-6)


@pytest.mark.parametrize(
    ("swept", "message"),
    [
        (
            ["seeds=2"],
            "sweep must have trials with the same training rows for a mean over seeds, but each seed has its own split",
        ),
        (
            ["data.split.folds=3", "data.split.valid=0"],
            "sweep must be a sweep over settings and seeds, got one over 3 folds",
        ),
        (
            ["data.split.valid=5,12"],
            "sweep must be a sweep whose trials were compared on the same rows, but it varies data.split.valid",
        ),
    ],
)
def test_a_sweep_over_different_rows_is_refused(swept: list[str], message: str) -> None:
    runner.multirun(None, [*SWEEP, *swept])
    with pytest.raises(CheckpointError, match=message):
        runner.load("sweep")
