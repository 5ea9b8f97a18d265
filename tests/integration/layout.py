"""The parameters of fourteen runs, which show that a change of layout moves no bit.

`python tests/integration/layout.py` runs them with the `runner` that is imported, and compares the hashes with
`tests/fixtures/layout.json`. `--write FILE` writes the hashes into FILE instead. To compare with another commit, run this
file with the `src` of a checkout of that commit in PYTHONPATH.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import runner

RECORDED = Path(__file__).parents[1] / "fixtures" / "layout.json"

MLP = ["+experiment=mlp", "model.widths=[8]", "train.steps=40", "train.epochs=null"]
RUNS: Mapping[str, list[str]] = {
    "linreg float32 manual": ["+experiment=linreg", "train.steps=60"],
    "linreg float32 optimizer": ["+experiment=linreg", "train.steps=60", "update=optimizer"],
    "linreg float64 manual": ["+experiment=linreg", "train.steps=60", "dtype=float64"],
    "momentum": [*MLP, "optimizer=momentum", "optimizer.lr=1e-3"],
    "adam": [*MLP, "optimizer=adam", "optimizer.lr=1e-2"],
    "adamw": [*MLP, "optimizer=adamw", "optimizer.lr=1e-2", "schedule=cosine"],
    "lbfgs": [*MLP, "update=optimizer", "optimizer=lbfgs", "train.batch_size=null", "train.steps=5"],
    "lstsq": ["+experiment=linreg", "optimizer=lstsq", "dtype=float64", "train.steps=5"],
    "lm": ["+experiment=curve_fit", "optimizer=lm", "dtype=float64", "train.steps=20"],
    "mlp dropout accumulate": [
        *MLP, "model.dropout=0.2", "train.accumulate=3", "train.clip_norm=1", "optimizer=adam", "optimizer.lr=1e-2",
    ],
    "exact, one process": [*MLP, "strategy.reduction=exact"],
    "exact, two processes": [*MLP, "strategy.reduction=exact", "launch.processes=2"],
    "resumed": [*MLP, "optimizer=adam", "optimizer.lr=1e-2", "model.dropout=0.2"],
    "sweep member": [*MLP, "optimizer=adam", "optimizer.lr=1e-3,1e-2", "seeds=2"],
}  # fmt: skip


def answers() -> dict[str, str]:
    """Run all of them in a temporary folder. Returns name → `parameters_sha256`."""
    with tempfile.TemporaryDirectory() as folder:
        return {name: _answer(overrides, Path(folder) / f"run_{i}") for i, (name, overrides) in enumerate(RUNS.items())}


def _answer(overrides: list[str], path: Path) -> str:
    overrides = [*overrides, "record.plots=false", "device=cpu", "device.threads=1", f"run_dir={path}"]
    if path.name == f"run_{list(RUNS).index('sweep member')}":
        runner.multirun(None, overrides)
        return _read(path / "3")
    if "launch.processes=2" in overrides:
        environ = {**os.environ, "PYTHONPATH": str(Path(runner.__file__).parents[1])}
        subprocess.run([sys.executable, "-m", "runner", *overrides], check=True, env=environ, capture_output=True)
        return _read(path)
    if path.name == f"run_{list(RUNS).index('resumed')}":
        runner.run(None, [*overrides, "train.steps=17"])
        runner.run(None, [f"resume={path}", "train.steps=40"])
        return _read(path)
    runner.run(None, overrides)
    return _read(path)


def _read(path: Path) -> str:
    summary: dict[str, Any] = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    return str(summary["parameters_sha256"])


def main() -> int:
    """Write the hashes, or print which of them differ from the recorded ones. Returns the exit code."""
    computed = answers()
    if sys.argv[1:2] == ["--write"]:
        Path(sys.argv[2]).write_text(json.dumps(computed, indent=1) + "\n")
        return 0
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    for name, answer in computed.items():
        sys.stdout.write(f"{'same' if recorded[name] == answer else 'DIFFERS'}  {answer[:16]}  {name}\n")
    return int(recorded != computed)


if __name__ == "__main__":
    raise SystemExit(main())
