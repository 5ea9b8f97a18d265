"""What CONTRIBUTING says to write makes new parts that run, in a copy of the checkout."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = re.findall(r"^`([\w/.]+)`(?:, below `(\w+)`)?:\n\n```\w+\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = re.findall(r"^python (-m .+)$", PAGE, re.MULTILINE)
QUICK = ["device=cpu", "device.threads=1", "record.plots=false"]


def write(file: Path, below: str, text: str) -> None:
    """Write a new file, or add a class below another one."""
    if not below:
        assert not file.exists()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return
    source = file.read_text(encoding="utf-8")
    (end,) = (
        node.end_lineno for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == below
    )
    lines = source.splitlines(keepends=True)
    lines.insert(end or 0, f"\n\n{text}")
    file.write_text("".join(lines), encoding="utf-8")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the page adds to, with all that it adds."""
    copy = tmp_path_factory.mktemp("checkout")
    for folder in ("src", "conf"):
        shutil.copytree(ROOT / folder, copy / folder)  # bytecode too: compiling takes longer than a command
    for name in ("docs/generate.py", "tests/contracts/test_models.py", "tests/conftest.py"):
        write(copy / name, "", (ROOT / name).read_text(encoding="utf-8"))
    for name, below, text in FILES:
        write(copy / name, below, text)
    return copy


def python(checkout: Path, words: list[str]) -> str:
    """The output of a command in the copy, which must end well."""
    environ = {**os.environ, "PYTHONPATH": str(checkout / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=checkout, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def command(start: str) -> list[str]:
    """The words of the one command of the page that starts so."""
    (found,) = (text for text in COMMANDS if text.startswith(start))
    return shlex.split(found)


def test_a_model_is_three_files_and_one_class(checkout: Path) -> None:
    section = PAGE.partition("## Add a model in three files")[2].partition("\n## ")[0]
    names = [name for name, _, text in FILES if text in section]
    assert sorted(names) == [
        "conf/model/sine.yaml", "src/runner/config/schema.py", "src/runner/models/sine.py", "tests/unit/models/test_sine.py",
    ]  # fmt: skip
    python(checkout, [*command("-m runner data=curve"), *QUICK, "run_dir=sine"])
    summary = json.loads((checkout / "sine/summary.json").read_text())
    assert summary["parameters"].keys() == {"frequency", "amplitude", "phase"}


def test_the_test_of_the_page_and_the_contracts_hold(checkout: Path) -> None:
    words = command("-m pytest")
    out = python(checkout, [*words, "tests/contracts/test_models.py", "-q", "-p", "no:cacheprovider", "-k", "sine"])
    assert int(re.findall(r"(\d+) passed", out)[0]) > 5


def test_the_page_of_keys_has_the_new_parts(checkout: Path) -> None:
    python(checkout, ["docs/generate.py"])
    page = (checkout / "docs/config.md").read_text(encoding="utf-8")
    for part in ("model=sine", "loss=quantile", "optimizer=adagrad", "data=npz", "schedule=inverse_root"):
        assert f"### `{part}`" in page


@pytest.mark.parametrize("update", ["manual", "optimizer"])
def test_a_run_of_new_parts_alone(checkout: Path, update: str) -> None:
    x = np.linspace(0, 1, 20)[:, None]
    np.savez(checkout / "waves.npz", x=x, y=np.sin(3 * x[:, 0]))
    own = ["train.steps=20", "record.every_steps=10", f"update={update}", f"run_dir={update}"]
    python(checkout, [*command("-m runner data=npz"), *QUICK, *own])
    assert 'runner_metric{name="step"} 20.0\n' in (checkout / update / "metrics.prom").read_text()
    rates = [json.loads(line)["lr"] for line in (checkout / update / "metrics.jsonl").read_text().splitlines()]
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == 2
