"""Splits as a user gives them: own files, columns, groups, bins, calibration rows and folds, on real runs."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from scipy import stats

import runner
from runner.cli import main
from runner.data import tables
from runner.errors import InputError
from runner.sweep.results import settings
from runner.training.run import Run

LEAST = ["model=linear", "optimizer=lstsq", "dtype=float64", "device=cpu", "device.threads=1", "record.plots=false"]
TABLE = ["data=csv", "data.path=t.csv", "data.target=y", *LEAST]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _write(path: str, **columns: Any) -> None:
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(columns)
        lines.writerows(zip(*columns.values(), strict=True))


def _fit(*overrides: str) -> Run:
    return runner.run(None, [*TABLE, *overrides])


def _rows(run: Run | Path) -> dict[str, list[int]]:
    """Return the numbers, from 1, of the rows of each part, as `residuals.csv` has them."""
    directory = run if isinstance(run, Path) else run.directory
    parts: dict[str, list[int]] = {}
    for line in (directory / "residuals.csv").read_text().splitlines()[1:]:
        number, part, *_ = line.split(",")
        parts.setdefault(part, []).append(int(number))
    return parts


def _refused(*overrides: str) -> tuple[str, ...]:
    with pytest.raises(InputError) as caught:
        _fit(*overrides)
    assert not Path("runs").exists()
    return caught.value.problems


def _numbers(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    x, z = random.standard_normal((2, rows))
    return {"x": x, "z": z, "y": 2 * x - z + 1 + random.standard_normal(rows)}


def _line(columns: dict[str, np.ndarray], rows: Any) -> np.ndarray:
    """Return the least-squares coefficients [x, z, constant] of some rows."""
    x, z, y = (columns[name][rows] for name in "xzy")
    solution: np.ndarray = np.linalg.lstsq(np.column_stack([x, z, np.ones_like(x)]), y)[0]
    return solution


def _rmse(columns: dict[str, np.ndarray], coefficients: np.ndarray, rows: Any) -> float:
    x, z, y = (columns[name][rows] for name in "xzy")
    return float(np.sqrt(np.mean((y - np.column_stack([x, z, np.ones_like(x)]) @ coefficients) ** 2)))


# ------------------------------------------------------------------------------------------------------------ own files


def test_own_files_are_the_same_split_as_a_column_that_says_it() -> None:
    columns: dict[str, Any] = _numbers(40)
    random = np.random.default_rng(1)
    # The training rows lack one category, and the test rows have values of their own.
    columns["kind"] = np.where(np.arange(40) < 25, random.choice(["oak", "elm"], 40), random.choice(["oak", "ash"], 40))
    parts = {"train": slice(0, 25), "valid": slice(25, 33), "test": slice(33, 40)}
    named = np.repeat(list(parts), [25, 8, 7])
    _write("all.csv", **columns, part=named)
    for part, rows in parts.items():
        _write(f"{part}.csv", **{name: column[rows] for name, column in columns.items()}, more=range(99)[rows])
        pq.write_table(pacsv.read_csv(f"{part}.csv"), f"{part}.parquet")
    common = [*LEAST, "data.target=y", "data.features=[x,z,kind]"]
    one = runner.run(None, ["data=csv", "data.path=all.csv", "data.split.column=part", *common])
    for kind in ("csv", "parquet"):
        paths = [f"data.path=train.{kind}", f"data.valid_path=valid.{kind}", f"data.test_path=test.{kind}"]
        run = runner.run(None, [f"data={kind}", *paths, *common])
        assert run.summary["parameters_sha256"] == one.summary["parameters_sha256"]
        assert run.summary["metrics"] == one.summary["metrics"]
        # Rows are counted through the files.
        assert _rows(run) == {part: list(range(rows.start + 1, rows.stop + 1)) for part, rows in parts.items()}
    assert "valid rows of 'valid.parquet'; test rows of 'test.parquet'" in (run.directory / "run.log").read_text()


def test_metrics_of_own_files_are_those_of_their_rows() -> None:
    columns = _numbers(30)
    _write("t.csv", **{name: column[:20] for name, column in columns.items()})
    # Another order of the columns, another delimiter, and rows with missing values that are left out.
    lines = [f"{y};{x};{z}" for y, x, z in zip(*(columns[name][20:] for name in "yxz"), strict=True)]
    Path("v.csv").write_text("\n".join(["y;x;z", *lines[:3], "1;;2", *lines[3:]]) + "\n")
    summary = _fit("data.valid_path=v.csv", "data.missing=drop").summary
    coefficients = _line(columns, slice(0, 20))
    assert [summary["coefficients"][name] for name in ("x", "z", "constant")] == pytest.approx(list(coefficients))
    assert summary["metrics"]["valid/rmse"] == pytest.approx(_rmse(columns, coefficients, slice(20, 30)))


def test_the_training_file_is_divided_further_where_a_part_has_its_own_file() -> None:
    _write("t.csv", **_numbers(20))
    _write("test.csv", **_numbers(4, seed=1))
    parts = _rows(_fit("data.test_path=test.csv", "data.split.valid=0.25", "data.split.calibrate=3"))
    assert {part: len(rows) for part, rows in parts.items()} == {"train": 12, "valid": 5, "calibrate": 3, "test": 4}
    assert parts["test"] == [21, 22, 23, 24]


def test_an_own_file_is_read_with_the_kinds_of_the_training_rows() -> None:
    _write("t.csv", x=[1, 2, 3, 4, 5], site=["1", "2", "a", "b", "c"], y=[1, 2, 3, 5, 4])
    _write("v.csv", x=[1, 2], site=["1", "2"], y=[1, 2])  # a column of numbers by itself
    _write("n.csv", x=["b", "a"], site=["1", "2"], y=[1, 2])
    summary = _fit("data.valid_path=v.csv", "model=mlp", "optimizer=adam", "train.steps=2").summary
    assert "valid/rmse" in summary["metrics"]
    shutil.rmtree("runs")
    assert _refused("data.valid_path=n.csv") == (
        "`data.valid_path`: line 2 of 'n.csv', column 'x' (none of its 2 values is usable), must be a finite number, got 'b', "
        "text; use numbers, or another column",
    )


OWN: dict[str, tuple[str, str]] = {
    "no such file": ("", "`data.valid_path` must be a readable file, but 'v.csv' does not exist; give its path with data.valid_path=PATH, relative to the working directory"),
    "a column missing": ("x,y\n1,2\n", "`data.valid_path` must have the columns of the training rows, but 'v.csv' lacks 'when'; add them"),
    "no rows": ("x,when,y\n", "`data.valid_path` must have rows, got a header and 0 rows in 'v.csv'; add rows"),
    "text instead of dates": ("x,when,y\n1,late,2\n2,soon,3\n", "`data.valid_path` must have the same kinds of columns as the training rows, but 'when' of 'v.csv' has other ones; write its cells in the same way"),
    "a missing value": ("x,when,y\n1,,2\n2,2024-01-02,3\n", "`data.missing`: column 'when' of 'v.csv' has 1 missing value (50.0%), in line 2; use data.missing=drop or data.missing=mean"),
    "a cell that is no number": ("x,when,y\n1,2024-01-02,2\n?!,2024-01-02,3\n", "`data.valid_path`: line 3 of 'v.csv', column 'x', must be a finite number, got '?!', text; use a number, or list it in `data.missing_values`"),
}  # fmt: skip


@pytest.mark.parametrize("case", OWN)
def test_an_own_file_that_does_not_fit_is_refused(case: str) -> None:
    text, problem = OWN[case]
    _write("t.csv", x=[1, 2, 3], when=["2024-01-01", "2024-01-02", "2024-01-03"], y=[3, 1, 2])
    if text:
        Path("v.csv").write_text(text)
    assert _refused("data.valid_path=v.csv") == (problem,)


def test_an_own_file_with_the_training_rows_is_reported() -> None:
    _write("t.csv", **_numbers(9))
    shutil.copy("t.csv", "copy.csv")
    log = (_fit("data.test_path=copy.csv").directory / "run.log").read_text()
    assert "note: `data.test_path` has the content of `data.path`, so its rows are no test of the model\n" in log


# -------------------------------------------------------------------------------------------------- columns with a role


def test_a_column_says_the_part_of_each_row_and_is_no_feature() -> None:
    columns = _numbers(12)
    words = ["train", "test", "train", "valid"] * 3
    _write("t.csv", **columns, part=words)
    run = _fit("data.split.column=part")
    expected = {part: [row + 1 for row in range(12) if words[row] == part] for part in ("train", "valid", "test")}
    assert _rows(run) == expected
    assert list(run.summary["coefficients"]) == ["x", "z", "constant"]
    calibrated = _rows(_fit("data.split.column=part", "data.split.calibrate=2"))
    assert calibrated["test"] == expected["test"]
    assert sorted(calibrated["train"] + calibrated["calibrate"]) == expected["train"]


@pytest.mark.parametrize("names", [range(100, 107), ["0a", "b", "c c", "é", "e", "f", "007"]], ids=["numbers", "texts"])
def test_groups_stay_together_and_their_column_is_no_feature(names: Any) -> None:
    of_row = np.random.default_rng(2).integers(0, 7, 70)
    _write("t.csv", **_numbers(70), patient=[names[group] for group in of_row])
    run = _fit("data.split.group=patient", "data.split.test=0.3", "data.split.valid=1")
    groups = {part: {int(of_row[row - 1]) for row in rows} for part, rows in _rows(run).items()}
    assert sorted(group for part in groups.values() for group in part) == list(range(7))
    assert len(groups["valid"]) == 1
    assert list(run.summary["coefficients"]) == ["x", "z", "constant"]
    pq.write_table(pacsv.read_csv("t.csv"), "t.parquet")
    other = _fit(
        "data=parquet", "data.path=t.parquet", "data.split.group=patient", "data.split.test=0.3", "data.split.valid=1"
    )
    assert other.summary["parameters_sha256"] == run.summary["parameters_sha256"]


def test_bins_of_the_target_are_shared_out_also_of_data_without_columns() -> None:
    run = runner.run(None, ["data=diabetes", *LEAST, "data.split.test=0.25", "data.split.stratify=4"])
    lines = [line.split(",") for line in (run.directory / "residuals.csv").read_text().splitlines()[1:]]
    target = np.array([float(line[2]) for line in lines])
    quarter = np.searchsorted(np.quantile(target, [0.25, 0.5, 0.75]), target)
    counts = np.bincount(quarter[[line[1] == "test" for line in lines]], minlength=4)
    assert counts.sum() == 110  # of 442
    assert counts.max() - counts.min() <= 2  # ties of the target are in one bin


def test_calibration_rows_have_no_metrics_and_no_effect() -> None:
    columns = _numbers(40)
    _write("t.csv", **columns)
    overrides = ["data.split.calibrate=0.25", "data.split.valid=8", "data.split.test=4"]
    run = _fit(*overrides)
    assert {name.split("/")[0] for name in run.summary["metrics"]} == {"train", "valid", "test"}
    assert "data     csv: 18 train, 8 valid, 10 calibrate, 4 test rows" in (run.directory / "run.log").read_text()
    rows = _rows(run)["calibrate"]
    assert len(rows) == 10
    columns["y"][np.array(rows) - 1] = 1e6
    _write("t.csv", **columns)
    again = _fit(*overrides)
    assert again.summary["parameters_sha256"] == run.summary["parameters_sha256"]
    assert again.summary["metrics"] == run.summary["metrics"]


BAD: dict[str, tuple[list[str], str]] = {
    "other words": (["data.split.column=kind"], "`data.split.column` must have the words train, valid, test, got 'a', 'b' in column 'kind' of 't.csv'; write one of them in each row"),
    "no training rows": (["data.split.column=tests"], "`data.split.column` must leave rows for training, but column 'tests' of 't.csv' has only 'test'; write train in some rows"),
    "a column and a share": (["data.split.column=part", "data.split.test=2"], "`data.split.test` must be 0, because `data.split.column` says which rows are test rows, got 2; use data.split.test=0"),
    "a column and folds": (["data.split.column=part", "data.split.folds=2", "data.split.fold=1"], "`data.split.folds` must be null, because `data.split.column` says which rows are valid rows, got 2; use data.split.folds=null"),
    "a column and a file": (["data.split.column=part", "data.test_path=t.csv"], "`data.test_path` must be null, because `data.split.column` says which rows are test rows, got 't.csv'; use data.test_path=null"),
    "no such column": (["data.split.group=patient"], "`data.split.group` must name a column of 't.csv', got 'patient'; the columns are 'part', 'tests', 'kind', 'x', 'y'"),
    "too few groups": (["data.split.group=kind", "data.split.test=2", "data.split.valid=2"], "`data.split.group` must have a group for each of valid, test, train, got 2 in all; name another column, or leave out a part"),
    "group and target": (["data.split.group=y"], "`data.split.group` must not be the target, got 'y'; name another column"),
    "group and column": (["data.split.group=part", "data.split.column=part"], "`data.split.group` must not be the column of `data.split.column`, got 'part'; name another column"),
    "group and weight": (["data.split.group=x", "data.weight=x"], "`data.split.group` must not be the column of `data.weight`, got 'x'; name another column"),
    "group and feature": (["data.split.group=kind", "data.features=[x,kind]"], "`data.features` must not contain the column of `data.split.group`, 'kind'; remove it"),
    "group dropped": (["data.split.group=kind", "data.drop=[kind]"], "`data.drop` must not contain 'kind', the column of `data.split.group`; remove it from one of them"),
    "folds above rows": (["data.split.folds=9", "data.split.fold=1"], "`data.split.folds` must be at most the number of rows to divide, 8, got 9; use fewer folds"),
    "folds above groups": (["data.split.folds=3", "data.split.fold=1", "data.split.group=kind"], "`data.split.folds` must be at most the number of groups to divide, 2, got 3; use fewer folds"),
    "folds and valid": (["data.split.folds=2", "data.split.valid=2"], "`data.split.valid` must be 0 with `data.split.folds`, each of which is the validation rows of a run, got 2; use data.split.valid=0"),
    "folds and a file": (["data.split.folds=2", "data.valid_path=t.csv"], "`data.split.folds` must be null with `data.valid_path`, which has the validation rows, got 2; use data.split.folds=null"),
    "a share and a file": (["data.split.test=2", "data.test_path=t.csv"], "`data.split.test` must be 0 with `data.test_path`, which has the test rows, got 2; use data.split.test=0"),
    "fold without folds": (["data.split.fold=1"], "`data.split.fold` must be null without `data.split.folds`, got 1; give the number of folds"),
    "fold above folds": (["data.split.folds=2", "data.split.fold=3"], "`data.split.fold` must be at most `data.split.folds`=2, got 3; use a smaller number"),
    "no fold": (["data.split.folds=2"], "`data.split.fold` must be one of the folds, 1 to 2, for a single run, got null; add -m for a sweep over all of them"),
    "one fold": (["data.split.folds=1"], "`data.split.folds` must be an integer of at least 2 or null, got 1"),
    "groups and bins": (["data.split.group=kind", "data.split.stratify=2"], "`data.split.stratify` must be false with `data.split.group`, whose groups are not divided, got 2; use data.split.stratify=false"),
    "bins in order": (["data.split.stratify=true", "data.split.order=sequential"], "`data.split.order` must be random with `data.split.stratify`, which draws from each bin, got sequential; use data.split.order=random"),
    "calibrate a part": (["data.split.calibrate=1.5"], "`data.split.calibrate` must be an integer number of rows or a fraction below 1, got 1.5; write a number of rows without a decimal point"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_splits_that_cannot_be_made_are_refused(case: str) -> None:
    overrides, problem = BAD[case]
    _write(
        "t.csv",
        part=["train", "train", "valid", "test"] * 2,
        x=range(1, 9),
        y=[3, 1, 4, 1, 5, 9, 2, 6],
        kind=["a", "b"] * 4,
        tests=["test"] * 8,
    )
    assert _refused(*overrides) == (problem,)


@pytest.mark.parametrize("name", ["column", "group"])
def test_data_without_columns_have_none_to_name(name: str) -> None:
    with pytest.raises(InputError) as caught:
        runner.run(None, ["data=line", *LEAST, f"data.split.{name}=x"])
    assert caught.value.problems == (
        f"`data.split.{name}` must be null with `data`=line, whose columns have no roles to choose, got 'x'; use data=csv or "
        f"data.split.{name}=null",
    )


# --------------------------------------------------------------------------------------------------------------- folds


def _members(directory: str) -> list[Path]:
    return sorted((path for path in Path(directory).iterdir() if path.name.isdigit()), key=lambda path: int(path.name))


def test_a_cross_validation_has_a_run_for_each_fold_and_their_mean(capsys: pytest.CaptureFixture[str]) -> None:
    columns = _numbers(47)
    _write("t.csv", **columns)
    assert main([*TABLE, "data.split.folds=5", "data.split.test=5", "record.residuals=true", "run_dir=cv"]) == 0
    parts = [_rows(member) for member in _members("cv")]
    assert len({tuple(part["test"]) for part in parts}) == 1
    assert sorted(row for part in parts for row in part["valid"]) == sorted(parts[0]["train"] + parts[0]["valid"])
    assert [len(part["valid"]) for part in parts] == [9, 9, 8, 8, 8]
    scores = []
    for part in parts:
        train, valid = (np.array(part[name]) - 1 for name in ("train", "valid"))
        scores.append(_rmse(columns, _line(columns, train), valid))
    table = list(csv.DictReader(Path("cv/results.csv").read_text().splitlines()))
    assert [float(row["valid/rmse"]) for row in table] == pytest.approx(scores)
    # Nadeau and Bengio (2003): the training rows of two folds overlap.
    half = stats.t.ppf(0.975, 4) * np.std(scores, ddof=1) * np.sqrt(1 / 5 + 1 / 4)
    text = capsys.readouterr().out
    assert f"{np.mean(scores):.6g} ± {half:.2g}" in text
    assert "intervals over 5 folds allow for the training rows that these share" in text
    # Folds of one shape are one program.
    assert "trials 0-1: 2 vmapped, as one program" in text
    assert "trials 2-4: 3 vmapped, as one program" in text


def test_a_fold_of_a_sweep_is_the_run_of_that_fold() -> None:
    network = ["data=diabetes", "model=mlp", "model.widths=[8]", "optimizer=adam", "train.steps=30", "train.batch_size=64", "data.standardize=true", *LEAST[2:]]  # fmt: skip
    split = ["data.split.folds=3", "data.split.stratify=true"]
    directory, results = runner.multirun(None, [*network, *split, "seeds=2", "run_dir=cv"])
    assert [(member.values["seed"], member.values["data.split.fold"]) for member in results.members] == [
        (seed, fold) for seed in (0, 1) for fold in (1, 2, 3)
    ]
    for member in (1, 5):
        values = results.members[member].values
        alone = runner.run(
            None, [*network, *split, f"data.split.fold={values['data.split.fold']}", f"seed={values['seed']}"]
        )
        expected = json.loads((directory / str(member) / "summary.json").read_text())
        # Vmapped sums may add in another order.
        assert alone.summary["metrics"] == pytest.approx(expected["metrics"], rel=1e-9)
        one, other = (
            json.loads((path / "run.json").read_text()) for path in (alone.directory, directory / str(member))
        )
        assert one["config_hash"] == other["config_hash"]


def test_settings_are_compared_over_folds_and_seeds() -> None:
    _write("t.csv", **_numbers(40))
    ridge = ["optimizer.weight_decay=0,10", "data.split.folds=4", "seeds=3"]
    _, results = runner.multirun(None, [*TABLE, *ridge, "run_dir=cv"])
    assert results.varied == ["optimizer.weight_decay"]
    best, other = settings(results)
    assert best.values == {"optimizer.weight_decay": 0}
    scores = np.array([[m.metrics["valid/rmse"] for m in setting.finished.values()] for setting in (best, other)])
    assert scores.shape == (2, 12)
    difference, deviation = np.mean(scores[1] - scores[0]), np.std(scores[1] - scores[0], ddof=1)
    found = other.minus(best, "valid/rmse")
    assert found.mean == pytest.approx(difference)
    # Bouckaert and Frank (2004): repeated cross-validation has no more rows than one.
    assert found.high - found.mean == pytest.approx(stats.t.ppf(0.975, 11) * deviation * np.sqrt(1 / 12 + 1 / 3))


def test_the_folds_of_an_experiment_are_swept_and_a_chosen_one_is_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "own" / "experiment"
    folder.mkdir(parents=True)
    text = "# @package _global_\ndefaults:\n  - override /data: diabetes\n  - override /optimizer: lstsq\n"
    (folder / "cv.yaml").write_text(f"{text}name: cv\ndata:\n  split:\n    folds: 3\n")
    from_folder = ["--config-dir", "own", "experiment=cv", "device=cpu", "device.threads=1", "record.plots=false"]
    assert main(["-m", *from_folder, "run_dir=cv"]) == 0
    assert len(_members("cv")) == 3
    assert json.loads(Path("cv/sweep.json").read_text())["swept"] == ["data.split.fold"]
    assert main([*from_folder, "data.split.fold=2", "run_dir=one"]) == 0
    one, member = (json.loads(Path(path, "summary.json").read_text()) for path in ("one", "cv/1"))
    assert one["metrics"] == pytest.approx(member["metrics"], rel=1e-5)  # float32
    assert main(["-m", *from_folder, "data.split.fold=1,3", "run_dir=two"]) == 0
    assert len(_members("two")) == 2


def test_a_sweep_over_folds_is_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    _write("t.csv", **_numbers(30))
    assert main([*TABLE, "data.split.folds=3", "run_dir=cv"]) == 0
    before = [json.loads((member / "summary.json").read_text())["parameters_sha256"] for member in _members("cv")]
    shutil.rmtree("cv/1")
    capsys.readouterr()
    assert main(["-m", "resume=cv"]) == 0
    assert "         3 finished, 0 left" in capsys.readouterr().out
    after = [json.loads((member / "summary.json").read_text())["parameters_sha256"] for member in _members("cv")]
    assert [after[0], after[2]] == [before[0], before[2]]
    assert len(set(after)) == 3


def test_a_run_of_a_fold_is_resumed_and_repeated_to_the_bit() -> None:
    _write("t.csv", **_numbers(30), patient=np.arange(30) // 3)
    network = ["model=mlp", "model.widths=[4]", "optimizer=adam", "train.batch_size=8", "checkpoint.every_steps=5"]
    split = ["data.split.folds=3", "data.split.fold=2", "data.split.group=patient", "data.split.calibrate=4"]
    whole = _fit(*network, *split, "train.steps=20")
    assert "rows of 2 features → y, fold 2 of 3\n" in (whole.directory / "run.log").read_text()
    begun = _fit(*network, *split, "train.steps=10")
    resumed = runner.run(None, [f"resume={begun.directory}", "train.steps=20"])
    assert resumed.summary["parameters_sha256"] == whole.summary["parameters_sha256"]
    assert main(["rerun", str(whole.directory), "run_dir=again"]) == 0
    again = json.loads(Path("again/summary.json").read_text())
    assert again["parameters_sha256"] == whole.summary["parameters_sha256"]


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["data.split.folds=31"], "`data.split.folds` must be at most the number of rows to divide, 30, got 31; use fewer folds"),
        (["data.split.folds=3", "data.path=no.csv"], "`data.path` must be a readable file, but 'no.csv' does not exist; give its path with data.path=PATH, relative to the working directory"),
        (["-m", "data.split.folds=2,3"], "`data.split.folds` must be one value for the whole sweep, got several; start a sweep for each of them"),
        (["-m", "data.split.folds=3", "data.split.fold=3,4"], "trial 1: `data.split.fold` must be at most `data.split.folds`=3, got 4; use a smaller number"),
    ],
)  # fmt: skip
def test_a_sweep_over_folds_that_cannot_be_made_is_refused_and_leaves_nothing(
    overrides: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _write("t.csv", **_numbers(30))
    assert main([*TABLE, *overrides, "run_dir=new/cv"]) == 2
    assert capsys.readouterr().err == f"error: {problem}\n"
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("rows", "overrides", "place"),
    [
        (["1,5,1", "2,-1,1"], ["data.log_target=true"], "row 2 of 'v.csv'"),
        (["1,5,1", "2,5,-3"], ["data.weight=w"], "row 2 of 'v.csv'"),
        (["1,1e300,1", "2,5,1"], ["dtype=float32"], "row 1 of 'v.csv'"),
        (["1,5,1"], ["data.log_target=true", "data.test_path=x.csv"], "row 3 of 'x.csv'"),
    ],
)
def test_a_row_of_a_file_that_a_part_has_of_its_own_is_named_by_its_place_in_it(
    rows: list[str], overrides: list[str], place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _write("t.csv", x=[1, 2, 3], y=[2, 4, 6], w=[1, 1, 1])
    Path("v.csv").write_text("\n".join(["x,y,w", *rows]) + "\n")
    _write("x.csv", x=[1, 2, 3], y=[1, 1, -1], w=[1, 1, 1])
    weight = [] if "data.weight=w" in overrides else ["data.drop=[w]"]
    assert main([*TABLE[:2], "data.target=y", "device=cpu", "data.valid_path=v.csv", *weight, *overrides]) == 2
    assert f" in {place}" in capsys.readouterr().err


def test_a_search_is_not_over_folds(capsys: pytest.CaptureFixture[str]) -> None:
    _write("t.csv", **_numbers(30))
    search = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "optimizer.weight_decay=interval(0.1,1)"]
    assert main([*search, *TABLE, "data.split.folds=3"]) == 2
    assert capsys.readouterr().err == (
        "error: `data.split.fold` must be one value in a search, which would find the easiest fold, got several; use "
        "data.split.valid with data.split.folds=null, or hydra/sweeper=grid\n"
    )


def test_a_table_is_read_once_for_all_folds_and_seeds_of_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their splits differ, and so does what is fitted to their training rows; each is the run of that fold by itself."""
    _write("t.csv", **_numbers(30))
    read, real = list[str](), tables.from_csv

    def counted(config: Any, *more: Any) -> tables.Table:
        read.append(config.path)
        return real(config, *more)

    monkeypatch.setattr(tables, "from_csv", counted)
    several = [
        *TABLE,
        "data.standardize=true",
        "data.split.folds=3",
        "train.steps=5",
        "optimizer=sgd",
        "optimizer.lr=0.1,0.01",
    ]
    directory, results = runner.multirun(None, [*several, "seeds=2"])
    assert [member.state for member in results.members] == ["finished"] * 12
    assert read == ["t.csv"]
    overrides = json.loads((directory / "sweep.json").read_text())["members"][7]["overrides"]
    single = runner.run(None, [*overrides, "run_dir=single"])
    assert single.summary["metrics"] == pytest.approx(results.members[7].metrics, rel=1e-6)
    assert len(read) == 2
