"""`data=custom`: a class from a package of the user's own reads the table."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from my_lab import data

import runner
from runner import cli

QUICK = [
    "device=cpu", "device.threads=1", "dtype=float64", "optimizer=lstsq", "train.steps=1", "record.plots=false", "record.residuals=false",
    "record.baselines=[]", "record.sinks=[jsonl]", "data.target=y", "data.standardize=true", "data.split.test=8",
]  # fmt: skip
OWN = [*QUICK, "data=custom"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RUNNER_TRUST", "my_lab")


def source(name: str) -> str:
    return f"data.source=my_lab.data:{name}"


def test_a_table_in_every_form_has_the_answer_of_the_file() -> None:
    pd.DataFrame(data.Sensor().columns()).to_parquet("sensor.parquet", index=False)
    filed = runner.run(None, [*QUICK, "data=parquet", "data.path=sensor.parquet"]).summary
    contents = set()
    for form in ("pandas", "polars", "pyarrow", "mapping"):
        own = runner.run(None, [*OWN, source("Sensor"), f"data.kwargs={{form: {form}}}"])
        assert own.summary["parameters_sha256"] == filed["parameters_sha256"]
        assert own.summary["metrics"] == filed["metrics"]
        record = json.loads((own.directory / "run.json").read_text())
        assert [*record["code"]] == ["my_lab.data:Sensor"]
        contents.add(record["data_sha256"])
    assert len(contents) == 1
    assert len(contents.pop()) == 64
    assert filed["metrics"]["test/rmse"] < 1e-12  # the table is linear


def test_the_package_must_be_trusted_but_not_to_predict(monkeypatch: pytest.MonkeyPatch) -> None:
    run = runner.run(None, [*OWN, source("Sensor")])
    monkeypatch.delenv("RUNNER_TRUST")
    with pytest.raises(runner.ConfigError, match="would be run; add --trust my_lab"):
        runner.run(None, [*OWN, source("Sensor")])
    rows = pd.DataFrame(data.Sensor(rows=5).columns())
    assert runner.load(run.directory).predict(rows).ravel() == pytest.approx(rows["y"].to_numpy(), abs=1e-12)
    rows.to_csv("new.csv", index=False)
    assert cli.main(["predict", str(run.directory), "--input", "new.csv", "--output", "out.csv"]) == 0


def test_resume_refuses_other_content() -> None:
    run = runner.run(None, [*OWN, source("Noisy"), "optimizer=adam", "optimizer.lr=0.1", "train.steps=2"])
    with pytest.raises(runner.CheckpointError, match="`data`=custom must have the content that"):
        runner.run(None, [f"resume={run.directory}", "train.steps=3"])
    same = runner.run(None, [*OWN, source("Sensor"), "optimizer=adam", "optimizer.lr=0.1", "train.steps=2"])
    assert runner.run(None, [f"resume={same.directory}", "train.steps=3"]).summary["steps"] == 3


def test_a_sweep_reads_its_table_once() -> None:
    data.Noisy.reads = 0
    runner.multirun(None, [*OWN, source("Noisy"), "data.split.test=0", "data.split.folds=2"])
    assert data.Noisy.reads == 1


def test_missing_values_are_those_of_a_table() -> None:
    with pytest.raises(runner.DataError, match=r"column 'x' of 'my_lab\.data:Gaps' has 1 missing value"):
        runner.run(None, [*OWN, source("Gaps")])
    assert runner.run(None, [*OWN, source("Gaps"), "data.missing=drop"]).summary["metrics"]["test/rmse"] < 1e-12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([source("Writer")], "must be a class with a method read, got one without it; add it to the class"),
        ([source("Array")], "or a mapping from names to arrays, from read, got a ndarray; convert it"),
        ([source("Series")], "from read, got a Series; convert it"),
        ([source("Square")], "must return columns [rows] from read, got 'x' of the shape [3, 2]"),
        ([source("Uneven")], "must return columns of one length from read, got 3 of x, 4 of y"),
        ([source("Nested")], "column 'x' of 'my_lab.data:Nested' has type list<"),
        ([source("Absent")], ", in read: FileNotFoundError: no sensor"),
        ([source("Sensor"), "data.target=z"], "`data.target` must name a column of 'my_lab.data:Sensor', got 'z'"),
        ([source("Sensor"), "data.kwargs={forms: polars}"], "did you mean `data.kwargs.form`?"),
        ([source("Sensor"), "data.kwargs={rows: 1}"], "`data.source` must have at least two rows, got 1 in"),
        (["data.source=my_lab.data.Sensor"], "write my_lab.data:Sensor"),
        ([source("Senor")], "did you mean my_lab.data:Sensor?"),
    ],
)
def test_what_is_no_table_is_refused_and_leaves_no_run(arguments: list[str], message: str) -> None:
    with pytest.raises(runner.InputError) as caught:
        runner.run(None, [*OWN, *arguments])
    assert message in str(caught.value)
    assert not Path("runs").exists()
