"""Which cells a parity table has and which of them a machine can compute: laptops without a GPU, CUDA, ROCm and Apple machines."""

from __future__ import annotations

from typing import get_args

import pytest

from runner.commands.parity.cells import AXES, Asked, Cell, ask, every, missing, obstacles
from runner.compute.devices import Hardware, TorchBuild
from runner.config import introspection
from runner.config.schema import Config, Device
from runner.errors import ConfigError

CPU = Hardware(build=TorchBuild("2.13.0+cpu", None, None), cpu_name="AMD EPYC")
H200 = Hardware(build=TorchBuild("2.13.0+cu130", "13.0", None), gpu_count=2, gpu_names=("NVIDIA H200",) * 2)
ONE_H200 = Hardware(build=TorchBuild("2.13.0+cu130", "13.0", None), gpu_count=1, gpu_names=("NVIDIA H200",))
MI300 = Hardware(build=TorchBuild("2.13.0+rocm7.1", None, "7.1"), gpu_count=2, gpu_names=("AMD Instinct MI300X",) * 2)
APPLE = Hardware(build=TorchBuild("2.13.0", None, None), cpu_name="Apple M3", mps=True)


def asked(*words: str) -> Asked:
    return ask(["+experiment=linreg", *words], None)


@pytest.fixture(scope="module")
def linreg() -> Asked:
    return asked("optimizer=sgd")


def why_not(table: Asked, cell: Cell, hardware: Hardware) -> tuple[str, ...]:
    return obstacles(table.config(cell), table.size(cell), {}, hardware)


# ------------------------------------------------------------------------------------------------------ what is asked for


def test_the_axes_are_those_of_the_schema() -> None:
    axes = every()
    assert tuple(axes) == AXES
    assert axes["device"] == ("cpu", "cuda", "rocm", "mps", "xpu")
    assert axes["strategy"] == ("single", "dp", "ddp", "fsdp", "tensor", "pipeline")
    assert axes["dtype"] == get_args(introspection.hints(Config)["dtype"])
    assert axes["optimizer"] == tuple(introspection.variants(introspection.hints(Config)["optimizer"]))


def test_a_word_for_an_axis_restricts_it() -> None:
    table = asked("dtype=float64", "strategy=ddp,single", "optimizer=momentum,sgd", "optimizer.lr=1e-5")
    assert [str(cell) for cell in table.cells(["cpu"])] == [
        f"device=cpu dtype=float64 strategy={strategy} update={update} optimizer={optimizer}"
        for strategy in ("single", "ddp")
        for update in ("manual", "optimizer")
        for optimizer in ("sgd", "momentum")
    ]
    config = table.config(Cell("cuda", "float64", "ddp", "manual", "momentum"))
    assert (config.device.name, config.dtype, config.strategy.name) == ("cuda", "float64", "ddp")
    assert (config.update, config.optimizer.name, config.optimizer.lr) == ("manual", "momentum", 1e-5)
    assert config.launch.processes == 2


def test_of_two_words_for_an_axis_the_last_one_counts() -> None:
    table = asked("optimizer=sgd", "dtype=float64", "dtype=float32")
    assert table.axes["dtype"] == ("float32",)
    assert table.notices[0] == "`dtype` is given twice; the last one counts: float32"


def test_a_cell_has_one_thread_and_writes_each_step(linreg: Asked) -> None:
    config = linreg.config(Cell("cpu", "float64", "single", "manual", "sgd"))
    assert (config.device.threads, config.record.every_steps, config.record.plots) == (1, 1, False)
    assert asked("device.threads=3", "optimizer=sgd").bases["sgd"].device.threads == 3


def test_the_command_of_a_cell_computes_that_cell_alone() -> None:
    table = asked("launch.processes=3", "seed=4", "optimizer=sgd")
    cell = Cell("cpu", "float32", "ddp", "manual", "sgd")
    assert table.command(cell, 7) == [
        "python", "-m", "runner", "+experiment=linreg", "seed=4", "device=cpu", "dtype=float32", "strategy=ddp",
        "update=manual", "optimizer=sgd", "train.steps=7", "device.threads=1", "launch.processes=3",
    ]  # fmt: skip
    alone = table.command(Cell("cpu", "float32", "single", "manual", "sgd"), 7)
    assert alone[-2:] == ["train.steps=7", "device.threads=1"]


def test_an_optimizer_that_the_words_do_not_fit_is_refused_alone() -> None:
    table = asked("optimizer=adam,sgd", "optimizer.eps=1e-6")
    assert list(table.bases) == ["adam"]
    (reason,) = table.refused["sgd"]
    assert reason.startswith("`optimizer.eps`")


@pytest.mark.parametrize(
    ("words", "problems"),
    [
        (["dtype=float32,half"], ["`dtype` must be among float64, float32, bfloat16, float16, but is half; leave it out for all"]),
        (["strategy=auto"], ["`strategy` must be among single, dp, ddp, fsdp, tensor, pipeline, but is auto; leave it out for all"]),
        (["run_dir=here"], ["`run_dir` cannot be given to parity: say where the table goes with --out DIR"]),
        (["amp=bfloat16"], ["`amp` must be off for parity, whose reference is float64, but is bfloat16; use amp=off, and dtype for the types"]),
        (
            ["update=by_hand", "seed=many"],
            [
                "`update` must be among manual, optimizer, but is by_hand; leave it out for all",
                "`seed` must be an integer from 0 to 4294967295, got 'many'",
            ],
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_for(words: list[str], problems: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        asked("optimizer=sgd", *words)
    assert list(raised.value.problems) == problems


def test_dropout_is_refused_since_every_device_drops_units_of_its_own() -> None:
    with pytest.raises(ConfigError, match=r"`model.dropout` must be 0 for parity"):
        ask(["+experiment=mlp", "model.dropout=0.1", "optimizer=sgd"], None)


# ------------------------------------------------------------------------------------------------------- what can run where


@pytest.mark.parametrize(
    ("hardware", "present"), [(CPU, {"cpu"}), (H200, {"cpu", "cuda"}), (MI300, {"cpu", "rocm"}), (APPLE, {"cpu", "mps"})]
)  # fmt: skip
def test_the_devices_of_a_machine(linreg: Asked, hardware: Hardware, present: set[str]) -> None:
    device: Device = linreg.bases["sgd"].device
    found = {name: missing(device, name, {}, hardware) for name in every()["device"]}
    assert {name for name, why in found.items() if not why} == present
    assert all(f"`device={name}` needs" in why[0] for name, why in found.items() if why)


@pytest.mark.parametrize(
    ("hardware", "cell", "reason"),
    [
        (CPU, "cpu float64 ddp", None),
        (CPU, "cpu float16 single", "`dtype` must not be float16 with `device`=cpu"),
        (CPU, "cpu float32 dp", "`strategy`=dp has one device to work on, so the run is single"),
        (CPU, "cuda float32 single", "`device=cuda` needs a CUDA build of torch"),
        (H200, "cuda float16 fsdp", None),
        (H200, "cuda float32 dp", None),
        (ONE_H200, "cuda float64 single", None),
        (ONE_H200, "cuda float64 ddp", "the 2 processes on this host need a GPU each, but 1 is visible"),
        (MI300, "rocm bfloat16 ddp", None),
        (APPLE, "mps float32 single", None),
        (APPLE, "mps float64 single", "`dtype` must not be float64 with `device`=mps"),
        (APPLE, "mps float32 ddp", "the 2 processes on this host need a GPU each, but 1 is visible"),
    ],
    ids=str,
)
def test_why_a_cell_cannot_run(linreg: Asked, hardware: Hardware, cell: str, reason: str | None) -> None:
    device, dtype, strategy = cell.split()
    found = why_not(linreg, Cell(device, dtype, strategy, "manual", "sgd"), hardware)
    assert [text.startswith(reason or "") for text in found] == ([] if reason is None else [True])


def test_a_cell_that_cannot_run_has_all_its_reasons() -> None:
    curve = ask(["+experiment=curve_fit", "optimizer=lbfgs"], None)
    found = why_not(curve, Cell("cpu", "float64", "fsdp", "manual", "lbfgs"), CPU)
    assert [text.partition(",")[0] for text in found] == [
        "`update` must be optimizer with `optimizer`=lbfgs",
        "`strategy` must be single",
        "`strategy` must be single",
    ]
