"""`python -m runner doctor` and `python -m runner explain`: output, exit codes, and that they import nothing large."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from runner import cli
from runner.commands.doctor.findings import findings
from runner.commands.doctor.machine import from_json
from runner.config.hydra_adapter import CONF

WITHOUT = """
import sys
from runner.cli import main
code = main(sys.argv[1:])
loaded = sorted({'torch', 'numpy', 'matplotlib', 'tensorboard', 'rich'} & set(sys.modules))
raise SystemExit(f"{loaded} were imported" if loaded else code)
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def run_cli(*arguments: str) -> tuple[int, str, str]:
    """Return exit code, output and errors of a new process, and check that it imports no large package."""
    done = subprocess.run([sys.executable, "-c", WITHOUT, *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def line_number(start: str) -> int:
    """Return the number of the line in conf/config.yaml that starts with this text."""
    lines = [line.strip() for line in (CONF / "config.yaml").read_text(encoding="utf-8").splitlines()]
    (number,) = (number for number, line in enumerate(lines, 1) if line.startswith(start))
    return number


def broken_torch(folder: Path) -> None:
    (folder / "torch").mkdir()
    (folder / "torch" / "version.py").write_text("__version__ = '2.13.0+cpu'\ncuda = None\nhip = None\n")
    (folder / "torch" / "__init__.py").write_text("raise ImportError('libshm.so: cannot open shared object file')\n")


# ------------------------------------------------------------------------------------------------------------- doctor


def test_doctor_on_this_machine() -> None:
    code, out, err = run_cli("doctor")
    assert (code, err) == (0, "")
    assert re.search(r"^ok +torch +torch \S+ is an? \S+ build", out, re.MULTILINE)
    assert re.search(r"^ok +device +device=auto uses \w+: ", out, re.MULTILINE)
    assert all(re.match(r"(ok|limited) +[a-z]+ +\S|  +fix: \S", line) for line in out.splitlines())
    assert list(Path().iterdir()) == []


def test_doctor_json_has_the_machine_and_the_findings() -> None:
    code, out, err = run_cli("doctor", "--json")
    report = json.loads(out)
    assert (code, err, list(report), report["able"]) == (0, "", ["able", "findings", "machine"], True)
    assert report["findings"] == [dataclasses.asdict(f) for f in findings(from_json(report["machine"]))]


def test_doctor_without_a_working_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_torch(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code, out, err = run_cli("doctor")
    assert (code, err) == (1, "")
    assert re.search(
        r"^broken +torch +torch 2\.13\.0\+cpu is a CPU-only build, but it cannot be used: "
        r"libshm\.so: cannot open shared object file\n +fix: pip install --force-reinstall torch",
        out,
        re.MULTILINE,
    )


# ------------------------------------------------------------------------------------------------------------ explain


def test_explain_prints_what_the_guide_shows_and_leaves_nothing() -> None:
    code, out, err = run_cli("explain", "+experiment=linreg", "optimizer.lr=0.1", "optimizer.lr")
    assert (code, err) == (0, "")
    assert f"```\n{out}```\n" in (Path(__file__).parents[2] / "docs" / "guide.md").read_text(encoding="utf-8")
    assert "\noptimizer.lr = 0.1  command line: optimizer.lr=0.1\n" in out
    assert list(Path().iterdir()) == []


def test_explain_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "--json", "+experiment=linreg", "model=mlp", "train.epochs=3", "train.steps"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == {
        "choices": [
            {
                "group": "train",
                "option": "default",
                "set_by": {"value": "default", "file": "conf/config.yaml", "line": line_number("- train:")},
                "before": [],
            }
        ],
        "values": [
            {
                "key": "train.steps",
                "value": None,
                "set_by": {"value": None, "override": "train.epochs=3"},
                "before": [
                    {"value": 1000, "file": "conf/train/default.yaml", "line": 2},
                    {"value": 2000, "file": "conf/experiment/linreg.yaml", "line": 25},
                ],
                "meaning": "number of parameter updates; null if epochs is set",
                "unit": "steps",
                "at_start": None,
            }
        ],
        "notices": ["`model.init` of the experiment left out: mlp has no such key"],
        "remarks": [],
    }


def test_explain_with_a_config_dir(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text("# @package _global_\n# My own.\nseed: 4\n")
    assert cli.main(["explain", "--config-dir", "mine", "+experiment=own", "seed"]) == 0
    assert capsys.readouterr().out == (
        "seed = 4  mine/experiment/own.yaml:3\n    seed of every random stream\n"
        f"    before: 0, conf/config.yaml:{line_number('seed:')}\n"
    )


def test_explain_a_rerun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["+experiment=linreg", "train.steps=2", "record.plots=false", "device=cpu", "run_dir=first"]) == 0
    line = (tmp_path / "first" / "config.yaml").read_text().splitlines().index("seed: 0") + 1
    capsys.readouterr()
    assert cli.main(["explain", "rerun", "first", "seed=4", "seed"]) == 0
    assert capsys.readouterr().out == (
        f"seed = 4  command line: seed=4\n    seed of every random stream\n    before: 0, first/config.yaml:{line}\n"
    )


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        (
            ["doctor", "now", "--jsn"],
            ["the options cannot be read: unrecognized arguments: now --jsn; see `python -m runner doctor --help`"],
        ),
        (
            ["explain", "+experiment=linreg", "optimizer.lrr=0.1", "train.steps=many", "optimzer"],
            [
                "`optimzer` is not a key; did you mean `optimizer`?",
                "`optimizer.lrr` is not a key; did you mean `optimizer.lr`?",
                "`train.steps` must be an integer of at least 1 or null, got 'many'",
            ],
        ),
        (
            ["explain", "--jsn"],
            ["`--jsn` is not an option; write values as key=value, such as jsn=…"],
        ),
        (
            ["explain", "rerun"],
            ["`rerun` must be followed by a run directory, got nothing; write rerun RUN_DIR"],
        ),
    ],
)
def test_bad_input_is_refused(arguments: list[str], problems: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "".join(f"error: {problem}\n" for problem in problems))


@pytest.mark.parametrize("verb", ["doctor", "explain"])
def test_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"python -m runner {verb} ")
