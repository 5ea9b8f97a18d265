"""Runs with a module, and with rows, that Python code gives to `runner.run`."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
import yaml
from my_lab.from_python import Net
from torch import Tensor, nn

import runner
from runner import cli
from runner.errors import Diverged, InputError
from runner.runs.hashes import parameters_sha256
from runner.training.run import Run

QUICK = ["device=cpu", "device.threads=1", "record.plots=false", "record.sinks=[jsonl]", "record.baselines=[]"]
OVERRIDES = [
    *QUICK,
    "optimizer=adam",
    "optimizer.lr=0.01",
    "train.steps=20",
    "train.batch_size=16",
    "checkpoint.every_steps=5",
]

_RANDOM = np.random.default_rng(0)
X = _RANDOM.normal(size=(40, 2))
Y = X @ [1.0, -2.0] + 0.1 * _RANDOM.normal(size=40)
FRAME = pd.DataFrame({"a": X[:, 0], "kind": ["u", "v"] * 20, "b": X[:, 1], "out": Y})

NOTEBOOK = """
import torch

class Wave(torch.nn.Module):
    def __init__(self, in_features, width=3):
        super().__init__()
        self.first = torch.nn.Linear(in_features, width)
        self.last = torch.nn.Linear(width, 1)

    def forward(self, x):
        return self.last(torch.sin(self.first(x)))
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def wave(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A class that a notebook has defined."""
    main = sys.modules["__main__"]
    names = {"__name__": "__main__"}
    exec(NOTEBOOK, names)
    monkeypatch.setattr(main, "Wave", names["Wave"], raising=False)
    return names["Wave"]


def sha256(net: nn.Module) -> str:
    return parameters_sha256({f"module.{name}": value for name, value in net.named_parameters()})


def config(run: Run) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((run.directory / "config.yaml").read_text())
    return values


def written(path: str, frame: Any) -> str:
    """Write a table whose numbers are read again as they are."""
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(frame.columns)
        rows.writerows([[*map(str, row)] for row in frame.to_numpy().tolist()])
    return path


def test_the_example_of_the_page_runs() -> None:
    page = (Path(__file__).parents[2] / "docs/own_code.md").read_text(encoding="utf-8")
    (example,) = re.findall(
        r"```python\n(.*?)```", page.partition("## From Python")[2].partition("\n## ")[0], re.DOTALL
    )
    names: dict[str, Any] = {}
    exec(example.replace('"train.steps=500"', '"train.steps=20", "record.plots=false"'), names)
    assert sha256(names["net"]) == names["run"].summary["parameters_sha256"]


# ------------------------------------------------------------------------------------ the answer of the command line


def test_a_class_and_arrays_have_the_run_of_the_command_line() -> None:
    table = written("table.csv", pd.DataFrame({"x0": X[:, 0], "x1": X[:, 1], "y": Y}))
    others = [*OVERRIDES, "model.kwargs={width: 5}", "data.split.valid=8", "run_dir=typed"]
    own = ["model=custom", "model.target=my_lab.from_python:Net", "data=csv", f"data.path={table}", "data.target=y"]
    assert cli.main(["--trust", "my_lab", *own, *others]) == 0
    typed = runner.run(overrides=["resume=typed"], trust=["my_lab"])

    found = runner.run(model=Net, data=(X, Y), overrides=[*others[:-1], "run_dir=given"])
    assert found.summary["parameters_sha256"] == typed.summary["parameters_sha256"]
    assert found.summary["metrics"] == typed.summary["metrics"]
    assert [row["train/loss"] for row in found.rows] == [row["train/loss"] for row in typed.rows]
    assert config(found)["model"] == config(typed)["model"]
    assert config(found)["data"]["name"] == "memory"
    assert {path.name for path in found.directory.iterdir()} == {path.name for path in typed.directory.iterdir()}


@pytest.mark.parametrize("kind", [pd.DataFrame, pl.from_pandas], ids=["pandas", "polars"])
def test_tables_by_part_have_the_run_of_their_files(kind: Any) -> None:
    train, valid = FRAME[:28], FRAME[28:]
    files = [f"data.path={written('train.csv', train)}", f"data.valid_path={written('valid.csv', valid)}"]
    model = ["model=mlp", "model.widths=[4]"]
    typed = runner.run(overrides=[*OVERRIDES, *model, "data=csv", *files, "data.target=out"])
    # The second table has an index of its own, and its columns in another order.
    parts = {"train": kind(train), "valid": kind(valid[["out", "kind", "b", "a"]])}
    found = runner.run(data=parts, target="out", overrides=[*OVERRIDES, *model])
    assert found.summary["parameters_sha256"] == typed.summary["parameters_sha256"]
    assert found.summary["metrics"] == typed.summary["metrics"]
    assert config(found)["data"]["parts"] == ["valid"]


def test_the_index_of_a_table_is_no_column() -> None:
    shuffled = FRAME.sample(frac=1.0, random_state=0)
    run = runner.run(data=shuffled, target=["out"], overrides=[*QUICK, "train.steps=1"])
    assert "of 4 features" in (run.directory / "run.log").read_text()


def test_features_as_a_table_and_targets_as_a_tensor() -> None:
    targets = torch.tensor(np.stack([Y, -Y], 1), requires_grad=True)
    features = FRAME[["a", "b"]]
    run = runner.run(data=(features, targets), overrides=[*OVERRIDES, "model=linear"])
    assert config(run)["data"]["target"] == ["y0", "y1"]
    both = features.assign(u=Y, v=-Y)
    again = runner.run(data=both, target=["u", "v"], overrides=[*OVERRIDES, "model=linear"])
    assert run.summary["parameters_sha256"] == again.summary["parameters_sha256"]


def test_a_model_without_data_trains_on_the_data_of_the_configuration() -> None:
    run = runner.run("linreg", [*QUICK, "train.steps=3"], model=nn.Linear(1, 1))
    assert config(run)["data"]["name"] == "line"
    assert config(run)["model"]["target"] == "an instance of torch.nn.modules.linear:Linear"


# --------------------------------------------------------------------------------------------------------- modules


def test_a_module_is_trained_from_its_values_and_has_those_that_the_run_reports() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.last = nn.BatchNorm1d(2), nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            prediction: Tensor = self.last(self.norm(x))
            return prediction

    net = Normed()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    stop = ["train.early_stopping.patience=1", "train.eval_every_steps=5", "data.split.valid=10", "train.steps=200"]
    run = runner.run(model=net, data=(X, Y), overrides=[*OVERRIDES, *stop, "optimizer.lr=0.3"])
    assert run.summary["selected"]["step"] < run.summary["steps"]  # an earlier state is reported
    assert sha256(net) == run.summary["selected"]["parameters_sha256"]
    assert int(net.norm.num_batches_tracked) == run.summary["selected"]["step"]  # type: ignore[arg-type]
    assert net.training

    net.load_state_dict(before)
    expected = torch.nn.functional.mse_loss(net(torch.tensor(X).float()), torch.tensor(Y).float()[:, None])
    run = runner.run(model=net, data=(X, Y), overrides=[*OVERRIDES, "train.steps=1", "train.batch_size=null"])
    assert run.rows[0]["train/loss"] == pytest.approx(expected.item(), rel=1e-6)  # rounding of float32


def test_a_module_keeps_its_values_where_the_run_fails() -> None:
    net = nn.Linear(2, 1)
    before = sha256(net)
    with pytest.raises(Diverged):
        runner.run(model=net, data=(X, Y), overrides=[*OVERRIDES, "optimizer=sgd", "optimizer.lr=1e30"])
    assert sha256(net) == before


def test_a_module_in_another_dtype_gets_the_values_in_its_own() -> None:
    net = nn.Linear(2, 1)
    run = runner.run(model=net, data=(X, Y), overrides=[*OVERRIDES, "dtype=float64"])
    assert net.weight.dtype == torch.float32
    assert net.weight.tolist() == pytest.approx(np.float32(run.summary["parameters"]["weight"]))


def test_a_function_may_take_categories() -> None:
    class Coded(nn.Module):
        def __init__(self, numbers: int, codes: list[int], size: int) -> None:
            super().__init__()
            self.tables = nn.ModuleList([nn.Embedding(count, size) for count in codes])
            self.last = nn.Linear(numbers + size * len(codes), 1)

        def forward(self, x: Tensor, categories: Tensor) -> Tensor:
            vectors = [table(codes) for table, codes in zip(self.tables, categories.unbind(1), strict=True)]
            prediction: Tensor = self.last(torch.cat([x, *vectors], 1))
            return prediction

    run = runner.run(
        model=lambda in_features, cardinalities: Coded(in_features, cardinalities, 2),
        data=FRAME,
        target="out",
        overrides=OVERRIDES,
    )
    assert config(run)["model"]["codes"] is True
    assert "tables.0.weight" in run.summary["parameters"]


# ---------------------------------------------------------------------------------------------- resuming, and using


@pytest.mark.parametrize("kind", ["class", "module", "function"])
def test_a_run_is_resumed_with_the_same_objects(kind: str, wave: Any) -> None:
    def model() -> Any:
        torch.manual_seed(3)
        return {"class": wave, "module": wave(2), "function": lambda in_features: wave(in_features, 5)}[kind]

    whole = runner.run(model=model(), data=(X, Y), overrides=OVERRIDES)
    half = runner.run(model=model(), data=(X, Y), overrides=[*OVERRIDES, "train.steps=10"])
    again = model()
    resumed = runner.run(
        model=again, data=(X.copy(), Y.tolist()), overrides=[f"resume={half.directory}", "train.steps=20"]
    )
    assert resumed.directory == half.directory
    assert resumed.summary["parameters_sha256"] == whole.summary["parameters_sha256"]
    if kind == "module":
        assert sha256(again) == whole.summary["parameters_sha256"]
        later = model()  # nothing is left to train
        runner.run(model=later, data=(X, Y), overrides=[f"resume={half.directory}"])
        assert sha256(later) == whole.summary["parameters_sha256"]


def test_a_run_is_not_resumed_with_other_objects(wave: Any) -> None:
    run = runner.run(model=wave, data=(X, Y), overrides=[*OVERRIDES, "train.steps=5"])
    again = [f"resume={run.directory}", "train.steps=10"]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"data": (X, Y + 1), "model": wave}, "`data`=memory must have the content that step_5 was trained on, SHA-256"),
        ({"data": (X, Y), "model": nn.Linear(2, 1)}, "`model.module.weight` is missing; give the model of the run"),
        ({"data": (X, Y)}, "`model` must not be memory, whose module (__main__:Wave) only Python code can give; "),
        ({"model": wave}, "`data` must not be memory, whose rows only Python code can give; "),
        ({"data": {"train": (X, Y), "valid": (X, Y)}, "model": wave}, "`data` must have rows of their own for none, as the run has, got valid"),
        ({"data": (X, Y), "target": "z", "model": wave}, "`target` must be 'y', as `data.target` is, got 'z'; remove one of them"),
    ]  # fmt: skip
    for given, message in cases:
        with pytest.raises(InputError) as raised:
            runner.run(overrides=again, **given)
        assert message in str(raised.value)


def test_what_the_command_line_cannot_do_is_said(wave: Any, capsys: pytest.CaptureFixture[str]) -> None:
    net = wave(2)
    run = runner.run(model=net, data=(X, Y), overrides=[*OVERRIDES, "run_dir=mine"])
    assert (
        "note: `data` and `model` are in Python alone, so the command line cannot resume this run; "
        'runner.run(data=…, model=…, overrides=["resume=RUN_DIR"]) can\n'
    ) in (run.directory / "run.log").read_text()
    assert config(run)["model"] == {
        "name": "memory", "init_from": None, "kwargs": {}, "target": "an instance of __main__:Wave", "codes": False,
    }  # fmt: skip
    model = (
        "error: `model` must not be memory, whose module (an instance of __main__:Wave) only Python code can give; call "
        'runner.run(model=…), with overrides=["resume=RUN_DIR"] to resume a run, or runner.load(RUN_DIR, model=…) to use one\n'
    )
    data = (
        "error: `data` must not be memory, whose rows only Python code can give; call runner.run(data=…), with "
        'overrides=["resume=RUN_DIR"] to resume a run, or use data=csv with a file of the rows\n'
    )
    capsys.readouterr()
    for command, expected in (
        (["resume=mine"], data + model),
        (["rerun", "mine"], data + model),
        (["predict", "mine", "--input", "new.csv", "--output", "out.csv"], model),
    ):
        assert cli.main(command) == 2
        assert capsys.readouterr().err.endswith(expected)

    predicted = runner.load("mine", model=wave).predict(X)
    assert predicted == pytest.approx(net(torch.tensor(X).float()).detach().numpy()[:, 0], rel=1e-5)
    with pytest.raises(InputError, match=r"^`model` must not be memory, whose module"):
        runner.load("mine")


def test_a_run_with_rows_alone_predicts_on_the_command_line() -> None:
    run = runner.run(data=FRAME, target="out", overrides=[*OVERRIDES, "model=linear", "run_dir=mine"])
    written("new.csv", FRAME)
    assert cli.main(["predict", "mine", "--input", "new.csv", "--output", "out.csv"]) == 0
    with open("out.csv") as file:
        found = np.array([row["prediction"] for row in csv.DictReader(file)], np.float32)
    assert found.tolist() == runner.load(run.directory).predict(FRAME).astype(np.float32).tolist()


# ------------------------------------------------------------------------------------------------------ bad inputs


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": torch.zeros(3)}, "`model` must be a torch.nn.Module, its class, or a function that returns one, got Tensor; pass one of them"),
        ({"model": "mlp"}, '`model` must be a torch.nn.Module, its class, or a function that returns one, got str; use overrides=["model=mlp"]'),
        ({"model": int}, "`model` must be a subclass of torch.nn.Module, got builtins:int; correct the class"),
        ({"model": nn.Identity()}, "`model`=an instance of torch.nn.modules.linear:Identity must have parameters that are trained, got none; register them as torch.nn.Parameter"),
        ({"model": nn.Linear(3, 1)}, "`model`=an instance of torch.nn.modules.linear:Linear: its forward pass failed: RuntimeError: mat1 and mat2 shapes cannot be multiplied (4x2 and 3x1)"),
        ({"model": nn.Linear(2, 1), "overrides": ["model.kwargs={width: 3}"]}, "`model.kwargs` must be {} for a module that is built already, got {'width': 3}; pass its class"),
        ({"model": Net, "overrides": ["model.kwargs={wdith: 3}"]}, "`model.kwargs.wdith` must be an argument of my_lab.from_python:Net; did you mean `model.kwargs.width`?"),
        ({"model": Net, "overrides": ["model=mlp"]}, "`model` must not be in `overrides`, because runner.run was given model=…; remove one of them"),
        ({"overrides": ["data=line"]}, "`data` must not be in `overrides`, because runner.run was given data=…; remove one of them"),
        ({"data": FRAME}, "`target` must name the column of `data` to predict, such as out, got None; name it"),
        ({"data": FRAME, "target": "outt"}, "`data.target` must name a column of 'data', got 'outt'; the columns are 'out', 'a', 'kind', 'b'"),
        ({"data": None, "target": "out"}, "`target` must be None without `data`, got 'out'; use data.target"),
        ({"data": (X[:5], Y)}, "`data` must have X and y of one length, got 5 rows of X and 40 of y; correct one"),
        ({"data": (X[:, 0], Y)}, "`data` must have X of the shape [rows, features], got [40]; use X.reshape(-1, 1)"),
        ({"data": (X, Y.reshape(2, 4, 5))}, "`data` must have y of the shape [rows] or [rows, targets], got [2, 4, 5]; reshape it"),
        ({"data": (X, ["a"] * 40)}, "`data` must have real numbers in y, got the type <U1; cast them, or give a table with names"),
        ({"data": ([[1.0, 2.0], [3.0]], [1.0, 2.0])}, "`data` must have an array as X, got rows of several lengths; correct them"),
        ({"data": (np.where(X[3, 1] == X, np.inf, X), Y)}, "`data` must have finite numbers in X, or nan for a missing one, got inf in row 3; correct it"),
        ({"data": (np.where(X[3, 1] == X, np.nan, X), Y)}, "`data.missing`: column 'x1' of 'data' has 1 missing value (2.5%), in row 3; use data.missing=drop or data.missing=mean"),
        ({"data": (X, Y), "target": ["u", "v"]}, "`data.target` must have as many names as y has columns, got 'u', 'v' for 1; name each"),
        ({"data": (FRAME[["a", "out"]], Y), "target": "out"}, "`data.target` must name y as no column of X is, got 'out'; use another name"),
        ({"data": {"a": X[:, 0]}}, "`data` must be a table, a pair (X, y), or these by part (train, valid, test), got a dict with 'a'; make a table of its columns"),
        ({"data": {"valid": FRAME}, "target": "out"}, "`data` must have rows for train, got valid; add them"),
        ({"data": {"train": FRAME, "valid": FRAME[["a", "out"]]}, "target": "out"}, "`data[\"valid\"]` must have the columns of the training rows, but 'data[\"valid\"]' lacks 'kind', 'b'; add them"),
        ({"data": {"train": FRAME, "valid": FRAME}, "target": "out", "overrides": ["data.split.valid=0.2"]}, '`data.split.valid` must be 0 with data={"valid": …}, which has the valid rows, got 0.2; use data.split.valid=0'),
        ({"data": X}, "`target` must name the column of `data` to predict, got None; name it"),
        ({"data": FRAME[:0], "target": "out"}, "`data` must have rows, got 0 rows in 'data'; add rows"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        runner.run(**{"data": (X, Y), **given, "overrides": [*QUICK, *given.get("overrides", [])]})
    assert str(raised.value) == message
    assert not [*tmp_path.iterdir()]


def test_an_error_in_a_notebook_is_shown_with_its_line(wave: Any) -> None:
    for module, place in (
        (wave, "__main__:Wave: Wave(in_features=2, width='x') failed in <string>, line 7, in __init__: TypeError: "),
        (
            wave(3),
            "an instance of __main__:Wave: its forward pass failed in <string>, line 11, in forward: RuntimeError: ",
        ),
    ):
        kwargs = ["model.kwargs={width: x}"] if module is wave else []
        with pytest.raises(InputError) as raised:
            runner.run(model=module, data=(X, Y), overrides=[*QUICK, *kwargs])
        assert str(raised.value).startswith(f"`model`={place}")


# ----------------------------------------------------------------------------------------------------------- trust


@pytest.fixture
def _untrusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNNER_TRUST", raising=False)


@pytest.mark.usefixtures("_untrusted")
def test_packages_are_trusted_for_a_call() -> None:
    own = [*QUICK, "model=custom", "model.target=my_lab.from_python:Net", "train.steps=2"]
    with pytest.raises(InputError, match="add --trust my_lab if you know what it does"):
        runner.run("linreg", own)
    run = runner.run("linreg", own, trust=["my_lab"])
    with pytest.raises(InputError, match="add --trust my_lab if you know what it does"):
        runner.load(run.directory)
    assert runner.load(run.directory, trust=["my_lab"]).predict(np.array([[1.0]])).shape == (1,)
    _, results = runner.multirun("linreg", [*own, "optimizer.lr=1e-5,1e-4"], trust=["my_lab"])
    assert all("test/rmse" in trial.metrics for trial in results.members)


def test_a_sweep_takes_a_class_that_other_processes_can_import(wave: Any) -> None:
    swept = [
        *OVERRIDES[:-1],
        "optimizer.lr=1e-5,1e-4",
        "model.kwargs.width=2",
        "train.steps=2",
        "data.standardize=true",
    ]
    _, results = runner.multirun("linreg", swept, model=Net)
    assert len({trial.metrics["test/rmse"] for trial in results.members}) == 2
    with pytest.raises(InputError) as raised:
        runner.multirun("linreg", swept, model=wave, data=(X, Y))
    assert raised.value.problems == (
        "`data` must not be given to runner.multirun, whose trials may run in other processes; write the rows to a file for "
        "data=parquet, or call runner.run for each trial",
        "`model` must be a class that can be imported, because the trials of runner.multirun may run in other processes, got "
        "__main__:Wave; save the class in a module, or call runner.run for each trial",
    )
