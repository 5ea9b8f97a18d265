"""Command line: help, the printed configuration, verbs, exit codes, and the modules that are not imported."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from runner import cli
from runner.commands import VERBS
from runner.config.compose import check, compose
from runner.config.hydra_adapter import options
from runner.config.schema import plain
from runner.errors import Interrupted, RunFailed

QUICK = ["device=cpu", "record.plots=false", "train.steps=2"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def out(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the output of a command that succeeds and prints nothing on stderr."""
    assert cli.main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def err(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the stderr of a command that is refused and prints nothing else."""
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err


def user_folder(folder: Path) -> Path:
    """Write a user's configuration folder with an experiment, an option and a group."""
    for name, text in {
        "experiment/trial": "# @package _global_\n# My own question.\nname: trial\ntrain:\n  steps: 2\n",
        "experiment/plain": "# @package _global_\nname: plain\n",
        "model/tiny": "# Two units.\nname: mlp\nwidths: [2]\nactivation: tanh\ndropout: 0.0\n",
        "model/_base": "# Not an option.\nname: mlp\n",
        "study/fast": "# @package _global_\n# In a hurry.\ntrain:\n  steps: 1\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


# ---------------------------------------------------------------------------------------------------------------- help


def test_help_lists_experiments_and_groups_with_descriptions(capsys: pytest.CaptureFixture[str]) -> None:
    text = out(capsys, "--help")
    assert text == out(capsys, "-h") == out(capsys) == out(capsys, "--help", "lrr=3")
    assert text.startswith("python -m runner +experiment=NAME [key=value …]")
    for group, choices in options().items():
        assert re.search(rf"^{group}s?$", text, re.MULTILINE), group
        for name, description in choices.items():
            listed = re.search(rf"^  {name} +{re.escape(description)}$", text, re.MULTILINE) is not None
            assert listed == (name != "memory"), name  # what only Python code can give
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("relative", [True, False])
def test_help_lists_the_options_of_a_user(relative: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = user_folder(tmp_path / "of mine")
    text = out(capsys, "--help", "--config-dir", "of mine" if relative else str(folder))
    for line in ("  linreg +A straight line", "  trial +My own question\\.$", "  plain +$", "  tiny +Two units\\.$", "study$", "  fast +In a hurry\\.$"):  # fmt: skip
        assert re.search(f"^{line}", text, re.MULTILINE), line
    assert "_base" not in text


def test_a_users_folder_is_found_from_any_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = user_folder(tmp_path / "mine")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    arguments = ("experiment=trial", "model=tiny", "study=fast", "--cfg", "job")
    shown = yaml.safe_load(out(capsys, "--config-dir", str(folder), *arguments))
    assert shown == yaml.safe_load(out(capsys, "--config-dir=../mine", *arguments))
    assert (shown["name"], shown["model"]["widths"], shown["train"]["steps"]) == ("trial", [2], 1)


@pytest.mark.parametrize("folder", ["nope", ""])
def test_help_refuses_a_config_dir_that_is_not_a_folder(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert err(capsys, "--help", "--config-dir", folder) == (
        f"error: `--config-dir` must be a folder of configuration groups, got {folder!r}; correct the path\n"
    )


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert out(capsys, "--version") == f"runner {version('runner')}\n"


# ------------------------------------------------------------------------------------------- printed configuration


@pytest.mark.parametrize("flags", [["--cfg", "job"], ["--cfg=job", "--resolve"], ["-c", "job"]])
def test_the_printed_configuration_is_that_of_the_run(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["+experiment=curve_fit", "model.start={w: 1e-3}", "name=off", "run_dir=${oc.env:OMP_NUM_THREADS}/x", "amp=off"]  # fmt: skip
    shown = out(capsys, *overrides, *flags)
    config = compose(overrides).config
    assert yaml.safe_load(shown) == plain(config)
    assert check(yaml.safe_load(shown)) == config
    assert (config.name, config.run_dir) == ("off", "1/x")
    assert list(Path().iterdir()) == []


def test_a_string_that_looks_like_another_type_stays_a_string(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["data=csv", "data.path=007", "data.target=on", "data.features=['1','null','a: b']", "name=1e3"]
    config = check(yaml.safe_load(out(capsys, *overrides, "--cfg", "job")))
    assert config == compose(overrides).config
    assert plain(config)["data"]["features"] == ["1", "null", "a: b"]


def test_the_plus_of_an_experiment_is_optional(capsys: pytest.CaptureFixture[str]) -> None:
    first, *others = [out(capsys, f"{plus}experiment=linreg", "--cfg", "job") for plus in ("", "+", "++")]
    assert others == [first, first]


def test_options_may_precede_a_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(user_folder(tmp_path / "own"))
    after = out(capsys, "explain", "--config-dir", folder, "+experiment=trial", "--json")
    assert out(capsys, "--config-dir", folder, "explain", "+experiment=trial", "--json") == after
    assert out(capsys, "--json", "-cd", folder, "explain", "+experiment=trial") == after
    assert out(capsys, "--help", "verify") == out(capsys, "verify", "--help")
    assert err(capsys, "--times", "0", "verify", "resume") == err(capsys, "verify", "resume", "--times", "0")
    for verb in ("parity", "explain", "verify resume", "verify world-size"):
        assert "`+experiment=nope`" not in err(capsys, "--config-dir", folder, *verb.split(), "+experiment=nope")
    for verb in ("diverge no such", "verify rerun no", "verify sweep no"):
        assert err(capsys, "--config-dir", folder, *verb.split()) == err(capsys, *verb.split())
    assert cli.main(["--config-dir", folder, "doctor"]) == cli.main(["doctor"])
    capsys.readouterr()
    for verb in VERBS:
        assert out(capsys, "--version", verb) == out(capsys, verb, "--version") == out(capsys, "--version")


def test_a_folder_may_have_the_name_of_a_verb(capsys: pytest.CaptureFixture[str]) -> None:
    user_folder(Path("explain"))
    assert (
        yaml.safe_load(out(capsys, "--config-dir", "explain", "+experiment=trial", "--cfg", "job"))["name"] == "trial"
    )


def test_the_order_of_options_and_overrides_does_not_matter(capsys: pytest.CaptureFixture[str]) -> None:
    assert out(capsys, "--cfg", "job", "seed=3") == out(capsys, "seed=3", "--cfg", "job")


@pytest.mark.parametrize(
    ("arguments", "beginning"),
    [
        (["--cfg", "all"], "`--cfg` must be job, got 'all', because Hydra's own settings keep their values; write --cfg job"),
        (["--cfg"], "the options cannot be read: argument --cfg/-c: expected one argument; see --help"),
        (["--config-dir"], "the options cannot be read: argument --config-dir/-cd: expected one argument; see --help"),
        (["-cn", "nope"], "`-cn` is an option of Hydra, not of runner; write +experiment=NAME, for one of your own with --config-dir DIR"),
        (["--info=all"], "`--info` is an option of Hydra, not of runner; write explain to see where each value comes from: "),
        (["-sc", "install=bash"], "`-sc` is an option of Hydra, not of runner; write completion bash, zsh or fish: "),
        (["--hydra-help"], "`--hydra-help` is an option of Hydra, not of runner; write --help"),
        (["--run", "+experiment=linreg"], "`--run` is an option of Hydra, not of runner; leave it out, since without -m "),
        (["--help=3"], "the options cannot be read: argument --help/-h: ignored explicit argument '3'; see --help"),
        (["--resolve"], "`--resolve` must be used with --cfg; add --cfg job"),
        (["-m", "rerun", "runs"], "`rerun` must not be given with -m, because it repeats one run; remove one of them"),
    ],
)  # fmt: skip
def test_invalid_options_are_refused(arguments: list[str], beginning: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = err(capsys, *arguments)
    assert text.startswith(f"error: {beginning}")
    assert text.count("\n") == 1


# ---------------------------------------------------------------------------------------------------- runs and verbs


def record(run: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(Path(run, "run.json").read_text())
    return found


def test_a_run_and_its_repetition_are_equal(capsys: pytest.CaptureFixture[str]) -> None:
    out(capsys, "+experiment=linreg", "seed=3", "run_dir=first", *QUICK)
    out(capsys, "rerun", "first", "run_dir=second")
    out(capsys, "rerun", "first", "run_dir=third", "seed=4")
    out(capsys, "rerun", "first")
    summaries = [json.loads(Path(run, "summary.json").read_text()) for run in ("first", "second", "third")]
    first, second, third = (summary["parameters_sha256"] for summary in summaries)
    assert first == second != third
    assert record("first")["config_hash"] == record("second")["config_hash"] != record("third")["config_hash"]
    assert record("second")["command"] == "python -m runner rerun first run_dir=second"
    assert record("third")["overrides"] == ["run_dir=third", "seed=4"]
    (fourth,) = Path("runs/linreg").iterdir()
    assert record(str(fourth))["config_hash"] == record("first")["config_hash"]


def test_the_printed_configuration_of_a_repeated_run(capsys: pytest.CaptureFixture[str]) -> None:
    out(capsys, "+experiment=linreg", "run_dir=first", *QUICK)
    shown = yaml.safe_load(out(capsys, "--cfg", "job", "rerun", "first", "seed=4"))
    first = yaml.safe_load(Path("first/config.yaml").read_text())
    # single and ddp differ only in the number of processes, so the strategy is resolved again.
    assert shown == first | {"seed": 4, "run_dir": None, "strategy": first["strategy"] | {"name": "auto"}}


def test_a_run_with_options_of_the_user_is_repeated_without_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    user_folder(tmp_path / "mine")
    out(capsys, "--config-dir", "mine", "experiment=trial", "model=tiny", "run_dir=run", *QUICK)
    assert yaml.safe_load(Path("run/config.yaml").read_text())["model"]["widths"] == [2]
    shutil.rmtree("mine")
    out(capsys, "rerun", "run")


# ----------------------------------------------------------------------------------------------------------- exit codes


def test_a_failed_run_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["+experiment=linreg", "optimizer.lr=1e30", "run_dir=run", "device=cpu", "record.plots=false"]
    assert cli.main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: training diverged at step ")
    assert record("run")["status"] == "failed"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RunFailed("the device was lost"), 1, "error: the device was lost"),
        (Interrupted(2, "stopped after step 5"), 130, "stopped after step 5 (SIGINT)"),
        (Interrupted(15, "stopped after step 5"), 143, "stopped after step 5 (SIGTERM)"),
        (KeyboardInterrupt(), 130, "stopped before training began; nothing was written"),
    ],
)
def test_an_error_has_its_exit_code(
    error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("runner.training.run.execute", fail)
    assert cli.main(["seed=3"]) == code
    assert capsys.readouterr().err == f"{line}\n"


def test_an_unexpected_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("runner.training.run.execute", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["seed=3"])


# -------------------------------------------------------------------------------------------------------------- imports

HEAVY = """
import os, sys
from runner import cli

codes = [cli.main(arguments) for arguments in (
    ["--help"], ["--version"], ["--help", "--config-dir", "."], ["+experiment=linreg", "--cfg", "job", "--resolve"],
    ["+experiment=curve_fit", "lrr=3", "seed=-1", "model=nope"], ["data=csv"], ["optimizer=lbfgs", "update=manual"],
    ["model=formula", "model.expression=open(x)"], ["resume=nope"], ["rerun", "nope"], ["-m", "seeed=1,2"],
)]
heavy = sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "numpy", "matplotlib", "tensorboard", "pyarrow"})
os.write(2, f"{codes} {heavy} {os.listdir()}".encode())
"""


def test_help_and_refusals_do_not_import_torch() -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run([sys.executable, "-c", HEAVY], capture_output=True, text=True, env=environ, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2] [] []"
    assert "Traceback" not in done.stderr


SLOW = """
import os, sys
from runner import cli

quick = ["device=cpu", "device.threads=1", "record.plots=false"]
codes = [cli.main([*arguments, *quick]) for arguments in (["+experiment=linreg", "train.steps=4"], ["+experiment=curve_fit", "optimizer=lm", "dtype=float64"])]
slow = sorted(set(sys.modules) & {"sympy", "torch._dynamo", "torch.distributed.tensor", "matplotlib", "scipy", "pandas", "optuna"})
os.write(2, f"{codes} {slow}".encode())
"""


def test_a_run_does_not_import_slow_modules_that_it_does_not_need(tmp_path: Path) -> None:
    """Each of these imports takes as long as a small run. For example, torch's broadcast_shapes imports sympy in 0.5 s."""
    done = subprocess.run([sys.executable, "-c", SLOW], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stderr.splitlines()[-1] == "[0, 0] []"


COLLECTED = """
import gc, os, sys, weakref
if "torch" in sys.argv:
    import torch
import runner

class Node: ...

def garbage():
    node = Node()
    node.itself = node
    return weakref.ref(node)

before = garbage()
runner.run("linreg", ["device=cpu", "record.plots=false"])
frozen, after = gc.get_freeze_count(), garbage()
gc.collect()
os.write(2, f"{before()} {after()} {gc.isenabled()} {frozen > 100_000} {frozen > 0}".encode())
"""


@pytest.mark.parametrize(
    ("arguments", "frozen"), [([], "True True"), (["torch"], "False False")], ids=["runner", "caller"]
)
def test_modules_imported_by_a_run_are_excluded_from_garbage_collection(
    arguments: list[str], frozen: str, tmp_path: Path
) -> None:
    """Other garbage is collected. Nothing is changed if the caller has imported torch before."""
    command = [sys.executable, "-c", COLLECTED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stderr.splitlines()[-1] == f"None None True {frozen}"


def test_the_module_returns_its_exit_code_to_the_shell() -> None:
    done = subprocess.run([sys.executable, "-m", "runner", "lrr=3"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: `lrr` is not a key; did you mean `optimizer.lr`?\n"
