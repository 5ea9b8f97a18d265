"""A captured training step is the same function of its number as an eager one, to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from runner.compute.devices import DeviceChoice
from runner.compute.processes import SingleProcess
from runner.compute.rng import preserve_rng_state
from runner.config.compose import compose
from runner.config.constraints import eager_because, problems
from runner.config.schema import Config
from runner.errors import ConfigError, RunFailed
from runner.optim.schedules import DeviceRates
from runner.training import build, vmapped
from runner.training.experiment import Experiment
from runner.training.loop import Program
from runner.training.step import WARM_UP_STEPS, EagerStep, GraphedStep, Step

from .tape import Tape

CPU = DeviceChoice("cpu", "cpu", "CPU", "cpu")
STEPS = 30
# 22 training rows in batches of 8, 8 and 6: the last size is recorded in the fourth epoch.
NETWORK = (
    "name=network", "data=line", "data.rows=30", "data.features=2", "data.standardize=true", "data.split.valid=8", "device=cpu",
    "model=mlp", "model.widths=[5]", "train.batch_size=8", f"train.steps={STEPS}", "optimizer.lr=0.05", "strategy=single",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _rng() -> Iterator[None]:
    with preserve_rng_state(True, torch.device("cpu")):
        yield


def built(*overrides: str, base: tuple[str, ...] = NETWORK) -> Experiment:
    config = compose([*base, *overrides], None).config
    return build.build(config, build.prepare(config, CPU, 1)[0], SingleProcess())


def lanes(*overrides: str) -> vmapped.VmappedExperiment:
    configs = [
        compose([*NETWORK, *overrides, f"seed={i}", f"optimizer.lr={0.01 + 0.02 * i}"], None).config for i in range(3)
    ]
    prepared = [build.prepare(config, CPU, 1)[0] for config in configs]
    infos = [vmapped.run_info_of_lane(c, p, 3) for c, p in zip(configs, prepared, strict=True)]
    return vmapped.build(infos, [p.model for p in prepared])


def graphed(program: Any, tape: Any = None, required: bool = True) -> GraphedStep:
    """Return the step of a program, recorded by a tape; a learning rate that changes is a tensor, as on a GPU."""
    schedule = program.schedule
    if isinstance(program, Experiment) and not program.info.config.schedule.constant:
        assert program.optimizer.rate_type is not None
        schedule = DeviceRates([schedule], program.optimizer.rate_type, torch.device("cpu"))
    return GraphedStep(EagerStep(program.objective, program.optimizer, schedule), tape or Tape(), required=required)


def taken(program: Program, step: Step, steps: range = range(1, STEPS + 1)) -> tuple[Tensor, dict[str, Any]]:
    """Return results and final state after some steps."""
    results = torch.stack([step(k) for k in steps])
    return results, program.capture()


def assert_same(make: Callable[[], Any]) -> None:
    one, other = make(), make()
    expected, tape = taken(one, one.step), Tape()
    assert_equal(taken(other, graphed(other, tape)), expected)
    assert tape.recordings


def assert_equal(result: Any, expected: Any) -> None:
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


CASES = {
    "sgd": (),
    "sgd by hand": ("update=manual",),
    "momentum": ("optimizer=momentum", "optimizer.weight_decay=0.1"),
    "momentum by hand": ("optimizer=momentum", "update=manual"),
    "adam": ("optimizer=adam",),
    "adamw": ("optimizer=adamw",),
    "full batch": ("train.batch_size=null",),
    "one row": ("train.batch_size=7",),
    "dropout": ("model.dropout=0.4", "optimizer=adam"),
    "clipped": ("train.clip_norm=0.1",),
    "checked": ("train.check_gradients=true",),
    "accumulated": ("train.accumulate=3", "model.dropout=0.2"),
    "accumulated full batch": ("train.accumulate=3", "train.batch_size=null"),
    "cosine by hand": ("schedule=cosine", "update=manual", "optimizer=momentum"),
    "float64": ("dtype=float64", "optimizer=adam"),
    "bfloat16": ("dtype=bfloat16", "update=manual"),
    "amp": ("amp=bfloat16", "optimizer=adamw"),
}


@pytest.mark.parametrize("overrides", CASES.values(), ids=CASES)
def test_a_captured_step_has_the_bits_of_an_eager_one(overrides: tuple[str, ...]) -> None:
    assert_same(lambda: built(*overrides))


@pytest.mark.parametrize(
    "overrides", [("optimizer=adam",), ("optimizer=momentum", "optimizer.lr=1e-3", "update=manual")]
)
def test_a_captured_step_ends_within_bounds(overrides: tuple[str, ...]) -> None:
    formula = (
        "model=formula",
        "model.expression=a*x0 + b*x1",
        "model.start={a: 1, b: 1}",
        "model.bounds={a: [0.5, 1.2]}",
    )
    base = (*(o for o in NETWORK if not o.startswith(("model", "data.standardize"))), *formula)
    assert_same(lambda: built(*overrides, base=base))
    program = built(*overrides, base=base)
    low, high, values = 0.5, float(torch.tensor(1.2)), []
    for step in range(1, STEPS + 1):
        program.step(step)
        values.append(float(program.parameters()[0]["a"]))
    assert all(low <= value <= high for value in values)
    assert {low, high} & set(values), "no step met a bound"


LANES = {
    "sgd": (),
    "momentum": ("optimizer=momentum", "train.clip_norm=0.1"),
    "cosine": ("schedule=cosine",),
    "same rows": ("train.batch_size=null", "data.seed=3"),
    "accumulated": ("train.accumulate=2",),
}


@pytest.mark.parametrize("overrides", LANES.values(), ids=LANES)
def test_a_captured_step_of_lanes_has_the_bits_of_an_eager_one(overrides: tuple[str, ...]) -> None:
    assert_same(lambda: lanes(*overrides))


def test_each_batch_size_is_captured_once_after_its_eager_steps() -> None:
    program, tape = built(), Tape()
    step, counts = graphed(program, tape), []
    for k in range(1, 16):
        step(k)
        counts.append(len(tape.recordings))
    # Sizes 8, 8, 6, …: the fourth batch of 8 rows is step 5, the fourth of 6 rows is step 12.
    assert WARM_UP_STEPS == 3
    assert [k for k, (before, now) in enumerate(zip([0, *counts], counts, strict=False), 1) if now > before] == [5, 12]


def test_a_replaced_state_is_captured_anew() -> None:
    one, other = built("optimizer=momentum", "update=manual"), built("optimizer=momentum", "update=manual")
    expected = taken(one, one.step)
    other = replace(other, step=graphed(other))
    taken(other, other.step, range(1, 11))
    state = {part: _copied(value) for part, value in other.capture().items()}
    taken(other, other.step, range(11, 16))
    other.restore(state)
    results, final = taken(other, other.step, range(11, STEPS + 1))
    assert_equal((results, final), (expected[0][10:], expected[1]))


def _copied(value: Any) -> Any:
    return {k: _copied(v) for k, v in value.items()} if isinstance(value, dict) else value.clone()


class Reading:
    """Tape of a device on which nothing can be captured."""

    warm_up = Tape.warm_up

    def capture(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        raise RuntimeError("operation not permitted when\nstream is capturing")


def test_a_step_that_cannot_be_captured_stays_eager_with_one_warning() -> None:
    one, other = built("update=manual"), built("update=manual")
    with pytest.warns(
        RuntimeWarning, match=r"slower than it could be: .*\(operation not permitted when stream is capt"
    ) as found:
        result = taken(other, graphed(other, Reading(), required=False))
    assert len(found) == 1
    assert_equal(result, taken(one, one.step))


def test_a_required_capture_that_fails_ends_the_run() -> None:
    program = built()
    step = graphed(program, Reading())
    with pytest.raises(
        RunFailed, match=r"^`train.cuda_graph` must be auto or false for this run: .*; use train.cuda_graph=false$"
    ):
        taken(program, step)


def configured(*overrides: str) -> Config:
    config = compose([*NETWORK, *overrides], None).config
    return replace(config, device=replace(config.device, name="cuda"))


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ([], None),
        (["model.dropout=0.5", "optimizer=adam", "schedule=cosine", "train.clip_norm=1"], None),
        (["dtype=float64", "schedule=cosine", "update=manual"], None),
        (["dtype=float64", "schedule=cosine"], "torch's fused optimizers take a learning rate that changes in float32 only, and `dtype` is float64"),
        (["train.cuda_graph=false"], "`train.cuda_graph` is false"),
        (["optimizer=lbfgs", "train.batch_size=null"], "`optimizer`=lbfgs makes decisions on the host in every step"),
        (["amp=float16"], "`amp`=float16 decides on the host in every step whether the gradients overflowed"),
        (["train.compile=true"], "`train.compile`=true makes kernels of its own"),
        (["strategy=ddp"], "`strategy`=ddp uses several devices"),
        (["strategy.reduction=exact"], "`strategy.reduction`=exact adds the gradients of its chunks in an order of its own"),
    ],
)  # fmt: skip
def test_reasons_for_eager_steps(overrides: list[str], reason: str | None) -> None:
    assert eager_because(configured(*overrides)) == reason


def test_lanes_may_change_the_learning_rate_in_float64() -> None:
    assert eager_because(configured("dtype=float64", "schedule=cosine"), lanes=3) is None


def test_a_capture_that_only_lanes_may_have_is_judged_when_the_program_is_built() -> None:
    config = configured("dtype=float64", "schedule=cosine")
    config = replace(config, train=replace(config.train, cuda_graph=True))
    assert problems(config) == []
    step = built().step
    assert isinstance(step, EagerStep)
    with pytest.raises(ConfigError, match="because torch's fused optimizers take a learning rate that changes in"):
        build.training_step(config, step.objective, step.optimizer, step.schedule)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["device=cpu"], "`device`=cpu has no CUDA graphs"),
        (["device=mps"], "`device`=mps has no CUDA graphs"),
        (["device=cuda", "optimizer=lbfgs", "train.batch_size=null"], "`optimizer`=lbfgs makes decisions on the host in every step"),
        (["device=rocm", "amp=float16"], "`amp`=float16 decides on the host in every step whether the gradients overflowed"),
    ],
)  # fmt: skip
def test_a_capture_that_is_impossible_is_refused(overrides: list[str], reason: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose([*NETWORK, *overrides, "train.cuda_graph=true"], None)
    assert error.value.problems == (
        f"`train.cuda_graph` must be auto or false because {reason}, got true; use train.cuda_graph=auto",
    )
