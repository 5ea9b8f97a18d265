"""The README's way from a raw table to a model in another program: its commands, word for word but for the number of epochs."""

from __future__ import annotations

import csv
import gzip
import re
import shlex
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from runner.cli import main

ROOT = Path(__file__).parents[2]
SHORTER = {"train.epochs=10": "train.epochs=1", "--importance 10": "--importance 2"}


def commands() -> list[list[str]]:
    """Return the arguments of the commands of the section."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("### Use the model")[1].split("\n### ")[0]
    for long, short in SHORTER.items():
        assert long in section
        section = section.replace(long, short)
    return [shlex.split(line) for line in re.findall(r"^python -m runner (.*)$", section, re.MULTILINE)]


def test_a_raw_table_becomes_a_model_that_onnxruntime_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("experiments").symlink_to(ROOT / "experiments")
    for arguments in commands():
        assert main([*arguments, *([] if "runs/" in arguments[1] else ["device=cpu", "record.plots=false"])]) == 0, (
            arguments
        )
    with gzip.open("experiments/diamonds/diamonds.csv.gz", "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("price", "search"):
        session = onnxruntime.InferenceSession(f"runs/{name}.onnx")
        cells = {
            column.name: np.array([[row[column.name]] for row in rows], str if "string" in column.type else np.float64)
            for column in session.get_inputs()
        }
        (found,) = session.run(
            ["price"],
            {column: values.astype(object) if values.dtype.kind == "U" else values for column, values in cells.items()},
        )
        with open(f"runs/{name}.csv", newline="") as file:
            expected = np.array([float(row["prediction"]) for row in csv.DictReader(file)])
        assert len(expected) == 53_940
        np.testing.assert_allclose(
            found[:, 0], expected, rtol=0, atol=2e-6 * np.abs(expected).max()
        )  # float32, and its digits
