"""No training step waits for the GPU: torch raises an error at every operation of a step that would synchronise.

The first steps may wait: they allocate memory, and capture graphs. What the host reads between steps is not a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch

from gpu.devices import GRAPHS, NETWORK, lanes, needs_device, needs_gpu, no_waiting, parts
from runner.training.experiment import Experiment
from runner.training.vmapped import VmappedExperiment

pytestmark = needs_device

FIRST, WATCHED, END = 231, 249, 267
"""Steps from which a program is warmed up and watched, six epochs of three batches each.

By then graphs of both batch sizes are recorded. Epochs begin in the steps that are watched, and new learning rates are copied
to the GPU at step 257.
"""

LINE = ("data=line", "data.rows=58", "data.features=3", "data.standardize=true", "optimizer.lr=0.01", "train.steps=300")
BATCHES = (*NETWORK, "train.steps=300")
UPDATES = [(name, update) for name in ("sgd", "momentum", "adam", "adamw") for update in ("manual", "optimizer")]
CASES = {
    **{f"line, {name}, {update}": (*LINE, f"optimizer={name}", f"update={update}") for name, update in UPDATES},
    **{f"network, {name}, {update}": (*BATCHES, f"optimizer={name}", f"update={update}") for name, update in UPDATES},
    **{
        f"{dtype}, {update}": (*BATCHES, f"dtype={dtype}", f"update={update}")
        for dtype in ("float64", "bfloat16")
        for update in ("manual", "optimizer")
    },
    "amp bfloat16, manual": (*BATCHES, "amp=bfloat16", "update=manual"),
    "amp bfloat16, adam": (*BATCHES, "amp=bfloat16", "optimizer=adam"),
    "accumulation": (*BATCHES, "train.accumulate=3", "update=manual"),
    "clipping": (*BATCHES, "train.clip_norm=0.1", "optimizer=momentum"),
    "clipping, manual": (*BATCHES, "train.clip_norm=0.1", "optimizer=adam", "update=manual"),
    "checked gradients": (*BATCHES, "train.check_gradients=true"),
    **{
        f"{schedule}, {update}": (*BATCHES, f"schedule={schedule}", f"update={update}", "optimizer=adam")
        for schedule in ("cosine", "step", "warmup_cosine")
        for update in ("manual", "optimizer")
    },
    "dropout": (*BATCHES, "model.dropout=0.2"),
    "dropout, accumulation, manual": (*BATCHES, "model.dropout=0.2", "train.accumulate=2", "update=manual"),
    "exact": (*BATCHES, "strategy.reduction=exact"),
    "formula, manual": (
        "data=curve", "model=formula", "model.expression=a*exp(-b*x)", "update=manual", "optimizer=adam", "train.steps=300",
    ),
    "huber": (*BATCHES, "loss=huber"),
    "deterministic": (*BATCHES, "model.dropout=0.2", "deterministic=true", "update=manual", "optimizer=adamw"),
}  # fmt: skip
ADAPTED = {"warmup_cosine": ("schedule.warmup_steps=10",), "step": ("schedule.every_steps=4", "schedule.factor=0.5")}


def adapted(case: str) -> tuple[str, ...]:
    """Return the overrides of a case, with the keys that only its schedule has."""
    return (*CASES[case], *ADAPTED.get(case.partition(",")[0], ()))


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("case", CASES)
def test_no_step_of_a_run_waits(case: str, graph: str) -> None:
    assert_no_waiting(parts(*adapted(case), graph))


LANES: Mapping[str, tuple[Sequence[str], Sequence[Sequence[str]]]] = {
    "learning rates and seeds": (
        (*BATCHES, "update=manual"), [("optimizer.lr=0.01", "seed=0"), ("optimizer.lr=0.02", "seed=1"), ("optimizer.lr=0.03", "seed=2")],
    ),
    "schedules": (
        (*BATCHES, "schedule=cosine", "optimizer=adam"), [("schedule.final_factor=0", "seed=0"), ("schedule.final_factor=0.5", "seed=1")],
    ),
    "learning rates under a schedule": (
        (*BATCHES, "schedule=step", "schedule.factor=0.5", "optimizer=momentum", "update=manual"),
        [("optimizer.lr=0.01", "schedule.every_steps=3"), ("optimizer.lr=0.02", "schedule.every_steps=7")],
    ),
    "clipping": ((*LINE, "optimizer=adamw"), [("train.clip_norm=0.1",), ("train.clip_norm=10", "optimizer.weight_decay=0.1")]),
    "line": ((*LINE, "update=manual"), [("optimizer.lr=0.01",), ("optimizer.lr=0.02",), ("optimizer.lr=0.03",)]),
    "float64": ((*BATCHES, "dtype=float64", "optimizer=adam"), [("seed=0",), ("seed=1",)]),
}  # fmt: skip


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("case", LANES)
def test_no_step_of_vmapped_runs_waits(case: str, graph: str) -> None:
    common, differing = LANES[case]
    assert_no_waiting(lanes((*common, graph), differing))


def assert_no_waiting(program: Experiment | VmappedExperiment) -> None:
    losses = [program.step(number) for number in range(FIRST, WATCHED)]
    with no_waiting():
        losses += [program.step(number) for number in range(WATCHED, END)]
    assert torch.stack(losses).isfinite().all()


@needs_gpu
def test_waiting_would_be_noticed() -> None:
    value = torch.ones(3, device="cuda")
    for wait in (lambda: value.sum().item(), value.nonzero, lambda: torch.ones(3).to("cuda")):
        with no_waiting(), pytest.raises(RuntimeError, match="synchroniz"):
            wait()
