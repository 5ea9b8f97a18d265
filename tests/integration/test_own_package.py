"""README's ten lines, and the package experiments/own_model: their commands, word for word but for their length."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from runner.cli import main
from runner.config.trust import VARIABLE

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "experiments" / "own_model"
QUICK = ["device=cpu", "record.plots=false", "record.sinks=[jsonl]"]


def commands(text: str) -> list[list[str]]:
    return [shlex.split(line) for line in re.findall(r"^python -m runner (.*)$", text, re.MULTILINE)]


def section(name: str) -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8").split(f"### {name}\n")[1].split("\n### ")[0]


def lanes(sweep: Path) -> list[int]:
    return [json.loads(path.read_text())["lanes"] for path in sorted(sweep.glob("[0-9]*/run.json"))]


def test_ten_lines_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = section("Your own code")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my_lab_of_readme").mkdir()
    (tmp_path / "my_lab_of_readme" / "nets.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # as `python -m` has it
    monkeypatch.syspath_prepend(tmp_path)
    run, sweep, verify, export = commands(text.replace("my_lab", "my_lab_of_readme"))  # tests have a my_lab as well
    assert main([*run, *QUICK]) == 0
    assert main([*sweep, *QUICK, "train.epochs=2", "run_dir=sweep"]) == 0
    assert lanes(Path("sweep")) == [8] * 8
    assert main(verify) == 0
    assert main(export) == 0
    assert onnxruntime.InferenceSession("runs/own.onnx").get_outputs()[0].name == "progression"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return the commands of the experiment's README, for a package that is trusted and can be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(PACKAGE / "src")
    monkeypatch.setenv("PYTHONPATH", str(PACKAGE / "src"))
    monkeypatch.setenv(VARIABLE, "own_model")
    Path("experiments").symlink_to(ROOT / "experiments")
    return commands((PACKAGE / "README.md").read_text())


@pytest.mark.long
def test_the_package_of_the_experiment_is_killed_and_divided(package: list[list[str]]) -> None:
    _, _, resume, sizes, *_ = package
    assert main([*resume, *QUICK, "train.steps=60"]) == 0
    assert main([*sizes, *QUICK, "train.steps=20"]) == 0


def test_the_package_of_the_experiment(package: list[list[str]]) -> None:
    run, rerun, _, _, rates, widths, export = package
    assert main([*run, *QUICK]) == 0
    summary = json.loads(Path("runs/waves/summary.json").read_text())
    # The noise has a deviation of 0.1, which no function of x can predict.
    assert 0.09 < summary["metrics"]["valid/rmse"] < 0.11
    assert main(rerun) == 0
    assert main([*rates, *QUICK, "train.steps=3", "run_dir=rates"]) == 0
    assert lanes(Path("rates")) == [8] * 8
    assert main([*widths, *QUICK, "train.steps=3", "run_dir=widths"]) == 0
    assert lanes(Path("widths")) == [1, 1]
    assert main(export) == 0
    session = onnxruntime.InferenceSession("runs/waves.onnx")
    x = np.linspace(0, 10, 200)[:, None]
    (found,) = session.run(None, {"x": x})
    truth = np.sin(2 * x) + 0.5 * np.sin(7 * x) + 0.2 * x
    assert np.sqrt(np.mean((found - truth) ** 2)) < 0.1  # less than the noise of a single row
