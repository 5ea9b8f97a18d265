"""The device under test, and ways to train on it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import runner
from runner.compute.devices import DeviceChoice, set_up_device
from runner.compute.processes import SingleProcess
from runner.config.compose import compose
from runner.config.schema import Config
from runner.runs import checkpoint
from runner.runs.sinks.jsonl import read_rows
from runner.training import build, vmapped
from runner.training.experiment import Experiment
from runner.training.vmapped import VmappedExperiment

HAS_GPU = torch.cuda.is_available()
DEVICE = os.environ.get("RUNNER_TEST_DEVICE") or ("rocm" if torch.version.hip else "cuda")
"""`device` of the tested runs. RUNNER_TEST_DEVICE=cpu rehearses the tests on a machine without a GPU."""
REHEARSAL = DEVICE == "cpu"

needs_device = pytest.mark.skipif(
    not (HAS_GPU or REHEARSAL), reason="needs a GPU; RUNNER_TEST_DEVICE=cpu rehearses most of these tests on the CPU"
)
needs_gpu = pytest.mark.skipif(not HAS_GPU or REHEARSAL, reason="needs a GPU, and cannot be rehearsed without one")

SETTINGS = ("device.threads=1", "record.plots=false", "record.sinks=[jsonl]")
QUICK = (f"device={DEVICE}", *SETTINGS)
EAGER, EITHER = "train.cuda_graph=false", "train.cuda_graph=auto"
CAPTURED = EITHER if REHEARSAL else "train.cuda_graph=true"  # refused on the CPU
GRAPHS = (EAGER, EITHER)
"""Both kinds of steps. `auto` captures on a GPU what can be captured, and nothing on the CPU."""

FULL_BATCH = (
    "name=network", "data=curve", "data.expression=sin(x)+sin(y)", "data.rows=58", "data.start=-3", "data.stop=3",
    "data.split.valid=12", "model=mlp", "model.widths=[8,6]", "train.steps=20",
    "train.eval_every_steps=6", "record.every_steps=1", "checkpoint.every_steps=5", "checkpoint.keep=null", "record.hash_every_steps=1",
)  # fmt: skip
"""A network on 46 training rows; any optimizer."""
NETWORK = (*FULL_BATCH, "train.batch_size=16", "optimizer.lr=0.01")
"""The same in batches: the last batch of an epoch has 14 rows."""
EVERYTHING = (*NETWORK, "model.dropout=0.2", "train.accumulate=2", "train.clip_norm=0.1", "schedule=cosine")
"""The same with everything that has a state or draws numbers, except an adaptive optimizer."""


def train(folder: str, *overrides: str) -> Path:
    """Train a run in a new folder and return its directory."""
    return runner.run(None, [*QUICK, *overrides, f"run_dir={folder}"]).directory


def resume(run: Path, *overrides: str) -> Path:
    """Resume a run and return its directory."""
    return runner.run(None, [f"resume={run}", *overrides]).directory


def composed(*overrides: str) -> tuple[Config, DeviceChoice]:
    """Return a configuration for the device under test, which is set up, with `auto` resolved."""
    config = compose([*QUICK, *overrides], None).config
    choice = set_up_device(config, None, SingleProcess())
    return build.resolve(config, choice, 1), choice


def parts(*overrides: str) -> Experiment:
    """Build the parts of a run without its records."""
    config, choice = composed(*overrides)
    return build.build(config, build.prepare(config, choice, 1)[0], SingleProcess())


def lanes(common: Sequence[str], differing: Sequence[Sequence[str]]) -> VmappedExperiment:
    """Build one program whose lanes have the common overrides, and each its own ones."""
    infos, models = [], []
    for own in differing:
        config, choice = composed(*common, *own)
        prepared = build.prepare(config, choice, 1)[0]
        infos.append(vmapped.run_info_of_lane(config, prepared, len(differing)))
        models.append(prepared.model)
    return vmapped.build(infos, models)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raise an error at every operation that waits for the GPU, as far as torch notices it."""
    if REHEARSAL:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ------------------------------------------------------------------------------------------------------------ records


def read_json(path: Path) -> dict[str, Any]:
    """Return an object of a JSON file."""
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def rows(run: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl without the speed, which differs from run to run."""
    return [{k: v for k, v in row.items() if k != "samples_per_second"} for row in read_rows(run / "metrics.jsonl")]


def state(run: Path) -> dict[str, Any]:
    """Return the state of the last checkpoint, with its tensors on the CPU."""
    loaded = checkpoint.load(run / "checkpoints")
    assert loaded is not None
    return loaded.state


def sha256(run: Path) -> str:
    """Return the hash of the final parameters."""
    return str(read_json(run / "summary.json")["parameters_sha256"])


def first_difference(one: Path, other: Path) -> str | None:
    """Return where two runs first differ by a bit, or None: parameters of each step, rows, result."""
    hashes = [read_rows(run / "hashes.jsonl") for run in (one, other)]
    steps = [[line["step"] for line in lines] for lines in hashes]
    if steps[0] != steps[1]:
        return f"hashes of steps {steps[0]} and {steps[1]}"
    for first, second in zip(*hashes, strict=True):
        names = [name for name, value in first["parameters"].items() if second["parameters"][name] != value]
        if names:
            return f"step {first['step']}: {', '.join(names)}"
    # Rows are compared as text, because nan is not equal to itself.
    for row, same in zip(rows(one), rows(other), strict=True):
        if repr(row) != repr(same):
            return f"row {row} and {same}"
    return None if sha256(one) == sha256(other) else "parameters_sha256"


def used_graph(run: Path) -> bool:
    """Whether the training steps of a run were captured as a CUDA graph."""
    line = steps_line(run)
    assert ("CUDA graph" in line) != ("eager: " in line), line
    return "CUDA graph" in line


def steps_line(run: Path) -> str:
    """Return the line of run.log on how the steps are taken."""
    lines = [
        line for line in (run / "run.log").read_text(encoding="utf-8").splitlines() if line.startswith("steps    ")
    ]
    assert lines, "run.log has no line on the steps"
    return lines[-1]
