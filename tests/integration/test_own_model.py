"""`model=custom`: a module of the user's own, trusted by name, with its promises found out."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import runner
from runner.cli import main
from runner.config.trust import VARIABLE
from runner.errors import ConfigError, RunFailed
from runner.training.run import Run

FOLDER = Path(__file__).parent
QUICK = ["device=cpu", "device.threads=1", "record.plots=false", "record.sinks=[jsonl]", "record.baselines=[]"]
DATA = ["data=csv", "data.path=t.csv", "data.target=y", "dtype=float64", "data.split.valid=0"]
OWN = [*QUICK, *DATA, "model=custom", "optimizer=adam", "optimizer.lr=0.01", "train.steps=6"]
ROWS = 40
ROUNDING = 1e-11
"""Largest difference of parameters near 1 after some float64 steps whose sums are in another order."""


@pytest.fixture(autouse=True)
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Trust the package and write t.csv; return its columns a, b and y."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "my_lab")
    draw = np.random.default_rng(5)
    features = draw.normal(size=(ROWS, 2))
    columns = np.column_stack([features, features @ [2.0, -1.0] + 0.1 * draw.normal(size=ROWS)])
    np.savetxt("t.csv", columns, delimiter=",", header="a,b,y", comments="", fmt="%.17g")
    return columns


def run(name: str, *overrides: str) -> Run:
    return runner.run(None, [*OWN, f"model.target=my_lab.nets:{name}", *overrides])


def problems(*arguments: str) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        runner.run(None, [*OWN, *arguments])
    assert not Path("runs").exists()
    return list(refused.value.problems)


def members(sweep: Path) -> list[dict[str, Any]]:
    return [json.loads((path / "summary.json").read_text()) for path in sorted(sweep.glob("[0-9]*"))]


def record(path: Path) -> Any:
    return json.loads((path / "run.json").read_text())


# ------------------------------------------------------------------------------------------------------- what it is given


def test_a_line_finds_the_least_squares_solution(table: np.ndarray) -> None:
    """Of numpy, with the names that the parameters have in the module itself."""
    done = run(
        "Line", "optimizer=lbfgs", "update=optimizer", "optimizer.lr=1", "train.steps=20", "data.standardize=false"
    )
    expected, *_ = np.linalg.lstsq(np.column_stack([table[:, :2], np.ones(ROWS)]), table[:, 2], rcond=None)
    found = done.summary["parameters"]
    assert list(found) == ["stages.weight", "stages.bias"]
    assert [*found["stages.weight"][0], *found["stages.bias"]] == pytest.approx(expected, rel=1e-6)


def test_every_dtype_starts_from_the_same_values() -> None:
    double, single = (
        run("Net", f"dtype={dtype}", "train.steps=1", "optimizer.lr=0") for dtype in ("float64", "float32")
    )
    assert double.summary["parameters"] == single.summary["parameters"]


def test_embeddings_get_codes_and_new_values_are_code_0(tmp_path: Path) -> None:
    """The prediction is that of the module itself, given codes by hand."""
    lines = [f"{'red' if i % 3 else 'blue'},{i / 10},{i % 3 + i / 20}" for i in range(30)]
    Path("t.csv").write_text("\n".join(["color,x,y", *lines]) + "\n")
    done = run("Codes")
    predictor = runner.load(done.directory)
    import pandas as pd

    with pytest.warns(UserWarning, match="'green'"):
        found = predictor.predict(pd.DataFrame({"x": [0.5, 0.5], "color": ["red", "green"]}))
    from my_lab.nets import Codes

    module = Codes(1, 1, [3]).double()
    module.load_state_dict(
        {name.removeprefix("module."): value for name, value in predictor.model.state_dict().items()}
    )
    with torch.no_grad():
        expected = module(torch.tensor([[0.5], [0.5]], dtype=torch.float64), torch.tensor([[2], [0]]))
    assert found == pytest.approx(expected[:, 0].numpy(), rel=1e-12)


def test_a_module_finds_out_its_size_by_itself() -> None:
    assert run("Lazy").summary["steps"] == 6


OTHERS = {
    "ResNet": "{d_in: 2, d_out: 1, n_blocks: 1, d_block: 8, d_hidden: null, d_hidden_multiplier: 2.0, dropout1: 0.1, dropout2: 0.0}",
    "FTTransformer": "{n_cont_features: 2, cat_cardinalities: [], d_out: 1, n_blocks: 1, d_block: 8, attention_n_heads: 2, attention_dropout: 0.0, ffn_d_hidden: null, ffn_d_hidden_multiplier: 1.3, ffn_dropout: 0.0, residual_dropout: 0.0}",
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_modules_of_other_people_run_unchanged(name: str, table: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network with batch normalisation and a transformer (Gorishniy et al., 2021), whose second input are categories."""
    monkeypatch.setenv(VARIABLE, "rtdl_revisiting_models")
    target = f"model.target=rtdl_revisiting_models:{name}"
    done = runner.run(None, [*OWN, target, f"model.kwargs={OTHERS[name]}", "train.batch_size=20"])
    predictor = runner.load(done.directory)
    found = predictor.predict(table[:, :2])
    assert np.sqrt(np.mean((found - table[:, 2]) ** 2)) == pytest.approx(
        done.summary["metrics"]["train/rmse"], rel=1e-9
    )
    assert main(["export", str(done.directory), "--format", "onnx", "--output", "m.onnx"]) == 0


# -------------------------------------------------------------------------------------------------------------- promises


def test_trials_are_lanes_with_the_values_of_single_runs() -> None:
    arguments = [*OWN, "model.target=my_lab.nets:Net", "optimizer.lr=0.01,0.1", "run_dir=s"]
    runner.multirun(None, arguments)
    assert [record(path)["lanes"] for path in sorted(Path("s").glob("[0-9]*"))] == [2, 2]
    for summary, lr in zip(members(Path("s")), ("0.01", "0.1"), strict=True):
        single = run("Net", f"optimizer.lr={lr}").summary["parameters"]
        for name, values in summary["parameters"].items():
            assert np.array(values) == pytest.approx(np.array(single[name]), abs=ROUNDING)


ALONE = {
    "Dropping": "its model draws random numbers",
    "Elsewhere": "its model draws random numbers",
    "Normed": "its model depends on the whole batch, as batch normalisation does",
    "Centered": "its model depends on the whole batch, as batch normalisation does",
    "Frozen": "some parameters of its model are not trained",
    "ByHand": "vmap refuses its model (In order to use an autograd.Function with functorch transforms",
    "Tied": "its model has buffers, or a parameter with two names",
}


@pytest.mark.parametrize("name", ALONE)
def test_trials_that_vmap_would_change_are_trained_alone(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runner.multirun(None, [*OWN, f"model.target=my_lab.nets:{name}", "seeds=2", "run_dir=s", "train.steps=2"])
    assert ALONE[name] in "".join(capsys.readouterr())
    assert [record(path)["lanes"] for path in sorted(Path("s").glob("[0-9]*"))] == [1, 1]


REMARKS = {
    "Net": None,
    "Dropping": "it draws random numbers, which every step seeds",
    "Elsewhere": "it draws random numbers that are not torch's, so that no run of it can be repeated",
    "Normed": "its predictions in training depend on the other rows of the batch; its forward pass changes norm.running_mean, norm.running_var, norm.num_batches_tracked",
    "Centered": "its predictions in training depend on the other rows of the batch; its predictions depend on the rows that are predicted together, so that each new row is predicted by itself",
}


@pytest.mark.parametrize("name", REMARKS)
def test_habits_are_reported_in_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(name)
    expected = [] if REMARKS[name] is None else [f"note: `model.target`=my_lab.nets:{name}: {REMARKS[name]}"]
    assert [line for line in "".join(capsys.readouterr()).splitlines() if line.startswith("note:")] == expected


@pytest.mark.parametrize(
    ("argument", "key"),
    [
        ("train.accumulate=2", "`train.accumulate` must be 1"),
        ("strategy.reduction=exact", "`strategy.reduction` must be fast"),
    ],
)
def test_a_module_that_mixes_rows_is_refused_where_a_promise_would_break(argument: str, key: str) -> None:
    because = "because its steps depend on how a batch is divided, as with batch normalisation"
    (problem,) = problems("model.target=my_lab.nets:Normed", argument)
    assert problem.startswith(f"{key} with `model`=custom, {because}; use ")


@pytest.mark.parametrize("update", ["manual", "optimizer"])
def test_parameters_that_are_not_trained_stay(update: str) -> None:
    frozen = [f"update={update}", "train.clip_norm=1", "optimizer.weight_decay=0.1"]
    start, end = (run("Frozen", *frozen, f"train.steps={steps}").summary["parameters"] for steps in (1, 6))
    assert start["hidden.weight"] == end["hidden.weight"]
    assert start["last.weight"] != end["last.weight"]


@pytest.mark.parametrize("name", ["Net", "Dropping", "Normed", "Frozen"])
def test_a_run_that_is_cut_ends_with_the_same_bits(name: str) -> None:
    whole = run(name, "train.batch_size=16")
    run(name, "train.batch_size=16", "train.steps=3", "run_dir=cut")
    resumed = runner.run(None, ["resume=cut", "train.steps=6"])
    assert resumed.summary["parameters_sha256"] == whole.summary["parameters_sha256"]


def test_two_processes_have_the_bits_of_one_under_exact() -> None:
    """They are started, and inherit the trust, which is in no file."""
    one = run("Net", "strategy.reduction=exact")
    done = start(
        [
            *OWN,
            "model.target=my_lab.nets:Net",
            "launch.processes=2",
            "strategy.reduction=exact",
            "run_dir=two",
            "--trust",
            "my_lab",
        ]
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(Path("two/summary.json").read_text())
    assert summary["parameters_sha256"] == one.summary["parameters_sha256"]
    assert not any(b"trust" in path.read_bytes() for path in Path("two").rglob("*") if path.is_file())


def start(arguments: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name != VARIABLE}
    return subprocess.run(
        [sys.executable, "-m", "runner", *arguments],
        env={**variables, "PYTHONPATH": str(FOLDER), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )


def test_an_error_in_the_middle_of_a_run_names_the_users_line() -> None:
    """The last batch of an epoch has one row, of which batch normalisation knows no variance."""
    with pytest.raises(RunFailed) as failed:
        run("Normed", f"train.batch_size={ROWS - 1}", "run_dir=r")
    assert str(failed.value) == (
        f"`model.target`=my_lab.nets:Normed failed in {NETS}, line 60, in forward: "
        "ValueError: Expected more than 1 value per channel when training, got input size torch.Size([1, 2])"
    )
    assert record(Path("r"))["status"] == "failed"


# ---------------------------------------------------------------------------------------------------------------- trust


def test_untrusted_code_is_named_and_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    monkeypatch.delitem(sys.modules, "my_lab.failing", raising=False)
    file = FOLDER / "my_lab" / "failing.py"
    assert problems("model.target=my_lab.failing:Net") == [
        f"`model.target`=my_lab.failing:Net is code that a configuration may not start by itself: {file} would be run; "
        "add --trust my_lab if you know what it does"
    ]
    assert "my_lab.failing" not in sys.modules


@pytest.mark.parametrize(
    "verb",
    [
        ["resume=r"],
        ["rerun", "r"],
        ["predict", "r", "--input", "t.csv", "--output", "p.csv"],
        ["export", "r", "--format", "safetensors", "--output", "e"],
    ],
)
def test_a_folder_is_not_trusted_because_it_was_once(
    verb: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("Net", "run_dir=r")
    monkeypatch.delenv(VARIABLE)
    capsys.readouterr()
    assert main(verb) == 2
    assert "add --trust my_lab if you know what it does" in capsys.readouterr().err
    assert main([*verb, "--trust", "my_lab"]) == 0
    assert VARIABLE not in os.environ


def test_an_installed_entry_point_trusts_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    info = tmp_path / "site" / "lab-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[runner.models]\nnet = my_lab.nets:Net\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    assert run("Net").summary["steps"] == 6
    # What lies in the current folder is there because somebody has put it there.
    shutil.rmtree("runs")
    monkeypatch.chdir(tmp_path / "site")
    shutil.copy(tmp_path / "t.csv", ".")
    assert "add --trust my_lab" in problems("model.target=my_lab.nets:Net")[0]


def test_a_namesake_in_the_current_folder_is_not_imported(tmp_path: Path) -> None:
    """`python -m runner` puts the current folder first, which may be somebody else's."""
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "__init__.py").write_text("raise SystemExit(0)")
    done = start([*OWN, "model.target=my_lab.nets:Net", "--trust", "my_lab"])
    assert done.returncode == 2
    assert "must be in one package my_lab, but there are two: " in done.stderr


@pytest.mark.parametrize(
    ("option", "text"),
    [
        (["--trust", "my_lab.nets"], "`--trust` must name a package, without what is in it, such as my_lab, got 'my_lab.nets'; write my_lab"),
        (["--trust"], "`--trust` must name a package, without what is in it, such as my_lab, got ''; write --trust my_lab"),
    ],
)  # fmt: skip
def test_trust_names_packages(option: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*OWN, "model.target=my_lab.nets:Net", *option]) == 2
    assert capsys.readouterr().err == f"error: {text}\n"


# ----------------------------------------------------------------------------------------------------------- bad inputs


NETS = FOLDER / "my_lab" / "nets.py"
REFUSED = {
    "my_lab.nets:function": "=my_lab.nets:function must be a subclass of torch.nn.Module, got a function; name a subclass of torch.nn.Module",
    "my_lab.nets:Alias": "=my_lab.nets:Alias must not be another name of my_lab.nets:Net; write my_lab.nets:Net",
    "my_lab.nets:Linear": "=my_lab.nets:Linear must be defined in my_lab, got an import of torch.nn.modules.linear:Linear; define one there, or name torch.nn.modules.linear:Linear and trust torch",
    "my_lab.nets:torch.nn.Linear": " must be package.module:Name, such as my_lab.nets:Net, got 'my_lab.nets:torch.nn.Linear'; name it where it is defined",
    "my_lab.nets.Net": " must be package.module:Name, such as my_lab.nets:Net, got 'my_lab.nets.Net'; write my_lab.nets:Net",
    "my_lab.nets:NoModule": "=my_lab.nets:NoModule must be a subclass of torch.nn.Module, got a subclass of builtins.object; correct the class",
    "my_lab.nets:Nest": f"=my_lab.nets:Nest must exist, but {NETS} has no Nest; did you mean my_lab.nets:Net?",
    "my_lab.nest:Net": "=my_lab.nest:Net must be in a module that exists, but there is no my_lab.nest; did you mean my_lab.nets:Net?",
    "your_lab:Net": "=your_lab:Net must be in a package that can be imported, but there is no your_lab; install it (pip install -e FOLDER), or start in the folder that has it",
    "__main__:Net": " must be in a module that can be imported again, got __main__:Net; save it in a file of a package, or pass the object itself to runner.run in Python",
    "my_lab.failing:Net": f"=my_lab.failing:Net: importing my_lab.failing failed in {NETS.with_name('failing.py')}, line 3: ValueError: no data of the lab",
    "my_lab.exiting:Net": f"=my_lab.exiting:Net: importing my_lab.exiting failed in {NETS.with_name('exiting.py')}, line 3: SystemExit: 3",
    "my_lab.nets:Required": None,
    "my_lab.nets:Unused": "=my_lab.nets:Unused must use all of its parameters, got head.weight, head.bias without a gradient; remove them, or set their requires_grad to False",
    "my_lab.nets:Flat": "=my_lab.nets:Flat must return a tensor [rows, targets], here [4, 1], got [4]; add .unsqueeze(-1)",
    "my_lab.nets:Pair": "=my_lab.nets:Pair must return a tensor [rows, targets], here [4, 1], got a tuple; return the predictions alone",
    "my_lab.nets:Detached": "=my_lab.nets:Detached must return a tensor [rows, targets], here [4, 1] that depends on its parameters, got one without a gradient; compute it without no_grad and detach",
    "my_lab.nets:Nan": "=my_lab.nets:Nan must return finite numbers for the first rows, got nan or inf; correct its start values, or remove these rows",
    "my_lab.nets:Changing": "=my_lab.nets:Changing must leave the rows as they are, which are used again, got a forward pass that changes them; change a copy",
    "my_lab.nets:Narrow": f"=my_lab.nets:Narrow: its forward pass failed in {NETS}, line 34, in forward: RuntimeError: mat1 and mat2 shapes cannot be multiplied (4x0 and 2x8)",
    "my_lab.nets:Empty": "=my_lab.nets:Empty must have parameters that are trained, got none; register them as torch.nn.Parameter",
}  # fmt: skip


@pytest.mark.parametrize("target", [target for target, text in REFUSED.items() if text])
def test_what_cannot_be_used_is_refused_in_one_sentence(target: str) -> None:
    assert problems(f"model.target={target}") == [f"`model.target`{REFUSED[target]}"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["model.target=my_lab.nets:Net", "model.kwargs={widht: 3}"], "`model.kwargs.widht` must be an argument of my_lab.nets:Net; did you mean `model.kwargs.width`?"),
        (["model.target=my_lab.nets:Required"], "`model.kwargs.depth` is missing: my_lab.nets:Required requires it; give it with model.kwargs.depth=…"),
        (["model.target=my_lab.nets:Net", "model.kwargs.width=-3"], f"`model.target`=my_lab.nets:Net: Net(in_features=2, out_features=1, width=-3) failed in {NETS}, line 31, in __init__: RuntimeError: Trying to create tensor with negative dimension -3: [-3, 2]"),
        (["model.target=my_lab.nets:Net", "optimizer=lstsq"], "`optimizer` must not be lstsq for a model that is not linear in its parameters, got custom; use optimizer=lm"),
        (["model.target=my_lab.nets:Dropping", "optimizer=lm"], "`optimizer` must not be lm with `model`=custom, whose residuals change between evaluations: it draws random numbers; use optimizer=adam"),
        (["model.target=my_lab.nets:Frozen", "optimizer=lm"], "`optimizer` must not be lm with `model`=custom, some of whose parameters are not trained; use optimizer=adam"),
        (["model.target=my_lab.nets:ByHand", "optimizer=lm"], "`optimizer` must not be lm with `model`=custom, which torch.func cannot differentiate row by row (RuntimeError: In order to use an autograd.Function with functorch transforms (vmap, grad, jvp, jacrev, ...), it must override the setup_context staticmethod. For more details, please see https://pytor); use optimizer=adam"),
        (["model._target_=my_lab.nets.Net"], "`model._target_` is not a key, since a configuration does not call code; for a class of your own write model=custom model.target=package.module:Class model.kwargs={…} and trust its package with --trust"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_named(arguments: list[str], text: str) -> None:
    least = ["optimizer.lr=0.01"] if any(a.startswith("optimizer=l") for a in arguments) else []
    with pytest.raises(ConfigError) as refused:
        runner.run(None, [a for a in [*OWN, *arguments] if a not in least])
    assert refused.value.problems[0] == text


def test_a_key_of_hydra_in_a_file_is_answered_by_what_to_write(tmp_path: Path) -> None:
    (tmp_path / "c" / "model").mkdir(parents=True)
    (tmp_path / "c" / "model" / "own.yaml").write_text(
        "name: custom\n_target_: my_lab.nets.Net\ntarget: my_lab.nets:Net\nkwargs: {}\n"
    )
    with pytest.raises(ConfigError, match=r"`model\._target_` is not a key, .* model\.target=package\.module:Class"):
        runner.run(None, [*QUICK, *DATA, "model=own"], config_dir="c")


def test_what_an_import_prints_is_not_among_the_predictions(capsys: pytest.CaptureFixture[str]) -> None:
    sys.modules.pop("my_lab.printing", None)
    done = runner.run(None, [*OWN, "model.target=my_lab.printing:Printing"])
    sys.modules.pop("my_lab.printing", None)
    capsys.readouterr()
    assert main(["predict", str(done.directory), "--input", "t.csv", "--output", "-"]) == 0
    out, err = capsys.readouterr()
    assert "hello from the lab" not in out
    assert "hello from the lab" in err


# --------------------------------------------------------------------------------------------------------------- record


def test_a_change_of_the_code_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "lib" / "your_lab"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text((FOLDER / "my_lab" / "nets.py").read_text())
    monkeypatch.setattr(sys, "path", [str(package.parent), *sys.path])
    monkeypatch.setenv(VARIABLE, "your_lab")
    target = "your_lab:Net"
    runner.run(None, [*OWN, f"model.target={target}", "run_dir=r"])
    before = hashlib.sha256((package / "__init__.py").read_bytes()).hexdigest()
    assert record(Path("r"))["code"] == {target: {"version": None, "sha256": before}}
    assert main(["rerun", "r", "run_dir=same"]) == 0
    assert "is not the code" not in "".join(capsys.readouterr())
    with (package / "__init__.py").open("a") as file:
        file.write("# changed\n")
    for arguments in (["rerun", "r", "run_dir=other"], ["resume=r", "train.steps=8"]):
        assert main(arguments) == 0
        assert (
            f"`model.target`={target} is not the code that r ran: SHA-256 of its file {before[:8]}… then, "
            in "".join(capsys.readouterr())
        )
    monkeypatch.delitem(sys.modules, "your_lab")


# --------------------------------------------------------------------------------------------------- explain and sweeps


def explained(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    capsys.readouterr()
    assert main(["explain", *OWN, *arguments]) == 0
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]


def test_explain_says_what_a_run_will_find_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def notes(name: str, *arguments: str) -> list[str]:
        return explained(capsys, f"model.target=my_lab.nets:{name}", *arguments)

    assert notes("Net") == [
        "note: `model.target`=my_lab.nets:Net: it maps each row by itself and draws no random numbers"
    ]
    assert notes("Dropping") == [
        "note: `model.target`=my_lab.nets:Dropping: it draws random numbers, which every step seeds"
    ]
    assert notes("Net", "optimizer") == []
    assert "nets.py has no absent" in notes("absent", "model")[0]
    assert len(notes("Net", "data.path=none.csv")) == 1
    monkeypatch.delenv(VARIABLE)
    assert notes("Net")[0].startswith("note: `model.target`=my_lab.nets:Net is code that a configuration may not start")
    assert not Path("runs").exists()


def test_trust_reaches_every_process_of_a_sweep_and_no_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal is one sentence before anything is written, also where a sweep is resumed."""
    monkeypatch.delenv(VARIABLE)
    own = [argument for argument in OWN if not argument.startswith("optimizer.lr")]
    sweep = ["-m", *own, "model.target=my_lab.nets:Net", "run_dir=sweep"]
    text = "`model.target`=my_lab.nets:Net is code that a configuration may not start by itself: "

    def refusal(*arguments: str) -> str:
        capsys.readouterr()
        assert main([*arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    monkeypatch.setenv("PYTHONPATH", str(FOLDER))
    for launcher in ("vmap", "pool"):
        assert refusal(*sweep, "optimizer.lr=0.1,0.2", f"hydra/launcher={launcher}").startswith(f"error: {text}")
        assert not Path("sweep").exists()
    assert main([*sweep, "optimizer.lr=0.1", "hydra/launcher=pool", "--trust", "my_lab"]) == 0
    assert len(members(Path("sweep"))) == 1
    assert not [path for path in Path("sweep").rglob("*.json*") if "trust" in path.read_text()]
    shutil.rmtree("sweep/0")
    before = Path("sweep/sweep.json").read_bytes()
    assert refusal("-m", "resume=sweep").startswith(f"error: sweep/sweep.json: {text}")
    assert Path("sweep/sweep.json").read_bytes() == before
