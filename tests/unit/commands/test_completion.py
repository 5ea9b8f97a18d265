"""Shell completion: what is offered for a line, and the script of each shell that is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runner.commands.completion.candidates import candidates
from runner.commands.completion.scripts import SCRIPTS

LISTED = 'complete -C "runner dtype=f"; complete -C "python -m runner verify w"'
"""Lines of fish that print candidates."""
BASH = """
asked() {
    COMP_LINE=$1 COMP_POINT=${#1} COMPREPLY=()
    "$2" "${1%% *}" 2>/dev/null  # compopt complains outside of a completion
    printf '%s\\n' "${COMPREPLY[@]}"
}
asked 'runner dtype=f' _runner
asked 'python -m runner verify w' _runner_python
"""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("runner +experiment=l", ["+experiment=linreg"]),
        ("python -m runner +", ["+experiment="]),
        ("runner ex", ["export", "explain"]),
        ("runner +experiment=linreg ex", []),  # a verb comes first
        ("runner +experiment=linreg optimizer.", ["optimizer.lr=", "optimizer.weight_decay="]),
        ("runner +experiment=mlp optimizer.b", ["optimizer.betas="]),
        ("runner +experiment=linreg optimizer=adam optimizer.b", ["optimizer.betas="]),
        ("runner model=custom model.k", ["model.kwargs."]),
        ("runner optimizer=sgd,adam", ["optimizer=sgd,adam", "optimizer=sgd,adamw"]),
        ("runner dtype=float", ["dtype=float64", "dtype=float32", "dtype=float16"]),
        ("runner deterministic=", ["deterministic=true", "deterministic=false"]),
        ("runner train.s", ["train.steps=", "train.select="]),
        ("runner resume=", ["resume=of a run/"]),
        ("runner resume=of\\ a\\ run/ data.", ["data.path=", "data.valid_path=", "data.test_path="]),
        ("runner data.path=", ["data.path=of a run/", "data.path=t.csv"]),
        ("runner rerun ", ["of a run/"]),
        ("runner verify ", ["rerun", "resume", "world-size", "sweep"]),
        ("runner verify world-size opt", ["optimizer.", "optimizer="]),
        ("runner verify --s", ["--seed", "--sizes"]),
        ("runner diverge a b ", []),
        ("runner predict ", ["of a run/"]),
        ("runner predict a data.mis", ["data.missing=", "data.missing_values="]),
        ("runner predict a --input t", ["t.csv"]),
        ("runner predict a --device c", ["cpu", "cuda"]),
        ("runner export a --format ", ["safetensors", "onnx"]),
        ("runner --cfg ", ["job"]),
        ("runner --t", ["--trust"]),
        ("runner seed=", []),
        ("runner 'an open quote", []),
        ("runner", []),
        ("ls ", []),
    ],
)
def test_the_end_of_a_line_is_completed(
    line: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("of a run").mkdir()
    Path("t.csv").touch()
    assert candidates(line) == expected


def test_the_users_own_options_are_offered(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("# Mine.\nname: custom\ntarget: my_lab.nets:Net\n")
    assert candidates(f"runner --config-dir {tmp_path} model=mi") == ["model=mine"]
    assert candidates(f"runner --config-dir {tmp_path} model=mine model.t") == ["model.target="]


def test_each_shell_shows_the_candidates(tmp_path: Path) -> None:
    """Of bash always; of fish where it is installed; zsh, where it is installed, only reads its script."""
    for program, command in {"runner": "-m runner", "python": ""}.items():
        (tmp_path / program).write_text(f'#!/bin/sh\nexec {sys.executable} {command} "$@"\n')
        (tmp_path / program).chmod(0o755)

    def shown(shell: str, text: str) -> list[str]:
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            [shell, "-c", SCRIPTS[shell] + text],
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert not done.stderr
        return done.stdout.split()

    assert shown("bash", BASH) == ["float64", "float32", "float16", "world-size"]
    if shutil.which("fish"):
        assert sorted(shown("fish", LISTED)) == ["dtype=float16", "dtype=float32", "dtype=float64", "world-size"]
    if shutil.which("zsh"):
        subprocess.run(["zsh", "-n", "-c", SCRIPTS["zsh"]], check=True)


def test_nothing_that_takes_long_is_imported() -> None:
    code = (
        "import sys, runner.cli; runner.cli.main(['completion', 'candidates', 'runner verify w']); "
        "sys.exit(' '.join({'torch', 'hydra', 'omegaconf', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("world-size\n", "\n")
