"""The wheel is complete: it runs in an empty directory, with `conf/`, the types and the licence in it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import runner

ROOT = Path(__file__).parents[2]


def test_the_wheel_runs_in_an_empty_directory(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("runner-*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert {f"runner/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")} <= inside
    assert {"runner/data/diabetes.csv", "runner/py.typed"} <= inside
    metadata = f"runner-{runner.__version__}.dist-info"
    assert {f"{metadata}/METADATA", f"{metadata}/licenses/LICENSE"} <= inside
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "--quiet",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    words = ["+experiment=linreg", "train.steps=5", "record.plots=false", "run_dir=here"]
    code = f"import runner, sys; assert runner.__file__.startswith({str(site)!r}), runner.__file__; from runner.cli import main; sys.exit(main({words!r}))"
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
    )
    assert (empty / "here/summary.json").is_file()
