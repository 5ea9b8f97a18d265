"""`model.init_from`: a run starts from the parameters of another one, as the same function of the columns of the file."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import older
import pytest
import torch

import faults
import runner
from runner import cli
from runner.config.compose import compose
from runner.data.split import division

TABLE = ["data=csv", "data.target=y", "data.path=one.csv", "data.standardize=true", "record.plots=false", "device=cpu", "device.threads=1"]  # fmt: skip
NETWORK = [*TABLE, "model=mlp", "model.widths=[8]", "model.activation=tanh", "dtype=float64", "optimizer=adam", "optimizer.lr=0.01"]  # fmt: skip
LINEAR = [*TABLE, "model=linear", "dtype=float64", "optimizer.lr=0.01"]
STILL = ["optimizer.lr=0", "train.steps=1"]
FROM = "model.init_from=source"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("one.csv", "abc", scale=1, offset=0)
    write("two.csv", "abc", scale=3, offset=5)


def write(name: str, columns: str, *, scale: float, offset: float, target: str = "y", rows: int = 40) -> None:
    """Write a table of the same law, with columns of another location and spread."""
    random = np.random.default_rng(rows + len(name))
    values = {c: random.normal(offset + k, scale * (k + 1), rows) for k, c in enumerate("abcd")}
    y = 30 + 2 * values["a"] - values["b"] + 0.5 * values["c"] + random.normal(0, 0.1, rows)
    lines = [",".join([*columns, target])]
    lines += [",".join(f"{values[c][i]:.6f}" for c in columns) + f",{y[i]:.6f}" for i in range(rows)]
    Path(name).write_text("\n".join(lines) + "\n")


def trained(overrides: Sequence[str], directory: str) -> Path:
    return runner.run(None, [*overrides, f"run_dir={directory}"]).directory


def read(run: str | Path, name: str = "summary.json") -> dict[str, Any]:
    return dict(json.loads(Path(run, name).read_text()))


def state(run: str | Path) -> Mapping[str, torch.Tensor]:
    found: Mapping[str, torch.Tensor] = torch.load(Path(run, "checkpoints/last/state.pt"), weights_only=True)["model"]
    return found


def start(run: str | Path) -> str:
    """Return the line of a run's log that says what it starts from."""
    (line,) = [line for line in Path(run, "run.log").read_text().splitlines() if line.startswith("start ")]
    return line.removeprefix("start    ")


def predictions(run: str | Path) -> np.ndarray:
    with Path(run, "residuals.csv").open() as file:
        return np.array([float(row["prediction"]) for row in csv.DictReader(file)])


def problems(overrides: Sequence[str]) -> list[str]:
    with pytest.raises(runner.InputError) as refused:
        runner.run(None, [*overrides, "run_dir=refused"])
    assert not Path("refused").exists()
    return [*refused.value.problems]


def problem(overrides: Sequence[str]) -> str:
    (found,) = problems(overrides)
    return found


# --------------------------------------------------------------------------------------------------- the same function


def test_with_the_same_data_the_start_is_the_same_to_the_bit() -> None:
    trained([*NETWORK, "train.steps=30"], "source")
    trained([*NETWORK, *STILL, FROM], "same")
    assert read("same")["parameters_sha256"] == read("source")["parameters_sha256"]
    assert start("same") == "4 of 4 parameters from source, step 30"
    assert read("same", "run.json")["init_from_sha256"] == read("source")["parameters_sha256"]


@pytest.mark.parametrize("scaling", ["data.standardize=true", "data.standardize=false"])
@pytest.mark.parametrize("widths", ["[8]", "[6,5]", "[]"])
def test_a_network_is_the_same_function_of_the_columns_of_another_table(scaling: str, widths: str) -> None:
    """Its predictions are those that numpy computes from the state and the preprocessing of the other run."""
    trained([*NETWORK, f"model.widths={widths}", "train.steps=200"], "source")
    trained([*NETWORK, f"model.widths={widths}", *STILL, "data.path=two.csv", scaling, FROM], "other")
    weights, columns = state("source"), read("source", "preprocessing.json")
    rows = np.loadtxt("two.csv", delimiter=",", skiprows=1)[:, :3]
    values = (rows - [c["mean"] for c in columns["inputs"]]) / [c["scale"] for c in columns["inputs"]]
    layers = sorted({int(name.split(".")[0]) for name in weights})
    for layer in layers:
        values = values @ weights[f"{layer}.weight"].numpy().T + weights[f"{layer}.bias"].numpy()
        values = np.tanh(values) if layer < layers[-1] else values
    (target,) = columns["targets"]
    np.testing.assert_allclose(predictions("other"), values[:, 0] * target["scale"] + target["mean"], rtol=1e-12)


def with_colours(name: str, source: str, colours: Sequence[str]) -> None:
    """Write a table with a column of categories in addition."""
    header, *rows = Path(source).read_text().splitlines()
    lines = [f"colour,{header}", *(f"{colours[i % len(colours)]},{row}" for i, row in enumerate(rows))]
    Path(name).write_text("\n".join(lines) + "\n")


def test_a_network_with_embeddings_is_the_same_function_and_has_new_ones_for_other_values() -> None:
    with_colours("first.csv", "one.csv", ["blue", "red"])
    with_colours("second.csv", "two.csv", ["red", "blue"])
    with_colours("third.csv", "two.csv", ["red", "blue", "green"])
    overrides = [*NETWORK, "model.embedding_size=2"]
    trained([*overrides, "data.path=first.csv", "train.steps=100"], "source")
    trained([*overrides, *STILL, "data.path=second.csv", FROM], "other")
    weights, columns = state("source"), read("source", "preprocessing.json")
    rows = np.loadtxt("two.csv", delimiter=",", skiprows=1)[:, :3]
    values = (rows - [c["mean"] for c in columns["inputs"]]) / [c["scale"] for c in columns["inputs"]]
    codes = [1 + ["blue", "red"].index(["red", "blue"][i % 2]) for i in range(len(rows))]
    values = np.hstack([values, weights["0.tables.0.weight"].numpy()[codes]])
    for layer in (1, 3):
        values = np.tanh(values) if layer > 1 else values
        values = values @ weights[f"{layer}.weight"].numpy().T + weights[f"{layer}.bias"].numpy()
    (target,) = columns["targets"]
    np.testing.assert_allclose(predictions("other"), values[:, 0] * target["scale"] + target["mean"], rtol=1e-12)
    trained([*overrides, *STILL, "data.path=third.csv", FROM], "more")
    assert start("more") == (
        "3 of 5 parameters from source, step 100; new: `0.tables.0.weight` and `1.weight` (it has 6 columns, the run 5: "
        "with 'colour=green')"
    )


@pytest.mark.parametrize("model", [["model=linear"], ["model=polynomial", "model.degree=3"]])
def test_a_linear_model_keeps_its_coefficients(model: Sequence[str]) -> None:
    trained([*LINEAR, *model, "train.steps=100"], "source")
    trained([*LINEAR, *model, *STILL, "data.path=two.csv", FROM], "other")
    expected, found = (read(run)["coefficients"] for run in ("source", "other"))
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([*found.values()], [*expected.values()], rtol=1e-9)  # x³ loses some digits far from 0
    assert read("other")["parameters_sha256"] != read("source")["parameters_sha256"]


def test_a_line_without_a_bias_says_what_it_cannot_start_with() -> None:
    trained([*LINEAR, "model.bias=false", "train.steps=100"], "source")
    trained([*LINEAR, "model.bias=false", *STILL, "data.path=two.csv", FROM], "other")
    assert start("other") == (
        "1 of 1 parameter from source, step 100; the model has no bias for what the scalings of the data differ by"
    )
    one, two = (read(run)["coefficients"] for run in ("source", "other"))
    assert [two[name] for name in "abc"] == pytest.approx([one[name] for name in "abc"], rel=1e-12)


def test_a_formula_keeps_its_values_and_a_new_name_is_drawn() -> None:
    formula = [*TABLE, "data.standardize=false", "data.features=[a]", "model=formula", "dtype=float64", "optimizer=lm"]
    trained([*formula, "model.expression=k*a + d", "train.steps=20"], "source")
    overrides = [*formula, "optimizer=sgd", "model.expression=d + k*a + q*a*a", *STILL, "data.path=two.csv"]
    trained([*overrides, "model.start={k: 7}", FROM], "more")
    trained(overrides, "drawn")
    found, expected, drawn = (read(run)["parameters"] for run in ("more", "source", "drawn"))
    assert found == {**expected, "q": drawn["q"]}
    assert (
        start("more") == f"2 of 3 parameters from source, step {read('source')['steps']}; new: `q` (the run has none)"
    )
    trained([*overrides, "model.expression=d*a", "dtype=float32", FROM], "less")
    assert start("less").endswith(", cast from float64 to float32; not used: k")
    assert "`model.bounds.k` must contain the start value of `model.init_from`=source, " in problem(
        [*overrides, "model.bounds={k: [90, null]}", FROM]
    )


def test_lm_takes_its_first_step_from_there() -> None:
    formula = [*TABLE, "data.standardize=false", "data.features=[a]", "model=formula", "dtype=float64", "optimizer=lm"]
    overrides = [*formula, "model.expression=k*a + d"]
    trained([*overrides, "train.steps=20"], "source")
    trained([*overrides, "train.steps=1", FROM], "again")
    loss = read("source")["metrics"]["train/loss"]
    first = json.loads(Path("again/metrics.jsonl").read_text().splitlines()[0])
    assert first["train/loss"] == pytest.approx(
        loss, rel=1e-14
    )  # before the update; the rows are added in another order


# ---------------------------------------------------------------------------------------------------------- what fits


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ("acb", "the columns of the run are in another order"),
        ("abd", "it has 3 columns, the run 3: without 'c', with 'd'"),
        ("abcd", "it has 4 columns, the run 3: with 'd'"),
        ("ab", "it has 2 columns, the run 3: without 'c'"),
    ],
)
def test_the_first_layer_starts_anew_with_other_columns(columns: str, reason: str) -> None:
    trained([*NETWORK, "train.steps=30"], "source")
    write("three.csv", columns, scale=1, offset=0)
    trained([*NETWORK, *STILL, "data.path=three.csv", FROM], "other")
    trained([*NETWORK, *STILL, "data.path=three.csv"], "drawn")
    assert start("other") == f"3 of 4 parameters from source, step 30; new: `0.weight` ({reason})"
    found, expected, drawn = state("other"), state("source"), state("drawn")
    assert torch.equal(found["0.weight"], drawn["0.weight"])
    assert torch.equal(found["0.bias"], expected["0.bias"])
    assert not torch.equal(found["2.weight"], drawn["2.weight"])


def test_the_targets_of_a_run_have_to_be_the_same_if_there_are_several() -> None:
    trained([*NETWORK, "data.target=[y,a]", "train.steps=30"], "source")
    trained([*NETWORK, "data.target=[a,y]", *STILL, FROM], "other")
    assert start("other") == (
        "2 of 4 parameters from source, step 30; new: `2.weight` and `2.bias` (the targets of the run are in another order)"
    )


def test_the_only_target_may_have_another_name() -> None:
    trained([*NETWORK, "train.steps=30"], "source")
    write("three.csv", "abc", scale=1, offset=0, target="z")
    trained([*NETWORK, *STILL, "data.path=three.csv", "data.target=z", FROM], "other")
    assert start("other") == "4 of 4 parameters from source, step 30; the run predicts 'y'"


def test_the_logarithm_of_a_target_is_another_target() -> None:
    trained([*NETWORK, "data.log_target=true", "train.steps=30"], "source")
    trained([*NETWORK, *STILL, FROM], "other")
    assert start("other") == "4 of 4 parameters from source, step 30; the run predicts the logarithm of 'y'"
    assert torch.equal(state("other")["2.weight"], state("source")["2.weight"])


def test_the_selected_state_is_taken() -> None:
    chosen = [
        "data.split.valid=10",
        "train.steps=60",
        "train.eval_every_steps=7",
        "optimizer.lr=0.3",
        "train.select=best",
    ]
    trained([*NETWORK, *chosen], "source")
    selected = read("source")["selected"]
    assert selected["step"] < 60
    trained([*NETWORK, *chosen, *STILL, FROM], "other")
    assert start("other") == f"4 of 4 parameters from source, step {selected['step']}"
    assert read("other")["parameters_sha256"] == selected["parameters_sha256"]


@pytest.mark.parametrize("update", ["manual", "optimizer"])
def test_both_updates_start_from_there(update: str) -> None:
    trained([*NETWORK, "train.steps=30"], "source")
    trained([*NETWORK, "train.steps=5", f"update={update}", "optimizer=sgd", FROM], "other")
    trained([*NETWORK, "train.steps=5", f"update={update}", "optimizer=sgd", "seed=9", FROM], "seed")
    assert read("other")["parameters_sha256"] == read("seed")["parameters_sha256"]


def test_all_lanes_of_a_sweep_start_from_there() -> None:
    trained([*NETWORK, "train.steps=30"], "source")
    sweep = [*NETWORK, "train.steps=2", "optimizer.lr=0.01,0.02", "record.hash_every_steps=1", FROM, "run_dir=sweep"]
    runner.multirun(None, sweep)
    lines = [json.loads(Path(f"sweep/{k}/hashes.jsonl").read_text().splitlines()[0]) for k in (0, 1)]
    assert lines[0] == lines[1]
    assert read("sweep/1", "run.json")["lanes"] == 2
    assert start("sweep/1") == "4 of 4 parameters from source, step 30"
    trained([*NETWORK, "train.steps=2", "record.hash_every_steps=1", FROM], "alone")
    assert json.loads(Path("alone/hashes.jsonl").read_text().splitlines()[0]) == lines[0]


# ------------------------------------------------------------------------------------------------- resume and rerun


def test_a_resumed_run_does_not_need_the_other_one() -> None:
    trained([*NETWORK, "train.steps=30"], "source")
    trained([*NETWORK, "train.steps=9", FROM], "whole")
    trained([*NETWORK, "train.steps=4", FROM], "run")
    shutil.rmtree("source")
    runner.run(None, ["resume=run", "train.steps=9"])
    assert read("run")["parameters_sha256"] == read("whole")["parameters_sha256"]
    assert read("run", "run.json")["init_from_sha256"] == read("whole", "run.json")["init_from_sha256"]


def test_a_run_killed_before_its_first_checkpoint_starts_from_there_again(monkeypatch: pytest.MonkeyPatch) -> None:
    trained([*NETWORK, "train.steps=30"], "source")
    trained([*NETWORK, "train.steps=9", FROM], "whole")
    with monkeypatch.context() as patch:
        faults.at_step(patch, 5, lambda: os.kill(os.getpid(), signal.SIGKILL))
        faults.in_child(lambda: trained([*NETWORK, "train.steps=9", FROM], "killed"))
    shutil.copytree("killed", "copy")
    runner.run(None, ["resume=killed"])
    assert read("killed")["parameters_sha256"] == read("whole")["parameters_sha256"]
    other_weights()
    assert cli.main(["resume=copy"]) == 2


def other_weights() -> None:
    """Replace the source by a run of other parameters."""
    shutil.rmtree("source")
    trained([*NETWORK, "train.steps=31"], "source")


def test_a_repeated_run_needs_the_same_weights(capsys: pytest.CaptureFixture[str]) -> None:
    trained([*NETWORK, "train.steps=30"], "source")
    trained([*NETWORK, "train.steps=4", FROM], "run")
    before, run = read("source")["parameters_sha256"], read("run")["parameters_sha256"]
    Path("source").rename("moved")
    assert cli.main(["rerun", "run", "run_dir=again"]) == 2
    assert capsys.readouterr().err == (
        "error: `model.init_from` must be a run directory or an export, got 'source', which is none; give its path with model.init_from=PATH\n"
    )
    assert cli.main(["rerun", "run", "model.init_from=moved", "run_dir=again"]) == 0
    assert read("again")["parameters_sha256"] == run
    Path("moved").rename("source")
    other_weights()
    capsys.readouterr()
    assert cli.main(["rerun", "run", "run_dir=third"]) == 2
    assert capsys.readouterr().err == (
        f"error: `model.init_from` must have the parameters that run has started from, parameters_sha256 {before[:8]}…, "
        f"got {read('source')['parameters_sha256'][:8]}… of source; restore it, or start a new run\n"
    )
    assert not Path("third").exists()


# ------------------------------------------------------------------------------------------------------ what is refused


def test_a_directory_without_a_result_is_refused() -> None:
    Path("empty").mkdir()
    path = "give its path with model.init_from=PATH"
    for name in ("empty", "nowhere", "one.csv"):
        assert problem([*NETWORK, f"model.init_from={name}"]) == (
            f"`model.init_from` must be a run directory or an export, got '{name}', which is none; {path}"
        )
    runner.multirun(None, [*NETWORK, "train.steps=2", "seeds=1", "run_dir=sweep"])
    assert problem([*NETWORK, "model.init_from=sweep"]) == (
        "`model.init_from` must be a run directory or an export, got 'sweep', which is a sweep; give one of its runs"
    )
    record = read("sweep/0", "run.json")
    Path("sweep/0/run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    assert problem([*NETWORK, "model.init_from=sweep/0"]) == (
        "`model.init_from` must be a finished run, got 'sweep/0', whose status is interrupted; finish it with resume=sweep/0, "
        "or use another run"
    )


def test_a_run_whose_state_is_gone_or_damaged_is_refused() -> None:
    trained([*NETWORK, "train.steps=3"], "source")
    data = bytearray(Path("source/checkpoints/step_3/state.pt").read_bytes())
    data[len(data) // 2] ^= 1
    Path("source/checkpoints/step_3/state.pt").write_bytes(data)
    text = "`model.init_from` must have the checkpoint of step 3, which 'source' reports, but "
    assert problem([*NETWORK, FROM]) == f"{text}state.pt does not match its SHA-256 in manifest.json; use another run"
    shutil.rmtree("source/checkpoints/step_3")
    assert problem([*NETWORK, FROM]) == f"{text}it does not exist; use another run"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "must be the preprocessing of a run, but cannot be read (it is not JSON: "),
        ("{}", "`inputs` must be a list of groups of keys, got null; restore the file"),
        (
            '{"inputs": [{"name": "a", "mean": "x", "scale": 0}], "targets": []}',
            "`inputs.0.mean` must be a finite number, got 'x'",
        ),
    ],
)
def test_a_strange_preprocessing_is_refused(text: str, reason: str) -> None:
    trained([*NETWORK, "train.steps=3"], "source")
    Path("source/preprocessing.json").write_text(text)
    with pytest.raises(runner.CheckpointError) as refused:
        runner.run(None, [*NETWORK, FROM])
    assert reason in str(refused.value)
    assert all(line.startswith("source/preprocessing.json") for line in refused.value.problems)


def test_a_run_of_an_older_version_is_a_start(tmp_path: Path) -> None:
    """It has no preprocessing.json, which is made again from its data."""
    older.copied("finished", tmp_path)
    made = trained(["data=line", *TABLE[4:], "dtype=float64", *STILL, "model.init_from=finished"], "made")
    assert start(made) == "2 of 2 parameters from finished, step 20, cast from float32 to float64"
    trained([*NETWORK, "train.steps=3"], "source")
    Path("source/preprocessing.json").unlink()
    Path("one.csv").unlink()
    message = problem([*NETWORK, "data.path=two.csv", FROM])
    assert message.startswith(
        "source must have a preprocessing.json, which older versions did not write, and it cannot"
    )


def test_an_export_is_like_its_run() -> None:
    trained([*NETWORK, "train.steps=5"], "source")
    assert cli.main(["export", "source", "--format", "safetensors", "--output", "exported"]) == 0
    moved, other = [*NETWORK, "data.path=two.csv", *STILL], "model.init_from=exported"
    trained([*moved, FROM], "of_run")
    trained([*moved, other], "of_export")
    assert start("of_export") == start("of_run").replace("source", "exported")
    assert all(map(torch.equal, state("of_export").values(), state("of_run").values()))
    hashes = {read(run, "run.json")["init_from_sha256"] for run in ("of_run", "of_export")}
    assert hashes == {read("source")["selected"]["parameters_sha256"]}
    weights = Path("exported/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert problems([*moved, other]) == [
        "exported/model.safetensors must be the weights of an exported model, but cannot be used (its SHA-256 is not the "
        "`weights_sha256` of model.json); export the run again"
    ]


def test_nothing_that_fits_is_refused() -> None:
    trained([*NETWORK, "train.steps=3"], "source")
    assert problem([*LINEAR, FROM]) == (
        "`model.init_from` must be a run with parameters that fit this model, got 'source': `weight` and `bias` (the run has "
        "none); use another run, or model.init_from=null"
    )


def test_what_the_dtype_cannot_represent_is_refused() -> None:
    rows = np.loadtxt("one.csv", delimiter=",", skiprows=1) * [1, 1, 1, 1e40]
    Path("large.csv").write_text("a,b,c,y\n" + "".join(",".join(map(repr, row)) + "\n" for row in rows.tolist()))
    trained([*LINEAR, "data.standardize=false", "data.path=large.csv", "train.steps=9"], "source")
    assert problems([*LINEAR, "data.standardize=false", "dtype=float32", FROM]) == [
        f"`model.init_from` must have parameters that `dtype`=float32 represents, but `{name}` of 'source' has others; "
        "use dtype=float64"
        for name in ("weight", "bias")
    ]


def test_lstsq_has_no_start() -> None:
    trained([*LINEAR, "train.steps=3"], "source")
    assert problem([*TABLE, "model=linear", "dtype=float64", "optimizer=lstsq", "train.steps=1", FROM]) == (
        "`model.init_from` must be null with `optimizer`=lstsq, whose solution does not depend on a start, got source; "
        "use model.init_from=null"
    )


# ----------------------------------------------------------------------------------------------- rows that were seen


HELD = ["data.split.test=6", "data.split.valid=6", "data.split.calibrate=10"]
SEEN = "; it may have been trained on {} rows of this run, which divides the same file in another way"


def test_rows_of_another_division_may_have_been_seen() -> None:
    """The file is known by its content. A run with the same parts, and one on another file, say nothing."""
    held = [*LINEAR, *HELD, "train.steps=1", "record.sinks=[jsonl]", "record.baselines=[]"]
    trained(held, "source")
    shutil.copy("one.csv", "moved.csv")
    for name, changed in {
        "same": ["data.path=moved.csv", "seed=1", "data.seed=0"],
        "other": ["data.path=two.csv", "seed=1"],
        "none": ["data.split.calibrate=0", "data.split.test=0"],
    }.items():
        assert "may have been" not in start(trained([*held, FROM, *changed], name))
    for parts, changed in {
        "calibrate and test": ["data.path=moved.csv", "seed=1"],
        "test": ["data.split.calibrate=0"],
    }.items():
        assert start(trained([*held, FROM, *changed], parts)).endswith(SEEN.format(parts))


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        (["seed=1", "data.seed=0"], True),
        (["data.log_target=true", "data.features=[a]"], True),
        (["data.split.test=7"], False),
        (["data.missing=drop"], False),
        (["data.test_path=two.csv", "data.split.test=0"], False),
        (["seed=1"], False),
        (["seed=1", "data.split.order=sequential"], False),
    ],
)
def test_the_keys_that_decide_the_parts(changed: list[str], same: bool) -> None:
    one, other = (compose([*TABLE, *HELD, *more]).config for more in ([], changed))
    assert (division(one) == division(other)) is same


def test_calibration_rows_that_trained_the_other_run_are_refused() -> None:
    short = [*LINEAR, "train.steps=1"]
    trained(short, "source")
    assert problem([*short, "data.split.calibrate=10", FROM]) == (
        "`data.split.calibrate` must set rows aside that `model.init_from`=source was not trained on, got 10, and all rows of the "
        "same file trained that run; train it with the data.split and data.seed of this run, or use data.split.calibrate=0"
    )
    assert start(trained([*short, "data.split.test=10", FROM], "test")).endswith(SEEN.format("test"))
