"""`export`: files that predict what the run predicts, without its directory and without this package."""

from __future__ import annotations

import builtins
import csv
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import safetensors.torch

import runner
from runner.cli import main
from runner.errors import CheckpointError

ROWS = 40
QUICK = ["device=cpu", "device.threads=1", "record.plots=false", "record.sinks=[jsonl]", "data=csv", "data.path=t.csv"]
NET = ["model=mlp", "model.widths=[7]", "train.steps=6", "optimizer=adam", "optimizer.lr=0.1"]
NUMBERS = ["data.standardize=false", "data.target_scale=standardize"]
RUNS = {
    "mean": ["data.standardize=true", "data.missing=mean", "data.target=y"],
    "two": [*NUMBERS, "data.numbers=quantile", "data.missing=mean", "data.target=[y,v w]", "model.activation=gelu"],
    "strict": ["data.standardize=true", "data.target=y", "data.missing=drop", "dtype=float64", "model.activation=silu"],
    "log": [*NUMBERS, "data.numbers=robust", "data.missing=mean", "data.target=y", "data.log_target=true", "data.dates=parts"],
    "codes": ["data.standardize=true", "data.missing=mean", "data.target=y", "model.embedding_size=2"],
}  # fmt: skip
"""Runs of a network, and what they are trained with."""


def table(rows: int = ROWS, seed: int = 0) -> pd.DataFrame:
    """Return a table with numbers, texts and dates, missing values, and names that are no plain words."""
    draw = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {"x y": draw.normal(2000, 3, rows).round(3), "color": draw.choice(["blue", "green", "red"], rows)}
    )
    frame["Add.1"] = pd.date_range("2023-12-30 05:00", periods=rows, freq="31h").astype(str)
    frame["y"] = (frame["x y"] / 100 + (frame["color"] == "red") + draw.uniform(1, 2, rows)).round(3)
    frame["v w"] = draw.normal(1e6, 1e3, rows).round(1)
    frame.loc[3, "x y"] = np.nan
    frame.loc[5, "color"] = None
    return frame


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a table, runs on it, and a sweep over seeds."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        table().to_csv("t.csv", index=False)
        features = ["data.features=[x y,color,Add.1]"]
        for name, settings in RUNS.items():
            runner.run(None, [*QUICK, *NET, *features, *settings, f"run_dir={name}"])
        runner.multirun(None, [*QUICK, *NET, *features, *RUNS["mean"], "data.seed=0", "seeds=2", "run_dir=sweep"])
    return folder


@pytest.fixture(autouse=True)
def _here(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*RUNS, "sweep"):
        (tmp_path / name).symlink_to(home / name)
    shutil.copy(home / "t.csv", tmp_path)
    monkeypatch.chdir(tmp_path)


def export(run: str, form: str, output: str, *arguments: str, code: int = 0) -> None:
    assert main(["export", run, "--format", form, "--output", output, *arguments]) == code


def predicted(path: str, frame: pd.DataFrame) -> list[np.ndarray]:
    """Return what onnxruntime predicts for a table, one array [rows] for each output."""
    session = onnxruntime.InferenceSession(path)
    feeds = {}
    for given in session.get_inputs():
        column = frame[given.name]
        if given.name == "Add.1":
            column = (pd.to_datetime(column) - pd.Timestamp(0)) / pd.Timedelta(seconds=1)
        texts = given.type == "tensor(string)"
        cells = column.fillna("").to_numpy(object) if texts else column.to_numpy(np.float64)
        feeds[given.name] = cells.reshape(-1, 1)
    return [found[:, 0] for found in session.run(None, feeds)]


@pytest.mark.filterwarnings("ignore:column '.*' has values that the training rows did not have")
@pytest.mark.parametrize("run", RUNS)
def test_onnxruntime_predicts_what_the_run_predicts(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Any number of rows, with categories that are new and values that are missing."""
    export(run, "onnx", "m.onnx")
    output = capsys.readouterr().out
    limit = 1e-12 if run == "strict" else 1e-6
    difference = re.search(
        r"compared 40 rows of its table and 257 made rows by onnxruntime \S+: the largest difference from the run is (\S+) of the "
        r"largest prediction \(at most (\S+)\)\nwritten  m\.onnx, \S+ KiB\n",
        output,
    )
    assert difference
    assert 0 < float(difference[1]) < float(difference[2]) == limit
    session = onnxruntime.InferenceSession("m.onnx")
    assert {given.name: (given.type, given.shape) for given in session.get_inputs()} == {
        "x y": ("tensor(double)", ["rows", 1]),
        "color": ("tensor(string)", ["rows", 1]),
        "Add.1": ("tensor(double)", ["rows", 1]),
    }
    targets = ["y", "v w"] if run == "two" else ["y"]
    assert [(given.name, given.type, given.shape) for given in session.get_outputs()] == [
        (name, "tensor(double)", ["rows", 1]) for name in targets
    ]
    frame = table(7, seed=1).assign(color=["blue", "violet", "red", "green", "red", None, "green"])
    frame = frame.dropna() if run == "strict" else frame
    for rows in (frame, frame.iloc[:1]):
        expected = runner.load(run, device="cpu").predict(rows).reshape(len(rows), -1).T
        for found, one in zip(predicted("m.onnx", rows), expected, strict=True):
            np.testing.assert_allclose(found, one, rtol=0, atol=limit * np.abs(one).max())


def test_a_run_that_refuses_missing_values_predicts_nan_for_them() -> None:
    export("strict", "onnx", "m.onnx")
    (found,) = predicted("m.onnx", table(7, seed=0))
    np.testing.assert_array_equal(np.isnan(found), [False, False, False, True, False, True, False])


def test_a_sweep_is_the_mean_over_its_seeds() -> None:
    export("sweep", "onnx", "m.onnx")
    frame = table(5, seed=2)
    np.testing.assert_allclose(
        predicted("m.onnx", frame)[0], runner.load("sweep", device="cpu").predict(frame), rtol=1e-6
    )
    assert len({runner.load(f"sweep/{trial}", device="cpu").predict(frame)[0] for trial in (0, 1)}) == 2


@pytest.mark.filterwarnings("ignore:column '.*' has values that the training rows did not have")
def test_a_model_of_embeddings_alone() -> None:
    columns = [
        "data.target=y",
        "data.features=[color,y2]",
        "data.categorical=[color,y2]",
        "data.missing=mean",
        "data.path=u.csv",
    ]
    table().assign(y2=np.arange(ROWS) % 3).to_csv("u.csv", index=False)
    runner.run(None, [*QUICK, *columns, *NET, "model.embedding_size=2", "run_dir=alone"])
    export("alone", "onnx", "m.onnx")
    frame = pd.DataFrame({"color": ["red", "violet", None], "y2": ["1", "2", "7"]})
    expected = runner.load("alone", device="cpu").predict(frame)
    np.testing.assert_allclose(predicted("m.onnx", frame)[0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("expression", "dtype"), [("a*exp(-b*`x y`/2000) + where(`v w` > 1e6, c, 1)", "float32"), (None, "float64")]
)
def test_formulas_and_polynomials(expression: str | None, dtype: str) -> None:
    model = ["model=polynomial", "model.degree=3", "data.standardize=true"]
    if expression:
        model = ["model=formula", f"model.expression={json.dumps(expression)}", "optimizer.lr=1e-6"]
    columns = ["data.target=y", "data.features=[x y,v w]", "data.missing=drop", "train.steps=3", f"dtype={dtype}"]
    runner.run(None, [*QUICK, *columns, *model, "run_dir=made"])
    export("made", "onnx", "m.onnx")
    frame = table(9, seed=3).drop(3)
    np.testing.assert_allclose(
        predicted("m.onnx", frame)[0], runner.load("made", device="cpu").predict(frame), rtol=1e-6
    )


def test_an_export_predicts_the_same_bits_without_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    """Two files, which name no folder of the user, are all that it needs."""
    export("two", "safetensors", "model")
    assert (
        "compared 40 rows of its table and 257 made rows by this installation: the same bits as the run"
        in capsys.readouterr().out
    )
    assert sorted(os.listdir("model")) == ["model.json", "model.safetensors"]
    text = Path("model/model.json").read_text()
    assert "t.csv" not in text
    assert str(Path.cwd().parent) not in text
    expected = runner.load("two", device="cpu").predict(table())
    weights = {name: tensor.clone() for name, tensor in runner.load("two", device="cpu").model.state_dict().items()}
    found = safetensors.torch.load_file("model/model.safetensors")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {n: t.tolist() for n, t in weights.items()}
    summary = json.loads(Path("two/summary.json").read_text())
    assert json.loads(text)["selected"] == {
        name: summary["selected"][name] for name in ("step", "metrics", "parameters_sha256")
    }
    for path in (*RUNS, "sweep"):
        Path(path).unlink()
    np.testing.assert_array_equal(runner.load("model", device="cpu").predict(table()), expected)
    assert main(["predict", "model", "--input", "t.csv", "--output", "out.csv", "--device", "cpu"]) == 0
    with open("out.csv", newline="") as file:
        rows = [[row["prediction/y"], row["prediction/v w"]] for row in csv.DictReader(file)]
    np.testing.assert_array_equal(np.array(rows, np.float32), expected.astype(np.float32))
    Path("t.csv").unlink()
    capsys.readouterr()
    export("model", "onnx", "m.onnx")
    assert "compared 257 made rows by onnxruntime" in capsys.readouterr().out


def test_a_table_that_is_gone_is_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    Path("t.csv").unlink()
    export("mean", "onnx", "m.onnx")
    found = capsys.readouterr().out
    assert "note: the table of the run is not compared: `data.path` must be a readable file, but 't.csv'" in found
    assert "compared 257 made rows by onnxruntime" in found


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    """Return the message of a command that must leave nothing."""
    before = {path: path.is_file() and path.read_bytes() for path in Path().rglob("*")}
    capsys.readouterr()
    export(*arguments, code=code)
    assert {path: path.is_file() and path.read_bytes() for path in Path().rglob("*")} == before
    return capsys.readouterr().err


def test_outputs_that_cannot_be_used_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("other").mkdir()
    Path("other/mine").write_text("keep")
    Path("file.onnx").write_text("old")
    Path("link.onnx").symlink_to("file.onnx")
    export("mean", "safetensors", "model")
    for form, path, message in [
        ("onnx", "m", "`--output` must be a file with the ending .onnx, got 'm'; name it so"),
        ("onnx", "-", "`--output` must be a file with the ending .onnx, got '-'; name it so"),
        ("onnx", "no/m.onnx", "`--output` must be in a folder that exists, got 'no/m.onnx'; make 'no' first"),
        ("onnx", "file.onnx", "`--output` must be a new file, got 'file.onnx', which exists; add --force to replace it"),
        ("onnx", "link.onnx", "`--output` must be a file, got 'link.onnx', which is a link; name another one"),
        ("safetensors", "no/m", "`--output` must be in a folder that exists, got 'no/m'; make 'no' first"),
        ("safetensors", "other", "`--output` must be a new folder or an earlier export, got 'other', which is something else; name another one"),
        ("safetensors", "mean", "`--output` must be a new folder or an earlier export, got 'mean', which is something else; name another one"),
        ("safetensors", "model", "`--output` must be a new folder, got 'model', which exists; add --force to replace it"),
    ]:  # fmt: skip
        assert refused(capsys, "mean", form, path) == f"error: {message}\n"
    assert "is something else" in refused(capsys, "mean", "safetensors", "other", "--force")
    export("two", "safetensors", "model", "--force")
    assert runner.load("model", device="cpu").target_names == ("y", "v w")
    export("mean", "onnx", "file.onnx", "--force")
    assert Path("file.onnx").read_bytes()[:4] != b"old"


def test_what_cannot_be_exported_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "must be of one model, got the 2 seeds of a sweep; give one of them, such as sweep/0" in refused(
        capsys, "sweep", "safetensors", "m"
    )
    wide = ["data.target=y", "data.features=[v w]", "data.standardize=true", "train.steps=1", *NET[:2]]
    for key in ("dtype", "amp"):
        runner.run(None, [*QUICK, *wide, f"{key}=bfloat16", f"run_dir={key}"])
        assert f"`--format onnx` must have a run with {key}=" in refused(capsys, key, "onnx", "m.onnx")
        export(key, "safetensors", f"{key}.export")
    runner.run(None, [*QUICK, *wide, "dtype=float64", "model.activation=gelu", "run_dir=erf"])
    assert "lacks Erf in the dtype of this run; use --format safetensors" in refused(capsys, "erf", "onnx", "m.onnx")
    assert "`RUN` must be a run directory, got 'absent'" in refused(capsys, "absent", "onnx", "m.onnx")
    _without(monkeypatch, "onnx")
    assert '`--format onnx` needs onnx, which is not installed; pip install "runner[export]"' in refused(
        capsys, "mean", "onnx", "m.onnx"
    )
    _without(monkeypatch, "safetensors.torch")
    assert 'needs safetensors, which is not installed; pip install "runner[export]"' in refused(
        capsys, "mean", "safetensors", "m"
    )


def _without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Let a package be one that is not installed."""
    real = builtins.__import__

    def missing(name: str, *arguments: Any) -> Any:
        if name == package:
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", missing)


@pytest.mark.parametrize("run", ["mean", "strict"])
def test_the_reference_of_onnx_compares_where_onnxruntime_is_not_installed(
    run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _without(patch, "onnxruntime")
        export(run, "onnx", "m.onnx")
    assert "compared 40 rows of its table and 257 made rows by the reference of onnx: " in capsys.readouterr().out


@pytest.mark.parametrize(("form", "output"), [("onnx", "m.onnx"), ("safetensors", "m")])
def test_an_export_that_predicts_something_else_is_not_written(
    form: str, output: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the file had other weights: what reads it back is changed."""
    from runner.commands.export import runtimes
    from runner.training import exported

    if form == "onnx":
        right = runtimes.Runtime.__call__
        monkeypatch.setattr(runtimes.Runtime, "__call__", lambda *given: right(*given) * (1 + 3e-6))
    else:
        read: Callable[..., Any] = exported.read
        monkeypatch.setattr(exported, "read", lambda *given: _changed(read(*given)))
    found = refused(capsys, "mean", form, output, code=1)
    assert re.search(
        r"^error: nothing was written: the predictions of .* differ from those of the run by \S+ of the", found
    )
    assert ("more than 1e-06; " if form == "onnx" else "more than 0; ") in found


def _changed(trained: Any) -> Any:
    next(iter(trained.tensors.values())).mul_(1.5)
    return trained


@pytest.mark.parametrize(("form", "output"), [("onnx", "m.onnx"), ("safetensors", "m")])
def test_a_full_disk_leaves_the_earlier_export(
    form: str, output: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    export("mean", form, output)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    found = refused(capsys, "two", form, output, "--force", code=1)
    assert re.search(rf"error: `{re.escape(output)}` cannot be written: the disk is full \(.*; .* `--output`", found)


def test_an_export_that_cannot_be_given_its_name_leaves_the_earlier_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    export("mean", "safetensors", "m")
    real = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if target == Path("m") and (path / "model.json").read_text().count("v w"):
            raise OSError(errno.EIO, "Input/output error")
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    assert "`m` cannot be written: Input/output error" in refused(capsys, "two", "safetensors", "m", "--force", code=1)


def _edited(change: Callable[[dict[str, Any]], Any]) -> None:
    path = Path("m/model.json")
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def _weights(change: Callable[[bytes], bytes], *, sealed: bool = True) -> None:
    """Change the weights, and unless `sealed` is false, also their SHA-256, as who wants to deceive would."""
    path = Path("m/model.safetensors")
    path.write_bytes(change(path.read_bytes()))
    if sealed:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        _edited(lambda values: values.update(weights_sha256=digest))


def _header(text: str) -> Callable[[bytes], bytes]:
    return lambda _: len(text).to_bytes(8, "little") + text.encode()


UNUSABLE = "m/model.safetensors must be the weights of an exported model, but cannot be used ("


def _linked(path: str, target: str) -> None:
    """Let a path be a link to what stood there."""
    os.rename(path, "w")
    os.symlink(target, path)


STRANGE: dict[str, tuple[Callable[[], Any], str]] = {
    "other weights": (lambda: _weights(lambda data: data[:-4] + b"1234", sealed=False), f"{UNUSABLE}its SHA-256 is not the `weights_sha256` of model.json); export the run again"),
    "other weights with their hash": (lambda: _weights(lambda data: data[:-4] + b"1234"), "m/model.safetensors must have the parameters of `selected` in model.json, but their SHA-256 is another one"),
    "a shorter file": (lambda: _weights(lambda data: data[:-9]), UNUSABLE),
    "a header without end": (lambda: _weights(lambda data: b"\xff" * 8 + data[8:]), UNUSABLE),
    "a tensor without end": (lambda: _weights(_header(json.dumps({"0.weight": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}))), UNUSABLE),
    "no header": (lambda: _weights(_header("[")), UNUSABLE),
    "a file without end": (lambda: os.truncate("m/model.safetensors", 2**40), f"{UNUSABLE}it has more than 8"),
    "a link": (lambda: _linked("m/model.safetensors", "../w"), f"{UNUSABLE}it is a link)"),
    "no weights": (lambda: os.remove("m/model.safetensors"), f"{UNUSABLE}No such file or directory); export the run again"),
    "another hash of parameters": (lambda: _edited(lambda v: v["selected"].update(parameters_sha256="0" * 64)), "m/model.safetensors must have the parameters of `selected` in model.json, but their SHA-256 is another one"),
    "another hash of weights": (lambda: _edited(lambda v: v.update(weights_sha256="0" * 64)), UNUSABLE),
    "no hash": (lambda: _edited(lambda v: v.update(weights_sha256="x")), "m/model.json: `weights_sha256` must"),
    "a newer format": (lambda: _edited(lambda v: v.update(format=99)), "m/model.json: `format` must be at most 1, got 99; it was written by a newer version of runner, use that"),
    "no configuration": (lambda: _edited(lambda v: v.update(config=[], preprocessing=3)), "m/model.json: `config` must be a group of keys, got []; restore the file"),
    "another key": (lambda: _edited(lambda v: v["config"]["model"].update(widths="many")), "m/model.json is not a valid configuration: `model.widths` must be"),
    "a model that is larger": (lambda: _edited(lambda v: v["config"]["model"].update(widths=[8])), "m/model.safetensors: `model.0.weight` must be"),
    "a model without end": (lambda: _edited(lambda v: v["config"]["model"].update(widths=[10**8, 10**8])), "`model.widths`"),
    "a reference": (lambda: _edited(lambda v: v["config"].update(name="${oc.env:HOME}")), "m/model.json: `name` must be a value, got a reference"),
    "strange preprocessing": (lambda: _edited(lambda v: v["preprocessing"]["features"][0].update(mean="2")), "m/model.json: `features.0.mean` must be"),
    "no step": (lambda: _edited(lambda v: v["selected"].pop("step")), "m/model.json: `selected.step` is missing; it must be an integer of at least 0"),
    "no JSON": (lambda: Path("m/model.json").write_text("{"), "m/model.json must be the description of an exported model, but cannot be read (it is not JSON"),
    "a link to a folder": (lambda: _linked("m", "w"), "m must be a folder, and not a link to one; give the folder"),
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
def test_an_export_of_a_stranger_is_checked(name: str) -> None:
    export("mean", "safetensors", "m")
    change, message = STRANGE[name]
    change()
    with pytest.raises(CheckpointError, match=re.escape(message)):
        runner.load("m", device="cpu")


def test_the_state_of_an_export_is_the_one_that_was_exported(capsys: pytest.CaptureFixture[str]) -> None:
    export("mean", "safetensors", "m", "--state", "6")
    arguments: Sequence[str] = ["predict", "m", "--input", "t.csv", "--output", "out.csv", "--state", "best"]
    capsys.readouterr()
    assert main(arguments) == 2
    assert (
        "`--state` must be left out for the exported model m, which has step 6 alone; remove it"
        in capsys.readouterr().err
    )
