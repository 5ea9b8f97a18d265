"""Invalid input: one line on stderr for each problem, exit code 2, no traceback, and no new file.

The numbers B01, B02, … identify kinds of bad input. These tests cover the whole path from the command line. The unit tests in
tests/unit/config cover single values, combinations and a user's files, and those in tests/unit/data cover tables.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runner.cli import main

QUICK = ["device=cpu", "record.plots=false", "train.steps=2"]
SEED = "`seed` must be an integer from 0 to 4294967295, got"
NAME = "`name` must be a string that matches [A-Za-z0-9][A-Za-z0-9._-]{0,99}, got"
RATE = "`optimizer.lr` must be a finite number from 0 to 1e+38, got"
STEPS = "`train.steps` must be an integer of at least 1 or null, got"
DTYPE = "`dtype` must be one of float64, float32, bfloat16, float16, got"
DEVICE = "`device` must be one of auto, cpu, cuda, mps, rocm, xpu, got"
OPTIMIZER = "`optimizer` must be one of adam, adamw, custom, lbfgs, lm, lstsq, momentum, sgd, got"
START = "`model.start` must be a mapping from names to finite numbers, got"
VISIBLE = "`device.visible` must be a list, each item an integer of at least 0 or a string, or null, got"
WIDTHS = "`model.widths` must be a list, each item an integer of at least 1, got"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def errors(capsys: pytest.CaptureFixture[str]) -> Errors:
    return Errors(capsys)


class Errors:
    """Messages on stderr of a refused command."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def of(self, *arguments: str) -> list[str]:
        """Return the messages. The command must end with exit code 2 and leave the working directory unchanged."""
        before = contents()
        assert main(arguments) == 2
        lines = self.capsys.readouterr().err.splitlines()
        assert lines
        assert [line for line in lines if not line.startswith("error: ")] == []
        assert contents() == before
        return [line.removeprefix("error: ") for line in lines]


def contents() -> list[Path]:
    return sorted(Path().rglob("*"))


# ----------------------------------------------------------------------------------------- arguments, keys and options

TABLE: dict[str, tuple[list[str], list[str]]] = {
    "B01-B02 keys that do not exist": (
        ["lrr=1e-3", "lr=1e-3", "+lrr=1", "optimizer.lrr=1", "++optimizer.lrr=1", "steps=3", "batchsize=3", "optimzer=adam", "xyzzy=1", "model.with=[3]", "=3", ".=3", "train.steps.x=3"],
        [
            "`lrr` is not a key; did you mean `optimizer.lr`?",
            "`lr` is not a key; did you mean `optimizer.lr`?",
            "`lrr` is not a key; did you mean `optimizer.lr`?",
            "`optimizer.lrr` is not a key; did you mean `optimizer.lr`?",
            "`optimizer.lrr` is not a key; did you mean `optimizer.lr`?",
            "`steps` is not a key; did you mean `train.steps`?",
            "`batchsize` is not a key; did you mean `train.batch_size`?",
            "`optimzer` is not a key; did you mean `optimizer`?",
            "`xyzzy` is not a key; see docs/config.md for the list of keys",
            "`model.with` is not a key; did you mean `model.widths`?",
            "`=3` must have the form key=value, but has no key; see --help",
            "`.` is not a key; see docs/config.md for the list of keys",
            "`train.steps.x` is not a key; did you mean `train.steps`?",
        ],
    ),
    "B09 arguments without key=value": (
        ["lr:3", "train.steps:10", "foo", "linreg", "", "~optimizer.lr", "optimizer.lr=1,2", "train.steps=range(1,3)", "model=mlp,linear", "data.path=a,b.csv", "optimizer@model=adam", "hydra.run.dir=x", "hydra/launcher=x", "a\nb=3"],
        [
            "`lr:3` must have the form key=value, but has no `=`; write lr=3",
            "`train.steps:10` must have the form key=value, but has no `=`; write train.steps=10",
            "`foo` must have the form key=value, but has no `=`; see --help",
            "`linreg` must have the form key=value, but has no `=`; did you mean +experiment=linreg?",
            "`` must have the form key=value, but has no `=`; see --help",
            "`~optimizer.lr` deletes a key, but every key must have a value; set a value instead",
            "`optimizer.lr` must be one value, got 1,2; write optimizer.lr=VALUE, or add -m for a sweep",
            "`train.steps` must be one value, got range(1,3); write train.steps=VALUE, or add -m for a sweep",
            "`model` must be one value, got mlp,linear; write model=VALUE, or add -m for a sweep",
            "`data.path` must be one value, got a,b.csv; put a string with commas in two pairs of quotes, one for the shell: \"data.path='a,b.csv'\"",
            "`optimizer@model` moves a group, but groups cannot be moved; write optimizer=…",
            "`hydra.run.dir` has no effect, because Hydra only composes the configuration; use run_dir=… to place a run, --config-dir to add groups",
            "`hydra/launcher` has no effect, because Hydra only composes the configuration; use run_dir=… to place a run, --config-dir to add groups",
            "`a\\nb` is not a key; see docs/config.md for the list of keys",
        ],
    ),
    "B09 unknown options": (
        ["--lr=3", "--seed", "-x", "-"],
        [
            "`--lr=3` is not an option; write values as key=value, such as lr=3",
            "`--seed` is not an option; write values as key=value, such as seed=…",
            "`-x` is not an option; write values as key=value, such as x=…",
            "`-` is not an option; write values as key=value, such as seed=…",
        ],
    ),
    "B09 braces split by the shell": (
        ["model=formula", "model.start={a:", "0.5,", "b:", "0.1}"],
        [
            '`model.start` has a value that cannot be read, {a:; put the whole argument in quotes for the shell: "model.start={a: …"',
            "`0.5,` must have the form key=value, but has no `=`; see --help",
            "`b:` must have the form key=value, but has no `=`; write b=",
            "`0.1}` must have the form key=value, but has no `=`; see --help",
        ],
    ),
    "B12, B16 options of a group": (
        ["+experiment=linrge", "model=nope", "optimizer=SDG", "loss=mes", "strategy=dpp", "schedule=null", "data=[csv]", "train={steps: 3}", "record=", "device=meta"],
        [
            "`experiment` must be one of curve_fit, diabetes, diamonds, formula, linreg, mlp, table, got 'linrge'; did you mean linreg?",
            "`model` must be one of custom, formula, linear, mlp, polynomial, got 'nope'",
            f"{OPTIMIZER} 'SDG'; did you mean sgd?",
            "`loss` must be one of custom, huber, mae, mse, got 'mes'; did you mean mse?",
            "`strategy` must be one of auto, ddp, dp, fsdp, pipeline, single, tensor, got 'dpp'; did you mean dp?",
            "`schedule` must be one of constant, cosine, step, warmup_cosine, got null",
            "`data` must be one of csv, curve, custom, diabetes, line, parquet, got ['csv']",
            "`train` must be one of default, got {'steps': 3}; set its keys one by one: train.KEY=…",
            "`record` must be one of default, got ''",
            f"{DEVICE} 'meta'",
        ],
    ),
    "B12 an empty experiment": (["+experiment="], ["`experiment` must be one of curve_fit, diabetes, diamonds, formula, linreg, mlp, table, got ''"]),
    "B16 an empty optimizer": (["optimizer="], [f"{OPTIMIZER} ''"]),
    "a value for a group": (
        ["train.early_stopping=3", "train.early_stopping={patience: 3}", "optimizer.name=adam", "device.name=cpu"],
        [
            "`train.early_stopping` is a group of keys, got 3; set its keys one by one: train.early_stopping.KEY=…",
            "`train.early_stopping` is a group of keys, got {patience: 3}; set its keys one by one: train.early_stopping.KEY=…",
            "`optimizer.name` cannot be set by itself, because other keys depend on it; write optimizer=adam",
            "`device.name` cannot be set by itself, because other keys depend on it; write device=cpu",
        ],
    ),
    "B17 a key of another optimizer": (["optimizer=adam", "optimizer.momentum=0.9"], ["`optimizer.momentum` is not a key of adam, which has lr, betas, eps, weight_decay; remove it"]),
    "B18 a manual update without a rule": (["update=manual", "optimizer=lbfgs"], ["`update` must be optimizer with `optimizer`=lbfgs, which has no manual update rule; use update=optimizer"]),
    "steps and epochs": (["train.steps=3", "train.epochs=3"], ["`train.steps` and `train.epochs` must not both be given, since one replaces the other; remove one"]),
    "code in a configuration": (
        ["_target_=os.system", "+model._target_=os.system", "++optimizer._args_=[ls]", "data._target_.x=os.system"],
        [
            "`_target_` is not a key, since a configuration does not call code; remove it",
            "`model._target_` is not a key, since a configuration does not call code; for a class of your own write model=custom model.target=package.module:Class model.kwargs={…} and trust its package with --trust",
            "`optimizer._args_` is not a key, since a configuration does not call code; for a class of your own write optimizer=custom optimizer.target=package.module:Class optimizer.kwargs={…} and trust its package with --trust",
            "`data._target_.x` is not a key; did you mean `data.target`?",
        ],
    ),
    "code in a mapping": (["model=formula", "model.start._target_=os.system"], [f"{START} {{'_target_': 'os.system'}}"]),
    # ------------------------------------------------------------------------------------------------------------ values
    "B03-B07 numbers": (
        ["train.steps=abc", "optimizer.lr=-0.1", "train.batch_size=0", "train.accumulate=0", "train.clip_norm=-1", "checkpoint.every_steps=0", "checkpoint.keep=-1", "record.every_steps=1.5", "device.threads=0", "optimizer.weight_decay=-1", "data.rows=0", "data.noise=nan", "data.split.test=-0.1", "seed=null"],
        [
            "`device.threads` must be an integer from 1 to 1024 or null, got 0",
            "`data.split.test` must be an integer of at least 0 or a finite number of at least 0, got -0.1",
            "`data.rows` must be an integer of at least 1, got 0",
            "`data.noise` must be a finite number of at least 0, got nan",
            f"{RATE} -0.1",
            "`optimizer.weight_decay` must be a finite number from 0 to 1e+38, got -1",
            f"{STEPS} 'abc'",
            "`train.batch_size` must be an integer of at least 1 or null, got 0",
            "`train.accumulate` must be an integer of at least 1, got 0",
            "`train.clip_norm` must be a finite number above 0 or null, got -1",
            "`checkpoint.every_steps` must be an integer of at least 1 or null, got 0",
            "`checkpoint.keep` must be an integer of at least 1 or null, got -1",
            "`record.every_steps` must be an integer of at least 1, got 1.5",
            f"{SEED} null",
        ],
    ),
    "B04-B07 values that Hydra's grammar changes": (
        ["optimizer.lr=True", "seed=0x10", "train.steps=10.5", "train.batch_size=", "train.clip_norm=inf", "data.noise=1e400", "data.slope=[1]", "checkpoint.keep={a: 1}", "data.rows='3'", "record.plots=yes", "train.accumulate=null"],
        [
            f"{RATE} true",
            f"{SEED} '0x10'",
            f"{STEPS} 10.5",
            "`train.batch_size` must be an integer of at least 1 or null, got ''",
            "`train.clip_norm` must be a finite number above 0 or null, got inf",
            "`data.noise` must be a finite number of at least 0, got inf",
            "`data.slope` must be a finite number, got [1]",
            "`checkpoint.keep` must be an integer of at least 1 or null, got {'a': 1}",
            "`data.rows` must be an integer of at least 1, got '3'",
            "`record.plots` must be true or false, got 'yes'",
            "`train.accumulate` must be an integer of at least 1, got null",
        ],
    ),
    "B07 beyond float32": (["optimizer.lr=1e300"], [f"{RATE} 1e+300"]),
    "B20 seeds": (["seed=-1", "data.seed=4294967296"], [f"{SEED} -1", "`data.seed` must be an integer from 0 to 4294967295 or null, got 4294967296"]),
    "B20 a huge seed": (["seed=18446744073709551616", f"optimizer.lr={'9' * 400}"], [f"{SEED} an integer of more than 64 bits", f"{RATE} an integer of more than 64 bits"]),
    "B20 a seed that Python cannot parse": ([f"seed={'9' * 5000}"], [f"`seed` has a value that cannot be read, {'9' * 117}…; write seed=VALUE"]),
    "B10 missing values": (["data=csv"], ["`data.path` is missing; give a string with data.path=…", "`data.target` is missing; give a string, or a list, each item a string with data.target=…"]),
    "B11 references": (["name=${nope}", "run_dir=${oc.env:NOPE_}"], ["`name` cannot be resolved: Interpolation key 'nope' not found; correct the reference, or give a value", "`run_dir` cannot be resolved: \"Environment variable 'NOPE_' not found\"; correct the reference, or give a value"]),
    "B11 an unclosed reference": (["name=${"], ["`name` cannot be set to '${': no viable alternative at input '${'; correct the value"]),
    "B11 an unknown resolver": (["name=${os.system:ls}"], ["`name` cannot be resolved: Unsupported interpolation type os.system; correct the reference, or give a value"]),
    "B19 betas": (["optimizer=adam", "optimizer.betas=[1.5,0.9]", "optimizer.eps=nan"], ["`optimizer.betas` must be a list of 2 items, each a finite number of at least 0 and below 1, got [1.5, 0.9]", "`optimizer.eps` must be a finite number above 0, got nan"]),
    "B21": (["dtype=float16", "device=cpu"], ["`dtype` must not be float16 with `device`=cpu: adam's eps underflows to 0 and some operations are not implemented; use dtype=float32"]),
    **{f"B22 {word}": ([f"dtype={word}", "device=cpu"], [f"{DTYPE} '{word}'{hint}"]) for word, hint in {"int64": "; did you mean float64?", "complex64": "", "double": "", "float": "; did you mean float64?"}.items()},
    **{f"B27 {word!r}": ([f"device={word}"], [f"{DEVICE} '{word}'{hint}"]) for word, hint in {"cuda:7": "; did you mean cuda?", "CUDA": "; did you mean cuda?", "gpu": "; did you mean auto?", "hip": "; did you mean rocm?", "": "", "cpu:3": "; did you mean cpu?"}.items()},
    "B29 ordinals": (["device.visible=[-1]"], [f"{VISIBLE} [-1]"]),
    "B29 an ordinal without brackets": (["device.visible=0"], [f"{VISIBLE} 0; write device.visible=[0]"]),
    "B50 widths": (["model=mlp", "model.widths=[0]", "model.dropout=1.5", "model.activation=relux"], [f"{WIDTHS} [0]", "`model.activation` must be one of relu, tanh, gelu, silu, sigmoid, got 'relux'; did you mean relu?", "`model.dropout` must be a finite number of at least 0 and below 1, got 1.5"]),
    "B50 a width without brackets": (["model=mlp", "model.widths=64"], [f"{WIDTHS} 64; write model.widths=[64]"]),
    "B51 start values": (["model=formula", "model.start={a: x}"], [f"{START} {{'a': 'x'}}"]),
    "B51 a start value of nan": (["model=formula", "model.start={a: .nan}"], [f"{START} {{'a': '.nan'}}"]),
    "B51 a start value of an unknown parameter": (["model=formula", "model.start={q: 1}"], ["`model.start.q` must name a parameter of `model.expression`='a*x + b', which has a, x, b; remove it or correct its name"]),
    **{
        f"B52 {name[:9]!r}": ([f"name={name}"], [f"{NAME} {name!r}" if len(name) < 300 else f"{NAME} '{name[:116]}…"])
        for name in ("../../x", "", "a\0b", "a\nb", "x" * 300, "~", "ä")
    },
    "B58 schedules": (["schedule=step", "schedule.every_steps=0", "schedule.factor=-1"], ["`schedule.every_steps` must be an integer of at least 1, got 0", "`schedule.factor` must be a finite number above 0 and at most 1, got -1"]),
    "B54 resume": (["resume=nope"], ["`resume` must be a run directory, got 'nope', which is not a directory; correct the path"]),
    "B54 rerun": (["rerun", "nope"], ["`rerun` must be a run directory, got 'nope', which is not a directory; correct the path"]),
    "B54 rerun without a directory": (["rerun"], ["`rerun` must be followed by a run directory, got nothing; write rerun RUN_DIR"]),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "messages"), TABLE.values(), ids=TABLE.keys())
def test_invalid_configurations_are_refused(arguments: list[str], messages: list[str], errors: Errors) -> None:
    assert sorted(errors.of(*arguments)) == sorted(messages)


def test_no_message_advises_to_add_a_key() -> None:
    messages = [message for _, messages in TABLE.values() for message in messages]
    assert [m for m in messages if re.search(r"\+(?!experiment=)[a-z]", m)] == []


# -------------------------------------------------------------------------------------------------------- accepted inputs


@pytest.mark.parametrize(
    ("arguments", "notice"),
    [
        (["optimizer.lr=0"], "`optimizer.lr` is 0, so the parameters will not change"),
        (["seed=1", "seed=2", "optimizer.lr=1e-4"], "`seed` is given twice; the last one counts: 2"),
        (["+experiment=linreg", "model=mlp"], "`model.init` of the experiment left out: mlp has no such key"),
        (["model=mlp", "model.widths=[]", "optimizer.lr=1e-4"], None),
        (["train.steps=2e0", "optimizer.lr=1e-4"], None),
        (["model=formula", "model.expression=a*exp(-b*x/100) + c"], None),
        (
            ["+experiment=curve_fit", "optimizer=adam", "update=optimizer"],
            "kept from the experiment: `optimizer.lr`=0.01 (adam: 0.001)",
        ),
    ],
)
def test_unusual_inputs_are_run_with_a_notice(
    arguments: list[str], notice: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {argument.partition("=")[0] for argument in arguments}
    quick = [argument for argument in QUICK if argument.partition("=")[0] not in keys]
    assert main([*arguments, *quick]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert [line for line in printed.out.splitlines() if line.startswith("note: ")] == ([f"note: {notice}"] if notice else [])  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ data files

CSV = ["data=csv", "data.target=y", "data.path=rows.csv"]
TEN = "x,y\n" + "".join(f"{i},{2 * i}\n" for i in range(10))


@pytest.mark.parametrize(
    ("text", "arguments", "beginning"),
    [
        (None, [], "`data.path` must be a readable file, but 'rows.csv' does not exist; give its path with data.path=PATH, relative to the working directory"),
        ("", [], "`data.path` must have a header and rows, but 'rows.csv' is empty; use another file"),
        (TEN, ["data.skip_rows=20"], "`data.skip_rows` must leave a header and rows of 'rows.csv', got 20; skip fewer lines"),
        ("x,y\n", [], "`data.path` must have rows, got a header and 0 rows in 'rows.csv'; add rows"),
        ("x,y\n1,2\na,3\n", [], "`data.path`: line 3 of 'rows.csv', column 'x', must be a finite number, got 'a', text; "),
        ("x,y\n1,2\n1,2,3\n", [], "`data.path`: line 3 of 'rows.csv' must have 2 fields like the header, got 3; "),
        (TEN, ["data.features=[y]"], "`data.features` must not contain the target 'y'; remove it"),
        (TEN, ["data.features=[z]"], "`data.features` must name a column of 'rows.csv', got 'z'; the columns are 'x', 'y'"),
        (TEN, ["data.split.test=10"], "`data.split.test` must leave rows for training, got 10 of 10; use smaller values"),
        (TEN, ["data.split.test=5", "data.split.valid=0.5"], "`data.split.test` and `data.split.valid` must leave rows for training, got 5 and 5 of 10; use smaller values"),
        (TEN, ["data.split.test=0.01"], "`data.split.test` must select at least one row, got 0.01 of 10 rows; use a larger value, or 0 for no test rows"),
        (TEN, ["data.log_target=true"], "`data.log_target` needs a target above 0, got 0 for 'y' in row 1 (1 such rows); "),
    ],
)  # fmt: skip
def test_an_unusable_table_is_refused(text: str | None, arguments: list[str], beginning: str, errors: Errors) -> None:
    """B41-B48 from the command line."""
    if text is not None:
        Path("rows.csv").write_text(text, encoding="utf-8")
    (problem,) = errors.of(*CSV, *arguments, *QUICK)
    assert problem.startswith(beginning)


@pytest.mark.parametrize("name", ["a=b,c.csv", "größe it's.csv", "(1) 100%.csv"])
def test_a_data_file_may_have_any_name(name: str, errors: Errors) -> None:
    (problem,) = errors.of("data=csv", f"data.path={name}", "data.target=y", *QUICK)
    assert problem.startswith(f"`data.path` must be a readable file, but {name!r} does not exist; ")


def test_rows_outside_of_the_domain_are_refused(errors: Errors) -> None:
    """B51."""
    (problem,) = errors.of("data=curve", "data.expression=log(x)", *QUICK)
    assert problem.startswith("`data.expression` must be finite on the whole range, but 'log(x)' is not at x=0; ")


# ---------------------------------------------------------------------------------------------------- run directories


@pytest.mark.parametrize("run_dir", ["file", "file/below", "full"])
def test_a_run_directory_that_cannot_be_created_is_refused(run_dir: str, errors: Errors) -> None:
    Path("file").write_text("")
    Path("full").mkdir()
    Path("full/kept").write_text("")
    (problem,) = errors.of(f"run_dir={run_dir}", *QUICK)
    assert problem.startswith(f"`run_dir` must be an empty or a new directory, got {run_dir}: ")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no folder is read-only for root")
def test_a_run_directory_that_is_not_writable_is_refused(errors: Errors) -> None:
    parent = "/proc/self"
    (problem,) = errors.of(f"run_dir={parent}/run", *QUICK)
    assert problem.startswith(f"`run_dir` must be an empty or a new directory, got {parent}/run: ")


def test_a_run_directory_with_a_run_is_refused(errors: Errors) -> None:
    """B53, and other invalid uses of an existing run."""
    assert main(["run_dir=run", *QUICK]) == 0
    errors.capsys.readouterr()
    assert errors.of("run_dir=run", *QUICK) == ["`run_dir` must be a new directory, but run holds a run; use another one, or resume it with resume=run"]  # fmt: skip
    assert errors.of("rerun", "run", "run_dir=run") == ["`run_dir` must be a new directory, but run holds a run; use another one, or resume it with resume=run"]  # fmt: skip
    assert [p.split("`")[1] for p in errors.of("resume=run", "seed=3", "run_dir=other", "train.steps=0")] == ["seed", "run_dir", "train.steps"]  # fmt: skip
    Path("run/run.json").write_text("not JSON")
    (problem,) = errors.of("resume=run", "train.steps=9")
    assert problem.startswith("run/run.json must be the record of a run, but cannot be read (")


# --------------------------------------------------------------------------------------------------- devices and masks


@pytest.mark.parametrize("device", ["cuda", "rocm", "xpu"])
def test_an_unavailable_device_is_refused(device: str, errors: Errors) -> None:
    """B23-B25. The missing part depends on the build of torch and on the machine."""
    from runner.compute.devices import installed_build

    if installed_build().kind == device:
        pytest.skip(f"torch is built for {device}")
    (problem,) = errors.of(f"device={device}", "train.steps=2")
    assert problem.startswith(f"`device={device}` needs ")
    assert problem.endswith("or set device=cpu")


def test_a_mask_that_hides_every_gpu_is_refused(errors: Errors, monkeypatch: pytest.MonkeyPatch) -> None:
    """B28. A GPU build of torch names the mask itself (tests/unit/compute/test_devices.py)."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    (problem,) = errors.of("device=cuda", "train.steps=2")
    assert problem.startswith("`device=cuda` needs ")


def test_a_misspelled_mask_gets_a_notice(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """B30."""
    monkeypatch.setenv("CUDA_VISBLE_DEVICES", "0")
    assert main(QUICK) == 0
    assert "note: the environment variable 'CUDA_VISBLE_DEVICES' ('0') has no effect; did you mean CUDA_VISIBLE_DEVICES?" in capsys.readouterr().out  # fmt: skip


@pytest.mark.parametrize("value", ["abc", "0", "-1", "", "1.5"])
def test_invalid_openmp_threads_are_refused(value: str, errors: Errors, monkeypatch: pytest.MonkeyPatch) -> None:
    """B61."""
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert errors.of(*QUICK) == [
        f"the environment variable `OMP_NUM_THREADS` must be an integer of at least 1, got {value!r}; correct or unset it"
    ]
