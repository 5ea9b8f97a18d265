"""No training step waits for the device: real training on a stand-in for an accelerator, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(300)  # the script takes half a minute on an idle core

FOUND = {
    "item": "aten._local_scalar_dense.default within a step",
    "branch": "aten._local_scalar_dense.default within a step",
    "finite": "aten._local_scalar_dense.default within a step",
    "list": "aten._local_scalar_dense.default within a step",
    "host": "aten._to_copy.default within a step",
    "array": ".numpy() is not supported",
    "mask": "aten.nonzero.default",
    "nonzero": "aten.nonzero.default",
    "index": "aten.index.Tensor with an index on the host",
    "mixed": "standin:0",
    "product": "standin:0",
    "constant": "aten._to_copy.default within a step",
    "filled": "aten.copy_.default within a step",
    "rate": "aten._to_copy.default within a step",
    "evaluation": "aten._to_copy.default after a read of the same evaluation",
}
"""Planted fault → text of the error that finds it."""


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the script reports of every case and every planted fault."""
    backend = pytest.importorskip("torch.utils.backend_registration", reason="this torch has no Python backends")
    if not hasattr(backend, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch has no Python backends, which are experimental")
    script = Path(__file__).with_name("standin.py")
    done = subprocess.run(
        [sys.executable, script],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path_factory.mktemp("standin"),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line.pop("case"): line for line in lines}


def test_no_step_waits(reports: dict[str, dict[str, Any]]) -> None:
    cases = {name: report for name, report in reports.items() if not name.startswith("fault")}
    eager = {"eager", *(f"{rule} optimizer float64" for rule in ("sgd", "momentum", "adam", "adamw"))}
    expected = {name: {"steps": 6, "graphs": 0 if name in eager else 1} for name in cases}
    assert cases == expected
    assert len(cases) == 53


@pytest.mark.parametrize(("fault", "text"), FOUND.items())
def test_a_step_that_waits_is_found(reports: dict[str, dict[str, Any]], fault: str, text: str) -> None:
    assert text in reports[f"fault {fault}"].get("error", "")


def test_every_fault_is_planted(reports: dict[str, dict[str, Any]]) -> None:
    assert {name.removeprefix("fault ") for name in reports if name.startswith("fault")} == set(FOUND)
