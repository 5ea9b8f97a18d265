"""Outputs that the pages show: their commands, word for word, on the tables of the repository."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

import runner
from runner import cli

ROOT = Path(__file__).parents[2]
PACE = re.compile(r"[\d,.]+ steps/s")


def outputs(page: Path) -> list[tuple[str, list[str]]]:
    """Return pairs of a command and the lines that the next code block of the page shows."""
    blocks = re.findall(r"^```\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    joined = [block.replace("\\\n", " ") for block in blocks]
    return [
        (next(line for line in command.splitlines() if line.startswith("python -m runner")), shown.splitlines())
        for command, shown in pairwise(joined)
        if command.startswith("python -m runner") and not shown.startswith(("python", "$", "#"))
    ]


@pytest.mark.parametrize("name", ["README.md", "docs/guide.md"])
def test_an_example_prints_what_its_page_shows(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    fits = [(command, shown) for command, shown in outputs(ROOT / name) if "data.path=" in command]
    assert fits
    for i, (command, shown) in enumerate(fits):
        words = shlex.split(command)[3:]
        assert cli.main([*words, f"run_dir={tmp_path / str(i)}", "device=cpu", "record.plots=false"]) == 0
        printed = capsys.readouterr().out.splitlines()
        assert [line for line in shown if line not in printed] == []


def commands(page: Path) -> list[str]:
    """Return the commands of a page."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    return re.findall(r"^python -m runner (.*)$", text, re.MULTILINE)


@pytest.mark.parametrize(
    "command", [c for name in ("README.md", "docs/guide.md") for c in commands(ROOT / name) if "=experiments/" in c]
)
def test_a_command_on_a_table_of_the_repository_converges(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert cli.main([*shlex.split(command), f"run_dir={tmp_path / 'run'}", "device=cpu", "record.plots=false"]) == 0


def test_the_first_run_prints_what_the_readme_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"The first run prints, towards its end:\n\n```\n(.*?)```", text, re.DOTALL)[0].splitlines()
    overrides = ["+experiment=linreg", f"run_dir={tmp_path / 'run'}", "device=cpu", "record.plots=false"]
    assert cli.main(overrides) == 0
    printed = [PACE.sub("", line).rstrip() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in shown if PACE.sub("", line).rstrip() not in printed] == []


def test_the_experiment_of_the_readme_can_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (text,) = re.findall(r"```yaml\n(# @package.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    quick = ["train.steps=500", "device=cpu", "record.plots=false", f"run_dir={tmp_path / 'run'}"]
    run = runner.run("mine", quick, config_dir=str(tmp_path))
    assert run.summary["metrics"]["test/r2"] > 0.5  # after a tenth of its steps
